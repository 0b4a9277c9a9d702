// The map of one head. The server sends the prompt, the head and exact tiles, each once; what is missing is asked for.
// Milliseconds after which a change is told: one that is complete, the last of many as the wheel makes, and of the crosshair alone,
// of which a step need not be one of the back button.
const NOW = 0, SETTLED = 60, SETTLED_CROSS = 500, LATEST_TEXT = 400, MOST_ASKED = 48, MOST_HEADS = 4, PANEL = 400;

class MapView {
  // compact: neither zoom nor panel. panel: the lists and switches at the right, and the tracks around the map.
  constructor(host, compact, palette, panel = !compact) {
    Object.assign(this, { host, compact, colours: palette, state: { ...STATE }, heads: new Map(), tiles: new Tiles(), serial: 0, side: 0, cross: null, pinned: false });
    choosePalette(palette);
    host.replaceChildren();
    host.classList.toggle("compact", !panel);
    this.margin = !panel ? { left: 66, top: 6, right: 6, bottom: compact ? 34 : 56, track: 0 } : { left: 132, top: 54, right: 6, bottom: 56, track: 66 };
    const top = host.appendChild(make("div", "top"));
    this.stage = top.appendChild(make("div", "stage"));
    this.stage.tabIndex = 0;
    this.stage.setAttribute("role", "application");
    this.picture = this.stage.appendChild(make("canvas"));
    this.lines = this.stage.appendChild(make("canvas"));
    if (!panel) this.legend = this.stage.appendChild(make("div", "legend"));
    else {
      this.panel = new Panel(this, top.appendChild(make("div", "panel")));
      this.ribbon = new Ribbon(this, this.panel.root.appendChild(make("div", "ribbons")));
    }
    this.readout = host.appendChild(make("div", "readout"));
    this.readout.setAttribute("aria-live", "polite");
    this.stage.addEventListener("keydown", (event) => pressed(this, event));
    this.pointer = new Pointer(this);
    this.watcher = new ResizeObserver(() => this.fit());
    this.watcher.observe(host);
    this.resized = () => this.fit();
    window.addEventListener("resize", this.resized);
    this.back = () => this.restore(stateOfAddress());
    window.addEventListener("popstate", this.back);
  }

  close() {
    this.watcher.disconnect();
    window.removeEventListener("resize", this.resized);
    window.removeEventListener("popstate", this.back);
    clearTimeout(this.timer);
    clearTimeout(this.writing);
  }

  // What the server sent: what it wants shown, and any of text, head, tiles that it did not know to be here. `send` asks for more.
  receive(message, send) {
    const { wanted } = message, other = this.promptId !== wanted.prompt, { text } = message.planes;
    Object.assign(this, { send, below: message.below });
    if (other) this.forget(wanted);
    if (text) this.takeText(message.planes);
    if (message.head) this.takeHead(message);
    if (!this.heads.has(wanted.head)) { this.ask(true); return; }
    if (!this.view) this.restore(message.state);
    if (this.head?.id !== wanted.head) this.showHead(this.heads.get(wanted.head));
    if (message.tiles && message.tiles.head === wanted.head) this.takeTiles(message);
    if (this.writing && !this.missing().length) this.write(SETTLED);
    this.fit();
    this.changed();
    const tell = !this.prompt || text !== undefined;
    this.ask(tell || (message.serial === this.serial && message.tiles?.places.length > 0), tell);
  }

  forget(wanted) {
    Object.assign(this, { promptId: wanted.prompt, length: wanted.length, prompt: null, head: null, view: null });
    this.heads.clear();
  }

  takeText({ text, begins, ends }) {
    this.prompt = { text: new TextDecoder("utf-8", { ignoreBOM: true }).decode(text), begins, ends };
    this.later();
  }

  takeHead({ head, planes }) {
    const weights = fromTriangle(planes.weights, head.cells), missed = where(planes.missed, weights);
    const overview = new Picture(weights, missed, head.cells, [0, this.length], [0, this.length]);
    this.heads.set(head.id, { head: { ...head, planes }, overview, tiles: new Tiles() });
    if (this.heads.size > MOST_HEADS) this.heads.delete(this.heads.keys().next().value);
  }

  showHead({ head, overview, tiles }) {
    Object.assign(this, { head, overview, tiles });
    this.dropped = droppedPicture(this);
    if (this.panel) this.panel.fill();
    this.stage.setAttribute("aria-label", `${head.title}. Arrow keys move the crosshair, Shift moves by a block${this.compact ? "" : ", plus and minus zoom, Escape goes up, g goes to a token"}.`);
  }

  takeTiles({ tiles: { pool, places }, planes: { tile_weights: weights, tile_missed, tile_lost } }) {
    const missed = tile_missed ?? where(tile_lost, weights);
    places.forEach(([level, i, j], n) => {
      const part = (plane) => plane.subarray(n * TILE * TILE, (n + 1) * TILE * TILE);
      this.tiles.add(pool, level, i, j, part(weights), part(missed));
    });
  }

  restore(state) {
    this.state = { ...STATE, ...state };
    this.view = viewOf(state.view, this.length);
    this.cross = crossOf(state.at, this.length);
    this.pinned = this.cross !== null;
    this.told = this.stateText();
    this.changed();
    this.later();
  }

  // Geometry and content, for the parts that draw.
  x(key) { return ((key - this.view.col) / this.view.size) * this.side; }
  y(query) { return ((query - this.view.row) / this.view.size) * this.side; }
  kept(i, j) { const at = i * this.head.tiles[1] + j; return (this.head.planes.mask[at >> 3] >> (at & 7)) & 1; }
  token(at) { return this.text(at, at + 1); }
  text(from, end) { return this.prompt === null ? "" : this.prompt.text.slice(this.prompt.begins[Math.max(from, 0)], this.prompt.ends[Math.min(end, this.length) - 1]); }
  level() { return levelOf(this.view, this.side); }
  // How the cells of a level are pooled; of single tokens, and of heads that are not pinned, there is one way.
  pool(level = this.level()) { return level && this.head.pinned ? this.state.pool : "max"; }
  coarsest() { return this.head.coarsest[this.state.pool]; }
  unit() { const level = this.level(); return level <= this.coarsest() ? unitOf[this.pool()](2 ** level) : 1; }
  cellSize() { return Math.ceil(this.length / this.head.cells[0]); }

  high() {
    if (this.state.lock !== "off" && Number(this.state.lock) > 0) return Math.max(Number(this.state.lock), 10 * this.head.low);
    return this.state.sink === "hide" ? this.head.high_without_sink : this.head.high;
  }

  // The finest cell known at the crosshair, no finer than what is on show.
  cell(cross = this.cross) {
    if (!cross) return null;
    const query = Math.floor(cross.query), key = Math.floor(cross.key);
    for (let level = this.level(); this.head.pinned && level <= this.coarsest(); level++) {
      const size = TILE * 2 ** level, picture = this.tiles.get(this.pool(level), level, Math.floor(query / size), Math.floor(key / size));
      if (picture) return this.clipped(picture.cellAt(query, key));
    }
    return this.overview.cellAt(query, key);
  }

  clipped(cell) {
    const end = ([first, last]) => [first, Math.min(last, this.length - 1)];
    return { ...cell, query: end(cell.query), key: end(cell.key) };
  }

  missing() {
    const level = this.level();
    if (!this.head.pinned || level > this.coarsest() || this.compact) return [];
    const { query, key } = this.cross ?? { query: this.view.row + this.view.size / 2, key: this.view.col + this.view.size / 2 };
    return this.tiles.inView(this.view, level, this.length, query, key).filter(([i, j]) => !this.tiles.get(this.pool(level), level, i, j)).map((place) => [level, ...place]);
  }

  // What the user does.
  go(view, after = SETTLED) { this.view = view; this.changed(); this.later(after); }
  whole() { this.go({ row: 0, col: 0, size: this.length }, NOW); }
  zoom(factor, after = NOW) {
    const { view } = this, { query, key } = this.cross ?? { query: view.row + view.size / 2, key: view.col + view.size / 2 };
    this.go(zoomed(view, factor, query, key, this.length), after);
  }
  resize(size) { this.zoom(size / this.view.size); }
  jump(query, key, size) {
    this.cross = { query: query + 0.5, key: key + 0.5 };
    this.pinned = true;
    this.go(rounded(centred(query, key, Math.min(size, this.length), this.length)), NOW);
  }
  point(cross) {
    this.cross = cross;
    if (this.pinned) this.later(SETTLED_CROSS);
    this.drawCross();
    this.read();
    this.ribbon?.mark();
  }
  pin(cross) {
    const cell = this.cell(), next = this.cell(cross), again = this.pinned && cell && cell.query[0] === next.query[0] && cell.key[0] === next.key[0];
    this.pinned = !again;
    this.point(cross);
    this.later();
  }
  set(name, value) {
    this.state[name] = name === "lock" && value === "on" ? this.high().toPrecision(4) : value;
    this.changed();
    this.later(NOW);
  }

  // Telling the server: soon after the last change, the state for the address and the tiles that are missing.
  later(after = SETTLED) {
    if (this.timer && after > SETTLED) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.settle(), after);
  }

  // The last change is over: few tokens are shown whole. The text waits for the picture, but not for long.
  settle() {
    this.timer = null;
    if (this.view.size <= FEW) {
      this.view = fitted(rounded(this.view), this.length);
      this.changed();
    }
    this.ask(false);
    this.write(this.missing().length ? LATEST_TEXT : NOW);
  }

  // Bring the text to the view after some milliseconds.
  write(after) {
    clearTimeout(this.writing);
    if (this.ribbon) this.writing = setTimeout(() => { this.writing = null; this.ribbon.draw(); }, after);
  }

  stateText() {
    const at = this.pinned && this.cross ? `${Math.floor(this.cross.query)}.${Math.floor(this.cross.key)}` : "";
    return JSON.stringify({ ...this.state, view: viewText(this.view, this.length), at });
  }

  ask(more, tell = false) {
    if (this.compact && !more) return;
    const known = this.head, state = known ? this.stateText() : null, tiles = known && this.side ? this.missing().slice(0, MOST_ASKED) : [];
    const asked = known ? [this.pool(), ...tiles].join(" ") : "";
    if (!tell && known && state === this.told && (!tiles.length || (asked === this.asked && !more))) return;
    Object.assign(this, { told: state, asked });
    this.serial += 1;
    this.send(this.question());
  }

  // What is held, what is missing, and the state.
  question() {
    const known = this.head;
    return { serial: this.serial, holds: { prompt: this.prompt ? this.promptId : "", heads: [...this.heads.keys()] }, head: this.head?.id ?? "", pool: known ? this.pool() : "max",
      tiles: known && this.side ? this.missing().slice(0, MOST_ASKED) : [], state: known ? JSON.parse(this.stateText()) : null };
  }

  // Drawing.
  fit() {
    const { host, margin } = this, room = host.clientWidth - margin.left - margin.right - (this.panel ? PANEL : 0);
    if (!this.head || !host.clientWidth) return;
    const larger = parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;
    const side = Math.max(260, Math.min(room, Math.max(320, window.innerHeight - this.below * larger)));
    if (side === this.side) return;
    this.side = Math.floor(side);
    const width = this.side + margin.left + margin.right, height = this.side + margin.top + margin.bottom, dense = window.devicePixelRatio || 1;
    Object.assign(this.stage.style, { width: `${width}px`, height: `${height}px` });
    if (this.panel) this.host.style.setProperty("--height", `${height}px`);
    for (const canvas of [this.picture, this.lines]) {
      canvas.width = Math.round(width * dense);
      canvas.height = Math.round(height * dense);
      Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
    }
    this.changed();
  }

  // Colours and fonts of the page, which its theme may change.
  dress() {
    const style = getComputedStyle(this.host);
    this.ink = style.color;
    this.paper = style.getPropertyValue("--st-background-color") || "#fff";
    this.muted = style.getPropertyValue("--st-gray-color") || "#7d8794";
    this.shade = style.getPropertyValue("--st-secondary-background-color") || "#8881";
    this.fontFamily = style.fontFamily || "sans-serif";
    this.codeFont = style.getPropertyValue("--st-code-font") || "monospace";
    this.enlarged = parseFloat(style.fontSize) / 13;
  }

  font(size, family = this.fontFamily) { return `${size * this.enlarged}px ${family}`; }

  changed() {
    if (this.frame || !this.head || !this.side) return;
    this.frame = requestAnimationFrame(() => { this.frame = null; this.draw(); });
  }

  explain() { drawLegend(this, this.legend); }
  read() { describe(this); }

  pen(canvas) {
    const context = canvas.getContext("2d"), dense = window.devicePixelRatio || 1;
    context.setTransform(dense, 0, 0, dense, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.translate(this.margin.left, this.margin.top);
    return context;
  }

  draw() {
    const context = this.pen(this.picture), { side, state, head } = this;
    this.dress();
    this.look = lookOf(this);
    context.save();
    context.beginPath();
    context.rect(0, 0, side, side);
    context.clip();
    drawPictures(this, context);
    if (state.kept === "on") { drawDropped(this, context); drawOutline(this, context); }
    context.restore();
    drawTicks(this, context);
    drawMarks(this, context);
    if (this.panel) { drawRecall(this, context); drawMass(this, context); }
    this.panel?.move();
    this.panel?.show();
    if (this.legend) this.explain();
    this.drawCross();
    this.read();
    const { view } = this, waiting = this.missing().length;
    Object.assign(this.host.dataset, { tokens: this.length, layer: head.layer, head: head.head, scale: state.colours, overlay: state.kept === "on", keptTiles: head.kept_tiles,
      corner: [this.margin.left, this.margin.top], side, cells: head.cells.join("x"), view: [view.row, view.col, view.size].map(Math.round).join(","), level: this.level(), pool: this.level() <= this.coarsest() ? this.pool() : "max", labels: view.size <= FEW && !this.compact ? "tokens" : "numbers", waiting, state: waiting ? "loading" : "ready" });
  }

  drawCross() {
    const context = this.pen(this.lines), { side, cross } = this, found = this.cell();
    if (!found || !side) return;
    const middle = ([first, last]) => (first + last + 1) / 2, within = (at) => at >= 0 && at <= side;
    const coarse = this.compact || found.query[1] > found.query[0], x = this.x(coarse ? middle(found.key) : Math.floor(cross.key) + 0.5), y = this.y(coarse ? middle(found.query) : Math.floor(cross.query) + 0.5);
    for (const [colour, dash] of [["#000", []], ["#fff", [4, 4]]]) {
      context.strokeStyle = colour;
      context.lineWidth = this.pinned ? 2 : 1.5;
      context.setLineDash(dash);
      context.beginPath();
      if (within(y)) { context.moveTo(0, y); context.lineTo(side, y); }
      if (within(x)) { context.moveTo(x, 0); context.lineTo(x, side); }
      context.stroke();
    }
  }
}
