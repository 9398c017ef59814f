// The second phase of ranking: all answers in an order, in which ties are welcome. The answers stay where they are, so
// that nobody loses their place in a text; only the chips on the board move.

import { board } from "./board.js";
import { say } from "./common.js";
import { action, hint, scale, unseen, upTo } from "./fields.js";
import { Key } from "./keys.js";
import { FLAGS, body, inWords, letter, missing, put, toggleAllBad } from "./ranking.js";
import { mark } from "./rate.js";
import { el, list, passage } from "./text.js";

/** Shows all answers and the board; `go(phase, place)` leads back. */
export class Order {
  constructor(desk, go) {
    Object.assign(this, { desk, go, draft: desk.draft, completions: desk.task.completions });
    this.title = el("h2", { id: "order-title", tabindex: "-1" }, "All answers");
    const byKeys = ["; a digit ranks the marked answer, ", hint("j"), " goes on, ", hint("k"), " back"];
    const keys = el("span", { class: "by-keys", "aria-hidden": "true" }, ...byKeys);
    this.title.append(el("small", {}, "1 is the best; equal ranks are a tie", keys));
    this.cards = this.completions.map((completion, place) => this.#card(completion, place));
    this.words = el("p", { class: "order", "aria-live": "polite" });
    this.board = board(this.completions.length, {
      put: (place, rank) => this.#put(place, rank),
      choose: (place) => this.#choose(place),
    });
    this.allBad = action("All bad", "b", () => this.#toggleAllBad());
    this.element = this.#answers();
    this.side = this.#side();
    this.actions = [
      action("Submit", "Enter", () => this.#submit(), { class: "primary" }),
      this.allBad,
      action("Back", "Backspace", () => this.#back()),
    ];
    this.#update();
  }

  get keys() {
    const digits = ["1", "2", "3", "4", "5", "6", "7", "8", "9"];
    const rank = (key) => this.#put(this.draft.current, Number(key));
    return [
      new Key(["j"], "Next answer", () => this.#move(1), { repeats: true }),
      new Key(["k"], "Answer before", () => this.#move(-1), { repeats: true }),
      new Key(digits, "Put the answer into a rank; equal ranks are a tie", rank, {
        shown: `1 – ${this.completions.length}`,
      }),
      new Key(["b"], "All are bad", () => this.#toggleAllBad()),
      new Key(["y"], "How sure you are: from 1 to 5, then not said", () => this.#confide()),
      new Key(["n"], "Write a note", () => this.note.focus()),
      new Key(["Escape"], "Leave the note", () => this.#choose(this.draft.current), { typing: true }),
      new Key(["Enter"], "Submit", () => this.#submit()),
      new Key(["Backspace"], "Back to the answers one by one", () => this.#back()),
    ];
  }

  #answers() {
    const cards = el("div", { class: "cards" }, ...this.cards);
    return el("section", { "aria-labelledby": "order-title" }, this.title, cards);
  }

  #side() {
    const title = el("h2", { id: "board-title" }, "Order");
    const parts = [title, this.board.element, this.words, this.#confidence(), this.#note()];
    return el("section", { class: "board", "aria-labelledby": "board-title" }, ...parts);
  }

  #card(completion, place) {
    const id = `card-title-${place}`;
    const title = el("h3", { id }, `Answer ${letter(place)}`, el("small", {}, judged(this.draft, place)));
    const legend = ["Rank", unseen(` of answer ${letter(place)}`)];
    const ranks = scale({ name: `rank-${place}`, legend, values: upTo(this.completions.length) }, (value) =>
      this.#put(place, Number(value)),
    );
    const about = { class: "card", tabindex: "-1", "aria-labelledby": id, onfocusin: () => this.#look(place) };
    return el("article", about, title, ...mark(completion), passage(completion.text), ranks);
  }

  #confidence() {
    const about = {
      name: "confidence",
      legend: ["How sure are you? ", hint("y"), unseen("1 a guess, 5 certain")],
      values: [["", "–"], ...upTo(5)],
      chosen: String(this.draft.confidence ?? ""),
      ends: ["not said", "certain"],
    };
    return scale(about, (value) => this.#trust(value));
  }

  #note() {
    this.note = el("textarea", { id: "note", rows: "2", dir: "auto", oninput: () => this.#keepNote() });
    this.note.value = this.draft.note;
    return el("p", {}, el("label", { for: "note" }, "Note (optional) ", hint("n")), this.note);
  }

  /** Brings the screen up to the draft. */
  #update() {
    const { ranks, current, allBad } = this.draft;
    this.cards.forEach((card, place) => {
      card.setAttribute("aria-current", place === current);
      for (const radio of card.querySelectorAll("input")) radio.checked = Number(radio.value) === ranks[place];
    });
    this.board.update(this.draft);
    this.allBad.setAttribute("aria-pressed", allBad);
    const words = inWords(this.draft);
    // The same words again would be read aloud again.
    if (this.words.textContent !== words) this.words.textContent = words;
  }

  /** Takes note of where a person is: the focus is there already. */
  #look(place) {
    this.draft.current = place;
    this.#update();
  }

  #choose(place) {
    this.cards[place].focus();
  }

  #move(by) {
    const { length } = this.completions;
    this.#choose((this.draft.current + by + length) % length);
  }

  #put(place, rank) {
    if (rank > this.completions.length) return say(`There are ${this.completions.length} ranks.`);
    this.draft.current = place;
    put(this.draft, place, rank);
    this.#changed();
  }

  #toggleAllBad() {
    toggleAllBad(this.draft);
    this.#changed();
  }

  #changed() {
    this.desk.save();
    say("");
    this.#update();
  }

  #trust(value) {
    this.draft.confidence = value === "" ? null : Number(value);
    this.desk.save();
    say(value === "" ? "How sure: not said." : `Sure: ${value} of 5.`);
  }

  /** From nothing said to 1, ..., 5, and to nothing again. */
  #confide() {
    const value = ((this.draft.confidence ?? 0) + 1) % 6;
    document.getElementById(`confidence-${value || ""}`).click();
  }

  #keepNote() {
    this.draft.note = this.note.value;
    this.desk.save();
  }

  #back() {
    this.go("rate", this.completions.length - 1);
  }

  #submit() {
    const open = missing(this.draft);
    if (open.length > 0) return say(`Not ranked yet: ${list(open)}.`);
    this.desk.submit(body(this.desk.task, this.draft));
  }
}

/** What a person said of the answer when it stood alone. */
function judged({ quality, flags }, place) {
  const words = flags[place].map((flag) => FLAGS.find(([, name]) => name === flag)[2]);
  return [quality[place] === null ? "no quality" : `quality ${quality[place]}`, ...words].join("; ");
}
