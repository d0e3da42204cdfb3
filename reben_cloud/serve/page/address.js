// The state of the page in its address, behind the "#": who gets the link sees the same.

import { app, clearFilter, emit, filter, on } from "./model.js";
import { fill } from "./controls.js";
import { goTo, setView, showAll, viewCentre, zoomLevel } from "./map.js";
import { chooseId, close, shownId } from "./patch.js";

let written = "", isMoved = false;

function write() {
  const { index } = app, state = new URLSearchParams();
  const add = (name, values) => { for (const value of values) state.append(name, value); };
  if (isMoved) state.set("map", [...viewCentre().map((side) => +side.toFixed(4)), +zoomLevel().toFixed(2)].join());
  if (filter.area) state.set("bbox", filter.area.join());
  if (filter.from || filter.to) state.set("datetime", `${filter.from}/${filter.to}`);
  if (filter.s1From || filter.s1To) state.set("s1_datetime", `${filter.s1From}/${filter.s1To}`);
  add("label", [...filter.labels].map((i) => index.labels[i].name));
  if (filter.allLabels) state.set("all", "1");
  add("split", [...filter.splits].map((i) => index.splits[i]));
  add("country", [...filter.countries].map((i) => index.countries[i]));
  add("season", [...filter.seasons].map((i) => index.seasons[i]));
  add("has", [...filter.layers].map((i) => index.layers[i].name));
  index.flags.forEach((flag, bit) => { if (filter.flags[bit]) state.set(flag.column, filter.flags[bit]); });
  if (filter.recommended) state.set("recommended", "1");
  if (filter.cql2) state.set("cql2", filter.cql2);
  add("id", filter.ids);
  if (shownId()) state.set("patch", shownId());
  const text = state.toString();
  if (text === written) return;
  written = text;
  history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
}

// What an address says; what it names and the dataset lacks is passed over.
function read() {
  const { index } = app, state = new URLSearchParams(location.hash.slice(1));
  written = state.toString();
  clearFilter();
  const numbers = (name) => (state.get(name) || "").split(",").map(Number);
  const isDay = (text) => /^\d{4}-\d\d-\d\d$/.test(text);
  const interval = (name) => (state.get(name) || "/").split("/").map((day) => (isDay(day) ? day : ""));
  const pick = (set, name, names) => { for (const value of state.getAll(name)) if (names.includes(value)) set.add(names.indexOf(value)); };
  const box = numbers("bbox");
  if (box.length === 4 && box.every(Number.isFinite)) filter.area = box;
  [filter.from, filter.to = ""] = interval("datetime");
  [filter.s1From, filter.s1To = ""] = interval("s1_datetime");
  pick(filter.labels, "label", index.labels.map((label) => label.name));
  pick(filter.splits, "split", index.splits);
  pick(filter.countries, "country", index.countries);
  pick(filter.seasons, "season", index.seasons);
  pick(filter.layers, "has", index.layers.map((layer) => layer.name));
  filter.allLabels = state.get("all") === "1";
  filter.flags = index.flags.map((flag) => (["true", "false"].includes(state.get(flag.column)) ? state.get(flag.column) : ""));
  filter.recommended = state.get("recommended") === "1";
  filter.cql2 = state.get("cql2") || "";
  filter.ids = state.getAll("id");
  fill();
  emit("filter");
  const [lon, lat, zoom] = numbers("map"), hasView = Math.abs(lon) <= 180 && Math.abs(lat) <= 85 && zoom >= 0;
  if (hasView) setView(lon, lat, zoom);
  else { showAll(); isMoved = false; }
  if (state.get("patch")) chooseId(state.get("patch")).then(() => { if (!hasView && app.chosen >= 0) goTo(app.chosen); });
  else if (app.chosen >= 0) close();
}

let waiting;
function later() {
  clearTimeout(waiting);
  waiting = setTimeout(write, 200);
}

export function start() {
  addEventListener("hashchange", () => { if (location.hash.slice(1) !== written) read(); });
  on("found chosen", later);
  on("view", () => { isMoved = true; later(); });
  read();
}

export const link = () => { write(); return location.href; };
