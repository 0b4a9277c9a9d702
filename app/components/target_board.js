// The board of heads below a slider of targets: it holds the numbers of every target, so the cells follow the slider at once.
// The page is told the target, one question at a time, and answers with what else belongs to it.
const PATIENCE = 2000;

class TargetBoard extends Board {
  constructor(host) {
    super(host);
    const row = make("label", "target"), line = row.appendChild(make("span", "", "Target (recall of a row)"));
    line.title = "The share of its dense attention that a row shall keep. joint asks it of the sampled rows; independent and window keep this share of the sampled mass.";
    this.slider = row.appendChild(make("input"));
    Object.assign(this.slider, { type: "range", min: 0, step: 1, oninput: () => this.moved() });
    this.shown = row.appendChild(make("output"));
    this.scroll.before(row);
  }

  receive(data, send, sendTarget) {
    Object.assign(this, { answer: data, sendTarget });
    this.slider.max = data.targets.length - 1;
    if (this.asked === data.targets[data.at]) this.asked = undefined;
    if (this.wanted === data.targets[data.at]) this.wanted = undefined;
    super.receive(data, send);
    this.show(this.wanted === undefined ? data.at : data.targets.indexOf(this.wanted));
    if (this.wanted !== undefined) this.ask();
  }

  moved() {
    this.show(Number(this.slider.value));
    this.wanted = this.answer.targets[this.slider.value];
    this.ask();
  }

  ask() {
    const now = performance.now();
    if (this.asked !== undefined && now - this.since < PATIENCE) return;
    Object.assign(this, { asked: this.wanted, since: now });
    this.sendTarget(this.wanted);
  }

  show(at) {
    const { answer, slider, shown } = this, target = answer.targets[at];
    slider.value = at;
    shown.textContent = target.toFixed(2);
    slider.setAttribute("aria-valuetext", shown.textContent);
    slider.style.setProperty("--part", `${(100 * at) / (answer.targets.length - 1)}%`);
    this.data = at === answer.at ? answer : this.at(at, target);
    this.fillLegend();
    this.draw();
  }

  // What is drawn of another target until the page has answered. Where nothing is known of it, the numbers on show fade.
  at(at, target) {
    const { answer } = this, { layers, heads } = answer, size = layers * heads, found = answer.planes.steps.subarray(at * size, (at + 1) * size);
    if (!found.some((value) => value === value)) return { ...this.data, faded: true };
    const words = (value) => (value === value ? `${Math.round(100 * value)}%` : "–");
    const mean = (values) => { const known = values.filter((value) => value === value); return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null; };
    const rows = Array.from({ length: layers }, (_, layer) => [...found.subarray(layer * heads, (layer + 1) * heads)]);
    const means = [rows.map(mean), rows[0].map((_, head) => mean(rows.map((row) => row[head])))];
    return { ...answer, faded: false, name: `Density at target ${target}`, planes: { ...answer.planes, values: found }, estimated: at !== answer.exact, coarse: null,
      text: rows.map((row) => row.map(words)), mean_values: means, means: means.map((line) => line.map((value) => words(value ?? NaN))),
      details: rows.map((row, layer) => row.map((value, head) => `Layer ${layer}, head ${head} · density ${words(value)} at target ${target}`)) };
  }
}

export default (given) => mount(TargetBoard, given);
