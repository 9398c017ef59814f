// Why a task is left out: a small dialog that the pages with tasks share.

import { el } from "./text.js";

const REASONS = [
  ["unclear", "The prompt is unclear"],
  ["unsafe", "I do not want to work on this"],
  ["not-my-language", "Not my language"],
  ["broken", "Something is broken"],
  ["other", "Another reason"],
];

/** Puts the dialog into the page; the result opens it. `skipped({ kind, reason, note })` gets what a person chose. */
export function skipDialog(skipped) {
  const note = el("textarea", { id: "skip-note", rows: "2", dir: "auto" });
  const choices = el("fieldset", {}, el("legend", {}, "Why?"), ...REASONS.map(choice));
  const form = el(
    "form",
    { method: "dialog" },
    choices,
    el("label", { for: "skip-note" }, "Note (optional)"),
    note,
    el(
      "p",
      { class: "row" },
      el("button", { class: "primary" }, "Skip the task ", el("kbd", { "aria-hidden": "true" }, "Enter")),
      cancel(),
    ),
  );
  const dialog = el(
    "dialog",
    { "aria-labelledby": "skip-title" },
    el("h2", { id: "skip-title" }, "Skip this task"),
    form,
  );
  form.addEventListener("submit", () =>
    skipped({ kind: "skip", reason: form.elements.reason.value, note: note.value }),
  );
  dialog.addEventListener("keydown", (event) => pressed(event, form));
  document.body.append(dialog);
  return () => {
    form.reset();
    dialog.showModal();
  };
}

function choice([value, words], at) {
  const radio = el("input", { type: "radio", name: "reason", value, checked: at === 0, autofocus: at === 0 });
  return el("label", { class: "choice" }, radio, el("kbd", { "aria-hidden": "true" }, String(at + 1)), words);
}

function cancel() {
  return el(
    "button",
    { type: "button", class: "quiet", onclick: (event) => event.target.closest("dialog").close() },
    "Cancel",
  );
}

function pressed(event, form) {
  const radio = event.target.matches("textarea") ? null : form.elements.reason[event.key - 1];
  if (radio) radio.checked = true;
  radio?.focus();
}
