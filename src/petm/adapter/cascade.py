"""The cascade: for which predictions a second opinion is computed. Bundles are read with it, without PyTorch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from petm.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Cascade:
    """The predictions for which a second opinion is computed; the others keep the base model's logits as both.

    Attributes:
        low: Least suspicion of the base model (`petm.models.scores.maximum_softmax`) for which it is computed.
        high: Suspicion from which on it is not computed any more, as it would not change the grade.
    """

    low: float
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ArgumentError(f"cascade: expected 0 <= low <= high <= 1, got {self.low} and {self.high}.")

    def asks(self, suspicion: "Tensor") -> "Tensor":
        """Returns where a second opinion is computed, bool ``(N,)``, for the base model's suspicion."""
        return (suspicion >= self.low) & (suspicion < self.high)
