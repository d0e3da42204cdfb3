// What the page holds: the dataset's names and footprints, what is filtered by, what was found, what is looked at.
// Whoever changes something says so by name ("filter", "found", "view", "chosen"), and whoever shows it listens.

export const $ = (id) => document.getElementById(id);
export const number = (n) => n.toLocaleString("en");

export const app = {
  index: null, // names that the numbers of the footprints stand for
  data: null, // typed arrays, a value per patch
  land: [], // outlines of countries
  hits: null, // 1 for each patch found
  found: new Int32Array(0), // rows of the patches found
  view: { x: 0.5, y: 0.3, scale: 1000 }, // centre in the unit square of Web Mercator, pixels per unit
  chosen: -1, // row of the patch that is shown
};

export const filter = {
  area: null, from: "", to: "", s1From: "", s1To: "", seasons: new Set(), labels: new Set(), allLabels: false,
  splits: new Set(), countries: new Set(), layers: new Set(), recommended: false,
  flags: [], // for each flag "", "true" or "false"
  cql2: "", ids: [],
};

export function clearFilter() {
  Object.assign(filter, { area: null, from: "", to: "", s1From: "", s1To: "", allLabels: false, recommended: false, cql2: "", ids: [] });
  filter.flags = app.index.flags.map(() => "");
  for (const set of [filter.seasons, filter.labels, filter.splits, filter.countries, filter.layers]) set.clear();
}

// How many conditions narrow the patches.
export function countConditions() {
  const sets = [filter.seasons, filter.labels, filter.splits, filter.countries, filter.layers].filter((set) => set.size).length;
  const others = [filter.area, filter.from || filter.to, filter.s1From || filter.s1To, filter.recommended, filter.cql2, filter.ids.length];
  return sets + others.filter(Boolean).length + filter.flags.filter(Boolean).length;
}

const listeners = new Map();

export function on(names, listener) {
  for (const name of names.split(" ")) listeners.set(name, [...(listeners.get(name) || []), listener]);
}

export function emit(name) {
  for (const listener of listeners.get(name) || []) listener();
}

export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

export function swatch(color) {
  const node = element("span", { className: "swatch" });
  node.style.background = color;
  return node;
}
