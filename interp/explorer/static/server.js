/* The page as the server sends it: questions go over HTTP, the address lies behind the #. */
import { App } from "./app.js";
import { AskError, decode } from "./wire.js";

async function ask(question, signal) {
  const response = await fetch("ask", { method: "POST", body: JSON.stringify(question), headers: { "content-type": "application/json" }, signal });
  if (response.ok) return decode(await response.arrayBuffer());
  const { error, name } = await response.json();
  throw new AskError(error, name);
}

const here = location.href.split("#")[0];
const app = new App(document.getElementById("explorer"), ask, {
  addressOf: (fragment) => `${here}#${fragment}`,
  onaddress: (fragment) => history.replaceState(null, "", `#${fragment}`),
  theme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light",
});
// Keys pressed before anything has the focus are meant for the page too.
addEventListener("keydown", (event) => event.target === document.body && app.facts && app.onkey(event));
addEventListener("hashchange", () => app.goToAddress(location.hash));
app.start(location.hash).then(
  () => { document.documentElement.dataset.started = "true"; },
  (error) => { document.getElementById("explorer").textContent = error.message; },
);
