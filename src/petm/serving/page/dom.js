/** Elements, and figures in words. Text enters the page as text, never as markup. */

/** Returns a new element; attributes that are null, undefined or false are left out. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick" || name === "oninput" || name === "ontoggle") element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** A share in percent, or a dash where there is none. */
export const percent = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)}%`);

/** How many of a thing: `plural(2, "suspect")` is "2 suspects". */
export const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

/** A bar of a share, drawn only: its figure stands beside it as text. */
export function bar(share, kind) {
  const filled = make("i", { class: kind });
  filled.style.width = percent(share ?? 0);
  return make("span", { class: "track", "aria-hidden": "true" }, filled);
}

/** Says a sentence to a screen reader. */
export function announce(sentence) {
  const place = byId("said");
  place.textContent = "";
  // Two equal sentences in a row are said twice only when the place was empty between them.
  setTimeout(() => (place.textContent = sentence), 50);
}

export const reducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
