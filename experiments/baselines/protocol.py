"""What every detector is: fitted on the predictions of two data sets, then asked how suspect a prediction is."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from petm._internal.operations import count_operations
from petm.adapter.one_pass import Answers
from petm.data.base import Data, as_data
from petm.errors import ArgumentError, DataError
from petm.evidence.protocol import Evidence, Part, compute_answers
from petm.models.prediction import BATCH_SIZE, check_labels, predict_logits
from petm.training.error_set import ErrorSet


class Seen:
    """A data set as the model sees it. The one pass over the data is run when its first result is asked for, and kept.

    Args:
        model: The base model.
        data: ``N`` samples, labelled where a detector is fitted on them; or whatever `petm.data.base.as_data` takes.
        batch_size: Samples in one forward pass.

    Raises:
        DataError: There is no sample.
    """

    def __init__(self, model: nn.Module, data: Data, *, batch_size: int = BATCH_SIZE) -> None:
        self.model, self.data, self.batch_size = model, as_data(data), batch_size
        self.seconds = 0.0  # that the pass took, as far as it was run
        if not len(self):
            raise DataError(f"{self.data.source}: expected at least one sample, got none.")

    def __len__(self) -> int:
        return len(self.data)

    @cached_property
    def answers(self) -> Answers:
        """What the base model computes for the samples."""
        start = time.perf_counter()
        found = compute_answers(self.model, self.data, batch_size=self.batch_size)
        self.seconds = time.perf_counter() - start
        return found

    @property
    def logits(self) -> Tensor:
        """The base model's logits, float32 ``(N, K)`` on the CPU."""
        return self.answers.base

    @property
    def features(self) -> Tensor:
        """What enters the base model's last linear layer, float32 ``(N, D)`` on the CPU.

        Raises:
            ModelError: The base model has no linear layer, or the last one does not take one row of features a sample.
        """
        return self.answers.features

    @property
    def predicted(self) -> Tensor:
        """The class ``c`` that the base model predicts, int64 ``(N,)``."""
        return self.answers.predicted

    @cached_property
    def labels(self) -> Tensor:
        """The true classes, int64 ``(N,)``.

        Raises:
            DataError: A label is missing or outside 0..K-1, or only one class is present.
        """
        check_labels(self.data.labels, self.logits.shape[1], self.data.source)
        return self.data.labels

    @cached_property
    def wrong(self) -> Tensor:
        """Where the base model is wrong, bool ``(N,)``."""
        return self.predicted != self.labels

    @property
    def errors(self) -> ErrorSet:
        """The samples that the base model gets wrong, as `petm.training.error_set.find_errors` gives them."""
        indices = self.wrong.nonzero().flatten()
        return ErrorSet(indices, self.predicted[indices], len(self))


@dataclass(frozen=True, eq=False)
class Learned:
    """What a detector has learned of one base model.

    Attributes:
        score: From what the base model says of ``N`` samples to suspicion, float64 ``(N,)``.
        extra_parameters: Numbers that it keeps beside the base model's weights: weights, means, training features.
        chosen: The settings that it chose on data, by name.
    """

    score: Callable[[Seen], Tensor]
    extra_parameters: int = 0
    chosen: Mapping[str, float] = field(default_factory=dict)


class Baseline(ABC):
    """A way to tell how likely its predictions are wrong. A subclass is a frozen dataclass of hyperparameters."""

    @property
    def fitted_on(self) -> Part | None:
        """Which of the two data sets it learns from; nothing is ever learned from the data that is graded."""
        return None

    @property
    def varies(self) -> bool:
        """Whether its suspicion is measured with several seeds."""
        return False

    @property
    @abstractmethod
    def name(self) -> str:
        """Short, for tables and files."""

    @property
    @abstractmethod
    def title(self) -> str:
        """For a person."""

    @property
    @abstractmethod
    def source(self) -> str:
        """Author and year of where it comes from."""

    @property
    def definition(self) -> str:
        """What it does, in a line: the first sentence of its documentation."""
        return first_sentence(type(self))

    @abstractmethod
    def _fit(self, train: Seen, calibration: Seen, seed: int, device: str) -> Learned:
        """Learns what it needs."""

    def fit(self, train: Seen, calibration: Seen, *, seed: int = 0, device: str = "auto") -> "Fitted":
        """Returns the detector fitted to the base model behind ``train``; the base model stays as it is.

        Args:
            train: What the base model says of labelled samples, usually those that it was trained on.
            calibration: What the base model says of labelled samples that it was not trained on.
            seed: Of everything random; the same seed gives the same result on the same machine.
            device: Where something is trained: ``auto``, ``cpu``, ``cuda``, ...

        Raises:
            ArgumentError: The two come from different models.
            DataError: Samples or labels that the detector needs are missing.
            ModelError: The detector cannot work with this base model.
            NothingToLearnError: The detector learns from the base model's errors, and there is none.
        """
        if calibration.model is not train.model:
            raise ArgumentError(
                "calibration: expected what the same model says as in train, got another model. "
                "Give both Seen the same model."
            )
        if self.fitted_on:
            learns_from = train if self.fitted_on == "training" else calibration
            _ = learns_from.answers  # now, so that its time is not counted twice
            shared = learns_from.seconds
        else:
            shared = 0.0
        start = time.perf_counter()
        learned = self._fit(train, calibration, seed, device)
        return Fitted(self, train.model, learned, shared + time.perf_counter() - start)


def first_sentence(documented: object) -> str:
    """Returns the first sentence of an object's documentation, without its full stop."""
    return (documented.__doc__ or "").split("\n\n")[0].split(". ")[0].replace("\n   ", "").strip().rstrip(".")


@dataclass(frozen=True)
class OfEvidence(Baseline):
    """One of the library's kinds of evidence, taken for suspicion by itself.

    Args:
        evidence: Of `petm.evidence`.
    """

    evidence: Evidence

    @property
    def name(self) -> str:
        """The evidence's."""
        return self.evidence.name

    @property
    def title(self) -> str:
        """The evidence's."""
        return self.evidence.title

    @property
    def source(self) -> str:
        """The evidence's."""
        return self.evidence.source

    @property
    def definition(self) -> str:
        """The evidence's: what it says of itself, or the first sentence of its documentation."""
        return getattr(self.evidence, "definition", None) or first_sentence(type(self.evidence))

    @property
    def fitted_on(self) -> Part | None:
        """The evidence's."""
        return self.evidence.fitted_on

    @property
    def varies(self) -> bool:
        """Where it learns from one random half of the test data."""
        return self.fitted_on == "calibration"

    def _fit(self, train: Seen, calibration: Seen, seed: int, device: str) -> Learned:
        if self.fitted_on is None:  # nothing is learned, so nothing is computed
            fitted = self.evidence.fit(Answers(torch.empty(0, 0)), torch.empty(0), seed=seed)
        else:
            seen = train if self.fitted_on == "training" else calibration
            fitted = self.evidence.fit(seen.answers, seen.labels, seed=seed)
        return Learned(lambda graded: fitted.score(graded.answers), fitted.parameters, fitted.chosen)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A detector that knows one base model.

    Attributes:
        baseline: What was fitted.
        model: The base model.
        learned: What it learned.
        seconds: How long that took. The base model's pass over the data it learned from is included, though others
            share it.
    """

    baseline: Baseline
    model: nn.Module
    learned: Learned
    seconds: float

    def suspicion(self, seen: Seen) -> Tensor:
        """Returns how suspect the base model's predictions are, float64 ``(N,)``; higher is more likely wrong.

        Args:
            seen: What the base model says of ``N`` samples; labels are not used.

        Raises:
            ArgumentError: ``seen`` comes from another model.
        """
        if seen.model is not self.model:
            raise ArgumentError(
                f"seen: expected what the model says that {self.baseline.name} was fitted to, got another model. "
                f"Fit the baseline to that model."
            )
        return self.learned.score(seen)

    def passes(self, data: Data) -> float:
        """Returns what predictions with suspicion cost, in plain forward passes of the base model.

        Counted are the operations of matrix products and convolutions, backward ones included, also those that search
        among training features. 1 is the base model alone; NaN where the base model has no such operations.

        Args:
            data: A few samples, of which only the form matters.
        """
        plain = count_operations(lambda: predict_logits(self.model, data))
        return count_operations(lambda: self.suspicion(Seen(self.model, data))) / plain if plain else float("nan")
