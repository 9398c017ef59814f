// A conversation with the model: ask, stop, ask again, and say what is good, bad or better. The conversation stays in
// this tab; what people say of its answers goes to the server, if answers are kept.

import { attempt, calm, say, start } from "./common.js";
import { Comparison } from "./comparison.js";
import { Stopwatch, Store } from "./drafts.js";
import { Feedback } from "./feedback.js";
import { Key } from "./keys.js";
import { stream } from "./stream.js";
import { editor, turnView } from "./turn.js";
import { fill } from "./text.js";

const list = document.getElementById("turns");
const composer = document.getElementById("composer");
const message = document.getElementById("message");

let model = null;
let store = null;
let feedback = null;
/** `{ role, content }`, and of an answer its name, its thumb and what became of it. */
let turns = [];
/** The turns of the chat before a new one was begun. */
let before = null;
/** The place of the turn that the keys are about. */
let current = -1;
/** Ends the answer that is being written; `null` when none is. */
let abort = null;
let comparison = null;
/** The edit that is open: its turn, its field and its watch. */
let editing = null;

start((session) => {
  model = session.model;
  store = new Store(`instruct:${session.labeler}:chat:`, sessionStorage);
  feedback = new Feedback(store, session.consent);
  turns = store.get("turns") ?? [];
  message.value = store.get("message") ?? "";
  showConsent(session.consent);
  listenToPage();
  if (turns.at(-1)?.stopped && turns.at(-1).content === "") takeBackMessage();
  paint();
  message.focus();
  return feedback.flush();
}, keys);

function showConsent(kept) {
  const banner = document.getElementById("consent");
  banner.textContent = kept
    ? "Answers here are kept, with what you say of them, to train the next model. Write nothing private."
    : "Nothing here is kept for training. Edits and choices stay in this tab.";
  banner.hidden = false;
}

function listenToPage() {
  composer.hidden = false;
  composer.addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  message.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!event.repeat) send();
  });
  document.getElementById("stop").addEventListener("click", stop);
  document.getElementById("new").addEventListener("click", newChat);
  addEventListener("pagehide", keep);
  list.addEventListener("focusin", ({ target }) => (current = [...list.children].indexOf(target.closest("li"))));
}

function keys() {
  if (abort) return [new Key(["Escape"], "Stop", stop, { typing: true })];
  if (comparison) return comparisonKeys();
  if (editing) return editingKeys();
  return [
    new Key([], "Send the message; with Shift, a new line", null, { shown: "Enter" }),
    new Key(["Escape"], "Leave the message, so that the other keys act", () => focusTurn(turns.length - 1), {
      typing: true,
    }),
    new Key(["i"], "Back to the message", () => message.focus()),
    new Key(["j"], "Next turn", () => focusTurn(current + 1), { repeats: true }),
    new Key(["k"], "Turn before", () => focusTurn(current - 1), { repeats: true }),
    ...(feedback?.kept
      ? [
          new Key(["u"], "The answer is good; again takes it back", () => onAnswer((turn) => thumb(turn, true))),
          new Key(["d"], "The answer is bad; again takes it back", () => onAnswer((turn) => thumb(turn, false))),
        ]
      : []),
    new Key(["e"], "Edit the answer", () => onAnswer(edit)),
    new Key(["r"], "Regenerate the last answer", regenerate),
    new Key(["n"], "New chat", newChat),
    new Key(["z"], "Bring the chat before back", bringBack),
  ];
}

function comparisonKeys() {
  return [
    new Key(["ArrowLeft"], "Left is better", () => choose("left")),
    new Key(["ArrowRight"], "Right is better", () => choose("right")),
    new Key(["="], "A tie; the left one goes on", () => choose("tie")),
    new Key(["0"], "Both are bad; the earlier answer stays", () => choose("bad")),
    new Key(["Escape"], "Say nothing; the earlier answer stays", () => choose("keep")),
  ];
}

function editingKeys() {
  return [
    new Key(["Ctrl+Enter"], "Save the edit", () => saveEdit(editing.field.value), { typing: true }),
    new Key(["Escape"], "Leave the edit; its text is kept", () => leaveEdit(editing.field.value), { typing: true }),
  ];
}

// The list of turns.

function paint() {
  const held = list.contains(document.activeElement);
  list.replaceChildren(...turns.map(view));
  document.getElementById("new").hidden = turns.length === 0;
  keep();
  if (held) focusTurn(current);
}

/** A reload of the page finds the conversation, and what was not sent yet. */
function keep() {
  store.set("turns", turns);
  store.set("message", message.value);
}

function view(turn, place) {
  const isLast = place === turns.length - 1;
  const canJudge = feedback.kept && turn.answer && !turn.edited;
  const acts = { thumb: canJudge && thumb, edit, again: isLast && regenerate };
  return turnView(turn, model, acts);
}

function focusTurn(place) {
  if (turns.length === 0) return document.getElementById("main").focus();
  current = Math.min(Math.max(place, 0), turns.length - 1);
  list.children[current].focus();
}

/** Does something with the answer that has the focus, or had it last, or else with the last one. */
function onAnswer(act) {
  const turn =
    turns[current]?.role === "assistant" ? turns[current] : turns.findLast(({ role }) => role === "assistant");
  if (!turn) return say("There is no answer yet.");
  current = turns.indexOf(turn);
  act(turn);
}

function newChat() {
  if (abort || turns.length === 0) return;
  [before, turns, current, editing] = [turns, [], -1, null];
  closeComparison();
  paint();
  message.focus();
  say("New chat. Esc, then z brings the one before back.");
}

function bringBack() {
  if (before === null || turns.length > 0) return say("There is no chat to bring back.");
  [turns, before] = [before, null];
  paint();
  focusTurn(turns.length - 1);
}

// Asking.

function send() {
  const content = message.value;
  if (content.trim() === "") return;
  if (isOccupied()) return;
  before = null;
  turns.push({ role: "user", content });
  message.value = "";
  answer();
}

function asked(upTo) {
  return turns.slice(0, upTo).map(({ role, content }) => ({ role, content }));
}

/** Streams an answer to the conversation. When not a word of it came, the message goes back into its field. */
async function answer() {
  const turn = { role: "assistant", content: "", stopped: true };
  const messages = asked(turns.length);
  turns.push(turn);
  current = turns.length - 1;
  paint();
  const block = list.lastChild.querySelector(".passage");
  fill(block, "…");
  const well = await generate(
    { messages, n: 1 },
    {
      onText: (_, text) => {
        turn.content += text;
        following(() => fill(block, turn.content));
      },
      onNames: ([name]) => (turn.answer = name),
    },
  );
  turn.stopped = !well;
  if (!well && turn.content === "") takeBackMessage();
  following(paint);
}

function takeBackMessage() {
  turns.pop();
  const { content } = turns.pop();
  message.value ||= content;
  message.focus();
}

/** Streams one or two answers; returns whether they are whole. */
async function generate({ messages, n }, listener) {
  abort = new AbortController();
  offer();
  calm();
  say("Answering …");
  let stopped = false;
  const well = await attempt(() =>
    stream({ model, messages, n }, abort.signal, listener).catch((error) => {
      if (error.name !== "AbortError") throw error;
      stopped = true;
    }),
  );
  abort = null;
  offer();
  say(stopped ? "Stopped." : well ? "The answer is complete." : "");
  return well && !stopped;
}

/** There is nothing to send while an answer comes, and nothing to write while two wait for a choice or an edit is open. */
function offer() {
  document.getElementById("stop").hidden = abort === null;
  message.hidden = comparison !== null || editing !== null;
  composer.querySelector("[type=submit]").hidden = abort !== null || message.hidden;
  list.setAttribute("aria-busy", abort !== null);
}

function stop() {
  abort?.abort();
}

/** Whether an answer comes, two wait for a choice, or an edit is open: one thing at a time, or one would undo the other. */
function isOccupied() {
  const is = abort !== null || comparison !== null || editing !== null;
  if (is) say("First finish what is open.");
  return is;
}

/** Changes the page, and stays at its end if that is where the reader was. */
function following(change) {
  const page = document.documentElement;
  const wasAtEnd = page.scrollHeight - page.clientHeight - page.scrollTop < 120;
  change();
  if (wasAtEnd) page.scrollTop = page.scrollHeight;
}

// Two answers side by side.

async function regenerate() {
  if (isOccupied()) return;
  if (turns.length === 0) return say("There is no answer to regenerate.");
  const shown = new Comparison(document.getElementById("pair"), choose);
  comparison = shown;
  const well = await generate(
    { messages: asked(turns.length - 1), n: 2 },
    {
      onText: (index, text) => following(() => shown.add(index, text)),
      onNames: (names) => (shown.names = names),
    },
  );
  if (!well) return closeComparison();
  shown.finish();
  say("Both answers are complete: left, right, tie or both bad.");
}

function choose(choice) {
  if (!comparison?.isWhole) return;
  const { names, texts, seconds } = comparison;
  closeComparison();
  const chosen = { left: 0, tie: 0, right: 1 }[choice];
  if (chosen !== undefined)
    turns[turns.length - 1] = { role: "assistant", content: texts[chosen], answer: names[chosen] };
  paint();
  message.focus();
  say(chosen === undefined ? "The earlier answer stays." : "The chat goes on with this answer.");
  if (choice !== "keep") feedback.send({ kind: "pair", answers: names, choice, seconds });
}

function closeComparison() {
  comparison?.close();
  comparison = null;
  offer();
}

// What people say of one answer.

function thumb(turn, up) {
  if (isOccupied()) return;
  const { thumb: earlier = null } = turn;
  const event = { kind: "thumb", answer: turn.answer, up, note: "" };
  if (earlier?.up === up) {
    feedback.take(earlier.key);
    turn.thumb = null;
  } else {
    turn.thumb = { up, key: feedback.send(event, earlier?.key) };
  }
  paint();
}

function edit(turn) {
  if (isOccupied()) return;
  const box = editor(turn.draft ?? turn.content, saveEdit, leaveEdit);
  const view = list.children[turns.indexOf(turn)];
  view.querySelector(".passage").replaceWith(box);
  view.querySelector(".acts").hidden = true;
  editing = { turn, field: box.querySelector("textarea"), watch: new Stopwatch() };
  offer();
  editing.field.focus();
}

/** The edit takes the answer's place, and the conversation goes on with it. */
function saveEdit(text) {
  const { turn, watch } = editing;
  if (text.trim() === "") return say("An answer of nothing cannot be saved.");
  if (text === turn.content) return leaveEdit(text);
  Object.assign(turn, { content: text, edited: true, stopped: false, draft: undefined });
  const event = { kind: "edit", answer: turn.answer, text, seconds: watch.seconds };
  if (turn.answer) turn.edit = feedback.send(event, turn.edit);
  closeEdit(turn);
}

function leaveEdit(text) {
  const { turn } = editing;
  turn.draft = text === turn.content ? undefined : text;
  closeEdit(turn);
}

function closeEdit(turn) {
  editing = null;
  offer();
  current = turns.indexOf(turn);
  paint();
  focusTurn(current);
}
