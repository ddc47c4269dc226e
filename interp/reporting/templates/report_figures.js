/* Figures that stand still, and the theme; what else follows the theme is in onTheme. */
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

const onTheme = [];
const system = matchMedia("(prefers-color-scheme: dark)");
const themeButton = document.getElementById("theme");
function setTheme(isDark, redraw = true) {
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  themeButton.textContent = isDark ? "Light" : "Dark";
  themeButton.setAttribute("aria-label", `Switch to ${isDark ? "light" : "dark"} colours`);
  if (!redraw) return;
  onTheme.forEach((follow) => follow());
  drawFigures();
}
themeButton.addEventListener("click", () => setTheme(!dark()));
system.addEventListener("change", (event) => setTheme(event.matches));
