// What a good answer is: the run's own words.

import { get } from "./api.js";
import { start } from "./common.js";
import { markdown } from "./markdown.js";

start(async () => {
  const { markdown: text } = await get("/api/guidelines");
  const shown = markdown(text || "This run has no guidelines.");
  document.getElementById("guidelines").replaceChildren(...shown);
});
