"""Class names: which label a sample has when the model already has an order of its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from petm.data.base import UNLABELLED
from petm.errors import DataError

SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "dev", "calibration", "test", "testing"})
"""Names of parts of a data set, which are never taken for classes."""


def match_classes(
    labels: Tensor, names: Sequence[str], classes: Sequence[str] | None, source: str
) -> tuple[Tensor, tuple[str, ...]]:
    """Returns labels and class names in the order of ``classes``, matched by name where the data have names.

    Args:
        labels: int64 ``(N,)``, indices into ``names``; ``UNLABELLED`` stays.
        names: The data's own class names; empty when they have none, and the labels then count in ``classes``.
        classes: ``K`` expected class names; absent or empty means the data's own.
        source: Where the data come from, for messages.

    Returns:
        int64 ``(N,)`` labels, and the class names that they index.

    Raises:
        DataError: A sample has a class that is not among ``classes``, or a label outside its range.
    """
    names, classes = tuple(names), tuple(classes or ())
    known = names or classes
    present = [label for label in torch.unique(labels).tolist() if label != UNLABELLED]
    bad = [label for label in present if label < 0 or (known and label >= len(known))]
    if bad:
        rule = f"labels from 0 to {len(known) - 1}" if known else "labels of at least 0"
        raise DataError(
            f"{source}: expected {rule} (or {UNLABELLED} for none), got {bad[0]}. "
            f"Check the labels, and the class names if there are any."
        )
    if not names or not classes or names == classes:
        return labels, known
    unknown = sorted({names[label] for label in present} - set(classes))
    if unknown:
        raise DataError(
            f"{source}: expected the classes {_enumerate(classes)}, got {_enumerate(unknown)} as well. "
            f"Rename or remove what the model does not know."
        )
    order = torch.tensor([classes.index(name) if name in classes else UNLABELLED for name in names] + [UNLABELLED])
    return order[labels], classes


def _enumerate(names: Sequence[str], limit: int = 12) -> str:
    """The names with commas between, shortened where they are many."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
