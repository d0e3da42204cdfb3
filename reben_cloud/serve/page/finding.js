// Which patches fit the filter. What the footprints tell is judged here, in one pass over typed arrays; the rest by
// the server, which answers with a bit for each patch.

import { $, app, emit, filter, on } from "./model.js";
import { post } from "./server.js";

const AREA = 1, TIME = 2, LABELS = 4, SPLIT = 8, COUNTRY = 16, QUALITY = 32, SERVER = 64;

// Condition -> what was asked last, its bits, why it failed, and where that is said.
const judged = Object.fromEntries(
  [["cql2", "cql2-error"], ["has", "has-error"], ["s1_datetime", "s1-error"], ["ids", "ids-error"]]
    .map(([name, place]) => [name, { asked: undefined, bits: null, waits: false, place }]),
);

export const interval = (from, to) => (from || to ? `${from || ".."}/${to || ".."}` : undefined);

export function serverConditions() {
  const { index } = app;
  return {
    cql2: filter.cql2 || undefined,
    has: filter.layers.size ? [...filter.layers].sort((a, b) => a - b).map((i) => index.layers[i].name) : undefined,
    s1_datetime: interval(filter.s1From, filter.s1To),
    ids: filter.ids.length ? filter.ids : undefined,
  };
}

// Whether a condition that the server judges is in force: not one that it refused.
export const holds = (name) => judged[name].bits !== null;

async function judge() {
  const wanted = serverConditions();
  await Promise.all(Object.entries(judged).map(async ([name, state]) => {
    const asked = JSON.stringify(wanted[name]);
    if (asked === state.asked) return;
    Object.assign(state, { asked, waits: asked !== undefined });
    $(state.place).textContent = "";
    let bits = null, failure = "";
    try {
      if (asked !== undefined) bits = new Uint8Array(await (await post("explore/matches.bin", { [name]: wanted[name] })).arrayBuffer());
    } catch (error) {
      failure = error.message;
    }
    if (state.asked !== asked) return; // another one was asked for meanwhile
    if (failure) {
      $(state.place).textContent = `not applied: ${failure}`;
      state.asked = null; // the next change asks again
    }
    Object.assign(state, { bits, waits: false });
    if (bits && name === "ids") tellUnknown(bits);
    compute();
  }));
}

function tellUnknown(bits) {
  let known = 0;
  for (const byte of bits) for (let rest = byte; rest; rest &= rest - 1) known++;
  const lost = new Set(filter.ids).size - known;
  $("ids-error").textContent = lost ? `${lost} of these ids are not in the dataset` : "";
}

const mask = (chosen) => [...chosen].reduce((bits, i) => bits | (1 << i), 0);

// The same where there are more numbers than a column has bits: a mask for each column.
const masks = (chosen, columns, size) => columns.map((_, k) => mask([...chosen].filter((i) => i >= size * k && i < size * (k + 1)).map((i) => i % size)));

function compute() {
  const { index, data, hits } = app;
  const { n, west, south, east, north, labels, product, split, country, flags } = data;
  const box = filter.area && filter.area.map((v) => Math.round(v * 1e7));
  const wanted = masks(filter.labels, labels, 32);
  const hasLabels = filter.allLabels
    ? (i) => wanted.every((bits, w) => (labels[w][i] & bits) === bits)
    : (i) => wanted.some((bits, w) => labels[w][i] & bits);
  const splits = mask(filter.splits), countries = filter.countries;
  const late = index.products.map((p) => ((filter.from && p.day < filter.from) || (filter.to && p.day > filter.to) || (filter.seasons.size && !filter.seasons.has(index.seasons.indexOf(p.season))) ? TIME : 0));
  const flagged = (value) => masks(filter.flags.flatMap((one, i) => (one === value ? [i] : [])), flags, 8);
  const set = flagged("true"), unset = filter.recommended ? flags.map(() => 255) : flagged("false");
  const judgements = Object.values(judged).map((state) => state.bits).filter(Boolean);
  const counts = { labels: new Array(index.labels.length).fill(0), splits: new Array(index.splits.length).fill(0), countries: new Array(index.countries.length).fill(0), products: new Array(index.products.length).fill(0) };
  const found = new Int32Array(n);
  let matched = 0;
  for (const p of index.products) p.count = 0;
  for (let i = 0; i < n; i++) {
    let fails = late[product[i]];
    if (box && (west[i] > box[2] || east[i] < box[0] || south[i] > box[3] || north[i] < box[1])) fails |= AREA;
    if (filter.labels.size && !hasLabels(i)) fails |= LABELS;
    if (splits && !((splits >> split[i]) & 1)) fails |= SPLIT;
    if (countries.size && !countries.has(country[i])) fails |= COUNTRY;
    for (let k = 0; k < flags.length; k++) if ((flags[k][i] & unset[k]) || (flags[k][i] & set[k]) !== set[k]) fails |= QUALITY;
    for (const bits of judgements) if (!((bits[i >> 3] >> (i & 7)) & 1)) fails |= SERVER;
    hits[i] = fails ? 0 : 1;
    if (!fails) { found[matched++] = i; index.products[product[i]].count++; }
    // A facet counts what its own choice would give, all other filters kept.
    if (!(fails & ~SPLIT)) counts.splits[split[i]]++;
    if (!(fails & ~COUNTRY)) counts.countries[country[i]]++;
    if (!(fails & ~TIME)) counts.products[product[i]]++;
    if (!(filter.allLabels ? fails : fails & ~LABELS)) {
      for (let w = 0; w < labels.length; w++) {
        for (let rest = labels[w][i]; rest; rest &= rest - 1) counts.labels[32 * w + 31 - Math.clz32(rest & -rest)]++;
      }
    }
  }
  app.found = found.subarray(0, matched);
  app.counts = counts;
  app.waits = Object.values(judged).some((state) => state.waits);
  emit("found");
}

on("filter", () => { compute(); judge(); });
