"""The cascade: for which predictions a second opinion is computed, and the cap on them. Free of PyTorch."""

import warnings
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from petm._internal.records import Record
from petm.errors import ArgumentError, BundleError, PetmWarning

if TYPE_CHECKING:
    from torch import Tensor

BOUND = 1000
"""Predictions whose tokens an `Allowance` holds at most: data in the order of their classes must not be cut."""
_TOKEN = 1_000_000
"""Parts of a token: whole numbers add up alike in any order."""
_CHANGING = Lock()


@dataclass(frozen=True)
class Cascade:
    """The predictions for which a second opinion is computed; the others keep the base model's logits as both.

    Attributes:
        low: Least suspicion of the base model (`petm.models.scores.maximum_softmax`) for which it is computed.
        high: Suspicion from which on it is not computed any more, as it would not change the grade.
        most: Largest share of the predictions for which it is computed in use (`Allowance`); 1 sets no limit.
    """

    low: float
    high: float = 1.0
    most: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ArgumentError(f"cascade: expected 0 <= low <= high <= 1, got {self.low} and {self.high}.")
        if not 0 <= self.most <= 1:
            raise ArgumentError(f"most: expected a share from 0 to 1, got {self.most}.")

    def asks(self, suspicion: "Tensor") -> "Tensor":
        """Returns where a second opinion is asked for, bool ``(N,)``, for the base model's suspicion."""
        return (suspicion >= self.low) & (suspicion < self.high)

    def capped(self, suspicion: "Tensor") -> "Cascade":
        """Returns the cascade with a cap of twice the share that it asks for on unseen samples, and at most 1."""
        return replace(self, most=min(1.0, 2 * float(self.asks(suspicion).double().mean())))

    @classmethod
    def from_json(cls, record: Record) -> "Cascade":
        """Returns the cascade from a manifest or a graph; raises BundleError where an entry breaks its rule."""
        low, high, most = (record.number(name, least=0, most=1) for name in ("low", "high", "most"))
        if low > high:
            raise BundleError(f"{record.place}: expected low up to high, got {low} and {high}.")
        return cls(low, high, most)


class Allowance:
    """The second opinions that a cascade may still compute: a token bucket over the predictions in their order.

    Each prediction adds ``most`` tokens, up to those of `BOUND` predictions and at least one, with which the bucket
    begins, and each second opinion takes one. So the size of a batch changes nothing. Threads may share an allowance.

    Args:
        cascade: The cascade; absent asks for none, and so cuts none.
        state: `state` of an earlier allowance, which goes on there; absent begins with a full bucket.
    """

    def __init__(self, cascade: Cascade | None, state: int | None = None) -> None:
        self._most = round((cascade.most if cascade else 1.0) * _TOKEN)
        self._full = max(_TOKEN, BOUND * self._most)
        self.state = self._full if state is None else min(max(state, 0), self._full)
        self._predictions = self._asked = self._left_out = 0
        self._told = False

    def grants(self, asked: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Returns for which of the next predictions that ask for it a second opinion is computed, bool ``(N,)``."""
        granted = np.zeros(len(asked), np.bool_)
        with _CHANGING:
            seen = 0
            for place in np.flatnonzero(asked).tolist():
                self.state, seen = min(self._full, self.state + (place + 1 - seen) * self._most), place + 1
                if self.state >= _TOKEN:
                    self.state, granted[place] = self.state - _TOKEN, True
            self.state = min(self._full, self.state + (len(asked) - seen) * self._most)
            self._predictions += len(asked)
            self._asked += int(asked.sum())
            self._left_out += int((asked & ~granted).sum())
        return granted

    def tell(self) -> None:
        """Warns, once, where second opinions were left out."""
        if not self._left_out or self._told:
            return
        self._told = True
        warnings.warn(
            f"cascade: expected to need a second opinion on at most {self._most / _TOKEN:.1%} of the predictions, got "
            f"{self._asked / self._predictions:.1%} of {self._predictions:,}. It was left out for {self._left_out:,}, "
            f"which are suspect. Compare the inputs with those of the fit by petm monitor, or label some for petm "
            f"learn.",
            PetmWarning,
            stacklevel=3,
        )
