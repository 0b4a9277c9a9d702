// The state of the map as short texts for the page's address: the server writes them there, the back button brings them back.
const STATE = { view: "", at: "", pool: "max", colours: "log", weights: "on", kept: "on", missed: "off", sink: "show", lock: "off" };

const viewText = ({ row, col, size }, length) => (size > length * 0.99 ? "" : [row, col, size].map(Math.round).join("."));

function viewOf(text, length) {
  const [row, col, size] = (text ?? "").split(".").map(Number);
  return size > 0 ? fitted({ row, col, size }, length) : { row: 0, col: 0, size: length };
}

function crossOf(text, length) {
  const [query, key] = (text ?? "").split(".").map(Number);
  return key >= 0 ? { query: clamp(query, 0, length - 1) + 0.5, key: clamp(key, 0, length - 1) + 0.5 } : null;
}

function stateOfAddress() {
  const query = new URLSearchParams(window.location.search);
  return Object.fromEntries(Object.entries(STATE).map(([name, usual]) => [name, query.get(name) ?? usual]));
}
