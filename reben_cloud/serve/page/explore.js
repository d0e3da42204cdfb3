// The explorer: every footprint is in memory, so a filter is one pass over typed arrays and the
// counts are live. Far out, products are drawn with their counts; nearer, the patches themselves.
"use strict";

const SPLIT_COLORS = ["#2f6db5", "#d9a400", "#c2334d"];
const AREA = 1, TIME = 2, LABELS = 4, SPLIT = 8, COUNTRY = 16, QUALITY = 32, CQL2 = 64;
const $ = (id) => document.getElementById(id);
const number = (n) => n.toLocaleString("en");
const mercator = (lat) => 0.5 - Math.log(Math.tan(Math.PI / 4 + (lat * Math.PI) / 360)) / (2 * Math.PI);
const toLat = (y) => (Math.atan(Math.exp((0.5 - y) * 2 * Math.PI)) * 360) / Math.PI - 90;
const toX = (lon) => lon / 360 + 0.5;
const toLon = (x) => (x - 0.5) * 360;

let index, data, view, hits, outlinesOfCountries;
let matches = null; // a bit a patch, of those that fit the CQL2 filter; null where there is none
const filter = { area: null, from: "", to: "", labels: new Set(), splits: new Set(), countries: new Set(), layers: new Set(), cql2: "", recommended: false };
const canvas = $("map"), pen = canvas.getContext("2d");

async function load() {
  const [names, buffer, countries] = await Promise.all([
    fetch("/explore/index.json").then((r) => r.json()),
    fetch("/explore/footprints.bin").then((r) => r.arrayBuffer()),
    fetch("/explore/countries.json").then((r) => r.json()),
  ]);
  outlinesOfCountries = countries.features.flatMap(({ geometry: g }) => (g.type === "Polygon" ? [g.coordinates] : g.coordinates))
    .map((polygon) => polygon[0].map(([lon, lat]) => [toX(lon), mercator(lat)]));
  index = names;
  const n = index.num_patches;
  let at = 0;
  const take = (Kind) => { const part = new Kind(buffer, at, n); at += n * Kind.BYTES_PER_ELEMENT; return part; };
  data = { n, west: take(Int32Array), south: take(Int32Array), east: take(Int32Array), north: take(Int32Array) };
  data.labels = Array.from({ length: Math.ceil(index.labels.length / 32) }, () => take(Uint32Array));
  data.product = take(Uint16Array);
  for (const name of ["split", "country", "flags"]) data[name] = take(Uint8Array);
  data.cx = new Float64Array(n);
  data.cy = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    data.cx[i] = toX((data.west[i] + data.east[i]) / 2e7);
    data.cy[i] = mercator((data.south[i] + data.north[i]) / 2e7);
  }
  for (const product of index.products) {
    const [a, b, c, d] = product.axes.map(([lon, lat]) => [toX(lon), mercator(lat)]);
    Object.assign(product, {
      ring: [a, b, d, c],
      // A patch's edges eastward and southward.
      u: [(b[0] - a[0]) / product.size[0], (b[1] - a[1]) / product.size[0]],
      v: [(c[0] - a[0]) / product.size[1], (c[1] - a[1]) / product.size[1]],
      day: product.time.slice(0, 10),
      count: 0, total: 0, first: -1,
    });
  }
  for (let i = 0; i < n; i++) {
    const product = index.products[data.product[i]];
    if (product.first < 0) product.first = i;
    product.total++;
  }
  hits = new Uint8Array(n);
  buildControls();
  view = { x: 0.5, y: 0.3, scale: 1000 };
  apply();
  new ResizeObserver(draw).observe(canvas);
  // After the code box has its size: it takes its room from the map.
  requestAnimationFrame(() => requestAnimationFrame(() => { fit(); draw(); document.body.dataset.ready = "yes"; }));
}

// -- filters ---------------------------------------------------------------------------------------

function buildControls() {
  const options = (id, names, chosen, color) => {
    $(id).replaceChildren(...names.map((name, i) => {
      const label = document.createElement("label");
      const box = Object.assign(document.createElement("input"), { type: "checkbox" });
      box.addEventListener("change", () => { box.checked ? chosen.add(i) : chosen.delete(i); chosen === filter.layers ? match() : apply(); });
      const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
      if (color) swatch.style.background = color(i);
      const text = Object.assign(document.createElement("span"), { className: "name", textContent: name });
      const count = Object.assign(document.createElement("span"), { className: "number" });
      label.append(box, ...(color ? [swatch] : []), text, count);
      return label;
    }));
  };
  $("not-recommended").textContent = index.flags.length ? `no ${index.flags.join(", ")}` : "";
  options("splits", index.splits, filter.splits, (i) => SPLIT_COLORS[i]);
  options("countries", index.countries, filter.countries);
  options("labels", index.labels.map((l) => l.name), filter.labels, (i) => index.labels[i].color);
  if (index.layers.length) {
    options("layers", index.layers.map((l) => l.title || l.name), filter.layers);
    [...$("layers").children].forEach((label, i) => { label.querySelector(".number").textContent = number(index.layers[i].num_patches); });
    $("layers-filter").hidden = false;
  }
  const fields = index.layers.flatMap((l) => l.fields.map((name) => `"${name}"`));
  $("fields").replaceChildren(...fields.map((value) => Object.assign(document.createElement("option"), { value })));
  $("cql2").placeholder = `${fields.find((name) => !name.endsWith(':present"')) || "proj:code"} …`;
  $("cql2").addEventListener("change", () => { filter.cql2 = $("cql2").value.trim(); match(); });
  const days = index.products.map((p) => p.day).sort();
  for (const id of ["from", "to"]) {
    $(id).min = days[0];
    $(id).max = days[days.length - 1];
    $(id).addEventListener("change", () => { filter[id] = $(id).value; apply(); });
  }
  $("recommended").addEventListener("change", () => { filter.recommended = $("recommended").checked; apply(); });
  $("draw").addEventListener("click", () => setDrawing(!canvas.classList.contains("drawing")));
  $("clear-area").addEventListener("click", () => setArea(null));
  $("reset").addEventListener("click", () => {
    for (const set of [filter.labels, filter.splits, filter.countries, filter.layers]) set.clear();
    for (const box of document.querySelectorAll("#filters input[type=checkbox]")) box.checked = false;
    $("from").value = $("to").value = filter.from = filter.to = "";
    filter.recommended = false;
    $("cql2").value = filter.cql2 = "";
    match();
    setArea(null);
  });
  $("legend").innerHTML = index.splits.map((s, i) => `<span style="background:${SPLIT_COLORS[i]}"></span>${s}`).join("");
}

// Layers and CQL2 are looked up by the server; all else is in memory here.
function expression() {
  const parts = [...filter.layers].sort((a, b) => a - b).map((i) => `"${index.layers[i].present}" = true`);
  if (filter.cql2) parts.push(parts.length ? `(${filter.cql2})` : filter.cql2);
  return parts.join(" AND ");
}

async function match() {
  const asked = expression();
  $("cql2-error").textContent = "";
  let found = null;
  if (asked) {
    const answer = await fetch(`/explore/matches.bin?${new URLSearchParams({ cql2: asked })}`);
    if (asked !== expression()) return;
    if (answer.ok) found = new Uint8Array(await answer.arrayBuffer());
    else $("cql2-error").textContent = await problem(answer);
  }
  matches = found;
  apply();
}

async function problem(answer) {
  const text = await answer.text();
  try {
    const { description, detail } = JSON.parse(text);
    return description || detail || text;
  } catch {
    return text;
  }
}

function setDrawing(on) {
  canvas.classList.toggle("drawing", on);
  $("draw").classList.toggle("on", on);
}

function setArea(area) {
  filter.area = area;
  $("area").textContent = area ? area.join(", ") : "drag a box on the map";
  $("clear-area").hidden = !area;
  apply();
}

function bits(chosen) {
  let mask = 0;
  for (const i of chosen) mask |= 1 << i;
  return mask;
}

function apply() {
  const { n, west, south, east, north, labels, product, split, country, flags } = data;
  const box = filter.area && filter.area.map((v) => Math.round(v * 1e7));
  const wanted = labels.map((_, word) => bits([...filter.labels].filter((i) => i >> 5 === word).map((i) => i & 31)));
  const splits = bits(filter.splits), countries = filter.countries;
  const late = index.products.map((p) => (filter.from && p.day < filter.from) || (filter.to && p.day > filter.to) ? TIME : 0);
  const months = index.products.map((p) => p.day.slice(0, 7));
  const counts = { labels: new Array(index.labels.length).fill(0), splits: new Array(index.splits.length).fill(0), countries: new Array(index.countries.length).fill(0), products: new Array(index.products.length).fill(0) };
  let matched = 0;
  for (const p of index.products) p.count = 0;
  for (let i = 0; i < n; i++) {
    let fails = late[product[i]];
    if (box && (west[i] > box[2] || east[i] < box[0] || south[i] > box[3] || north[i] < box[1])) fails |= AREA;
    if (filter.labels.size && !labels.some((word, w) => word[i] & wanted[w])) fails |= LABELS;
    if (splits && !((splits >> split[i]) & 1)) fails |= SPLIT;
    if (countries.size && !countries.has(country[i])) fails |= COUNTRY;
    if (filter.recommended && flags[i]) fails |= QUALITY;
    if (matches && !((matches[i >> 3] >> (i & 7)) & 1)) fails |= CQL2;
    hits[i] = fails ? 0 : 1;
    if (!fails) { matched++; index.products[product[i]].count++; }
    // A facet counts what its own choice would give, all other filters kept.
    if (!(fails & ~SPLIT)) counts.splits[split[i]]++;
    if (!(fails & ~COUNTRY)) counts.countries[country[i]]++;
    if (!(fails & ~TIME)) counts.products[product[i]]++;
    if (!(fails & ~LABELS)) {
      for (let w = 0; w < labels.length; w++) {
        for (let rest = labels[w][i]; rest; rest &= rest - 1) counts.labels[32 * w + 31 - Math.clz32(rest & -rest)]++;
      }
    }
  }
  $("count").textContent = `${number(matched)} of ${number(n)} patches`;
  $("count").dataset.matched = matched;
  for (const id of ["labels", "splits", "countries"]) {
    [...$(id).children].forEach((label, i) => {
      label.querySelector(".number").textContent = number(counts[id][i]);
      label.classList.toggle("none", !counts[id][i]);
    });
  }
  const byMonth = {};
  counts.products.forEach((c, i) => { byMonth[months[i]] = (byMonth[months[i]] || 0) + c; });
  const tallest = Math.max(1, ...Object.values(byMonth));
  $("months").replaceChildren(...Object.keys(byMonth).sort().map((month) => {
    const bar = document.createElement("div");
    bar.style.height = `${(100 * byMonth[month]) / tallest}%`;
    bar.title = `${month}: ${number(byMonth[month])}`;
    return bar;
  }));
  showCode();
  draw();
}

// -- code ------------------------------------------------------------------------------------------

let tab = "stream";

function conditions() {
  const chosen = (set, names) => [...set].sort((a, b) => a - b).map((i) => names[i]);
  const found = [];
  if (filter.area) found.push(["bbox", filter.area]);
  if (filter.from || filter.to) found.push(["datetime", `${filter.from || ".."}/${filter.to || ".."}`]);
  if (filter.labels.size) found.push(["labels", chosen(filter.labels, index.labels.map((l) => l.name))]);
  if (filter.splits.size) found.push(["split", chosen(filter.splits, index.splits)]);
  if (filter.countries.size) found.push(["country", chosen(filter.countries, index.countries)]);
  if (filter.recommended) found.push(["recommended", true]);
  if (matches) found.push(["cql2", expression()]);
  return found;
}

function showCode() {
  const python = (v) => (Array.isArray(v) && typeof v[0] === "number" ? `(${v.join(", ")})` : v === true ? "True" : JSON.stringify(v));
  const shell = (v) => (/^[\w.,:/-]+$/.test(v) ? v : `'${v.replaceAll("'", "'\\''")}'`);
  const layers = index.layers.map((l) => l.url);
  const search = `import reben_cloud as rc\n\nsel = rc.open(${JSON.stringify(index.url)}${layers.length ? `, layers=${JSON.stringify(layers)}` : ""}).search(${conditions().map(([k, v]) => `${k}=${python(v)}`).join(", ")})`;
  const options = conditions().flatMap(([k, v]) => {
    const flag = { labels: "label" }[k] || k;
    if (v === true) return [`--${flag}`];
    return Array.isArray(v) && typeof v[0] !== "number" ? v.map((one) => `--${flag} ${shell(one)}`) : [`--${flag}=${shell(String(v))}`];
  });
  const url = shell(index.url);
  $("snippet").textContent = {
    stream: !index.modalities.length ? `${search}   # this root has metadata only: nothing to stream` : `${search}\n\nfrom reben_cloud.torch import StreamLoader\nfor batch in StreamLoader(sel, modalities=${JSON.stringify(index.modalities)}, batch_size=256):\n    ...`,
    export: !index.modalities.length ? `${search}\nsel.to_geopandas().to_file("selection.gpkg")` : `${search}\nsel.export_lmdb("selection.lmdb")`,
    cli: ["search", ...(index.modalities.length ? ["stream", "export"] : [])].map((c) => ["reben-cloud", c, url, ...(c === "export" ? ["selection.lmdb"] : []), ...layers.map((one) => `--layer=${shell(one)}`), ...options].join(" ")).join("\n"),
  }[tab];
}

for (const button of document.querySelectorAll("[data-tab]")) {
  button.addEventListener("click", () => {
    tab = button.dataset.tab;
    for (const other of document.querySelectorAll("[data-tab]")) other.classList.toggle("on", other === button);
    showCode();
  });
}
$("copy").addEventListener("click", () => navigator.clipboard.writeText($("snippet").textContent));

// -- the map ---------------------------------------------------------------------------------------

function fit() {
  const { n, west, south, east, north } = data;
  let w = Infinity, s = Infinity, e = -Infinity, t = -Infinity;
  for (let i = 0; i < n; i++) {
    if (west[i] < w) w = west[i];
    if (south[i] < s) s = south[i];
    if (east[i] > e) e = east[i];
    if (north[i] > t) t = north[i];
  }
  const x = [toX(w / 1e7), toX(e / 1e7)], y = [mercator(t / 1e7), mercator(s / 1e7)];
  const { clientWidth: width, clientHeight: height } = canvas;
  view = { x: (x[0] + x[1]) / 2, y: (y[0] + y[1]) / 2, scale: 0.92 * Math.min(width / (x[1] - x[0]), height / (y[1] - y[0])) };
}

const sx = (x) => (x - view.x) * view.scale + canvas.clientWidth / 2;
const sy = (y) => (y - view.y) * view.scale + canvas.clientHeight / 2;
const ux = (px) => (px - canvas.clientWidth / 2) / view.scale + view.x;
const uy = (py) => (py - canvas.clientHeight / 2) / view.scale + view.y;
const patchPixels = () => Math.abs(index.products[0].u[0]) * view.scale;

let queued = false;
function draw() {
  if (queued) return;
  queued = true;
  requestAnimationFrame(() => {
    queued = false;
    const start = performance.now();
    paint();
    canvas.dataset.paintMs = (performance.now() - start).toFixed(1);
  });
}

function paint() {
  const ratio = window.devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = canvas;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  for (const ring of outlinesOfCountries) {
    trace(ring);
    pen.fillStyle = "#fbfbf8";
    pen.fill();
    pen.strokeStyle = "#c3ccd2";
    pen.stroke();
  }
  graticule(width, height);
  const size = patchPixels();
  if (size < 0.9) products(width, height);
  else if (size < 4) dots(width, height, size, ratio);
  else squares(width, height);
  if (size >= 0.9) outlines();
  if (filter.area) {
    const [w, s, e, n] = filter.area;
    box(sx(toX(w)), sy(mercator(n)), sx(toX(e)), sy(mercator(s)));
  }
  $("legend").hidden = size < 0.9;
  $("hint").textContent = size < 0.9 ? "products and their matching patches; zoom in for the patches" : size < 4 ? "patches, coloured by split" : "click a patch";
}

function graticule(width, height) {
  const span = 360 * width / view.scale, step = [0.1, 0.25, 0.5, 1, 2, 5, 10].find((s) => span / s < 9) || 20;
  pen.strokeStyle = "#d5dee4";
  pen.fillStyle = "#8b98a3";
  pen.font = "11px system-ui, sans-serif";
  pen.textAlign = "left";
  pen.textBaseline = "alphabetic";
  pen.lineWidth = 1;
  pen.beginPath();
  for (let lon = Math.ceil(toLon(ux(0)) / step) * step; lon < toLon(ux(width)); lon += step) {
    pen.moveTo(sx(toX(lon)), 0); pen.lineTo(sx(toX(lon)), height);
    pen.fillText(`${+lon.toFixed(2)}°`, sx(toX(lon)) + 3, height - 5);
  }
  for (let lat = Math.ceil(toLat(uy(height)) / step) * step; lat < toLat(uy(0)); lat += step) {
    pen.moveTo(0, sy(mercator(lat))); pen.lineTo(width, sy(mercator(lat)));
    pen.fillText(`${+lat.toFixed(2)}°`, 4, sy(mercator(lat)) - 3);
  }
  pen.stroke();
}

function trace(ring) {
  pen.beginPath();
  ring.forEach(([x, y], i) => (i ? pen.lineTo(sx(x), sy(y)) : pen.moveTo(sx(x), sy(y))));
  pen.closePath();
}

function places() {
  // Products of one square lie upon each other: one shape with the sum.
  const found = new Map();
  for (const p of index.products) {
    const square = p.name.slice(-5);
    if (!found.has(square)) found.set(square, { ring: p.ring, count: 0, total: 0, square, products: 0 });
    const place = found.get(square);
    place.count += p.count; place.total += p.total; place.products++;
  }
  return [...found.values()];
}

// In a colour that no split has: a place has patches of all three.
function products() {
  for (const { ring, count, total } of places()) {
    trace(ring);
    pen.fillStyle = count ? `rgba(72,132,120,${0.15 + (0.65 * count) / total})` : "rgba(120,130,140,.12)";
    pen.fill();
    pen.strokeStyle = count ? "#2c5f55" : "#aab4bc";
    pen.stroke();
  }
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  for (const { ring, count } of places()) {
    const x = sx((ring[0][0] + ring[2][0]) / 2), y = sy((ring[0][1] + ring[2][1]) / 2);
    const wide = Math.abs(sx(ring[1][0]) - sx(ring[0][0]));
    if (!count || wide < 17) continue;
    pen.font = `${wide < 26 ? 9 : wide < 44 ? 10 : 12}px system-ui, sans-serif`;
    pen.lineWidth = 3;
    pen.strokeStyle = "#fffc";
    const text = wide < 44 && count >= 1000 ? `${Math.round(count / 1000)}k` : number(count);
    pen.strokeText(text, x, y);
    pen.fillStyle = "#12273c";
    pen.fillText(text, x, y);
    pen.lineWidth = 1;
  }
}

function outlines() {
  for (const { ring, square } of places()) {
    pen.strokeStyle = "#5f7384";
    pen.lineWidth = 1;
    trace(ring);
    pen.stroke();
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "left";
    pen.textBaseline = "top";
    pen.lineWidth = 3;
    pen.strokeStyle = "#fffc";
    pen.strokeText(square, sx(ring[0][0]) + 4, sy(ring[0][1]) + 4);
    pen.fillStyle = "#12273c";
    pen.fillText(square, sx(ring[0][0]) + 4, sy(ring[0][1]) + 4);
  }
}

// ImageData holds red in the lowest byte on every machine that a browser runs on today.
const PACKED = SPLIT_COLORS.map((c) => (0xff000000 | (parseInt(c.slice(5, 7), 16) << 16) | (parseInt(c.slice(3, 5), 16) << 8) | parseInt(c.slice(1, 3), 16)) >>> 0);
const layer = document.createElement("canvas");

function dots(width, height, size, ratio) {
  const w = (layer.width = canvas.width), h = (layer.height = canvas.height);
  const layerPen = layer.getContext("2d"), image = layerPen.createImageData(w, h), pixels = new Uint32Array(image.data.buffer);
  const side = Math.max(1, Math.round(size * ratio * 0.92)), { n, cx, cy, split } = data;
  const k = view.scale * ratio, left0 = w / 2 - view.x * k - side / 2, top0 = h / 2 - view.y * k - side / 2;
  // Twice, so that what matches lies on top.
  for (const pass of [0, 1]) {
    for (let i = 0; i < n; i++) {
      if (hits[i] !== pass) continue;
      const left = Math.round(cx[i] * k + left0), top = Math.round(cy[i] * k + top0);
      if (left < 0 || top < 0 || left + side > w || top + side > h) continue;
      const color = pass ? PACKED[split[i]] : 0xffdbd6d0;
      for (let at = top * w + left, end = at + side * w; at < end; at += w) pixels.fill(color, at, at + side);
    }
  }
  layerPen.putImageData(image, 0, 0);
  pen.drawImage(layer, 0, 0, width, height);
}

function corners(i) {
  const { u, v } = index.products[data.product[i]], x = data.cx[i], y = data.cy[i];
  return [[-1, -1], [1, -1], [1, 1], [-1, 1]].map(([a, b]) => [x + (a * u[0] + b * v[0]) / 2, y + (a * u[1] + b * v[1]) / 2]);
}

function squares(width, height) {
  const pad = patchPixels(), x0 = ux(-pad), x1 = ux(width + pad), y0 = uy(-pad), y1 = uy(height + pad);
  for (const pass of [0, 1]) {
    for (let i = 0; i < data.n; i++) {
      if (hits[i] !== pass || data.cx[i] < x0 || data.cx[i] > x1 || data.cy[i] < y0 || data.cy[i] > y1) continue;
      trace(corners(i));
      pen.fillStyle = pass ? SPLIT_COLORS[data.split[i]] + "aa" : "#d0d6db88";
      pen.fill();
      pen.strokeStyle = i === chosen ? "#000" : "#fff";
      pen.stroke();
    }
  }
  if (chosen >= 0) {
    trace(corners(chosen));
    pen.lineWidth = 3;
    pen.strokeStyle = "#000";
    pen.stroke();
    pen.lineWidth = 1;
  }
}

function box(x0, y0, x1, y1) {
  pen.strokeStyle = "#000";
  pen.setLineDash([6, 4]);
  pen.lineWidth = 1.5;
  pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
  pen.setLineDash([]);
  pen.lineWidth = 1;
}

function zoom(factor, px, py) {
  const x = ux(px), y = uy(py);
  view.scale = Math.min(4e6, Math.max(600, view.scale * factor));
  view.x += x - ux(px);
  view.y += y - uy(py);
  draw();
}

let drag = null, chosen = -1;
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(-event.deltaY * 0.002), event.offsetX, event.offsetY);
}, { passive: false });
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  drag = { x: event.offsetX, y: event.offsetY, vx: view.x, vy: view.y, moved: false };
});
canvas.addEventListener("pointermove", (event) => {
  if (!drag) return;
  const dx = event.offsetX - drag.x, dy = event.offsetY - drag.y;
  drag.moved ||= Math.hypot(dx, dy) > 4;
  if (canvas.classList.contains("drawing")) {
    paint();
    box(drag.x, drag.y, event.offsetX, event.offsetY);
  } else if (drag.moved) {
    view.x = drag.vx - dx / view.scale;
    view.y = drag.vy - dy / view.scale;
    draw();
  }
});
canvas.addEventListener("pointerup", (event) => {
  const from = drag;
  drag = null;
  if (!from) return;
  if (canvas.classList.contains("drawing")) {
    const xs = [from.x, event.offsetX].sort((a, b) => a - b), ys = [from.y, event.offsetY].sort((a, b) => a - b);
    setDrawing(false);
    if (from.moved) setArea([toLon(ux(xs[0])), toLat(uy(ys[1])), toLon(ux(xs[1])), toLat(uy(ys[0]))].map((v) => +v.toFixed(4)));
    else draw();
  } else if (!from.moved) click(event.offsetX, event.offsetY);
});
canvas.addEventListener("keydown", (event) => {
  const middle = [canvas.clientWidth / 2, canvas.clientHeight / 2], step = 60 / view.scale;
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key === "+" || event.key === "=") zoom(1.5, ...middle);
  else if (event.key === "-") zoom(1 / 1.5, ...middle);
  else if (moves[event.key]) { view.x += moves[event.key][0] * step; view.y += moves[event.key][1] * step; draw(); }
  else return;
  event.preventDefault();
});

function click(px, py) {
  const x = ux(px), y = uy(py);
  if (patchPixels() < 4) { zoom(patchPixels() < 0.9 ? 6 : 4, px, py); return; }
  // Where acquisitions overlap, repeated clicks go through them.
  const under = [];
  for (let i = 0; i < data.n; i++) {
    const { u, v } = index.products[data.product[i]], dx = x - data.cx[i], dy = y - data.cy[i];
    if (Math.abs(dx) > Math.abs(u[0]) || Math.abs(dy) > Math.abs(v[1]) || !hits[i]) continue;
    const det = u[0] * v[1] - u[1] * v[0], a = (dx * v[1] - dy * v[0]) / det, b = (u[0] * dy - u[1] * dx) / det;
    if (Math.abs(a) <= 0.5 && Math.abs(b) <= 0.5) under.push(i);
  }
  if (under.length) show(under[(under.indexOf(chosen) + 1) % under.length]);
}

// -- one patch -------------------------------------------------------------------------------------

async function show(i) {
  chosen = i;
  const patch = await fetch(`/explore/rows/${i}`).then((r) => r.json()), id = patch.id;
  if (chosen !== i) return;
  const element = (tag, text, color) => {
    const node = document.createElement(tag);
    if (color) { const swatch = document.createElement("span"); swatch.style.background = color; node.append(swatch); }
    node.append(text);
    return node;
  };
  $("patch-id").textContent = id;
  const pictures = [
    ...patch.pictures.map(({ name, caption }) => [`${name}.png`, caption]),
    ...patch.layers.flatMap((layer) => layer.pictures.map(([name, caption]) => [`layers/${layer.name}/${name}.png`, caption])),
  ];
  $("pictures").replaceChildren(...pictures.map(([path, caption]) => {
    const figure = document.createElement("figure");
    figure.append(Object.assign(new Image(), { src: `/explore/patches/${id}/${path}`, alt: caption }), element("figcaption", caption));
    return figure;
  }));
  if (!pictures.length) $("pictures").append(element("p", "This dataset has no pixels."));
  const colors = Object.fromEntries(index.labels.map((l) => [l.name, l.color]));
  $("patch-labels").replaceChildren(...patch.labels.map((name) => element("li", name, colors[name])));
  $("patch-legend").replaceChildren(...patch.legend.map((entry) => {
    const row = document.createElement("tr");
    row.append(element("td", `${entry.code} ${entry.name}`, entry.color), element("td", `${(100 * entry.share).toFixed(1)} %`));
    return row;
  }));
  $("patch-layers").replaceChildren(...patch.layers.filter((l) => l.values.length || l.texts.length).map((layer) => {
    const section = document.createElement("section"), table = document.createElement("table"), list = document.createElement("ul");
    table.append(...layer.values.map(([name, value]) => {
      const row = document.createElement("tr");
      row.append(element("td", name), element("td", String(value)));
      return row;
    }));
    list.append(...layer.texts.map((text) => element("li", text)));
    const more = layer.num_texts > layer.texts.length ? ` (${layer.texts.length} of ${number(layer.num_texts)})` : "";
    section.append(element("h2", layer.title + more), layer.values.length ? table : list);
    return section;
  }));
  $("alike").replaceChildren();
  $("like").replaceChildren(...patch.embeddings.map((column) => {
    const button = Object.assign(document.createElement("button"), { type: "button", title: `by ${column}` });
    button.textContent = patch.embeddings.length > 1 ? `more like this, by ${column}` : "more like this";
    button.addEventListener("click", () => showAlike(id, column, patch.pictures));
    return button;
  }));
  $("patch-facts").replaceChildren(...patch.facts.flatMap(([k, v]) => [element("dt", k), element("dd", v)]));
  $("patch").hidden = false;
  draw();
}
async function showAlike(id, column, pictures) {
  const answer = await fetch(`/explore/patches/${id}/nearest?${new URLSearchParams({ column })}`);
  if (!answer.ok) {
    $("alike").replaceChildren(Object.assign(document.createElement("p"), { className: "error", textContent: await problem(answer) }));
    return;
  }
  const found = await answer.json();
  if ($("patch-id").textContent !== id) return;
  $("alike").replaceChildren(...found.map((one) => {
    const button = Object.assign(document.createElement("button"), { type: "button", title: one.id });
    if (pictures.length) button.append(Object.assign(new Image(), { src: `/explore/patches/${one.id}/${pictures[0].name}.png`, alt: one.id }));
    button.append(one.score.toFixed(3));
    button.addEventListener("click", () => {
      view.x = data.cx[one.row];
      view.y = data.cy[one.row];
      show(one.row);
    });
    return button;
  }));
}
$("close").addEventListener("click", () => { $("patch").hidden = true; chosen = -1; draw(); });

load().catch((error) => { $("count").textContent = `cannot load: ${error.message}`; });
