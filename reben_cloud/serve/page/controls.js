// The filters: built from what the dataset has, filled from the filter, and written back to it.

import { $, app, clearFilter, countConditions, element, emit, filter, number, on, swatch } from "./model.js";
import { toLat, toLon } from "./data.js";
import { SPLIT_COLORS } from "./paint.js";
import { setDrawing, viewBox } from "./map.js";

export function build() {
  const { index } = app;
  document.title = $("title").textContent = index.title;
  options("splits", index.splits, filter.splits, (i) => SPLIT_COLORS[i]);
  options("countries", index.countries, filter.countries);
  options("labels", index.labels.map((label) => label.name), filter.labels, (i) => index.labels[i].color);
  options("layers", index.layers.map((layer) => layer.title || layer.name), filter.layers);
  options("seasons", index.seasons, filter.seasons);
  index.layers.forEach((layer, i) => { $("layers").children[i].querySelector(".number").textContent = number(layer.num_patches); });
  $("layers-filter").hidden = !index.layers.length;
  $("countries-filter").hidden = !index.countries.length;
  $("quality-filter").hidden = !index.flags.length;
  $("s1-filter").hidden = !index.has_s1_time;
  $("not-recommended").textContent = `no ${index.flags.map((flag) => flag.title.toLowerCase()).join(", ")}`;
  $("flags").replaceChildren(...index.flags.map(flagChoice));
  const fields = index.layers.flatMap((layer) => layer.fields.map((name) => `"${name}"`));
  $("fields").replaceChildren(...fields.map((value) => element("option", { value })));
  $("cql2").placeholder = `${fields.find((name) => !name.endsWith(':present"')) || "proj:code"} …`;
  const days = index.products.map((p) => p.day).sort();
  for (const id of ["from", "to"]) Object.assign($(id), { min: days[0], max: days.at(-1) });
  listen();
  fill();
}

function options(id, names, chosen, color) {
  $(id).replaceChildren(...names.map((name, i) => {
    const box = element("input", { type: "checkbox" });
    box.addEventListener("change", () => { box.checked ? chosen.add(i) : chosen.delete(i); emit("filter"); });
    const count = element("span", { className: "number" });
    return element("label", {}, box, ...(color ? [swatch(color(i))] : []), element("span", { className: "name", textContent: name }), count);
  }));
}

function flagChoice(flag, bit) {
  const choice = element("select", {}, ...[["", "with or without"], ["true", "only with"], ["false", "without"]].map(([value, text]) => element("option", { value, textContent: text })));
  choice.addEventListener("change", () => { filter.flags[bit] = choice.value; emit("filter"); });
  return element("label", {}, flag.title, choice);
}

function listen() {
  const texts = { from: "from", to: "to", "s1-from": "s1From", "s1-to": "s1To", cql2: "cql2" };
  for (const [id, name] of Object.entries(texts)) $(id).addEventListener("change", () => { filter[name] = $(id).value.trim(); emit("filter"); });
  $("recommended").addEventListener("change", () => { filter.recommended = $("recommended").checked; emit("filter"); });
  for (const id of ["any-labels", "all-labels"]) $(id).addEventListener("change", () => { filter.allLabels = $("all-labels").checked; emit("filter"); });
  $("ids").addEventListener("change", () => { filter.ids = $("ids").value.split(/[\s,;]+/).filter(Boolean); emit("filter"); });
  $("area").addEventListener("change", () => typedArea($("area").value));
  $("draw").addEventListener("click", () => { setDrawing(!$("map").classList.contains("drawing")); openFilters(false); });
  $("view-area").addEventListener("click", () => setArea(viewBox()));
  $("clear-area").addEventListener("click", () => setArea(null));
  $("reset").addEventListener("click", () => { clearFilter(); fill(); emit("filter"); });
  $("open-filters").addEventListener("click", () => openFilters(!$("filters").classList.contains("open")));
  $("close-filters").addEventListener("click", () => openFilters(false));
  $("filters").addEventListener("keydown", (event) => { if (event.key === "Escape") openFilters(false); });
}

// Of no effect where there is room for both: the filters then stand beside the map.
function openFilters(open) {
  const isOpen = $("filters").classList.contains("open");
  $("filters").classList.toggle("open", open);
  $("open-filters").setAttribute("aria-expanded", open);
  if (open) $("close-filters").focus();
  else if (isOpen) $("open-filters").focus();
}

function typedArea(text) {
  const sides = text.trim() ? text.split(/[\s,;]+/).filter(Boolean).map(Number) : null;
  const fits = !sides || (sides.length === 4 && sides.every(Number.isFinite) && sides[0] < sides[2] && sides[1] < sides[3] && Math.abs(sides[1]) <= 90 && Math.abs(sides[3]) <= 90);
  $("area-error").textContent = fits ? "" : "four degrees: west, south, east, north, such as 13.1, 47.5, 13.6, 48";
  if (fits) setArea(sides);
}

export function setArea(area) {
  filter.area = area;
  fill();
  emit("filter");
}

// What the box between two points of the map is in degrees, as a filter has it.
export function areaOf([x0, y0], [x1, y1]) {
  return [toLon(Math.min(x0, x1)), toLat(Math.max(y0, y1)), toLon(Math.max(x0, x1)), toLat(Math.min(y0, y1))].map((side) => +side.toFixed(4));
}

// Show the filter in its controls.
export function fill() {
  for (const [id, chosen] of [["splits", filter.splits], ["countries", filter.countries], ["labels", filter.labels], ["layers", filter.layers], ["seasons", filter.seasons]]) {
    [...$(id).children].forEach((label, i) => { label.querySelector("input").checked = chosen.has(i); });
  }
  [...$("flags").children].forEach((label, bit) => { label.querySelector("select").value = filter.flags[bit] || ""; });
  Object.entries({ from: filter.from, to: filter.to, "s1-from": filter.s1From, "s1-to": filter.s1To, cql2: filter.cql2, ids: filter.ids.join("\n"), area: filter.area ? filter.area.join(", ") : "" })
    .forEach(([id, value]) => { $(id).value = value; });
  $("recommended").checked = filter.recommended;
  $(filter.allLabels ? "all-labels" : "any-labels").checked = true;
  $("clear-area").hidden = !filter.area;
  $("area-error").textContent = "";
}

on("found", () => {
  const { counts, data, found, index } = app;
  $("count").textContent = `${number(found.length)} of ${number(data.n)} patches`;
  $("count").dataset.matched = app.waits ? "" : found.length;
  $("filter-count").textContent = countConditions() || "";
  for (const id of ["labels", "splits", "countries"]) {
    [...$(id).children].forEach((label, i) => {
      label.querySelector(".number").textContent = number(counts[id][i]);
      label.classList.toggle("none", !counts[id][i]);
    });
  }
  const byMonth = {};
  counts.products.forEach((count, i) => { const month = index.products[i].day.slice(0, 7); byMonth[month] = (byMonth[month] || 0) + count; });
  const tallest = Math.max(1, ...Object.values(byMonth));
  $("months").replaceChildren(...Object.keys(byMonth).sort().map((month) => {
    const bar = element("div", { title: `${month}: ${number(byMonth[month])}` });
    bar.style.height = `${(100 * byMonth[month]) / tallest}%`;
    return bar;
  }));
});
