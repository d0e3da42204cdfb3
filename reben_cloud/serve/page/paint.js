// What is on the map: land and graticule below, then products with their counts or, nearer, the patches.

import { app, filter, number } from "./model.js";
import { toLat, toLon, toX, toY } from "./data.js";

export const SPLIT_COLORS = ["#2f6db5", "#d9a400", "#c2334d"];

// Sides of a patch on the screen, below which products are drawn, and from which single patches are.
export const FAR_PX = 0.9, NEAR_PX = 4;

let pen, width, height, colors;

export const toScreen = (canvas) => {
  const { x, y, scale } = app.view, w = canvas.clientWidth / 2, h = canvas.clientHeight / 2;
  return { sx: (px) => (px - x) * scale + w, sy: (py) => (py - y) * scale + h, ux: (px) => (px - w) / scale + x, uy: (py) => (py - h) / scale + y };
};
export const patchPixels = () => (app.index.products.length ? Math.abs(app.index.products[0].u[0]) * app.view.scale : 1);

let sx, sy, ux, uy;

export function paint(canvas, box) {
  const ratio = window.devicePixelRatio || 1;
  ({ clientWidth: width, clientHeight: height } = canvas);
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  pen = canvas.getContext("2d");
  ({ sx, sy, ux, uy } = toScreen(canvas));
  colors ||= resolveColors();
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.fillStyle = colors.sea;
  pen.fillRect(0, 0, width, height);
  land();
  const degrees = graticule();
  names();
  const size = patchPixels();
  if (size < FAR_PX) products();
  else if (size < NEAR_PX) dots(canvas, size, ratio);
  else squares();
  if (size >= FAR_PX) outlines();
  degrees();
  const area = box || (filter.area && [toX(filter.area[0]), toY(filter.area[3]), toX(filter.area[2]), toY(filter.area[1])]);
  if (area) dashed(sx(area[0]), sy(area[1]), sx(area[2]), sy(area[3]));
}

// The page's colours for the canvas, which knows no CSS variables; forgotten when day becomes night.
function resolveColors() {
  const probe = document.body.appendChild(document.createElement("span"));
  const found = {};
  for (const name of ["sea", "land", "border", "grid", "name", "text", "halo", "found", "edge", "none", "missed", "chosen"]) {
    probe.style.color = `var(--${name})`;
    found[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return found;
}

export function forgetColors() { colors = null; }

function trace(ring) {
  pen.beginPath();
  ring.forEach(([x, y], i) => (i ? pen.lineTo(sx(x), sy(y)) : pen.moveTo(sx(x), sy(y))));
  pen.closePath();
}

function land() {
  pen.lineWidth = 1;
  pen.fillStyle = colors.land;
  pen.strokeStyle = colors.border;
  for (const { rings } of app.land) for (const ring of rings) { trace(ring); pen.fill(); pen.stroke(); }
}

function write(text, x, y, { size = 11, color = colors.text, align = "left", baseline = "alphabetic" } = {}) {
  pen.font = `${size}px system-ui, sans-serif`;
  pen.textAlign = align;
  pen.textBaseline = baseline;
  pen.lineWidth = 3;
  pen.strokeStyle = colors.halo;
  pen.strokeText(text, x, y);
  pen.fillStyle = color;
  pen.fillText(text, x, y);
  pen.lineWidth = 1;
}

// Countries, where they are large enough on the screen for their names.
function names() {
  for (const { name, at, rings } of app.land) {
    const x = sx(at[0]), y = sy(at[1]);
    if (x < 0 || y < 0 || x > width || y > height) continue;
    const xs = rings.flat().map(([px]) => px), wide = (Math.max(...xs) - Math.min(...xs)) * app.view.scale;
    if (wide > 7 * name.length) write(name, x, y, { color: colors.name, align: "center" });
  }
}

// Draws the lines, and returns what writes their degrees, which are to be on top of everything.
function graticule() {
  const span = (360 * width) / app.view.scale, step = [0.1, 0.25, 0.5, 1, 2, 5, 10].find((s) => span / s < Math.max(4, width / 110)) || 20;
  const sides = [Math.max(-180, toLon(ux(0))), Math.min(180, toLon(ux(width))), Math.max(-80, toLat(uy(height))), Math.min(84, toLat(uy(0)))];
  const lons = multiples(sides[0], sides[1], step), lats = multiples(sides[2], sides[3], step);
  pen.strokeStyle = colors.grid;
  pen.lineWidth = 1;
  pen.beginPath();
  for (const lon of lons) { pen.moveTo(sx(toX(lon)), 0); pen.lineTo(sx(toX(lon)), height); }
  for (const lat of lats) { pen.moveTo(0, sy(toY(lat))); pen.lineTo(width, sy(toY(lat))); }
  pen.stroke();
  return () => {
    for (const lon of lons) if (sx(toX(lon)) > 34) write(angle(lon, "E", "W"), sx(toX(lon)) + 3, height - 5);
    for (const lat of lats) if (sy(toY(lat)) > 34) write(angle(lat, "N", "S"), 4, sy(toY(lat)) - 3);
  };
}

function multiples(from, to, step) {
  const found = [];
  for (let at = Math.ceil(from / step) * step; at < to; at += step) found.push(at);
  return found;
}

const angle = (value, positive, negative) => `${+Math.abs(value).toFixed(2)}°${Math.abs(value) < 1e-9 ? "" : value > 0 ? positive : negative}`;

function places() {
  // Products of one square lie upon each other: one shape with the sum.
  const found = new Map();
  for (const { square, ring, count, total } of app.index.products) {
    if (!found.has(square)) found.set(square, { square, ring, count: 0, total: 0 });
    const place = found.get(square);
    place.count += count;
    place.total += total;
  }
  return [...found.values()];
}

// In a colour that no split has: a place has patches of all three.
function products() {
  const all = places();
  for (const { ring, count, total } of all) {
    trace(ring);
    pen.fillStyle = colors.none;
    pen.fill();
    pen.fillStyle = colors.found;
    pen.globalAlpha = count ? 0.25 + (0.75 * count) / total : 0;
    pen.fill();
    pen.globalAlpha = 1;
    pen.strokeStyle = count ? colors.edge : colors.border;
    pen.stroke();
  }
  for (const { ring, count } of all) {
    const wide = Math.abs(sx(ring[1][0]) - sx(ring[0][0]));
    if (!count || wide < 17) continue;
    const text = wide < 44 && count >= 1000 ? `${Math.round(count / 1000)}k` : number(count);
    write(text, sx((ring[0][0] + ring[2][0]) / 2), sy((ring[0][1] + ring[2][1]) / 2), { size: wide < 26 ? 9 : wide < 44 ? 10 : 12, align: "center", baseline: "middle" });
  }
}

function outlines() {
  for (const { ring, square } of places()) {
    pen.strokeStyle = colors.edge;
    trace(ring);
    pen.stroke();
    write(square, sx(ring[0][0]) + 4, sy(ring[0][1]) + 4, { baseline: "top" });
  }
}

// ImageData holds red in the lowest byte on every machine that a browser runs on today.
const packed = ([r, g, b]) => (0xff000000 | (b << 16) | (g << 8) | r) >>> 0;
const PACKED = SPLIT_COLORS.map((c) => packed([1, 3, 5].map((at) => parseInt(c.slice(at, at + 2), 16))));
const layer = document.createElement("canvas");

function dots(canvas, size, ratio) {
  const w = (layer.width = canvas.width), h = (layer.height = canvas.height);
  const layerPen = layer.getContext("2d"), image = layerPen.createImageData(w, h), pixels = new Uint32Array(image.data.buffer);
  const side = Math.max(1, Math.round(size * ratio * 0.92)), { n, cx, cy, split } = app.data, { hits, view } = app;
  const k = view.scale * ratio, left0 = w / 2 - view.x * k - side / 2, top0 = h / 2 - view.y * k - side / 2;
  const missed = packed(colors.missed.match(/\d+/g).map(Number));
  // Twice, so that what matches is on top.
  for (const pass of [0, 1]) {
    for (let i = 0; i < n; i++) {
      if (hits[i] !== pass) continue;
      const left = Math.round(cx[i] * k + left0), top = Math.round(cy[i] * k + top0);
      if (left < 0 || top < 0 || left + side > w || top + side > h) continue;
      const color = pass ? PACKED[split[i] % 3] : missed;
      for (let at = top * w + left, end = at + side * w; at < end; at += w) pixels.fill(color, at, at + side);
    }
  }
  layerPen.putImageData(image, 0, 0);
  pen.drawImage(layer, 0, 0, width, height);
}

function corners(i) {
  const { u, v } = app.index.products[app.data.product[i]], x = app.data.cx[i], y = app.data.cy[i];
  return [[-1, -1], [1, -1], [1, 1], [-1, 1]].map(([a, b]) => [x + (a * u[0] + b * v[0]) / 2, y + (a * u[1] + b * v[1]) / 2]);
}

function squares() {
  const pad = patchPixels(), x0 = ux(-pad), x1 = ux(width + pad), y0 = uy(-pad), y1 = uy(height + pad);
  const { data, hits, chosen } = app;
  pen.strokeStyle = colors.land;
  for (const pass of [0, 1]) {
    for (let i = 0; i < data.n; i++) {
      if (hits[i] !== pass || data.cx[i] < x0 || data.cx[i] > x1 || data.cy[i] < y0 || data.cy[i] > y1) continue;
      trace(corners(i));
      pen.globalAlpha = pass ? 0.68 : 0.5;
      pen.fillStyle = pass ? SPLIT_COLORS[data.split[i] % 3] : colors.missed;
      pen.fill();
      pen.globalAlpha = 1;
      pen.stroke();
    }
  }
  if (chosen >= 0) {
    trace(corners(chosen));
    pen.lineWidth = 3;
    pen.strokeStyle = colors.chosen;
    pen.stroke();
    pen.lineWidth = 1;
  }
}

function dashed(x0, y0, x1, y1) {
  pen.strokeStyle = colors.chosen;
  pen.setLineDash([6, 4]);
  pen.lineWidth = 1.5;
  pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
  pen.setLineDash([]);
  pen.lineWidth = 1;
}
