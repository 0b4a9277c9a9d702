// The whole triangle, small, with a frame where the view is. A click or a drag moves the view there.
const MINI = 168;

class Minimap {
  constructor(map, parent) {
    this.map = map;
    this.canvas = parent.appendChild(make("canvas", "minimap"));
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", "The whole map; the frame is the part on show");
    const go = (event) => {
      const scale = map.length / MINI;
      map.go(centred(event.offsetY * scale, event.offsetX * scale, map.view.size, map.length));
    };
    this.canvas.onpointerdown = (event) => { this.canvas.setPointerCapture(event.pointerId); go(event); };
    this.canvas.onpointermove = (event) => { if (event.buttons) go(event); };
  }

  draw() {
    const { map, canvas } = this, dense = window.devicePixelRatio || 1, scale = MINI / map.length, { view } = map;
    if (canvas.width !== MINI * dense) canvas.width = canvas.height = MINI * dense;
    const pen = canvas.getContext("2d"), side = Math.max(view.size * scale, 4), at = (start) => clamp(start * scale, 0, MINI - side);
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.clearRect(0, 0, MINI, MINI);
    pen.imageSmoothingEnabled = map.head.cells[0] > MINI;
    pen.drawImage(map.overview.painted(map.look), 0, 0, MINI, MINI);
    pen.lineWidth = 3;
    pen.strokeStyle = "#000";
    pen.strokeRect(at(view.col), at(view.row), side, side);
    pen.lineWidth = 1.5;
    pen.strokeStyle = "#fff";
    pen.strokeRect(at(view.col), at(view.row), side, side);
  }
}
