// Elements and numbers as text. Text of a trace goes through textContent or fillText only.
function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function button(className, text, onclick) {
  const element = make("button", className, text);
  element.type = "button";
  element.onclick = onclick;
  return element;
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const number = (value) => value.toLocaleString("en");
const format = (value) => (value === 0 ? "0" : value >= 0.001 ? String(Number(value.toPrecision(3))) : value.toExponential(1).replace(".0e", "e"));
const brief = (tokens) => (tokens >= 1024 ? `${Math.round(tokens / 1024)}K` : String(Math.round(tokens)));
const span = ([from, to]) => (from === to ? number(from) : `${number(from)} to ${number(to)}`);
const counted = (count, one, many) => `${count} ${count === 1 ? one : many}`;
// Text of a trace on one line; what can't be seen is shown by a sign. Most tokens are plain: only the others cost time.
const PLAIN = /^[ -~]*$/, UNSEEN = /\p{C}/gu;
const visible = (text) => (PLAIN.test(text) ? text : text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll("\r", "␍").replace(UNSEEN, "□"));
