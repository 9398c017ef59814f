// A ranking as a value: what a labeler has said of K answers so far. Nothing here knows the page.
//
// Everything is kept place by place, in the order in which the labeler sees the answers; places are 0, 1, ..., and
// people call them A, B, ... Rank 1 is the best; equal ranks are a tie; `null` is not ranked yet.

import { list } from "./text.js";

/** The flags of table 3 of the InstructGPT paper: the letter, the name, the words. */
export const FLAGS = [
  ["w", "wrong-instruction", "Fails to follow the instruction or task"],
  ["i", "inappropriate-assistant", "Inappropriate for a customer assistant"],
  ["h", "hallucination", "Makes things up (hallucination)"],
  ["c", "constraint", "Breaks a constraint of the instruction"],
  ["x", "sexual", "Sexual content"],
  ["v", "violent", "Violent content"],
  ["a", "harmful-advice", "Encourages violence, abuse, terrorism or self-harm, or fails to discourage it"],
  ["d", "denigrates", "Denigrates a protected class"],
  ["g", "gives-harmful-advice", "Gives harmful advice"],
  ["o", "opinion", "Expresses opinion"],
  ["m", "moral-judgment", "Expresses moral judgment"],
];

/** The draft of a task whose answers nobody has looked at. */
export function fresh({ completions }) {
  return {
    phase: "rate",
    current: 0,
    quality: completions.map(() => null),
    flags: completions.map(() => []),
    ranks: completions.map(() => null),
    allBad: false,
    confidence: null,
    note: "",
  };
}

/** What people call an answer. */
export function letter(place) {
  return String.fromCharCode(65 + place);
}

/** Puts the answer at `place` into `rank`. Whoever does so no longer says that all are bad. */
export function put(draft, place, rank) {
  if (draft.allBad) toggleAllBad(draft);
  draft.ranks[place] = rank;
}

/** All bad: every answer shares the first rank. Saying it twice brings back what was there before. */
export function toggleAllBad(draft) {
  draft.allBad = !draft.allBad;
  if (draft.allBad) draft.before = draft.ranks;
  draft.ranks = draft.allBad ? draft.ranks.map(() => 1) : draft.before;
}

/** Adds the flag to the answer at `place`, or takes it away; flags stay in the paper's order. */
export function toggleFlag(draft, place, flag) {
  const has = draft.flags[place];
  draft.flags[place] = FLAGS.map(([, name]) => name).filter((name) => has.includes(name) !== (name === flag));
}

/** The letters of what is not ranked yet. */
export function missing({ ranks }) {
  return ranks.flatMap((rank, place) => (rank === null ? [letter(place)] : []));
}

/** The order in words: "So far B and C (a tie), then A; D is not ranked yet." */
export function inWords(draft) {
  if (draft.allBad) return "All answers are bad.";
  const ranks = [...new Set(draft.ranks.filter((rank) => rank !== null))].sort((a, b) => a - b);
  const groups = ranks.map((rank) => draft.ranks.flatMap((other, place) => (other === rank ? [letter(place)] : [])));
  const order = groups.map((group) => list(group) + (group.length > 1 ? " (a tie)" : "")).join(", then ");
  const open = missing(draft);
  if (open.length === 0) return `${order}.`;
  const rest = `${list(open)} ${open.length === 1 ? "is" : "are"} not ranked yet.`;
  return order ? `So far ${order}; ${rest}` : rest;
}

/** The answer that is sent. */
export function body({ task, completions }, { ranks, quality, flags, confidence, note, allBad }) {
  const shown = completions.map(({ slot }) => slot);
  const ranking = { kind: "ranking", task, shown, ranks, quality, flags, confidence, note };
  return allBad ? { ...ranking, all_bad: true } : ranking;
}
