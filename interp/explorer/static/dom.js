/* Elements without markup: what a token says can never become one. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function svg(tag, attributes = {}, text = null) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== null) made.textContent = text;
  return made;
}

export function choiceOf(label, options, current, use, attributes = {}) {
  const select = el("select", attributes, ...options.map(([value, text]) => el("option", { value }, text)));
  select.value = current;
  select.addEventListener("change", () => use(select.value));
  return el("label", { class: "rx-field" }, el("span", {}, label), select);
}

/* Buttons of which one is pressed; `press` shows another one. */
export function segmented(label, options, current, use) {
  const buttons = options.map(([value, text, title]) =>
    el("button", { type: "button", "data-value": value, title, onclick: () => use(value) }, text));
  const press = (value) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.value === value)));
  press(current);
  const group = el("div", { class: "rx-segmented", role: "group", "aria-label": label }, ...buttons);
  return { group, press, buttons };
}

/* Only the last of many calls in a moment. */
export function later(milliseconds, call) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...given), milliseconds);
  };
}

export function saveFile(name, blob) {
  const address = URL.createObjectURL(blob);
  const link = el("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
