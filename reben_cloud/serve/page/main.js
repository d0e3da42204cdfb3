// The explorer: every footprint is in memory, so a filter is one pass over typed arrays and the counts are live. Far
// out, products are drawn with their counts; nearer, the patches themselves.

import { $, element } from "./model.js";
import * as address from "./address.js";
import * as code from "./code.js";
import * as controls from "./controls.js";
import * as data from "./data.js";
import * as list from "./list.js";
import * as map from "./map.js";
import { forgetColors } from "./paint.js";
import * as patch from "./patch.js";
import { copy } from "./server.js";

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  forgetColors();
}

function otherTheme() {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  return isDark ? "light" : "dark";
}

async function main() {
  setTheme(localStorage.getItem("theme"));
  $("theme").addEventListener("click", () => {
    const theme = otherTheme();
    localStorage.setItem("theme", theme);
    setTheme(theme);
    map.draw();
  });
  try {
    await data.load();
  } catch (error) {
    const again = element("button", { type: "button", textContent: "try again" });
    again.addEventListener("click", () => location.reload());
    $("count").replaceChildren(`cannot load: ${error.message} `, again);
    return;
  }
  controls.build();
  for (const part of [code, list, map, patch]) part.start();
  if (innerWidth <= 600) code.openDock(false);
  $("share").addEventListener("click", () => copy(address.link(), "link"));
  // After everything has its size: the map's is what the others leave.
  requestAnimationFrame(() => requestAnimationFrame(() => {
    address.start();
    document.body.dataset.ready = "yes";
  }));
}

main();
