// The keyboard: arrows move the crosshair (Shift: by a block) and take the view along, + and - zoom, Esc goes up, 0 shows the whole map.
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function pressed(map, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const zoom = (factor) => map.zoom(factor, event.repeat ? SETTLED : NOW);
  const acts = map.compact ? {} : {
    "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), _: () => zoom(2),
    0: () => map.whole(), Home: () => map.whole(), g: () => map.panel?.goto.focus(), Enter: () => map.cross && map.pin(map.cross),
  };
  const act = event.key in STEPS ? () => step(map, event) : event.key === "Escape" ? () => up(map) : acts[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

function up(map) {
  const sizes = crumbs(map.view, map.length);
  if (sizes.length > 1) map.resize(sizes.at(-2));
  else { map.pinned = false; map.point(null); }
}

function step(map, event) {
  const { view } = map, cell = map.cell(), [down, right] = STEPS[event.key];
  const from = map.cross ?? { query: view.row + view.size * 0.5, key: view.col + view.size * 0.25 };
  const here = cell ?? map.cell(from), by = event.shiftKey ? map.head.block : Math.max(1, here.key[1] - here.key[0] + 1);
  const at = (position) => clamp(position, 0, map.length - 1);
  const middle = ([first, last]) => (first + last + 1) / 2;
  const cross = { query: at(middle(here.query) + down * by), key: at(middle(here.key) + right * by) };
  const follow = (start, position) => (position < start ? position : position >= start + view.size ? position - view.size + by : start);
  const moved = fitted({ row: follow(view.row, cross.query), col: follow(view.col, cross.key), size: view.size }, map.length);
  if (moved.row !== view.row || moved.col !== view.col) map.go(moved);
  map.point(cross);
}
