"""Several data sets one after the other, as one."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from petm._internal.files import fingerprint
from petm.data.base import Data, WithTargets
from petm.data.fields import Inputs, concatenate
from petm.errors import ArgumentError, DataError


class Joined(Data):
    """A view of several data sets, the samples of the first before those of the second, and so on.

    Args:
        *parts: Samples of one shape and type, of the same classes; a part without class names is taken by its labels.

    Raises:
        ArgumentError: There is no part, or one carries targets in place of labels (give those to the whole).
        DataError: The classes, or the shape or type of the samples, differ.

    Example:
        >>> from petm.data import TensorData
        >>> one, two = (TensorData(torch.zeros(n, 1, 2, 2), torch.arange(n)) for n in (2, 3))
        >>> Joined(one, two).labels.tolist()
        [0, 1, 0, 1, 2]
    """

    def __init__(self, *parts: Data) -> None:
        if not parts:
            raise ArgumentError("parts: expected at least one data set, got none.")
        if any(isinstance(part, WithTargets) for part in parts):
            raise ArgumentError(
                "parts: expected data sets with labels, got one with other targets. Join first, then give targets."
            )
        self.parts = parts
        self.labels = torch.cat([part.labels for part in parts])
        self.classes = _same_classes(parts)
        self.source = " + ".join(dict.fromkeys(part.source for part in parts))
        self._ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        self._positions = torch.arange(len(self))
        _check_form(parts)

    @cached_property
    def value_range(self) -> tuple[float, float]:  # type: ignore[override]
        """The least and the greatest value that an input of any part may take."""
        lows, highs = zip(*(part.value_range for part in self.parts if len(part)), strict=True)
        return min(lows), max(highs)

    def inputs(self, indices: Sequence[int] | Tensor) -> Inputs:
        """Returns the inputs at ``indices``, in that order, whichever part they lie in."""
        positions = self._positions[torch.as_tensor(indices, dtype=torch.int64)]
        places = torch.searchsorted(self._ends, positions, right=True)
        order, read = [], []
        for place in places.unique().tolist():
            (rows,) = (places == place).nonzero(as_tuple=True)
            order.append(rows)
            read.append(self.parts[place].inputs(positions[rows] - self._start(place)))
        if len(read) <= 1:
            return read[0] if read else self.parts[0].inputs([])
        return concatenate(read)[torch.cat(order).argsort()]

    @cached_property
    def content(self) -> str:
        """A SHA-256 over the contents of the parts, in their order."""
        return fingerprint(part.content for part in self.parts)

    def name(self, index: int) -> str:
        """Returns the name that the sample has in its part."""
        position = int(self._positions[index])
        place = int(torch.searchsorted(self._ends, position, right=True))
        return self.parts[place].name(position - self._start(place))

    def _start(self, place: int) -> int:
        return int(self._ends[place]) - len(self.parts[place])


def _same_classes(parts: Sequence[Data]) -> tuple[str, ...]:
    """The class names that all parts with names agree on."""
    named = [part for part in parts if part.classes]
    for part in named[1:]:
        if part.classes != named[0].classes:
            raise DataError(
                f"parts: expected the same classes everywhere, got {', '.join(named[0].classes)} in {named[0].source} "
                f"and {', '.join(part.classes)} in {part.source}. Open both with the same classes."
            )
    return named[0].classes if named else ()


def _check_form(parts: Sequence[Data]) -> None:
    """Checks one sample of each part."""
    first: str | None = None
    for part in parts:
        if not len(part):
            continue
        form = _form(part.inputs([0]))
        first = form if first is None else first
        if form != first:
            raise DataError(
                f"parts: expected samples of one shape and type, got {first} and {form} in {part.source}. "
                f"Read all at one size, with the same channels."
            )


def _form(sample: Inputs) -> str:
    """Shape and type of a sample, in words."""
    if isinstance(sample, Tensor):
        return f"{tuple(sample.shape[1:])} {sample.dtype}"
    return ", ".join(f"{name} {_form(tensor)}" for name, tensor in sorted(sample.items()))
