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
  const known = new Map(); // run -> { version, panels }, or { why } it cannot be shown
  const boxes = new Map(); // run -> its checkbox
  let showing = "";
  const look = async () => {
    const { runs } = await ask("../runs");
    const names = Object.keys(runs);
    const wanted = () => names.filter((name) => boxes.get(name)?.checked);
    offer(names, boxes, chosen, again);
    for (const name of wanted()) {
      if (known.get(name)?.version === runs[name]) continue;
      if (!known.has(name)) say(`reading ${name} ...`);
      known.set(name, await panelsOf(name, runs[name], boxes));
    }
    const [good, bad] = [wanted().filter((name) => known.get(name)?.panels), wanted().filter((name) => known.get(name)?.why)];
    const now = JSON.stringify(good.map((name) => [name, known.get(name).version]));
    if (now !== showing) board.show(good.map((name) => known.get(name).panels));
    showing = now;
    if (!names.length) say("no run of headdynamics lies in this log directory yet");
    else if (!wanted().length) say("tick a run to see it");
    else say(bad.map((name) => known.get(name).why).join("\n"));
  };
  const again = () => look().catch((error) => say(error.message));
  for (;;) {
    if (!document.hidden) await again();
    await new Promise((done) => setTimeout(done, AGAIN));
  }
}

// A run that cannot be read says why, and the others are shown all the same.
async function panelsOf(name, version, boxes) {
  try {
    const panels = await ask(`../panels?run=${encodeURIComponent(name)}`);
    return { version, panels: { ...panels, name: boxes.get(name)?.name ?? name } };
  } catch (error) {
    return { why: error.message.includes(name) ? error.message : `${name}: ${error.message}` };
  }
}

async function ask(path) {
  const answer = await fetch(here(path)).catch(() => { throw new Error("TensorBoard does not answer; is it still running?"); });
  const told = await answer.json().catch(() => ({ error: `TensorBoard answers ${answer.status}; its own log says why` }));
  if (told.error) throw new Error(told.error);
  return told;
}

// A checkbox for each run that is there; one that went takes its checkbox along.
function offer(names, boxes, chosen, changed) {
  for (const name of [...boxes.keys()].filter((one) => !names.includes(one))) {
    boxes.get(name).parentElement.remove();
    boxes.delete(name);
  }
  const taken = new Set([...boxes.values()].map((box) => box.name));
  for (const name of names.filter((one) => !boxes.has(one))) {
    const called = taken.has(shortened(name)) ? name : shortened(name);
    const box = make("input", { type: "checkbox", name: called });
    box.checked = boxes.size < FIRST;
    box.addEventListener("change", changed);
    chosen.append(make("label", { title: name }, box, ` ${called}`));
    boxes.set(name, box);
    taken.add(called);
  }
  chosen.hidden = boxes.size < 2 && names.every((name) => boxes.get(name).checked);
}

function say(message) {
  const line = document.querySelector(".complaint")
    ?? document.body.insertBefore(make("p", { class: "complaint", role: "status" }), document.body.firstChild);
  if (line.textContent !== message) line.textContent = message;
  line.hidden = !message;
}

// Every recorder writes into a folder of our name: what tells runs apart stands before it.
const shortened = (name) => name.replace(/\/(tensorboard|runs)\/headdynamics$|\/headdynamics$/, "");
