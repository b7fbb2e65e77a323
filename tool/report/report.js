// The page of tool/report/compare.py: text, sortable tables, bars for each class.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const report = data.report, runs = report.runs;
const state = { before: data.before, after: data.after, class: -1, order: "lost", index: 0 };
const byId = (id) => document.getElementById(id);

// The colours of Okabe and Ito, which remain distinct with most kinds of colour blindness.
const ROLES = { teacher: "#7f7f7f", student: "#e69f00", distilled: "#0072b2" };
const OTHERS = ["#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b3a600"];
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

/** An element with properties and children; strings become text nodes, so names cannot inject HTML. */
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

/** The difference between two runs; the report holds each pair once, in one direction. */
function difference(before, after) {
  for (const d of report.differences) {
    if (d.before === before && d.after === after) return d;
    if (d.before !== after || d.after !== before) continue;
    const negated = (pair) => [-pair[1], -pair[0]];
    return {
      mIoU: -d.mIoU, interval: negated(d.interval), border: -d.border, inside: -d.inside, fixed: d.broken,
      broken: d.fixed, classes: d.classes.map((v) => -v), class_intervals: d.class_intervals.map(negated),
    };
  }
  const none = report.classes.map(() => 0);
  return { mIoU: 0, interval: [0, 0], border: 0, inside: 0, fixed: 0, broken: 0, classes: none, class_intervals: none.map(() => [0, 0]) };
}

/**
 * Fill a table whose headings sort it.
 * columns: {label, value(row), cell(row), text, className, title}.
 * A column without value() does not sort; text sorts ascending first, other values descending; null
 * stays last. The order is kept when the table is filled again.
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

/** A dot with its interval on a scale from low to high, with a vertical line at zero if it is in range. */
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
