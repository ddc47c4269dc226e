() => {
  const found = [];
  const visible = (r) => r.width > 0.5 && r.height > 0.5;
  for (const plot of document.querySelectorAll('.js-plotly-plot')) {
    const outer = plot.getBoundingClientRect();
    const texts = [...plot.querySelectorAll('.gtitle, .xtitle, .ytitle, .annotation-text, .legendtext, .xtick text, .x2tick text, .x3tick text')]
      .filter((t) => t.textContent.trim()).map((t) => [t.textContent, t.getBoundingClientRect()]).filter(([, r]) => visible(r));
    for (const [text, r] of texts) {
      if (r.left < outer.left - 2 || r.right > outer.right + 2 || r.top < outer.top - 2 || r.bottom > outer.bottom + 2) found.push(`${plot.id}: ${text} is clipped`);
    }
    texts.forEach(([text, a], i) => texts.slice(i + 1).forEach(([other, b]) => {
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left), down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > 2 && down > 3) found.push(`${plot.id}: ${text} overlaps ${other}`);
    }));
  }
  const blocks = [...document.querySelectorAll('.controls > *, .panel-head > *, .views > div > *, .cards > div, section > *')].map((b) => [b, b.getBoundingClientRect()]).filter(([, r]) => visible(r));
  blocks.forEach(([one, a], i) => blocks.slice(i + 1).forEach(([two, b]) => {
    if (one.parentElement !== two.parentElement) return;
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left), down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > 1 && down > 1) found.push(`${one.className || one.tagName} overlaps ${two.className || two.tagName}`);
  }));
  if (document.documentElement.scrollWidth > innerWidth) found.push(`the page is ${document.documentElement.scrollWidth} wide`);
  return found;
}
