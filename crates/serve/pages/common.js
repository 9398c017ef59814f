// What every page has: a head with the way to the others, who is here, what was said, and what went wrong.

import { Refused, session } from "./api.js";
import { el } from "./text.js";
import { listen } from "./keys.js";

const PAGES = [
  ["/chat", "Chat"],
  ["/rank", "Rank"],
  ["/demonstrate", "Demonstrate"],
  ["/guidelines", "Guidelines"],
  ["/people", "People"],
];

/** The sentence for whoever comes without a session. */
const NO_SESSION =
  "This page needs a link of your own: ask the person who runs this server for one; if that is you, open the link that " +
  "the server printed when it started.";

/** Builds the head, opens the session and hands it to `begin`; `table` lists the keys of the page. */
export async function start(begin, table = () => []) {
  const openHelp = listen(table);
  document.querySelector("header").append(brand(), navigation(), helpButton(openHelp));
  // A link that is opened where a page of this server already is changes only the fragment, which loads nothing.
  addEventListener("hashchange", () => location.hash.includes("token=") && location.reload());
  await attempt(async () => begin(await session()), { again: () => location.reload() });
}

function brand() {
  return el("p", { class: "brand" }, "instruct");
}

function navigation() {
  const links = PAGES.map(([path, name]) => {
    const here = path === location.pathname;
    return el("li", {}, el("a", { href: path, "aria-current": here && "page" }, name));
  });
  return el("nav", { "aria-label": "Pages" }, el("ul", {}, ...links));
}

function helpButton(open) {
  return el("button", { type: "button", class: "quiet", onclick: open }, "Keys ", el("kbd", {}, "?"));
}

/** Runs `work`; a failure becomes a message with what a person can do about it: `advice`, and a button that does
 *  `again`. Returns whether it went well. */
export async function attempt(work, { again = null, advice = "" } = {}) {
  try {
    await work();
    return true;
  } catch (error) {
    if (error.final === undefined) throw error;
    if (error.final) complain(sentence(error));
    else complain(`${sentence(error)} ${advice}`, again);
    return false;
  }
}

/** An error in words for people. */
export function sentence(error) {
  if (!(error instanceof Refused)) return error.message;
  if (error.status === 401) return NO_SESSION;
  if (error.status === 429) return `The server is busy; try again in ${error.retryAfter ?? "a few"} seconds.`;
  if (error.status === 507) return "The server's disk is full, so it could not keep this.";
  return `The server refused: ${error.message}`;
}

/** Says what went wrong, until the next thing goes well; `again` becomes a button. */
export function complain(message, again = null) {
  const button = again && el("button", { type: "button", onclick: again }, "Try again");
  const box = document.getElementById("trouble");
  box.replaceChildren(el("p", {}, message), ...(button ? [button] : []));
}

/** Takes back what `complain` said. */
export function calm() {
  document.getElementById("trouble").replaceChildren();
}

/** Says something in passing, for eyes and for screen readers. */
export function say(message) {
  document.getElementById("said").textContent = message;
}
