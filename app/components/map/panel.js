// Beside the map: where the view is, what is drawn, and the columns and slashes with their share of the mass.
class Panel {
  constructor(map, parent) {
    this.map = map;
    this.root = parent;
    const place = parent.appendChild(make("div", "place"));
    this.minimap = new Minimap(map, place);
    const side = place.appendChild(make("div", "side"));
    this.crumbs = side.appendChild(make("nav", "crumbs"));
    this.crumbs.setAttribute("aria-label", "Zoom levels");
    const moves = side.appendChild(make("div", "moves"));
    makeSteps(map, moves);
    this.jump(moves);
    this.note = side.appendChild(make("div", "note"));
    this.switches = side.appendChild(make("div", "switches"));
    this.legend = parent.appendChild(make("div", "legend"));
    this.lists = parent.appendChild(make("div", "lists"));
    const pooling = makePooling([map], this.switches), boxes = makeSwitches(map, this.switches);
    this.update = () => { pooling(); boxes(); };
  }

  jump(parent) {
    const form = parent.appendChild(make("form", "jump")), label = form.appendChild(make("label", "", "Go to "));
    this.goto = label.appendChild(make("input"));
    this.goto.onfocus = () => this.goto.select();
    this.goto.placeholder = "query, key";
    this.goto.setAttribute("aria-label", "Go to query, key");
    form.onsubmit = (event) => {
      event.preventDefault();
      const [query, key = query] = this.goto.value.replace(/[^\d\s,;]/g, "").split(/[\s,;]+/).filter(Boolean).map(Number);
      if (query === undefined) return;
      this.map.jump(clamp(query, 0, this.map.length - 1), clamp(key, 0, this.map.length - 1), 64);
      this.map.stage.focus();
    };
  }

  // After the view moved.
  move() {
    const { map } = this, sizes = crumbs(map.view, map.length);
    this.minimap.draw();
    const names = sizes.map((size, i) => (i && i === sizes.length - 1 && size <= FEW ? `${Math.round(size)} tokens` : brief(size)));
    if (names.join() === this.names) return;
    this.names = names.join();
    this.crumbs.replaceChildren();
    sizes.forEach((size, i) => {
      if (i) this.crumbs.append(make("span", "", "›"));
      const crumb = this.crumbs.appendChild(button("crumb", names[i], () => { map.resize(size); map.stage.focus(); }));
      if (i === sizes.length - 1) crumb.setAttribute("aria-current", "true");
    });
  }

  // After the head, its colours or its loading changed.
  show() {
    const { map } = this;
    this.update();
    this.note.textContent = this.cells(map.level());
    drawLegend(map, this.legend);
  }

  // What a pixel stands for.
  cells(level) {
    const { map } = this, { head, state, view } = map, stored = `${brief(map.cellSize())} × ${brief(map.cellSize())} tokens`;
    if (!head.pinned) {
      return map.cellSize() > view.size / map.side ? `This head is not pinned: cells stay the greatest of ${stored}.` : `Each pixel is the greatest of ${stored}; no more is stored of this head.`;
    }
    if (level > map.coarsest()) {
      const most = brief(map.side * 2 ** map.coarsest());
      return `Each pixel is the greatest of ${stored}.${state.pool === "max" ? "" : ` Zoom in to ${most} tokens or fewer for ${POOLS[state.pool]}.`}`;
    }
    if (map.missing().length) return "Computing exact weights…";
    return level ? `Exact; each pixel is ${POOLS[state.pool]} of ${2 ** level} × ${2 ** level} tokens.` : "Exact weight of every token pair.";
  }

  fill() {
    const { map } = this, { block } = map.head, { columns, slashes } = map.head, half = map.length / 2;
    const row = () => (map.cross ? Math.floor(map.cross.query) : Math.floor(map.view.row + map.view.size / 2));
    const percent = (share) => `${(100 * share).toFixed(share < 0.001 ? 3 : 1)}%`;
    this.lists.replaceChildren();
    this.list(`${counted(columns.length, "column", "columns")} kept`, columns.map(({ block: at, mass, text }) => [`c${at}`, percent(mass), text, () => {
      const key = Math.floor((at + 0.5) * block);
      map.jump(clamp(Math.max(row(), key), 0, map.length - 1), Math.min(key, map.length - 1), 8 * block);
    }]));
    this.list(`${counted(slashes.length, "slash", "slashes")} kept`, slashes.map(({ slash, mass }) => {
      const back = slash * block;
      return [`s${slash}`, percent(mass), `${number(Math.max(0, back - block + 1))}–${number(back + block - 1)} back`, () => {
        const query = Math.min(Math.max(row(), back, Math.floor(half)), map.length - 1);
        map.jump(query, Math.max(0, query - back), 8 * block);
      }];
    }));
  }

  list(title, entries) {
    const part = this.lists.appendChild(make("section"));
    part.append(make("h4", "", title));
    const rows = part.appendChild(make("div", "rows"));
    if (!entries.length) rows.append(make("p", "", "None beside the blocks that are always computed."));
    for (const [name, share, text, act] of entries) {
      const entry = rows.appendChild(button("entry", undefined, act));
      entry.append(make("b", "", name), make("span", "share", share), make("span", "text", text));
      entry.title = `${name}, ${share} of the attention: ${text}`;
    }
  }
}

// [state, value when on, value when off, label, help]
const SWITCHES = [
  ["weights", "on", "off", "Weights", "Attention weights, as colours"],
  ["kept", "on", "off", "Kept blocks", "Blue borders around the tiles that are computed, stripes over the dropped ones"],
  ["missed", "on", "off", "Missed mass", "Weights outside the kept tiles, in orange"],
  ["colours", "log", "linear", "Log colours", "Logarithmic colours; off: linear"],
  ["sink", "hide", "show", "Hide sink", "Leave the sink blocks out, and out of the colour range"],
  ["lock", "on", "off", "Lock scale", "Keep the colour range when another head is shown"],
];

// Boxes to tick for what is drawn; returns a function that ticks them as the map's state is.
function makeSwitches(map, parent, without = []) {
  const updates = SWITCHES.filter(([name]) => !without.includes(name)).map(([name, on, off, text, help]) => {
    const label = parent.appendChild(make("label")), input = label.appendChild(make("input"));
    input.type = "checkbox";
    input.onchange = () => map.set(name, input.checked ? on : off);
    label.append(text);
    label.title = help;
    return () => { input.checked = name === "lock" ? map.state.lock !== "off" : map.state[name] === on; };
  });
  return () => { for (const update of updates) update(); };
}

const POOLS = { max: "the greatest", mean: "the mean", sum: "the sum" };

// The choice of what a pixel of several tokens shows; only the greatest weights are stored of heads that are not pinned.
function makePooling(maps, parent) {
  const label = parent.appendChild(make("label", "", "Pixels show ")), choice = label.appendChild(make("select"));
  for (const [pool, name] of Object.entries(POOLS)) choice.appendChild(make("option", "", `${name} weight`.replace("sum weight", "sum of weights"))).value = pool;
  choice.onchange = () => maps[0].set("pool", choice.value);
  return () => {
    const pinned = maps.some(({ head }) => head?.pinned);
    choice.disabled = !pinned;
    choice.value = pinned ? maps[0].state.pool : "max";
    label.title = pinned ? "Weights of the tokens under a pixel" : "Only the greatest weight of each cell is stored of this head; record it exactly for the others";
  };
}

function makeSteps(map, parent) {
  const row = parent.appendChild(make("div", "steps"));
  for (const [sign, name, act] of [["+", "Zoom in", () => map.zoom(0.5)], ["−", "Zoom out", () => map.zoom(2)], ["⤢", "Whole map", () => map.whole()]]) {
    const step = row.appendChild(button("step", sign, act));
    step.title = step.ariaLabel = name;
  }
}

function drawLegend(map, parent) {
  const { head, colours } = map, bar = (ramp) => {
    const strip = make("span", "bar");
    strip.style.background = `linear-gradient(to right, ${ramp.join(",")})`;
    return strip;
  };
  const entry = (node, text) => {
    const item = parent.appendChild(make("span"));
    item.append(node, make("span", "", text));
  };
  const unit = map.unit(), range = `${map.state.colours}: ${map.state.colours === "log" ? format(head.low * unit) : "0"} to ${format(map.high() * unit)}`;
  parent.replaceChildren();
  if (map.state.weights === "on") entry(bar(colours.ramp), `weight, ${range}`);
  if (map.state.missed === "on") entry(bar(colours.missed_ramp), `missed: weight outside kept tiles, ${range}`);
  if (map.state.kept === "on") {
    const kept = make("span", "swatch"), dropped = make("span", "swatch");
    kept.style.border = `2px solid ${colours.kept}`;
    dropped.style.background = `repeating-linear-gradient(135deg, ${colours.dropped} 0 1px, ${colours.dropped}66 1px 5px)`;
    entry(kept, "kept: computed");
    entry(dropped, "dropped: not computed");
  }
  if (map.panel) return;
  for (const [sign, name] of [["▲", counted(head.columns.length, "column", "columns")], ["◀", counted(head.slashes.length, "slash", "slashes")]]) {
    const mark = make("span", "", sign);
    mark.style.color = colours.kept;
    entry(mark, `${name} kept`);
  }
}
