"""What every baseline is: fitted on what A says of two data sets, then asked how suspect A's predictions are."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from petm.data.base import Data
from petm.errors import ArgumentError
from petm.evidence.seen import Seen
from petm.models.prediction import predict_logits

Part = Literal["training", "calibration"]


@dataclass(frozen=True, eq=False)
class Learned:
    """What a baseline has learned of one A.

    Attributes:
        score: From what A says of ``N`` samples to suspicion, float64 ``(N,)``.
        extra_parameters: Numbers that it keeps beside A's weights: weights, means, training features.
        chosen: The settings that it chose on data, by name.
    """

    score: Callable[[Seen], Tensor]
    extra_parameters: int = 0
    chosen: Mapping[str, float] = field(default_factory=dict)


class Baseline(ABC):
    """A way to tell how likely A's predictions are wrong. A subclass is a frozen dataclass of hyperparameters."""

    fitted_on: ClassVar[tuple[Part, ...]] = ()
    """Which of the two data sets it learns from; nothing is ever learned from the data that is graded."""

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

    @abstractmethod
    def _fit(self, train: Seen, calibration: Seen, seed: int, device: str) -> Learned:
        """Learns what it needs."""

    def fit(self, train: Seen, calibration: Seen, *, seed: int = 0, device: str = "auto") -> "Fitted":
        """Returns the baseline fitted to the A behind ``train``; A stays as it is.

        Args:
            train: What A says of labelled samples, usually those that it was trained on.
            calibration: What A says of labelled samples that it was not trained on.
            seed: Of everything random; the same seed gives the same result on the same machine.
            device: Where something is trained: ``auto``, ``cpu``, ``cuda``, ...

        Raises:
            ArgumentError: The two come from different models.
            DataError: Samples or labels that the baseline needs are missing.
            ModelError: The baseline cannot work with this A.
            NothingToLearnError: The baseline learns from A's errors, and there is none.
        """
        if calibration.model is not train.model:
            raise ArgumentError(
                "calibration: expected what the same model says as in train, got another model. "
                "Give both Seen the same model."
            )
        parts: dict[Part, Seen] = {"training": train, "calibration": calibration}
        shared = sum(parts[part].seconds for part in self.fitted_on)
        start = time.perf_counter()
        learned = self._fit(train, calibration, seed, device)
        return Fitted(self, train.model, learned, shared + time.perf_counter() - start)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A baseline that knows one A.

    Attributes:
        baseline: What was fitted.
        model: A.
        learned: What it learned.
        seconds: How long that took. A's pass over the data it learned from is included, though others share it.
    """

    baseline: Baseline
    model: nn.Module
    learned: Learned
    seconds: float

    def suspicion(self, seen: Seen) -> Tensor:
        """Returns how suspect A's predictions are, float64 ``(N,)``; higher is more likely wrong.

        Args:
            seen: What A says of ``N`` samples; labels are not used.

        Raises:
            ArgumentError: ``seen`` comes from another model.
        """
        if seen.model is not self.model:
            raise ArgumentError(
                f"seen: expected what the model says that {self.baseline.name} was fitted to, got another model. "
                f"Fit the baseline to that model."
            )
        return self.learned.score(seen)

    @property
    def extra_parameters(self) -> int:
        """Numbers kept beside A's weights."""
        return self.learned.extra_parameters

    @property
    def chosen(self) -> Mapping[str, float]:
        """The settings that were chosen on data, by name."""
        return self.learned.chosen

    def passes(self, data: Data) -> float:
        """Returns what predictions with suspicion cost, in plain forward passes of A.

        Counted are the operations of matrix products and convolutions, backward ones included, also those that search
        among training features. 1 is A alone; NaN where A has no such operations.

        Args:
            data: A few samples, of which only the form matters.
        """
        plain = _operations(lambda: predict_logits(self.model, data))
        return _operations(lambda: self.suspicion(Seen(self.model, data))) / plain if plain else float("nan")


def _operations(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
