// Text to take along, with a button that copies it. Text goes through textContent only.
export default function ({ data, parentElement }) {
  const host = parentElement.querySelector(".root"), text = document.createElement("pre"), copy = document.createElement("button");
  text.textContent = data;
  text.tabIndex = 0;
  copy.type = "button";
  copy.textContent = "Copy";
  copy.setAttribute("aria-live", "polite");
  copy.onclick = async () => {
    copy.textContent = (await copied(data, text)) ? "Copied" : "Press Ctrl+C";
    setTimeout(() => { copy.textContent = "Copy"; }, 2000);
  };
  host.replaceChildren(text, copy);
}

// A page that is not on localhost may have no clipboard: then the text is left selected.
async function copied(data, text) {
  try {
    await navigator.clipboard.writeText(data);
    return true;
  } catch {
    getSelection().selectAllChildren(text);
    text.focus();
    return false;
  }
}
