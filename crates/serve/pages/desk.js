// One labeler's work on one kind of task: get the next, hand in an answer, take the last one back. A task that was
// begun, and an answer that did not arrive, survive a reload of the page and the death of the server.

import { newKey, post } from "./api.js";
import { attempt, calm, complain, say, sentence } from "./common.js";
import { Outbox, Stopwatch, Store } from "./drafts.js";
import { el } from "./text.js";

/** `fresh(task)` is the draft of a task that nobody has begun; `show(task, draft)` shows both. With no task left the
 *  task is `null`, and the draft too where `fresh` has none for that. `hold(held)` keeps people from changing what is
 *  on its way. */
export class Desk {
  #busy = false;
  #failed = false;
  #renewal = 0;
  /** Whether a person has done anything since the lease was renewed. */
  #awake = true;

  constructor(kind, { labeler }, { fresh, show, hold }) {
    Object.assign(this, { kind, fresh, show, hold, task: null, draft: null });
    this.store = new Store(`instruct:${labeler}:${kind}:`);
    this.outbox = new Outbox(this.store);
    this.watch = new Stopwatch();
    addEventListener("pagehide", () => this.save());
    for (const sign of ["keydown", "pointerdown", "wheel"]) {
      addEventListener(sign, () => (this.#awake = true), { passive: true });
    }
  }

  /** Whether people can work: nothing is on its way, and the server answered last time. */
  get ready() {
    return this.draft !== null && !this.#busy && !this.#failed;
  }

  /** Sends what waits, then shows the next task. It is also how to try again. */
  async open() {
    if (this.#busy) return;
    this.#busy = true;
    this.hold(true);
    const advice = "What you did is kept in this browser; Enter tries again.";
    this.#failed = !(await attempt(() => this.#goOn(), { again: () => this.open(), advice }));
    this.#busy = false;
    this.hold(this.#failed);
  }

  /** Keeps the draft; a page calls it after every change. */
  save() {
    if (this.draft === null) return;
    this.draft.seconds = this.watch.seconds;
    this.store.set(draftOf(this.task), { seen: seen(this.task), draft: this.draft });
  }

  /** Hands in the answer to this task under the draft's key, and goes on to the next. */
  submit(answer) {
    if (!this.ready) return;
    this.save();
    const body = { key: this.draft.key, ...answer, seconds: this.draft.seconds };
    this.store.set("last", { key: body.key, name: draftOf(this.task), kept: this.store.get(draftOf(this.task)) });
    this.outbox.add("/api/feedback", body);
    this.open();
  }

  /** Takes the last answer back. Its draft, with a key of its own, is there again when its task comes. */
  undo() {
    if (this.#busy || this.#failed) return;
    const last = this.store.get("last");
    if (last === null) return say("There is nothing to take back.");
    this.save();
    this.store.remove("last");
    this.#keep(last.name, last.kept);
    this.outbox.add("/api/retract", { key: newKey(), retracts: last.key });
    this.open();
  }

  async #goOn() {
    const [first] = this.outbox.waiting;
    const refusal = first ? await this.#send(first) : null;
    const next = await post("/api/task/next", { kind: this.kind });
    calm();
    if (refusal) complain(refusal);
    this.#begin(next);
  }

  /** Sends what waits; returns the words of a final refusal. The server then says by the next task whether this one is
   *  still ours. */
  async #send({ path, body }) {
    const name = draftOf(body);
    try {
      await this.outbox.flush();
    } catch (error) {
      if (!error.final) throw error;
      if (path === "/api/feedback") this.#keep(name, this.store.get(name));
      this.store.remove("last");
      return sentence(error);
    }
    if (path === "/api/feedback") this.store.remove(name);
    say(path === "/api/feedback" ? "Saved; z takes it back." : "Taken back; its task comes again.");
    return null;
  }

  /** Keeps a draft under a new key: the old one names what this or another window has sent. */
  #keep(name, kept) {
    if (kept) this.store.set(name, { ...kept, draft: { ...kept.draft, key: newKey() } });
  }

  #begin(next) {
    this.task = next.task === null ? null : next;
    this.draft = this.#kept() ?? this.#fresh();
    this.watch = new Stopwatch(this.draft?.seconds);
    showProgress(next);
    // First, because what is held cannot take the focus.
    this.hold(false);
    this.show(this.task, this.draft);
    this.#renewLater(next);
  }

  /** The draft of this task, if it is one of the same texts: another run may use the same name. */
  #kept() {
    const kept = this.store.get(draftOf(this.task));
    return kept?.seen === seen(this.task) ? kept.draft : null;
  }

  #fresh() {
    const draft = this.fresh(this.task);
    return draft && { ...draft, key: newKey(), seconds: 0 };
  }

  /** A lease is renewed by asking again, halfway through, so that long thought loses no task. A window that was left
   *  open holds none back: without a sign of life its lease ends. */
  #renewLater(next) {
    clearTimeout(this.#renewal);
    if (next.task === null) return;
    this.#renewal = setTimeout(() => this.#renew(next), next.lease * 500);
  }

  async #renew(next) {
    if (this.#awake) await post("/api/task/next", { kind: this.kind }).catch(() => null);
    this.#awake = false;
    if (this.task === next) this.#renewLater(next);
  }
}

/** The name under which the draft of a task, or of an answer to it, is kept. */
function draftOf(taskOrBody) {
  return `draft:${taskOrBody?.task ?? "own"}`;
}

function seen(task) {
  return JSON.stringify([task?.messages, task?.completions]);
}

function showProgress({ done, left }) {
  const bar = el("progress", { value: done, max: Math.max(1, done + left), "aria-label": "Tasks done" });
  document.getElementById("progress").replaceChildren(bar, `${done} done, ${left} left`);
}
