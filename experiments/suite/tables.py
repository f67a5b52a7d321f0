"""AURC of several suspicions over several draws of labels, with paired intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: What the suspicion comes from.
        aurc: Mean over the draws.
        ratio: Mean over the draws of the AURC over that of the softmax, less 1.
        low: Lower end of its 95 % interval when judged samples are drawn with replacement.
        high: Upper end.
        draws: The ratio less 1 of each draw.
    """

    name: str
    aurc: float
    ratio: float
    low: float
    high: float
    draws: tuple[float, ...]


def aurc(suspicion: ArrayLike, wrong: ArrayLike, counts: ArrayLike | None = None) -> float:
    """Returns the mean of the risk over all coverages, ties in their order.

    Args:
        suspicion: float ``(N,)``.
        wrong: bool ``(N,)``.
        counts: How often each sample counts, ``(N,)``; absent once.
    """
    order = np.argsort(np.asarray(suspicion), kind="stable")
    weights = np.ones(len(order)) if counts is None else np.asarray(counts, dtype=np.float64)[order]
    covered, failed = weights.cumsum(), (weights * np.asarray(wrong)[order]).cumsum()
    risk = np.divide(failed, covered, out=np.zeros_like(failed), where=covered > 0)
    return float((weights * risk).sum() / covered[-1])


def compare(
    draws: Sequence[tuple[NDArray[np.int64], Mapping[str, Any]]],
    wrong: ArrayLike,
    *,
    reference: str = "softmax",
    resamples: int = 300,
    seed: int = 0,
) -> list[Row]:
    """Returns one row for each suspicion; an interval is over samples that all draws and suspicions share.

    Args:
        draws: Of each draw of labels the judged samples ``(M,)`` and their suspicions ``(M,)`` by name.
        wrong: Where the base model is wrong, of all production samples ``(N,)``.
        reference: The suspicion that the others are divided by.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    errors = np.asarray(wrong)
    generator = np.random.default_rng(seed)

    def figures(counts: NDArray[np.int64] | None) -> dict[str, Floats]:
        """AURC by name, ``(draws,)``."""
        found: dict[str, list[float]] = {}
        for judged, suspicions in draws:
            for name, suspicion in suspicions.items():
                drawn = None if counts is None else counts[judged]
                found.setdefault(name, []).append(aurc(suspicion, errors[judged], drawn))
        return {name: np.array(values) for name, values in found.items()}

    n = len(errors)
    whole = figures(None)
    resampled = [figures(np.bincount(generator.integers(0, n, n), minlength=n)) for _ in range(resamples)]
    rows = []
    for name, values in whole.items():
        ratios = values / whole[reference] - 1
        drawn = [float((each[name] / each[reference]).mean() - 1) for each in resampled]
        low, high = np.quantile(drawn, (0.025, 0.975))
        rows.append(Row(name, float(values.mean()), float(ratios.mean()), float(low), float(high), tuple(ratios)))
    return rows
