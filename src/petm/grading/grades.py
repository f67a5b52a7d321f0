"""The grades that a grader gives, and what it gives them to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from petm.data.base import Data
    from petm.data.fields import Inputs
    from petm.data.reader import Arrays

Batch: TypeAlias = "Arrays | Inputs"
"""What is graded in one pass: images float32 ``(N, C, H, W)``, or what else a model takes."""


@dataclass(frozen=True, eq=False)
class Grades:
    """What a grader says of ``N`` samples.

    Attributes:
        labels: int64 ``(N,)``, the base model's predictions.
        second: int64 ``(N,)``, the second opinion's predictions.
        suspicion: float64 ``(N,)``, higher is more likely wrong; which of `petm.models.scores.SCORES`, the grader says.
        probability: float64 ``(N,)``, the calibrated probability that the base model is wrong; NaN where none was
            calibrated.
        trusted: bool ``(N,)``, the grade: trusted, or else suspect.
    """

    labels: NDArray[np.int64]
    second: NDArray[np.int64]
    suspicion: NDArray[np.float64]
    probability: NDArray[np.float64]
    trusted: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Grades({len(self)} samples, {int(self.trusted.sum())} trusted)"


def as_inputs(x: Any) -> "Data":
    """Returns what is to be graded as `Data`: a batch, or a data set.

    Args:
        x: float ``(N, ...)`` or uint8 ``(N, ...)``, which is divided by 255, as a tensor or NumPy array; several of
            these by name, as a mapping or `Fields`; or what `petm.data.base.as_data` takes.

    Raises:
        ArgumentError: ``x`` is none of these.
        DataError: A batch is neither float nor uint8, or holds NaN or infinity.
    """
    import torch

    from petm.data.base import FieldsData, TensorData, as_data, fields_of
    from petm.data.fields import Fields

    if isinstance(x, Fields | Mapping):
        return FieldsData(x if isinstance(x, Fields) else fields_of(x), source="inputs")
    if isinstance(x, np.ndarray):
        x = torch.as_tensor(x)
    return TensorData(x, source="inputs", value_range=(0, 1)) if isinstance(x, torch.Tensor) else as_data(x)
