/* The panel that follows the choice: its head in words and numbers, its figures, its tokens. */
function drawTokens(r, c) {
  const top = page.first.top, body = document.getElementById("panel-tokens");
  const share = row(top.share, r, c), moved = top.moved ? row(top.moved, r, c) : null;
  body.replaceChildren(...top.key[r][c].map((key, i) => {
    const token = element("bdi", { class: "token" }, (top.token[key] || "–").replace(/ /g, "·"));
    return element("tr", {},
      element("th", { scope: "row" }, token),
      element("td", {}, grouped(top.position[key])),
      element("td", {}, shown(share[i], "%")),
      element("td", {}, moved ? shown(moved[i], "%") : "–"));
  }));
}

function drawFacts(r, c) {
  document.getElementById("facts").replaceChildren(...page.metrics.map((m) => {
    const second = page.second ? ` → ${shown(m.other[r][c], m.units)}` : "";
    const value = shown(m.values[r][c], m.units) + second + unitOf(m);
    return element("div", { title: m.about }, element("dt", {}, m.label), element("dd", {}, value));
  }));
}

function drawPanel() {
  const { row: r, column: c } = chosen, layer = layers[r], name = headName(layer.layer, heads[c]);
  const sees = layer.window ? `window ${grouped(layer.window)}` : "sees every token before it";
  const about = [`${layer.kind} layer`, sees];
  if (page.group_size > 1) about.push(`kv head ${groupOf(c)}`);
  document.getElementById("panel-name").textContent = name;
  document.getElementById("panel-kind").textContent = about.join(", ");
  document.getElementById("panel-link").href = `#L${layer.layer}H${heads[c]}`;
  drawFacts(r, c);
  drawDistance(r, c);
  drawScores(r, c);
  drawHistogram(r, c);
  drawTokens(r, c);
  document.getElementById("panel").dataset.head = name;
  for (const id of ["panel-map", "panel-distance", "panel-scores", "panel-histogram"]) {
    const figure = document.getElementById(id);
    figure.setAttribute("aria-label", `${figure.dataset.what} of ${name}`);
  }
  return drawMap(r, c);
}
