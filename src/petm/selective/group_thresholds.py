"""A guaranteed risk in each group of inputs at once; groups may overlap.

Each cell (`petm.selective.groups`) has a threshold of its own, so what is guaranteed in every cell is guaranteed in
every group.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petm.errors import ArgumentError
from petm.selective.audit import inverse_chances, thinned
from petm.selective.groups import Cell, Groups, Values, texts_of
from petm.selective.ranking import calibration_arrays
from petm.selective.thresholds import (
    Threshold,
    check_share,
    fewest_without_errors,
    guaranteed_part,
    risk_threshold,
    with_shares,
)

MARGIN = 2
"""A group or a cell has data enough where this part of them, one in so many, could be guaranteed without an error."""
MOST_CELLS = 10_000
"""Most combinations of values."""


class GroupResult(NamedTuple):
    """What a threshold does in one group.

    Attributes:
        column: Its column.
        value: Its value.
        samples: Number of its samples, or the sum of their weights.
        coverage: Share of them that is trusted.
        risk: Share of errors among the trusted; NaN where none is.
        accuracy: Share of right predictions.
        guaranteed: Whether the risk is guaranteed in it.
    """

    column: str
    value: str
    samples: float
    coverage: float
    risk: float
    accuracy: float
    guaranteed: bool


def group_thresholds(
    suspicion: ArrayLike,
    wrong: ArrayLike,
    values: Mapping[str, Values],
    *,
    max_risk: float,
    confidence: float = 0.95,
    chance: ArrayLike | None = None,
) -> Threshold:
    """Returns one threshold for each combination of group values, with the risk guaranteed in each group.

    With probability at least ``confidence`` over the calibration samples, for all groups with data enough at once: the
    probability that a prediction is wrong, given that it is trusted and belongs to the group, is at most ``max_risk``.

    A value has data enough where ``MARGIN`` times as many samples have it as a guarantee without an error takes; this
    looks at no label. All other values of a column count as one. Each cell with data enough is calibrated as
    `risk_threshold` does it, at the level ``(1 - confidence) / G`` for ``G`` cells; the share of a cell of which
    everything is trusted goes to the others (Holm). Samples in no group with data enough have a threshold together: a
    cell of its own, or, where they are too few, that of all samples, which guarantees nothing for them alone.

    Args:
        suspicion: float ``(N,)`` of the calibration samples, finite.
        wrong: bool ``(N,)``, where the base model is wrong on them.
        values: ``(N,)`` for each column, one or more; they are compared as text, and None counts as rare.
        max_risk: Greatest share of errors among the trusted, between 0 and 1, both excluded.
        confidence: Confidence of all guarantees at once, between 0 and 1, both excluded.
        chance: As in `risk_threshold`.

    Returns:
        A threshold with ``groups`` and, for each of their places, ``classes``.

    Raises:
        ArgumentError: No column is given, a column has another length, or no group has data enough.

    Reference:
        Holm (1979), A Simple Sequentially Rejective Multiple Test Procedure; ``docs/concepts/guarantee.md`` for the
        proof.
    """
    check_share("max_risk", max_risk, below_1=True)
    check_share("confidence", confidence, below_1=True)
    scores, errors = calibration_arrays(suspicion, wrong)
    weights = inverse_chances(chance, len(scores))
    kept, level = thinned(weights), 1 - confidence
    columns = _columns(values, len(scores))
    groups = _groups(columns, kept, max_risk, level)
    places, cells = groups.places(columns), len(groups.cells)
    rows = [places == place for place in range(cells + 2)]
    rest = int((rows[-1] & kept).sum()) >= MARGIN * fewest_without_errors(max_risk, level / (cells + 1))
    tested = [*range(cells), *([cells + 1] if rest else [])]
    parts = _holm({place: (scores[rows[place] & kept], errors[rows[place] & kept]) for place in tested},
                  max_risk, confidence)  # fmt: skip
    if not rest:
        pooled = risk_threshold(scores, errors, max_risk=max_risk, confidence=confidence, chance=chance)
        parts[cells + 1] = replace(pooled, rule="threshold of all samples", max_risk=None, confidence=None)
    parts[cells] = Threshold(-math.inf, "rare combination", 0.0)
    found = []
    for place, inside in enumerate(rows):
        part = parts[place]
        if part.samples_needed is not None:
            part = replace(part, samples_needed=math.ceil(part.samples_needed * kept.sum() / (inside & kept).sum()))
        seen = inside.any() and part.holds
        found.append(with_shares(part, scores[inside] < part.value, errors[inside], weights[inside]) if seen else part)
    lacking = [part.samples_needed for part in found[:cells] if not part.holds]
    needed = [each for each in lacking if each is not None]
    whole = Threshold(
        max(part.value for part in found),
        "guaranteed risk in each group",
        None,
        max_risk,
        confidence,
        samples_needed=max(needed) if needed and len(needed) == len(lacking) else None,
        classes=tuple(found),
        groups=groups,
    )
    return with_shares(whole, whole.trusts(scores, places), errors, weights)


def results_by_group(
    threshold: Threshold,
    values: Mapping[str, Values],
    trusted: ArrayLike,
    wrong: ArrayLike,
    *,
    chance: ArrayLike | None = None,
) -> tuple[GroupResult, ...]:
    """Returns what a threshold with ``groups`` does in each group, in the order of columns and values.

    Args:
        threshold: From `group_thresholds`.
        values: ``(N,)`` for each column.
        trusted: bool ``(N,)``.
        wrong: bool ``(N,)``, where the base model is wrong.
        chance: As in `risk_threshold`; samples are weighted by its inverse.
    """
    groups = threshold.groups
    if groups is None:
        raise ArgumentError("threshold: expected one with groups. Pass that of group_thresholds.")
    kept, flags, failed = groups.members(), np.asarray(trusted, bool), np.asarray(wrong, bool)
    weights = inverse_chances(chance, len(flags))
    found = []
    for column in groups.columns:
        texts = np.array(texts_of(values, column), object)
        for value in sorted({each for each in texts if each is not None}):
            inside = texts == value
            total, taken, bad, lost = (
                float(weights[inside & each].sum()) for each in (True, flags, failed, flags & failed)
            )
            own = [threshold.classes[place] for place in kept.get((column, value), ())]
            guaranteed = bool(own) and any(part.holds for part in own)
            risk = lost / taken if taken else math.nan
            found.append(GroupResult(column, value, total, taken / total, risk, 1 - bad / total, guaranteed))
    return tuple(found)


def _columns(values: Mapping[str, Values], samples: int) -> dict[str, list[str | None]]:
    if not values:
        raise ArgumentError("group_columns: expected one or more, got none. Name a column.")
    found = {column: texts_of(values, column) for column in values}
    for column, texts in found.items():
        if len(texts) != samples:
            raise ArgumentError(f"group_columns: expected {samples} values of {column!r}, got {len(texts)}.")
    return found


def _groups(columns: Mapping[str, list[str | None]], kept: NDArray[np.bool_], max_risk: float, level: float) -> Groups:
    """The groups and cells with data enough, from the numbers of the samples alone."""
    counts = {
        column: Counter(text for text, one in zip(texts, kept, strict=True) if one and text is not None)
        for column, texts in columns.items()
    }
    # The largest number of groups for which as many have enough: each has to pass at its part of the level.
    sizes = sorted((size for each in counts.values() for size in each.values()), reverse=True)
    enough = _enough(sizes, max_risk, level)
    if not math.isfinite(enough):
        least = math.ceil(MARGIN * fewest_without_errors(max_risk, level))
        raise ArgumentError(
            f"group_columns: expected a group of at least {least} samples for a risk of {max_risk:g}, got at most "
            f"{sizes[0] if sizes else 0}. Add calibration samples, allow more errors, or leave the groups out."
        )
    large = [{value for value, size in each.items() if size >= enough} for each in counts.values()]
    cells: Counter[Cell] = Counter(
        tuple(each if each in of else None for each, of in zip(row, large, strict=True))
        for row, one in zip(zip(*columns.values(), strict=True), kept, strict=True)
        if one
    )
    del cells[(None,) * len(columns)]
    if len(cells) > MOST_CELLS:
        raise ArgumentError(
            f"group_columns: expected at most {MOST_CELLS} combinations of values, got {len(cells)}. Name fewer."
        )
    enough = _enough(sorted(cells.values(), reverse=True), max_risk, level)
    if not math.isfinite(enough):
        raise ArgumentError(
            f"group_columns: expected a combination of {', '.join(columns)} with samples enough, got "
            f"{len(cells)} of at most {max(cells.values())}. Name fewer columns, or add calibration samples."
        )
    ordered = sorted((cell for cell, size in cells.items() if size >= enough), key=lambda cell: [x or "" for x in cell])
    rare = tuple(tuple(sorted(set(each) - of)) for each, of in zip(counts.values(), large, strict=True))
    return Groups(tuple(columns), tuple(ordered), rare)


def _enough(sizes: Sequence[int], max_risk: float, level: float) -> float:
    """The least size with data enough, where all that have it share the level; infinity where none has.

    ``sizes`` descend. One part more is reckoned for the samples in no group.
    """
    for number in range(len(sizes), 0, -1):
        least = MARGIN * fewest_without_errors(max_risk, level / (number + 1))
        if sizes[number - 1] >= least:
            return least
    return math.inf


def _holm(
    samples: Mapping[int, tuple[NDArray[np.float64], NDArray[np.bool_]]], max_risk: float, confidence: float
) -> dict[int, Threshold]:
    """The thresholds of cells that share the level ``1 - confidence``.

    A cell that is trusted whole has had all its hypotheses rejected: its part of the level goes to the others. All
    tests of a cell begin at the count that its first part of the level gives, so that a greater part only adds.
    """
    found: dict[int, Threshold] = {}
    first = (1 - confidence) / len(samples)
    while len(found) < len(samples):
        left = {place: each for place, each in samples.items() if place not in found}
        level = (1 - confidence) / len(left)
        tried = {
            place: guaranteed_part(*each, max_risk, confidence, level, first=first) for place, each in left.items()
        }
        whole = {place: part for place, part in tried.items() if part.value == math.inf}
        found |= whole or tried
    return found
