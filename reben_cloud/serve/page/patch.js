// One patch: pictures, labels, what its map and layers hold, facts, and those that look alike.

import { $, app, element, emit, number, on, swatch } from "./model.js";
import { ask, askJson, copy, here } from "./server.js";
import { beside } from "./list.js";
import { goTo } from "./map.js";

let shown = ""; // id of the patch in the panel

export const shownId = () => (app.chosen < 0 ? "" : shown);

export const choose = (row) => open(`explore/rows/${row}`, row);
export const chooseId = (id) => open(`explore/patches/${encodeURIComponent(id)}`, -1);

let turn = 0;
async function open(path, row) {
  const mine = ++turn;
  if (row >= 0) set(row);
  $("patch").hidden = false;
  $("patch-error").textContent = "";
  try {
    const patch = await askJson(path);
    if (mine !== turn) return;
    show(patch);
    set(row < 0 ? patch.row : row);
  } catch (error) {
    if (mine !== turn) return;
    for (const id of PARTS) $(id).replaceChildren();
    $("patch-error").textContent = `this patch cannot be shown: ${error.message}`;
  }
}

function set(row) {
  app.chosen = row;
  $("previous").disabled = beside(row, -1) === null;
  $("next").disabled = beside(row, 1) === null;
  emit("chosen");
}

export function close() {
  turn++;
  app.chosen = -1;
  $("patch").hidden = true;
  emit("chosen");
}

const PARTS = ["patch-id", "pictures", "patch-labels", "like", "alike", "patch-layers", "patch-legend", "patch-facts"];

function row(...cells) {
  return element("tr", {}, ...cells.map((cell) => element("td", {}, ...[cell].flat())));
}

function figure(id, path, caption) {
  const image = element("img", { alt: caption, src: here(`explore/patches/${id}/${path}`) });
  const text = element("figcaption", { textContent: caption });
  image.addEventListener("error", () => { text.textContent = `${caption}: failed`; text.className = "error"; });
  return element("figure", {}, image, text);
}

function show(patch) {
  const { id } = patch, colors = Object.fromEntries(app.index.labels.map((label) => [label.name, label.color]));
  shown = id;
  const pictures = [
    ...patch.pictures.map(({ name, caption }) => [`${name}.png`, caption]),
    ...patch.layers.flatMap((layer) => layer.pictures.map(([name, caption]) => [`layers/${layer.name}/${name}.png`, caption])),
  ];
  $("patch-id").textContent = id;
  $("pictures").replaceChildren(...(pictures.length ? pictures.map(([path, caption]) => figure(id, path, caption)) : [element("p", { textContent: "This dataset has no pixels." })]));
  $("patch-labels").replaceChildren(...patch.labels.map((name) => element("li", {}, swatch(colors[name]), name)));
  $("patch-legend").replaceChildren(element("tbody", {}, ...patch.legend.map(({ code, name, color, share }) => row([swatch(color), `${code} ${name}`], `${(100 * share).toFixed(1)} %`))));
  $("patch-layers").replaceChildren(...patch.layers.filter((layer) => layer.values.length || layer.texts.length).map((layer) => {
    const more = layer.num_texts > layer.texts.length ? ` (${layer.texts.length} of ${number(layer.num_texts)})` : "";
    const body = layer.values.length
      ? element("table", {}, element("tbody", {}, ...layer.values.map(([name, value]) => row(name, String(value)))))
      : element("ul", { tabIndex: 0 }, ...layer.texts.map((text) => element("li", { textContent: text })));
    return element("section", {}, element("h2", { textContent: layer.title + more }), body);
  }));
  $("alike").replaceChildren();
  $("like").replaceChildren(...patch.embeddings.map((column) => {
    const button = element("button", { type: "button", title: `by ${column}`, textContent: patch.embeddings.length > 1 ? `more like this, by ${column}` : "more like this" });
    button.addEventListener("click", () => showAlike(id, column, patch.pictures));
    return button;
  }));
  $("patch-facts").replaceChildren(...patch.facts.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]));
}

async function showAlike(id, column, pictures) {
  let found;
  try {
    found = await (await ask(`explore/patches/${id}/nearest?${new URLSearchParams({ column })}`)).json();
  } catch (error) {
    $("alike").replaceChildren(element("p", { className: "error", textContent: error.message }));
    return;
  }
  if (shown !== id) return;
  $("alike").replaceChildren(...found.map((one) => {
    const button = element("button", { type: "button", title: one.id });
    if (pictures.length) button.append(element("img", { alt: "", src: here(`explore/patches/${one.id}/${pictures[0].name}.png`) }));
    button.append(one.score.toFixed(3));
    button.addEventListener("click", () => { choose(one.row); goTo(one.row); });
    return button;
  }));
}

function step(by) {
  const next = beside(app.chosen, by);
  if (next === null) return;
  choose(next);
  goTo(next);
}

export function start() {
  $("close").addEventListener("click", () => { close(); $("map").focus(); });
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("copy-id").addEventListener("click", () => copy(shown, "patch id"));
  document.addEventListener("keydown", (event) => {
    if (app.chosen < 0 || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
    if (event.key === "Escape") close();
    // On the map and in the list arrow keys go elsewhere; n and p go through the patches everywhere.
    else if (event.key === "n" || (event.key === "ArrowRight" && $("patch").contains(event.target))) step(1);
    else if (event.key === "p" || (event.key === "ArrowLeft" && $("patch").contains(event.target))) step(-1);
  });
}

on("found", () => { if (app.chosen >= 0) { $("previous").disabled = beside(app.chosen, -1) === null; $("next").disabled = beside(app.chosen, 1) === null; } });
