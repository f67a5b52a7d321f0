"""What the methods' suspicion is worth: metrics with intervals, differences to the softmax, calibration, curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petm._internal.progress import track
from petm.selective.metrics import METRICS, expected_calibration_error
from petm.selective.probability import fit_probability
from petm.selective.ranking import RankedRows, Ranking, metric

SHOWN = ("aurc", "auroc", "aupr_error", "fpr95", "eaurc", "augrc")
"""The metrics of the table, by their names in `petm.selective.metrics.METRICS`."""
DIFFERENCES = ("aurc", "auroc", "aupr_error")
"""The metrics in which a method is held against another."""

PAPER_PRECISION = 0.5904
"""That of PETM in the paper."""
SPLITS, POINTS = 20, 201
_LEVEL = (0.025, 0.975)

Scores = NDArray[np.float64]


@metric("Recall at precision", higher_is_better=True)
def recall_at_precision(ranking: Ranking, precision: float) -> float:
    """Returns the greatest share of the model's errors that a threshold flags with at least this precision, in [0, 1].

    NaN where no threshold has that precision, or the base model makes no error.
    """
    caught, flagged = ranking.wrong[::-1].cumsum(), (ranking.wrong + ranking.right)[::-1].cumsum()
    good = (flagged > 0) & (caught >= precision * flagged)
    return float(caught[good].max() / caught[-1]) if good.any() and caught[-1] else float("nan")


def judge(
    suspicion: Sequence[Scores],
    reference: Sequence[Scores],
    wrong: NDArray[np.bool_],
    *,
    names: Sequence[str] = SHOWN,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns metrics with 95 % intervals, and the difference to another method with paired intervals.

    With several seeds a value is the mean over them. Its interval is that of the mean when test samples are drawn with
    replacement, the same ones for every seed and for both methods; what varies with the seed is told apart from it, as
    the standard deviation over the seeds. Resamples on which a metric is undefined are left out.

    Args:
        suspicion: float64 ``(N,)`` for each seed.
        reference: float64 ``(N,)`` for each seed of the other method, usually the plain softmax.
        wrong: bool ``(N,)``, where the base model is wrong.
        names: Metrics of `petm.selective.metrics.METRICS`.
        resamples: Number of resamples.
        seed: Of the resampling.

    Returns:
        ``metrics``: value, low, high and spread by name; ``difference``: value, low and high by name.
    """
    chosen = [METRICS[name] for name in names]
    compared = [each for each in chosen if each.name in DIFFERENCES]
    own, others = ([RankedRows(each, wrong) for each in scores] for scores in (suspicion, reference))

    def figures(drawn: NDArray[np.int64] | None) -> tuple[Scores, Scores]:
        """Metrics of each seed ``(seeds, metrics)``, and the mean of the other method's ``(metrics,)``."""
        values = [[each.of_ranking(ranking) for each in chosen] for ranking in (one.ranking(drawn) for one in own)]
        theirs = {each.name: np.mean([each.of_ranking(one.ranking(drawn)) for one in others]) for each in compared}
        return np.array(values), np.array([theirs.get(each.name, np.nan) for each in chosen])

    values, other = figures(None)
    generator = np.random.default_rng(seed)
    found = np.empty((resamples, 2, len(chosen)))
    for draw in range(resamples):
        of_seeds, of_other = figures(generator.integers(0, len(wrong), len(wrong)))
        mean = of_seeds.mean(0)
        found[draw] = mean, mean - of_other
    metrics, difference = {}, {}
    for place, each in enumerate(chosen):
        mean = float(values[:, place].mean())
        metrics[each.name] = {
            "value": mean,
            **_interval(found[:, 0, place]),
            "spread": float(values[:, place].std(ddof=1)) if len(values) > 1 else None,
        }
        if each.name in DIFFERENCES:
            difference[each.name] = {"value": mean - float(other[place]), **_interval(found[:, 1, place])}
    return {"metrics": metrics, "difference": difference}


def calibration(suspicion: Sequence[Scores], wrong: NDArray[np.bool_], *, splits: int = SPLITS) -> dict[str, Any]:
    """Returns how far the fitted probability of error is from the truth, and how often it could not be said.

    The probability is fitted on a random half of the test data and judged on the other, split after split; the splits
    are dealt out to the seeds in turn. Halves hold equally many errors.

    Args:
        suspicion: float64 ``(N,)`` for each seed.
        wrong: bool ``(N,)``.
        splits: How many.

    Returns:
        ``value`` and ``spread``: mean and standard deviation of the calibration error over the splits.
    """
    found = []
    for split in range(splits):
        generator = np.random.default_rng(split)
        learned = np.zeros(len(wrong), bool)
        for kind in (True, False):
            members = generator.permutation(np.flatnonzero(wrong == kind))
            learned[members[: len(members) // 2]] = True
        scores = suspicion[split % len(suspicion)]
        fitted = fit_probability(scores[learned], wrong[learned])
        found.append(expected_calibration_error(fitted.probability(scores[~learned]), wrong[~learned]))
    return {"value": float(np.mean(found)), "spread": float(np.std(found, ddof=1)) if splits > 1 else None}


def at_precision(suspicion: Sequence[Scores], wrong: NDArray[np.bool_], precision: float = PAPER_PRECISION) -> float:
    """Returns the mean over the seeds of the recall at that precision; NaN where a seed does not reach it."""
    return float(np.mean([recall_at_precision(each, wrong, precision) for each in suspicion]))


def curves(suspicion: Scores, wrong: NDArray[np.bool_]) -> dict[str, list[float | None]]:
    """Returns risk over coverage, and precision over recall, at the levels nearest to 201 equal steps.

    Args:
        suspicion: float64 ``(N,)``.
        wrong: bool ``(N,)``.
    """
    ranking = RankedRows(suspicion, wrong).ranking()
    samples = ranking.wrong + ranking.right
    covered, failed = samples.cumsum(), ranking.wrong.cumsum()
    flagged, caught = samples[::-1].cumsum(), ranking.wrong[::-1].cumsum()
    errors = max(int(caught[-1]), 1)
    kept = _thinned(covered / covered[-1])
    turned = _thinned(caught / errors)
    turned = turned[caught[turned] > 0]
    return {
        "coverage": (covered[kept] / covered[-1]).tolist(),
        "risk": (failed[kept] / covered[kept]).tolist(),
        "recall": (caught[turned] / errors).tolist(),
        "precision": (caught[turned] / flagged[turned]).tolist(),
    }


def _thinned(position: Scores) -> NDArray[np.int64]:
    """The last of the levels up to each of equal steps along a rising share."""
    return np.unique(np.searchsorted(position, np.linspace(0, 1, POINTS)).clip(max=len(position) - 1))


def _interval(values: Scores) -> dict[str, float]:
    held = values[np.isfinite(values)]
    low, high = np.quantile(held, _LEVEL) if len(held) else (np.nan, np.nan)
    return {"low": float(low), "high": float(high)}


def under_conditions(
    suspicion: Mapping[str, Mapping[str, Scores]],
    wrong: Mapping[str, NDArray[np.bool_]],
    *,
    resamples: int = 1000,
) -> dict[str, dict[str, Any]]:
    """Returns AUROC and AURC of each method under each condition, and the differences to the softmax there.

    Args:
        suspicion: By method, the softmax among them, and condition.
        wrong: Where the base model is wrong, by condition.
        resamples: Of the intervals.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in suspicion}
    with track("conditions", len(suspicion) * len(wrong)) as progress:
        for condition, errors in wrong.items():
            for name, scores in suspicion.items():
                plain = suspicion["softmax"][condition]
                judged = judge([scores[condition]], [plain], errors, names=DIFFERENCES, resamples=resamples)
                found[name][condition] = judged
                progress.advance()
    return found
