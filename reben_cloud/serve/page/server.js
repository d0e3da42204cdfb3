// Requests to the server that sent this page, under whatever path that is; and how failures are told.

import { $ } from "./model.js";

export const home = new URL("../", import.meta.url);
export const here = (path) => new URL(path, home).href;

// The answer to a request; an Error with the server's own words where it is refused or never comes.
export async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(here(path), options);
  } catch {
    throw new Error("the server cannot be reached");
  }
  if (!answer.ok) throw new Error(await reason(answer));
  return answer;
}

export const askJson = async (path) => (await ask(path)).json();

export const post = (path, body) =>
  ask(path, { method: "POST", body: body instanceof Uint8Array ? body : JSON.stringify(body), headers: { "Content-Type": body instanceof Uint8Array ? "application/octet-stream" : "application/json" } });

async function reason(answer) {
  const text = await answer.text();
  try {
    const { description, detail } = JSON.parse(text);
    const said = description || detail;
    return typeof said === "string" ? said : said[0].msg;
  } catch {
    return `the server answered ${answer.status}`;
  }
}

let hiding;
export function tell(text, { failed = false } = {}) {
  $("toast").textContent = text;
  $("toast").classList.toggle("failed", failed);
  $("toast").hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => { $("toast").hidden = true; }, failed ? 8000 : 2500);
}

export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without TLS browsers have no clipboard for pages; the old way still works there.
    const area = document.body.appendChild(Object.assign(document.createElement("textarea"), { value: text }));
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) return tell(`the browser does not let ${what} be copied`, { failed: true });
  }
  tell(`${what} copied`);
}
