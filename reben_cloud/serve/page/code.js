// Code for what was found: stream it, export it, from a shell, or through the STAC API into odc-stac.

import { $, app, emit, filter, on } from "./model.js";
import { holds, interval, serverConditions } from "./finding.js";
import { copy, home } from "./server.js";

let tab = "list";

// The arguments of Dataset.search, in its order.
function conditions() {
  const { index } = app, asked = serverConditions();
  const chosen = (set, names) => [...set].sort((a, b) => a - b).map((i) => names[i]);
  const found = [];
  if (filter.area) found.push(["bbox", filter.area]);
  if (filter.from || filter.to) found.push(["datetime", interval(filter.from, filter.to)]);
  if (filter.labels.size) found.push([filter.allLabels ? "labels_all" : "labels", chosen(filter.labels, index.labels.map((label) => label.name))]);
  if (filter.splits.size) found.push(["split", chosen(filter.splits, index.splits)]);
  if (filter.countries.size) found.push(["country", chosen(filter.countries, index.countries)]);
  if (holds("ids")) found.push(["ids", asked.ids], ["missing_ok", true]);
  if (holds("s1_datetime")) found.push(["s1_datetime", asked.s1_datetime]);
  if (filter.seasons.size) found.push(["season", chosen(filter.seasons, index.seasons)]);
  index.flags.forEach(({ option }, bit) => { if (option && filter.flags[bit]) found.push([option, filter.flags[bit] === "true"]); });
  if (filter.recommended) found.push(["recommended", true]);
  if (holds("has")) found.push(["has", asked.has]);
  const cql2 = [...(holds("cql2") ? [asked.cql2] : []), ...flagsInWords((flag) => !flag.option)];
  if (cql2.length) found.push(["cql2", cql2.length > 1 ? cql2.map((one) => `(${one})`).join(" AND ") : cql2[0]]);
  return found;
}

function flagsInWords(wanted) {
  return app.index.flags.flatMap((flag, bit) => (wanted(flag) && filter.flags[bit] ? [`"${flag.column}" = ${filter.flags[bit]}`] : []));
}

const quoted = (text) => `'${text.replaceAll("'", "''")}'`;

// The same as one CQL2 text, but for the area and the time, which a STAC search has arguments for.
function filterInWords(found) {
  const given = Object.fromEntries(found), prefix = "reben:";
  const anyOf = (column, names) => `"${prefix}${column}" IN (${names.map(quoted).join(", ")})`;
  const parts = [];
  if (given.labels) parts.push(`A_OVERLAPS("${prefix}labels", (${given.labels.map(quoted).join(", ")}))`);
  if (given.labels_all) parts.push(`A_CONTAINS("${prefix}labels", (${given.labels_all.map(quoted).join(", ")}))`);
  for (const name of ["split", "country"]) if (given[name]) parts.push(anyOf(name, given[name]));
  if (filter.s1From) parts.push(`"${prefix}s1_datetime" >= DATE(${quoted(filter.s1From)})`);
  if (filter.s1To) parts.push(`"${prefix}s1_datetime" <= DATE(${quoted(filter.s1To)})`);
  parts.push(...flagsInWords(() => true));
  if (given.recommended) parts.push(...app.index.flags.map((flag) => `"${flag.column}" = false`));
  if (given.has) parts.push(...given.has.map((name) => `"${name}:present" = true`));
  if (holds("cql2")) parts.push(`(${serverConditions().cql2})`);
  return parts.join(" AND ");
}

function stac(found) {
  const given = Object.fromEntries(found), search = [`collections=[${JSON.stringify(app.index.collection)}]`];
  if (given.season) return "# A STAC search has no seasons: take `datetime`, or search with reben_cloud (see Stream).";
  if (given.bbox) search.push(`bbox=${JSON.stringify(given.bbox)}`);
  if (given.datetime) search.push(`datetime=${JSON.stringify(given.datetime)}`);
  if (given.ids) search.push(`ids=${JSON.stringify(given.ids)}`);
  const words = filterInWords(found);
  if (words) search.push(`filter=${JSON.stringify(words)}`, 'filter_lang="cql2-text"');
  const bands = app.index.bands.slice(0, 3);
  return [
    "import odc.stac, pystac_client", "",
    `api = pystac_client.Client.open(${JSON.stringify(home.href)})`,
    `items = api.search(${search.join(", ")}, max_items=100).items()`,
    bands.length ? `cube = odc.stac.load(items, bands=${JSON.stringify(bands)}, groupby="id")` : "print([item.id for item in items])",
  ].join("\n");
}

const python = (value) => (Array.isArray(value) && typeof value[0] === "number" ? `(${value.join(", ")})` : value === true ? "True" : value === false ? "False" : JSON.stringify(value));
const shell = (value) => (/^[\w.,:/-]+$/.test(value) ? value : `'${value.replaceAll("'", "'\\''")}'`);

function flags(found) {
  return found.flatMap(([name, value]) => {
    const flag = { labels: "label", labels_all: "label-all", ids: "id" }[name] || name.replaceAll("_", "-");
    if (value === true) return [`--${flag}`];
    if (value === false) return [`--no-${flag}`];
    return Array.isArray(value) && typeof value[0] !== "number" ? value.map((one) => `--${flag} ${shell(one)}`) : [`--${flag}=${shell(String(value))}`];
  });
}

// What opens the dataset: not every dataset has an address.
const place = () => app.index.url || "PATH_OF_THE_DATASET";
const layerUrls = () => app.index.layers.map((layer) => layer.url);

function search(found) {
  const layers = layerUrls(), given = found.map(([name, value]) => `${name}=${python(value)}`);
  const opened = [JSON.stringify(place()), ...(layers.length ? [`layers=${JSON.stringify(layers)}`] : [])];
  return `import reben_cloud as rc\n\nsel = rc.open(${opened.join(", ")}).search(${given.join(", ")})`;
}

function stream(found) {
  const { modalities } = app.index;
  if (!modalities.length) return `${search(found)}   # this root has metadata only: nothing to stream`;
  return [
    search(found), "",
    "from reben_cloud.torch import StreamLoader",
    `for batch in StreamLoader(sel, modalities=${JSON.stringify(modalities)}, batch_size=256):`,
    "    ...",
  ].join("\n");
}

function exported(found) {
  const line = app.index.modalities.length ? 'sel.export_lmdb("selection.lmdb")' : 'sel.to_geopandas().to_file("selection.gpkg")';
  return `${search(found)}\n${line}`;
}

function commands(found) {
  const names = app.index.modalities.length ? ["search", "stream", "export"] : ["search"];
  const options = [...layerUrls().map((url) => `--layer=${shell(url)}`), ...flags(found)];
  return names.map((name) => ["reben-cloud", name, shell(place()), ...(name === "export" ? ["selection.lmdb"] : []), ...options].join(" ")).join("\n");
}

const snippet = () => ({ stream, export: exported, cli: commands, stac })[tab]?.(conditions()) ?? "";

function choose(name) {
  tab = name;
  for (const button of document.querySelectorAll("[data-tab]")) button.setAttribute("aria-pressed", button.dataset.tab === tab);
  $("list").hidden = tab !== "list";
  $("snippet").hidden = $("copy").hidden = tab === "list";
  openDock(true);
  $("snippet").textContent = snippet();
  if (tab === "list") emit("listed");
}

export function openDock(open) {
  $("dock-body").hidden = !open;
  $("toggle-dock").setAttribute("aria-expanded", open);
  $("toggle-dock").textContent = open ? "▾" : "▴";
  if (open && tab === "list") emit("listed");
}

export function start() {
  for (const button of document.querySelectorAll("[data-tab]")) button.addEventListener("click", () => choose(button.dataset.tab));
  $("toggle-dock").addEventListener("click", () => openDock($("dock-body").hidden));
  $("copy").addEventListener("click", () => copy($("snippet").textContent, "code"));
}

on("found", () => { $("snippet").textContent = snippet(); });
