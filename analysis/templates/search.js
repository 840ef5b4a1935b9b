"use strict";
// Plots follow the colour scheme of the page; on paper they are light. A trace's meta.colours says what to colour: by
// path, either [on a light page, on a dark one] or the name of one of the page's colours.
const dark = matchMedia("screen and (prefers-color-scheme: dark)");
// On a touch screen a drag scrolls the page, elsewhere it zooms (a double click shows all).
const dragmode = matchMedia("(hover: hover)").matches ? "zoom" : false;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const put = (object, path, value) => {
  const keys = path.split("."), last = keys.pop();
  let inner = object;
  for (const key of keys) inner = inner[key] ??= {};
  inner[last] = value;
};
const coloured = ({ data, layout }) => {
  for (const trace of data) {
    for (const [path, value] of Object.entries(trace.meta.colours)) {
      put(trace, path, typeof value === "string" ? colour(value) : value[dark.matches ? 1 : 0]);
    }
  }
  const axis = { gridcolor: colour("--line"), linecolor: colour("--muted"), tickcolor: colour("--muted") };
  for (const name of ["xaxis", "yaxis"]) Object.assign(layout[name] ??= {}, axis);
  layout.font.color = colour("--text");
  layout.hoverlabel = { bgcolor: colour("--soft"), bordercolor: colour("--line"), font: { color: colour("--text") } };
  layout.dragmode = dragmode;
  return [data, layout];
};
const draw = (source) => {
  source.dataset.drawn = "";
  const element = document.getElementById(source.dataset.plot);
  Plotly.react(element, ...coloured(JSON.parse(source.textContent)), { responsive: true, displayModeBar: false });
};
const sources = [...document.querySelectorAll("script[data-plot]")];
// A page may have hundreds of plots, so each is drawn when it comes near the screen, and all before printing.
const near = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((each) => each.isIntersecting)) {
    near.unobserve(entry.target);
    draw(document.querySelector(`script[data-plot="${entry.target.id}"]`));
  }
}, { rootMargin: "600px" });
for (const source of sources) near.observe(document.getElementById(source.dataset.plot));
dark.addEventListener("change", () => sources.filter((each) => "drawn" in each.dataset).forEach(draw));
addEventListener("beforeprint", () => sources.filter((each) => !("drawn" in each.dataset)).forEach(draw));
