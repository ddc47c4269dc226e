/* Theme, figures and tables, as every page has them; `onTheme` is called when the colours change. */
const onTheme = [];
const sources = [...document.querySelectorAll("script[data-figure]")];
const figures = sources.map((source) => ({ key: source.dataset.figure, source }));
async function drawFigures() {
  for (const figure of figures) {
    figure.data ??= JSON.parse(figure.source.textContent);
    const { data, layout } = exchange(figure.data);
    await Plotly.react(figure.key, data, layout, config);
    await new Promise((next) => setTimeout(next));
  }
  document.documentElement.dataset.drawn = "true";
}

const system = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");
function setTheme(isDark, redraw = true) {
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  themeButton.textContent = isDark ? "Light" : "Dark";
  themeButton.setAttribute("aria-label", `Switch to ${isDark ? "light" : "dark"} colours`);
  if (!redraw) return;
  onTheme.forEach((draw) => draw());
  drawFigures();
}
themeButton.addEventListener("click", () => setTheme(!dark()));
system.addEventListener("change", (event) => setTheme(event.matches));

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
