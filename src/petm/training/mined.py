"""What every source of errors returns."""

from typing import NamedTuple

from petm.data.base import Data
from petm.training.error_set import ErrorSet


class Mined(NamedTuple):
    """Data, and in them the samples that stand for the base model's errors."""

    data: Data
    """``N`` labelled samples: those that were given, or more."""
    errors: ErrorSet
    """Positions in ``data``."""
