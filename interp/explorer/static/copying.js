/* A view leaves the page as an address, as Python that gives the same numbers, as PNG, SVG and CSV. */
import { el, saveFile, svg } from "./dom.js";
import { legendOf, viewWords } from "./colours.js";
import { variantText } from "./address.js";
import { headName } from "./numbers.js";

/* JSON as Python writes it. */
export function asPython(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(asPython).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([name, x]) => `${JSON.stringify(name)}: ${asPython(x)}`).join(", ")}}`;
  return JSON.stringify(value);
}

/* Lines that make the pixels in view, and those of the pinned row or column; what was run plainly is a slice of the pattern. */
export function pythonOf(app) {
  const { state, facts } = app, asked = app.windowAsked("window"), [layer, head] = state.heads[0];
  const lines = [facts.source || "cap = …  # the capture that this page shows"];
  const [[a, b], [c, d]] = [asked.queries, asked.keys], plain = state.view === "pattern" && !state.variant;
  if (plain && asked.scale === 1) lines.push("", `shown = cap.pattern[${layer}, ${head}, ${a}:${b}, ${c}:${d}]  # what is in view, cell by cell; 0 where a query does not see a key`);
  else {
    lines.push("from interp.explorer.questions import Explorer", "", "explorer = Explorer(cap)");
    lines.push(`shown = explorer.ask(${asPython(asked)}).arrays[${JSON.stringify(state.pool)}]  # what is in view, ${asked.scale} × ${asked.scale} cells a pixel`);
  }
  if (state.query !== null && plain) lines.push(`row = cap.pattern[${layer}, ${head}, ${state.query}]  # what the pinned query attends to`);
  if (state.key !== null && plain) lines.push(`column = cap.pattern[${layer}, ${head}, :, ${state.key}]  # who attends to the pinned key`);
  return `${lines.join("\n")}\n`;
}

async function csvOf(app) {
  const asked = app.windowAsked("window"), { arrays } = await app.ask(asked), [height, width] = arrays.mean.shape;
  const lines = ["first_query,first_key,cells_a_side,visible_cells,mean,largest"];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      if (arrays.count[i]) lines.push([asked.queries[0] + y * asked.scale, asked.keys[0] + x * asked.scale, asked.scale, arrays.count[i], arrays.mean[i], arrays.max[i]].join(","));
    }
  }
  return `${lines.join("\n")}\n`;
}

/* The panes side by side, with a line below that says what is shown. */
export function pictureOf(app) {
  const panes = app.panes, ratio = panes[0].ratio, line = Math.round(26 * ratio);
  const canvas = el("canvas", { width: panes.reduce((sum, pane) => sum + pane.canvas.width, 0), height: panes[0].canvas.height + line });
  const context = canvas.getContext("2d"), style = getComputedStyle(app.root);
  context.fillStyle = style.backgroundColor;
  context.fillRect(0, 0, canvas.width, canvas.height);
  let x = 0;
  for (const pane of panes) {
    context.drawImage(pane.canvas, x, 0);
    x += pane.canvas.width;
  }
  context.fillStyle = style.color;
  context.font = `${12 * ratio}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.fillText(captionOf(app), 10 * ratio, canvas.height - line / 2);
  return canvas;
}

function captionOf(app) {
  const { state, facts } = app, legend = legendOf(app.span, state.pool, app.panes[0].scale, facts.gradient_of);
  const variant = state.variant ? `, ${variantText(state.variant)}` : "";
  return `${facts.model}, ${state.heads.map(([l, h]) => headName(l, h)).join(" and ")}${variant}: ${legend.line}; ${legend.each}`;
}

/* An SVG whose map is an image and whose words are words. */
function svgOf(app) {
  const picture = pictureOf(app), ratio = app.panes[0].ratio, [w, h] = [picture.width / ratio, picture.height / ratio];
  const made = svg("svg", { viewBox: `0 0 ${w} ${h}`, width: w, height: h });
  made.append(svg("title", {}, captionOf(app)), svg("desc", {}, app.address()), svg("image", { width: w, height: h, href: picture.toDataURL("image/png") }));
  return new XMLSerializer().serializeToString(made);
}

async function toClipboard(app, text, what) {
  app.copied = text;
  try {
    await navigator.clipboard.writeText(text);
    app.say(`${what} copied`);
  } catch {
    app.showText(what, text);
  }
}

export function copyMenu(app) {
  const name = () => `${viewWords(app.state.view).split(" ")[0]}-${app.state.heads.map((pair) => `L${pair[0]}H${pair[1]}`).join("-")}`;
  const actions = [
    ["Link to this view", () => toClipboard(app, app.address(), "Address")],
    ["Python for these numbers", () => toClipboard(app, pythonOf(app), "Python")],
    ["PNG", () => pictureOf(app).toBlob((blob) => saveFile(`${name()}.png`, blob))],
    ["SVG", () => saveFile(`${name()}.svg`, new Blob([svgOf(app)], { type: "image/svg+xml" }))],
    ["CSV", async () => saveFile(`${name()}.csv`, new Blob([await csvOf(app)], { type: "text/csv" }))],
  ];
  const items = actions.map(([text, act]) => el("button", { type: "button", onclick: async () => {
    menu.open = false;
    try { await act(); } catch (error) { app.say(error.message); }
  } }, text));
  const menu = el("details", { class: "rx-menu" }, el("summary", {}, "Copy"), el("div", { class: "rx-menu-items" }, ...items));
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    menu.open = false;
    menu.querySelector("summary").focus();
  });
  return menu;
}
