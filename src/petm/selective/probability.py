"""The calibrated probability of error of a prediction."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petm._internal.records import Record
from petm.errors import BundleError
from petm.selective.audit import inverse_chances
from petm.selective.ranking import calibration_arrays

if TYPE_CHECKING:
    from torch import Tensor

FOLDS = 5
"""Folds of the cross-validation; fewer where there are fewer errors, or fewer right predictions."""
KNOTS = 300
"""Most points of the isotonic curve."""
Method = Literal["logistic", "log-odds", "isotonic"]
MOST = 100_000
"""Most samples on which the methods are compared."""
_INSIDE = (1e-15, 1 - 1e-15)
"""Range in which log-odds are taken; beyond it rounding dominates."""


@dataclass(frozen=True)
class ErrorProbability:
    """The probability that the base model is wrong, as a non-decreasing function of suspicion, strictly within 0 and 1.

    Attributes:
        method: ``logistic``, ``1 / (1 + exp(-(slope s + intercept)))``; ``log-odds``, the same of ``log(s / (1 - s))``;
            or ``isotonic``, straight lines between knots.
        least: The least probability, and 1 less the greatest.
        slope: Slope of a logistic curve, 0 or above.
        intercept: Intercept of a logistic curve.
        knots: Suspicions at the knots of the isotonic curve, ascending.
        values: Probabilities at the knots.
        log_losses: Log loss of each method in cross-validation, in nats a sample; empty where errors were too few.
    """

    method: Method
    least: float
    slope: float = 0.0
    intercept: float = 0.0
    knots: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    log_losses: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # JSON gives lists back.
        object.__setattr__(self, "knots", tuple(self.knots))
        object.__setattr__(self, "values", tuple(self.values))

    @classmethod
    def from_json(cls, record: Record) -> "ErrorProbability":
        """Returns the curve that its fields in JSON describe; raises BundleError where an entry breaks its rule."""
        method, knots, values = record.text("method"), record.numbers("knots"), record.numbers("values")
        if method not in get_args(Method):
            raise BundleError(f"{record.place}, method: expected one of {', '.join(get_args(Method))}, got {method!r}.")
        if len(knots) != len(values) or (method == "isotonic" and not knots) or list(knots) != sorted(knots):
            raise BundleError(f"{record.place}, knots: expected rising numbers, as many as values, got {len(knots)}.")
        losses = record.record("log_losses")
        return cls(
            method,  # type: ignore[arg-type]  # checked above
            record.number("least", least=0, most=0.5),
            record.number("slope", least=0),
            record.number("intercept"),
            knots,
            values,
            {name: losses.number(name) for name in losses.content},
        )

    def probability(self, suspicion: ArrayLike) -> NDArray[np.float64]:
        """Returns the probability of error, float64 of the same shape; NaN for NaN."""
        scores = np.asarray(suspicion, np.float64)
        if self.method == "isotonic":
            found = np.where(np.isnan(scores), scores, np.interp(scores, self.knots, self.values))
        else:
            if self.method == "log-odds":
                scores = _log_odds(scores)
            with np.errstate(over="ignore"):
                found = 1 / (1 + np.exp(-(self.slope * scores + self.intercept)))
        return np.clip(found, self.least, 1 - self.least)

    def as_tensor(self, suspicion: "Tensor") -> "Tensor":
        """Returns the same, float64 ``(N,)``, in operations that `torch.export` and ONNX support."""
        scores = suspicion.double()

        def constant(*numbers: float) -> "Tensor":  # a plain number becomes a float32 in an ONNX graph
            return scores.new_tensor(numbers)

        if self.method != "isotonic":
            if self.method == "log-odds":
                scores = scores.clamp(*map(constant, _INSIDE))
                scores = scores.log() - (1 - scores).log()
            found = (constant(self.slope) * scores + constant(self.intercept)).sigmoid()
        elif len(self.knots) == 1:
            found = scores.where(scores.isnan(), constant(*self.values))
        else:
            knots, values = constant(*self.knots), constant(*self.values)
            inside = scores.clamp(knots[0], knots[-1])
            right = (inside[:, None] >= knots).sum(1).clamp(1, len(self.knots) - 1)
            slopes = values.diff() / knots.diff()
            found = slopes[right - 1] * (inside - knots[right - 1]) + values[right - 1]
        return found.clamp(constant(self.least), constant(1 - self.least))


def fit_probability(
    suspicion: ArrayLike, wrong: ArrayLike, *, seed: int = 0, chance: ArrayLike | None = None
) -> ErrorProbability:
    """Returns the probability of error as a function of suspicion, fitted on calibration samples.

    Of these methods, the one with the least log loss in stratified cross-validation is chosen:

    - *Isotonic*: the rising step curve of greatest likelihood, with straight lines between its plateaus. Half an error
      is added at the least suspicion and half a right prediction at the greatest, so a plateau of ``n`` right
      predictions at the low end has the value ``0.5 / (n + 0.5)`` and not 0.
    - *Logistic*: Platt's curve with targets ``(errors + 1) / (errors + 2)`` for errors and ``1 / (right + 2)`` for
      right predictions; a falling slope is replaced by 0.
    - *Log-odds*, where every suspicion lies in [0, 1]: the logistic curve of the log-odds of suspicion.

    Of more than 100,000 samples so many are drawn for the cross-validation; the curve is fitted on all.

    Values are kept within ``0.5 / (N + 1)`` and 1 less that. With one error, or one right prediction, the logistic
    curve is taken; with none, a constant at that bound.

    Args:
        suspicion: float ``(N,)`` of the calibration samples, finite.
        wrong: bool ``(N,)``, where the base model is wrong on them.
        seed: Seed of the folds.
        chance: float ``(N,)``, the chance with which each was drawn to be labelled, in (0, 1]; None for equal chances.
            Samples are weighted by its inverse, and count as ``N = (sum w)² / sum w²`` of equal weight (Kish, 1965).

    Reference:
        Zadrozny and Elkan (2002), Transforming Classifier Scores into Accurate Multiclass Probability Estimates;
        Platt (1999), Probabilistic Outputs for Support Vector Machines, section 2.2; Krichevsky and Trofimov (1981),
        The Performance of Universal Encoding, for the half.
    """
    scores, errors = calibration_arrays(suspicion, wrong)
    inverse = inverse_chances(chance, len(scores))
    weights = inverse * (inverse.sum() / (inverse @ inverse))
    rarer = int(min(errors.sum(), (~errors).sum()))
    if rarer == 0:
        return _isotonic(scores, errors, weights)
    if rarer == 1:
        return _logistic(scores, errors, weights)
    fits: dict[str, Callable[..., ErrorProbability]] = {"logistic": _logistic, "isotonic": _isotonic}
    if scores.min() >= 0 and scores.max() <= 1:
        fits["log-odds"] = partial(_logistic, method="log-odds")
    losses = dict.fromkeys(fits, 0.0)
    some = _some(errors, seed)
    every, (scores, errors, weights) = (scores, errors, weights), (part[some] for part in (scores, errors, weights))
    for fitted, judged in folds(errors, seed):
        for method, fit in fits.items():
            found = fit(scores[fitted], errors[fitted], weights[fitted]).probability(scores[judged])
            said = weights[judged] * np.log(np.where(errors[judged], found, 1 - found))
            losses[method] -= float(said.sum()) / float(weights.sum())
    best = min(fits, key=lambda method: losses[method])
    return replace(fits[best](*every), log_losses=losses)


def _some(errors: NDArray[np.bool_], seed: int) -> Any:
    """The rows that the methods are compared on: all, or about `MOST` drawn from errors and right ones alike."""
    if len(errors) <= MOST:
        return slice(None)
    generator, kinds = np.random.default_rng(seed), (np.flatnonzero(errors), np.flatnonzero(~errors))
    drawn = [generator.permutation(rows)[: max(2, MOST * len(rows) // len(errors))] for rows in kinds]
    return np.sort(np.concatenate(drawn))


def folds(errors: NDArray[np.bool_], seed: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yields the rows to fit on and the rows to judge, stratified by error; bool ``(N,)``, at least two of each."""
    from sklearn.model_selection import StratifiedKFold

    count = min(FOLDS, int(errors.sum()), int((~errors).sum()))
    yield from StratifiedKFold(count, shuffle=True, random_state=seed).split(errors, errors)


def _logistic(
    scores: NDArray[np.float64],
    errors: NDArray[np.bool_],
    weights: NDArray[np.float64],
    *,
    method: Method = "logistic",
) -> ErrorProbability:
    if method == "log-odds":
        scores = _log_odds(scores)
    bad, good = float(weights[errors].sum()), float(weights[~errors].sum())
    least = 0.5 / (float(weights.sum()) + 1)
    target = np.where(errors, (bad + 1) / (bad + 2), 1 / (good + 2))
    centre, spread = float(scores.mean()), float(scores.std())
    slope, intercept = 0.0, math.log((bad + 0.5) / (good + 0.5))
    if np.ptp(scores) > 0:
        # A soft target is two samples, an error and a right one, that share one weight.
        standard = np.tile((scores - centre) / spread, 2)[:, None]
        kinds = np.repeat([True, False], len(scores))
        parts = np.concatenate([weights * target, weights * (1 - target)])
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=1e9, solver="newton-cholesky", max_iter=1000).fit(standard, kinds, parts)
        steepness = float(model.coef_[0, 0])
        if steepness > 0:
            slope, intercept = steepness / spread, float(model.intercept_[0]) - steepness * centre / spread
    return ErrorProbability(method, least, slope, intercept)


def _isotonic(scores: NDArray[np.float64], errors: NDArray[np.bool_], weights: NDArray[np.float64]) -> ErrorProbability:
    from sklearn.isotonic import IsotonicRegression

    levels, ranks = np.unique(scores, return_inverse=True)
    # On ranks, since scikit-learn takes suspicions that lie closer than 1e-15 for one.
    x = np.concatenate([ranks, [0, len(levels) - 1]])
    y = np.concatenate([errors, [True, False]])
    least = 0.5 / (float(weights.sum()) + 1)
    weights = np.concatenate([weights, [0.5, 0.5]])

    curve = IsotonicRegression().fit(x.astype(float), y.astype(float), sample_weight=weights)
    knots, values = curve.X_thresholds_.astype(int), curve.y_thresholds_
    if len(knots) > KNOTS:
        kept = np.unique(np.linspace(0, len(knots) - 1, KNOTS).round().astype(int))
        knots, values = knots[kept], values[kept]
    return ErrorProbability("isotonic", least, knots=tuple(levels[knots].tolist()), values=tuple(values.tolist()))


def _log_odds(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.clip(scores, *_INSIDE)
    return np.asarray(np.log(inside) - np.log(1 - inside))
