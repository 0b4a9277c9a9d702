// The map of one head on a canvas: weights, kept tiles, columns and slashes. All text goes through textContent or fillText.
const LEFT = 56, BOTTOM = 34, TOP = 6, RIGHT = 6;
const KINDS = { float32: Float32Array, uint8: Uint8Array };

function unpack(bytes) {
  const view = new Uint8Array(bytes);
  const length = new DataView(view.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(view.subarray(4, 4 + length)));
  const planes = {};
  for (const [name, { dtype, shape, at }] of Object.entries(header.planes)) {
    planes[name] = new KINDS[dtype](view.buffer, 4 + length + at, shape.reduce((a, b) => a * b, 1));
  }
  return { ...header, planes };
}

function colourTable(stops) {
  const rgb = stops.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return Array.from({ length: 256 }, (_, i) => {
    const x = (i / 255) * (rgb.length - 1), low = Math.min(Math.floor(x), rgb.length - 2), part = x - low;
    return rgb[low].map((value, channel) => Math.round(value + part * (rgb[low + 1][channel] - value)));
  });
}

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const shade = (map, weight) => Math.round(255 * Math.min(1, Math.max(0, map.scale === "log"
  ? (Math.log10(Math.max(weight, map.low)) - Math.log10(map.low)) / (Math.log10(map.high) - Math.log10(map.low))
  : weight / map.high)));

function paintWeights(map) {
  const [height, width] = map.cells, picture = new ImageData(width, height), table = colourTable(map.ramp);
  const perRow = (map.rows[1] - map.rows[0]) / height, perColumn = (map.cols[1] - map.cols[0]) / width;
  for (let r = 0; r < height; r++) {
    const last = map.rows[0] + Math.ceil((r + 1) * perRow) - 1;
    for (let c = 0; c < width; c++) {
      if (map.cols[0] + Math.floor(c * perColumn) > last) break;
      const at = 4 * (r * width + c), rgb = table[shade(map, map.planes.weights[r * width + c])];
      picture.data.set([rgb[0], rgb[1], rgb[2], 255], at);
    }
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return canvas;
}

function hatch(context, colour) {
  const tile = new OffscreenCanvas(8, 8), pen = tile.getContext("2d");
  pen.strokeStyle = colour;
  pen.lineWidth = 1.2;
  for (const shift of [-8, 0, 8]) { pen.moveTo(shift, 8); pen.lineTo(shift + 8, 0); }
  pen.stroke();
  return context.createPattern(tile, "repeat");
}

class MapView {
  constructor(host) {
    this.host = host;
    host.replaceChildren();
    this.stage = host.appendChild(make("div", "stage"));
    this.stage.tabIndex = 0;
    this.stage.setAttribute("role", "application");
    this.picture = this.stage.appendChild(make("canvas"));
    this.cross = this.stage.appendChild(make("canvas"));
    this.readout = host.appendChild(make("div", "readout"));
    this.readout.setAttribute("aria-live", "polite");
    this.legend = this.stage.appendChild(make("div", "legend"));
    this.stage.addEventListener("pointermove", (event) => this.point(event));
    this.stage.addEventListener("pointerdown", (event) => { this.stage.focus(); this.point(event); });
    this.stage.addEventListener("pointerleave", () => { if (document.activeElement !== host) this.move(null); });
    this.stage.addEventListener("keydown", (event) => this.key(event));
    this.watcher = new ResizeObserver(() => this.draw());
    this.watcher.observe(host);
  }

  show(map) {
    this.map = map;
    this.image = paintWeights(map);
    this.side = 0;
    this.stage.setAttribute("aria-label", `${map.title}. Arrow keys move the crosshair, Shift moves by a block.`);
    this.drawLegend();
    this.draw();
    this.move(null);
    Object.assign(this.host.dataset, { layer: map.layer, head: map.head, scale: map.scale, overlay: map.overlay,
      keptTiles: map.planes.tiles.reduce((sum, kept) => sum + kept, 0), cells: map.cells.join("x"), state: "ready" });
  }

  draw() {
    const map = this.map;
    if (!map || !this.host.clientWidth) return;
    const room = Math.max(320, Math.min(this.host.clientWidth - LEFT - RIGHT, window.innerHeight - map.below));
    const side = Math.min(room, this.host.clientWidth - LEFT - RIGHT);
    if (side === this.side) return;
    this.side = side;
    const width = side + LEFT + RIGHT, height = side + TOP + BOTTOM, dense = window.devicePixelRatio || 1;
    this.stage.style.width = `${width}px`;
    this.stage.style.height = `${height}px`;
    for (const canvas of [this.picture, this.cross]) {
      canvas.width = Math.round(width * dense);
      canvas.height = Math.round(height * dense);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
      canvas.getContext("2d").setTransform(dense, 0, 0, dense, 0, 0);
    }
    const style = getComputedStyle(this.host), context = this.picture.getContext("2d");
    this.ink = style.getPropertyValue("color") || "#000";
    this.font = `12px ${style.getPropertyValue("font-family") || "sans-serif"}`;
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = this.image.width > side * dense;
    context.drawImage(this.image, LEFT, TOP, side, side);
    context.save();
    context.translate(LEFT, TOP);
    if (map.overlay) this.drawTiles(context);
    this.drawEdges(context);
    context.restore();
    this.drawCross();
  }

  x(key) { return ((key - this.map.cols[0]) / (this.map.cols[1] - this.map.cols[0])) * this.side; }
  y(query) { return ((query - this.map.rows[0]) / (this.map.rows[1] - this.map.rows[0])) * this.side; }
  kept(i, j) { return this.map.planes.tiles[i * this.map.tiles[1] + j] === 1; }
  causal(i, j) { return j * this.map.block <= Math.min((i + 1) * this.map.block, this.map.rows[1]) - 1; }

  drawTiles(context) {
    const { block, tiles: [down, across], kept, dropped } = this.map, size = this.x(this.map.cols[0] + block);
    const stripes = hatch(context, dropped);
    context.save();
    context.beginPath();
    context.rect(0, 0, this.side, this.side);
    context.clip();
    const missing = new Path2D(), edges = new Path2D();
    for (let i = 0; i < down; i++) {
      for (let j = 0; j < across && this.causal(i, j); j++) {
        const x0 = this.x(j * block), y0 = this.y(i * block), x1 = x0 + size, y1 = y0 + size;
        if (!this.kept(i, j)) { missing.rect(x0, y0, size, size); continue; }
        const open = (a, b) => a < 0 || b < 0 || a >= down || b >= across || !this.causal(a, b) || !this.kept(a, b);
        if (open(i - 1, j)) { edges.moveTo(x0, y0); edges.lineTo(x1, y0); }
        if (open(i + 1, j)) { edges.moveTo(x0, y1); edges.lineTo(x1, y1); }
        if (open(i, j - 1)) { edges.moveTo(x0, y0); edges.lineTo(x0, y1); }
        if (open(i, j + 1)) { edges.moveTo(x1, y0); edges.lineTo(x1, y1); }
      }
    }
    context.globalAlpha = 0.18;
    context.fillStyle = dropped;
    context.fill(missing);
    context.globalAlpha = 0.6;
    if (size >= 2) { context.fillStyle = stripes; context.fill(missing); }
    context.globalAlpha = 1;
    context.strokeStyle = kept;
    context.lineWidth = size >= 8 ? 1.75 : 1;
    if (size >= 3) context.stroke(edges);
    context.restore();
  }

  drawEdges(context) {
    const { block, columns, slashes, cols, rows, kept } = this.map;
    context.strokeStyle = context.fillStyle = this.ink;
    context.font = this.font;
    context.lineWidth = 1;
    context.globalAlpha = 0.75;
    context.textBaseline = "top";
    const step = niceStep((cols[1] - cols[0]) / Math.max(2, this.side / 90));
    for (let at = Math.ceil(cols[0] / step) * step; at < cols[1]; at += step) {
      context.textAlign = at === cols[0] ? "left" : "center";
      context.fillText(at.toLocaleString("en"), this.x(at), this.side + 14);
      context.fillRect(this.x(at), this.side, 1, 4);
    }
    context.textAlign = "right";
    for (let at = Math.ceil(rows[0] / step) * step; at < rows[1]; at += step) {
      context.textBaseline = at === rows[0] ? "top" : "middle";
      context.fillText(at.toLocaleString("en"), -14, this.y(at));
      context.fillRect(-4, this.y(at), 4, 1);
    }
    context.globalAlpha = 1;
    context.fillStyle = kept;
    const half = Math.max(3, Math.min(6, this.x(cols[0] + block) / 2.4));
    for (const column of columns) triangle(context, this.x(column * block + block / 2), this.side + 3, half, true);
    for (const slash of slashes) triangle(context, -3, this.y(slash * block + block / 2), half, false);
  }

  drawLegend() {
    const map = this.map, entry = (node, text) => {
      const item = this.legend.appendChild(make("span"));
      item.append(node, make("span", "", text));
    };
    this.legend.replaceChildren();
    const bar = make("span", "bar");
    bar.style.background = `linear-gradient(to right, ${map.ramp.join(",")})`;
    entry(bar, `weight, ${map.scale}: ${map.scale === "log" ? format(map.low) : "0"} to ${format(map.high)}`);
    if (map.overlay) {
      const kept = make("span", "swatch"), dropped = make("span", "swatch");
      kept.style.border = `2px solid ${map.kept}`;
      dropped.style.background = `repeating-linear-gradient(135deg, ${map.dropped} 0 1px, ${map.dropped}66 1px 5px)`;
      entry(kept, "kept: computed");
      entry(dropped, "dropped: not computed");
    }
    for (const [sign, name] of [["▲", counted(map.columns.length, "column", "columns")], ["◀", counted(map.slashes.length, "slash", "slashes")]]) {
      const mark = make("span", "", sign);
      mark.style.color = map.kept;
      entry(mark, name);
    }
  }

  point(event) {
    const box = this.stage.getBoundingClientRect(), [height, width] = this.map.cells;
    const c = Math.floor(((event.clientX - box.left - LEFT) / this.side) * width);
    const r = Math.floor(((event.clientY - box.top - TOP) / this.side) * height);
    this.move(r >= 0 && r < height && c >= 0 && c < width ? [r, c] : null);
  }

  key(event) {
    const [height, width] = this.map.cells, steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key === "Escape") this.move(null);
    if (!(event.key in steps)) return;
    event.preventDefault();
    const stride = event.shiftKey ? Math.max(1, Math.round((this.map.block * width) / (this.map.cols[1] - this.map.cols[0]))) : 1;
    const [r, c] = this.at ?? [Math.floor(height / 2), Math.floor(width / 4)], [dr, dc] = steps[event.key];
    const clamp = (value, size) => Math.min(size - 1, Math.max(0, value));
    this.move([clamp(r + dr * stride, height), clamp(c + dc * stride, width)]);
  }

  move(cell) {
    this.at = cell;
    this.drawCross();
    this.describe();
  }

  drawCross() {
    const context = this.cross.getContext("2d");
    context.clearRect(0, 0, this.cross.width, this.cross.height);
    if (!this.at || !this.side) return;
    const [height, width] = this.map.cells, x = LEFT + ((this.at[1] + 0.5) / width) * this.side, y = TOP + ((this.at[0] + 0.5) / height) * this.side;
    for (const [colour, thickness, dash] of [["#000", 1.5, []], ["#fff", 1.5, [4, 4]]]) {
      context.strokeStyle = colour;
      context.lineWidth = thickness;
      context.setLineDash(dash);
      context.beginPath();
      context.moveTo(LEFT, y); context.lineTo(LEFT + this.side, y);
      context.moveTo(x, TOP); context.lineTo(x, TOP + this.side);
      context.stroke();
    }
  }

  describe() {
    const map = this.map, data = this.host.dataset;
    this.readout.replaceChildren();
    if (!this.at) {
      this.readout.append(make("div", "", "Point at a cell, or focus the map and use the arrow keys, to read its tokens and weight."));
      for (const name of ["cell", "query", "key", "weight", "tile"]) delete data[name];
      return;
    }
    const [r, c] = this.at, [height, width] = map.cells;
    const span = (cell, [from, to], cells) => [from + Math.floor((cell * (to - from)) / cells), from + Math.ceil(((cell + 1) * (to - from)) / cells) - 1];
    const query = span(r, map.rows, height), key = span(c, map.cols, width), line = (name, [from, to], label) => {
      const row = this.readout.appendChild(make("div"));
      row.append(make("b", "", `${name} ${from === to ? from.toLocaleString("en") : `${from.toLocaleString("en")} to ${to.toLocaleString("en")}`} `), make("code", "", label));
    };
    line("Query", query, map.row_labels[r]);
    line("Key", key, (map.col_labels ?? map.row_labels)[c]);
    const above = key[0] > query[1], i = Math.floor(query[1] / map.block), j = Math.floor(key[0] / map.block);
    const weight = map.planes.weights[r * width + c], tile = above ? "future" : this.kept(i, j) ? "kept" : "dropped";
    const pooled = query[0] === query[1] && key[0] === key[1] ? "" : `, the greatest of ${query[1] - query[0] + 1} × ${key[1] - key[0] + 1} tokens`;
    this.readout.append(make("div", "", above ? "Above the diagonal: a query does not see later keys."
      : `Weight ${format(weight)}${pooled}; its tile (query block ${i}, key block ${j}, slash ${i - j}) is ${tile}.`));
    Object.assign(data, { cell: this.at.join(","), query: query.join("-"), key: key.join("-"), weight, tile });
  }

  close() { this.watcher.disconnect(); }
}

function triangle(context, x, y, half, up) {
  context.beginPath();
  if (up) { context.moveTo(x, y); context.lineTo(x - half, y + 1.5 * half); context.lineTo(x + half, y + 1.5 * half); }
  else { context.moveTo(x - 1.5 * half, y); context.lineTo(x, y - half); context.lineTo(x, y + half); }
  context.fill();
}

const counted = (count, one, many) => `${count} ${count === 1 ? one : many} kept`;
const niceStep = (least) => 2 ** Math.ceil(Math.log2(Math.max(least, 1)));
const format = (value) => (value === 0 ? "0" : value >= 0.001 ? String(Number(value.toPrecision(3))) : value.toExponential(0));
const views = new WeakMap();

export default function ({ data, parentElement }) {
  const host = parentElement.querySelector(".root");
  if (!views.has(host)) views.set(host, new MapView(host));
  if (data) {
    const bytes = data instanceof Uint8Array ? data : new Uint8Array(data);
    views.get(host).show(unpack(bytes));
  }
  return () => { views.get(host)?.close(); views.delete(host); };
}
