"""Which labels of a data set are wrong: an opinion on each row by heads that have not seen its label.

Ranked by the probability that the label is wrong, not by that of the label alone: where one class is often labelled as
another, a doubtful row between these two is more likely mislabelled than one between others.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import gammaln, softmax, xlogy

from petm.errors import ArgumentError, DataError

FOLDS = 5
_NEIGHBOURS, _DIRECTIONS = 20, 32
"""Neighbours, and the principal components of the features in which they are near: as good as all, in half the time."""
_STRENGTH = 100.0
"""Inverse of the ridge of the logistic regression, times the number of rows: a weak head would learn wrong labels."""
_MOST_LOGISTIC, _MOST_NEIGHBOURS, _MOST_NOISE = 100_000, 20_000, 50_000
"""Rows from which a head, and the rates of wrong labels, are learned; of more, so many are drawn."""
_ROWS = 1 << 14
_LEAST = 1e-4
"""Least probability of a class: a head of `_NEIGHBOURS` neighbours cannot tell a smaller one."""
_ANCHORS, _STEPS = 0.3, 2
"""Share of the rows of a class, the surest ones, from which rates of wrong labels are counted, and steps of EM. More
rows bring the doubts of the heads among the rates, more steps explain away systematic mistakes."""


class LabelErrors(NamedTuple):
    """What is known of the labels of ``N`` rows."""

    probability: NDArray[np.float64]
    """That the label is wrong, ``(N,)`` in [0, 1]; NaN where there is no opinion, as the class has no other row."""
    suggested: NDArray[np.int64]
    """The most probable class besides the given one, ``(N,)``: the true one, if the label is wrong."""

    @property
    def order(self) -> NDArray[np.int64]:
        """The rows from the most probably wrong label to the least, int64 ``(N,)``; those without an opinion last."""
        return np.argsort(-np.nan_to_num(self.probability, nan=-1.0), kind="stable")


def out_of_fold(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    classes: int,
    groups: ArrayLike | None = None,
    folds: int = FOLDS,
    seed: int = 0,
    on_fold: Callable[[], object] = lambda: None,
) -> NDArray[np.float32]:
    """Returns probabilities of the classes, float32 ``(N, K)``, for each row by heads that learned from other folds.

    The mean of a ridge-penalised logistic regression and of the labels among 20 nearest neighbours in the first 32
    principal components, which are found without labels. Both resist wrong labels where the features have memorised
    some; together more than either alone (``experiments/label_errors.py``).
    A row whose class the other folds lack has no opinion: all its probabilities are 0.

    Args:
        features: float ``(N, D)``.
        labels: int ``(N,)`` from 0 to ``K - 1``, of at least two classes.
        classes: ``K``.
        groups: int ``(N,)``; rows of one group, such as copies, are in one fold. None tells all apart.
        folds: Number of folds, at least 2; lowered to the number of groups in the second largest class.
        seed: Seed of the folds, and of the draw where there are too many rows to learn from all.
        on_fold: Called after each fold.

    Raises:
        ArgumentError: ``folds`` breaks its rule, or the lengths differ.
        DataError: All labels are of one class, or no second class has two rows that are told apart.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.neighbors import KNeighborsClassifier

    rows, given = np.asarray(features, np.float32), np.asarray(labels, np.int64)
    if folds < 2:
        raise ArgumentError(f"folds: expected at least 2, got {folds}.")
    if rows.ndim != 2 or given.shape != rows.shape[:1]:
        raise ArgumentError(f"labels: expected one for each row of features {rows.shape}, got {given.shape}.")
    _, first, group = np.unique(
        np.arange(len(given)) if groups is None else np.asarray(groups), return_index=True, return_inverse=True
    )
    counts = np.sort(np.bincount(given[first], minlength=2))
    folds = min(folds, int(counts[-2]))
    if folds < 2:
        raise DataError(
            f"labels: expected at least two classes with two rows each, got {int((counts > 1).sum())}. Name data of "
            f"several classes."
        )
    rows = (rows - rows.mean(0)) / np.maximum(rows.std(0), 1e-6)
    found, generator = np.zeros((len(given), classes), np.float32), np.random.default_rng(seed)
    where = rows
    if rows.shape[1] > _DIRECTIONS:
        some = rows[generator.permutation(len(rows))[:_MOST_NEIGHBOURS]]
        where = PCA(min(_DIRECTIONS, len(some)), random_state=seed % 2**32).fit(some).transform(rows)
    sizes = np.bincount(given[first], minlength=classes)
    kinds = np.where(sizes[given[first]] < folds, sizes.argmax(), given[first])  # small classes fall as they may
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32).split(kinds, kinds)
    for held in (np.isin(group, held) for _, held in splits):
        others = generator.permutation(np.flatnonzero(~held))
        some, near = others[:_MOST_LOGISTIC], others[:_MOST_NEIGHBOURS]
        if len(np.unique(given[near])) < 2:
            continue
        logistic = LogisticRegression(C=_STRENGTH / len(some), max_iter=200, tol=1e-3).fit(rows[some], given[some])
        nearest = KNeighborsClassifier(min(_NEIGHBOURS, len(near))).fit(where[near], given[near])
        for place in np.array_split(np.flatnonzero(held), -(-int(held.sum()) // _ROWS)):
            for head, seen in ((logistic, rows), (nearest, where)):
                found[np.ix_(place, head.classes_)] += head.predict_proba(seen[place]) / 2
        found[held & ~np.isin(given, given[some])] = 0
        on_fold()
    return found


def label_errors(probabilities: ArrayLike, labels: ArrayLike, *, groups: ArrayLike | None = None) -> LabelErrors:
    """Returns the probability that each label is wrong, from opinions that have not seen the label.

    A row of true class ``t`` is labelled ``y`` with probability ``T(t, y)``, so the label is wrong with probability
    ``1 - q(y) T(y, y) / sum_t q(t) T(t, y)``. ``T`` is counted among the surest rows of each class, of which
    the class is known though some labels are wrong (anchor points); two steps of EM follow. Its rates of wrong labels
    are shrunk towards their mean by a gamma prior, the strength of which makes the counts most probable: where any
    label may be wrong, the order is nearly that of ``q(y)``; where few pairs are mixed up, these count. ``q`` are the
    opinions at the temperature that makes the labels most probable, as opinions learned from wrong labels are too
    unsure. Different labels in a group, as of equal inputs, are that many labels of one true class: at most one of
    them is right.

    Args:
        probabilities: float ``(N, K)``, of the classes, as from `out_of_fold`; a row of zeros is no opinion.
        labels: int ``(N,)``, the given labels.
        groups: int ``(N,)``, equal for equal inputs; None tells all apart.

    Raises:
        ArgumentError: The shapes do not fit.

    Reference:
        Liu and Tao (2016), Classification with Noisy Labels by Importance Reweighting, section 5 (anchor points);
        Dawid and Skene (1979), Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm;
        Robbins (1956), An Empirical Bayes Approach to Statistics.
    """
    opinions, given = np.asarray(probabilities, np.float32), np.asarray(labels, np.int64)
    if opinions.ndim != 2 or given.shape != opinions.shape[:1]:
        raise ArgumentError(f"labels: expected one for each row of opinions {opinions.shape}, got {given.shape}.")
    told = (opinions > 0).any(axis=1)
    some = np.random.default_rng(0).permutation(np.flatnonzero(told))[:_MOST_NOISE]
    rates, sharpness = _noise(_logarithms(opinions[some]), given[some])
    said = np.log(rates)
    of, labels_of = np.arange(len(given)), {}
    if groups is not None:
        _, of = np.unique(np.asarray(groups), return_inverse=True)
        pairs = np.unique(np.stack((of, given), 1), axis=0)
        several = np.flatnonzero(np.bincount(pairs[:, 0]) > 1)
        labels_of = {int(one): pairs[pairs[:, 0] == one, 1] for one in several}
    probability, suggested = np.full(len(given), np.nan), given.copy()
    for start in range(0, len(given), _ROWS):
        part = slice(start, start + _ROWS)
        logs = sharpness * _logarithms(opinions[part])
        known = said[:, given[part]].T.copy()
        for place in np.flatnonzero([int(one) in labels_of for one in of[part]]):
            known[place] = said[:, labels_of[int(of[start + place])]].sum(1)
        true = softmax(logs + known, axis=1)
        own = np.arange(len(true)), given[part]
        probability[part] = 1 - true[own]
        true[own] = -1.0
        suggested[part] = true.argmax(1)
    probability[~told] = np.nan
    return LabelErrors(np.clip(probability, 0, 1), np.where(told, suggested, given))


def _logarithms(opinions: NDArray[np.float32]) -> NDArray[np.float64]:
    values = np.maximum(opinions.astype(np.float64), _LEAST)
    return np.asarray(np.log(values / values.sum(1, keepdims=True)))


def _noise(logs: NDArray[np.float64], given: NDArray[np.int64]) -> tuple[NDArray[np.float64], float]:
    """``T``, float64 ``(K, K)``, and the inverse of the temperature."""
    classes, best = logs.shape[1], logs.argmax(1)
    order, sizes = np.lexsort((-logs.max(1), best)), np.bincount(best, minlength=classes)
    place = np.arange(len(best)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    anchors = order[place < _ANCHORS * np.repeat(sizes, sizes)]
    true = np.eye(classes)[best[anchors]]
    for _ in range(_STEPS + 1):
        joint: NDArray[np.float64] = np.zeros((classes, classes))
        np.add.at(joint.T, given[anchors], true)
        rates = _shrunk(joint)

        def unlikely(power: float, rates: NDArray[np.float64] = rates) -> float:
            labelled = (softmax(np.exp(power) * logs, axis=1) * rates[:, given].T).sum(1)
            return -float(np.log(labelled).sum())

        power = np.exp(minimize_scalar(unlikely, bounds=(-1, 2.5), method="bounded", options={"xatol": 0.02}).x)
        true = softmax(power * logs[anchors] + np.log(rates[:, given[anchors]].T), axis=1)
    return rates, float(power)


def _shrunk(joint: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rates ``(K, K)`` of labels by true class, of joint counts: wrong labels as of Poisson's law, gamma prior."""
    classes = len(joint)
    wrong = ~np.eye(classes, dtype=bool)
    counts, rows = joint[wrong], np.repeat(joint.sum(1), classes - 1)
    mean = max(float(counts.sum()), 0.5) / max(float(rows.sum()), 1.0)
    expected = mean * rows

    def unlikely(power: float) -> float:
        """Minus the logarithm of the negative binomial, less what is equal for all strengths."""
        strength = np.exp(power)
        likely = gammaln(counts + strength) - gammaln(strength)
        return -float((likely + xlogy(strength, strength) - (counts + strength) * np.log(strength + expected)).sum())

    strength = np.exp(minimize_scalar(unlikely, bounds=(-4, 6), method="bounded").x)
    rates: NDArray[np.float64] = np.zeros((classes, classes))
    rates[wrong] = (counts + strength) / (rows + strength / mean)
    rates += np.diag(np.maximum(1 - rates.sum(1), 1 / (2 * classes)))
    return np.asarray(rates / rates.sum(1, keepdims=True))
