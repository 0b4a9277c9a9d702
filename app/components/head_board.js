// The board of all heads on a canvas: one cell a head, coloured by a number; query heads that share keys stand together.
// Below it a list of heads with small pictures. A click shows a head's picture, Enter or a double click opens it; with Shift it is compared.
const LEFT = 60, TOP = 34, GAP = 8, MARGIN = 54, BESIDE = 10, MOST_WIDE = 160, HIGH = 32, BELOW = 470;
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function mix(ramp, x) {
  const at = clamp(x, 0, 1) * (ramp.length - 1), low = Math.min(Math.floor(at), ramp.length - 2), part = at - low;
  const channel = (hex, i) => parseInt(hex.slice(i, i + 2), 16);
  return [1, 3, 5].map((i) => Math.round(channel(ramp[low], i) + part * (channel(ramp[low + 1], i) - channel(ramp[low], i))));
}

const ink = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#10151c" : "#ffffff");

class Board {
  constructor(host) {
    this.host = host;
    this.patterns = new Map();
    host.replaceChildren();
    const part = host.appendChild(make("div", "board"));
    this.scroll = part.appendChild(make("div", "scroll"));
    this.canvas = this.scroll.appendChild(make("canvas"));
    this.readout = part.appendChild(make("div", "readout"));
    this.readout.setAttribute("aria-live", "polite");
    this.legend = part.appendChild(make("div", "legend"));
    this.list = part.appendChild(make("section", "list"));
    this.scroll.tabIndex = 0;
    this.scroll.setAttribute("role", "application");
    this.scroll.onkeydown = (event) => this.pressed(event);
    this.scroll.onfocus = this.scroll.onblur = () => this.draw();
    this.canvas.onpointermove = (event) => this.point(this.placeAt(event));
    this.canvas.onpointerleave = () => this.point(null);
    this.canvas.onclick = (event) => this.clicked(event, event.shiftKey ? "compare" : "show");
    this.canvas.ondblclick = (event) => this.clicked(event, "open");
    this.watcher = new ResizeObserver(() => this.fit());
    this.watcher.observe(part);
    this.resized = () => this.fit();
    window.addEventListener("resize", this.resized);
  }

  close() {
    this.watcher.disconnect();
    window.removeEventListener("resize", this.resized);
  }

  receive(data, send) {
    const moved = String(data.selected) !== String(this.data?.selected);
    Object.assign(this, { data, send, group: data.heads / data.kv_heads, gap: data.kv_heads < data.heads ? GAP : 0 });
    if (moved) this.focus = data.selected;
    this.pointed = null;
    this.label();
    this.fillList();
    this.fillLegend();
    this.fit(true);
  }

  label() {
    const { name, selected: [layer, head] } = this.data;
    this.scroll.setAttribute("aria-label", `Board of heads by ${name}. Arrow keys move, Space shows the head's picture, Enter opens its map, Shift and Enter compare it with layer ${layer}, head ${head}.`);
  }

  // Geometry: cells of equal size, a gap between groups, and the means at the right and below.
  fit(always = false) {
    const { data } = this;
    if (!data || !this.scroll.clientWidth) return;
    const gaps = (data.kv_heads - 1) * this.gap, room = this.scroll.clientWidth - 4 - LEFT - BESIDE - MARGIN - gaps;
    const wide = clamp(Math.floor(room / data.heads), 12, MOST_WIDE);
    const high = Math.floor(clamp((window.innerHeight - BELOW) / data.layers, 12, Math.max(HIGH, wide / 3)));
    if (!always && wide === this.wide && high === this.high) return;
    Object.assign(this, { wide, high, span: wide * data.heads + gaps, tall: high * data.layers });
    const dense = window.devicePixelRatio || 1, width = LEFT + this.span + BESIDE + MARGIN, height = TOP + this.tall + BESIDE + high;
    this.canvas.width = Math.round(width * dense);
    this.canvas.height = Math.round(height * dense);
    Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` });
    this.draw();
  }

  x(head) { return LEFT + head * this.wide + Math.floor(head / this.group) * this.gap; }
  y(layer) { return TOP + layer * this.high; }

  // The cell under the mouse; layer or head is -1 on the means.
  placeAt(event) {
    const box = this.canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top, { data } = this;
    const layer = Math.floor((y - TOP) / this.high), beside = LEFT + this.span + BESIDE, below = TOP + this.tall + BESIDE;
    const row = layer >= 0 && layer < data.layers ? layer : y >= below ? -1 : null;
    let column = x >= beside ? -1 : null;
    for (let head = 0; head < data.heads; head++) if (x >= this.x(head) && x < this.x(head) + this.wide) column = head;
    return row === null || column === null || (row < 0 && column < 0) ? null : { layer: row, head: column };
  }

  point(place) {
    const same = place?.layer === this.pointed?.layer && place?.head === this.pointed?.head;
    if (same) return;
    this.pointed = place;
    this.draw();
  }

  move([layer, head]) {
    this.focus = [layer, head];
    this.pointed = null;
    this.draw();
    const x = this.x(head), { scroll } = this;
    if (x < scroll.scrollLeft + LEFT) scroll.scrollLeft = x - LEFT;
    else if (x + this.wide > scroll.scrollLeft + scroll.clientWidth) scroll.scrollLeft = x + this.wide - scroll.clientWidth;
  }

  clicked(event, act) {
    const place = this.placeAt(event);
    if (place?.layer >= 0 && place.head >= 0) this.pick([place.layer, place.head], act);
  }

  // The head whose picture is asked for is framed at once: the page sends the picture alone.
  pick(place, act) {
    if (act === "show") {
      this.data.selected = place;
      this.label();
    }
    this.move(place);
    this.send({ place, act });
  }

  pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { layers, heads } = this.data, [layer, head] = this.focus, step = STEPS[event.key];
    if (event.key === "Enter") this.pick(this.focus, event.shiftKey ? "compare" : "open");
    else if (event.key === " ") this.pick(this.focus, "show");
    else if (step) this.move([clamp(layer + step[0], 0, layers - 1), clamp(head + step[1], 0, heads - 1)]);
    else if (event.key === "Home" || event.key === "End") this.move([layer, event.key === "Home" ? 0 : heads - 1]);
    else return;
    event.preventDefault();
  }

  colour(value) { return mix(this.data.ramp, (value - this.data.low) / (this.data.high - this.data.low || 1)); }

  cell(pen, x, y, value, text, dimmed, coarse) {
    const { wide, high } = this, width = wide - (wide > 20 ? 2 : 1), height = high - (high > 18 ? 2 : 1);
    if (value === null || value !== value) this.hatched(pen, x, y, width, height, this.line);
    else if (dimmed) { pen.strokeStyle = this.line; pen.lineWidth = 1; pen.strokeRect(x + 0.5, y + 0.5, width - 1, height - 1); }
    else {
      pen.fillStyle = `rgb(${this.colour(value)})`;
      pen.fillRect(x, y, width, height);
      if (this.data.estimated) this.hatched(pen, x, y, width, height, `${ink(this.colour(value))}38`, coarse);
    }
    if (!text || high < 14 || pen.measureText(text).width > width - 2) return;
    pen.fillStyle = value === null || value !== value || dimmed ? this.muted : ink(this.colour(value));
    pen.fillText(text, x + width / 2, y + height / 2 + 0.5);
  }

  hatched(pen, x, y, width, height, colour, crossed) {
    pen.fillStyle = this.hatching(pen, colour, crossed);
    pen.fillRect(x, y, width, height);
  }

  // A tile of diagonal lines as a pattern: a thousand cells with lines of their own took most of a redraw.
  hatching(pen, colour, crossed) {
    const dense = window.devicePixelRatio || 1, name = `${colour} ${crossed} ${dense}`;
    if (this.patterns.has(name)) return this.patterns.get(name);
    const tile = make("canvas"), size = 6 * Math.ceil(dense), line = tile.getContext("2d");
    tile.width = tile.height = size;
    line.strokeStyle = colour;
    line.lineWidth = dense;
    for (const at of [-size, 0, size]) {
      line.moveTo(at - size, 2 * size);
      line.lineTo(at + 2 * size, -size);
      if (crossed) { line.moveTo(at - size, -size); line.lineTo(at + 2 * size, 2 * size); }
    }
    line.stroke();
    const pattern = pen.createPattern(tile, "repeat");
    pattern.setTransform(new DOMMatrix().scale(6 / size));
    this.patterns.set(name, pattern);
    return pattern;
  }

  draw() {
    const { data, canvas, host } = this;
    if (!data || !this.wide) return;
    const pen = canvas.getContext("2d"), dense = window.devicePixelRatio || 1, style = getComputedStyle(host), { planes } = data;
    this.line = style.getPropertyValue("--st-border-color") || "#7d879488";
    this.paper = style.getPropertyValue("--st-background-color") || "#fff";
    this.muted = style.getPropertyValue("--st-gray-text-color") || "#7d8794";
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.globalAlpha = data.faded ? 0.4 : 1;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    const font = (size) => `${(size * parseFloat(style.fontSize)) / 13}px ${style.fontFamily}`;
    this.drawNames(pen, font, style.color);
    pen.font = font(clamp(this.high - 6, 9, 13));
    for (let layer = 0; layer < data.layers; layer++) {
      for (let head = 0; head < data.heads; head++) {
        const at = layer * data.heads + head;
        this.cell(pen, this.x(head), this.y(layer), planes.values[at], data.text[layer][head], planes.dimmed[at], data.coarse?.[layer][head]);
      }
    }
    pen.font = font(clamp(this.high - 4, 9, 12));
    const [right, below] = [LEFT + this.span + BESIDE, TOP + this.tall + BESIDE], { wide } = this;
    data.mean_values[1].forEach((value, head) => this.cell(pen, this.x(head), below, value, data.means[1][head], false));
    this.wide = MARGIN;
    data.mean_values[0].forEach((value, layer) => this.cell(pen, right, this.y(layer), value, data.means[0][layer], false));
    this.wide = wide;
    this.frame(pen, data.selected, style.color, []);
    if (this.scroll.matches(":focus-visible") || String(this.focus) !== String(data.selected)) this.frame(pen, this.focus, style.getPropertyValue("--st-primary-color") || "#ff4b4b", []);
    if (this.pointed && this.pointed.layer >= 0 && this.pointed.head >= 0) this.frame(pen, [this.pointed.layer, this.pointed.head], style.color, [3, 2]);
    this.say();
    Object.assign(host.dataset, { state: "ready", name: data.name, selected: data.selected.join(","), focus: this.focus.join(","), dimmed: planes.dimmed.reduce((a, b) => a + b, 0),
      corner: `${this.x(0)},${this.y(0)}`, cell: `${this.wide},${this.high}`, group: this.group, gap: this.gap });
  }

  drawNames(pen, font, colour) {
    const { data, wide, high } = this, every = (size) => (size >= 22 ? 1 : size >= 16 ? 2 : 4);
    pen.fillStyle = colour;
    pen.font = font(12);
    pen.textAlign = "right";
    for (let layer = 0; layer < data.layers; layer += high >= 14 ? 1 : 2) pen.fillText(data.layers > 16 ? String(layer) : `layer ${layer}`, LEFT - 8, this.y(layer) + high / 2);
    if (data.layers > 16) pen.fillText("layer", LEFT - 8, TOP - 10);
    pen.textAlign = "center";
    for (let head = 0; head < data.heads; head += every(wide)) pen.fillText(String(head), this.x(head) + wide / 2, TOP - 10);
    pen.fillText("mean", LEFT + this.span + BESIDE + MARGIN / 2, TOP - 10);
    pen.textAlign = "right";
    pen.fillText("mean", LEFT - 8, TOP + this.tall + BESIDE + high / 2);
    pen.textAlign = "center";
    if (data.kv_heads < data.heads) {
      for (let group = 0; group < data.kv_heads; group++) {
        const from = this.x(group * this.group), to = this.x((group + 1) * this.group - 1) + wide - 2, long = `key-value head ${group}`;
        const room = to - from, text = [long, `kv ${group}`, String(group)].find((words) => pen.measureText(words).width < room);
        if (text) pen.fillText(text, (from + to) / 2, 7);
        pen.fillRect(from, 15, room, 1.5);
      }
    }
  }

  // Two lines, one of which stands out from any cell.
  frame(pen, [layer, head], colour, dash) {
    const [x, y] = [this.x(head), this.y(layer)];
    pen.lineWidth = 2;
    pen.strokeStyle = this.paper;
    pen.strokeRect(x + 0.5, y + 0.5, this.wide - 3, this.high - 3);
    pen.setLineDash(dash);
    pen.strokeStyle = colour;
    pen.strokeRect(x - 1.5, y - 1.5, this.wide + 1, this.high + 1);
    pen.setLineDash([]);
  }

  say() {
    const { data, pointed } = this, place = pointed ?? { layer: this.focus[0], head: this.focus[1] };
    const words = place.head < 0 ? `Layer ${place.layer}: mean ${data.name} of its heads ${data.means[0][place.layer]}.`
      : place.layer < 0 ? `Head ${place.head}: mean ${data.name} over the layers ${data.means[1][place.head]}.` : data.details[place.layer][place.head];
    if (this.readout.textContent !== words) this.readout.textContent = words;
    for (const entry of this.list.querySelectorAll(".entry")) entry.classList.toggle("here", entry.dataset.place === `${place.layer}.${place.head}`);
  }

  fillLegend() {
    const { data } = this, bar = make("span", "bar");
    bar.style.background = `linear-gradient(to right, ${data.ramp.join(",")})`;
    this.legend.replaceChildren(make("span", "", data.ends[0]), bar, make("span", "", `${data.ends[1]} ${data.name}`),
      make("span", "note", data.note ?? "Empty cells hold, or are not what was searched. A click shows a head, a double click opens its map, Shift and a click compare it with the framed one."));
  }

  fillList() {
    const { data, list } = this;
    list.hidden = !data.listed;
    if (!data.listed) return;
    const size = data.planes.thumbnails.length ? Math.sqrt(data.planes.thumbnails.length / data.listed.length) : 0;
    list.replaceChildren(make("h4", "", data.list_title));
    const rows = list.appendChild(make("div", "rows"));
    data.listed.forEach(({ place, text }, n) => {
      const entry = rows.appendChild(button("entry", undefined, (event) => this.pick(place, event.shiftKey ? "compare" : "show")));
      entry.dataset.place = place.join(".");
      entry.append(this.thumbnail(data.planes.thumbnails.subarray(n * size * size, (n + 1) * size * size), size));
      const words = entry.appendChild(make("div"));
      words.append(make("b", "", text[0]), make("span", "", text[1]));
      entry.onpointerenter = () => this.point({ layer: place[0], head: place[1] });
      entry.onpointerleave = () => this.point(null);
    });
  }

  thumbnail(cells, size) {
    const canvas = make("canvas"), image = new ImageData(size, size);
    canvas.width = canvas.height = size;
    canvas.setAttribute("aria-hidden", "true");
    cells.forEach((cell, at) => {
      if (at % size > Math.floor(at / size)) return;
      image.data.set([...mix(this.data.thumbnail_ramp, cell / 255), 255], 4 * at);
    });
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }
}

const boards = new WeakMap();

// A message is received once: it also comes again when the colours change, and does not know what was picked since.
function mount(Kind, { data, parentElement, setTriggerValue }) {
  const host = parentElement.querySelector(".root");
  if (data) {
    if (!boards.has(host)) boards.set(host, new Kind(host));
    const board = boards.get(host);
    if (data === board.message) board.draw();
    else board.receive(unpack(data), (picked) => setTriggerValue("picked", picked), (target) => setTriggerValue("target", target));
    board.message = data;
  }
  return () => { boards.get(host)?.close(); boards.delete(host); };
}
