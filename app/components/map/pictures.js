// Pictures: cells of weights over a window, painted once. The overview is one; exact tiles of 128 x 128 cells are the others.
const TILE = 128, MOST_TILES = 300;

// What a cell of n x n tokens has, relative to the weight of a column that runs through it: what colours are scaled by.
const unitOf = { max: () => 1, mean: (n) => 1 / n, sum: (n) => n };

class Picture {
  constructor(weights, missed, cells, rows, cols, pool = "max") {
    Object.assign(this, { weights, missed, cells, rows, cols, pool, unit: unitOf[pool]((rows[1] - rows[0]) / cells[0]), paintedAs: "" });
  }

  queries(r) { return this.edges(r, this.rows, this.cells[0]); }
  keys(c) { return this.edges(c, this.cols, this.cells[1]); }
  edges(cell, [from, to], cells) {
    return [from + Math.floor((cell * (to - from)) / cells), from + Math.floor(((cell + 1) * (to - from)) / cells) - 1];
  }

  cellAt(query, key) {
    const find = (position, [from, to], cells) => Math.floor(((position - from + 1) * cells - 1) / (to - from));
    const r = find(query, this.rows, this.cells[0]), c = find(key, this.cols, this.cells[1]), at = r * this.cells[1] + c;
    return { r, c, query: this.queries(r), key: this.keys(c), weight: this.weights[at], missed: this.missed[at], pool: this.pool };
  }

  painted(look) {
    if (this.paintedAs !== look.name) {
      this.canvas = this.paint(look);
      this.paintedAs = look.name;
    }
    return this.canvas;
  }

  paint(look) { return paintCells(this, look); }
}

// The exact tiles of one head, by pooling, level and place: tile (level, i, j) covers 128 * 2 ** level tokens each way.
class Tiles {
  constructor() { this.known = new Map(); }

  add(pool, level, i, j, weights, missed) {
    const size = TILE * 2 ** level, name = `${pool}/${level}/${i}/${j}`;
    this.known.delete(name);
    this.known.set(name, new Picture(weights, missed, [TILE, TILE], [i * size, (i + 1) * size], [j * size, (j + 1) * size], pool));
    if (this.known.size > MOST_TILES) this.known.delete(this.known.keys().next().value);
  }

  get(pool, level, i, j) { return this.known.get(`${pool}/${level}/${i}/${j}`); }

  // [i, j] of the tiles of a level that the view shows and the triangle holds, nearest to (query, key) first.
  inView(view, level, length, query, key) {
    const size = TILE * 2 ** level, places = [], last = (start) => Math.ceil(Math.min(start + view.size, length) / size) - 1;
    for (let i = Math.floor(view.row / size); i <= last(view.row); i++) {
      for (let j = Math.floor(view.col / size); j <= Math.min(last(view.col), i); j++) places.push([i, j]);
    }
    const distance = ([i, j]) => Math.hypot((i + 0.5) * size - query, (j + 0.5) * size - key);
    return places.sort((a, b) => distance(a) - distance(b));
  }
}
