// The page's training curves.
"use strict";

const DASHES = ["", "6 3", "2 3", "9 3 2 3", "12 4"]; // a pattern for each run, beside its colour

/** One chart: a value of metrics.jsonl by epoch, one line per run with the run's title at its end. */
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
    if (i) end.y = Math.max(end.y, ends[i - 1].y + 14); // titles must not overlap
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

showCurves();
