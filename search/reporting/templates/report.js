"use strict";
// Sort tables by their headings, filter the table of trials, name the curves under the pointer. The page is complete without it.
const text = (cell) => cell.dataset.value ?? cell.textContent.trim();

function sortBy(heading) {
  const table = heading.closest("table");
  const column = heading.cellIndex;
  const descending = heading.getAttribute("aria-sort") !== "descending";
  const rows = [...table.tBodies[0].rows];
  const numeric = heading.classList.contains("number");
  const compare = (a, b) => {
    const [x, y] = [text(a.cells[column]), text(b.cells[column])];
    if (x === "" || y === "") return (x === "") - (y === ""); // missing values come last
    const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true });
    return descending ? -order : order;
  };
  table.tBodies[0].append(...rows.sort(compare));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

for (const heading of document.querySelectorAll("table.sortable th[scope=col]")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...heading.childNodes);
  heading.append(button);
  button.addEventListener("click", () => sortBy(heading));
}

// A thin curve is hard to point at: widen what shows its title.
for (const curve of document.querySelectorAll(".titled > path")) {
  const reach = curve.cloneNode();
  reach.removeAttribute("style");
  reach.classList.add("reach");
  curve.after(reach);
}

// Browsers without ::details-content print only what is open.
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details:not([open])")) {
    fold.open = true;
    fold.dataset.printed = "";
  }
});
addEventListener("afterprint", () => {
  for (const fold of document.querySelectorAll("details[data-printed]")) {
    fold.open = false;
    delete fold.dataset.printed;
  }
});

const filters = document.getElementById("trial-filters");
if (filters) {
  const rows = [...document.getElementById("trials-table").tBodies[0].rows];
  const [words, state] = [filters.elements.words, filters.elements.state];
  const count = document.getElementById("trial-count");
  const apply = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const content = row.textContent.toLowerCase();
      const fits = wanted.every((word) => content.includes(word));
      row.hidden = !(fits && (state.value === "" || row.dataset.state === state.value));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = `${shown} of ${rows.length} shown`;
  };
  filters.hidden = false;
  filters.addEventListener("input", apply);
  filters.addEventListener("submit", (event) => event.preventDefault());
  apply();
}
