// The HEAD DYNAMICS tab: asks our routes which runs there are, hands their panels to the board, and looks again.

import { Board, make } from "./panels.js";

const here = (path) => new URL(path, import.meta.url);
const AGAIN = 5000; // milliseconds, as TensorBoard itself
const FIRST = 3; // runs that are shown before anybody chose

export async function render() {
  document.head.append(make("link", { rel: "stylesheet", href: here("panels.css") }));
  await library(here("plotly.min.js"));
  const chosen = make("div", { class: "chosen" });
  const root = make("main");
  document.body.replaceChildren(chosen, root);
  const board = new Board(root, window.Plotly);
  asTensorBoard(board);
  await watch(board, chosen);
}

// Plotly is a script, not a module.
function library(address) {
  return new Promise((done, failed) => {
    const script = make("script", { src: address });
    script.addEventListener("load", done);
    script.addEventListener("error", () => failed(new Error("plotly.min.js did not load")));
    document.head.append(script);
  });
}

// TensorBoard says on its own page whether it is dark.
function asTensorBoard(board) {
  const body = window.parent.document.body;
  const follow = () => board.dark(body.classList.contains("dark-mode"));
  new MutationObserver(follow).observe(body, { attributeFilter: ["class"] });
  follow();
}

async function watch(board, chosen) {
  const known = new Map(); // run -> { version, panels }
  const boxes = new Map(); // run -> its checkbox
  let showing = "";
  const look = async () => {
    const { runs } = await ask("../runs");
    for (const name of Object.keys(runs)) {
      if (!boxes.has(name)) boxes.set(name, offer(name, boxes.size < FIRST, chosen, look));
    }
    chosen.hidden = boxes.size < 2;
    const wanted = Object.keys(runs).filter((name) => boxes.get(name).checked);
    for (const name of wanted) {
      if (known.get(name)?.version === runs[name]) continue;
      const panels = await ask(`../panels?run=${encodeURIComponent(name)}`);
      known.set(name, { version: runs[name], panels: { ...panels, name: shortened(name) } });
    }
    const now = JSON.stringify(wanted.map((name) => [name, runs[name]]));
    if (now !== showing) board.show(wanted.map((name) => known.get(name).panels));
    showing = now;
    complain(chosen, Object.keys(runs).length ? "" : "no run of headdynamics lies in this log directory yet");
  };
  for (;;) {
    if (!document.hidden) await look().catch((error) => complain(chosen, error.message));
    await new Promise((done) => setTimeout(done, AGAIN));
  }
}

async function ask(path) {
  const answer = await fetch(here(path));
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error);
  return told;
}

function offer(name, checked, chosen, look) {
  const box = make("input", { type: "checkbox" });
  box.checked = checked;
  box.addEventListener("change", () => look().catch((error) => complain(chosen, error.message)));
  chosen.append(make("label", { title: name }, box, ` ${shortened(name)}`));
  return box;
}

function complain(chosen, message) {
  const line = document.querySelector(".complaint") ?? document.body.insertBefore(make("p", { class: "complaint" }), chosen);
  line.textContent = message;
  line.hidden = !message;
}

// Every recorder writes into a folder of our name: what tells runs apart stands before it.
const shortened = (name) => name.replace(/\/(tensorboard|runs)\/headdynamics$|\/headdynamics$/, "");
