/** Views of one input: its picture, the grade, both opinions, and the sweep between them. */

import { bar, make, percent } from "./dom.js";
import { sweep } from "./service.js";

const LARGEST = 640; // pixels of a picture's longer side
const SMALL = 96; // below, pixels are shown as squares
const STEPS = 20;
const SWEEPS = new WeakMap(); // probabilities of the sweep, by input
const STRENGTHS = Array.from({ length: STEPS + 1 }, (_, step) => step / STEPS);

const NOT_ASKED = "No second opinion was computed for this input.";

const whole = (strength) => `${Math.round(100 * strength)}%`;

export const className = (about, label) => about.classes[label] ?? String(label);

/** Returns the picture of an input, or the beginning of its text. */
export function picture(input, longest = 300) {
  if (input.kind === "texts") {
    const text = input.content.length > longest ? `${input.content.slice(0, longest).trimEnd()} …` : input.content;
    return make("blockquote", {}, text);
  }
  const canvas = make("canvas", { class: "picture blank", role: "img", "aria-label": input.name, width: 1, height: 1 });
  // An input that the service could not read, or has not graded, is not given to the browser's decoder either.
  if (input.row && input.row.grade !== "unreadable") paint(canvas, input.content);
  return canvas;
}

async function paint(canvas, content) {
  try {
    const image = await createImageBitmap(content);
    const scale = Math.min(1, LARGEST / Math.max(image.width, image.height));
    canvas.width = Math.max(1, Math.round(image.width * scale));
    canvas.height = Math.max(1, Math.round(image.height * scale));
    canvas.classList.remove("blank");
    canvas.classList.toggle("pixels", Math.max(image.width, image.height) < SMALL);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    image.close();
  } catch {
    canvas.setAttribute("aria-label", `${canvas.getAttribute("aria-label")} (this browser cannot show it)`);
  }
}

const MARKS = { trusted: "✓", suspect: "!", unreadable: "×" };

export const badge = (grade) =>
  make("span", { class: `badge ${grade}` }, make("span", { "aria-hidden": "true" }, MARKS[grade]), grade);

/** The probability of error, with its bar. */
export function errorProbability({ probability_of_error: probability }) {
  const known = probability !== null && probability !== undefined;
  return make(
    "p",
    { class: "error-probability" },
    "Probability of error ",
    make("b", {}, percent(probability)),
    known ? bar(probability, "error") : null,
  );
}

/** The likeliest classes, of both opinions side by side; without a second opinion, of the model alone, and says so. */
export function opinions(about, row, most) {
  const none = about.second_opinion && !row.opinion;
  const parts = [likely(about, row, most), none ? make("p", { class: "soft unasked" }, NOT_ASKED) : null];
  return make("div", {}, ...parts);
}

function likely(about, row, most) {
  const named = (label) => className(about, label);
  const both = Boolean(row.opinion);
  const classes = likeliest(both ? [row.base, row.opinion] : [row.base], most);
  const cell = (probabilities, label, top, kind) =>
    make(
      "td",
      { class: label === top ? "top" : null },
      make("span", { class: "figure" }, percent(probabilities[label])),
      bar(probabilities[label], kind),
    );
  const head = (kind, text) =>
    make("th", { scope: "col" }, make("span", { class: `key ${kind}`, "aria-hidden": "true" }), text);
  const rows = classes.map((label) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, named(label)),
      cell(row.base, label, row.label, "base"),
      both ? cell(row.opinion, label, row.second, "second") : null,
    ),
  );
  return make(
    "table",
    { class: "opinions" },
    make("caption", { class: "unseen" }, both ? "Both opinions: the likeliest classes" : "The likeliest classes"),
    make(
      "thead",
      {},
      make(
        "tr",
        {},
        make("th", { scope: "col" }, "Class"),
        head("base", "The model says"),
        both ? head("second", "The second opinion says") : null,
      ),
    ),
    make("tbody", {}, ...rows),
  );
}

/** The slider from the model to the second opinion, folded away; it is asked for once, where a person unfolds it. */
export function turning(about, input) {
  const range = make("input", {
    type: "range",
    min: 0,
    max: STEPS,
    step: 1,
    value: 0,
    "aria-label": "Strength of the second opinion, from 0%, the model alone, to 100%",
  });
  const strength = make("output", {}, "0%");
  const story = make("p", { class: "turn" });
  const rows = make("div", { class: "shares" });
  const element = make(
    "details",
    { class: "sweep", ontoggle: ask },
    make("summary", {}, "How strong the second opinion is"),
    make("p", { class: "sweep-head" }, "Strength ", strength),
    range,
    make("p", { class: "ends", "aria-hidden": "true" }, make("span", {}, "the model"), make("span", {}, "the second opinion")),
    story,
    rows,
  );
  let probabilities = null;
  let asked = false;

  function show() {
    strength.textContent = whole(STRENGTHS[range.value]);
    const now = probabilities?.[range.value];
    const top = now && now.indexOf(Math.max(...now));
    range.setAttribute(
      "aria-valuetext",
      strength.textContent + (now ? `: ${className(about, top)} at ${percent(now[top])}` : ""),
    );
    for (const share of now ? rows.children : []) {
      const label = Number(share.dataset.label);
      share.classList.toggle("top", label === top);
      share.querySelector(".figure").textContent = percent(now[label]);
      share.querySelector("i").style.width = percent(now[label]);
    }
  }

  async function ask() {
    if (asked) return;
    asked = true;
    story.className = "turn";
    story.textContent = "Asking the service …";
    try {
      if (!SWEEPS.has(input)) SWEEPS.set(input, await sweep(input, STRENGTHS));
      probabilities = SWEEPS.get(input);
      rows.replaceChildren(
        ...likeliest(probabilities, 5).map((label) =>
          make(
            "p",
            { class: "share", "data-label": label },
            make("span", { class: "name" }, className(about, label)),
            bar(0, "dialled"),
            make("span", { class: "figure" }),
          ),
        ),
      );
      story.textContent = turnInWords(about, probabilities);
      show();
    } catch (error) {
      asked = false;
      story.className = "turn problem";
      story.textContent = `${error.message} Move the slider to ask again.`;
    }
  }

  range.addEventListener("input", () => {
    ask();
    show();
  });
  return element;
}

/** Where the likeliest class changes between the model and the second opinion, in words. */
function turnInWords(about, probabilities) {
  const tops = probabilities.map((each) => each.indexOf(Math.max(...each)));
  const turns = STRENGTHS.flatMap((strength, step) =>
    step && tops[step] !== tops[step - 1] ? [`to ${className(about, tops[step])} at ${whole(strength)}`] : [],
  );
  const first = className(about, tops[0]);
  return turns.length ? `It turns from ${first} ${turns.join(", ")}.` : `It stays ${first} all the way.`;
}

function likeliest(lists, most) {
  const highest = lists[0].map((_, label) => Math.max(...lists.map((each) => each[label])));
  return [...highest.keys()].sort((one, other) => highest[other] - highest[one] || one - other).slice(0, most);
}
