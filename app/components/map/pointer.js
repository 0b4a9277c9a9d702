// The mouse: drag a box to zoom, with space or Shift (or the middle button) to pan, the wheel zooms, a click pins the crosshair.
const STEADY = 4;

class Pointer {
  constructor(map) {
    this.map = map;
    const { stage } = map, on = (name, act, options) => stage.addEventListener(name, act, options);
    on("pointermove", (event) => this.move(event));
    on("pointerdown", (event) => this.down(event));
    on("pointerup", (event) => this.up(event));
    on("pointercancel", () => { this.start = null; this.box.hidden = true; });
    on("pointerleave", () => { if (!map.pinned && !this.start) map.point(null); });
    on("keydown", (event) => { if (event.code === "Space") { this.space = true; stage.classList.add("panning"); event.preventDefault(); } });
    on("keyup", (event) => { if (event.code === "Space") this.release(); });
    on("blur", () => this.release());
    this.box = stage.appendChild(make("div", "box"));
    this.box.hidden = true;
    if (map.compact) return;
    on("pointerenter", () => {
      if (document.activeElement !== document.body) return;
      stage.classList.add("pointed");
      stage.focus({ preventScroll: true });
    });
    on("keydown", () => stage.classList.remove("pointed"));
    on("wheel", (event) => this.wheel(event), { passive: false });
    on("dblclick", () => map.whole());
  }

  release() {
    this.space = false;
    this.map.stage.classList.remove("panning");
  }

  // Pixels from the map's corner.
  place(event) {
    const box = this.map.stage.getBoundingClientRect(), { margin } = this.map;
    return { x: event.clientX - box.left - margin.left, y: event.clientY - box.top - margin.top };
  }

  tokens({ x, y }) {
    const { view, side } = this.map;
    return { query: view.row + (y / side) * view.size, key: view.col + (x / side) * view.size };
  }

  inside({ x, y }) { return x >= 0 && y >= 0 && x < this.map.side && y < this.map.side; }

  down(event) {
    const at = this.place(event);
    this.map.stage.focus();
    if (!this.inside(at)) return;
    this.map.stage.setPointerCapture(event.pointerId);
    this.start = { ...at, view: this.map.view, pan: this.space || event.shiftKey || event.button === 1 };
  }

  move(event) {
    const at = this.place(event), { map, start } = this;
    if (!start || map.compact) {
      if (!map.pinned) map.point(this.inside(at) ? this.tokens(at) : null);
      return;
    }
    if (start.pan) {
      const scale = start.view.size / map.side;
      map.go(fitted({ row: start.view.row - (at.y - start.y) * scale, col: start.view.col - (at.x - start.x) * scale, size: start.view.size }, map.length));
      return;
    }
    const { x, y, side } = this.square(at);
    Object.assign(this.box.style, { left: `${map.margin.left + x}px`, top: `${map.margin.top + y}px`, width: `${side}px`, height: `${side}px` });
    this.box.hidden = side < STEADY;
  }

  // The square that a drag from the start to here spans.
  square(at) {
    const { start, map } = this, side = Math.min(Math.max(Math.abs(at.x - start.x), Math.abs(at.y - start.y)), map.side);
    const edge = (from, to) => clamp(to < from ? from - side : from, 0, map.side - side);
    return { x: edge(start.x, at.x), y: edge(start.y, at.y), side };
  }

  up(event) {
    const { start, map } = this, at = this.place(event);
    this.start = null;
    this.box.hidden = true;
    if (!start || start.pan) return;
    if (Math.hypot(at.x - start.x, at.y - start.y) < STEADY || map.compact) {
      if (this.inside(at)) map.pin(this.tokens(at));
      return;
    }
    this.start = start;
    const { x, y, side } = this.square(at), scale = map.view.size / map.side;
    this.start = null;
    map.go(fitted({ row: map.view.row + y * scale, col: map.view.col + x * scale, size: side * scale }, map.length), NOW);
    if (!map.pinned) map.point(null);
  }

  wheel(event) {
    const at = this.place(event), { map } = this;
    if (!this.inside(at)) return;
    event.preventDefault();
    const { query, key } = this.tokens(at), turned = event.deltaY * (event.deltaMode === 1 ? 16 : 1);
    map.go(zoomed(map.view, 2 ** clamp(turned / 200, -2, 2), query, key, map.length));
    if (!map.pinned) map.point({ query, key });
  }
}
