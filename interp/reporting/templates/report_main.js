/* Tables and the first drawing. */
/* Sorting by a column: numbers by value, anything else as text; missing values last. */
function sortBy(header) {
  const table = header.closest("table"), body = table.tBodies[0], column = header.cellIndex;
  const descending = header.getAttribute("aria-sort") !== "descending";
  table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const key = (cell) => {
    if (cell.dataset.value === undefined) return cell.textContent;
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  const order = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return ((a > b) - (a < b)) * (descending ? -1 : 1);
  };
  const lines = [...body.rows].map((line) => [key(line.cells[column]), line]);
  lines.sort(([a], [b]) => order(a, b));
  body.append(...lines.map(([, line]) => line));
}
document.querySelectorAll(".numbers thead button").forEach((button) => {
  button.addEventListener("click", () => sortBy(button.closest("th")));
});

/* A pair of buttons of which one is pressed. */
function toggle(name, use) {
  const buttons = document.querySelectorAll(`[data-${name}]`);
  buttons.forEach((button) => button.addEventListener("click", () => {
    buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    use(button.dataset[name]);
  }));
}
toggle("map", (view) => { mapView = view; drawMap(chosen.row, chosen.column); });
toggle("curve", (view) => { distanceView = view; drawDistance(chosen.row, chosen.column); });

buildGrid();
document.getElementById("explore-body").classList.toggle("wide", heads.length > 12);
metricChoice.addEventListener("change", paintGrid);
document.getElementById("side")?.addEventListener("change", paintGrid);
Object.values(filters).forEach((filter) => filter.addEventListener("change", applyFilters));
document.getElementById("next").addEventListener("click", () => step(1));
document.getElementById("previous").addEventListener("click", () => step(-1));
addEventListener("hashchange", fromAddress);
onChoice.push(drawPanel);
onTheme.push(paintGrid, drawPanel);
setTheme(document.documentElement.dataset.theme === "dark", false);
paintGrid();
(fromAddress() ?? choose(page.start[0], page.start[1], { record: false })).then(drawFigures);
