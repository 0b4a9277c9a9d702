// Two heads side by side with one window and one colour scale, and the map of their difference.
const MERGE = 5;

// A map that moves with the others of its group; the first leads. Windows of prompts of other lengths cover the same part of them.
class LinkedView extends MapView {
  constructor(host, palette, group) {
    super(host, false, palette, false);
    this.group = group;
    group.push(this);
    this.readout.before(this.legend);
  }

  others() { return this.group.filter((other) => other !== this && other.head); }

  follow(leader) {
    const part = this.length / leader.length, { view, cross } = leader;
    this.view = fitted({ row: view.row * part, col: view.col * part, size: view.size * part }, this.length);
    this.pinned = leader.pinned;
    this.cross = cross && { query: cross.query * part, key: cross.key * part };
    this.state = this.stateFrom(leader.state);
    this.changed();
  }

  stateFrom(state) { return { ...state }; }

  go(view, after = SETTLED) {
    super.go(view, after);
    for (const other of this.others()) { other.follow(this); other.later(after); }
  }

  point(cross) {
    super.point(cross);
    for (const other of this.others()) {
      other.follow(this);
      if (other.pinned) other.later(SETTLED_CROSS);
    }
  }

  set(name, value) {
    this.group[0].state[name] = value;
    for (const one of this.group.filter(({ head }) => head)) {
      one.state = one.stateFrom(this.group[0].state);
      one.changed();
      one.later(NOW);
    }
  }

  restore(state) {
    const [leader] = this.group;
    if (this === leader) super.restore({ ...state, lock: "off" });
    else super.restore({ ...STATE });
    for (const other of leader.view ? leader.others() : []) other.follow(leader);
    if (this !== leader && leader.view) this.follow(leader);
  }

  high() { return Math.max(...this.group.slice(0, 2).filter(({ head }) => head).map((one) => MapView.prototype.high.call(one))); }

  read() {
    if (this.cell()) describe(this);
    else this.readout.replaceChildren();
  }

  draw() {
    super.draw();
    this.host.dataset.high = this.high();
  }
}

// The cells of one picture minus those of another that covers the same tokens.
class DifferencePicture extends Picture {
  constructor(a, b) { super(a.weights.map((weight, at) => weight - b.weights[at]), [], a.cells, a.rows, a.cols, a.pool); }
  paint(look) { return paintDifference(this, look); }
}

class DifferenceTiles extends Tiles {
  constructor(a, b) {
    super();
    Object.assign(this, { a, b });
  }

  get(...place) {
    const name = place.join("/"), a = this.a.get(...place), b = this.b.get(...place);
    if (!a || !b) return undefined;
    if (!this.known.has(name)) this.known.set(name, new DifferencePicture(a, b));
    if (this.known.size > MOST_TILES) this.known.delete(this.known.keys().next().value);
    return this.known.get(name);
  }
}

function paintDifference(picture, look) {
  const [height, width] = picture.cells, image = new ImageData(width, height), pixels = new Uint32Array(image.data.buffer);
  const start = Math.log(look.low), range = Math.log(look.high) - start;
  const part = (size) => clamp(look.log ? (Math.log(Math.max(size, look.low)) - start) / range : size / look.high, 0, 1);
  for (let r = 0; r < height; r++) {
    const last = picture.queries(r)[1];
    for (let c = 0; c < width && picture.keys(c)[0] <= last; c++) {
      const value = picture.weights[r * width + c] / picture.unit;
      if (picture.keys(c)[0] >= look.from) pixels[r * width + c] = PALETTE.difference[Math.round(127.5 + 127.5 * Math.sign(value) * part(Math.abs(value)))];
    }
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// A minus B: nothing is asked for; it is made of what both have.
class DifferenceView extends LinkedView {
  take(a, b) {
    const id = `${a.head.id} ${b.head.id}`, first = !this.head;
    this.prompt = a.prompt;
    if (this.head?.id === id) { this.changed(); return; }
    Object.assign(this, { a, b, length: a.length, below: a.below });
    const head = { ...a.head, id, title: "Difference, A minus B", columns: [], slashes: [], pinned: a.head.pinned && b.head.pinned };
    this.showHead({ head, overview: new DifferencePicture(a.overview, b.overview), tiles: new DifferenceTiles(a.tiles, b.tiles) });
    if (first) this.follow(a);
    this.fit();
    this.changed();
  }

  stateFrom({ colours, sink, pool }) { return { ...STATE, kept: "off", colours, sink, pool }; }
  restore() {}
  missing() { return []; }
  ask() {}

  read() {
    const found = this.cell();
    this.readout.replaceChildren();
    delete this.host.dataset.weight;
    if (!found) return;
    const sign = found.weight > 0 ? "+" : found.weight < 0 ? "−" : "", line = this.readout.appendChild(make("div", "numbers"));
    line.append(`Query ${span(found.query)}, key ${span(found.key)}: `, make("b", "", `A − B ${sign}${format(Math.abs(found.weight))}`));
    const size = ([first, last]) => last - first + 1;
    line.append(size(found.query) * size(found.key) === 1 ? ", exact." : `, ${POOLS[found.pool]} of ${size(found.query)} × ${size(found.key)} tokens in A minus that in B.`);
    this.host.dataset.weight = found.weight;
  }

  explain() {
    const bar = make("span", "bar"), item = make("span"), { colours } = this, high = format(this.high() * this.unit());
    bar.style.background = `linear-gradient(to right, ${colours.difference_ramp.join(",")})`;
    item.append(bar, make("span", "", `B more, −${high} … A more, +${high}`));
    this.legend.replaceChildren(item);
  }
}

class Comparison {
  constructor(host, palette) {
    host.replaceChildren();
    host.classList.add("compare");
    const bar = host.appendChild(make("div", "controls")), row = host.appendChild(make("div", "maps")), group = [];
    const map = (name, kind) => {
      const part = row.appendChild(make("section")), title = part.appendChild(make("h4")), view = part.appendChild(make("div", "view"));
      view.dataset.name = name;
      return Object.assign(new kind(view, palette, group), { part, title });
    };
    Object.assign(this, { host, a: map("a", LinkedView), b: map("b", LinkedView), difference: map("difference", DifferenceView) });
    makeSteps(this.a, bar);
    const switches = bar.appendChild(make("div", "switches")), pooling = makePooling([this.a, this.b], switches), boxes = makeSwitches(this.a, switches, ["lock", "weights"]);
    this.update = () => { pooling(); boxes(); };
    bar.append(make("span", "note", "Drag a box or turn the wheel over any map; all follow. The colour scale is the same for A and B."));
  }

  close() { for (const map of [this.a, this.b, this.difference]) map.close(); }

  // Both maps' messages; what both ask for is sent at once, because the page keeps only the last that was sent.
  receive({ planes, difference, titles }, send) {
    const { a, b } = this;
    const later = () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => send({ a: a.question(), b: b.question(), state: a.question().state }), MERGE);
    };
    a.receive(unpack(planes.a), later);
    b.receive(unpack(planes.b), later);
    [a.title.textContent, b.title.textContent, this.difference.title.textContent] = [...titles, "Difference: A − B"];
    this.difference.part.hidden = !difference;
    if (difference && a.head && b.head) this.difference.take(a, b);
    this.update();
  }
}

const comparisons = new WeakMap();

export default function ({ data, parentElement, setStateValue }) {
  const host = parentElement.querySelector(".root");
  if (data) {
    const message = unpack(data);
    if (!comparisons.has(host)) comparisons.set(host, new Comparison(host, message.palette));
    comparisons.get(host).receive(message, (asked) => setStateValue("asked", asked));
  }
  return () => { comparisons.get(host)?.close(); comparisons.delete(host); };
}
