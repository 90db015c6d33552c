"use strict";
// The page is whole without this: it sorts tables, and remembers the choice of colours.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numbers = head.dataset.kind === "number";
      const first = numbers ? "descending" : "ascending";
      const other = numbers ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const rows = [...body.rows];
      rows.sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (!numbers) return order === "ascending" ? x.localeCompare(y) : y.localeCompare(x);
        if (x === "" || y === "") return (x === "") - (y === "");
        return order === "ascending" ? x - y : y - x;
      });
      body.append(...rows);
    });
  });
}
const choices = document.querySelectorAll("fieldset.colours input");
try {
  const kept = document.getElementById(localStorage.getItem("matu-colours") ?? "");
  if (kept) kept.checked = true;
  for (const one of choices) one.addEventListener("change", () => localStorage.setItem("matu-colours", one.id));
} catch {
  // Storage may be off; the choice then holds for this page alone.
}
