// The board of all heads: one button per head, coloured by a number; query heads that share keys stand together.
function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function mix(ramp, x) {
  const at = Math.min(1, Math.max(0, x)) * (ramp.length - 1), low = Math.min(Math.floor(at), ramp.length - 2), part = at - low;
  const channel = (hex, i) => parseInt(hex.slice(i, i + 2), 16);
  return [1, 3, 5].map((i) => Math.round(channel(ramp[low], i) + part * (channel(ramp[low + 1], i) - channel(ramp[low], i))));
}

const ink = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#10151c" : "#ffffff");

export default function ({ data, parentElement, setTriggerValue }) {
  const host = parentElement.querySelector(".root"), focused = host.dataset.focus;
  host.replaceChildren();
  const grid = host.appendChild(make("div", "grid")), readout = host.appendChild(make("div", "readout")), legend = host.appendChild(make("div", "legend"));
  grid.setAttribute("role", "grid");
  grid.setAttribute("aria-label", `Heads by ${data.name}`);
  readout.setAttribute("aria-live", "polite");
  const groupSize = data.heads / data.kv_heads, first = (head) => head % groupSize === 0 && head > 0;

  if (data.kv_heads < data.heads) {
    const groups = grid.appendChild(make("div", "row groups"));
    groups.append(make("span", "name", "key head"));
    for (let group = 0; group < data.kv_heads; group++) {
      const span = groups.appendChild(make("span", "span", `kv ${group}`));
      span.style.flex = `${groupSize} 1 ${3 * (groupSize - 1)}px`;
      span.style.minWidth = `${29 * groupSize - 3}px`;
      span.style.maxWidth = `${153 * groupSize - 3}px`;
    }
  }
  const heading = grid.appendChild(make("div", "row heading"));
  heading.append(make("span", "name", "head"));
  for (let head = 0; head < data.heads; head++) heading.append(make("span", first(head) ? "cell first" : "cell", String(head)));

  const cells = [];
  const say = (layer, head) => { readout.textContent = data.details[layer][head]; };
  const select = (layer, head) => { host.dataset.focus = `${layer},${head}`; setTriggerValue("picked", [layer, head]); };
  for (let layer = 0; layer < data.layers; layer++) {
    const row = grid.appendChild(make("div", "row"));
    row.setAttribute("role", "row");
    row.append(make("span", "name", `layer ${layer}`));
    cells.push([]);
    for (let head = 0; head < data.heads; head++) {
      const cell = row.appendChild(make("button", first(head) ? "cell first" : "cell", data.text[layer][head])), value = data.values[layer][head];
      cell.setAttribute("role", "gridcell");
      cell.setAttribute("aria-label", data.details[layer][head]);
      cell.setAttribute("aria-selected", String(layer === data.selected[0] && head === data.selected[1]));
      cell.dataset.layer = layer;
      cell.dataset.head = head;
      cell.tabIndex = layer === data.selected[0] && head === data.selected[1] ? 0 : -1;
      if (value === null) cell.classList.add("empty");
      else {
        const rgb = mix(data.ramp, (value - data.low) / (data.high - data.low || 1));
        cell.style.background = `rgb(${rgb})`;
        cell.style.color = ink(rgb);
      }
      cell.onmouseenter = cell.onfocus = () => say(layer, head);
      cell.onclick = () => select(layer, head);
      cells[layer].push(cell);
    }
  }
  grid.onmouseleave = () => say(...data.selected);
  grid.onkeydown = (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key], at = event.target.dataset;
    if (!step || at.layer === undefined) return;
    event.preventDefault();
    const next = cells[Number(at.layer) + step[0]]?.[Number(at.head) + step[1]];
    if (next) { event.target.tabIndex = -1; next.tabIndex = 0; next.focus(); }
  };
  const bar = legend.appendChild(make("span", "bar"));
  bar.style.background = `linear-gradient(to right, ${data.ramp.join(",")})`;
  bar.before(make("span", "", data.low_text));
  bar.after(make("span", "", data.high_text), make("span", "", data.name));
  say(...data.selected);
  if (focused) { const [layer, head] = focused.split(",").map(Number); cells[layer]?.[head]?.focus(); }
  Object.assign(host.dataset, { state: "ready", name: data.name, selected: data.selected.join(",") });
}
