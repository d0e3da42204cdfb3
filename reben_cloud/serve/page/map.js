// The map as people move it: mouse, wheel, one finger or two, keys and buttons.

import { $, app, emit, on } from "./model.js";
import { extent, toLat, toLon, toX, toY } from "./data.js";
import { areaOf, setArea } from "./controls.js";
import { FAR_PX, NEAR_PX, SPLIT_COLORS, forgetColors, paint, patchPixels, toScreen } from "./paint.js";
import { choose } from "./patch.js";

const TILE = 256; // a zoom of z shows the world in 256 * 2^z pixels, as web maps have it
const canvas = $("map");
let touched = false; // whether somebody moved the map; until then it shows all

export const zoomLevel = () => Math.log2(app.view.scale / TILE);

export function setView(lon, lat, zoom) {
  app.view = { x: toX(lon), y: toY(lat), scale: bounded(TILE * 2 ** zoom) };
  touched = true;
  moved();
}

export const viewCentre = () => [toLon(app.view.x), toLat(app.view.y)];

export function viewBox() {
  const { ux, uy } = toScreen(canvas);
  return areaOf([ux(0), uy(0)], [ux(canvas.clientWidth), uy(canvas.clientHeight)]);
}

// Bring a patch into the part of the map that the panel beside it leaves free.
export function goTo(row) {
  const { sx, sy } = toScreen(canvas), x = sx(app.data.cx[row]), y = sy(app.data.cy[row]);
  const free = canvas.clientWidth - covered();
  const isSeen = x > 20 && y > 20 && x < free - 20 && y < canvas.clientHeight - 20;
  if (isSeen && patchPixels() >= NEAR_PX) return draw();
  if (patchPixels() < NEAR_PX) app.view.scale *= 12 / patchPixels();
  Object.assign(app.view, { x: app.data.cx[row] + covered() / 2 / app.view.scale, y: app.data.cy[row] });
  touched = true;
  moved();
}

function covered() {
  const panel = $("patch").getBoundingClientRect(), map = canvas.getBoundingClientRect();
  return $("patch").hidden || panel.top >= map.bottom ? 0 : Math.max(0, map.right - panel.left);
}

export function showAll() {
  const [west, south, east, north] = extent();
  const x = [toX(west), toX(east)], y = [toY(north), toY(south)];
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = 0.9 * Math.min(width / (x[1] - x[0]), height / (y[1] - y[0]));
  app.view = { x: (x[0] + x[1]) / 2, y: (y[0] + y[1]) / 2, scale: bounded(scale) };
  touched = false;
  moved();
}

const bounded = (scale) => Math.min(4e6, Math.max(256, scale));

function moved() {
  draw();
  emit("view");
}

let queued = false, box = null;
export function draw() {
  if (queued) return;
  queued = true;
  requestAnimationFrame(() => {
    queued = false;
    const start = performance.now();
    paint(canvas, box);
    tellWhatIsSeen();
    canvas.dataset.paintMs = (performance.now() - start).toFixed(1);
  });
}

function tellWhatIsSeen() {
  const size = patchPixels();
  $("legend").hidden = size < FAR_PX;
  $("hint").textContent = canvas.classList.contains("drawing") ? "drag a box" : size < FAR_PX ? "" : size < NEAR_PX ? "zoom in to choose a patch" : app.chosen < 0 ? "choose a patch" : "";
}

export function zoom(factor, px = canvas.clientWidth / 2, py = canvas.clientHeight / 2) {
  const before = toScreen(canvas), x = before.ux(px), y = before.uy(py);
  app.view.scale = bounded(app.view.scale * factor);
  const after = toScreen(canvas);
  app.view.x += x - after.ux(px);
  app.view.y += y - after.uy(py);
  touched = true;
  moved();
}

export function setDrawing(on) {
  canvas.classList.toggle("drawing", on);
  $("draw").setAttribute("aria-pressed", on);
  draw();
}

function click(px, py) {
  const { ux, uy } = toScreen(canvas), x = ux(px), y = uy(py), { data, hits, index } = app;
  if (patchPixels() < NEAR_PX) return zoom(patchPixels() < FAR_PX ? 6 : 4, px, py);
  // Where acquisitions overlap, repeated clicks go through them.
  const under = [];
  for (let i = 0; i < data.n; i++) {
    const { u, v } = index.products[data.product[i]], dx = x - data.cx[i], dy = y - data.cy[i];
    if (Math.abs(dx) > Math.abs(u[0]) || Math.abs(dy) > Math.abs(v[1]) || !hits[i]) continue;
    const det = u[0] * v[1] - u[1] * v[0], a = (dx * v[1] - dy * v[0]) / det, b = (u[0] * dy - u[1] * dx) / det;
    if (Math.abs(a) <= 0.5 && Math.abs(b) <= 0.5) under.push(i);
  }
  if (under.length) choose(under[(under.indexOf(app.chosen) + 1) % under.length]);
}

// -- fingers and mouse -----------------------------------------------------------------------------

const fingers = new Map();
let drag = null; // where it began, and whether it went further than a click

function begin(event) {
  canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
  const isPinch = fingers.size > 1;
  drag = { at: [event.offsetX, event.offsetY], moved: isPinch || Boolean(drag?.moved), pinch: isPinch };
  if (isPinch) box = null;
}

function move(event) {
  if (!drag || !fingers.has(event.pointerId)) return;
  const before = [...fingers.values()];
  fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
  const now = [...fingers.values()];
  if (now.length > 1) return pinch(before, now);
  const [[x0, y0], [x1, y1]] = [before[0], now[0]];
  drag.moved ||= Math.hypot(x1 - drag.at[0], y1 - drag.at[1]) > 4;
  if (canvas.classList.contains("drawing") && !drag.pinch) {
    const { ux, uy } = toScreen(canvas);
    box = [ux(drag.at[0]), uy(drag.at[1]), ux(x1), uy(y1)];
    draw();
  } else if (drag.moved) {
    app.view.x -= (x1 - x0) / app.view.scale;
    app.view.y -= (y1 - y0) / app.view.scale;
    touched = true;
    moved();
  }
}

function pinch([a0, b0], [a1, b1]) {
  const apart = ([ax, ay], [bx, by]) => Math.max(1, Math.hypot(ax - bx, ay - by));
  const middle = ([ax, ay], [bx, by]) => [(ax + bx) / 2, (ay + by) / 2];
  const [from, to] = [middle(a0, b0), middle(a1, b1)];
  app.view.x -= (to[0] - from[0]) / app.view.scale;
  app.view.y -= (to[1] - from[1]) / app.view.scale;
  zoom(apart(a1, b1) / apart(a0, b0), ...to);
}

function end(event) {
  fingers.delete(event.pointerId);
  if (!drag || fingers.size) return;
  const { at, moved: far, pinch: wasPinch } = drag;
  drag = null;
  if (event.type === "pointercancel") return;
  if (canvas.classList.contains("drawing") && !wasPinch) {
    const { ux, uy } = toScreen(canvas);
    box = null;
    setDrawing(false);
    if (far) setArea(areaOf([ux(at[0]), uy(at[1])], [ux(event.offsetX), uy(event.offsetY)]));
  } else if (!far) click(event.offsetX, event.offsetY);
}

function press(event) {
  const step = 60 / app.view.scale;
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "+" || event.key === "=") zoom(1.5);
  else if (event.key === "-") zoom(1 / 1.5);
  else if (event.key === "0") showAll();
  else if (event.key === "Enter") click(canvas.clientWidth / 2, canvas.clientHeight / 2);
  else if (event.key === "Escape") setDrawing(false);
  else if (moves[event.key]) {
    app.view.x += moves[event.key][0] * step;
    app.view.y += moves[event.key][1] * step;
    touched = true;
    moved();
  } else return;
  event.preventDefault();
}

export function start() {
  $("legend").innerHTML = "";
  app.index.splits.forEach((split, i) => {
    const square = document.createElement("span");
    square.style.background = SPLIT_COLORS[i];
    $("legend").append(square, split);
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), event.offsetX, event.offsetY);
  }, { passive: false });
  canvas.addEventListener("pointerdown", begin);
  canvas.addEventListener("pointermove", move);
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("keydown", press);
  $("zoom-in").addEventListener("click", () => zoom(1.7));
  $("zoom-out").addEventListener("click", () => zoom(1 / 1.7));
  $("zoom-all").addEventListener("click", showAll);
  new ResizeObserver(() => (touched ? draw() : showAll())).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { forgetColors(); draw(); });
}

on("found chosen", draw);
