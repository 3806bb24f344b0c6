"use strict";
// Tables sort by a click on a heading; numbers as numbers, and what is missing always last.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  headings.forEach((heading, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const numbers = heading.classList.contains("number");
      const keyed = [...body.rows].map((row) => {
        const cell = row.cells[place];
        const text = cell.dataset.value ?? cell.textContent;
        return { row, key: numbers ? (text.trim() === "" ? NaN : Number(text)) : text };
      });
      const sign = down ? -1 : 1;
      keyed.sort((a, b) => {
        if (!numbers) return sign * a.key.localeCompare(b.key, "en", { numeric: true });
        if (Number.isNaN(a.key) || Number.isNaN(b.key)) return Number.isNaN(a.key) - Number.isNaN(b.key);
        return sign * (a.key - b.key);
      });
      body.replaceChildren(...keyed.map((one) => one.row));
    });
  });
}
const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of document.getElementById("run-table").tBodies[0].rows) {
    const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
});
// A link to what is folded up unfolds it.
const unfold = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
};
addEventListener("hashchange", unfold);
unfold();
