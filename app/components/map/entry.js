// The map of one head as a component of the page.
const views = new WeakMap();

export default function ({ data, parentElement, setStateValue }) {
  const host = parentElement.querySelector(".root");
  if (data) {
    const message = unpack(data);
    if (!views.has(host)) views.set(host, new MapView(host, message.compact, message.palette));
    views.get(host).receive(message, (asked) => setStateValue("asked", asked));
  }
  return () => { views.get(host)?.close(); views.delete(host); };
}
