/* The same page in a notebook: questions go to the kernel, the address is a trait that Python reads and sets. */
import { App } from "./app.js";
import { AskError, decode } from "./wire.js";

function asker(model) {
  const waiting = new Map();
  let count = 0;
  const own = `${Date.now()}.${Math.random()}`;
  model.on("msg:custom", (message, buffers) => {
    const one = waiting.get(message.id);
    if (!one) return;
    waiting.delete(message.id);
    if (message.error) { one.reject(new AskError(message.error, message.name)); return; }
    const raw = buffers[0], view = raw.buffer ? new Uint8Array(raw.buffer, raw.byteOffset, raw.byteLength) : new Uint8Array(raw);
    one.resolve(decode(view.slice().buffer));
  });
  return (question, signal) => new Promise((resolve, reject) => {
    const id = `${own}.${count++}`;
    waiting.set(id, { resolve, reject });
    signal?.addEventListener("abort", () => {
      if (!waiting.delete(id)) return;
      model.send({ drop: id });
      reject(new AskError("dropped", "AbortError"));
    });
    model.send({ id, ask: question });
  });
}

function render({ model, el: place }) {
  const root = document.createElement("div");
  root.className = "rx-in-notebook";
  place.classList.add("rx-host");
  place.append(root);
  const light = document.body.dataset.jpThemeLight, dark = light === undefined ? matchMedia("(prefers-color-scheme: dark)").matches : light === "false";
  const app = new App(root, asker(model), {
    addressOf: (fragment) => `#${fragment}`,
    onaddress: (fragment) => { model.set("view", fragment); model.save_changes(); },
    theme: dark ? "dark" : "light",
  });
  model.on("change:view", () => app.facts && app.goToAddress(model.get("view")));
  // The notebook has keys of its own, which must not act while the page is used.
  for (const name of ["keydown", "wheel"]) root.addEventListener(name, (event) => event.stopPropagation());
  app.start(model.get("view")).catch((error) => { root.textContent = error.message; });
}

export default { render };
