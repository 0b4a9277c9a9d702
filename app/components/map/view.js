// The view: a square window of the map, {row, col, size} in tokens. While it moves it may lie between tokens.
const LEAST = 8, LADDER = [8192, 512, 64];

function fitted({ row, col, size }, length) {
  const side = clamp(size, Math.min(LEAST, length), length);
  return { row: clamp(row, 0, length - side), col: clamp(col, 0, length - side), size: side };
}

function rounded({ row, col, size }) {
  return { row: Math.round(row), col: Math.round(col), size: Math.round(size) };
}

// The view made larger by `factor`; the token pair (query, key) stays where it is on the screen.
function zoomed(view, factor, query, key, length) {
  const size = clamp(view.size * factor, Math.min(LEAST, length), length), part = size / view.size;
  return fitted({ row: query - (query - view.row) * part, col: key - (key - view.col) * part, size }, length);
}

function centred(query, key, size, length) {
  return fitted({ row: query - size / 2, col: key - size / 2, size }, length);
}

// Cells of 2 ** level tokens are at least one pixel wide.
const levelOf = (view, side) => Math.max(0, Math.ceil(Math.log2(view.size / side) - 1e-9));

// The sizes that Esc and the breadcrumb go up by, from the whole map to the view's own size.
function crumbs(view, length) {
  const above = LADDER.filter((size) => size < length && size > view.size * 1.01);
  return view.size > length * 0.99 ? [length] : [length, ...above, view.size];
}
