/* An audit's page has figures that stand still and nothing to choose. */
setTheme(document.documentElement.dataset.theme === "dark", false);
drawFigures();
