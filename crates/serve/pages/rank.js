// Ranking answers in the two phases of figure 12 of the InstructGPT paper: first each answer alone, then all of them in
// an order. What a person does is kept with every key, so a reload goes on where it was.

import { say, start } from "./common.js";
import { Desk } from "./desk.js";
import { action } from "./fields.js";
import { Key } from "./keys.js";
import { Order } from "./order.js";
import { fresh } from "./ranking.js";
import { Rate } from "./rate.js";
import { skipDialog } from "./skip.js";
import { conversation } from "./text.js";

const PHASES = { rate: Rate, order: Order };
const work = document.getElementById("work");
const actions = document.getElementById("actions");

let desk = null;
let phase = null;
let openSkip = null;

start((session) => {
  desk = new Desk("rank", session, { fresh: (task) => task && fresh(task), show, hold });
  openSkip = skipDialog((answer) => desk.submit({ ...answer, task: desk.task.task }));
  document.getElementById("look-again").addEventListener("click", () => desk.open());
  return desk.open();
}, keys);

function keys() {
  const undo = new Key(["z"], "Take the last submission back", () => desk?.undo());
  if (!desk?.ready) return [new Key(["Enter"], "Try again", () => desk?.open()), undo];
  return [...phase.keys, new Key(["s"], "Skip the task", openSkip), undo];
}

/** What is on its way cannot be changed: the same words must go out again when the answer of the server is lost. */
function hold(held) {
  work.inert = held;
  actions.inert = held;
}

function show(task) {
  work.hidden = task === null;
  document.getElementById("nothing").hidden = task !== null;
  actions.replaceChildren(undoButton());
  if (task === null) return;
  document.getElementById("prompt").replaceChildren(...conversation(task.messages));
  paint();
  document.getElementById("prompt-title").focus();
}

function paint() {
  phase = new PHASES[desk.draft.phase](desk, go);
  document.getElementById("step").replaceChildren(phase.element);
  document.getElementById("side").replaceChildren(phase.side);
  const skip = action("Skip", "s", openSkip, { class: "quiet" });
  actions.replaceChildren(...phase.actions, skip, undoButton());
}

function undoButton() {
  return action("Undo", "z", () => desk.undo(), { class: "quiet" });
}

function go(name, current) {
  Object.assign(desk.draft, { phase: name, current });
  desk.save();
  say("");
  paint();
  phase.title.focus();
}
