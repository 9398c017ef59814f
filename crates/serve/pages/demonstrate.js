// Writing what the best assistant would answer: to the prompt of a task, or to one's own where no task is left.

import { get } from "./api.js";
import { say, start } from "./common.js";
import { Desk } from "./desk.js";
import { action } from "./fields.js";
import { Key } from "./keys.js";
import { markdown } from "./markdown.js";
import { skipDialog } from "./skip.js";
import { conversation } from "./text.js";

const prompt = document.getElementById("own-prompt");
const answer = document.getElementById("answer");
const work = document.getElementById("work");
const actions = document.getElementById("actions");

let desk = null;
let openSkip = null;

start((session) => {
  desk = new Desk("demonstrate", session, { fresh: () => ({ prompt: "", text: "" }), show, hold });
  openSkip = skipDialog((reason) => desk.submit({ ...reason, task: desk.task.task }));
  for (const field of [prompt, answer]) field.addEventListener("input", keep);
  showGuidelines();
  return desk.open();
}, keys);

function keys() {
  const undo = new Key(["z"], "Take the last submission back", () => desk?.undo());
  if (!desk?.ready) return [new Key(["Enter"], "Try again", () => desk?.open()), undo];
  return [
    new Key(["Ctrl+Enter"], "Submit", submit, { typing: true }),
    new Key(["Escape"], "Leave the text, so that the other keys act", leave, { typing: true }),
    new Key(["i"], "Back into the text", () => answer.focus()),
    new Key(["g"], "Open or close the guidelines", toggleGuidelines),
    ...(desk.task ? [new Key(["s"], "Skip the task", openSkip)] : []),
    undo,
  ];
}

/** What is on its way cannot be changed: the same words must go out again when the answer of the server is lost. */
function hold(held) {
  work.inert = held;
  actions.inert = held;
}

function show(task, draft) {
  work.hidden = false;
  document.getElementById("own").hidden = task !== null;
  document.getElementById("prompt").replaceChildren(...conversation(task?.messages ?? []));
  prompt.value = draft.prompt;
  answer.value = draft.text;
  const submitting = action("Submit", "Ctrl+Enter", submit, { class: "primary" });
  const skip = action("Skip", "s", openSkip, { class: "quiet" });
  const undo = action("Undo", "z", () => desk.undo(), { class: "quiet" });
  actions.replaceChildren(...(task ? [submitting, skip, undo] : [submitting, undo]));
  (task ? answer : prompt).focus();
}

function keep() {
  Object.assign(desk.draft, { prompt: prompt.value, text: answer.value });
  desk.save();
}

function leave() {
  document.getElementById("prompt-title").focus();
}

function submit() {
  const { task, draft } = desk;
  if (task === null && draft.prompt.trim() === "") return ask(prompt, "The prompt is empty.");
  if (draft.text.trim() === "") return ask(answer, "The answer is empty.");
  const about = task ? { task: task.task } : { messages: [{ role: "user", content: draft.prompt }] };
  desk.submit({ kind: "demonstration", ...about, text: draft.text });
}

function ask(field, words) {
  field.focus();
  say(words);
}

/** The guidelines are at hand, and open where there is room beside the text. A page without them is of use still. */
async function showGuidelines() {
  const { markdown: text } = await get("/api/guidelines").catch(() => ({ markdown: "" }));
  const shown = markdown(text || "This run has no guidelines.");
  document.querySelector("#guidelines .markdown").replaceChildren(...shown);
  document.getElementById("guidelines").open = matchMedia("(min-width: 60rem)").matches;
}

function toggleGuidelines() {
  document.getElementById("guidelines-title").click();
}
