"""Inputs of several tensors by name, as transformers' models take them; and functions for inputs of either kind."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast, overload

import numpy as np
import torch
from torch import Tensor

from petm.errors import ArgumentError, DataError


class Fields:
    """A batch of ``N`` samples as tensors by name: ``input_ids``, ``attention_mask``, and so on.

    Along its first dimension it is used like one tensor: it has a length, is indexed by numbers, slices, masks and
    tensors, and moves to a device as a whole. A name as index returns that tensor; ``model(**fields)`` calls a model.

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
        """``(N,)``, the dimension that all tensors share."""
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
        """Returns the tensor of a name, or the samples at an index; a number returns a batch of one."""
        if isinstance(index, str):
            return self._tensors[index]
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        return self.map(lambda tensor: tensor[index])

    def cut(self, place: slice) -> "Fields":
        """Returns the same samples with the tokens at ``place`` alone, in every tensor ``(N, L, ...)``."""
        width = width_of(self)
        wide = {name: tensor.ndim > 1 and tensor.shape[1] == width for name, tensor in self.items()}
        return Fields({name: tensor[:, place] if wide[name] else tensor for name, tensor in self.items()})

    def place_of(self, length: int) -> slice:
        """Returns the place of ``length`` tokens: the first, or the last ones where padding stands before a text."""
        mask, width = self["attention_mask"], width_of(self)
        left = bool((mask[:, 0] == 0).any() and mask.any())
        return slice(width - length, width) if left else slice(0, length)

    def masked(self, lengths: Tensor) -> "Fields":
        """Returns the same tokens with a mask of ``lengths``, int64 ``(N,)``, on the side where the texts stand."""
        held, width = self["attention_mask"], width_of(self)
        places = torch.arange(width, device=held.device)
        places = places if self.place_of(1).start == 0 else places.flip(0)
        mask = places < lengths.to(held.device).unsqueeze(1)
        return Fields({**self._tensors, "attention_mask": mask.to(held.dtype)})

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


def in_parts(x: Inputs, most: int) -> list[Inputs]:
    """Returns a batch in parts of at most so many samples, of about the same size, without a copy."""
    n, count = len(x), -(-len(x) // most)
    return [x[n * part // count : n * (part + 1) // count] for part in range(count)]


def as_batch(x: Any) -> Inputs:
    """Returns a caller's batch: a tensor as it is, a mapping as `Fields`, a NumPy array as a tensor.

    Raises:
        ArgumentError: It is none of these, or the tensors have different lengths.
    """
    if isinstance(x, Tensor) and x.layout != torch.strided:
        raise ArgumentError(f"inputs: expected a dense tensor, got one of layout {x.layout}. Pass x.to_dense().")
    if isinstance(x, Tensor | Fields):
        return x
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "biuf":
            raise ArgumentError(f"inputs: expected an array of numbers, got {x.dtype}. Convert it.")
        # PyTorch knows one byte order, no views that go backwards, and floats of at most 64 bits.
        dtype = np.dtype(np.float64) if x.dtype.kind == "f" and x.dtype.itemsize > 8 else x.dtype.newbyteorder("=")
        with np.errstate(over="ignore"):  # an overflow becomes infinite, and is refused by name later
            return torch.from_numpy(np.ascontiguousarray(x, dtype))
    if isinstance(x, Mapping) and all(isinstance(value, Tensor | np.ndarray) for value in x.values()):
        return Fields({name: cast(Tensor, as_batch(value)) for name, value in x.items()})
    raise ArgumentError(f"inputs: expected a tensor or tensors by name, got {type(x).__name__}.")


def as_floats(x: Tensor, source: str) -> Tensor:
    """Returns values as float32: floats as they are, bytes (uint8) as pixels from 0 to 255, divided by 255.

    Raises:
        DataError: They are of another dtype, whose range is unknown.
    """
    if x.dtype == torch.uint8:
        return x.float().div_(255)
    if not x.is_floating_point():
        raise DataError(
            f"{source}: expected inputs of dtype float or uint8, got {x.dtype}. "
            f"Convert pixels from 0 to 255 to uint8, other numbers to float."
        )
    return x.float()


def width_of(inputs: Fields) -> int:
    """Returns ``L``, the number of tokens to which texts are padded."""
    held = dict(inputs.items())
    return int((held["attention_mask"] if "attention_mask" in held else held["input_ids"]).shape[1])


def lengths_of(inputs: Inputs) -> Tensor | None:
    """Returns the number of tokens of each text by its attention mask, int64 ``(N,)``.

    Nothing is returned for other inputs, and where padding is neither behind all texts nor before all of them.
    """
    mask = dict(inputs.items()).get("attention_mask") if isinstance(inputs, Fields) else None
    if mask is None or mask.ndim != 2 or not mask.shape[1]:
        return None
    real = mask != 0
    real = real | ~real.any(1, keepdim=True)  # a row without any counts as whole
    if bool(real[:, 0].all()):
        return mask.shape[1] - real.flip(1).int().argmax(1)
    return mask.shape[1] - real.int().argmax(1) if bool(real[:, -1].all()) else None


def paddings(inputs: Inputs) -> list[Inputs]:
    """Returns texts in both forms that their masks may have: without padding, and with some in all but the first.

    Many models make a mask only where there is padding. A trial must see both, whatever the texts at hand have. Other
    inputs are returned as they are.
    """
    if not isinstance(inputs, Fields) or lengths_of(inputs) is None:
        return [inputs]
    width, rows = width_of(inputs), torch.arange(len(inputs))
    return [inputs.masked(torch.full_like(rows, width)), inputs.masked(width - rows % width)]


def padded_lengths(lengths: Tensor) -> Tensor:
    """Returns lengths rounded up to 8, 12, 16, 24, 32, 48, ...: few forms of a batch, and little padding in it.

    What a length is rounded to depends on nothing else, so that any part of a data set is batched alike.
    """
    power = 2 ** lengths.clamp(min=8).double().log2().ceil()
    return power.where(lengths > 0.75 * power, 0.75 * power).clamp(min=8).long()


def length_groups(lengths: Tensor | None, n: int) -> list[Tensor]:
    """Returns the positions of ``n`` samples by their padded length, the longest first; without lengths all in one."""
    if lengths is None:
        return [torch.arange(n)]
    padded = padded_lengths(lengths)
    found = [(padded == length).nonzero().flatten() for length in padded.unique().flip(0).tolist()]
    return found or [torch.arange(0)]


def shared_place(inputs: Inputs) -> slice | None:
    """Returns where the tokens of all texts of a batch stand, up to a padded length; nothing where that is everywhere.

    Padding may be on either side.
    """
    lengths = lengths_of(inputs)
    if not isinstance(inputs, Fields) or lengths is None or not len(lengths):
        return None
    width, kept = width_of(inputs), int(padded_lengths(lengths.max()))
    return inputs.place_of(kept) if kept < width else None


def trimmed(inputs: Inputs) -> Inputs:
    """Returns a batch of texts without most of the padding that they share."""
    place = shared_place(inputs)
    return inputs.cut(place) if isinstance(inputs, Fields) and place else inputs


def tensors_of(x: Inputs) -> tuple[Tensor, ...]:
    """Returns the tensors of a batch."""
    return (x,) if isinstance(x, Tensor) else tuple(x.values())


def describe(x: Inputs) -> str:
    """Returns the shape of a batch as text: of its tensor, or of each by name."""
    if isinstance(x, Tensor):
        return str(tuple(x.shape))
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in x.items())


def filled_up(x: Inputs, multiple: int = 16) -> Inputs:
    """Returns a batch, its last sample repeated until ``N`` is a multiple; fewer than ``multiple`` stay as they are.

    On a CPU, oneDNN keeps up to 1,024 kernels for sizes of batches, which may need hundreds of megabytes.
    """
    n = len(x)
    return x if n < multiple or n % multiple == 0 else x[torch.arange(n + -n % multiple).clamp(max=n - 1)]


def concatenate(batches: Sequence[Inputs]) -> Inputs:
    """Returns the batches as one; raises ArgumentError unless all are tensors, or all have the same names."""
    tensors = [batch for batch in batches if isinstance(batch, Tensor)]
    if len(tensors) == len(batches):
        return torch.cat(tensors)
    fields = [batch for batch in batches if isinstance(batch, Fields)]
    names = {tuple(sorted(batch.keys())) for batch in fields}
    if tensors or len(names) != 1:
        raise ArgumentError(f"inputs: expected batches of one form, got {'; '.join(map(describe, batches))}.")
    return Fields({name: torch.cat([batch[name] for batch in fields]) for name, _ in fields[0].items()})


def one_tensor(x: Inputs, purpose: str) -> Tensor:
    """Returns inputs that are one tensor; raises DataError, with ``purpose`` in the message, where they are fields."""
    if isinstance(x, Tensor):
        return x
    raise DataError(f"inputs: expected one tensor {purpose}, got {describe(x)}.")
