// The page's images: panels of image, truth, labels of each run and changes; how to step through.
"use strict";

const VOID = [224, 224, 224], PAPER = 255, FADE = 0.82; // how far labels of other classes go towards white
const FIXED = [0, 114, 178], BROKEN = [213, 94, 0], STRIPE = [122, 51, 0], BOTH = [154, 161, 171];
const scenes = data.scenes, classes = report.classes;

/** The inverse of _pack in page.py. */
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The scene's labels and image pixels, decoded when first looked at. */
function decoded(scene) {
  scene.decoded ??= (async () => {
    const picture = new Image();
    picture.src = scene.image;
    const [truth, ...maps] = await Promise.all([scene.truth, ...scene.maps].map(unpack));
    await picture.decode();
    const canvas = el("canvas", { width: scene.width, height: scene.height }), context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    return { truth, maps, pixels: context.getImageData(0, 0, scene.width, scene.height).data };
  })();
  return scene.decoded;
}

/** IoU of one class, or the mean over the classes in truth or prediction; null where there is none. */
function sceneIoU(scene, run, chosen) {
  const [hit, truth, predicted] = scene.counts[run];
  const among = chosen < 0 ? classes.map((_, c) => c) : [chosen];
  const values = among.filter((c) => truth[c] + predicted[c]).map((c) => hit[c] / (truth[c] + predicted[c] - hit[c]));
  return values.length ? values.reduce((a, b) => a + b) / values.length : null;
}

const share = (scene, from, to) => scene.corrected[from][to] / Math.max(scene.valid, 1);
const fixedShare = (scene) => share(scene, state.before, state.after);
const brokenShare = (scene) => share(scene, state.after, state.before);

/** What a scene is sorted by: IoU after, or the change: of the class's IoU, or of the share of right pixels. */
function measure(scene) {
  const after = sceneIoU(scene, state.after, state.class) ?? 0;
  if (state.order === "low" || state.order === "high") return after;
  if (state.class < 0) return fixedShare(scene) - brokenShare(scene);
  return after - (sceneIoU(scene, state.before, state.class) ?? 0);
}

/** The scenes that show the chosen class, in the chosen order. */
function shown() {
  const present = (scene) => [state.before, state.after].some((run) => sceneIoU(scene, run, state.class) !== null);
  const list = scenes.filter(present);
  if (state.order === "list") return list;
  const way = state.order === "lost" || state.order === "low" ? 1 : -1;
  return list.sort((a, b) => way * (measure(a) - measure(b)));
}

/** A canvas of a scene's size whose pixel i has the colour that paint(i) gives. */
function paint(scene, color) {
  const canvas = el("canvas", { width: scene.width, height: scene.height }), context = canvas.getContext("2d");
  const picture = context.createImageData(scene.width, scene.height);
  for (let i = 0, at = 0; i < scene.width * scene.height; i++) {
    const [red, green, blue] = color(i);
    picture.data[at++] = red;
    picture.data[at++] = green;
    picture.data[at++] = blue;
    picture.data[at++] = 255;
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

const labelColors = () => [...Array(256).keys()].map((label) => {
  const own = label < classes.length ? data.colors[label] : VOID;
  return state.class < 0 || label === state.class ? own : own.map((v) => v + FADE * (PAPER - v));
});

/** Blue where the change fixed a pixel, striped where it broke one, gray where both are wrong, over the faded image. */
function changes(scene, { truth, maps, pixels }) {
  const [before, after] = [maps[state.before], maps[state.after]];
  return paint(scene, (i) => {
    const label = truth[i], counts = label < classes.length && (state.class < 0 || [label, before[i], after[i]].includes(state.class));
    if (counts && after[i] !== label) {
      if (before[i] !== label) return BOTH;
      return ((i % scene.width) + Math.floor(i / scene.width)) % 4 < 2 ? BROKEN : STRIPE;
    }
    if (counts && before[i] !== label) return FIXED;
    const gray = 0.299 * pixels[4 * i] + 0.587 * pixels[4 * i + 1] + 0.114 * pixels[4 * i + 2], light = 212 + gray / 6;
    return [light, light, light];
  });
}

function panel(title, note, picture) {
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", `${title} ${note}`);
  return el("figure", {}, el("figcaption", {}, el("span", {}, title), el("span", {}, note)), picture);
}

let drawing = 0;
async function showScene(list) {
  const scene = list[state.index], turn = ++drawing;
  byId("scenes").setAttribute("aria-busy", "true");
  byId("position").textContent = list.length ? `${state.index + 1} of ${list.length}` : "none";
  byId("previous").disabled = state.index <= 0;
  byId("next").disabled = state.index >= list.length - 1;
  if (!scene) {
    byId("scene-title").textContent = scenes.length ? `No image here shows ${classes[state.class]}.` : "No images in this page.";
    byId("scenes").setAttribute("aria-busy", "false");
    return byId("panels").replaceChildren();
  }
  const parts = await decoded(scene);
  if (turn !== drawing) return; // another image was asked for meanwhile
  const palette = labelColors(), iou = (run) => `IoU ${percent(sceneIoU(scene, run, state.class), 0)} %`;
  const panels = [panel("image", "", el("img", { src: scene.image, alt: scene.name, width: scene.width, height: scene.height }))];
  panels.push(panel("truth", "", paint(scene, (i) => palette[parts.truth[i]])));
  runs.forEach((run, r) => panels.push(panel(run.title, iou(r), paint(scene, (i) => palette[parts.maps[r][i]]))));
  const change = `${runs[state.before].title} → ${runs[state.after].title}`;
  panels.push(panel(change, "", changes(scene, parts)));
  byId("panels").replaceChildren(...panels);
  byId("scene-title").textContent = `${scene.name}: ${percent(fixedShare(scene))} % of the pixels fixed, ${percent(brokenShare(scene))} % broken (${change})`;
  for (const [i, button] of [...byId("strip").children].entries()) {
    if (i === state.index) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  const strip = byId("strip"), current = strip.children[state.index];
  byId("scenes").setAttribute("aria-busy", "false");
  strip.scrollLeft = current.offsetLeft - strip.offsetLeft - (strip.clientWidth - current.clientWidth) / 2;
}

/** After a change of runs, order or class: from the first image on. */
function showScenes(index = 0) {
  const list = shown();
  state.index = index;
  const most = Math.max(...list.map((scene) => Math.max(brokenShare(scene), fixedShare(scene))), 1e-9);
  const width = (value) => (100 * value) / most;
  byId("strip").replaceChildren(...list.map((scene, i) => {
    const bar = el("span", {}, el("i", { className: "broken", style: `width:${width(brokenShare(scene))}%` }),
      el("i", { className: "fixed", style: `width:${width(fixedShare(scene))}%` }));
    return el("button", { type: "button", title: scene.name, onclick: () => step(i) }, el("img", { src: scene.image, alt: scene.name }), bar);
  }));
  for (const [i, button] of [...byId("class-legend").querySelectorAll("button")].entries()) button.setAttribute("aria-pressed", i === state.class);
  byId("class").value = state.class;
  byId("order").value = state.order;
  return showScene(list);
}

function step(index) {
  const list = shown();
  state.index = Math.max(0, Math.min(index, list.length - 1));
  return showScene(list);
}

function filterClass(index, scroll = false) {
  state.class = state.class === index ? -1 : index;
  showScenes();
  if (scroll) byId("scenes").scrollIntoView({ behavior: "smooth" });
}

function next(select) {
  select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
  select.onchange({ target: select });
}

const KEYS = {
  ArrowLeft: () => step(state.index - 1), ArrowRight: () => step(state.index + 1), Home: () => step(0), End: () => step(Infinity),
  o: () => next(byId("order")), c: () => next(byId("class")),
};

byId("class").append(el("option", { value: -1 }, "all"), ...classes.map((name, i) => el("option", { value: i }, name)));
byId("class").onchange = (event) => { state.class = +event.target.value; showScenes(); };
byId("order").onchange = (event) => { state.order = event.target.value; showScenes(); };
for (const select of [byId("class"), byId("order")]) {
  // After a choice by mouse, arrow keys should step through images, not through options.
  select.addEventListener("pointerdown", () => select.addEventListener("change", () => byId("scenes").focus({ preventScroll: true }), { once: true }));
}
byId("previous").onclick = KEYS.ArrowLeft;
byId("next").onclick = KEYS.ArrowRight;
document.addEventListener("keydown", (event) => {
  const plain = !(event.ctrlKey || event.altKey || event.metaKey), free = !event.target.closest("select, input, .scroll");
  if (!plain || !free || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});
byId("class-legend").append(...classes.map((name, i) =>
  el("li", {}, el("button", { type: "button", onclick: () => filterClass(i) }, swatch(classColor(i)), name))), el("li", {}, swatch(`rgb(${VOID})`), "ignored"));
byId("chosen").textContent = scenes.length < report.images
  ? `${scenes.length} of the ${report.images} images: those that lost most, those that gained most, and some from all over the list.` : "";
showScenes();
