"""A threshold and a probability of error from plain numbers: class probabilities or scores, without any network."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petm.errors import ArgumentError, DataError, PetmWarning
from petm.selective.audit import inverse_chances, thinned
from petm.selective.choice import CHOICE_SHARE, FEWEST_ERRORS, FEWEST_TO_CHOOSE, Choice, choose
from petm.selective.drift import suspicion_profile
from petm.selective.group_thresholds import results_by_group
from petm.selective.groups import Coded, Values, coded
from petm.selective.metrics import aurc, auroc, detection
from petm.selective.outcome import Outcome, outcome_of
from petm.selective.plain import CLASSES_READ, Columns, Predictions
from petm.selective.probability import FOLDS, ErrorProbability, fit_probability, folds
from petm.selective.sets import COVERAGE as SET_COVERAGE
from petm.selective.sets import PredictionSets, check_coverage, fit_grade_sets
from petm.selective.targets import Coverage, MaxRisk, Recall, Target
from petm.selective.thresholds import Threshold, lower_of
from petm.selective.weighting import Weighting, regression

RECALL, COVERAGE = 0.9, 0.9
"""Default targets: the share of the calibration samples' errors that is flagged; where they show none, the share of
the samples that is trusted."""
MOST_TO_CHOOSE = 50_000
"""Most samples that a suspicion is chosen on: more of them are worth more in the test of the guarantee."""


class Settled(NamedTuple):
    """What calibration samples settle: threshold, probability of error, and figures by name."""

    threshold: Threshold
    probability: ErrorProbability
    outcome: Outcome
    measured: dict[str, Any]


class GradedScores(NamedTuple):
    """The grades of ``N`` predictions.

    Attributes:
        predicted: int64 ``(N,)``, the predicted classes.
        suspicion: float64 ``(N,)``, higher is more likely wrong.
        probability_of_error: float64 ``(N,)``, in (0, 1).
        trusted: bool ``(N,)``, the grade: trusted, else suspect.
        group: The combination of groups whose threshold each row has, in words, ``N`` texts; empty without groups.
        candidates: A tuple of the classes in each prediction set, ``(N,)``, the most probable first; None without sets.
    """

    predicted: NDArray[np.int64]
    suspicion: NDArray[np.float64]
    probability_of_error: NDArray[np.float64]
    trusted: NDArray[np.bool_]
    group: Sequence[str] = ()
    candidates: NDArray[np.object_] | None = None


@dataclass(frozen=True, eq=False)
class Calibration:
    """A threshold on a suspicion that is computed from class probabilities or scores.

    Attributes:
        threshold: The threshold on suspicion, with its guarantee.
        suspicion: Names of the columns of suspicion (`Columns.candidates`), one or those of the regression.
        weighting: The regression over several columns; absent for one.
        probability: The probability of error as a function of suspicion.
        columns: What it reads: names of the columns of a table, in the order of the arrays.
        classes: ``K`` class names; empty where the arrays had none.
        target: The target of the threshold.
        choice: What the suspicion was compared with, and why it was taken.
        outcome: What it brings beside the first column, on the calibration samples.
        measured: Figures of the calibration by name, with the profile of suspicion.
        sets: The candidates of a prediction, in each grade; absent without class probabilities, or if too few suspects
            were labelled.
    """

    threshold: Threshold
    suspicion: tuple[str, ...]
    weighting: Weighting | None
    probability: ErrorProbability
    columns: Columns
    classes: tuple[str, ...]
    target: Target
    choice: Choice
    outcome: Outcome
    measured: Mapping[str, Any]
    sets: PredictionSets | None = None

    @property
    def score(self) -> str:
        """The name of what suspicion is computed from."""
        return " + ".join(self.suspicion)

    def grade(
        self,
        *,
        probabilities: ArrayLike | None = None,
        predicted: ArrayLike | None = None,
        scores: ArrayLike | Mapping[str, ArrayLike] | None = None,
        groups: Mapping[str, Values] | None = None,
    ) -> GradedScores:
        """Returns the grades of predictions.

        Args:
            probabilities: float ``(N, K)``, as in `calibrate`.
            predicted: int ``(N,)``, the same.
            scores: float ``(N,)`` or ``(N, J)``, or ``J`` of ``(N,)`` by name, the same.
            groups: ``(N,)`` for each group column, the same.

        Raises:
            ArgumentError: What was there in the calibration is absent or has another shape, or an argument breaks its
                rule.
        """
        how: Any = {"classes": self.classes, "higher_is_suspect": self.columns.higher_is_suspect}
        how["groups"] = {column: coded(groups or {}, column) for column in self.columns.groups}
        found = Predictions.of(probabilities, predicted, scores, **how)
        if found.columns.shape != self.columns.shape:
            raise ArgumentError(
                f"scores: expected {self.columns.told} as in the calibration, got {found.columns.told}. Pass these."
            )
        return self.judge(found)

    def judge(self, found: Predictions) -> GradedScores:
        """Returns the grades of predictions whose arrays have been checked."""
        suspicion = self.suspicion_of(found)
        trusted = self.threshold.trusts(suspicion, found.predicted, found.groups)
        names = self.threshold.groups.told(found.groups) if self.threshold.groups else ()
        sets = None
        if self.sets is not None:
            sets = self.sets.candidates(found.probabilities, found.predicted, ~trusted)
        return GradedScores(found.predicted, suspicion, self.probability.probability(suspicion), trusted, names, sets)

    def suspicion_of(self, found: Predictions) -> NDArray[np.float64]:
        """Returns the suspicion of predictions, float64 ``(N,)``."""
        known = found.suspicions(self.columns)
        return _combined([known[name] for name in self.suspicion], self.weighting)

    def recalibrate(
        self, found: Predictions, labels: ArrayLike, *, target: Target | None = None, set_coverage: float | None = None
    ) -> "Calibration":
        """Returns the same suspicion with threshold and probability of error set anew on fresh labels.

        Args:
            found: ``N`` predictions on inputs like later ones.
            labels: int ``(N,)``, true classes.
            target: Target of the threshold; absent takes the present one. A risk is guaranteed in the present groups.
            set_coverage: As of `calibrate`; absent takes the present one.

        Raises:
            ArgumentError: Labels break their rule, or the samples do not suffice for the target.
        """
        wrong = _wrong(found, labels, self.classes)
        first = next(iter(found.suspicions(self.columns).values()))
        suspicion, target, columns = self.suspicion_of(found), target or self.target, self.columns
        if isinstance(target, MaxRisk) and target.per is None and columns.groups:
            target = replace(target, per=columns.groups)
        elif not (isinstance(target, MaxRisk) and target.per == columns.groups):
            columns = replace(columns, groups=())
        how: Any = {"target": target, "classes": max(2, len(self.classes)), "against": self.outcome.against}
        how["groups"] = found.groups
        settled = settle(suspicion, first, wrong, found.predicted, **how)
        return replace(
            self, target=target, columns=columns, **settled._replace(measured=_counted(wrong, settled))._asdict()
        )


def calibrate(
    labels: ArrayLike,
    *,
    probabilities: ArrayLike | None = None,
    predicted: ArrayLike | None = None,
    scores: ArrayLike | Mapping[str, ArrayLike] | None = None,
    higher_is_suspect: bool = False,
    classes: Sequence[str] = (),
    groups: Mapping[str, Values] | None = None,
    target: Target | None = None,
    set_coverage: float = SET_COVERAGE,
    seed: int = 0,
) -> Calibration:
    """Returns a threshold and a probability of error for predictions that come with probabilities or scores.

    Suspicion is the first column, unless another one or a logistic regression over all of them beats it by more than
    chance (`petm.selective.choice.choose`). Columns are, of class probabilities, the softmax ``1 - max p``, the margin
    ``ln(p2 / p1)`` and the entropy; and each score with its sign. A regression is judged out of fold: no row's
    suspicion comes from weights that saw its label. With a target that guarantees, 40 % of the rows, at most 50,000,
    are there to choose on, and the others, which nothing was chosen on, set the threshold; fewer than 500 rows all do.
    Without a guarantee all rows do both, and the outcome says so.

    Args:
        labels: int ``(N,)``, true classes, which the scores have not been fitted to.
        probabilities: float ``(N, K)``, class probabilities, 0 or above; rows sum to 1 up to 0.01, and are divided by
            their sum. The prediction is the greatest.
        predicted: int ``(N,)``, the predicted classes, where there are no probabilities.
        scores: float ``(N,)`` or ``(N, J)``, or ``J`` of ``(N,)`` by name: higher is surer. Beside probabilities or
            alone.
        higher_is_suspect: Whether a higher score is less sure instead.
        classes: ``K`` class names, for messages and files.
        groups: ``(N,)`` for each group column that the target names: texts, such as the site of each row.
        target: Target of the threshold (`petm.selective.MaxRisk`, ...). Absent flags nine of ten errors, or trusts nine
            of ten predictions if there is no error.
        set_coverage: Probability with which the candidates of a prediction hold its true class, in each grade.
        seed: Seed of the division into two parts, of folds and of resampling.

    Raises:
        ArgumentError: An argument breaks its rule: shapes, NaN, sums, a score of one value, fewer than two classes.
        DataError: Every row is there several times.

    Example:
        >>> made = calibrate([0, 1] * 50, predicted=[0] * 100, scores=[3.0, 1.0] * 50, target=Coverage(0.5))
        >>> made.grade(predicted=[0, 1], scores=[2.5, 0.5]).trusted.tolist()
        [True, False]
    """
    how: Any = {"classes": classes, "higher_is_suspect": higher_is_suspect, "groups": groups}
    found = Predictions.of(probabilities, predicted, scores, **how)
    return calibrated(found, labels, classes=classes, target=target, set_coverage=set_coverage, seed=seed)


def calibrated(
    found: Predictions,
    labels: ArrayLike,
    *,
    classes: Sequence[str] = (),
    target: Target | None = None,
    set_coverage: float = SET_COVERAGE,
    seed: int = 0,
) -> Calibration:
    """Returns the calibration of predictions whose arrays have been checked; otherwise as `calibrate`."""
    check_coverage(set_coverage, "set_coverage")
    wrong = _wrong(found, labels, classes)
    count = max(2, len(classes), found.columns.shape[0], int(found.predicted.max()) + 1)
    columns = found.suspicions(found.columns)
    for name, values in columns.items():
        if values.min() == values.max():
            raise ArgumentError(
                f"{CLASSES_READ if not found.columns.scores else 'scores'}: expected different values in {name}, got "
                f"{found.shown(name)} in all {len(wrong):,} rows. Name another column."
            )
    _refuse_copies(found, labels)
    first, target = next(iter(columns)), target_or_default(target, wrong)
    per = target.per if isinstance(target, MaxRisk) and isinstance(target.per, tuple) else ()
    if set(per) != set(found.groups):
        raise ArgumentError(f"groups: expected those of the target, {list(per)}, got {list(found.groups)}. Name them.")
    rows, rest = _parts(len(wrong), target, seed, alone=len(columns) == 1)
    names, weighting, choice = _chosen({n: v[rows] for n, v in columns.items()}, wrong[rows], target, seed)
    suspicion = _combined([columns[name][rest] for name in names], weighting)
    how: Any = {"target": target, "classes": count, "chosen_here": rows is rest and len(columns) > 1, "against": first}
    other = found.rows(rest)
    how["groups"] = other.groups
    settled = settle(suspicion, columns[first][rest], wrong[rest], other.predicted, **how)
    sets = _sets(other, np.asarray(labels)[rest], suspicion, settled.threshold, set_coverage)
    held = (found.columns, tuple(classes), target, choice, settled.outcome, _counted(wrong, settled), sets)
    return Calibration(settled.threshold, names, weighting, settled.probability, *held)


def target_or_default(target: Target | None, wrong: NDArray[np.bool_]) -> Target:
    """Returns the target; where there is none, nine of ten errors, or with a warning nine of ten predictions."""
    if target is None and not wrong.any():
        warnings.warn(
            f"calibration: expected some errors of the model, got none in {len(wrong)} samples, so nothing can be "
            f"learned of its errors. The most suspect {1 - COVERAGE:.0%} of predictions are suspect. Pass more "
            f"samples, or name a target.",
            PetmWarning,
            stacklevel=3,
        )
    return target or (Recall(RECALL) if wrong.any() else Coverage(COVERAGE))


def settle(
    suspicion: NDArray[np.float64],
    first: NDArray[np.float64],
    wrong: NDArray[np.bool_],
    predicted: NDArray[np.int64],
    *,
    target: Target,
    classes: int,
    chance: ArrayLike | None = None,
    groups: Mapping[str, Coded] | None = None,
    at_most: Threshold | None = None,
    placed: NDArray[np.float64] | None = None,
    chosen_here: bool = False,
    against: str = Outcome.against,
) -> Settled:
    """Returns threshold, probability of error and figures from calibration samples; all arrays are ``(N,)``.

    Where the target cannot be guaranteed, nothing is trusted, and a warning says what is needed. Of samples that were
    drawn with unequal chances, the figures are those of a part that is thinned to equal chances.

    Args:
        suspicion: Their suspicion, finite.
        first: That of what is compared, the softmax or the first score.
        wrong: Where the base model is wrong.
        predicted: The classes that it predicts.
        target: The target of the threshold.
        classes: Number of classes.
        chance: With which each was drawn to be labelled; None for equal chances.
        groups: The values of group columns, where there are some.
        at_most: A threshold of the same target, taken (class by class) where it is lower.
        placed: Suspicion that the threshold is set on; absent is that of the samples.
        chosen_here: Whether suspicion was chosen on these samples.
        against: The name of ``first``.
    """
    threshold = target.threshold(
        suspicion if placed is None else placed, wrong, predicted, classes=classes, chance=chance, groups=groups
    )
    if at_most is not None:
        threshold = lower_of(threshold, at_most, suspicion, wrong, predicted, chance=chance)
    if not threshold.holds:
        warnings.warn(
            f"{target.kind}: no threshold can guarantee {target} from {len(wrong)} calibration samples with "
            f"{int(wrong.sum())} errors, so nothing is trusted{' where it cannot' if threshold.classes else ''}. "
            f"{threshold.remedy}",
            PetmWarning,
            stacklevel=3,
        )
    how: Any = {"threshold": threshold, "target": target, "classes": classes, "chance": chance, "against": against}
    how["groups"] = groups
    outcome = outcome_of(suspicion, first, wrong, predicted, **how, chosen_here=chosen_here)
    probability = fit_probability(suspicion, wrong, chance=chance)
    kept = thinned(inverse_chances(chance, len(wrong)))
    suspicion, first, wrong, predicted = suspicion[kept], first[kept], wrong[kept], predicted[kept]
    groups = {name: column.rows(kept) for name, column in (groups or {}).items()}
    trusted = threshold.trusts(suspicion, predicted, groups)
    flags = detection(~trusted, wrong)
    of_first = f"of_{'softmax' if against == Outcome.against else 'first'}"
    measured = {
        "calibration_samples": len(wrong),
        "calibration_errors": flags.errors,
        "coverage": flags.coverage,
        "risk": flags.risk,
        "recall": flags.recall,
        "precision": flags.precision,
        "auroc": auroc(suspicion, wrong),
        f"auroc_{of_first}": auroc(first, wrong),
        "aurc": aurc(suspicion, wrong),
        f"aurc_{of_first}": aurc(first, wrong),
        **suspicion_profile(suspicion),
        **({"groups": results_by_group(threshold, groups, trusted, wrong)} if threshold.groups else {}),
    }
    return Settled(threshold, probability, outcome, measured)


def _sets(
    found: Predictions, labels: ArrayLike, suspicion: NDArray[np.float64], threshold: Threshold, coverage: float
) -> PredictionSets | None:
    if not found.columns.probabilities:
        return None
    how: Any = {"coverage": coverage, "groups": found.groups}
    return fit_grade_sets(found.probabilities, labels, found.predicted, suspicion, threshold, **how)


def _counted(wrong: NDArray[np.bool_], settled: Settled) -> dict[str, Any]:
    """The figures, with those of all rows: some may have served the choice alone."""
    return {"samples": len(wrong), "errors": int(wrong.sum()), **settled.measured}


def _wrong(found: Predictions, labels: ArrayLike, classes: Sequence[str]) -> NDArray[np.bool_]:
    """Where the predictions are wrong, after checking the labels."""
    true, samples = np.asarray(labels), len(found.predicted)
    if true.shape != (samples,) or not np.issubdtype(true.dtype, np.integer):
        raise ArgumentError(f"labels: expected one integer for each of {samples} rows, got {true.dtype} {true.shape}.")
    known = found.columns.shape[0] or len(classes)
    if true.size and not 0 <= true.min() <= true.max() < (known or true.max() + 1):
        bad = int(np.flatnonzero((true < 0) | (true >= (known or true.max() + 1)))[0])
        raise ArgumentError(f"labels: expected classes from 0 to {known - 1}, got {true[bad]} in row {bad}.")
    if not samples:
        raise ArgumentError("labels: expected at least one row, got none.")
    if true.min() == true.max():
        raise ArgumentError(f"labels: expected at least two classes, got one in all {samples:,} rows. Add other rows.")
    return np.asarray(found.predicted != true)


def _refuse_copies(found: Predictions, labels: ArrayLike) -> None:
    """Raises DataError where each row is there equally often, as in a file that was joined with itself."""
    columns = list(found.suspicions(found.columns).values())
    counts = np.unique(columns[0], return_counts=True)[1]
    if len(counts) < FEWEST_ERRORS or counts.min() < 2:
        return  # the usual case: some row has a suspicion of its own
    table = np.column_stack([found.predicted, np.asarray(labels), *columns])
    counts = np.unique(table, axis=0, return_counts=True)[1]
    if counts.min() > 1 and counts.min() == counts.max():
        raise DataError(
            f"labels: expected each row once, got each of {len(counts):,} rows {counts[0]} times, so that the same "
            f"evidence would count again. Leave the copies out."
        )


def _parts(samples: int, target: Target, seed: int, *, alone: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows to choose on, and those to set the threshold on: under a guarantee they are different ones."""
    every = np.arange(samples)
    if alone or (target.guarantees and samples < FEWEST_TO_CHOOSE):
        return every[:0], every
    order = np.random.default_rng(seed).permutation(samples)
    if not target.guarantees:
        return (every, every) if samples <= MOST_TO_CHOOSE else (np.sort(order[:MOST_TO_CHOOSE]), every)
    first = min(int(CHOICE_SHARE * samples), MOST_TO_CHOOSE)
    return np.sort(order[:first]), np.sort(order[first:])


def _chosen(
    columns: Mapping[str, NDArray[np.float64]], wrong: NDArray[np.bool_], target: Target, seed: int
) -> tuple[tuple[str, ...], Weighting | None, Choice]:
    """The columns of the suspicion, the regression over them if they are several, and the choice."""
    first = next(iter(columns))
    risk = target.max_risk if isinstance(target, MaxRisk) else None
    if not len(wrong):
        few = f"A guarantee needs all rows where they are fewer than {FEWEST_TO_CHOOSE}, so nothing was compared."
        reason = few if len(columns) > 1 else f"Nothing was compared with the {first}."
        return (first,), None, Choice(first, "aurc", (), reason)
    offered = dict(columns)
    odds = [bool(each.min() >= 0 and each.max() <= 1) for each in columns.values()]
    together = " + ".join(columns)
    if len(columns) > 1 and min(wrong.sum(), (~wrong).sum()) >= max(FOLDS, FEWEST_ERRORS):
        values, found = list(columns.values()), np.empty(len(wrong))
        for rest, fold in folds(wrong, seed):
            weighting, intercept = regression([each[rest] for each in values], wrong[rest], odds)
            found[fold] = weighting.of([each[fold] for each in values]) + intercept
        offered[together] = found
    costs = dict.fromkeys(offered, 0.0) | ({together: 1e-9} if together in offered else {})
    choice = choose(offered, costs, wrong, max_risk=risk, seed=seed)
    if choice.name != together or len(columns) == 1:
        return (choice.name,), None, choice
    return tuple(columns), regression(list(columns.values()), wrong, odds)[0], choice


def _combined(columns: Sequence[NDArray[np.float64]], weighting: Weighting | None) -> NDArray[np.float64]:
    return columns[0] if weighting is None else weighting.of(columns)
