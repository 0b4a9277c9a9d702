// Painting of weights, of missed mass, and of the tiles that are kept and dropped.
function colourTable(stops) {
  const rgb = stops.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return Uint32Array.from({ length: 256 }, (_, i) => {
    const x = (i / 255) * (rgb.length - 1), low = Math.min(Math.floor(x), rgb.length - 2), part = x - low;
    const [r, g, b] = rgb[low].map((value, channel) => Math.round(value + part * (rgb[low + 1][channel] - value)));
    return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
  });
}

// What decides how cells look; `name` differs whenever they would.
function lookOf(map) {
  const { state, head } = map, high = map.high(), from = state.sink === "hide" ? head.sink * head.block : 0;
  return { weights: state.weights === "on", missed: state.missed === "on", log: state.colours === "log", low: head.low, high, from,
    name: [state.weights, state.missed, state.colours, high, from].join() };
}

function paintCells(picture, look) {
  const [height, width] = picture.cells, image = new ImageData(width, height), pixels = new Uint32Array(image.data.buffer);
  const start = Math.log(look.low), range = Math.log(look.high) - start;
  const shade = (value) => (value > 0 ? clamp(look.log ? (Math.log(value) - start) / range : value / look.high, 0, 1) * 255 : 0) | 0;
  const keys = Array.from({ length: width }, (_, c) => picture.keys(c)[0]);
  for (let r = 0; r < height; r++) {
    const last = picture.queries(r)[1];
    for (let c = 0; c < width; c++) {
      const key = keys[c], at = r * width + c;
      if (key > last) break;
      if (key < look.from) continue;
      if (look.missed && picture.missed[at] > 0) pixels[at] = PALETTE.missed[shade(picture.missed[at] / picture.unit)];
      else if (look.weights) pixels[at] = PALETTE.weights[shade(picture.weights[at] / picture.unit)];
    }
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

const PALETTE = {};
function choosePalette({ ramp, missed_ramp, difference_ramp }) {
  PALETTE.weights = colourTable(ramp);
  PALETTE.missed = colourTable(missed_ramp);
  PALETTE.difference = colourTable(difference_ramp);
}

// The part of a picture that the view shows, scaled to it: sharp cells when enlarged.
function drawPicture(map, context, picture) {
  const { view, side } = map, scale = side / view.size, [height, width] = picture.cells;
  const across = picture.cols[1] - picture.cols[0], down = picture.rows[1] - picture.rows[0];
  const c0 = Math.max(0, Math.floor(((view.col - picture.cols[0]) / across) * width)), r0 = Math.max(0, Math.floor(((view.row - picture.rows[0]) / down) * height));
  const c1 = Math.min(width, Math.ceil(((view.col + view.size - picture.cols[0]) / across) * width));
  const r1 = Math.min(height, Math.ceil(((view.row + view.size - picture.rows[0]) / down) * height));
  if (c1 <= c0 || r1 <= r0) return;
  const dense = window.devicePixelRatio || 1, snapped = (at) => Math.round(at * dense) / dense;
  const x = (cell) => snapped((picture.cols[0] + (cell * across) / width - view.col) * scale);
  const y = (cell) => snapped((picture.rows[0] + (cell * down) / height - view.row) * scale);
  context.imageSmoothingEnabled = (across / width) * scale * dense < 1;
  context.clearRect(x(c0), y(r0), x(c1) - x(c0), y(r1) - y(r0));
  context.drawImage(picture.painted(map.look), c0, r0, c1 - c0, r1 - r0, x(c0), y(r0), x(c1) - x(c0), y(r1) - y(r0));
}

// The old picture first, then what is finer, down to the level that the view asks for.
function drawPictures(map, context) {
  const { view } = map, level = map.level();
  drawPicture(map, context, map.overview);
  for (let finer = map.coarsest(); finer >= level; finer--) {
    for (const [i, j] of map.tiles.inView(view, finer, map.length, view.row, view.col)) {
      const picture = map.tiles.get(map.pool(finer), finer, i, j);
      if (picture) drawPicture(map, context, picture);
    }
  }
}

// One pixel a tile: opaque where it is dropped.
function droppedPicture(map) {
  const [down, across] = map.head.tiles, image = new ImageData(across, down), pixels = new Uint32Array(image.data.buffer);
  const { mask } = map.head.planes;
  for (let i = 0; i < down; i++) {
    for (let at = i * across; at <= i * across + Math.min(i, across - 1); at++) if (!((mask[at >> 3] >> (at & 7)) & 1)) pixels[at] = 0xff000000;
  }
  const canvas = new OffscreenCanvas(across, down);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function stripes(context, colour, apart) {
  const tile = new OffscreenCanvas(apart, apart), pen = tile.getContext("2d");
  pen.strokeStyle = colour;
  pen.lineWidth = 1.2;
  for (const shift of [-apart, 0, apart]) { pen.moveTo(shift, apart); pen.lineTo(shift + apart, 0); }
  pen.stroke();
  return context.createPattern(tile, "repeat");
}

function drawDropped(map, context) {
  const { view, side, head } = map, size = (head.block * side) / view.size, light = size > 16;
  const layer = new OffscreenCanvas(side, side), pen = layer.getContext("2d"), part = (tokens) => tokens / head.block;
  const fill = (style, alpha) => {
    pen.clearRect(0, 0, side, side);
    pen.globalCompositeOperation = "source-over";
    pen.drawImage(map.dropped, part(view.col), part(view.row), part(view.size), part(view.size), 0, 0, side, side);
    pen.globalCompositeOperation = "source-in";
    pen.fillStyle = style;
    pen.fillRect(0, 0, side, side);
    context.globalAlpha = alpha;
    context.drawImage(layer, 0, 0);
    context.globalAlpha = 1;
  };
  pen.imageSmoothingEnabled = size < 1;
  fill(map.colours.dropped, light ? 0.1 : 0.16);
  fill(stripes(pen, map.colours.dropped, light ? 20 : 12), 0.45);
}

// The border between kept tiles and the rest.
function drawOutline(map, context) {
  const { view, head, length } = map, size = (head.block * map.side) / view.size, [down, across] = head.tiles;
  if (size < 1.5) return;
  const first = (start) => Math.max(0, Math.floor(start / head.block)), last = (start, tiles) => Math.min(tiles, Math.ceil((start + view.size) / head.block));
  const open = (i, j) => i < 0 || j < 0 || i >= down || j >= across || j > i || !map.kept(i, j);
  context.beginPath();
  for (let i = first(view.row); i < last(view.row, down); i++) {
    for (let j = first(view.col); j < last(view.col, across) && j <= i; j++) {
      if (!map.kept(i, j)) continue;
      const x0 = map.x(j * head.block), y0 = map.y(i * head.block);
      const x1 = map.x(Math.min((j + 1) * head.block, length)), y1 = map.y(Math.min((i + 1) * head.block, length));
      if (open(i - 1, j)) { context.moveTo(x0, y0); context.lineTo(x1, y0); }
      if (open(i + 1, j)) { context.moveTo(x0, y1); context.lineTo(x1, y1); }
      if (open(i, j - 1)) { context.moveTo(x0, y0); context.lineTo(x0, y1); }
      if (open(i, j + 1)) { context.moveTo(x1, y0); context.lineTo(x1, y1); }
    }
  }
  context.strokeStyle = map.colours.kept;
  context.lineWidth = size >= 8 ? 1.75 : size >= 3 ? 1 : 0.6;
  context.stroke();
}
