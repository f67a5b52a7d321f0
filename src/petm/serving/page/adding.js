/** Adding inputs to the page: by drop, choice, paste or typing. */

import { byId } from "./dom.js";

const SHORT = 60; // characters of a text that serve as its name

/** Calls `add(candidates)` with new inputs; see `Session.add`. */
export function listen(kind, add) {
  const texts = kind === "texts";
  byId("images").hidden = texts;
  byId("texts").hidden = !texts;
  byId("add-title").textContent = texts ? "Add texts" : "Add images";
  byId("files").addEventListener("change", async ({ target }) => {
    await add(fromFiles([...target.files]));
    target.value = ""; // the same files may be chosen again
  });
  byId("texts").addEventListener("submit", (event) => {
    event.preventDefault();
    const field = byId("text");
    const found = fromText(field.value, byId("lines").checked);
    if (!found.length) return field.focus();
    field.value = "";
    return add(found);
  });
  document.addEventListener("paste", (event) => {
    if (event.target.closest?.("textarea, input") || document.querySelector("dialog[open]")) return;
    const files = [...event.clipboardData.files];
    if (!texts && files.length) add(fromFiles(files));
    else if (texts) byId("text").value += event.clipboardData.getData("text/plain");
  });
  listenToDrops(async (transfer) => {
    const files = await filesIn(transfer);
    const text = transfer.text;
    if (!texts) return add(fromFiles(files));
    const contents = await Promise.all(files.map((file) => file.text()));
    return add([...contents, text].flatMap((content) => fromText(content, byId("lines").checked)));
  });
}

function listenToDrops(drop) {
  // Anywhere on the page, for beside the field the browser would leave the page and open the file.
  let depth = 0;
  const over = (inside) => document.body.classList.toggle("dropping", inside);
  document.addEventListener("dragenter", () => over((depth += 1) > 0));
  document.addEventListener("dragleave", () => over((depth -= 1) > 0));
  document.addEventListener("drop", (event) => {
    over((depth = 0) > 0);
    // The transfer is empty as soon as this function returns.
    const { items, files } = event.dataTransfer;
    const entries = [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
    drop({ entries, files: [...files], text: event.dataTransfer.getData("text/plain") });
  });
}

/** All files of a drop, those in folders too. */
async function filesIn({ entries, files }) {
  if (!entries.some((entry) => entry.isDirectory)) return files;
  const nested = await Promise.all(entries.map(filesOf));
  return nested.flat();
}

async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((done, failed) => entry.file(done, failed))];
  const reader = entry.createReader();
  const found = [];
  for (let more = [1]; more.length; found.push(...more)) {
    more = await new Promise((done, failed) => reader.readEntries(done, failed)); // a hundred at a time
  }
  return (await Promise.all(found.map(filesOf))).flat();
}

const fromFiles = (files) =>
  files.map((file) => ({ name: file.name || "image", kind: "images", read: async () => file }));

function fromText(text, lines) {
  return (lines ? text.split(/\r?\n/) : [text])
    .map((one) => one.trim())
    .filter(Boolean)
    .map((one) => ({
      name: one.length > SHORT ? `${one.slice(0, SHORT)} …` : one,
      kind: "texts",
      read: async () => one,
    }));
}
