"""A grader as a scikit-learn classifier, for pipelines and cross-validation."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.pipeline import Pipeline
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from petm.data.base import Data, TensorData
from petm.errors import ArgumentError, DataError
from petm.fitting import fit
from petm.grading.grader import Grader
from petm.grading.grades import Grades, check_inputs
from petm.models.prediction import BATCH_SIZE, Precision, predict_logits
from petm.selective.metrics import aurc
from petm.selective.targets import Target
from petm.training.config import CALIBRATION_SHARE, FitConfig
from petm.training.recipes import Recipe

_CONFIGURED = frozenset(field.name for field in fields(FitConfig))


class GradedClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no annotations
    """A trained network with its second opinion, as a scikit-learn classifier.

    ``fit`` trains the second opinion and sets the threshold, as `petm.fitting.fit`; the base model is never trained.

    - ``predict``, ``predict_proba`` and ``decision_function`` give the base model's class, softmax and log-odds, as
      scikit-learn's scorers, ``CalibratedClassifierCV`` and others expect them of any classifier.
    - ``grade`` gives what petm adds: ``.trusted``, ``.suspicion``, ``.probability_of_error`` and ``.second``, the
      second opinion.
    - ``score`` is the base model's accuracy, which no setting changes. To choose settings, such as ``recipe``, pass
      ``scoring=petm.negative_aurc``.

    A clone shares the base model instead of copying it, so cross-validation in one process holds it once.
    Cross-validation slices ``X``, which must be an array; an earlier step can give it the base model's shape.

    Args:
        model: The base model, moved to ``device`` by ``fit``.
        classes: The labels in the order of the base model's outputs; absent takes 0 to K-1 for whole numbers from that
            range, and otherwise the ``K`` distinct labels in ``y``, sorted.
        calibration: Share of ``X`` to hold out for the threshold.
        recipe: A name in `petm.training.recipes.RECIPES`, or a recipe.
        layers: Rank of each layer to adapt; absent follows the recipe.
        max_extra_parameters: Most adapter parameters, as a share of the base model's; absent follows the recipe.
        target: Target of the threshold, such as ``petm.MaxRisk(0.02)``; absent as in `petm.fitting.fit`.
        set_coverage: Probability with which candidates hold the true class, in each grade.
        calibration_from_data: The statement that the base model has not seen ``X``, as where cross-validation hands it
            over; a guarantee then needs no calibration samples in ``fit``.
        force: Whether to go on where the base model's accuracy says that the labels are not its own.
        seed: Seed of everything random.
        precision: Precision of the matrix products in training.
        device: ``auto``, ``cpu``, ``cuda``, ...
        batch_size: Samples in one pass of grading.

    Attributes:
        grader_: The fitted `petm.grading.grader.Grader`; ``grader_.save`` writes it without pickle.
        classes_: ``(K,)`` labels, sorted; the columns of ``predict_proba``.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        classes: Sequence[Any] | None = None,
        calibration: float = CALIBRATION_SHARE,
        recipe: str | Recipe = "auto",
        layers: Mapping[str, int] | None = None,
        max_extra_parameters: float | None = None,
        target: Target | None = None,
        set_coverage: float = FitConfig.set_coverage,
        calibration_from_data: bool = False,
        force: bool = False,
        seed: int = 0,
        precision: Precision = "float32",
        device: str = "auto",
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self.model = model
        self.classes = classes
        self.calibration = calibration
        self.recipe = recipe
        self.layers = layers
        self.max_extra_parameters = max_extra_parameters
        self.target = target
        self.set_coverage = set_coverage
        self.calibration_from_data = calibration_from_data
        self.force = force
        self.seed = seed
        self.precision = precision
        self.device = device
        self.batch_size = batch_size

    def __sklearn_clone__(self) -> "GradedClassifier":
        shared = {id(self.model): self.model}
        return type(self)(**{name: deepcopy(value, shared) for name, value in self.get_params(deep=False).items()})

    def fit(
        self,
        X: ArrayLike,  # noqa: N803
        y: ArrayLike,
        calibration: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> "GradedClassifier":
        """Fits the second opinion and the threshold; returns the estimator.

        Args:
            X: ``(N, ...)``: float, or uint8 that is divided by 255. Best the base model's training data.
            y: ``(N,)`` labels.
            calibration: Samples and labels that the base model has not seen, for the threshold; absent, a share of
                ``X``, on which a guarantee cannot rest unless ``calibration_from_data`` says that it is unseen.

        Raises:
            ArgumentError: A setting is out of range, the labels do not fit the base model's outputs, or a guarantee has
                no samples that the base model has not seen.
            DataError: Labels are missing, only one class is present, or as in `petm.fitting.fit`.
            ModelError: The base model cannot take the inputs.
        """
        inputs, found = validate_data(self, X, y, allow_nd=True, ensure_min_samples=2)
        check_classification_targets(found)
        self._names = _names(found, self.classes, predict_logits(self.model, _data(inputs[:1])).shape[1])
        self._columns = np.argsort(self._names)
        self.classes_ = self._names[self._columns]
        fresh = None
        if calibration is not None:
            if not isinstance(calibration, tuple | list) or len(calibration) != 2:
                raise ArgumentError(
                    f"calibration: expected a pair of samples and labels, got {type(calibration).__name__}. "
                    f"Pass (X, y); a share to hold out is an argument of the class."
                )
            samples, true = validate_data(self, *calibration, allow_nd=True, reset=False)
            strange = true[~np.isin(true, self.classes_)]
            if len(strange):
                raise ArgumentError(f"calibration: expected labels among those of y, got {strange[0]!r}. Correct them.")
            fresh = _data(samples, self._numbers(true), source="calibration")
        told = {name: value for name, value in self.get_params(deep=False).items() if name in _CONFIGURED}
        data, config = _data(inputs, self._numbers(found)), FitConfig(**told)
        self.grader_: Grader = fit(self.model, data, calibration=fresh, config=config)
        return self

    def _numbers(self, y: NDArray[Any]) -> Tensor:
        """The base model's class numbers ``(N,)`` of labels."""
        return torch.as_tensor(self._columns[np.searchsorted(self.classes_, y)])

    def grade(self, X: ArrayLike) -> Grades:  # noqa: N803
        """Returns the grades, with the answers of both opinions as in ``classes_``."""
        data = self._checked(X)  # before the attribute: it checks that there was a fit
        grades = self.grader_.grade(data, batch_size=self.batch_size)
        second = np.array([*self._names.tolist(), None], object)[grades.second]  # None in the place -1
        candidates = grades.candidates
        if candidates is not None:
            candidates = np.fromiter((tuple(self._names[list(each)]) for each in candidates), object, len(candidates))
        return replace(grades, labels=self._names[grades.labels], second=second, classes=(), candidates=candidates)

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Returns the base model's answers ``(N,)``, labels as in ``classes_``."""
        outputs = self._logits(X).argmax(1).numpy()
        return np.asarray(self._names[outputs])

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Returns the model's softmax, float64 ``(N, K)``: rows sum to 1, columns are in the order of ``classes_``."""
        return np.asarray(self._logits(X).double().softmax(1).numpy()[:, self._columns])

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Returns the log-odds of each class, float64 ``(N, K)`` in the order of ``classes_``; of two, of the second.

        ``log(p / (1 - p))`` of the base model's probability ``p``, from its logits, so that it stays exact where ``p``
        rounds to 1. For two classes it is ``(N,)`` and above 0 where ``predict`` gives the second. Unlike logits, it
        does not depend on what a network adds to all logits of a sample, and so can be calibrated class by class.
        """
        logits = self._logits(X).double()
        chances, first = logits.log_softmax(1), logits.argmax(1, keepdim=True)
        others = logits.scatter(1, first, -torch.inf).logsumexp(1, keepdim=True)
        odds = (chances - torch.log1p(-chances.exp())).scatter(1, first, logits.gather(1, first) - others)
        found = odds.numpy()[:, self._columns]
        return np.asarray(found[:, 1] if found.shape[1] == 2 else found)

    def _logits(self, X: ArrayLike) -> Tensor:  # noqa: N803
        return predict_logits(self.model, self._checked(X), batch_size=self.batch_size)

    def _checked(self, X: ArrayLike) -> Data:  # noqa: N803
        check_is_fitted(self)
        data = _data(validate_data(self, X, allow_nd=True, reset=False))
        check_inputs(data, self.grader_.origin.inputs)
        return data

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.classifier_tags.poor_score = True  # that of the base model, whatever it is given
        return tags


def negative_aurc(estimator: GradedClassifier | Pipeline, X: ArrayLike, y: ArrayLike) -> float:  # noqa: N803
    """Returns minus the area under the risk-coverage curve, for ``scoring=`` of scikit-learn; higher is better.

    Args:
        estimator: A fitted classifier, or a pipeline that ends in one.
        X: ``(N, ...)``, samples outside the fit.
        y: ``(N,)`` labels.
    """
    if isinstance(estimator, Pipeline):
        X, estimator = estimator[:-1].transform(X) if len(estimator) > 1 else X, estimator[-1]
    grades = estimator.grade(X)
    return -aurc(grades.suspicion, grades.labels != np.asarray(y))


def _data(X: NDArray[Any], labels: Tensor | None = None, *, source: str = "X") -> Data:  # noqa: N803
    """An array as data: uint8 as it is, any other number as float32, but no images of other whole numbers."""
    if X.ndim > 2 and X.dtype.kind in "iu" and X.dtype != np.uint8:
        raise DataError(
            f"{source}: expected float or uint8, got {X.dtype}. Convert pixels from 0 to 255 to uint8, other "
            f"numbers to float."
        )
    return TensorData(torch.as_tensor(X if X.dtype == np.uint8 else X.astype(np.float32)), labels, source=source)


def _names(y: NDArray[Any], classes: Sequence[Any] | None, outputs: int) -> NDArray[Any]:
    """The labels ``(K,)`` in the order of the base model's outputs."""
    found = np.unique(y)
    if len(found) < 2:
        raise ArgumentError(
            f"y: expected labels of at least two classes, got only {found[0]!r}. Add samples of others."
        )
    if classes is not None:
        names = np.asarray(classes)
        if len(np.unique(names)) != outputs or len(names) != outputs:
            raise ArgumentError(
                f"classes: expected {outputs} different labels, one an output of the model, got {list(classes)}."
            )
        strange = found[~np.isin(found, names)]
        if len(strange):
            raise ArgumentError(f"y: expected labels among {list(classes)}, got {strange[0]!r}. Correct classes.")
        return names
    if found.dtype.kind in "iuf" and np.isin(found, np.arange(outputs)).all():
        return np.arange(outputs)
    if len(found) != outputs:
        raise ArgumentError(
            f"y: expected the labels 0 to {outputs - 1}, or {outputs} different ones, got {len(found)}. Pass classes."
        )
    return found
