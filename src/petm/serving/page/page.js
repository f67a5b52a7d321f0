/** The page: connects the parts in the other files. */

import { listen } from "./adding.js";
import { announce, byId, plural } from "./dom.js";
import { Gallery } from "./gallery.js";
import { Review } from "./review.js";
import { about, whenKeyIsWanted } from "./service.js";
import { blind, Session } from "./session.js";
import { listenToKeys } from "./shortcuts.js";

whenKeyIsWanted(async (sentence) => {
  const dialog = byId("key");
  byId("key-reason").textContent = sentence;
  byId("key-field").value = "";
  dialog.showModal();
  await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
  return byId("key-field").value;
});
// Without a key the page cannot be used.
byId("key").addEventListener("cancel", (event) => event.preventDefault());

// A dropped file must not replace the page, also while the service loads its grader.
for (const event of ["dragover", "drop"]) document.addEventListener(event, (dropped) => dropped.preventDefault());

byId("start-again").addEventListener("click", start);
start();

async function start() {
  byId("no-service").hidden = true;
  let answer;
  try {
    answer = await about();
  } catch (error) {
    byId("about").textContent = "";
    byId("no-service-text").textContent = error.message;
    byId("no-service").hidden = false;
    return;
  }
  describe(answer);
  const session = new Session(answer);
  const review = new Review(session);
  listenToKeys(review);
  const gallery = new Gallery(session, (input) => review.open(input));
  let drawing = null;
  session.addEventListener("change", () => {
    drawing ??= requestAnimationFrame(() => {
      drawing = null;
      review.draw();
      gallery.draw();
      summarise(session, review);
    });
  });
  session.open();
  listen(answer.inputs, async (candidates) => {
    const { added, known, lost } = await session.add(candidates);
    byId("add-note").textContent = known
      ? `${plural(known, "input")} of ${added + known} ${known === 1 ? "was" : "were"} here already.`
      : "";
    byId("add-problem").textContent = lost.length ? `The browser could not read ${lost.join(", ")}.` : "";
  });
  byId("grade-again").addEventListener("click", () => session.gradeWaiting());
  byId("queue-again").addEventListener("click", () => session.fill());
  byId("start-review").addEventListener("click", () => review.show());
  listenToClear(session);
}

function describe({ inputs, classes, threshold, version, second_opinion: second }) {
  const guarantee = typeof threshold === "string" ? threshold : threshold?.guarantee;
  byId("about").textContent =
    `The model sorts ${inputs} into ${classes.length.toLocaleString("en")} classes. ` +
    `Each prediction is graded trusted or suspect${second ? ", with the help of a second opinion" : ""}.`;
  if (!second) document.title = byId("title").textContent = "Graded predictions";
  byId("guarantee").textContent = guarantee ?? "";
  byId("guarantee").hidden = !guarantee;
  byId("version").textContent = `petm ${version}`;
  byId("main").hidden = false;
}

function summarise(session, review) {
  const inputs = [...session.inputs.values()];
  const count = (grade) => inputs.filter((input) => input.row?.grade === grade && !blind(input)).length;
  const hidden = inputs.filter((input) => input.row && blind(input)).length;
  const waiting = inputs.filter(({ row }) => !row).length;
  const parts = [
    `${count("trusted")} trusted`,
    `${count("suspect")} suspect`,
    hidden && `${hidden} to review`,
    count("unreadable") && `${count("unreadable")} unreadable`,
    waiting && `${waiting} waiting`,
  ].filter(Boolean);
  const before = byId("summary").textContent;
  const summary = inputs.length ? `${plural(inputs.length, "input")}: ${parts.join(", ")}.` : "";
  byId("summary").textContent = summary;
  if (!waiting && before.includes("waiting")) announce(summary);
  const open = review.left;
  byId("start-review").hidden = !open;
  const some = plural(open, review.mixed ? "input" : "suspect");
  byId("start-review").textContent = session.queue ? "Review the queue" : `Review ${some}`;
  const problem = session.queue?.problem ?? "";
  byId("queue-problem").hidden = !problem;
  byId("queue-problem-text").textContent = problem && `The queue could not be read: ${problem}`;
  byId("clear-open").hidden = !inputs.length;
  byId("grade-problem").hidden = !session.problem;
  byId("grade-problem-text").textContent =
    session.problem && `${plural(waiting, "input")} not graded: ${session.problem}`;
  byId("labels-problem").textContent =
    session.labelsProblem && `The labels file could not be read back: ${session.labelsProblem}`;
  byId("told").textContent = session.file.size
    ? `The labels file holds decisions on ${plural(session.file.size, "input")}.`
    : "";
  byId("not-lasting").hidden = session.store?.lasting !== false;
}

function listenToClear(session) {
  const dialog = byId("clear");
  byId("clear-open").addEventListener("click", () => {
    const open = [...session.inputs.values()].filter(
      ({ row, decision }) => row?.grade === "suspect" && !decision,
    ).length;
    byId("clear-reason").textContent = open ? `${plural(open, "suspect")} among them not reviewed.` : "";
    dialog.returnValue = "";
    dialog.showModal();
  });
  dialog.addEventListener("close", () => dialog.returnValue === "clear" && session.clear());
}
