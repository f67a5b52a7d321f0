/** All inputs as cards, some dozens at a time. */

import { byId, make, plural } from "./dom.js";
import { badge, className, errorProbability, opinions, picture, turning } from "./opinions.js";
import { decisionInWords } from "./review.js";
import { blind } from "./session.js";

const AT_ONCE = 48;

const SHOWS = {
  all: () => true,
  suspect: (input) => input.row?.grade === "suspect" && !blind(input),
  trusted: (input) => input.row?.grade === "trusted" && !blind(input),
  unreadable: ({ row }) => row?.grade === "unreadable",
};

export class Gallery {
  /** Takes a `Session`; `review(input)` opens one in the review. */
  constructor(session, review) {
    this.session = session;
    this.review = review;
    this.cards = new Map(); // by id: what a card was drawn from, and the card
    this.most = AT_ONCE;
    byId("filter").addEventListener("change", () => {
      this.most = AT_ONCE;
      this.draw();
    });
    byId("more").addEventListener("click", () => {
      const before = byId("cards").children.length;
      this.most += AT_ONCE;
      this.draw();
      byId("cards").children[before]?.querySelector("button, summary")?.focus();
    });
  }

  draw() {
    const inputs = [...this.session.inputs.values()];
    byId("all").hidden = !inputs.length;
    for (const [name, shows] of Object.entries(SHOWS)) byId(`count-${name}`).textContent = inputs.filter(shows).length;
    const show = new FormData(byId("filter")).get("show");
    const matching = inputs.filter(SHOWS[show]);
    const drawn = matching.slice(0, this.most).map((input) => this.card(input));
    const place = byId("cards");
    if (drawn.length !== place.children.length || drawn.some((card, index) => card !== place.children[index])) {
      place.replaceChildren(...drawn);
    }
    byId("none").hidden = Boolean(matching.length);
    byId("more").hidden = matching.length <= this.most;
    byId("more").textContent = `Show more of ${plural(matching.length, "input")}`;
    for (const id of this.cards.keys()) if (!this.session.inputs.has(id)) this.cards.delete(id);
  }

  /** The card of an input, drawn anew only where its grade has changed. */
  card(input) {
    const known = this.cards.get(input.id);
    const hidden = Boolean(blind(input));
    const drawn = known && known.row === input.row && known.hidden === hidden;
    const card = drawn ? known.card : this.newCard(input);
    this.cards.set(input.id, { row: input.row, hidden, card });
    const words = decisionInWords(this.session.about, input);
    const line = card.querySelector(".decision");
    line.replaceChildren(...words);
    line.hidden = !words.length;
    return card;
  }

  newCard(input) {
    const { about } = this.session;
    const { row, name, kind } = input;
    const read = row && row.grade !== "unreadable";
    const shown = read && !blind(input);
    const verdict = read
      ? ["The model says ", make("b", {}, className(about, row.label))]
      : row
        ? ["No grade"]
        : ["Waiting for its grade"];
    const head = make(
      "div",
      { class: "head" },
      kind === "images" ? picture(input) : null,
      make(
        "div",
        {},
        make("h3", { class: "verdict" }, ...verdict),
        row && !blind(input) ? make("p", {}, badge(row.grade)) : null,
        kind === "images" ? make("p", { class: "soft name" }, name) : null,
      ),
    );
    const card = make("li", { "data-id": input.id }, head, kind === "texts" ? picture(input) : null);
    if (row && !read) card.append(make("p", { class: "problem" }, row.reason ?? "It could not be read."));
    if (shown) card.append(errorProbability(row), opinions(about, row, 3));
    if (shown && about.sweep) card.append(turning(about, input));
    card.append(make("p", { class: "decision", hidden: "" }));
    if (read) {
      const open = make("button", { type: "button", class: "quiet", onclick: () => this.review(input) }, "Review");
      open.setAttribute("aria-label", `Review ${name}`);
      card.append(open);
    }
    return card;
  }
}
