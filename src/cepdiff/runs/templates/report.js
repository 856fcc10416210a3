
// Cells with a number sort by it, others as text; missing ones stay last.
function compare(a, b, sign) {
  const [x, y] = [a, b].map((cell) => cell.dataset.value);
  if (x !== undefined && y !== undefined) return sign * (x - y || 0);
  const missing = [a, b].map((cell) => ["", "-"].includes(cell.textContent.trim()));
  if (missing[0] || missing[1]) return missing[0] - missing[1];
  return sign * a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
}

for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => compare(a.cells[column], b.cells[column], up ? 1 : -1));
    table.tBodies[0].append(...rows);
  }));
}

// A link to a run opens it.
function openTarget() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") {
    target.open = true;
    target.scrollIntoView();
  }
}
addEventListener("hashchange", openTarget);
openTarget();
