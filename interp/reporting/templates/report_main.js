/* The page of one capture: its buttons, its grid, and the first drawing. */
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
