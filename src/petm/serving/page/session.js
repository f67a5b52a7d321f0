/**
 * The inputs on the page, their grades and the decisions on them.
 *
 * An input is `{id, name, kind, content, added, row, bundle, decision}`: `row` is its grade from the service, absent
 * before the answer, `bundle` identifies the bundle. `queued` is the position in the service's queue, absent for
 * others. `decision` is absent or `{label, confirmed, unsure, saved, line, problem}`, where a label of null takes an
 * earlier decision back unless it is `unsure` (nobody can tell), and `line` is the entry of the labels file.
 */

import { grade, keepDecision, decisions, queued, queueFrom } from "./service.js";
import { sha256 } from "./sha256.js";
import { openStore } from "./store.js";

const AHEAD = 8; // inputs of the queue that wait for their review
const CANNOT_TELL = "cannot tell";

export const decisionStands = ({ decision }) => decision && (decision.label !== null || decision.unsure);

/** Whether an input is to be judged without its grade, as in a queue or an audit before the decision. */
export const blind = (input) =>
  !decisionStands(input) &&
  (input.queued !== undefined || input.row?.audit || (input.row?.audit === false && input.row.grade === "suspect")) &&
  input.row?.grade !== "unreadable";

/** Fires the event `change` on each change, whose detail is the input that changed, or absent for all of them. */
export class Session extends EventTarget {
  /** Takes the answer of `about()`. */
  constructor(about) {
    super();
    this.about = about;
    this.bundle = JSON.stringify([about.classes, about.size, about.score, about.threshold]);
    this.inputs = new Map(); // by id, in the order in which they came
    this.problem = ""; // why inputs still wait to be graded
    this.labelsProblem = ""; // why the labels file could not be read back
    this.queue = about.queue ? { next: 0, total: 0, before: 0, lost: 0, problem: "" } : null; // `before`: decided
    this.file = new Map(); // the last decision of the labels file on an input, by id
    this.grading = Promise.resolve();
    this.posting = Promise.resolve();
  }

  /** Restores the inputs of this browser and the decisions of the labels file, and grades inputs that wait. */
  async open() {
    this.restoring = this.restore();
    await this.restoring;
    for (const input of this.inputs.values()) if (input.decision?.saved === false) this.save(input);
    this.fill();
    return this.gradeWaiting();
  }

  /** Fetches inputs of the service's queue until some wait for their review; what cannot be fetched is counted. */
  fill() {
    if (!this.queue) return;
    this.filling ??= this.fetchAhead()
      .catch((error) => (this.queue.problem = error.message))
      .finally(() => {
        this.filling = null;
        this.tell();
      });
  }

  async fetchAhead() {
    const { queue } = this;
    queue.problem = "";
    const waits = (input) =>
      input.queued !== undefined && input.row?.grade !== "unreadable" && !decisionStands(input);
    const waiting = () => [...this.inputs.values()].filter(waits).length;
    while (queue.next !== null && waiting() < AHEAD) {
      const { total, decided, lost, items, next } = await queueFrom(queue.next);
      if (queue.next === 0) Object.assign(queue, { before: decided });
      Object.assign(queue, { total, lost, next });
      const kind = this.about.inputs;
      const candidates = items.map(({ number, input }) => ({
        name: input.split("/").at(-1),
        kind,
        number,
        read: () => queued(number, kind),
      }));
      queue.lost += (await this.add(candidates)).lost.length;
    }
  }

  /** How many inputs of the queue are decided, and of how many. */
  get progress() {
    const mine = [...this.inputs.values()].filter((input) => input.queued !== undefined && decisionStands(input));
    return { done: this.queue.before + mine.length, total: this.queue.total };
  }

  async restore() {
    this.store = await openStore();
    const all = await this.store.all().catch(() => {
      this.store.lasting = false;
      return [];
    });
    const kept = all.filter((input) => input.kind === this.about.inputs);
    kept.sort((one, other) => one.added - other.added);
    for (const input of kept) {
      if (input.bundle !== this.bundle) delete input.row;
      this.inputs.set(input.id, input);
    }
    if (this.about.labels) await this.readDecisions().catch((error) => (this.labelsProblem = error.message));
    this.tell();
  }

  async readDecisions() {
    for (const decision of await decisions()) this.note(decision);
    for (const input of this.inputs.values()) this.recall(input);
  }

  /** Applies a line of the labels file. */
  note(decision) {
    if (decision.label === null && decision.decision !== CANNOT_TELL) this.file.delete(decision.sha256);
    else this.file.set(decision.sha256, decision);
  }

  /** Gives an input the decision that the labels file has, unless a newer one is on its way there. */
  recall(input) {
    const said = this.file.get(input.id);
    const unsure = said?.decision === CANNOT_TELL;
    const mine = input.decision;
    if (mine?.saved === false && (mine.label !== (said?.label ?? null) || Boolean(mine.unsure) !== unsure)) return;
    if (said) input.decision = { label: said.label, confirmed: said.confirmed, unsure, saved: true };
    else delete input.decision;
  }

  /**
   * Adds inputs `{name, kind, read, number}`, where `read` returns a promise of the content and `number` is a position
   * in the queue, if any; returns `{added, known, lost}`.
   */
  async add(candidates) {
    const count = { added: 0, known: 0, lost: [] };
    await this.restoring;
    for (const { name, kind, read, number } of candidates) {
      let content, bytes;
      try {
        content = await read();
        bytes =
          typeof content === "string" ? new TextEncoder().encode(content) : new Uint8Array(await content.arrayBuffer());
        // A copy, as the file may change or be deleted.
        if (content instanceof Blob) content = new Blob([bytes], { type: content.type });
      } catch {
        count.lost.push(name);
        continue;
      }
      const id = await sha256(bytes);
      if (this.inputs.has(id)) {
        if (number !== undefined) this.inputs.get(id).queued = number;
        count.known += 1;
        continue;
      }
      const input = { id, name, kind, content, added: Date.now() + count.added / 1e6 };
      if (number !== undefined) input.queued = number;
      this.inputs.set(id, input);
      this.recall(input);
      count.added += 1;
      await this.keep(input);
      this.tell(input);
    }
    this.gradeWaiting();
    return count;
  }

  /** Grades inputs without a grade, after those that are being graded. */
  gradeWaiting() {
    this.grading = this.grading.then(async () => {
      const waiting = [...this.inputs.values()].filter((input) => !input.row);
      if (!waiting.length) return;
      this.problem = "";
      try {
        for await (const [inputs, rows] of grade(waiting, this.about.limits)) {
          inputs.forEach((input, index) =>
            Object.assign(input, { row: rows[index], bundle: this.bundle }),
          );
          for (const input of inputs) await this.keep(input);
          inputs.forEach((input) => this.tell(input));
        }
      } catch (error) {
        this.problem = error.message;
      }
      this.tell();
    });
    return this.grading;
  }

  /** Decides on an input; a label of null takes the decision back, or with `unsure` says that nobody can tell. */
  decide(input, label, unsure = false) {
    const decision = { label, confirmed: label === input.row.label, unsure, saved: false };
    input.decision = { ...decision, line: lineOf(input, decision, this.about.classes) };
    this.save(input);
  }

  /** Sends the decision on an input, after those before it; a service without a labels file is sent none. */
  save(input) {
    const decision = input.decision;
    delete decision.problem;
    this.tell(input);
    this.posting = this.posting.then(async () => {
      await this.keep(input);
      if (input.decision !== decision || !this.about.labels) return; // a later one is on its way
      try {
        await keepDecision(decision.line, input);
        decision.saved = true;
        this.note(decision.line);
        if (!decisionStands({ decision }) && input.decision === decision) delete input.decision;
        this.fill();
      } catch (error) {
        decision.problem = error.message;
      }
      await this.keep(input);
      this.tell(input);
    });
    return this.posting;
  }

  /** Empties the page; the labels file is not changed. */
  async clear() {
    this.inputs.clear();
    this.problem = "";
    await this.store.clear();
    if (this.queue) this.queue.next = 0;
    this.fill();
    this.tell();
  }

  /** Keeps an input in the browser, as long as there is space. */
  async keep(input) {
    if (!this.inputs.has(input.id) || input.queued !== undefined) return; // the service has those of its queue
    try {
      await this.store.put(input);
    } catch {
      this.store.lasting = false;
    }
  }

  tell(input) {
    this.dispatchEvent(new CustomEvent("change", { detail: input }));
  }
}

function lineOf({ id, name, row }, { label, confirmed, unsure }, classes) {
  return {
    ...(unsure && { decision: CANNOT_TELL }),
    input: name,
    sha256: id,
    label,
    label_name: label === null ? null : (classes[label] ?? String(label)),
    confirmed,
    predicted: row.label,
    second: row.second,
    probability_of_error: row.probability_of_error,
    confidence: row.confidence,
    grade: row.grade,
    suspicion: row.suspicion,
  };
}
