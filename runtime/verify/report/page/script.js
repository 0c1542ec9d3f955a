// Sorts a table by the column whose heading is pressed; once more turns it round.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const number = (text) => {
    if (text === "inf" || text === "-inf") {
      return text === "inf" ? Infinity : -Infinity;
    }
    return Number(text);
  };
  const compare = (a, b) => {
    if (a.dataset.value === undefined) {
      return a.textContent.trim().localeCompare(b.textContent.trim(), "en", {numeric: true});
    }
    const x = number(a.dataset.value);
    const y = number(b.dataset.value);
    if (Number.isNaN(x) || Number.isNaN(y)) {
      return Number.isNaN(y) - Number.isNaN(x);
    }
    return x < y ? -1 : Number(x > y);
  };
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of headings) {
        other.removeAttribute("aria-sort");
      }
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows];
      rows.sort((a, b) => compare(a.cells[column], b.cells[column]) * (up ? 1 : -1));
      body.append(...rows);
    });
  });
}
