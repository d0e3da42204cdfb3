// The footprints as the server packs them (explore.py), and places on the map.

import { app } from "./model.js";
import { ask, askJson } from "./server.js";

// Web Mercator in the unit square, north up.
export const toX = (lon) => lon / 360 + 0.5;
export const toY = (lat) => 0.5 - Math.log(Math.tan(Math.PI / 4 + (lat * Math.PI) / 360)) / (2 * Math.PI);
export const toLon = (x) => (x - 0.5) * 360;
export const toLat = (y) => (Math.atan(Math.exp((0.5 - y) * 2 * Math.PI)) * 360) / Math.PI - 90;

export async function load() {
  const [index, buffer, land] = await Promise.all([
    askJson("explore/index.json"),
    ask("explore/footprints.bin").then((answer) => answer.arrayBuffer()),
    askJson("explore/land.json"),
  ]);
  const place = ([lon, lat]) => [toX(lon), toY(Math.max(-85, Math.min(85, lat)))];
  app.land = land.countries.map(({ name, at, rings }) => ({ name, at: place(at), rings: rings.map((ring) => ring.map(place)) }));
  app.index = index;
  app.data = unpack(buffer, index);
  measureProducts(index, app.data);
  app.hits = new Uint8Array(app.data.n);
}

function unpack(buffer, index) {
  const n = index.num_patches;
  let at = 0;
  const take = (Kind) => { const part = new Kind(buffer, at, n); at += n * Kind.BYTES_PER_ELEMENT; return part; };
  const data = { n, west: take(Int32Array), south: take(Int32Array), east: take(Int32Array), north: take(Int32Array) };
  data.labels = Array.from({ length: Math.ceil(index.labels.length / 32) }, () => take(Uint32Array));
  data.product = take(Uint16Array);
  for (const name of ["split", "country"]) data[name] = take(Uint8Array);
  data.flags = Array.from({ length: Math.ceil(index.flags.length / 8) }, () => take(Uint8Array));
  data.cx = new Float64Array(n);
  data.cy = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    data.cx[i] = toX((data.west[i] + data.east[i]) / 2e7);
    data.cy[i] = toY((data.south[i] + data.north[i]) / 2e7);
  }
  return data;
}

function measureProducts(index, data) {
  for (const product of index.products) {
    const [a, b, c, d] = product.axes.map(([lon, lat]) => [toX(lon), toY(lat)]);
    Object.assign(product, {
      ring: [a, b, d, c],
      // A patch's edges eastward and southward.
      u: [(b[0] - a[0]) / product.size[0], (b[1] - a[1]) / product.size[0]],
      v: [(c[0] - a[0]) / product.size[1], (c[1] - a[1]) / product.size[1]],
      day: product.time.slice(0, 10),
      count: 0, total: 0,
    });
  }
  for (let i = 0; i < data.n; i++) index.products[data.product[i]].total++;
}

export function labelsOf(row) {
  return app.index.labels.filter((_, i) => (app.data.labels[i >> 5][row] >>> (i & 31)) & 1);
}

// West, south, east and north of all patches, degrees.
export function extent() {
  const { n, west, south, east, north } = app.data;
  const box = [Infinity, Infinity, -Infinity, -Infinity];
  for (let i = 0; i < n; i++) {
    if (west[i] < box[0]) box[0] = west[i];
    if (south[i] < box[1]) box[1] = south[i];
    if (east[i] > box[2]) box[2] = east[i];
    if (north[i] > box[3]) box[3] = north[i];
  }
  return box.map((side) => side / 1e7);
}
