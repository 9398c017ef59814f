// What a page remembers: drafts, and submissions that have not arrived. All of it stays in this browser.

import { post } from "./api.js";

/** Values under names, as JSON, in `localStorage` or `sessionStorage`. Where the browser keeps nothing (a private
 *  window, a full disk) they last as long as the page. */
export class Store {
  #memory = new Map();

  constructor(prefix, area = localStorage) {
    this.prefix = prefix;
    this.area = area;
  }

  get(name) {
    const text = this.#memory.get(name) ?? this.area.getItem(this.prefix + name);
    return text == null ? null : JSON.parse(text);
  }

  set(name, value) {
    const text = JSON.stringify(value);
    try {
      this.area.setItem(this.prefix + name, text);
      this.#memory.delete(name);
    } catch {
      this.#memory.set(name, text);
    }
  }

  remove(name) {
    this.#memory.delete(name);
    this.area.removeItem(this.prefix + name);
  }
}

/** Submissions on their way, first in, first out. Each stays until the server has said yes, or a no that is final; so
 *  one that is lost on the way, or whose answer is, goes out again under its own key, and is saved once. */
export class Outbox {
  #flushing = null;

  constructor(store) {
    this.store = store;
  }

  get waiting() {
    return this.store.get("outbox") ?? [];
  }

  add(path, body) {
    this.store.set("outbox", [...this.waiting, { path, body }]);
  }

  /** Sends what waits; throws what `post` throws. Calls while one runs share it. */
  flush() {
    this.#flushing ??= this.#sendAll().finally(() => (this.#flushing = null));
    return this.#flushing;
  }

  async #sendAll() {
    for (let [first] = this.waiting; first; [first] = this.waiting) {
      try {
        await post(first.path, first.body);
      } catch (error) {
        if (error.final) this.#drop(first);
        throw error;
      }
      this.#drop(first);
    }
  }

  #drop({ body }) {
    this.store.set(
      "outbox",
      this.waiting.filter((item) => item.body.key !== body.key),
    );
  }
}

/** Seconds in which this page has been looked at: a tab in the background is not work. */
let attention = 0;
let since = null;
document.addEventListener("visibilitychange", look);
look();

function look() {
  if (since !== null) attention += (performance.now() - since) / 1000;
  since = document.hidden ? null : performance.now();
}

/** Counts seconds of attention, from `seconds` on. */
export class Stopwatch {
  constructor(seconds = 0) {
    look();
    this.start = attention - seconds;
  }

  get seconds() {
    look();
    return Math.round(attention - this.start);
  }
}
