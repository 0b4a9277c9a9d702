// The text of the view's queries and of its keys. Dragging over tokens moves the view to them. Tokens are laid out as they are
// scrolled to: a window may have thousands.
const LAID_OUT = 256;

class Ribbon {
  constructor(map, parent) {
    this.map = map;
    this.lines = ["row", "col"].map((side) => {
      const part = parent.appendChild(make("section", "ribbon")), title = part.appendChild(make("h4")), text = part.appendChild(make("div", "tokens"));
      text.tabIndex = 0;
      text.onpointerdown = (event) => { this.from = this.tokenOf(event); };
      text.onpointerup = (event) => this.choose(side, this.tokenOf(event));
      text.onscroll = () => this.layOut(side, text);
      return { side, part, title, text };
    });
  }

  tokenOf(event) {
    const at = event.target.dataset?.token;
    return at === undefined ? undefined : Number(at);
  }

  choose(side, to) {
    const { map, from } = this;
    this.from = undefined;
    if (from === undefined || to === undefined || from === to) return;
    const first = Math.min(from, to), size = Math.max(LEAST, Math.abs(to - from) + 1), middle = { row: map.view.row + map.view.size / 2, col: map.view.col + map.view.size / 2 };
    const view = { row: middle.row - size / 2, col: middle.col - size / 2, size };
    map.go(fitted({ ...view, [side]: first }, map.length), NOW);
  }

  draw() {
    const { map } = this, same = Math.abs(map.view.row - map.view.col) < 1;
    if (!map.prompt) return;
    for (const { side, part, title, text } of this.lines) {
      const from = Math.round(map.view[side]), size = Math.round(map.view.size);
      part.hidden = same && side === "col";
      const name = same ? "Text on show" : side === "row" ? "Text of the queries" : "Text of the keys";
      title.textContent = `${name}: tokens ${span([from, from + size - 1])}; drag over some to zoom to them`;
      text.replaceChildren();
      text.scrollTop = 0;
      this.layOut(side, text);
    }
    this.mark();
  }

  // Add the next tokens of the view, until there is a boxful of them below what is seen.
  layOut(side, text) {
    const { map } = this, from = Math.round(map.view[side]), end = from + Math.round(map.view.size);
    for (let next = from + text.children.length; next < end && text.scrollHeight < text.scrollTop + 2 * text.clientHeight; next += LAID_OUT) {
      for (let at = next; at < Math.min(next + LAID_OUT, end); at++) {
        const token = text.appendChild(make("span", "", map.token(at).replaceAll("\n", "⏎\n")));
        token.dataset.token = at;
      }
    }
  }

  // The tokens under the crosshair.
  mark() {
    const { map } = this;
    for (const { side, text } of this.lines) {
      text.querySelector(".here")?.classList.remove("here");
      const at = map.cross && Math.floor(side === "row" ? map.cross.query : map.cross.key) - Math.round(map.view[side]);
      if (at !== null) text.children[at]?.classList.add("here");
    }
  }
}
