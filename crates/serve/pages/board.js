// The board of ranks: one shelf for each, and one for what is not ranked yet. Each answer is a chip that can be dragged
// from shelf to shelf, by mouse, pen or finger.

import { el } from "./text.js";
import { letter } from "./ranking.js";

/** Pixels that a pointer may wander before a click is a drag. */
const SLACK = 5;

/** The board of `count` answers. `put(place, rank)` is told where a chip was let go, `choose(place)` which one was
 *  clicked; `update(draft)` puts every chip where it belongs. */
export function board(count, { put, choose }) {
  const places = Array.from({ length: count }, (_, place) => place);
  const shelves = [null, ...places.map((place) => place + 1)].map((rank) => shelf(rank, count));
  const chips = places.map((place) => chip(place, put, choose));
  const update = ({ ranks, current }) => {
    for (const place of places) {
      const home = shelves[ranks[place] ?? 0].querySelector(".chips");
      if (chips[place].parentNode !== home) home.append(chips[place]);
      const rank = ranks[place] === null ? "not ranked" : `rank ${ranks[place]}`;
      chips[place].setAttribute("aria-label", `Answer ${letter(place)}, ${rank}`);
      chips[place].setAttribute("aria-current", place === current);
    }
  };
  return { element: el("ol", { class: "shelves" }, ...shelves), update };
}

function shelf(rank, count) {
  return el(
    "li",
    { class: "shelf", "data-rank": rank ?? "" },
    el("span", { class: "name" }, shelfName(rank, count)),
    el("div", { class: "chips" }),
  );
}

function shelfName(rank, count) {
  if (rank === null) return "Not ranked";
  const ends = { 1: "1, the best", [count]: `${count}, the worst` };
  return ends[rank] ?? String(rank);
}

function chip(place, put, choose) {
  let dragged = false;
  // A browser ends a drag with a click on what was dragged; that one chooses nothing.
  const click = () => (dragged ? (dragged = false) : choose(place));
  const button = el("button", { type: "button", class: "chip", onclick: click }, letter(place));
  button.addEventListener("pointerdown", (down) => {
    dragged = false;
    if (down.button !== 0) return;
    follow(button, down, (shelf) => {
      dragged = true;
      if (shelf) put(place, shelf.dataset.rank === "" ? null : Number(shelf.dataset.rank));
    });
  });
  return button;
}

/** Lets the chip follow the pointer that went down on it. When it is let go after a drag, `drop` gets the shelf under
 *  it, or `null`. */
function follow(chip, down, drop) {
  const end = new AbortController();
  const listen = (name, act) => chip.addEventListener(name, act, { signal: end.signal });
  const isDragged = () => chip.classList.contains("dragged");
  const stop = () => {
    end.abort();
    mark(null);
    chip.style.translate = "";
    chip.classList.remove("dragged");
  };
  chip.setPointerCapture(down.pointerId);
  listen("pointermove", (move) => {
    const [x, y] = [move.clientX - down.clientX, move.clientY - down.clientY];
    if (Math.hypot(x, y) > SLACK) chip.classList.add("dragged");
    if (!isDragged()) return;
    // The one place where a script sets a style: no class can say where a finger is.
    chip.style.translate = `${x}px ${y}px`;
    mark(shelfAt(move));
  });
  listen("pointerup", (up) => {
    const [was, shelf] = [isDragged(), shelfAt(up)];
    stop();
    if (was) drop(shelf);
  });
  listen("pointercancel", stop);
}

/** The shelf under the pointer; the chip itself is no obstacle, because its class lets the pointer through. */
function shelfAt({ clientX, clientY }) {
  return document.elementFromPoint(clientX, clientY)?.closest(".shelf") ?? null;
}

function mark(target) {
  for (const shelf of document.querySelectorAll(".shelf")) shelf.classList.toggle("target", shelf === target);
}
