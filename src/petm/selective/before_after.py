"""One grader beside another on the same labelled samples, with paired intervals of every difference."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petm.selective.audit import inverse_chances
from petm.selective.bootstrap import Estimate, bootstrap
from petm.selective.metrics import aurc, coverage_at_risk

_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Judged:
    """What a grader says about ``N`` labelled samples.

    Attributes:
        suspicion: float ``(N,)``.
        trusted: bool ``(N,)``.
        right: bool ``(N,)``, where its second opinion is right.
    """

    suspicion: NDArray[np.float64]
    trusted: NDArray[np.bool_]
    right: NDArray[np.bool_]


@dataclass(frozen=True)
class Change:
    """One figure of two graders.

    Attributes:
        name: Name of the figure.
        before: Its value for the first grader.
        after: Its value for the second.
        difference: ``after - before``, with its paired 95 % interval.
    """

    name: str
    before: float
    after: float
    difference: Estimate


def changes(
    before: Judged,
    after: Judged,
    wrong: ArrayLike,
    *,
    max_risk: float | None = None,
    chance: ArrayLike | None = None,
    seed: int = 0,
) -> tuple[Change, ...]:
    """Returns AURC, coverage at a risk, coverage and risk by the thresholds, and accuracy of the second opinion.

    Args:
        before: What the first grader says.
        after: What the second says about the same samples.
        wrong: bool ``(N,)``, where the base model is wrong.
        max_risk: The risk of a target; absent leaves out the coverage there.
        chance: float ``(N,)``, with which each was drawn to be labelled; None for equal chances. Samples are weighted
            by the inverse.
        seed: Seed of the resampling.
    """
    errors = np.asarray(wrong, bool)
    metrics: dict[str, Any] = {"aurc": aurc}
    if max_risk is not None:
        metrics[f"coverage at risk {max_risk:g}"] = partial(coverage_at_risk, risk=max_risk)
    how: Any = {"chance": chance, "resamples": _RESAMPLES, "seed": seed}
    found = []
    for name, metric in metrics.items():
        difference = bootstrap(metric, after.suspicion, errors, minus=before.suspicion, **how)
        value = bootstrap(metric, before.suspicion, errors, chance=chance, resamples=1).value
        found.append(Change(name, value, value + difference.value, difference))
    weights = inverse_chances(chance, len(errors))
    shares: dict[str, Callable[[Judged], tuple[NDArray[np.bool_], NDArray[np.bool_] | None]]] = {
        "coverage": lambda judged: (judged.trusted, None),
        "errors among the trusted": lambda judged: (errors & judged.trusted, judged.trusted),
        "accuracy of the second opinion": lambda judged: (judged.right, None),
    }
    generator = np.random.default_rng(seed)
    drawn = [generator.integers(0, len(errors), len(errors)) for _ in range(_RESAMPLES)]
    for name, share in shares.items():
        first, second = (
            [_share(*share(each), weights, rows) for rows in (slice(None), *drawn)] for each in (before, after)
        )
        gains = np.subtract(second[1:], first[1:])
        gains = gains[np.isfinite(gains)]
        low, high = np.quantile(gains, [0.025, 0.975]) if len(gains) else (np.nan, np.nan)
        found.append(Change(name, first[0], second[0], Estimate(second[0] - first[0], float(low), float(high))))
    return tuple(found)


def _share(count: NDArray[np.bool_], of: NDArray[np.bool_] | None, weights: NDArray[np.float64], rows: Any) -> float:
    """The weighted share of samples, or of those ``of``; NaN where there is none."""
    total = float(weights[rows].sum() if of is None else weights[rows] @ of[rows])
    return float(weights[rows] @ count[rows]) / total if total else float("nan")
