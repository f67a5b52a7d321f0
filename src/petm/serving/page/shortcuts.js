/** Single keys that review, and the help that names them. */

import { byId } from "./dom.js";
import { setting } from "./store.js";

const TYPED = "input:not([type=range], [type=radio], [type=checkbox]), textarea, select"; // where a key is a letter
const OWN_ENTER = "button, a, summary, input, label"; // which react to Enter themselves

/** Connects the keys with a `Review`, unless a person has switched them off. */
export function listenToKeys(review) {
  const box = byId("shortcuts-on");
  const held = setting("localStorage", "petm.shortcuts");
  box.checked = held.get() !== "off";
  box.addEventListener("change", () => held.set(box.checked ? "on" : "off"));
  byId("open-help").addEventListener("click", () => byId("help").showModal());
  document.addEventListener("keydown", (event) => {
    const typed = event.target.matches?.(TYPED) || event.ctrlKey || event.metaKey || event.altKey;
    if (typed || !box.checked || document.querySelector("dialog[open]")) return;
    if (event.key === "?") byId("help").showModal();
    else if (event.key === "/" && review.current && !byId("other-class").hidden) byId("other").focus();
    else if (!review.current || !actOn(review, event)) return;
    event.preventDefault();
  });
}

/** Runs the action of a key; returns whether it has one. */
function actOn(review, event) {
  const { key, target, repeat } = event;
  const moves = { j: 1, k: -1 };
  if (!target.matches?.("input")) Object.assign(moves, { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 });
  const confirms = key === "c" || (key === "Enter" && !target.closest?.(OWN_ENTER));
  if (!moves[key] && !confirms && key !== "u" && key !== "x" && !review.keys.has(key)) return false;
  if (!byId("review").contains(target) && !inSight(byId("case"))) {
    // No decision on an input out of view; arrows still scroll.
    if (key.startsWith("Arrow")) return false;
    review.show();
  } else if (moves[key]) {
    review.move(moves[key]);
  } else if (!repeat) {
    // A key held down counts once.
    if (confirms) review.confirm();
    else if (key === "u") review.undo();
    else if (key === "x") review.cannotTell();
    else review.decide(review.keys.get(key));
  }
  return true;
}

function inSight(element) {
  const { top, bottom, height } = element.getBoundingClientRect();
  return Math.min(bottom, innerHeight) - Math.max(top, 0) >= Math.min(height, innerHeight) / 2;
}
