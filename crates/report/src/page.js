"use strict";
// A line that follows the pointer, or the arrow keys, and the values of every curve beside it.
for (const plot of document.querySelectorAll("svg[data-plot]")) {
  const [left, right, low, high] = plot.dataset.plot.split(" ").map(Number);
  const curves = [...plot.querySelectorAll("[data-x]")].map((group) => ({
    name: group.dataset.name,
    steps: group.dataset.x.split(","),
    values: group.dataset.y.split(","),
  }));
  const steps = [...new Set(curves.flatMap((curve) => curve.steps))].map(Number).sort((a, b) => a - b);
  const cross = plot.querySelector(".cross");
  const readout = document.createElement("output");
  readout.className = "readout";
  plot.after(readout);
  let place = -1;

  const nearest = (list, step) =>
    list.reduce((best, other, i) => (Math.abs(other - step) < Math.abs(list[best] - step) ? i : best), 0);

  const show = (to) => {
    place = Math.min(Math.max(to, 0), steps.length - 1);
    const step = steps[place];
    const x = left + ((right - left) * (step - low)) / (high - low);
    cross.setAttribute("x1", x);
    cross.setAttribute("x2", x);
    cross.setAttribute("visibility", "visible");
    const said = curves.map((curve) => {
      const at = nearest(curve.steps, step);
      const where = Number(curve.steps[at]) === step ? "" : ` (at ${curve.steps[at]})`;
      return `${curve.name} ${curve.values[at]}${where}`;
    });
    readout.textContent = `${plot.dataset.of} ${step}: ${said.join(", ")}`;
  };

  const hide = () => {
    cross.setAttribute("visibility", "hidden");
    readout.textContent = "";
    place = -1;
  };

  const point = (event) => {
    const box = plot.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * plot.viewBox.baseVal.width;
    show(nearest(steps, low + ((high - low) * (x - left)) / (right - left)));
  };

  const keys = { ArrowLeft: () => place - 1, ArrowRight: () => place + 1, Home: () => 0, End: () => steps.length - 1 };
  plot.tabIndex = 0;
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    if (!(event.key in keys)) return;
    show(keys[event.key]());
    event.preventDefault();
  });
}
document.querySelectorAll(".hint").forEach((hint) => (hint.hidden = false));

// Only a table that is wider than its place is a stop of the Tab key.
const stops = () => {
  for (const box of document.querySelectorAll(".scroll")) {
    if (box.clientWidth === 0) continue;
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
};
stops();
addEventListener("resize", stops);
document.addEventListener("toggle", stops, true);
