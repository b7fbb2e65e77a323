// The page of tool/report/compare.py: tables that sort, bars a class, curves. The images are report_scenes.js's part.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const report = data.report, runs = report.runs;
const state = { before: data.before, after: data.after, class: -1, order: "lost", index: 0 };
const byId = (id) => document.getElementById(id);

// Okabe and Ito's colours, which most kinds of colour blindness keep apart, and a dash of its own for each curve.
const ROLES = { teacher: "#7f7f7f", student: "#e69f00", distilled: "#0072b2" };
const OTHERS = ["#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b3a600"];
const DASHES = ["", "6 3", "2 3", "9 3 2 3", "12 4"];
const used = new Set();
const colors = runs.map((run, i) => {
  const own = ROLES[run.role], color = own && !used.has(own) ? own : OTHERS[i % OTHERS.length];
  used.add(color);
  return color;
});

const MISSING = "–";
const signed = (value, digits) => (value < 0 ? "−" : "+") + Math.abs(100 * value).toFixed(digits);
const percent = (value, digits = 1) => (value == null ? MISSING : (100 * value).toFixed(digits));
const gain = (value, digits = 1) => (value == null ? MISSING : signed(value, digits));
const range = (pair, format) => `${format(pair[0])} … ${format(pair[1])}`;
const number = (value, digits = 1) => (value == null ? MISSING : value.toFixed(digits));

/** An element with properties and children; text goes in as text, so a class may have any name. */
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "style") node.style.cssText = value;
    else if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.flat());
  return node;
}

const swatch = (color) => el("i", { className: "swatch", style: `background:${color}` });
const classColor = (index) => `rgb(${data.colors[index]})`;

/** How to go from run `before` to run `after`, whichever way the report holds it. */
function difference(before, after) {
  for (const d of report.differences) {
    if (d.before === before && d.after === after) return d;
    if (d.before !== after || d.after !== before) continue;
    const turn = (pair) => [-pair[1], -pair[0]];
    return {
      mIoU: -d.mIoU, interval: turn(d.interval), border: -d.border, inside: -d.inside, fixed: d.broken,
      broken: d.fixed, classes: d.classes.map((v) => -v), class_intervals: d.class_intervals.map(turn),
    };
  }
  const none = report.classes.map(() => 0);
  return { mIoU: 0, interval: [0, 0], border: 0, inside: 0, fixed: 0, broken: 0, classes: none, class_intervals: none.map(() => [0, 0]) };
}

/**
 * Fill a table whose headings sort it. columns: {label, value(row), cell(row), text, className, title}; one without a
 * value does not sort; text sorts upwards first, other values downwards. Missing values (null) stay last. Remembers its order when filled again.
 */
const sorting = {};
function fillTable(table, columns, rows) {
  const order = (sorting[table.id] ??= { column: null, up: false });
  const sorted = [...rows];
  if (order.column !== null) {
    const { value } = columns[order.column];
    sorted.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x == null || y == null) return (x == null) - (y == null);
      return (order.up ? 1 : -1) * (typeof x === "string" ? x.localeCompare(y) : x - y);
    });
  }
  const head = columns.map((column, i) => {
    const cell = el("th", { scope: "col", className: column.className ?? "", title: column.title ?? "" });
    if (!column.value) return cell;
    const sort = () => {
      Object.assign(order, order.column === i ? { up: !order.up } : { column: i, up: Boolean(column.text) });
      fillTable(table, columns, rows);
      table.querySelectorAll("th button")[i].focus();
    };
    cell.append(el("button", { type: "button", onclick: sort }, column.label));
    if (order.column === i) cell.setAttribute("aria-sort", order.up ? "ascending" : "descending");
    return cell;
  });
  const body = sorted.map((row) => el("tr", {}, columns.map((c) => el("td", { className: c.className ?? "" }, c.cell(row)))));
  table.replaceChildren(el("thead", {}, el("tr", {}, head)), el("tbody", {}, body));
}

/** A dot with its interval on a scale from low to high; zero, where it lies inside, as an upright line. */
function plot(value, interval, low, high, color) {
  const at = (v) => 100 * (v - low) / (high - low || 1);
  const [from, to] = interval.map(at);
  const marks = low < 0 && high > 0 ? [el("u", { style: `left:${at(0)}%` })] : [];
  marks.push(el("i", { style: `left:${from}%;width:${to - from}%` }), el("b", { style: `left:${at(value)}%` }));
  return el("div", { className: "plot", style: `color:${color}` }, marks);
}

function showRuns() {
  const base = report.baseline, low = Math.min(...runs.map((r) => r.interval[0])), high = Math.max(...runs.map((r) => r.interval[1]));
  const rows = runs.map((run, i) => ({ ...run, i, change: i === base ? null : difference(base, i) }));
  const plain = (label, key, format, title) => ({ label, title, value: (r) => r[key], cell: (r) => format(r[key]) });
  const columns = [
    { label: "run", text: true, value: (r) => r.title, cell: (r) => [swatch(colors[r.i]), r.title] },
    { label: "mIoU %", className: "strong", value: (r) => r.mIoU, cell: (r) => percent(r.mIoU) },
    { label: "95 % interval", value: (r) => r.interval[0], cell: (r) => el("small", {}, range(r.interval, percent)) },
    { title: "mIoU and its interval", cell: (r) => plot(r.mIoU, r.interval, low, high, colors[r.i]) },
    { label: `gain over ${runs[base].title}`, value: (r) => r.change?.mIoU ?? null,
      cell: (r) => r.change ? [gain(r.change.mIoU), " ", el("small", {}, range(r.change.interval, gain))] : MISSING },
    { label: "gap closed %", value: (r) => r.gap_closed, title: "from the student alone to the teacher",
      cell: (r) => r.gap_closed == null ? MISSING : [percent(r.gap_closed, 0), " ", el("small", {}, range(r.gap_closed_interval, (v) => percent(v, 0)))] },
    plain("border mIoU", "border", percent, "near borders between labels"),
    plain("inside mIoU", "inside", percent, "away from borders between labels"),
    plain("pixel acc. %", "allAcc", percent),
    plain("M param.", "parameters", (v) => number(v && v / 1e6)),
    plain("GFLOP", "GFLOP", number),
    plain("ms", "ms", number, "milliseconds an image"),
  ];
  fillTable(byId("runs"), columns, rows);
}

function showChange() {
  const d = difference(state.before, state.after), [before, after] = [runs[state.before], runs[state.after]];
  const pixels = `Of the pixels ${percent(d.fixed)} % were fixed and ${percent(d.broken)} % broken.`;
  byId("change").textContent =
    `mIoU ${gain(d.mIoU)} points (${range(d.interval, gain)}); near borders ${gain(d.border)}, inside ${gain(d.inside)}. ${pixels}`;
  const ends = d.class_intervals.flat(), low = Math.min(0, ...ends), high = Math.max(0, ...ends);
  const color = (row) => row.interval[0] > 0 ? "var(--fixed)" : row.interval[1] < 0 ? "var(--broken)" : "var(--both)";
  const rows = report.classes.map((name, i) => ({ name, i, gain: d.classes[i], interval: d.class_intervals[i] }));
  const bars = (row) => el("div", { className: "bars" }, runs.map((run, r) =>
    el("i", { style: `width:${100 * run.classes[row.i]}%;background:${colors[r]}`, title: `${run.title} ${percent(run.classes[row.i])} %` })));
  const score = (run) => ({ label: run.title, className: "wide", value: (r) => run.classes[r.i], cell: (r) => percent(run.classes[r.i]) });
  fillTable(byId("classes"), [
    { label: "class", text: true, value: (r) => r.name,
      cell: (r) => el("button", { type: "button", title: `images with ${r.name}`, onclick: () => filterClass(r.i, true) }, swatch(classColor(r.i)), r.name) },
    { label: "IoU of all runs", className: "left", value: (r) => after.classes[r.i], cell: bars },
    score(before), score(after),
    { label: "gain", className: "strong", value: (r) => r.gain, cell: (r) => gain(r.gain) },
    { label: "95 % interval", className: "wide", value: (r) => r.interval[0], cell: (r) => plot(r.gain, r.interval, low, high, color(r)) },
  ], rows);
}

/** One chart: a value of metrics.jsonl over the epochs, a line a run, named at its end. */
function drawCurve(svg, key) {
  const W = 560, H = 260, left = 44, right = 110, bottom = 24, top = 10;
  const node = (tag, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text) made.textContent = text;
    return made;
  };
  const lines = data.history.map((lines) => lines.filter((line) => Number.isFinite(line[key])));
  const values = lines.flat().map((line) => line[key]), last = Math.max(...lines.flat().map((line) => line.epoch), 2);
  const high = Math.max(...values), low = Math.min(0, ...values);
  const x = (epoch) => left + (W - left - right) * (epoch - 1) / (last - 1);
  const y = (value) => H - bottom - (H - bottom - top) * (value - low) / (high - low || 1);
  svg.replaceChildren();
  const ten = 10 ** Math.floor(Math.log10((high - low) / 4 || 1)), step = ten * [1, 2, 5, 10].find((m) => 4.5 * m * ten >= high - low);
  for (let v = Math.ceil(low / step) * step; v <= high * 1.0001; v += step) {
    svg.append(node("line", { class: "grid", x1: left, x2: W - right, y1: y(v), y2: y(v) }));
    svg.append(node("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, String(+v.toPrecision(3))));
  }
  for (const epoch of new Set([1, Math.round((last + 1) / 2), last]))
    svg.append(node("text", { x: x(epoch), y: H - 6, "text-anchor": "middle" }, epoch === last ? `epoch ${epoch}` : epoch));
  const ends = [];
  lines.forEach((points, r) => {
    if (!points.length) return;
    const path = points.map((p, i) => `${i ? "L" : "M"}${x(p.epoch).toFixed(1)} ${y(p[key]).toFixed(1)}`).join("");
    svg.append(node("path", { d: path, stroke: colors[r], "stroke-dasharray": DASHES[r % DASHES.length] }));
    for (const p of points) {
      const dot = node("circle", { cx: x(p.epoch), cy: y(p[key]), r: points.length > 60 ? 1 : 2.5, fill: colors[r] });
      dot.append(node("title", {}, `${runs[r].title}, epoch ${p.epoch}: ${p[key].toPrecision(4)}`));
      svg.append(dot);
    }
    const end = points.at(-1);
    ends.push({ r, x: x(end.epoch) + 8, y: y(end[key]) + 4 });
  });
  ends.sort((a, b) => a.y - b.y).forEach((end, i) => {
    if (i) end.y = Math.max(end.y, ends[i - 1].y + 14); // names must not lie on each other
    svg.append(node("text", { x: end.x, y: end.y, style: `fill:${colors[end.r]};font-weight:600` }, runs[end.r].title));
  });
}

function showCurves() {
  const keys = [...new Set(data.history.flat().flatMap((line) => Object.keys(line)))].filter((key) => key !== "epoch");
  byId("curves-section").hidden = !keys.length;
  const drawn = data.history.filter((lines) => lines.length), common = (key) => drawn.every((lines) => key in lines.at(-1));
  const first = ["val_mIoU", "train_mIoU"].find(common), second = keys.includes("ce") ? "ce" : "loss";
  for (const chosen of keys.length ? [first ?? keys[0], second] : []) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 560 260");
    svg.setAttribute("role", "img");
    const choice = el("select", { "aria-label": "value drawn", onchange: () => draw() }, keys.map((key) => el("option", { value: key, selected: key === chosen }, key)));
    const draw = () => { svg.setAttribute("aria-label", `${choice.value} by epoch`); drawCurve(svg, choice.value); };
    byId("curves").append(el("div", {}, el("p", { className: "controls" }, choice), svg));
    draw();
  }
}

function showText() {
  document.title = byId("title").textContent = report.title;
  byId("headline").textContent = report.headline;
  byId("notes").append(...report.notes.map((note) => el("li", {}, note)));
  byId("reading").append(...report.reading.map((line) => el("li", {}, line.replace(/^- /, ""))));
  byId("run-legend").append(...runs.map((run, i) => el("li", {}, swatch(colors[i]), run.title)));
  for (const key of ["before", "after"]) {
    byId(key).append(...runs.map((run, i) => el("option", { value: i, selected: i === state[key] }, run.title)));
    byId(key).onchange = (event) => { state[key] = +event.target.value; showChange(); showScenes(); };
  }
}

showText();
showRuns();
showChange();
showCurves();
