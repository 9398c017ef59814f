// How one turn of a conversation looks.

import { action } from "./fields.js";
import { el, hiddenNames, passage, visible } from "./text.js";

/** A turn as an item of the list. `acts` are what can be done with an answer: `thumb(turn, up)`, `edit(turn)` and, for
 *  the last one, `again()`; those that are absent are not offered. */
export function turnView(turn, model, acts) {
  const isAnswer = turn.role === "assistant";
  const who = el("p", { class: "who" }, ...visible(isAnswer ? (model ?? "The model") : "You"), ...notes(turn));
  const rest = isAnswer ? [el("p", { class: "row acts" }, ...buttons(turn, acts))] : [];
  return el("li", { class: isAnswer ? "turn answer" : "turn", tabindex: "-1" }, who, passage(turn.content), ...rest);
}

function notes({ edited, stopped }) {
  const words = [edited && "edited by you", stopped && "not finished"].filter(Boolean);
  return words.map((word) => el("small", {}, word));
}

function buttons(turn, { thumb, edit, again }) {
  const pressed = (up) => ({ class: "quiet", "aria-pressed": String(turn.thumb?.up === up) });
  return [
    ...(thumb ? [action("Good", "u", () => thumb(turn, true), pressed(true))] : []),
    ...(thumb ? [action("Bad", "d", () => thumb(turn, false), pressed(false))] : []),
    action("Edit", "e", () => edit(turn), { class: "quiet" }),
    ...(again ? [action("Regenerate", "r", again, { class: "quiet" })] : []),
  ];
}

/** A field that stands where an answer was, with the answer in it; `save(text)` and `leave(text)` end it. A text field
 *  cannot show hidden characters as symbols, so it names them below. */
export function editor(text, save, leave) {
  const field = el("textarea", { rows: "8", dir: "auto", "aria-label": "The corrected answer" });
  field.value = text;
  const names = hiddenNames(text);
  const warning = names && el("p", { class: "hint" }, `This text has hidden characters: ${names}.`);
  const buttons = el(
    "p",
    { class: "row" },
    action("Save the edit", "Ctrl+Enter", () => save(field.value), { class: "primary" }),
    action("Leave", "Escape", () => leave(field.value), { class: "quiet" }),
  );
  return el("div", { class: "editor" }, field, ...(warning ? [warning] : []), buttons);
}
