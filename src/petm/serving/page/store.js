/** What this browser stores: the inputs, in IndexedDB, so that a reload shows them again; and settings. */

const NAME = "petm";
const INPUTS = "inputs";

/**
 * Returns `{all, put, clear}`, promises each; where the browser keeps nothing (private windows, no space), `put` and
 * `clear` do nothing, and `lasting` is false.
 */
export async function openStore() {
  try {
    const opening = indexedDB.open(NAME, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(INPUTS, { keyPath: "id" });
    const database = await done(opening);
    const store = (mode) => database.transaction(INPUTS, mode).objectStore(INPUTS);
    return {
      lasting: true,
      all: () => done(store("readonly").getAll()),
      put: (input) => done(store("readwrite").put(input)),
      clear: () => done(store("readwrite").clear()),
    };
  } catch {
    return { lasting: false, all: async () => [], put: async () => {}, clear: async () => {} };
  }
}

/** Returns `{get, set}` of a text in "localStorage" or "sessionStorage", which a browser may refuse: then it is null. */
export function setting(area, name) {
  const attempt = (act) => {
    try {
      return act(globalThis[area]);
    } catch {
      return null;
    }
  };
  return {
    get: () => attempt((held) => held.getItem(name)),
    set: (text) => attempt((held) => held.setItem(name, text)),
  };
}

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
