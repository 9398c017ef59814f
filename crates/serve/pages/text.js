// Words of models and people become text nodes, never HTML. Characters that hide, move or reorder what stands around
// them are shown as boxed names, because a labeler must judge what is there and not what it makes of the screen.

/** A control, a format character (bidirectional ones among them), a line or paragraph separator, or half a character.
 *  Newline and tab are ordinary. A joiner belongs to the emoji or the script after whose letters it stands, so only one
 *  that follows ASCII, or nothing, has no business there. */
const HIDDEN = /(?![\n\t])(?!(?<=[^\x00-\x7f])[\u200c\u200d])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu;

const NAMES = new Map([
  [0x00, "NUL"],
  [0x07, "BEL"],
  [0x08, "BS"],
  [0x0b, "VT"],
  [0x0c, "FF"],
  [0x0d, "CR"],
  [0x1b, "ESC"],
  [0x7f, "DEL"],
  [0xad, "SHY"],
  [0x061c, "ALM"],
  [0x200b, "ZWSP"],
  [0x200c, "ZWNJ"],
  [0x200d, "ZWJ"],
  [0x200e, "LRM"],
  [0x200f, "RLM"],
  [0x2028, "LS"],
  [0x2029, "PS"],
  [0x202a, "LRE"],
  [0x202b, "RLE"],
  [0x202c, "PDF"],
  [0x202d, "LRO"],
  [0x202e, "RLO"],
  [0x2060, "WJ"],
  [0x2066, "LRI"],
  [0x2067, "RLI"],
  [0x2068, "FSI"],
  [0x2069, "PDI"],
  [0xfeff, "BOM"],
]);

/** An element with attributes and children; a function among the attributes is a listener (`onclick`), a string among
 *  the children is text. There is no other way from a string into a page. */
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** The nodes that show `given` with its hidden characters made visible. */
export function visible(given) {
  const text = given.replaceAll("\r\n", "\n");
  const nodes = [];
  let end = 0;
  for (const { 0: character, index } of text.matchAll(HIDDEN)) {
    nodes.push(text.slice(end, index), symbol(character.codePointAt(0)));
    end = index + character.length;
  }
  nodes.push(text.slice(end));
  return nodes.filter((node) => node !== "");
}

function symbol(code) {
  const point = `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
  return el("span", { class: "symbol", title: point }, NAMES.get(code) ?? point);
}

/** The names of the hidden characters in `text`, each once, for a text field, which cannot show them. */
export function hiddenNames(text) {
  const names = visible(text)
    .filter((node) => node instanceof Node)
    .map((node) => node.textContent);
  return [...new Set(names)].join(", ");
}

/** A block for a text of any length, script and direction; a text of nothing says so. */
export function passage(text, attributes = {}) {
  const block = el("div", { class: "passage", dir: "auto", ...attributes });
  return fill(block, text);
}

/** Puts `text` into a passage in place of what it held. */
export function fill(block, text) {
  const empty = text.trim() === "";
  block.classList.toggle("empty", empty);
  block.replaceChildren(...(empty ? ["(an empty answer)"] : visible(text)));
  return block;
}

/** The messages of a prompt, each with who says it. */
export function conversation(messages) {
  return messages.map(({ role, content }) =>
    el("div", { class: "message" }, el("p", { class: "who" }, ...visible(capital(role))), passage(content)),
  );
}

/** The word with a capital first letter. */
export function capital(word) {
  return word.slice(0, 1).toUpperCase() + word.slice(1);
}

/** "1 task", "2 tasks". */
export function count(number, thing) {
  return `${number} ${thing}${number === 1 ? "" : "s"}`;
}

/** "A", "A and B", "A, B and C". */
export function list(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}
