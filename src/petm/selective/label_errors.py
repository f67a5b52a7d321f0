"""Which labels of a data set are wrong: an opinion on each row by heads that have not seen its label.

Ranked by the probability that the label is wrong, not by that of the label alone: where one class is often labelled as
another, a doubtful row between these two is more likely mislabelled than one between others.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from petm.errors import ArgumentError, DataError

FOLDS = 5
_NEIGHBOURS = 20
_STRENGTH = 100.0
"""Inverse of the ridge of the logistic regression, times the number of rows: a weak head would learn wrong labels."""
_MOST_LOGISTIC, _MOST_NEIGHBOURS, _MOST_NOISE = 100_000, 20_000, 50_000
"""Rows from which a head, and the rates of wrong labels, are learned; of more, so many are drawn."""
_ROWS = 1 << 14
_LEAST = 1e-4
"""Least probability of a class: a head of `_NEIGHBOURS` neighbours cannot tell a smaller one."""
_PRIOR, _STEPS = 0.3, 4
"""Weight of equal rates of wrong labels beside those of each pair of classes, and steps of EM. More steps would learn
rates that explain away each systematic mistake; none leaves the doubts of the heads among the rates."""


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
) -> NDArray[np.float32]:
    """Returns probabilities of the classes, float32 ``(N, K)``, for each row by heads that learned from other folds.

    The mean of a ridge-penalised logistic regression and of the labels among 20 nearest neighbours. Both resist wrong
    labels where the features have memorised some; together more than either alone (``experiments/label_errors.py``).
    A row whose class the other folds lack has no opinion: all its probabilities are 0.

    Args:
        features: float ``(N, D)``.
        labels: int ``(N,)`` from 0 to ``K - 1``, of at least two classes.
        classes: ``K``.
        groups: int ``(N,)``; rows of one group, such as copies, are in one fold. None tells all apart.
        folds: Number of folds, at least 2; lowered to the number of groups in the second largest class.
        seed: Seed of the folds, and of the draw where there are too many rows to learn from all.

    Raises:
        ArgumentError: ``folds`` breaks its rule, or the lengths differ.
        DataError: All labels are of one class, or no second class has two rows that are told apart.
    """
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
    sizes = np.bincount(given[first], minlength=classes)
    kinds = np.where(sizes[given[first]] < folds, sizes.argmax(), given[first])  # small classes fall as they may
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32).split(kinds, kinds)
    for held in (np.isin(group, held) for _, held in splits):
        others = generator.permutation(np.flatnonzero(~held))
        some, near = others[:_MOST_LOGISTIC], others[:_MOST_NEIGHBOURS]
        if len(np.unique(given[near])) < 2:
            continue
        heads = (
            LogisticRegression(C=_STRENGTH / len(some), max_iter=200, tol=1e-3).fit(rows[some], given[some]),
            KNeighborsClassifier(min(_NEIGHBOURS, len(near))).fit(rows[near], given[near]),
        )
        for place in np.array_split(np.flatnonzero(held), -(-int(held.sum()) // _ROWS)):
            for head in heads:
                found[np.ix_(place, head.classes_)] += head.predict_proba(rows[place]) / len(heads)
        found[held & ~np.isin(given, given[some])] = 0
    return found


def label_errors(probabilities: ArrayLike, labels: ArrayLike, *, groups: ArrayLike | None = None) -> LabelErrors:
    """Returns the probability that each label is wrong, from opinions that have not seen the label.

    A row of true class ``t`` is labelled ``y`` with probability ``T(t, y)``, so the label is wrong with probability
    ``1 - q(y) T(y, y) / sum_t q(t) T(t, y)``. ``T`` begins with the counts of rows whose opinion for another class is
    as sure as is usual for it (the confident joint), and a few steps of EM follow. ``q`` are the opinions at the
    temperature that makes the labels most probable, as opinions learned from wrong labels are too unsure. Different
    labels in a group, as of equal inputs, are that many labels of one true class: at most one of them is right.

    Args:
        probabilities: float ``(N, K)``, of the classes, as from `out_of_fold`; a row of zeros is no opinion.
        labels: int ``(N,)``, the given labels.
        groups: int ``(N,)``, equal for equal inputs; None tells all apart.

    Raises:
        ArgumentError: The shapes do not fit.

    Reference:
        Northcutt, Jiang and Chuang (2021), Confident Learning: Estimating Uncertainty in Dataset Labels, section 3.1;
        Dawid and Skene (1979), Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm.
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
    classes = logs.shape[1]
    opinions = np.exp(logs)
    sums = np.bincount(given, opinions[np.arange(len(given)), given], classes)
    usual = sums / np.maximum(np.bincount(given, minlength=classes), 1)
    sure = np.where(opinions >= usual, opinions, -1.0)
    kept = sure.max(1, initial=-1.0) > 0
    joint: NDArray[np.float64] = np.zeros((classes, classes))
    np.add.at(joint, (sure[kept].argmax(1), given[kept]), 1)
    for step in range(_STEPS + 1):
        rates = _smoothed(joint)

        def unlikely(power: float, rates: NDArray[np.float64] = rates) -> float:
            labelled = (softmax(np.exp(power) * logs, axis=1) * rates[:, given].T).sum(1)
            return -float(np.log(labelled).sum())

        power = np.exp(minimize_scalar(unlikely, bounds=(-1, 2.5), method="bounded", options={"xatol": 0.02}).x)
        if step < _STEPS:
            joint = np.zeros((classes, classes))
            np.add.at(joint.T, given, softmax(power * logs + np.log(rates[:, given].T), axis=1))
    return rates, float(power)


def _smoothed(joint: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rates of joint counts, in which those of wrong labels are drawn towards their mean."""
    classes = len(joint)
    right = np.maximum(joint.diagonal(), 1)
    wrong = joint * (1 - np.eye(classes))
    mean = wrong.sum() / (classes * max(classes - 1, 1))
    counts = (wrong + _PRIOR * mean) / (1 + _PRIOR) * (1 - np.eye(classes)) + np.diag(right) + 1e-9
    return np.asarray(counts / counts.sum(1, keepdims=True))
