// The first patches found, with thumbnails; more come as one scrolls. Arrow keys go from one to the next.

import { $, app, element, on } from "./model.js";
import { labelsOf } from "./data.js";
import { askJson, here, post, tell } from "./server.js";
import { goTo } from "./map.js";
import { choose } from "./patch.js";

const AT_ONCE = 24;
let listed = 0, asking = false, turn = 0;

// A row beside one in the list of all patches found; null at either end.
export function beside(row, step) {
  const at = app.found.indexOf(row);
  if (at < 0) return app.found.length ? app.found[0] : null;
  return app.found[at + step] ?? null;
}

async function more() {
  if (asking || listed >= app.found.length) return;
  asking = true;
  const mine = turn, rows = [...app.found.subarray(listed, listed + AT_ONCE)];
  try {
    const patches = await askJson(`explore/list?rows=${rows}`);
    if (mine !== turn) return;
    $("list").append(...patches.map(card));
    listed += rows.length;
  } catch (error) {
    if (mine === turn) tell(`the list of patches failed: ${error.message}`, { failed: true });
  } finally {
    if (mine === turn) asking = false;
  }
}

function card({ row, id, time }) {
  const { data, index } = app, picture = index.thumbnail;
  const country = index.countries[data.country[row]];
  const what = [time.slice(0, 10), country, labelsOf(row).map((label) => label.name).join(", ")].filter(Boolean).join(" · ");
  const button = element("button", { type: "button", title: id });
  button.dataset.row = row;
  if (picture) {
    const image = element("img", { loading: "lazy", alt: "", src: here(`explore/patches/${id}/${picture}.png`) });
    image.addEventListener("error", () => { image.replaceWith(element("span", { className: "error", textContent: "no picture" })); });
    button.append(image);
  }
  button.append(element("span", { className: "what", textContent: what }));
  button.addEventListener("click", () => { choose(row); goTo(row); });
  return element("li", {}, button);
}

function restart() {
  turn++;
  listed = 0;
  asking = false;
  $("list").replaceChildren(...(app.found.length ? [] : [element("li", {}, element("p", { textContent: "No patch fits all filters." }))]));
  if (!$("list").hidden && !$("dock-body").hidden) more();
}

function mark() {
  for (const button of $("list").querySelectorAll("button")) {
    const isChosen = Number(button.dataset.row) === app.chosen;
    button.setAttribute("aria-current", isChosen);
    if (!isChosen) continue;
    // By hand: scrollIntoView would move the page too.
    const list = $("list"), { left, right } = button.getBoundingClientRect(), frame = list.getBoundingClientRect();
    list.scrollLeft += Math.min(0, left - frame.left) + Math.max(0, right - frame.right);
  }
}

async function save(form) {
  const bits = new Uint8Array(Math.ceil(app.data.n / 8));
  for (const row of app.found) bits[row >> 3] |= 1 << (row & 7);
  const name = { ids: "patches.txt", parquet: "patches.parquet" }[form];
  tell(`writing ${name} …`);
  try {
    const file = await (await post(`explore/found.${form}`, bits)).blob();
    const link = element("a", { href: URL.createObjectURL(file), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    tell(`${name} has ${app.found.length.toLocaleString("en")} patches`);
  } catch (error) {
    tell(`${name} failed: ${error.message}`, { failed: true });
  }
}

export function start() {
  $("dock-body").classList.toggle("without-pictures", !app.index.thumbnail);
  $("list").addEventListener("scroll", () => { if ($("list").scrollWidth - $("list").scrollLeft - $("list").clientWidth < 600) more(); });
  $("list").addEventListener("keydown", (event) => {
    const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    const next = step && event.target.closest("li")?.[step]?.querySelector("button");
    if (!next) return;
    next.focus();
    event.preventDefault();
  });
  for (const button of document.querySelectorAll("[data-save]")) button.addEventListener("click", () => save(button.dataset.save));
}

on("found", () => { restart(); for (const button of document.querySelectorAll("[data-save]")) button.disabled = !app.found.length; });
on("chosen", mark);
on("listed", () => { if (!listed) more(); });
