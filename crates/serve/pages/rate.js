// The first phase of ranking: one answer alone, how good it is and what is wrong with it.

import { say } from "./common.js";
import { action, hint, scale, unseen, upTo } from "./fields.js";
import { Key } from "./keys.js";
import { FLAGS, letter, toggleFlag } from "./ranking.js";
import { count, el, passage } from "./text.js";

/** Says that an answer names its model, because that sways people. */
export function mark({ names_model: named }) {
  const words = "This answer seems to name its model. Judge the answer, not the name.";
  return named ? [el("p", { class: "mark" }, words)] : [];
}

/** Shows the answer at the draft's `current`; `go(phase, place)` leads on and back. */
export class Rate {
  /** Whether a person has been told that the quality is missing. */
  #warned = false;

  constructor(desk, go) {
    Object.assign(this, { desk, go, draft: desk.draft, place: desk.draft.current });
    this.title = el("h2", { id: "answer-title", tabindex: "-1" }, `Answer ${letter(this.place)}`);
    this.element = this.#answer();
    this.side = this.#judgement();
    this.actions = this.#actions();
  }

  get keys() {
    const flags = FLAGS.map(([key, , words]) => new Key([key], words, () => press(`flag-${key}`)));
    return [
      new Key(["1", "2", "3", "4", "5", "6", "7"], "Quality, 7 the best", (key) => press(`quality-${key}`), {
        shown: "1 – 7",
      }),
      ...flags,
      new Key(["Enter"], "Next", () => this.#next()),
      new Key(["Backspace"], "Back", () => this.#back()),
    ];
  }

  get #isLast() {
    return this.place + 1 === this.desk.task.completions.length;
  }

  #answer() {
    const { completions } = this.desk.task;
    const completion = completions[this.place];
    this.title.append(el("small", {}, `${this.place + 1} of ${completions.length}`));
    const parts = [this.title, ...mark(completion), passage(completion.text)];
    return el("section", { class: "answer", "aria-labelledby": "answer-title" }, ...parts);
  }

  #judgement() {
    const quality = {
      name: "quality",
      legend: ["Overall quality", unseen(", 1 the worst, 7 the best")],
      values: upTo(7),
      chosen: String(this.draft.quality[this.place]),
      ends: ["worst", "best"],
    };
    return el(
      "div",
      { class: "judgement" },
      scale(quality, (value) => this.#rate(Number(value))),
      this.#flags(),
    );
  }

  #flags() {
    const boxes = FLAGS.map(([key, name, words]) => {
      const box = el("input", { type: "checkbox", id: `flag-${key}`, onchange: () => this.#flag(name) });
      box.checked = this.draft.flags[this.place].includes(name);
      return el("label", { class: "choice" }, box, hint(key), el("span", {}, words));
    });
    return el("fieldset", { class: "flags" }, el("legend", {}, "What is wrong with it"), ...boxes);
  }

  #actions() {
    const next = action(this.#isLast ? "To the order" : "Next", "Enter", () => this.#next(), { class: "primary" });
    return this.place === 0 ? [next] : [next, action("Back", "Backspace", () => this.#back())];
  }

  #rate(value) {
    this.draft.quality[this.place] = value;
    this.desk.save();
    say(`Quality ${value}.`);
  }

  #flag(name) {
    toggleFlag(this.draft, this.place, name);
    this.desk.save();
    const raised = this.draft.flags[this.place].length;
    say(raised === 0 ? "No flags." : `${count(raised, "flag")}.`);
  }

  /** A missing quality is asked for once: so the second Enter of a hasty pair passes over nothing. */
  #next() {
    if (this.draft.quality[this.place] === null && !this.#warned) {
      this.#warned = true;
      say("No quality yet: 1 to 7, or Enter again to go on without.");
    } else if (this.#isLast) {
      this.go("order", 0);
    } else {
      this.go("rate", this.place + 1);
    }
  }

  #back() {
    if (this.place > 0) this.go("rate", this.place - 1);
  }
}

/** Keys do what a click does, so that there is one way to change a draft. */
function press(id) {
  document.getElementById(id).click();
}
