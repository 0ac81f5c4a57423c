"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const everything = (selector, within = document) => [...within.querySelectorAll(selector)];
const narrow = matchMedia("(max-width: 760px)");
const darkSystem = matchMedia("(prefers-color-scheme: dark)");

// All that a reader can change. Drawing reads it, and nothing else does.
const shown = {
  axis: "steps",
  runs: new Set(data.runs.keys()),
  range: null, // of the axis; null for all
  log: new Set(data.figures.filter((figure) => figure.log).map((figure) => figure.key)),
  get spread() { return document.querySelector("[name=spread]").checked; },
  get best() { return document.querySelector("[name=best]")?.checked; },
  get dark() { return (document.documentElement.dataset.theme || (darkSystem.matches ? "dark" : "light")) === "dark"; },
};

function colours() {
  const css = getComputedStyle(document.documentElement);
  return Object.fromEntries(["paper", "ink", "quiet", "rule", "grid", "low", "high"].map((name) => [name, css.getPropertyValue(`--${name}`).trim()]));
}

function colourOf(run) {
  const sample = document.querySelector(`.colour-${data.runs[run].colour}`);
  return getComputedStyle(sample).getPropertyValue(shown.dark ? "--line-dark" : "--line-light").trim();
}

function translucent(colour, opacity) {
  const [red, green, blue] = [1, 3, 5].map((place) => parseInt(colour.slice(place, place + 2), 16));
  return `rgba(${red},${green},${blue},${opacity})`;
}

// Plotly's labels know some markup, which a run's name is not.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("%{", "% {");

// ---- plots

const settings = { displayModeBar: false, responsive: true, doubleClick: false };

function layout(height) {
  const { paper, ink, quiet, rule, grid } = colours();
  const axis = {
    gridcolor: grid, linecolor: rule, zeroline: false, automargin: true, ticks: "",
    tickfont: { color: quiet, size: 12 }, title: { font: { color: quiet, size: 12.5 }, standoff: 8 },
    exponentformat: "power", separatethousands: true,
  };
  return {
    height, paper_bgcolor: paper, plot_bgcolor: paper, showlegend: false,
    margin: { l: 44, r: 12, t: 6, b: 40 },
    font: { family: getComputedStyle(document.body).fontFamily, color: ink, size: 13 },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    hoverdistance: 30,
    hoverlabel: { bgcolor: paper, bordercolor: rule, font: { color: ink, size: 13 }, namelength: -1, align: "left" },
    xaxis: { ...axis }, yaxis: { ...axis },
  };
}

function along(horizontal) {
  Object.assign(horizontal, { showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "solid", spikecolor: colours().rule });
  horizontal.title = { ...horizontal.title, text: data.axes[shown.axis] };
  horizontal.tickformat = shown.axis === "steps" || shown.axis === "rounds" ? ",~r" : "";
  Object.assign(horizontal, { range: shown.range ? [...shown.range] : [0, 1.015 * end()], autorange: false });
  horizontal.unifiedhovertitle = { text: `%{x:,} ${shown.axis === "steps" ? "local steps" : "rounds"}` };
}

// Where the axis ends: at the end of the longest run that is shown.
function end() {
  const points = data.figures.flatMap((figure) => figure.curves.filter((curve, run) => curve && shown.runs.has(run)));
  return points.reduce((most, curve) => Math.max(most, curve.x[shown.axis].at(-1)), 0) || 1;
}

function tracesOf(figure, run) {
  const curve = figure.curves[run], best = shown.best && figure.best?.[run];
  const name = plain(data.runs[run].name), { dash } = data.runs[run], colour = colourOf(run);
  const number = figure.unit === "%" ? "%{y:.1%}" : "%{y:.4~g}";
  const against = `%{x:,.4~r} ${{ steps: "steps", rounds: "rounds", bytes: "MB", seconds: "s", virtual: "s" }[shown.axis]}`;
  const unified = shown.axis === "steps" || shown.axis === "rounds";
  const base = { type: "scatter", visible: shown.runs.has(run), connectgaps: false };
  const traces = [];
  if (shown.spread && curve?.low) {
    const edge = { ...base, name: `${name}, spread`, x: curve.x[shown.axis], mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
    traces.push({ ...edge, y: curve.low }, { ...edge, y: curve.high, fill: "tonexty", fillcolor: translucent(colour, shown.dark ? 0.2 : 0.14) });
  }
  const drawn = (points, label, width, opacity) => ({
    ...base, name: label, x: points.x[shown.axis], y: points.y, opacity,
    mode: points.y.length < 30 ? "lines+markers" : "lines",
    line: { color: colour, width, dash },
    marker: { color: colour, size: points.y.length === 1 ? 9 : width + 2.5 },
    hovertemplate: unified ? `${label}  <b>${number}</b><extra></extra>` : `<b>${label}</b><br>${number} at ${against}<extra></extra>`,
  });
  if (curve) traces.push(drawn(curve, name, 2.2, 1));
  if (best) traces.push(drawn(best, `${name}, best worker`, 1.1, 0.75));
  return traces;
}

function drawCurves(figure) {
  const plot = document.querySelector(`#${figure.key} .plot`);
  const look = layout(narrow.matches ? 270 : 320);
  look.hovermode = shown.axis === "steps" || shown.axis === "rounds" ? "x unified" : "closest";
  along(look.xaxis);
  const log = shown.log.has(figure.key);
  Object.assign(look.yaxis, { type: log ? "log" : "linear", tickformat: figure.unit === "%" ? ",.0%" : "", uirevision: `${shown.axis} ${log}` });
  if (log) Object.assign(look.yaxis, logTicks(figure));
  const traces = [...data.runs.keys()].flatMap((run) => tracesOf(figure, run));
  return Plotly.react(plot, traces, look, settings).then(() => linkZoom(plot));
}

// Labels at powers of ten, of each or of every other one; of two decades or less also at 2 and 5.
function logTicks(figure) {
  const values = figure.curves.flatMap((curve, run) => (curve && shown.runs.has(run) ? [...curve.y, ...((shown.spread && curve.low) || [])] : [])).filter((value) => value > 0);
  if (!values.length) return {};
  const least = Math.floor(Math.log10(values.reduce((a, b) => Math.min(a, b)))), most = Math.ceil(Math.log10(values.reduce((a, b) => Math.max(a, b))));
  const every = Math.ceil((most - least) / 8);
  const tickvals = [];
  for (let power = least - 4 * every; power <= most + 4 * every; power += every) {
    for (const digit of most - least <= 3 ? [1, 2, 5] : [1]) tickvals.push(digit * 10 ** power);
  }
  const label = (value) => {
    const power = Math.round(Math.log10(value));
    return power < -4 || power > 5 ? `10<sup>${String(power).replace("-", "−")}</sup>` : String(Number(value.toPrecision(1)));
  };
  const labelled = tickvals.filter((value) => Math.abs(Math.log10(value)) < 4.5 || Number.isInteger(Number(Math.log10(value).toFixed(9))));
  return { tickvals: labelled, ticktext: labelled.map(label) };
}

function drawLeaders(trace) {
  const plot = document.querySelector(`#leaders-${trace.run} .plot`);
  const { workers } = data.runs[trace.run];
  const height = narrow.matches ? Math.min(300, 74 + workers * 16) : 320;
  const look = layout(height);
  const row = (height - 56) / workers;
  along(look.xaxis);
  look.hovermode = "closest";
  Object.assign(look.yaxis, { title: { ...look.yaxis.title, text: "worker" }, range: [-0.7, workers - 0.3], fixedrange: true, tickformat: "d", showgrid: workers <= 40 });
  if (workers <= 16) look.yaxis.dtick = 1;
  const bars = (ofAll) => {
    const [x, y, text] = [[], [], []];
    trace.worker.forEach((worker, stretch) => {
      if (trace.of_all[stretch] !== ofAll) return;
      const [since, until] = [trace.since[shown.axis][stretch], trace.until[shown.axis][stretch]];
      // A point in the middle is for the pointer to find.
      x.push(since, (since + until) / 2, until, null);
      y.push(worker, worker, worker, null);
      text.push(...Array(4).fill(`worker ${worker} led ${ofAll ? "" : "a group "}from ${rounded(since)} to ${rounded(until)}`));
    });
    const width = Math.max(2.5, Math.min(14, row * 0.62)) * (ofAll ? 1 : 0.45);
    const colour = translucent(colourOf(trace.run), ofAll ? 1 : 0.75);
    return { type: "scatter", mode: "lines", name: plain(data.runs[trace.run].name), x, y, text, hoverinfo: "text", line: { color: colour, width } };
  };
  document.getElementById(`leaders-${trace.run}`).classList.toggle("hidden", !shown.runs.has(trace.run));
  return Plotly.react(plot, [bars(false), bars(true)], look, settings).then(() => linkZoom(plot));
}

function drawTimeline(timeline) {
  const plot = document.querySelector(`#timeline-${timeline.run} .plot`);
  const look = layout(Math.max(150, Math.min(narrow.matches ? 380 : 520, 64 + timeline.workers * 26)));
  const row = (look.height - 56) / timeline.workers;
  const { quiet, rule } = colours();
  look.hovermode = "closest";
  Object.assign(look.xaxis, { title: { ...look.xaxis.title, text: "virtual seconds" }, rangemode: "tozero" });
  Object.assign(look.yaxis, { title: { ...look.yaxis.title, text: "worker" }, range: [timeline.workers - 0.4, -0.6], fixedrange: true, tickformat: "d", showgrid: false });
  if (timeline.workers <= 16) look.yaxis.dtick = 1;
  const bars = (kind, colour, width) => {
    const [x, y, text] = [[], [], []];
    timeline[kind].worker.forEach((worker, span) => {
      const [since, until] = [timeline[kind].since[span], timeline[kind].until[span]];
      x.push(since, (since + until) / 2, until, null);
      y.push(worker, worker, worker, null);
      text.push(...Array(4).fill(`worker ${worker} ${kind} for ${rounded(until - since)} s, until ${rounded(until)}`));
    });
    return { type: "scatter", mode: "lines", name: kind, x, y, text, hoverinfo: "text", line: { color: colour, width } };
  };
  const thick = Math.max(2, Math.min(16, row * 0.66));
  const traces = [bars("computing", colourOf(timeline.run), thick), bars("waiting", rule, thick), bars("sending", quiet, Math.max(1, thick / 6))];
  document.getElementById(`timeline-${timeline.run}`).classList.toggle("hidden", !shown.runs.has(timeline.run));
  return Plotly.react(plot, traces, look, settings);
}

const rounded = (value) => Number(value.toPrecision(4)).toLocaleString("en");

function drawHoldings(picture, number) {
  const plot = document.querySelector(`#holdings-${number} .plot`);
  const { low, high } = colours();
  const names = picture.names.map(plain);
  const rows = names.length, several = rows > 1;
  const height = 130 + (several ? rows * (narrow.matches ? 17 : 21) + 20 : 0);
  const look = layout(height);
  const bars = several ? 66 / height : 1;
  const columns = picture.sizes.length;
  Object.assign(look.xaxis, { title: { ...look.xaxis.title, text: picture.first ? "workers, ordered by what they hold" : "worker" }, range: [-0.6, columns - 0.4], showgrid: false, fixedrange: true, tickformat: "d" });
  if (picture.first) {
    const every = 10 ** Math.floor(Math.log10(picture.workers / 2)) * (picture.workers / 10 ** Math.floor(Math.log10(picture.workers / 2)) > 10 ? 2 : 1);
    const ticks = Array.from({ length: Math.ceil(picture.workers / every) }, (_, tick) => tick * every);
    Object.assign(look.xaxis, { tickvals: ticks.map((worker) => (worker * columns) / picture.workers), ticktext: ticks.map((worker) => worker.toLocaleString("en")) });
  } else if (columns <= 20) look.xaxis.dtick = 1;
  Object.assign(look.yaxis, { domain: [0, several ? 1 - bars - 0.04 : 0], range: [rows - 0.4, -0.6], tickvals: [...names.keys()], ticktext: names, fixedrange: true, showgrid: !picture.first });
  look.yaxis2 = { ...look.yaxis, domain: [1 - bars, 1], range: undefined, autorange: true, rangemode: "tozero", tickvals: undefined, ticktext: undefined, nticks: 3, tickformat: ",~r", showgrid: true, title: { ...look.yaxis.title, text: "samples" } };
  look.xaxis.anchor = several ? "y" : "y2";
  look.hovermode = "closest";
  look.bargap = picture.first ? 0 : 0.3;
  const worker = picture.first ? "about worker %{x}" : "worker %{x}";
  const traces = [{ type: "bar", yaxis: "y2", x: [...picture.sizes.keys()], y: picture.sizes, marker: { color: high, line: { width: 0 } }, hovertemplate: `${worker}: %{y:,.4~r} samples<extra></extra>` }];
  if (several && picture.first) {
    traces.push({ type: "heatmap", z: picture.shares, zmin: 0, colorscale: [[0, low], [1, high]], showscale: false, customdata: picture.shares.map((row, group) => row.map(() => names[group])), hovertemplate: "%{customdata}: %{z:.1%}<extra></extra>" });
  } else if (several) {
    const cells = picture.counts.flatMap((counts, column) => counts.map((count, group) => ({ column, group, count }))).filter((cell) => cell.count);
    const most = Math.max(...cells.map((cell) => cell.count));
    const wide = (plot.clientWidth - 90) / columns, tall = (height * (1 - bars) - 60) / rows;
    traces.push({
      type: "scatter", mode: "markers", x: cells.map((cell) => cell.column), y: cells.map((cell) => cell.group),
      customdata: cells.map((cell) => [cell.count, names[cell.group]]),
      marker: { color: high, line: { width: 0 }, opacity: 1, size: cells.map((cell) => Math.max(1.5, Math.min(wide, tall, 26) * Math.sqrt(cell.count / most))) },
      hovertemplate: "worker %{x}: %{customdata[0]:,} of %{customdata[1]}<extra></extra>",
    });
  }
  return Plotly.react(plot, traces, look, settings);
}

function draw() {
  everything("[data-run].run").forEach((button) => button.setAttribute("aria-pressed", shown.runs.has(Number(button.dataset.run))));
  everything("#summary tbody tr").forEach((row) => row.classList.toggle("hidden", !shown.runs.has(Number(row.dataset.run))));
  return Promise.all([...data.figures.map(drawCurves), ...data.leaders.map(drawLeaders), ...data.timelines.map(drawTimeline), ...data.holdings.map(drawHoldings)]);
}

// To zoom one plot is to zoom all that have its axis.
function linkZoom(plot) {
  if (plot.linked) return;
  plot.linked = true;
  plot.on("plotly_relayout", (change) => {
    if (change["xaxis.range[0]"] === undefined) return;
    shown.range = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
    draw();
  });
  plot.on("plotly_doubleclick", () => {
    shown.range = null;
    Promise.all(everything(".plot").filter((each) => each.linked && each.layout.yaxis.fixedrange !== true).map((each) => Plotly.relayout(each, { "yaxis.autorange": true }))).then(draw);
  });
}

// ---- what a reader can change

everything(".run").forEach((button) => {
  const run = Number(button.dataset.run);
  button.title = "Click to show or hide, double-click to see it alone";
  button.addEventListener("click", () => {
    shown.runs.has(run) ? shown.runs.delete(run) : shown.runs.add(run);
    draw();
  });
  button.addEventListener("dblclick", () => {
    const alone = shown.runs.size === 1 && shown.runs.has(run);
    shown.runs = new Set(alone ? data.runs.keys() : [run]);
    draw();
  });
});

everything(".group .name").forEach((name) => name.addEventListener("click", () => {
  const runs = everything(".run", name.parentElement).map((button) => Number(button.dataset.run));
  const all = runs.every((run) => shown.runs.has(run));
  runs.forEach((run) => (all ? shown.runs.delete(run) : shown.runs.add(run)));
  draw();
}));

everything("[name=axis]").forEach((choice) => choice.addEventListener("change", () => {
  shown.axis = choice.value;
  shown.range = null;
  draw();
}));

everything(".toggle input").forEach((choice) => choice.addEventListener("change", draw));

everything(".log").forEach((button) => button.addEventListener("click", () => {
  const figure = data.figures.find((each) => each.key === button.closest("figure").id);
  shown.log.has(figure.key) ? shown.log.delete(figure.key) : shown.log.add(figure.key);
  button.setAttribute("aria-pressed", shown.log.has(figure.key));
  drawCurves(figure);
}));

document.querySelector(".theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = shown.dark ? "light" : "dark";
  try { localStorage.setItem("tether-theme", document.documentElement.dataset.theme); } catch { }
  draw();
});
darkSystem.addEventListener("change", draw);

// Missing numbers stay last either way.
everything("table.sortable thead th").forEach((heading, column) => heading.addEventListener("click", () => {
  const body = heading.closest("table").tBodies[0];
  const first = column ? "descending" : "ascending";
  const other = { ascending: "descending", descending: "ascending" };
  const order = heading.hasAttribute("aria-sort") ? other[heading.getAttribute("aria-sort")] : first;
  everything("thead th", heading.closest("table")).forEach((each) => each.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", order);
  const value = (row) => (row.cells[column].dataset.value === undefined ? NaN : Number(row.cells[column].dataset.value));
  const rows = [...body.rows].sort((a, b) => {
    const [left, right] = [value(a), value(b)];
    if (Number.isNaN(left) || Number.isNaN(right)) return Number.isNaN(left) - Number.isNaN(right);
    return order === "ascending" ? left - right : right - left;
  });
  body.append(...rows);
}));

let resizing;
addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(draw, 150); });

draw().then(() => { document.documentElement.dataset.drawn = "true"; });
