// Tokens as running text; those that differ from the other run are marked. Text goes through textContent only.
export default function ({ data, parentElement }) {
  const host = parentElement.querySelector(".root"), first = data.different.indexOf(true);
  host.replaceChildren();
  data.pieces.forEach((piece, i) => {
    const span = host.appendChild(document.createElement("span"));
    if (i === first) {
      const arrow = host.insertBefore(document.createElement("span"), span);
      arrow.className = "arrow";
      arrow.textContent = "▸";
    }
    span.textContent = data.different[i] ? piece.replaceAll("\n", "⏎\n") : piece;
    span.title = `token ${i}`;
    if (data.different[i]) span.className = "different";
  });
  host.dataset.first = first;
}
