// What people say of the answers in a chat. Each event has a key; saying something else of the same answer takes the
// earlier event back first, so that one opinion counts once.

import { newKey } from "./api.js";
import { attempt, calm, say } from "./common.js";
import { Outbox } from "./drafts.js";

/** Feedback on the chat of this tab. Where answers are not kept nothing is sent, and `kept` says so. */
export class Feedback {
  constructor(store, kept) {
    this.kept = kept;
    this.outbox = new Outbox(store);
  }

  /** Sends an event in place of the one under the key `earlier`, if there was one. Returns its own key. */
  send(event, earlier = null) {
    if (!this.kept) return null;
    this.#retract(earlier);
    const key = newKey();
    this.outbox.add("/api/feedback", { key, ...event });
    this.flush();
    return key;
  }

  /** Takes an event back. */
  take(key) {
    this.#retract(key);
    this.flush();
  }

  #retract(earlier) {
    if (earlier) this.outbox.add("/api/retract", { key: newKey(), retracts: earlier });
  }

  /** Sends what waits; the chat goes on when that fails, and the next event tries again. */
  async flush() {
    if (this.outbox.waiting.length === 0) return;
    const advice = "What you said of the answers is kept in this tab.";
    const well = await attempt(() => this.outbox.flush(), { again: () => this.flush(), advice });
    if (well) calm();
    say(well ? "Saved." : "Not saved yet.");
  }
}
