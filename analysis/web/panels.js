// Draws what analysis/panels.py says of runs: the heads, figure 5's curves, when importance settled, the ranks.
// Asks nothing of any server: the tab of TensorBoard and the report hand the numbers in.

const VIRIDIS = ["#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b"];
const SCALE = VIRIDIS.map((colour, i) => [i / (VIRIDIS.length - 1), colour]);
const LIGHT = {
  ink: "#1f2328", paper: "#ffffff", grid: "#e3e6ea", faint: "#c4c9cf", missing: "#d5d8dc", mark: "#d55e00",
  runs: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"], // Okabe and Ito's, told apart by all
};
const DARK = {
  ink: "#e6e8eb", paper: "#1b1d21", grid: "#34383e", faint: "#5a616a", missing: "#3d4249", mark: "#ff9a56",
  runs: ["#56b4e9", "#ff9a56", "#2fd3a5", "#e59cc6", "#f0c94d", "#9db8ff"],
};
const MOST_LINES = 60; // of figure 5: of more snapshots some are drawn, spread evenly
const TOP = 10; // ranks that are drawn in colour
const MOST_POINTS = 15000; // of the grey lines behind them
const MARKED = 60; // snapshots: of more, lines go without a dot at each
const FAILURES = 3; // that are told one by one
const STEP = 700; // milliseconds, while playing

// How the cells of the heatmap are coloured: name -> numbers [H] at snapshot i, title, ends of the scale.
const COLOURS = {
  "I(h), each snapshot's own scale": (run, i) => importanceOf(run, run.importance.mean[i], run.importance.mean[i]),
  "I(h), one scale for all snapshots": (run, i) => importanceOf(run, run.importance.mean[i], run.importance.mean.flat()),
  "rank": (run, i) => ({ values: run.importance.place[i], title: "rank", ends: ends([1, count(run)]), reversed: true }),
  "when each head settled": (run) => ({
    values: run.importance.settled, title: `settled at<br>${run.time.unit}`, ends: ends(run.time.when), reversed: true,
  }),
};

// One row a panel. `figure` takes the runs that share a figure; `alone`: each run has its own, always.
const PANELS = [
  {
    id: "heads", title: "Which heads matter", figure: heads, rows: headRows, alone: true,
    say: "Layers by heads, layer 0 at the input's side. Grey: no number. Click a head, or name it, to follow it in the ranks.",
  },
  {
    id: "curves", title: "Score as heads are pruned", figure: curves, rows: curveRows,
    say: "Least important heads first. Thick: this snapshot; thin: the others, the later the brighter. "
      + "Dashed: random orders with one standard deviation. No gap between the two: the ranking says nothing.",
  },
  {
    id: "settling", title: "When importance settles", figure: settling, rows: settlingRows,
    say: "r: agreement of the ranking with the last snapshot's, corrected for noise. C, the noise ceiling: agreement of "
      + "two halves of the examples. Settled: r stays above the line to the end. A diamond marks where.",
  },
  {
    id: "ranks", title: "How heads change places", figure: ranks, rows: rankRows, alone: true,
    say: `The ${TOP} most important heads of this snapshot, and those you follow. Rank 1 is the largest I(h).`,
  },
];

export class Board {
  // `root`: an empty element. `Plotly`: the library. Call `show` with the runs, as often as they change.
  constructor(root, Plotly) {
    Object.assign(this, { root, Plotly, runs: [], theme: LIGHT, ticks: [], at: null, followed: new Map(), figures: new Map() });
    this.slider = make("input", { type: "range", min: 0, step: 1, "aria-label": "snapshot", class: "slider" });
    this.moment = make("output", { class: "moment" });
    this.play = make("button", { type: "button", class: "play", title: "play, or stop (space)", "aria-label": "play" }, "▶");
    this.colour = choice("colour", Object.keys(COLOURS));
    this.view = choice("ranking", ["all heads"]);
    this.head = make("input", { class: "follow", list: "headdynamics-heads", size: 11, placeholder: "head", "aria-label": "head to follow" });
    this.names = make("datalist", { id: "headdynamics-heads" });
    this.beside = make("input", { type: "checkbox", class: "beside" });
    const theme = make("button", { type: "button", class: "theme", title: "dark or light", "aria-label": "dark or light" }, "◐");
    this.told = make("div", { class: "told", "aria-live": "polite" });
    this.controls = make("div", { class: "controls" }, this.play, this.slider, this.moment,
      make("label", {}, "colour ", this.colour), make("label", {}, "settling of ", this.view),
      make("label", {}, "follow ", this.head, this.names), make("label", { class: "several" }, this.beside, " runs side by side"), theme);
    root.classList.add("headdynamics");
    root.replaceChildren(this.told, this.controls, ...PANELS.map((panel) => this.section(panel)));
    this.slider.addEventListener("input", () => this.go(Number(this.slider.value)));
    this.play.addEventListener("click", () => this.toggle());
    theme.addEventListener("click", () => this.dark(this.theme === LIGHT));
    for (const control of [this.colour, this.view, this.beside]) {
      control.addEventListener("change", () => { this.tell(); this.draw(); });
    }
    this.head.addEventListener("change", () => this.followNamed(this.head.value.trim()));
    document.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("resize", () => this.draw());
  }

  // Draw these runs; one that stands at its end goes on to the new end.
  show(runs) {
    const atEnd = this.at === null || this.at >= this.ticks.length - 1;
    const was = atEnd ? null : this.ticks[this.at];
    this.runs = runs;
    this.unit = new Set(runs.map((run) => run.time.unit)).size === 1 ? runs[0].time.unit : "update";
    this.ticks = [...new Set(runs.flatMap((run) => this.times(run)))].sort((a, b) => a - b);
    this.at = atEnd ? this.ticks.length - 1 : Math.max(0, this.ticks.findLastIndex((tick) => tick <= was));
    this.slider.max = Math.max(0, this.ticks.length - 1);
    this.offer([...new Set(runs.flatMap((run) => run.settling.views.map((view) => view.name)))]);
    this.names.replaceChildren(...[...new Set(runs.flatMap(namesOf))].map((name) => make("option", { value: name })));
    this.controls.hidden = !this.ticks.length;
    this.root.classList.toggle("one", runs.length < 2);
    this.tell();
    this.draw();
  }

  dark(on) {
    this.theme = on ? DARK : LIGHT;
    this.root.dataset.theme = document.documentElement.dataset.theme = on ? "dark" : "light";
    this.draw();
  }

  go(at) {
    this.at = Math.min(Math.max(at, 0), this.ticks.length - 1);
    this.draw();
  }

  toggle() {
    const playing = this.timer !== undefined;
    clearInterval(this.timer);
    this.timer = undefined;
    this.play.textContent = playing ? "▶" : "⏸";
    this.play.setAttribute("aria-label", playing ? "play" : "stop");
    if (playing) return;
    if (this.at >= this.ticks.length - 1) this.go(0);
    this.timer = setInterval(() => {
      this.go(this.at + 1);
      if (this.at >= this.ticks.length - 1) this.toggle();
    }, STEP);
  }

  key(event) {
    const target = event.target.tagName;
    if (event.ctrlKey || event.altKey || event.metaKey || ["INPUT", "SELECT", "BUTTON", "TEXTAREA"].includes(target)) return;
    const moves = { ArrowLeft: this.at - 1, ArrowRight: this.at + 1, Home: 0, End: Infinity };
    if (event.key in moves) this.go(moves[event.key]);
    else if (event.key === " ") this.toggle();
    else return;
    event.preventDefault();
  }

  times(run) {
    return this.unit === run.time.unit ? run.time.when : run.time.update;
  }

  offer(names) {
    const chosen = this.view.value;
    this.view.replaceChildren(...names.map((name) => make("option", {}, name)));
    if (names.includes(chosen)) this.view.value = chosen;
  }

  // The answer in words, before any picture.
  tell() {
    this.told.replaceChildren(...this.runs.map((run, place) => {
      const notes = [...run.snapshots.notes, ...failures(run)].map((note) => make("p", { class: "note" }, note));
      return make("div", { class: "verdict" },
        make("span", { class: "name", style: `--colour: ${this.theme.runs[place % 6]}` }, run.name),
        make("span", {}, verdict(run, this.view.value, notes.length)), ...notes);
    }));
  }

  section(panel) {
    const saves = ["SVG", "PNG", "CSV"].map((form) => {
      const button = make("button", { type: "button", title: `save "${panel.title}" as ${form}`, "data-form": form }, form);
      button.addEventListener("click", () => this.save(panel, form));
      return button;
    });
    const place = make("div", { class: "figures" });
    this.figures.set(panel.id, place);
    return make("section", { id: panel.id },
      make("header", {}, make("h2", {}, panel.title), make("span", { class: "saves" }, ...saves)),
      make("p", { class: "say" }, panel.say), place);
  }

  save(panel, form) {
    const shown = this.shown();
    if (form === "CSV") {
      const rows = shown.flatMap((one, place) => panel.rows(one, this.look()).slice(place ? 1 : 0));
      return download(`${panel.id}.csv`, rows.map((row) => row.map(cell).join(",")).join("\n") + "\n");
    }
    const divs = [...this.figures.get(panel.id).children];
    return Promise.all(divs.map((div, place) => this.Plotly.downloadImage(div, {
      format: form.toLowerCase(), filename: divs.length > 1 ? `${panel.id}-${place + 1}` : panel.id,
      width: div.clientWidth, height: div.clientHeight, scale: form === "PNG" ? 2 : 1,
    })));
  }

  // Each run with the snapshot at which it stands: the last one that is not later than the slider.
  shown() {
    const now = this.ticks[this.at];
    return this.runs.map((run, place) => ({
      run, when: this.times(run), colour: this.theme.runs[place % this.theme.runs.length],
      i: Math.max(0, this.times(run).findLastIndex((when) => when <= now)),
      followed: this.followed.get(run.name) ?? new Set(),
    })).filter((one) => one.when.length);
  }

  look() {
    return { theme: this.theme, unit: this.unit, now: this.ticks[this.at], colour: this.colour.value, view: this.view.value };
  }

  draw() {
    const shown = this.shown();
    this.slider.value = this.at;
    const score = shown.length === 1 ? shown[0].run.score[shown[0].i] : null;
    const at = score === null ? "" : `, ${shown[0].run.attrs.metric} ${short(score)} unpruned`;
    this.moment.textContent = shown.length ? `${this.unit} ${stamp(this.ticks[this.at])}${at}` : "";
    this.slider.setAttribute("aria-valuetext", this.moment.textContent);
    for (const panel of PANELS) {
      const groups = panel.alone || this.beside.checked ? shown.map((one) => [one]) : [shown];
      const figures = groups.map((group) => group.length && panel.figure(group, this.look())).map((f) => f || null);
      this.place(panel, groups, figures.filter(Boolean));
    }
  }

  place(panel, groups, figures) {
    const place = this.figures.get(panel.id);
    place.parentElement.hidden = !figures.length;
    while (place.children.length > figures.length) {
      this.Plotly.purge(place.lastElementChild);
      place.lastElementChild.remove();
    }
    for (let k = place.children.length; k < figures.length; k++) place.append(make("div", { role: "img" }));
    figures.forEach((figure, k) => {
      const div = place.children[k];
      const fresh = !div.on; // Plotly adds it
      const width = div.clientWidth;
      div.setAttribute("aria-label", `${panel.title}: ${groups[k].map((one) => one.run.name).join(", ")}`);
      const named = groups[k].length === 1 && this.runs.length > 1;
      const title = named ? { text: safe(groups[k][0].run.name), font: { size: 13 }, x: 0.01, y: 0.99, yanchor: "top" } : undefined;
      const margin = { ...figure.layout.margin, t: figure.layout.margin.t + (named ? 20 : 0) };
      this.paint(div, figure.data, { ...plain(this.theme), title, ...figure.layout, margin, width });
      if (fresh) div.on("plotly_click", ({ points: [point] }) => this.follow(panel.alone ? k : null, point.customdata));
    });
  }

  // Where only the marks moved, as at most steps of the slider, only they are drawn again.
  paint(div, data, { shapes = [], ...layout }) {
    const now = JSON.stringify([data, layout]);
    if (div.painted === now) return this.Plotly.relayout(div, { shapes });
    div.painted = now;
    return this.Plotly.react(div, data, { ...layout, shapes }, { displaylogo: false, displayModeBar: false });
  }

  follow(k, head) {
    const one = this.shown()[k];
    if (!one || !Number.isInteger(head)) return;
    this.followed.set(one.run.name, one.followed);
    if (!one.followed.delete(head)) one.followed.add(head);
    this.draw();
  }

  // In every run that has a head of this name; a name that none has stays, for its author to mend.
  followNamed(name) {
    const found = this.shown().map(({ run }) => namesOf(run).indexOf(name));
    found.forEach((head, k) => this.follow(k, head < 0 ? null : head));
    if (found.some((head) => head >= 0)) this.head.value = "";
  }
}

// --- the heads

function heads([{ run, i, followed }], { theme, colour }) {
  const { values, title, ends: [low, high], reversed } = COLOURS[colour](run, i);
  const layout = {
    coloraxis: { colorscale: SCALE, reversescale: reversed, cmin: low, cmax: high, colorbar: { title: { text: title } } },
    height: 110 + 24 * Math.min(16, Math.max(5, ...run.stacks.map((stack) => stack.layers.length))),
    annotations: [], shapes: [], margin: { l: 46, r: 10, t: 22, b: 42 },
  };
  const width = 1 / run.stacks.length, names = namesOf(run).map(safe);
  const data = run.stacks.map((stack, k) => {
    const n = k ? k + 1 : "";
    const domain = [k * width + (k ? 0.03 : 0), (k + 1) * width - (k + 1 < run.stacks.length ? 0.02 : 0)];
    layout[`xaxis${n}`] = { ...named(stack.numbers), domain, anchor: `y${n}`, title: { text: "head" } };
    layout[`yaxis${n}`] = { ...named(stack.layers), anchor: `x${n}`, title: { text: k ? "" : "layer" } };
    layout.annotations.push({
      text: safe(stack.title), showarrow: false, xref: "paper", yref: "paper",
      x: (domain[0] + domain[1]) / 2, xanchor: "center", y: 1, yanchor: "bottom", font: { size: 13 },
    });
    layout.shapes.push({
      type: "rect", xref: `x${n} domain`, yref: `y${n} domain`, x0: 0, x1: 1, y0: 0, y1: 1, layer: "below",
      fillcolor: theme.missing, line: { width: 0 },
    });
    stack.at.forEach((row, y) => row.forEach((head, x) => followed.has(head) && layout.shapes.push({
      type: "rect", xref: `x${n}`, yref: `y${n}`, line: { color: theme.mark, width: 3 },
      x0: x - 0.5, x1: x + 0.5, y0: y - 0.5, y1: y + 0.5,
    })));
    return {
      type: "heatmap", x0: 0, dx: 1, y0: 0, dy: 1, xaxis: `x${n}`, yaxis: `y${n}`, coloraxis: "coloraxis",
      z: stack.at.map((row) => row.map((head) => (head === null ? null : values[head]))), xgap: 1, ygap: 1,
      text: stack.at.map((row) => row.map((head) => (head === null ? "" : describe(run, i, head, names[head])))),
      customdata: stack.at, hovertemplate: "%{text}<extra></extra>", hoverongaps: true,
    };
  });
  return { data, layout };
}

function importanceOf(run, values, all) {
  return { values, title: "I(h)", ends: ends([0, ...all]), reversed: false };
}

function describe(run, i, head, name) {
  const mean = run.importance.mean[i][head], place = run.importance.place[i][head];
  const settled = run.importance.settled[head];
  return [
    `<b>${name}</b>`,
    mean === null ? "I(h) was not measured" : `I(h) ${short(mean)} ± ${short(run.importance.stderr[i][head])} (standard error)`,
    `rank ${place === null ? "-" : stamp(place)} of ${count(run)}`,
    settled === null ? "its place has not settled" : `its place settled at ${run.time.unit} ${stamp(settled)}`,
  ].join("<br>");
}

function headRows({ run, i, when }, { unit }) {
  const rows = run.heads.kind.map((kind, head) => [
    run.name, when[i], kind, run.heads.layer[head], run.heads.number[head], run.importance.mean[i][head],
    run.importance.stderr[i][head], run.importance.place[i][head], run.importance.settled[head],
  ]);
  return [["run", unit, "kind", "layer", "head", "importance", "stderr", "rank", "settled_at"], ...rows];
}

// --- figure 5's curves

function curves(shown, { theme, unit }) {
  const drawn = shown.filter((one) => one.run.curves);
  if (!drawn.length) return null;
  const data = [];
  for (const { run, i, when, colour } of drawn) {
    const { fraction, importance, random, spread, draws } = run.curves;
    if (drawn.length === 1) data.push(...others(run, when, i, unit));
    const ink = drawn.length === 1 ? theme.ink : colour;
    const known = random[i].some((value) => value !== null);
    const band = known && spread[i].some((value) => value !== null);
    if (band) data.push(...banded(fraction, random[i], spread[i], ink));
    if (known) {
      data.push(line(fraction, random[i], `${of(drawn, run)}random (${draws} draw${draws > 1 ? "s" : ""})`,
        { color: ink, dash: "dash", width: 1.6 }));
    }
    const thick = { color: drawn.length === 1 ? theme.mark : colour, width: 3.5 };
    data.push(line(fraction, importance[i], `${of(drawn, run)}by I(h), ${unit} ${stamp(when[i])}`, thick));
  }
  const labels = [...new Set(drawn.map((one) => one.run.curves.label))].map((label) => wrapped(label));
  return {
    data,
    layout: {
      ...roomy(data), xaxis: { title: { text: "fraction of heads pruned" }, range: [0, 1.005], ...lines(theme) },
      yaxis: { title: { text: labels.join("<br>or "), font: { size: 11 } }, automargin: true, ...lines(theme) },
    },
  };
}

function others(run, when, now, unit) {
  const picked = evenly(when.length, MOST_LINES).filter((i) => i !== now);
  return picked.map((i) => ({
    ...line(run.curves.fraction, run.curves.importance[i], `${unit} ${stamp(when[i])}`,
      { color: viridis(when.length > 1 ? i / (when.length - 1) : 1), width: 1 }),
    showlegend: false, opacity: 0.75,
  }));
}

function banded(x, mean, sd, colour) {
  const edge = (sign) => mean.map((value, i) => (value === null || sd[i] === null ? null : value + sign * sd[i]));
  const bare = { mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
  return [{ x, y: edge(-1), ...bare }, { x, y: edge(1), ...bare, fill: "tonexty", fillcolor: `${colour}2e` }];
}

function curveRows({ run, when }, { unit }) {
  const head = ["run", unit, "fraction", "by_importance", "random", "random_sd"];
  if (!run.curves) return [head];
  const { fraction, importance, random, spread: sd } = run.curves;
  return [head, ...when.flatMap((at, i) => fraction.map((f, p) => [
    run.name, at, f, importance[i][p], random[i][p], sd[i][p],
  ]))];
}

// --- when importance settles

function settling(shown, { theme, unit, now, view: name }) {
  if (shown.every(({ when }) => when.length < 2)) return null; // the sentence above says so
  const { threshold } = shown[0].run.settling;
  const data = [];
  for (const { run, when, colour } of shown) {
    const view = viewOf(run, name), begin = of(shown, run);
    data.push(line(when, view.ceiling, `${begin}C, noise ceiling`, { color: colour, dash: "dot", width: 1.6 }));
    data.push({ ...line(when, view.r, `${begin}r with the last snapshot`, { color: colour, width: 2.5 }), mode: dotted(when) });
    const at = run.time.when.indexOf(view.settled);
    if (at < 0) continue;
    data.push({
      x: [when[at]], y: [view.r[at]], mode: "markers", name: safe(`${begin}settled at ${run.time.unit} ${stamp(view.settled)}`),
      marker: { symbol: "diamond", size: 15, color: colour, line: { color: theme.ink, width: 1.5 } },
    });
  }
  const [low, high] = ends([threshold, ...data.flatMap(({ y }) => y)]);
  const level = {
    type: "line", xref: "paper", x0: 0, x1: 1, y0: threshold, y1: threshold,
    line: { color: theme.ink, width: 1, dash: "dash" },
  };
  const last = Math.max(...shown.map(({ when }) => when.at(-1)));
  return {
    data,
    layout: {
      ...roomy(data), shapes: [level, moment(Math.min(now, last), theme)], xaxis: { title: { text: unit }, ...lines(theme) },
      // Where all is noise, r can be anything.
      yaxis: { title: { text: "rank correlation" }, range: [Math.max(low, -1) - 0.06, Math.min(high, 1.2) + 0.06], ...lines(theme) },
    },
  };
}

function settlingRows({ run, when }, { unit }) {
  const rows = run.settling.views.flatMap((view) => when.map((at, i) => [
    run.name, view.name, view.verdict, view.settled, at, view.r[i], view.ceiling[i],
  ]));
  return [["run", "heads", "verdict", "settled_at", unit, "r", "ceiling"], ...rows];
}

// --- how heads change places

function ranks([{ run, i, when, followed }], { theme, unit }) {
  if (when.length < 2) return null;
  const { place } = run.importance;
  const known = place[i].map((_, head) => head).filter((head) => place[i][head] !== null);
  const best = [...known].sort((a, b) => place[i][a] - place[i][b]).slice(0, TOP);
  const drawn = [...new Set([...best, ...followed])], names = namesOf(run).map(safe);
  const data = [];
  const rest = known.filter((head) => !drawn.includes(head));
  const some = evenly(when.length, Math.max(2, Math.floor(MOST_POINTS / rest.length)));
  data.push({
    x: rest.flatMap(() => [...some.map((at) => when[at]), null]), mode: "lines", connectgaps: false,
    y: rest.flatMap((head) => [...some.map((at) => place[at][head]), null]),
    line: { color: theme.faint, width: 1 }, opacity: 0.5, hoverinfo: "skip", showlegend: false,
  });
  const inks = drawn.map((head, k) => {
    if (followed.has(head)) return theme.mark;
    return viridis(theme === DARK ? 1 - (0.65 * k) / TOP : (0.9 * k) / TOP);
  });
  drawn.forEach((head, k) => data.push({
    x: when, y: place.map((row) => row[head]), mode: dotted(when), name: names[head], customdata: when.map(() => head),
    line: { color: inks[k], width: followed.has(head) ? 4 : 2.5 }, marker: { size: 6, color: inks[k] },
    hovertemplate: `${names[head]}: rank %{y}, ${unit} %{x}<extra></extra>`,
  }));
  const longest = Math.max(...drawn.map((head) => names[head].length));
  const height = Math.min(760, 300 + 5 * count(run)), margin = 0.01 * (when.at(-1) - when[0]);
  return {
    data,
    layout: {
      height, showlegend: false, shapes: [moment(when[i], theme)],
      xaxis: { title: { text: unit }, range: [when[0] - margin, when.at(-1) + margin], ...lines(theme) },
      yaxis: { title: { text: "rank" }, range: [count(run) + 0.8, 0.2], ...lines(theme) },
      margin: { l: 60, r: 45 + 6 * longest, t: 10, b: 45 },
      annotations: labels(drawn, place.at(-1), (14 * count(run)) / (height - 55)).map(([head, y, k]) => ({
        text: names[head], x: 1.005, xref: "paper", xanchor: "left", y, showarrow: false,
        font: { color: theme === DARK || followed.has(head) ? inks[k] : theme.ink, size: 11 },
      })),
    },
  };
}

// Where each line's name stands: at its last rank, pushed down as far as the name above it needs.
function labels(drawn, last, gap) {
  const inOrder = drawn.map((head, k) => [head, last[head], k]).filter(([, y]) => y !== null).sort((a, b) => a[1] - b[1]);
  let least = -Infinity;
  return inOrder.map(([head, y, k]) => [head, (least = Math.max(y, least + gap)), k]);
}

function rankRows({ run, when }, { unit }) {
  const rows = when.flatMap((at, i) => run.heads.kind.map((kind, head) => [
    run.name, at, kind, run.heads.layer[head], run.heads.number[head], run.importance.place[i][head],
  ]));
  return [["run", unit, "kind", "layer", "head", "rank"], ...rows];
}

// --- what the panels share

function plain(theme) {
  return {
    paper_bgcolor: theme.paper, plot_bgcolor: theme.paper, font: { color: theme.ink, size: 12, family: "system-ui, sans-serif" },
    hovermode: "closest", uirevision: "kept",
  };
}

const line = (x, y, name, style) => ({ x, y, name: safe(name), mode: "lines", line: style });
const lines = (theme) => ({ gridcolor: theme.grid, zerolinecolor: theme.grid });
const of = (shown, run) => (shown.length > 1 ? `${run.name}: ` : "");
const viewOf = (run, name) => run.settling.views.find((view) => view.name === name) ?? run.settling.views[0];
const count = (run) => run.heads.kind.length;
const dotted = (when) => (when.length > MARKED ? "lines" : "lines+markers");
const stamp = (when) => String(Math.round(when * 1000) / 1000); // an update keeps all its digits
const short = (value) => (value === null || value === undefined ? "-" : String(Number(value.toPrecision(3))));
// Plotly reads some HTML in texts: names come from strangers' files.
const safe = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function verdict(run, name, notes) {
  if (run.time.when.length) return viewOf(run, name).sentence;
  return notes ? "nothing to show, for this reason:" : "nothing measured yet: the first snapshot will appear here";
}

function failures(run) {
  const all = run.snapshots.failures, more = all.length - FAILURES;
  const told = all.slice(-FAILURES).map(([update, why]) => `update ${update} failed: ${why}`);
  return more > 0 ? [...told, `and ${more} more before`] : told;
}

// Of every head, such as "cross 1.2".
function namesOf(run) {
  const names = [];
  for (const { title, at } of run.stacks) {
    for (const head of at.flat()) if (head !== null) names[head] = `${title} ${run.heads.layer[head]}.${run.heads.number[head]}`;
  }
  return names;
}

// An axis of rows or columns by their place, so that a layer without heads takes no room; sixteen at most are named.
function named(values) {
  const places = values.map((_, at) => at).filter((at) => at % Math.ceil(values.length / 16) === 0);
  return { tickvals: places, ticktext: places.map((at) => String(values[at])), zeroline: false, showgrid: false };
}

// As much room as a legend needs below a plot: its entries stand in columns as wide as the longest.
function roomy(data) {
  const names = data.filter((trace) => trace.showlegend !== false).map((trace) => trace.name.length);
  const columns = Math.max(1, Math.floor(620 / (45 + 6.5 * Math.max(0, ...names))));
  const below = 55 + 20 * Math.ceil(names.length / columns);
  return { legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0 }, height: 325 + below,
    margin: { l: 60, r: 15, t: 10, b: below } };
}

function moment(now, theme) {
  return { type: "line", x0: now, x1: now, yref: "paper", y0: 0, y1: 1, line: { color: theme.mark, width: 1.5 } };
}

// Smallest and largest, apart even where all are equal: a scale has two ends.
function ends(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value === null) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return low < high ? [low, high] : low === high ? [low, low + 1] : [0, 1];
}

function viridis(share) {
  const at = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1), from = Math.min(Math.floor(at), VIRIDIS.length - 2);
  const [a, b] = [VIRIDIS[from], VIRIDIS[from + 1]].map((hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)));
  return `rgb(${a.map((value, k) => Math.round(value + (at - from) * (b[k] - value))).join(",")})`;
}

// Positions 0 to length - 1, or so many of them, the first and the last among them.
function evenly(length, most) {
  if (length <= most) return [...Array(length).keys()];
  return [...new Set([...Array(most).keys()].map((k) => Math.round((k * (length - 1)) / (most - 1))))];
}

function wrapped(text, width = 48) {
  const rows = [""];
  for (const word of String(text).split(" ")) {
    if (rows.at(-1).length + word.length > width) rows.push("");
    rows[rows.length - 1] += `${word} `;
  }
  return rows.map((row) => safe(row.trim())).join("<br>");
}

// A cell of CSV; what a spreadsheet would take for a formula stands behind an apostrophe.
function cell(value) {
  const text = value === null ? "" : typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
}

function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function choice(name, options) {
  return make("select", { class: name, "aria-label": name }, ...options.map((option) => make("option", {}, option)));
}
