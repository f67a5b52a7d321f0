"""A logistic regression of errors over several columns of numbers, which combines them into one suspicion."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from petm._internal.records import Record
from petm.errors import BundleError

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-300
_ROUNDING = 1e-12
"""Share of its mean up to which the spread of a column may be rounding alone."""


@dataclass(frozen=True)
class Weighting:
    """A logistic regression over columns: the sum of their weighted, standardised values; all are ``(J,)``.

    Attributes:
        weights: Weight of each column.
        centres: Value that is subtracted from it.
        scales: Number that it is then divided by, above 0.
        log_odds: Whether a column in [0, 1] is first replaced by its log-odds.
    """

    weights: tuple[float, ...]
    centres: tuple[float, ...]
    scales: tuple[float, ...]
    log_odds: tuple[bool, ...]

    def of(self, columns: Sequence[ArrayLike]) -> NDArray[np.float64]:
        """Returns the log-odds of an error up to a constant, float64 ``(N,)``, from columns ``(N,)``."""
        values = (as_log_odds(each) if odds else each for each, odds in zip(columns, self.log_odds, strict=True))
        parts = zip(values, self.weights, self.centres, self.scales, strict=True)
        total: NDArray[np.float64] = sum(
            (weight * (np.asarray(column, np.float64) - centre) / scale for column, weight, centre, scale in parts),
            np.zeros(()),
        )
        return total

    def as_tensor(self, columns: "Sequence[Tensor]") -> "Tensor":
        """Returns the same, float64 ``(N,)``, in operations that `torch.export` and ONNX support."""
        import torch

        def prepared(column: "Tensor", odds: bool) -> "Tensor":
            if not odds:
                return column
            return column.clamp_min(_TINY).log() - torch.log1p(-column.clamp_max(1 - torch.finfo(column.dtype).eps))

        parts = zip(columns, self.log_odds, self.weights, self.centres, self.scales, strict=True)
        return torch.stack([w * (prepared(column, odds) - centre) / s for column, odds, w, centre, s in parts]).sum(0)

    @classmethod
    def from_json(cls, record: Record, columns: int) -> "Weighting":
        """Returns the regression over so many columns; raises BundleError where an entry breaks its rule."""
        weights, centres, scales = (record.numbers(name) for name in ("weights", "centres", "scales"))
        odds = record.content.get("log_odds")
        flags = [each for each in odds if isinstance(each, bool)] if isinstance(odds, list) else []
        if not len(weights) == len(centres) == len(scales) == len(flags) == columns or min(scales) <= 0:
            raise BundleError(f"{record.place}: expected {columns} numbers each, scales above 0, got {len(weights)}.")
        return cls(tuple(weights), tuple(centres), tuple(scales), tuple(flags))


def as_log_odds(column: ArrayLike) -> NDArray[np.float64]:
    """Returns ``ln(s / (1 - s))`` of values in [0, 1], finite."""
    values = np.asarray(column, np.float64)
    found: NDArray[np.float64] = np.log(np.maximum(values, _TINY))
    return found - np.log1p(-np.minimum(values, 1 - np.finfo(np.float64).eps))


def regression(
    columns: Sequence[ArrayLike], wrong: NDArray[np.bool_], log_odds: Sequence[bool]
) -> tuple[Weighting, float]:
    """Returns a logistic regression of errors over standardised columns ``(N,)``, and its intercept.

    The columns of probabilities enter as ``log_odds``. A column that is constant up to rounding has no weight. The
    penalty on the squared weights is that of scikit-learn's default.
    """
    from sklearn.linear_model import LogisticRegression

    raw = [
        as_log_odds(each) if odds else np.asarray(each, np.float64)
        for each, odds in zip(columns, log_odds, strict=True)
    ]
    centres = tuple(float(each.mean()) for each in raw)
    spreads = zip((float(each.std(ddof=1)) for each in raw), centres, strict=True)
    scales = tuple(spread if spread > _ROUNDING * abs(centre) else 1.0 for spread, centre in spreads)
    table = np.stack([(each - at) / by for each, at, by in zip(raw, centres, scales, strict=True)], 1)
    model = LogisticRegression(max_iter=1000).fit(table, wrong)
    weighting = Weighting(tuple(map(float, model.coef_[0])), centres, scales, tuple(log_odds))
    return weighting, float(model.intercept_[0])
