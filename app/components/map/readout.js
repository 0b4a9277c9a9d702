// What the crosshair stands on: one line of numbers, and both tokens in their text. All of it is in data attributes too.
const CONTEXT = 48;

function describe(map) {
  const { host, readout, head } = map, data = host.dataset, found = map.cell();
  for (const name of ["cell", "query", "key", "weight", "missed", "tile", "pooled", "exact"]) delete data[name];
  readout.replaceChildren();
  if (!found) {
    readout.append(make("div", "", map.compact ? "Point at a cell to read it, or focus the map and use the arrow keys."
      : "Point at a cell to read it; click to keep the crosshair there, or move it with the arrow keys (Shift: by a block)."));
    if (!map.compact) readout.append(make("div", "", "Drag a box or turn the wheel to zoom; drag with Space or Shift to pan; + and - zoom, Esc goes up a level, a double click shows all."));
    return;
  }
  const { r, c, query, key, weight, missed } = found, above = key[0] > query[1];
  const i = Math.floor(map.cross.query / head.block), j = Math.min(Math.floor(map.cross.key / head.block), i);
  const tile = above ? "future" : map.kept(i, j) ? "kept" : "dropped", pooled = (query[1] - query[0] + 1) * (key[1] - key[0] + 1);
  const line = readout.appendChild(make("div", "numbers"));
  line.append(`Query ${span(query)}, key ${span(key)}: `);
  if (above) line.append("above the diagonal, a query does not see later keys.");
  else {
    line.append(make("b", "", `weight ${format(weight)}`));
    line.append(pooled === 1 ? ", exact" : `, ${POOLS[found.pool]} of ${query[1] - query[0] + 1} × ${key[1] - key[0] + 1} tokens`);
    line.append(`; tile (${i}, ${j}), slash ${i - j}, is `, make("b", tile, tile), ".");
  }
  context(map, "Query", query, map.cross.query);
  context(map, "Key", key, map.cross.key);
  Object.assign(data, { cell: `${r},${c}`, query: query.join("-"), key: key.join("-"), weight, missed, tile, pooled, exact: pooled === 1 });
}

// A token, marked, between the text before and after it; of a longer span its beginning.
function context(map, name, [from, to], at) {
  const line = map.readout.appendChild(make("div", "context")), one = from === to || !map.compact, shown = one ? Math.floor(at) : from;
  const before = visible(map.text(Math.max(0, shown - 16), shown)).slice(-CONTEXT);
  const token = visible(one ? map.token(shown) : map.text(from, to + 1)).slice(0, CONTEXT), after = visible(map.text(shown + 1, shown + 24)).slice(0, CONTEXT);
  line.append(make("span", "name", `${name} ${number(shown)}`), make("span", "before", one ? before : ""), make("mark", "", token || "∅"), make("span", "", one ? after : ""));
}
