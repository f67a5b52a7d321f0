"""Results as tables of text, for the terminal, the report and the model card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from petm._internal.texts import markdown
from petm.selective.choice import Choice
from petm.selective.outcome import Outcome

BETTER, WORSE, UNCLEAR, MISSING = "better", "worse", "no clear difference", "–"


@dataclass(frozen=True)
class Table:
    """A table of text; the first column names the row, and columns that are not in ``words`` are right-aligned."""

    title: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[int] = frozenset({0})


def markdown_table(table: Table) -> str:
    """Returns a table in Markdown, without its title and caption."""
    rules = ("---" if column in table.words else "--:" for column in range(len(table.header)))
    lines = (table.header, tuple(rules), *table.rows)
    return "\n".join("| " + " | ".join(markdown(text) for text in line) + " |" for line in lines)


def choice_table(choice: Choice, most: int | None = None) -> Table:
    """Returns what a suspicion was compared with: cost, AURC or coverage at a risk, and the difference to the first.

    Args:
        choice: What was compared, the best of the others behind the first and the one that was taken.
        most: Number of rows; None for all.
    """
    by_area = choice.metric == "aurc"
    first = choice.compared[0].name if choice.compared else ""
    named, better = ("AURC", "AURC: lower") if by_area else ("Coverage", f"{choice.metric.capitalize()}: higher")
    digits = 3 if by_area else 1

    def judged(low: float, high: float, beats: bool) -> str:
        harm = low > 0 if by_area else high < 0
        return BETTER if beats else WORSE if harm else MISSING

    return Table(
        "What was compared",
        f"{better} is better. Cost: operations added to those of the model. The interval: 95%, of the paired "
        f"difference to {first} in percentage points. Better: by more than chance, given how many were "
        "compared. Worse: by its own interval. A dash: unclear.",
        ("Evidence", "Cost", named, "95% interval", f"Than {first}", "Taken"),
        tuple(
            (
                row.name.replace("_", " "),
                f"+{percent(row.cost)}",
                percent(row.value, digits),
                between(points(row.low, digits), points(row.high, digits)) if place else MISSING,
                judged(row.low, row.high, row.better) if place else MISSING,
                "taken" if row.taken else "",
            )
            for place, row in enumerate(choice.compared[:most])
        ),
        words=frozenset({0, 4, 5}),
    )


def trade_off_table(outcome: Outcome) -> Table:
    """Returns the coverage at each risk, by the grader's suspicion; by the softmax, if that is another, in brackets."""
    rows, alone = outcome.trade_off, outcome.softmax_alone
    parts = ("guaranteed", "seen", "twice", "ten_times")
    with_confidence = f"with {percent(rows[0].confidence, 0)} confidence in each row by itself" if rows else ""
    first, told = "Guaranteed", f"Guaranteed: {with_confidence}."
    if outcome.chosen_here:
        first = "If fresh"
        told = (
            f"If fresh: what as many fresh labels would guarantee {with_confidence}; these do not, as suspicion was "
            "chosen on them (name --max-risk in the fit, or petm recalibrate on fresh labels)."
        )
    return Table(
        "Risk and coverage",
        "Risk: share of errors among the trusted, at most. The others: share of predictions that may be trusted"
        f"{'' if alone else f', by the {outcome.against} in brackets'}. {told} Seen: on these labels, guaranteeing "
        "nothing. The last two: the first with more labels, if errors stayed as frequent.",
        ("Risk", first, "Seen", "Twice the labels", "Ten times"),
        tuple(
            (
                f"{100 * row.max_risk:g}%",
                *(
                    percent(getattr(row.chosen, part)) + ("" if alone else f" ({percent(getattr(row.softmax, part))})")
                    for part in parts
                ),
            )
            for row in rows
        ),
    )


def group_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Returns what a threshold does in each group; each of ``results`` has the entries of `GroupResult`."""
    return Table(
        "Groups",
        "Accuracy: share of right predictions. Coverage: share of the group that is trusted. Risk: share of errors "
        "among the trusted, as seen here. Guaranteed: no where it could not be, so that nothing is trusted; a dash "
        "where the group has too few rows for a guarantee of its own, and has a threshold together with others. "
        "Risk and coverage below are those of one threshold over all groups.",
        ("Group", "Rows", "Accuracy", "Coverage", "Risk", "Guaranteed"),
        tuple(
            (
                f"{row['column']} {row['value']}",
                f"{row['samples']:,.0f}",
                *(percent(row[name]) for name in ("accuracy", "coverage", "risk")),
                MISSING if not row["tested"] else "yes" if row["guaranteed"] else "no",
            )
            for row in results
        ),
        words=frozenset({0, 5}),
    )


def percent(value: float | None, digits: int = 1) -> str:
    """Returns a share as percent, or a dash for None and NaN."""
    return MISSING if value is None or value != value else f"{100 * value:.{digits}f}%"


def points(value: float | None, digits: int = 1) -> str:
    """Returns a difference of shares in percentage points with its sign, or a dash where it is not defined."""
    return MISSING if value is None or value != value else f"{100 * value:+z.{digits}f}".replace("-", "−")


def with_interval(value: float | None, interval: Sequence[float | None], digits: int = 1) -> str:
    """Returns a share as percent with its interval in brackets, or a dash for None and NaN."""
    low, high = (percent(end, digits).rstrip("%") for end in interval)
    told = percent(value, digits)
    return MISSING if told == MISSING else f"{told} ({low}–{high})"


def between(low: str, high: str) -> str:
    """Returns an interval from the texts of its ends, or a dash where one is missing."""
    return MISSING if MISSING in (low, high) else f"{low} to {high}"
