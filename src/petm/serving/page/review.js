/** The review queue: one suspect after the other, most suspect first, by mouse or keyboard. */

import { announce, byId, make, percent, plural, reducedMotion } from "./dom.js";
import { badge, className, errorProbability, opinions, picture, turning } from "./opinions.js";
import { blind, decisionStands } from "./session.js";

const AHEAD = 5; // inputs of the queue that are shown before and after the one in review
const MOST_KEYS = 9;
const MOST_LIKELY = 5; // further classes that have a button

export class Review {
  /** Takes a `Session`. */
  constructor(session) {
    this.session = session;
    this.labels = [...session.about.classes.keys()];
    // Digits stand for themselves where they are the class names.
    const digits = session.about.classes.every((name) => /^[0-9]$/.test(name));
    const keyed = digits ? this.labels : this.labels.slice(0, MOST_KEYS);
    const keyOf = (label) => (digits ? session.about.classes[label] : String(label + 1));
    this.keys = new Map(keyed.map((label) => [keyOf(label), label])); // labels by the key that corrects to them
    this.opened = new Set(); // inputs opened for review that are not suspect
    this.decided = []; // in this order, for undo
    this.current = null;
    this.begun = false; // before a person turns to the review, the most suspect comes first as grades come in
    for (const kind of ["focusin", "pointerdown"]) byId("review").addEventListener(kind, () => (this.begun = true));
    byId("confirm").addEventListener("click", () => this.confirm());
    byId("unsure").addEventListener("click", () => this.cannotTell());
    byId("undo").addEventListener("click", () => this.undo());
    byId("previous").addEventListener("click", () => this.move(-1));
    byId("next").addEventListener("click", () => this.move(1));
    byId("save-again").addEventListener("click", () => this.saveAgain());
    byId("other-class").hidden = keyed.length === this.labels.length;
    byId("other-class").addEventListener("submit", (event) => this.correct(event));
    byId("other").addEventListener("input", () => byId("other").setCustomValidity(""));
    byId("other").addEventListener("keydown", ({ key }) => key === "Escape" && byId("case").focus());
    byId("classes").append(...session.about.classes.map((name) => make("option", { value: name })));
    byId("not-kept").hidden = session.about.labels;
    this.mixed = Boolean(session.about.queue || session.about.audit);
    byId("kept").hidden = !session.about.labels || this.mixed;
    byId("mixed").hidden = !session.about.labels || !this.mixed;
  }

  /** The queue: that of the service in its order; or the suspects, most suspect first, and those of an audit between. */
  get queue() {
    const read = [...this.session.inputs.values()].filter(({ row }) => row && row.grade !== "unreadable");
    const opened = ({ id, decision }) => decision || this.opened.has(id);
    const bySuspicion = (one, other) => other.row.suspicion - one.row.suspicion || one.added - other.added;
    const last = Number.MAX_SAFE_INTEGER;
    if (this.session.queue) {
      return read
        .filter((input) => input.queued !== undefined || opened(input))
        .sort((one, other) => (one.queued ?? last) - (other.queued ?? last) || bySuspicion(one, other));
    }
    const shown = read.filter((input) => input.row.grade === "suspect" || input.row.audit || opened(input));
    const ranked = shown.filter(({ row }) => !row.audit).sort(bySuspicion);
    const place = new Map(ranked.map((input, rank) => [input, (rank + 0.5) / ranked.length]));
    for (const input of shown) if (input.row.audit) place.set(input, parseInt(input.id.slice(0, 8), 16) / 2 ** 32);
    return shown.sort((one, other) => place.get(one) - place.get(other));
  }

  /** How many inputs of the queue that are here have no decision. */
  get left() {
    return this.queue.filter(open).length;
  }

  /** Draws what has changed: `input`, or anything. */
  draw(input) {
    const queue = this.queue;
    byId("review").hidden = !queue.length;
    if (!queue.length) {
      this.current = null;
      return;
    }
    const before = this.current;
    if (!this.begun || !queue.includes(this.current)) this.current = queue.find(open) ?? queue[0];
    const drawn = this.drawnRow === this.current.row && this.drawnBlind === blind(this.current);
    if (this.current !== before || !drawn) this.drawCase();
    this.drawQueue(queue);
    this.drawShares(queue);
    this.drawDecision(queue);
  }

  drawCase() {
    const { current, session } = this;
    const { about } = session;
    this.drawnRow = current.row;
    const hidden = (this.drawnBlind = blind(current));
    const held = ["case", "candidates"].some((id) => byId(id).contains(document.activeElement));
    const parts = [
      make(
        "h3",
        { id: "case-title" },
        "The model says ",
        make("b", {}, className(about, current.row.label)),
        " ",
        hidden ? "" : badge(current.row.grade),
      ),
      current.kind === "images" ? make("p", { class: "soft name" }, current.name) : "",
      current.labels
        ? make("p", {}, "The data say ", make("b", {}, current.labels.given), `; suggested: ${current.labels.suggested}`)
        : "",
      ...(hidden
        ? [make("p", { class: "soft" }, `${afterwards(about)} shown after the decision.`)]
        : [
            errorProbability(current.row),
            make("p", { class: "soft suspicion" }, `Suspicion ${current.row.suspicion.toPrecision(3)}`),
            opinions(about, current.row, 5),
          ]),
    ];
    const facts = make("div", { class: "facts" }, ...parts);
    byId("case").replaceChildren(picture(current, 4000), facts);
    if (about.sweep && !hidden) facts.append(turning(about, current));
    this.drawCandidates();
    if (held) byId("case").focus({ preventScroll: true });
  }

  /** The classes to correct to: those with a key, always in the same places, and then the likeliest of the others. */
  drawCandidates() {
    const hidden = blind(this.current);
    const row = hidden ? { ...this.current.row, opinion: null, second: null, candidates: null } : this.current.row;
    const high = (label) => Math.max(row.base?.[label] ?? 0, row.opinion?.[label] ?? 0, label === row.second ? 1 : 0);
    const held = new Set(row.candidates ?? []);
    const likely = (label) => held.has(className(this.session.about, label));
    const others = this.labels.slice(this.keys.size).sort(
      (one, other) => likely(other) - likely(one) || high(other) - high(one) || one - other,
    );
    const buttons = [...this.keys, ...others.slice(0, MOST_LIKELY).map((label) => [null, label])];
    byId("other").value = "";
    byId("candidates").replaceChildren(
      ...buttons.map(([key, label]) => {
        const name = className(this.session.about, label);
        const second = label === row.second ? make("span", { class: "key second", title: "Second opinion" }) : null;
        const base = label === row.label ? make("span", { class: "key base", title: "The model" }) : null;
        const shortcut = key === null || key === name ? null : make("kbd", { "aria-hidden": "true" }, key);
        const whose = [base && "the model's", second && "the second opinion's"].filter(Boolean).join(" and ");
        const spoken = `${name}${whose && `, ${whose}`}${likely(label) ? ", a candidate" : ""}`;
        return make(
          "button",
          {
            type: "button",
            "data-label": label,
            class: likely(label) ? "candidate" : null,
            title: likely(label) ? "A candidate: it may be this class" : null,
            "aria-label": spoken,
            "aria-keyshortcuts": key,
            onclick: () => this.decide(label),
          },
          base,
          second,
          name,
          shortcut,
        );
      }),
    );
  }

  drawQueue(queue) {
    const place = queue.indexOf(this.current);
    const left = queue.filter(open).length;
    const one = this.current.row.grade === "suspect" && !this.mixed ? "Suspect" : "Input";
    byId("progress").textContent =
      this.inProgress() ?? `${one} ${place + 1} of ${queue.length}, ${left ? `${left} to review` : "all reviewed"}`;
    const first = Math.max(0, Math.min(place - AHEAD, queue.length - 2 * AHEAD - 1));
    const shown = queue.slice(first, first + 2 * AHEAD + 1);
    const wanted = shown.map((input) => `${input.id} ${stateOf(input)} ${input === this.current}`).join();
    if (wanted === this.drawnQueue) return;
    this.drawnQueue = wanted;
    const held = document.activeElement?.closest("#queue button")?.dataset.id;
    byId("queue").replaceChildren(
      ...shown.map((input, index) => {
        const number = first + index + 1;
        const state = stateOf(input);
        const name = `${number}: ${input.name}, ${state}`;
        const step = make(
          "button",
          {
            type: "button",
            class: state,
            "data-id": input.id,
            "aria-label": name,
            title: name,
            "aria-current": input === this.current && "step",
            onclick: () => this.goTo(input),
          },
          input.kind === "images" ? picture(input) : make("span", { class: "number" }, number),
          make("span", { class: "state", "aria-hidden": "true" }, { open: "", saved: "✓", unsaved: "…" }[state]),
        );
        return make("li", {}, step);
      }),
    );
    if (held) byId("queue").querySelector(`[data-id="${held}"]`)?.focus();
  }

  /** The progress through the service's queue in words; null without one. */
  inProgress() {
    if (!this.session.queue) return null;
    const { done, total } = this.session.progress;
    const { lost } = this.session.queue;
    const gone = lost ? `, ${plural(lost, "input")} gone or changed` : "";
    return `${done.toLocaleString("en")} of ${total.toLocaleString("en")} reviewed${gone}`;
  }

  /** How many are reviewed, and what was decided on those on the page. */
  drawShares(queue) {
    const decided = queue.filter((input) => !open(input)).map(({ decision }) => decision);
    const unsure = decided.filter((decision) => decision.unsure).length;
    const confirmed = decided.filter((decision) => decision.confirmed).length;
    const share = (count, word) => `${count} ${word} (${percent(count / decided.length)})`;
    const parts = [share(confirmed, "confirmed"), share(decided.length - confirmed - unsure, "corrected")];
    if (unsure) parts.push(share(unsure, "cannot tell"));
    const { done, total } = this.session.queue ? this.session.progress : { done: decided.length, total: queue.length };
    Object.assign(byId("done"), { max: Math.max(total, 1), value: done });
    const before = this.session.queue ? "" : `${done} of ${total} reviewed: `;
    byId("shares").textContent = decided.length ? `${before}${parts.join(", ")}.` : "";
  }

  drawDecision(queue) {
    const { decision } = this.current;
    const label = decision?.label;
    byId("confirmed-class").textContent = className(this.session.about, this.current.row.label);
    byId("confirm").setAttribute("aria-pressed", String(label === this.current.row.label));
    byId("unsure").setAttribute("aria-pressed", String(Boolean(decision?.unsure)));
    for (const button of byId("candidates").children) {
      button.setAttribute("aria-pressed", String(decision?.label === Number(button.dataset.label)));
    }
    byId("decided").replaceChildren(...decisionInWords(this.session.about, this.current));
    // They keep the focus, which disabled ones would lose.
    byId("undo").setAttribute("aria-disabled", String(!this.undoable()));
    byId("previous").setAttribute("aria-disabled", String(queue[0] === this.current));
    byId("next").setAttribute("aria-disabled", String(queue.at(-1) === this.current));
    const unsaved = [...this.session.inputs.values()].filter(({ decision }) => decision?.problem);
    byId("unsaved").hidden = !unsaved.length;
    byId("unsaved-text").textContent = unsaved.length
      ? `${plural(unsaved.length, "decision")} not saved: ${unsaved[0].decision.problem}`
      : "";
  }

  decide(label, unsure = false) {
    const { current } = this;
    this.begun = true;
    if (!current) return;
    this.decided = [...this.decided.filter((input) => input !== current), current];
    this.session.decide(current, label, unsure);
    const queue = this.queue;
    const after = queue.slice(queue.indexOf(current) + 1).find(open) ?? queue.find(open);
    const done = decisionInWords(this.session.about, current)
      .map((part) => part.textContent ?? part)
      .join("");
    if (after) this.current = after;
    this.draw();
    announce(`${done} ${after ? `Next: ${this.inWords()}` : "All are reviewed."}`);
  }

  /** Corrects to the class that was typed: its name, or what only one name contains. */
  correct(event) {
    event.preventDefault();
    const field = byId("other");
    const typed = field.value.trim().toLowerCase();
    const names = this.session.about.classes.map((name) => name.toLowerCase());
    const found = this.labels.filter((label) => names[label].includes(typed));
    const label = names.includes(typed) ? names.indexOf(typed) : found.length === 1 ? found[0] : null;
    if (label === null) {
      field.setCustomValidity(found.length ? `${found.length} classes match. Type more.` : "No class has this name.");
      field.reportValidity();
      return;
    }
    field.value = "";
    byId("case").focus({ preventScroll: true });
    this.decide(label);
  }

  confirm() {
    this.decide(this.current.row.label);
  }

  cannotTell() {
    this.decide(null, true);
  }

  undoable() {
    return decisionStands(this.current)
      ? this.current
      : this.decided.findLast((input) => decisionStands(input) && this.session.inputs.has(input.id));
  }

  undo() {
    const input = this.undoable();
    if (!input) return;
    this.decided = this.decided.filter((other) => other !== input);
    this.opened.add(input.id);
    this.session.decide(input, null);
    this.current = input;
    this.draw();
    announce(`Taken back. ${this.inWords()}`);
  }

  saveAgain() {
    for (const input of this.session.inputs.values()) if (input.decision?.problem) this.session.save(input);
  }

  move(by) {
    const queue = this.queue;
    this.goTo(queue[Math.min(Math.max(queue.indexOf(this.current) + by, 0), queue.length - 1)]);
  }

  goTo(input) {
    this.begun = true;
    this.current = input;
    this.draw();
    announce(this.inWords());
  }

  /** Shows an input in the review, suspect or not, and goes there. */
  open(input) {
    this.opened.add(input.id);
    this.goTo(input);
    this.show();
  }

  show() {
    byId("review").scrollIntoView({ behavior: reducedMotion() ? "auto" : "smooth", block: "start" });
    byId("case").focus({ preventScroll: true });
  }

  inWords() {
    const { about } = this.session;
    const { row, name } = this.current;
    if (blind(this.current)) {
      return `${byId("progress").textContent}: ${name}. The model says ${className(about, row.label)}.`;
    }
    const second = row.opinion ? `, the second opinion says ${className(about, row.second)}` : "";
    return (
      `${byId("progress").textContent}: ${name}. The model says ${className(about, row.label)}${second}. ` +
      `Probability of error ${percent(row.probability_of_error)}.`
    );
  }
}

/** What was decided on an input, as parts of a line. */
export function decisionInWords(about, { decision }) {
  if (!decision) return [];
  const { label, confirmed, unsure, saved, problem } = decision;
  const none = unsure ? "Cannot tell" : "Taken back";
  const what = label === null ? none : `${confirmed ? "Confirmed" : "Corrected to"} ${className(about, label)}`;
  const state = saved ? "saved" : problem ? "not saved" : about.labels ? "saving …" : "not stored";
  return [`${what}, `, make("span", { class: saved ? "better" : problem ? "worse" : "soft" }, `${state}.`)];
}

const afterwards = (about) => (about.second_opinion ? "Grade and second opinion are" : "The grade is");

const open = (input) => !decisionStands(input);

function stateOf(input) {
  if (open(input)) return "open";
  return input.decision.saved ? "saved" : "unsaved";
}
