// The page's history: one press of Back undoes one act of the user. The server's answers to an act may change the address several
// times; the first change makes an entry of the history, the others replace it. Acts of one kind in quick succession are one.
const BURST = 1000, MARK = Symbol.for("sampleattention.history");

function watch() {
  const { history } = window, push = history.pushState.bind(history);
  let open = true, last = "", at = -Infinity;
  const act = (kind, again) => {
    const now = performance.now();
    open ||= !again && (kind !== last || now - at > BURST);
    [last, at] = [kind, now];
  };
  const listen = (name, listener) => window.addEventListener(name, listener, { capture: true, passive: true });
  listen("mousedown", ({ detail, timeStamp }) => act(detail > 1 ? last : `press ${timeStamp}`, detail > 1));
  listen("keydown", ({ key, repeat }) => act(key.startsWith("Arrow") ? "arrows" : key, repeat));
  listen("wheel", () => act("wheel", false));
  listen("popstate", () => { open = false; });
  history.pushState = (...entry) => {
    if (open) push(...entry);
    else history.replaceState(...entry);
    open = false;
  };
  history[MARK] = true;
}

export default function () {
  if (!window.history[MARK]) watch();
}
