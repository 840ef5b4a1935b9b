"use strict";
// Sort a leaderboard by a column: a click or Enter on its heading; again to reverse. Empty cells stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const key = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
  const compare = (a, b) => {
    const numeric = Number(a) - Number(b);
    return Number.isNaN(numeric) ? a.localeCompare(b, undefined, { numeric: true }) : numeric;
  };
  headings.forEach((heading, column) => heading.querySelector("button").addEventListener("click", () => {
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    headings.forEach((other) => other.setAttribute("aria-sort", "none"));
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const sign = ascending ? 1 : -1;
    const rows = [...table.tBodies[0].rows].sort((one, two) => {
      const a = key(one, column), b = key(two, column);
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * compare(a, b);
    });
    table.tBodies[0].append(...rows);
  }));
}

// Plots follow the colour scheme of the page; on paper they are light.
const dark = matchMedia("screen and (prefers-color-scheme: dark)");
const plots = [...document.querySelectorAll("script[data-plot]")].map((source) => ({
  element: document.getElementById(source.dataset.plot),
  figure: JSON.parse(source.textContent),
}));
// On a touch screen a drag scrolls the page, elsewhere it zooms (a double click shows all).
const dragmode = matchMedia("(hover: hover)").matches ? "zoom" : false;
const coloured = ({ data, layout }, isDark) => {
  const css = getComputedStyle(document.documentElement);
  const colour = (name) => css.getPropertyValue(name).trim();
  const axis = { gridcolor: colour("--line"), linecolor: colour("--muted"), tickcolor: colour("--muted") };
  const traces = data.map((trace) => {
    const line = isDark ? trace.meta.dark : trace.meta.light;
    return { ...trace, line: { ...trace.line, color: line }, fillcolor: line + "2b" };
  });
  const hover = { bgcolor: colour("--soft"), bordercolor: colour("--line"), font: { color: colour("--text") } };
  return [traces, {
    ...layout,
    dragmode,
    font: { ...layout.font, color: colour("--text") },
    hoverlabel: hover,
    xaxis: { ...layout.xaxis, ...axis },
    yaxis: { ...layout.yaxis, ...axis },
  }];
};
const draw = (isDark) => {
  for (const { element, figure } of plots) {
    Plotly.react(element, ...coloured(figure, isDark), { responsive: true, displayModeBar: false });
  }
};
draw(dark.matches);
dark.addEventListener("change", () => draw(dark.matches));
