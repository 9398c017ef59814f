// Who did how much, how long it took, and how far people agree, each number with its uncertainty in words.

import { get } from "./api.js";
import { start } from "./common.js";
import { count, el, visible } from "./text.js";

const COLUMNS = [
  ["Rankings", ({ rankings }) => rankings],
  ["Side by side", ({ pairs }) => pairs],
  ["Thumbs", ({ thumbs }) => thumbs],
  ["Edits", ({ edits }) => edits],
  ["Demonstrations", ({ demonstrations }) => demonstrations],
  ["Skips", ({ skips }) => skips],
  ["Median time", ({ seconds_median: median }) => duration(median)],
];

/** What each measure of agreement says, whether it is a share, and from where to where it can lie. */
const MEASURES = [
  [
    "pairwise",
    "Pairwise agreement",
    "of the pairs that both people put into an order, they put the same one first",
    true,
    [0, 1],
  ],
  [
    "with_ties_half",
    "With ties",
    "the same over all pairs, where a tie that only one of them sees counts half",
    true,
    [0, 1],
  ],
  ["tau_b", "Kendall’s tau-b", "1 is the same order, 0 is chance, −1 the reverse", false, [-1, 1]],
  [
    "alpha",
    "Krippendorff’s alpha",
    "1 is full agreement, 0 is chance; 0.8 is usually asked of data to rely on",
    false,
    [-1, 1],
  ],
];

start(async ({ role }) => {
  const { tasks, labelers, agreement } = await get("/api/progress");
  showTasks(tasks);
  document.getElementById("table").replaceChildren(table(labelers, agreement));
  document.getElementById("export").hidden = role !== "admin";
  document.getElementById("measures").replaceChildren(...measures(agreement));
  for (const id of ["people", "agreement"]) document.getElementById(id).hidden = false;
});

function showTasks({ total, done, left }) {
  const bar = el("progress", { value: done, max: Math.max(1, total), "aria-label": "Tasks done" });
  const words = `${done} of ${count(total, "task")} done by all whom they wait for, ${left} left`;
  document.getElementById("progress").replaceChildren(bar, words);
}

/** On a phone each row becomes a block, which makes some browsers forget that it is a table: so the roles are said. */
function table(labelers, agreement) {
  const columns = agreement ? [...COLUMNS, ["Agreement", ({ id }) => own(agreement, id)]] : COLUMNS;
  const head = ["Person", ...columns.map(([name]) => name)].map((name) =>
    el("th", { role: "columnheader", scope: "col" }, name),
  );
  const rows = labelers.map((labeler) => row(labeler, columns));
  return el(
    "table",
    { role: "table", "aria-labelledby": "people-title" },
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...head)),
    el("tbody", { role: "rowgroup" }, ...rows),
  );
}

function row(labeler, columns) {
  const name = el("th", { role: "rowheader", scope: "row" }, ...visible(labeler.id));
  const cells = columns.map(([column, value]) =>
    el("td", { role: "cell", "data-column": column }, String(value(labeler))),
  );
  return el("tr", { role: "row" }, name, ...cells);
}

/** How far one person agrees with the others. */
function own({ labelers }, id) {
  const pairwise = labelers.find((labeler) => labeler.id === id)?.pairwise;
  return pairwise ? `${percent(pairwise.value)}${range(pairwise, percent)}` : "–";
}

function measures(agreement) {
  const none = "Nothing to say yet: agreement needs tasks that two people have ranked.";
  if (agreement === null) return [el("p", {}, none)];
  const basis = `From ${count(agreement.pairs, "pair")} of answers that two people compared. `;
  const intervals = "A range is a 95 % interval: how far a number may be off because only these prompts were compared.";
  return [
    el("p", {}, basis, intervals),
    el("dl", { class: "measures" }, ...MEASURES.map((about) => measure(agreement, about))),
    el("p", {}, `The labelers of the InstructGPT paper agreed on ${percent(agreement.paper)} of pairs.`),
  ];
}

function measure(agreement, [name, title, meaning, isShare, scale]) {
  const found = agreement[name] ?? null;
  const write = isShare ? percent : (value) => String(Math.round(value * 100) / 100).replace("-", "−");
  const words = found === null ? "not known yet" : `${write(found.value)}${range(found, write)}`;
  const paper = name === "pairwise" ? agreement.paper : null;
  const stroke = paper === null ? "" : `; the stroke is the paper’s ${percent(paper)}`;
  const ends = scale.map((end) => el("span", {}, isShare ? percent(end) : write(end)));
  const below = el("p", { class: "ends", "aria-hidden": "true" }, ...ends);
  const picture = found === null ? [] : [whisker(found, scale, paper), below];
  const shown = [el("strong", {}, words), ...picture];
  return el("div", {}, el("dt", {}, title), el("dd", {}, ...shown, el("p", { class: "hint" }, meaning, stroke)));
}

function range({ low, high }, write) {
  return low === null || high === null ? ", too few to say how sure" : `, probably ${write(low)} to ${write(high)}`;
}

function percent(share) {
  return `${Math.round(share * 1000) / 10} %`;
}

function duration(seconds) {
  if (seconds === null) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return `${Math.round(seconds / 60)} min`;
}

/** A dot on a line, with its interval; a stroke where the paper's number lies. The words beside it say the same. */
function whisker({ value, low, high }, [from, to], paper) {
  const x = (at) => 4 + (192 * (at - from)) / (to - from);
  const parts = [svg("line", { class: "axis", x1: x(from), x2: x(to), y1: 8, y2: 8 })];
  if (low !== null && high !== null)
    parts.push(svg("line", { class: "interval", x1: x(low), x2: x(high), y1: 8, y2: 8 }));
  if (paper !== null) parts.push(svg("line", { class: "paper", x1: x(paper), x2: x(paper), y1: 1, y2: 15 }));
  parts.push(svg("circle", { cx: x(value), cy: 8, r: 4 }));
  return svg("svg", { class: "whisker", viewBox: "0 0 200 16", "aria-hidden": "true" }, ...parts);
}

function svg(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
