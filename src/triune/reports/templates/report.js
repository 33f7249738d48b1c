// Draws the figures, makes tables sortable, and marks the section that is being read.
"use strict";

const { config, specs } = JSON.parse(document.getElementById("data").textContent);

async function draw() {
  for (const place of document.querySelectorAll(".plot")) {
    await vegaEmbed(place, specs[place.dataset.spec], {
      mode: "vega-lite",
      renderer: "svg",
      actions: false,
      ast: true, // expressions are interpreted: the page's policy forbids eval
      config,
      tooltip: { theme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light" },
    });
  }
  document.documentElement.dataset.drawn = "yes";
}

function key(cell) {
  const text = cell.dataset.sort ?? cell.textContent.trim();
  const number = parseFloat(text.replace(/^≈/, "").replace(/,(?=\d{3})/g, ""));
  return text === "" || text === "—" ? null : Number.isNaN(number) ? text : number;
}

function compare(a, b) {
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}

function sort(head) {
  const body = head.closest("table").tBodies[0];
  const descending = head.getAttribute("aria-sort") === "ascending";
  const sign = descending ? -1 : 1;
  const rows = [...body.rows].map((row) => [key(row.cells[head.cellIndex]), row]);
  // What was not measured stays at the end, whichever way the others go.
  rows.sort(([a], [b]) => (a === null ? (b === null ? 0 : 1) : b === null ? -1 : sign * compare(a, b)));
  body.append(...rows.map(([, row]) => row));
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

for (const head of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", () => sort(head));
  head.append(button);
}

const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
const watcher = new IntersectionObserver(
  (seen) => {
    for (const { target, isIntersecting } of seen) {
      if (!isIntersecting) continue;
      for (const a of links.values()) a.removeAttribute("aria-current");
      links.get(target.id)?.setAttribute("aria-current", "true");
    }
  },
  { rootMargin: "-20% 0px -75% 0px" },
);
for (const section of document.querySelectorAll("main > section")) watcher.observe(section);

if (window.vegaEmbed) draw();
