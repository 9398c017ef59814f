// Fields and buttons that several pages share.

import { keyName } from "./keys.js";
import { el } from "./text.js";

/** A key as a hint for eyes; screen readers hear of it from the button that it belongs to, or from the help. */
export function hint(key) {
  return el("kbd", { "aria-hidden": "true" }, key);
}

/** A button that says which key does the same; `key` as `KeyboardEvent.key` names it. */
export function action(words, key, onclick, attributes = {}) {
  const shortcut = key.replace("Ctrl", "Control");
  const button = { type: "button", onclick, "aria-keyshortcuts": shortcut, ...attributes };
  return el("button", button, `${words} `, hint(keyName(key)));
}

/** A row of radio buttons that look like tiles. `values` are pairs of value and words; `chosen` is the value that is on,
 *  `ends` says what the first and the last mean. */
export function scale({ name, legend, values, chosen, ends = null }, choose) {
  const tiles = values.map(([value, words]) => {
    const radio = el("input", { type: "radio", id: `${name}-${value}`, name, value, onchange: () => choose(value) });
    radio.checked = value === chosen;
    return el("label", { class: "tile" }, radio, el("span", {}, words));
  });
  const below = ends && el("p", { class: "ends", "aria-hidden": "true" }, ...ends.map((end) => el("span", {}, end)));
  const row = el("div", { class: "tiles" }, ...tiles);
  return el("fieldset", { class: "scale" }, el("legend", {}, ...legend), row, ...(below ? [below] : []));
}

/** Words that only screen readers have need of. */
export function unseen(words) {
  return el("span", { class: "unseen" }, words);
}

/** "1", ..., as values of a scale. */
export function upTo(last) {
  return Array.from({ length: last }, (_, at) => [String(at + 1), String(at + 1)]);
}
