/**
 * Requests to the service. An input is `{id, name, kind, content}`: the SHA-256 of its content as 64
 * hexadecimal digits, its name, "images" or "texts", and a Blob or a string.
 */

import { setting } from "./store.js";

const MOST_INPUTS = 16; // in one request
const MOST_BYTES = 8e6;
const AROUND = 1000; // bytes that a request needs around one input
const TOO_LARGE = { grade: "unreadable", reason: "It is larger than the service takes." };
const PATIENCE = 60_000; // milliseconds for one answer
const TRIES = { 429: 10, 503: 120 }; // of a request while the service is busy, or loads its grader

export class ServiceError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const heldKey = setting("sessionStorage", "petm.key");
let key = heldKey.get() ?? "";
let askForKey = () => Promise.reject(new ServiceError("The service needs a key.", 401));
let asked = null;

/** Sets the function that asks a person for the key: it takes a sentence and returns a promise of the key. */
export function whenKeyIsWanted(ask) {
  askForKey = ask;
}

export const about = async () => (await request("about")).json();

/** Yields `[inputs, rows]`, some at a time: a row is one of `grades` in the answer, `limits` are those of `about`. */
export async function* grade(inputs, limits) {
  const large = inputs.filter((input) => sizeOf(input) > limits.body);
  if (large.length) yield [large, large.map(() => TOO_LARGE)];
  const waiting = portions(
    inputs.filter((input) => !large.includes(input)),
    limits,
  );
  while (waiting.length) {
    const portion = waiting.shift();
    try {
      yield [portion, await gradeAtOnce(portion)];
    } catch (error) {
      if (error.status !== 413) throw error;
      if (portion.length === 1) {
        yield [portion, [TOO_LARGE]];
      } else {
        const half = Math.ceil(portion.length / 2);
        waiting.unshift(portion.slice(0, half), portion.slice(half));
      }
    }
  }
}

/** Returns the probabilities of the classes, a list for each of `alphas`. */
export async function sweep(input, alphas) {
  const answer = await (await post("sweep", { ...(await encoded(input)), alphas })).json();
  return answer.probabilities;
}

/** Appends one decision to the labels file, with the input itself. */
export const keepDecision = async (decision, input) => post("labels", { ...decision, ...(await encoded(input)) });

/** Returns inputs of the queue that are not decided, from the position `start` on: `{total, decided, items, next}`. */
export const queueFrom = async (start) => (await request(`queue?start=${start}`)).json();

/** Returns the content of the input of the queue at a position: a Blob, or of texts a string. */
export async function queued(number, kind) {
  const answer = await request(`queue/${number}`);
  return kind === "texts" ? answer.text() : answer.blob();
}

/** Returns all decisions of the labels file, the oldest first. */
export const decisions = async () => (await (await request("labels")).json()).labels;

async function gradeAtOnce(inputs) {
  let answer;
  if (inputs[0].kind === "texts") {
    answer = await post("grade?opinions=true", { texts: inputs.map((input) => input.content) });
  } else {
    const form = new FormData();
    for (const input of inputs) form.append("files", input.content, input.name);
    answer = await request("grade?opinions=true", { method: "POST", body: form });
  }
  const { grades } = await answer.json();
  if (grades?.length !== inputs.length) throw new ServiceError("The service answered for other inputs than were sent.");
  return grades;
}

const sizeOf = ({ content }) => AROUND + (content.size ?? 4 * content.length);

function portions(inputs, limits) {
  const all = [];
  let bytes = Infinity;
  for (const input of inputs) {
    const size = sizeOf(input);
    if (bytes + size > Math.min(MOST_BYTES, limits.body) || all.at(-1).length >= Math.min(MOST_INPUTS, limits.inputs)) {
      all.push([]);
      bytes = 0;
    }
    all.at(-1).push(input);
    bytes += size;
  }
  return all;
}

/** The content of an input in JSON. */
async function encoded({ kind, content }) {
  if (kind === "texts") return { text: content };
  const reader = new FileReader();
  await new Promise((done, failed) => {
    reader.onload = done;
    reader.onerror = () => failed(new ServiceError("The browser cannot read this input any more."));
    reader.readAsDataURL(content);
  });
  return { image: reader.result.slice(reader.result.indexOf(",") + 1) };
}

const post = (path, content) =>
  request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(content),
  });

async function request(path, options = {}) {
  for (let tries = 1; ; tries += 1) {
    const sent = key;
    const answer = await attempt(path, options, sent);
    if (answer.ok) return answer;
    if (answer.status === 401 || answer.status === 403) {
      // Several requests at once ask for the key once.
      if (sent === key) await (asked ??= newKey(sent).finally(() => (asked = null)));
    } else if (tries < TRIES[answer.status]) {
      await pause(answer.headers.get("Retry-After"));
    } else {
      throw new ServiceError(await reason(answer), answer.status);
    }
  }
}

async function attempt(path, options, sent) {
  const headers = { ...options.headers, ...(sent && { "X-API-Key": sent }) };
  try {
    return await fetch(path, { ...options, headers, signal: AbortSignal.timeout(PATIENCE) });
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new ServiceError(late ? "The service does not answer." : "The service cannot be reached.");
  }
}

async function newKey(refused) {
  key = await askForKey(refused ? "The service refused this key." : "The service needs a key.");
  heldKey.set(key);
}

const pause = (seconds) =>
  new Promise((done) => setTimeout(done, 1000 * Math.min(Math.max(Number(seconds) || 1, 0.2), 10)));

async function reason(answer) {
  const told = await answer.json().catch(() => null);
  const text = [told?.detail, told?.error, told?.error?.message].find((value) => typeof value === "string");
  return text ?? `The service answered ${answer.status}.`;
}
