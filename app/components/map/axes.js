// Around the map: ticks or token labels, marks of columns and slashes, the recall of rows at the left, the mass of keys above.
const FEW = 64;
const niceStep = (least) => 2 ** Math.ceil(Math.log2(Math.max(least, 1)));

function triangle(context, x, y, half, [dx, dy]) {
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(x + 1.5 * half * dx - half * dy, y + 1.5 * half * dy - half * dx);
  context.lineTo(x + 1.5 * half * dx + half * dy, y + 1.5 * half * dy + half * dx);
  context.fill();
}

function shortened(context, text, room) {
  if (context.measureText(text).width <= room) return text;
  while (text && context.measureText(`${text}…`).width > room) text = text.slice(0, -1);
  return `${text}…`;
}

function drawTicks(map, context) {
  const { view, side, margin } = map, tick = 4;
  context.fillStyle = map.ink;
  context.font = map.font(12);
  if (view.size <= FEW && !map.compact) { drawTokenLabels(map, context); return; }
  const step = niceStep(view.size / Math.max(2, side / 90));
  for (let at = Math.ceil(view.col / step) * step; at < view.col + view.size; at += step) {
    const x = map.x(at);
    context.textBaseline = "top";
    context.textAlign = x < 12 ? "left" : x > side - 24 ? "right" : "center";
    context.fillText(number(at), x, side + 16);
    context.fillRect(x, side, 1, tick);
  }
  context.textAlign = "right";
  for (let at = Math.ceil(view.row / step) * step; at < view.row + view.size; at += step) {
    const y = map.y(at);
    context.textBaseline = y < 8 ? "top" : "middle";
    context.fillText(number(at), -margin.track - 16, y);
    context.fillRect(-margin.track - tick, y, tick, 1);
  }
}

function drawTokenLabels(map, context) {
  const { view, side, margin } = map, cell = side / view.size, step = Math.ceil(11 / cell);
  context.font = map.font(clamp(cell * step - 1, 9, 12), map.codeFont);
  context.textBaseline = "middle";
  for (let at = Math.ceil(view.row / step) * step; at < view.row + view.size - 0.5; at += step) {
    const label = shortened(context, visible(map.token(at)), margin.left - margin.track - 10);
    context.textAlign = "right";
    context.fillText(label, -margin.track - 6, map.y(at + 0.5));
  }
  for (let at = Math.ceil(view.col / step) * step; at < view.col + view.size - 0.5; at += step) {
    context.save();
    context.translate(map.x(at + 0.5), side + 6);
    context.rotate(-Math.PI / 2);
    context.textAlign = "right";
    context.fillText(shortened(context, visible(map.token(at)), margin.bottom - 8), 0, 0);
    context.restore();
  }
}

// Columns below the map, slashes where they enter it: at the left, or above.
function drawMarks(map, context) {
  const { view, side, head } = map, size = (head.block * side) / view.size, half = clamp(size / 2.4, 3, 6);
  const within = (at) => at > -1 && at < side + 1;
  context.fillStyle = map.colours.kept;
  if (view.size > FEW || map.compact) {
    for (const { block } of head.columns) {
      const x = map.x((block + 0.5) * head.block);
      if (within(x)) triangle(context, x, side + 3, half, [0, 1]);
    }
  }
  for (const { slash } of head.slashes) {
    const y = map.y(view.col + (slash + 0.5) * head.block), x = map.x(view.row - (slash + 0.5) * head.block);
    if (within(y)) triangle(context, -3, y, half, [-1, 0]);
    else if (view.row > 0 && within(x)) triangle(context, x, -3, half, [0, -1]);
  }
  labelMarks(map, context);
}

// Names of the columns and slashes with most mass, as many as there is room for.
function labelMarks(map, context) {
  const { view, side, head } = map, taken = [];
  if (map.compact || view.size <= FEW) return;
  context.font = `600 ${map.font(11)}`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  const write = (text, x, y) => {
    const width = context.measureText(text).width + 8;
    const free = x > width / 2 && y > 10 && x < side && y < side && taken.every(([a, b]) => Math.abs(a - x) > 34 || Math.abs(b - y) > 18);
    if (!free) return;
    taken.push([x, y]);
    context.globalAlpha = 0.85;
    context.fillStyle = map.paper;
    context.fillRect(x - width / 2, y - 7, width, 14);
    context.globalAlpha = 1;
    context.fillStyle = map.ink;
    context.fillText(text, x, y);
  };
  for (const { block } of head.columns) write(`c${block}`, map.x((block + 0.5) * head.block), side - 12);
  for (const { slash } of head.slashes) write(`s${slash}`, 20, map.y(view.col + (slash + 0.5) * head.block));
}

// The least recall of the rows under each pixel, and the target.
function drawRecall(map, context) {
  const { view, side, head, margin } = map, room = margin.track - 18, left = -margin.track + 2, low = Math.max(0, Math.min(head.lowest_recall, head.target) - 0.02);
  const at = (recall) => left + clamp((recall - low) / (1 - low), 0, 1) * room, recalls = map.head.planes.recall;
  context.fillStyle = map.shade;
  context.fillRect(left, 0, room, side);
  for (let y = 0; y < side; y++) {
    const from = Math.floor(view.row + (y / side) * view.size), to = Math.max(from + 1, Math.floor(view.row + ((y + 1) / side) * view.size));
    let least = 1;
    for (let row = from; row < Math.min(to, map.length); row++) least = Math.min(least, recalls[row]);
    context.fillStyle = least < head.target - 1e-6 ? map.colours.dropped : map.colours.kept;
    context.fillRect(at(least), y, Math.max(1.5, least < head.target ? at(1) - at(least) : 1.5), 1);
  }
  context.strokeStyle = map.ink;
  context.setLineDash([4, 3]);
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(at(head.target), 0);
  context.lineTo(at(head.target), side);
  context.stroke();
  context.setLineDash([]);
  context.fillStyle = map.ink;
  context.font = map.font(11);
  context.textAlign = "right";
  context.textBaseline = "bottom";
  context.fillText(`recall, target ${head.target}`, at(1), -4);
  context.textBaseline = "top";
  context.fillText("1", at(1), side + 2);
  context.textAlign = "left";
  context.fillText(format(low), left, side + 2);
}

// The share of all rows' mass in each key block, on a log scale over three decades.
function drawMass(map, context) {
  const { view, side, head, margin } = map, room = margin.top - 26, mass = head.planes.column_mass;
  const most = mass.reduce((a, b) => Math.max(a, b), 1e-9), height = (share) => clamp(Math.log10(Math.max(share / most, 1e-9)) / 3 + 1, 0, 1) * room;
  context.fillStyle = map.shade;
  context.fillRect(0, -room - 8, side, room);
  context.fillStyle = map.muted;
  const width = (head.block * side) / view.size;
  for (let block = Math.floor(view.col / head.block); block * head.block < view.col + view.size && block < mass.length; block++) {
    const x0 = Math.max(0, map.x(block * head.block)), x1 = Math.min(side, map.x((block + 1) * head.block));
    context.fillRect(x0, -8 - height(mass[block]), Math.max(1, x1 - x0 - (width > 4 ? 1 : 0)), height(mass[block]));
  }
  context.fillStyle = map.ink;
  context.font = map.font(11);
  context.textAlign = "right";
  context.textBaseline = "bottom";
  context.fillText(`attention by key block, log scale, at most ${Number((100 * most).toPrecision(2))}%`, side, -room - 10);
}
