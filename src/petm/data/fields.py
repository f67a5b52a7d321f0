"""Inputs of several tensors by name, as the models of transformers take them; and what holds for all inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from petm.errors import ArgumentError, DataError


class Fields:
    """A batch of ``N`` samples as tensors by name: ``input_ids``, ``attention_mask``, and so on.

    Along its first dimension it is used like one tensor: it has a length, is indexed by numbers, slices, masks and
    tensors, and moves to a device as a whole. By a name it gives that tensor, and ``model(**fields)`` calls a model.

    Args:
        tensors: ``(N, ...)`` each, at least one.

    Raises:
        ArgumentError: There is no tensor, or they have different lengths.

    Example:
        >>> batch = Fields({"input_ids": torch.tensor([[5, 2], [7, 2]]), "attention_mask": torch.ones(2, 2)})
        >>> len(batch), batch[1:]["input_ids"].tolist()
        (2, [[7, 2]])
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        lengths = {name: tensor.shape[0] if tensor.ndim else None for name, tensor in self._tensors.items()}
        if not lengths or None in lengths.values() or len(set(lengths.values())) > 1:
            raise ArgumentError(f"inputs: expected tensors (N, ...) of one length by name, got {self}.")

    def keys(self) -> Iterator[str]:
        """Returns the names."""
        return iter(self._tensors)

    def values(self) -> Iterator[Tensor]:
        """Returns the tensors."""
        return iter(self._tensors.values())

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Returns names and tensors."""
        return iter(self._tensors.items())

    def __len__(self) -> int:
        return int(next(self.values()).shape[0])

    @property
    def shape(self) -> torch.Size:
        """``(N,)``: what all tensors have in common."""
        return next(self.values()).shape[:1]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.values())

    @overload
    def __getitem__(self, index: str) -> Tensor: ...
    @overload
    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> "Fields": ...
    def __getitem__(self, index: Any) -> "Tensor | Fields":
        """Returns the tensor of a name; or the samples at an index, a number taking one as ``(...)`` without ``N``."""
        if isinstance(index, str):
            return self._tensors[index]
        if isinstance(index, int):  # of one sample, kept as a batch: tensors by name have no other form
            index = slice(index, index + 1 or None)
        return self.map(lambda tensor: tensor[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Fields":
        """Returns the same names with every tensor changed."""
        return Fields({name: change(tensor) for name, tensor in self.items()})

    def to(self, *arguments: Any, **keywords: Any) -> "Fields":
        """Returns the batch on another device, as `torch.Tensor.to`."""
        return self.map(lambda tensor: tensor.to(*arguments, **keywords))

    def __repr__(self) -> str:
        return f"Fields({', '.join(f'{name} {tuple(tensor.shape)}' for name, tensor in self._tensors.items())})"


Inputs: TypeAlias = Tensor | Fields
"""What goes into a model: one tensor ``(N, ...)``, or several by name."""


def as_batch(x: Any) -> Inputs:
    """Returns a batch that a caller gives: a tensor as it is, a mapping as `Fields`, NumPy arrays as tensors.

    Raises:
        ArgumentError: It is none of these, or the tensors have different lengths.
    """
    if isinstance(x, Tensor | Fields):
        return x
    if isinstance(x, np.ndarray):
        return torch.from_numpy(x)
    if isinstance(x, Mapping) and all(isinstance(value, Tensor | np.ndarray) for value in x.values()):
        return Fields({name: torch.as_tensor(value) for name, value in x.items()})
    raise ArgumentError(f"inputs: expected a tensor or tensors by name, got {type(x).__name__}.")


def tensors_of(x: Inputs) -> tuple[Tensor, ...]:
    """Returns the tensors of a batch."""
    return (x,) if isinstance(x, Tensor) else tuple(x.values())


def describe(x: Inputs) -> str:
    """Returns the shape of a batch in words: of its tensor, or of each by name."""
    if isinstance(x, Tensor):
        return str(tuple(x.shape))
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in x.items())


def filled_up(x: Inputs, multiple: int = 16) -> Inputs:
    """Returns a batch in which the last sample is repeated until their number is a multiple of ``multiple``.

    Fewer than that stay as they are. For batches of ever other sizes: on a CPU the library of convolutions (oneDNN)
    keeps the code that it makes for each size, in all up to 1,024 pieces, which may be hundreds of megabytes.

    Args:
        x: At least one sample.
        multiple: At least 1.
    """
    n = len(x)
    return x if n < multiple or n % multiple == 0 else x[torch.arange(n + -n % multiple).clamp(max=n - 1)]


def concatenate(batches: Sequence[Inputs]) -> Inputs:
    """Returns the batches as one; all are tensors, or all have the same names.

    Raises:
        ArgumentError: They are not.
    """
    tensors = [batch for batch in batches if isinstance(batch, Tensor)]
    if len(tensors) == len(batches):
        return torch.cat(tensors)
    fields = [batch for batch in batches if isinstance(batch, Fields)]
    names = {tuple(sorted(batch.keys())) for batch in fields}
    if tensors or len(names) != 1:
        raise ArgumentError(f"inputs: expected batches of one form, got {'; '.join(map(describe, batches))}.")
    return Fields({name: torch.cat([batch[name] for batch in fields]) for name, _ in fields[0].items()})


def one_tensor(x: Inputs, purpose: str) -> Tensor:
    """Returns inputs that are one tensor, for what can be done to such only.

    Args:
        x: A batch.
        purpose: What is to be done, in words for the message.

    Raises:
        DataError: They are several by name.
    """
    if isinstance(x, Tensor):
        return x
    raise DataError(f"inputs: expected one tensor {purpose}, got {describe(x)}.")


def width_of(x: Inputs) -> int:
    """Returns how many numbers a sample has."""
    return sum(tensor[:1].numel() for tensor in tensors_of(x))
