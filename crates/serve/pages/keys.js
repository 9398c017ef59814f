// The keys of a page: one table that both acts and explains itself in the help that `?` opens.

import { el } from "./text.js";
import { Store } from "./drafts.js";

const KEY_NAMES = { ArrowLeft: "←", ArrowRight: "→", Backspace: "⌫", Escape: "Esc", "Ctrl+Enter": "Ctrl Enter" };

const settings = new Store("instruct:");

/** One line of the table: `keys` as `KeyboardEvent.key` names them, with "Ctrl+" before it where that is held (Cmd on a
 *  Mac does as well); `does` in words; `run(key)`. `shown` is how the help writes many keys, `typing` makes it act in a
 *  text field too, `repeats` while the key is held down. */
export class Key {
  constructor(keys, does, run, { shown = keys.map(keyName).join(" or "), typing = false, repeats = false } = {}) {
    Object.assign(this, { keys, does, run, shown, typing, repeats });
  }
}

/** Acts on the keys that `table()` lists at the moment, and gives the page its help. */
export function listen(table) {
  const help = helpDialog(table);
  document.body.append(help);
  const open = () => openHelp(help, table);
  const all = () => [...table(), new Key(["?"], "Show these keys", open)];
  document.addEventListener("keydown", (event) => {
    const key = nameOf(event);
    const entry = all().find((entry) => entry.keys.includes(key) && mayRun(entry, event));
    if (!entry) return;
    event.preventDefault();
    entry.run(key);
  });
  return open;
}

function nameOf(event) {
  return (event.ctrlKey || event.metaKey ? "Ctrl+" : "") + event.key;
}

function mayRun(entry, event) {
  if (event.altKey || event.isComposing || event.defaultPrevented || (event.repeat && !entry.repeats)) return false;
  if (document.querySelector("dialog[open]")) return false;
  if (isText(event.target)) return entry.typing;
  if (event.key === "Enter" && event.target.closest("button, a, summary")) return false;
  return entry.keys.some((key) => key.length > 1) || lettersOn();
}

function isText(element) {
  return element.matches("textarea, input:not([type=radio], [type=checkbox])");
}

/** Some people speak to their computer or hit keys by accident; for them single characters can be turned off. */
function lettersOn() {
  return settings.get("letters") ?? true;
}

function helpDialog(table) {
  const letters = el("input", { type: "checkbox", onchange: () => settings.set("letters", letters.checked) });
  letters.checked = lettersOn();
  return el(
    "dialog",
    { class: "help", "aria-labelledby": "help-title" },
    el("h2", { id: "help-title" }, "Keys"),
    el("dl", { class: "keys" }, ...rows(table())),
    el("label", { class: "choice" }, letters, "Keys of one character are on"),
    el("form", { method: "dialog" }, el("button", { autofocus: true }, "Close")),
  );
}

function openHelp(help, table) {
  help.querySelector("dl").replaceChildren(...rows(table()));
  help.showModal();
}

function rows(entries) {
  const row = ({ shown, does }) => el("div", {}, el("dt", {}, el("kbd", {}, shown)), el("dd", {}, does));
  return [...entries.map(row), row({ shown: "?", does: "Show these keys" })];
}

/** How people write a key. */
export function keyName(key) {
  return KEY_NAMES[key] ?? key;
}
