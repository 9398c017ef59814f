// Two new answers side by side, neither of them known before, and a person who says which is better.

import { Stopwatch } from "./drafts.js";
import { action } from "./fields.js";
import { el, fill, passage } from "./text.js";

/** Shows two answers in `place` while they come. `choose("left" | "right" | "tie" | "bad" | "keep")` gets the choice. */
export class Comparison {
  texts = ["", ""];
  names = [];
  isWhole = false;
  #watch = new Stopwatch();

  constructor(place, choose) {
    Object.assign(this, { place, choose });
    this.passages = [passage("…"), passage("…")];
    const side = (name, at) => el("article", { class: "card" }, el("h3", {}, name), this.passages[at]);
    this.title = el("h2", { id: "pair-title", tabindex: "-1" }, "Which answer is better?");
    this.buttons = el("p", { class: "row" }, ...this.#buttons());
    const sides = el("div", { class: "cards two" }, side("Left", 0), side("Right", 1));
    place.replaceChildren(this.title, sides, this.buttons);
    place.hidden = false;
  }

  #buttons() {
    const button = (words, key, choice, kind) =>
      action(words, key, () => this.choose(choice), { class: kind, disabled: true });
    return [
      button("Left", "ArrowLeft", "left", "primary"),
      button("Right", "ArrowRight", "right", "primary"),
      button("Tie", "=", "tie", ""),
      button("Both bad", "0", "bad", ""),
      button("Keep the earlier answer", "Escape", "keep", "quiet"),
    ];
  }

  get seconds() {
    return this.#watch.seconds;
  }

  add(index, text) {
    this.texts[index] += text;
    fill(this.passages[index], this.texts[index]);
  }

  /** Both answers are there; now a choice means something. */
  finish() {
    this.isWhole = true;
    this.texts.forEach((text, index) => fill(this.passages[index], text));
    for (const button of this.buttons.children) button.disabled = false;
    this.title.focus();
  }

  close() {
    this.place.hidden = true;
    this.place.replaceChildren();
  }
}
