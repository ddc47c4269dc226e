() => {
  const part = (x) => { x /= 255; return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; };
  const light = (c) => { const [r, g, b] = c.match(/[\d.]+/g).map(Number); return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b); };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((m, n) => n - m); return (x + 0.05) / (y + 0.05); };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (c !== 'rgba(0, 0, 0, 0)' && c !== 'transparent') return c; } return 'rgb(255, 255, 255)'; };
  const found = [];
  for (const e of document.querySelectorAll('h1, h2, h3, p, li, td, th, dt, dd, a, summary, label, figcaption, .quiet, .token')) {
    if (!e.textContent.trim() || !e.getClientRects().length) continue;
    const r = ratio(getComputedStyle(e).color, behind(e));
    if (r < 4.5) found.push(`${e.tagName} ${e.textContent.slice(0, 20)}: ${r.toFixed(1)}`);
  }
  for (const plot of document.querySelectorAll('.js-plotly-plot')) {
    const paper = getComputedStyle(plot.querySelector('.main-svg')).backgroundColor;
    for (const text of plot.querySelectorAll('text')) {
      if (!text.textContent.trim()) continue;
      const r = ratio(getComputedStyle(text).fill, paper);
      if (r < 4.5) found.push(`${plot.id} ${text.textContent.slice(0, 20)}: ${r.toFixed(1)}`);
    }
    for (const line of plot.querySelectorAll('.scatterlayer path.js-line')) {
      const style = getComputedStyle(line);
      if (style.stroke === 'none' || parseFloat(style.strokeWidth) === 0) continue;
      const r = ratio(style.stroke, paper);
      if (r < 1.7) found.push(`${plot.id} line ${style.stroke}: ${r.toFixed(1)}`);
    }
  }
  return found;
}
