"""Data sets: labelled samples, read by index, a batch at a time."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from petm._internal.files import fingerprint
from petm.data.fields import Fields, Inputs, as_batch, as_floats, concatenate, lengths_of, tensors_of
from petm.data.images import ImageForm, ImageProcessor
from petm.data.labels import UNLABELLED, LabelColumn
from petm.data.reader import Tokenizer
from petm.data.samples import are_texts
from petm.errors import ArgumentError, DataError

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Batch(NamedTuple):
    """Some samples: inputs of the model, and targets."""

    inputs: Inputs
    """float32 ``(n, C, H, W)`` for images; tensors by name for text."""
    targets: Tensor
    """int64 ``(n,)`` labels; for a teacher's answers float32 ``(n, K)`` logits."""


class Data(Dataset[Batch], ABC):
    """Samples with labels, read by index and decoded only when read.

    A ``DataLoader`` reads whole batches (``__getitems__``) with ``collate_fn=petm.data.base.as_is``.

    Attributes:
        labels: int64 ``(N,)``; ``UNLABELLED`` (-1) where a sample has none.
        classes: ``K`` class names in the order of the labels; empty when they have no names.
        value_range: The least and the greatest value that an input may take; adversarial examples are clipped to it.
        source: Origin of the samples, for messages.
        are_pixels: Whether inputs are bytes of images, divided by 255.
        home: int64 ``(N,)``, the process that holds each sample; None where all processes can read all.
        lengths: int64 ``(N,)``, the number of tokens of each sample, by which samples are batched; None where all have
            one form.
        form: How images are read; None where that is not known.
        processor: The tokenizer or image processor that prepares the samples; None where there is none.
    """

    labels: Tensor
    classes: tuple[str, ...]
    value_range: tuple[float, float]
    source: str
    are_pixels: bool = False
    home: Tensor | None = None
    lengths: Tensor | None = None
    form: ImageForm | None = None
    processor: Tokenizer | ImageProcessor | None = None

    @abstractmethod
    def inputs(self, indices: Sequence[int] | Tensor) -> Inputs:
        """Returns the inputs at ``indices``, in that order: float32 ``(n, C, H, W)`` for images."""

    @cached_property
    @abstractmethod
    def content(self) -> str:
        """A SHA-256 that changes when the samples or their labels change."""

    def name(self, index: int) -> str:
        """Returns the name of sample ``index`` for a person: a path, or its number."""
        return str(index)

    def text(self, index: int) -> str:
        """Returns the text of sample ``index``; empty where the samples are no texts."""
        return ""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        batch = self.__getitems__([range(len(self))[index]])
        return Batch(batch.inputs[0], batch.targets[0])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return Batch(self.inputs(indices), self.labels[torch.as_tensor(indices, dtype=torch.int64)])

    def subset(self, indices: Sequence[int] | Tensor) -> "Data":
        """Returns a view of the samples at ``indices``, in that order; a bool mask ``(N,)`` keeps where it is true."""
        return Subset(self, _as_indices(indices))

    def split(self, shares: Sequence[float], *, seed: int = 0) -> tuple["Data", ...]:
        """Returns disjoint random views that hold the given shares of the samples of every class.

        Args:
            shares: Positive numbers with a sum of at most 1.
            seed: Seed of the random choice.

        Raises:
            ArgumentError: ``shares`` breaks its rule.
        """
        if not (all(share > 0 for share in shares) and sum(shares) <= 1 + 1e-9):
            raise ArgumentError(f"shares: expected positive numbers with a sum of at most 1, got {tuple(shares)}.")
        generator = torch.Generator().manual_seed(seed)
        parts: list[list[Tensor]] = [[] for _ in shares]
        for label in torch.unique(self.labels):
            members = (self.labels == label).nonzero().flatten()
            members = members[torch.randperm(len(members), generator=generator)]
            ends = (torch.tensor(shares, dtype=torch.float64).cumsum(0) * len(members)).round().long().tolist()
            for part, start, end in zip(parts, [0, *ends], ends, strict=False):
                part.append(members[start:end])
        return tuple(self.subset(torch.cat(part).sort().values) for part in parts)

    def in_memory(self, budget: int = 1 << 30) -> "Data":
        """Returns the same samples decoded once and held as tensors, or itself where that exceeds ``budget`` bytes."""
        if not len(self) or isinstance(self, TensorData):
            return self
        first = self.inputs([0])
        if isinstance(first, Fields) or first.nbytes * len(self) > budget:  # tokens are in memory already
            return self
        images = first.new_empty((len(self), *first.shape[1:]))
        for start in range(0, len(self), 1024):
            stop = min(start + 1024, len(self))
            images[start:stop] = cast(Tensor, self.inputs(range(start, stop)))
        held = TensorData(images, self.labels, classes=self.classes, source=self.source, value_range=self.value_range)
        held.names = tuple(self.name(index) for index in range(len(self)))
        held.content, held.are_pixels, held.form = self.content, self.are_pixels, self.form
        held.processor = self.processor
        return held


class TensorData(Data):
    """Samples held in memory.

    Args:
        images: float ``(N, ...)``, or uint8 ``(N, ...)`` that is divided by 255 as it is read; or `Fields`, such as
            tokens, which are read as they are.
        labels: int64 ``(N,)``; or class numbers or names in an array, a list or a pandas column, also as one-hot rows
            ``(N, K)``. None means unlabelled.
        classes: Class names. Absent, labels that are names are numbered in their order.
        source: Origin of the samples, for messages.
        value_range: As in `Data`; None means 0 and 1 for uint8, the least and greatest value present for floats, and
            no limits for fields.

    Raises:
        DataError: Images are neither float nor uint8, lengths differ, a label is no class number or name, or a value
            is NaN or infinite.
    """

    names: tuple[str, ...] = ()

    def __init__(
        self,
        images: Inputs,
        labels: object = None,
        *,
        classes: Sequence[str] = (),
        source: str = "tensors",
        value_range: tuple[float, float] | None = None,
    ) -> None:
        self.images, self.classes, self.source = images, tuple(classes), source
        if isinstance(images, Tensor):
            as_floats(images[:0], source)  # which checks the dtype
            self.are_pixels = images.dtype == torch.uint8
        if isinstance(labels, Tensor) and labels.ndim == 1 and labels.dtype in _INTEGERS:
            self.labels = labels.to(torch.int64)
        elif labels is not None:
            numbers, self.classes = LabelColumn.of(labels, source).numbers(self.classes, None, source)
            self.labels = torch.from_numpy(numbers)
        else:
            self.labels = torch.full((len(images),), UNLABELLED)
        if self.labels.shape != (len(images),):
            got = f"labels of shape {tuple(self.labels.shape)}"
            raise DataError(f"{source}: expected one label for each of {len(images)} samples, got {got}.")
        check_finite(images, source)
        self.lengths = lengths_of(images)
        self.value_range = value_range or _values_in(images)

    def inputs(self, indices: Sequence[int] | Tensor) -> Inputs:
        """Returns float32 ``(n, C, H, W)`` or fields: the inputs at ``indices``, in that order."""
        images = self.images[torch.as_tensor(indices, dtype=torch.int64)]
        return images if isinstance(images, Fields) else as_floats(images, self.source)

    @cached_property
    def content(self) -> str:
        """A SHA-256 over images and labels."""
        named = sorted(self.images.items()) if isinstance(self.images, Fields) else [("", self.images)]
        return fingerprint((*(part for pair in named for part in pair), self.labels))

    def name(self, index: int) -> str:
        """Returns the name that the sample had where it was read, or its number."""
        return self.names[index] if self.names else str(index)


def _values_in(images: Inputs) -> tuple[float, float]:
    if isinstance(images, Fields):
        return -float("inf"), float("inf")
    if not images.is_floating_point() or not images.numel():
        return 0.0, 1.0
    return float(images.min()), float(images.max())


class Subset(Data):
    """A view of some samples of another data set."""

    def __init__(self, data: Data, indices: Tensor) -> None:
        self.data, self.indices = data, indices
        self.labels = data.labels[indices]
        self.classes, self.value_range, self.source = data.classes, data.value_range, data.source
        self.are_pixels, self.form, self.processor = data.are_pixels, data.form, data.processor
        self.home = None if data.home is None else data.home[indices]
        self.lengths = None if data.lengths is None else data.lengths[indices]

    def inputs(self, indices: Sequence[int] | Tensor) -> Inputs:
        """Returns the inputs at ``indices`` of this view, in that order."""
        return self.data.inputs(self.indices[torch.as_tensor(indices, dtype=torch.int64)])

    @cached_property
    def content(self) -> str:
        """A SHA-256 over the whole data set's content and the chosen indices."""
        return fingerprint((self.data.content, self.indices))

    def name(self, index: int) -> str:
        """Returns the sample's name in the data set that this is a view of."""
        return self.data.name(int(self.indices[index]))

    def text(self, index: int) -> str:
        """Returns the sample's text in the data set that this is a view of."""
        return self.data.text(int(self.indices[index]))


class WithTargets(Subset):
    """A view of the same inputs with other targets, such as a teacher's logits.

    Args:
        data: Samples whose inputs are read.
        targets: ``(N, ...)``, read in place of the labels.
        origin: What made the targets, in words or as a hash; part of `content`.
    """

    def __init__(self, data: Data, targets: Tensor, *, origin: str) -> None:
        super().__init__(data, torch.arange(len(data)))
        self.targets, self.origin = targets, origin

    def subset(self, indices: Sequence[int] | Tensor) -> Data:
        """Returns a view of the samples at ``indices`` and their targets."""
        chosen = _as_indices(indices)
        return WithTargets(self.data.subset(chosen), self.targets[chosen], origin=self.origin)

    def in_memory(self, budget: int = 1 << 30) -> Data:
        """Returns the same samples decoded once, with the same targets."""
        return WithTargets(self.data.in_memory(budget), self.targets, origin=self.origin)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return Batch(self.inputs(indices), self.targets[torch.as_tensor(indices, dtype=torch.int64)])

    @cached_property
    def content(self) -> str:
        """A SHA-256 over the data set's content and the origin of the targets, whose last bits vary by machine."""
        return fingerprint((self.data.content, self.origin))


class Joined(Data):
    """A view of several data sets, the samples of the first before those of the second, and so on.

    Args:
        *parts: Samples of one shape and type, of the same classes; a part without class names keeps its labels.

    Raises:
        ArgumentError: There is no part, or one has targets in place of labels.
        DataError: The classes, or the shape or type of the samples, differ.

    Example:
        >>> one, two = (TensorData(torch.zeros(n, 1, 2, 2), torch.arange(n)) for n in (2, 3))
        >>> Joined(one, two).labels.tolist()
        [0, 1, 0, 1, 2]
    """

    def __init__(self, *parts: Data) -> None:
        if not parts:
            raise ArgumentError("parts: expected at least one data set, got none.")
        if any(isinstance(part, WithTargets) for part in parts):
            got = "one with other targets. Join first, then give targets."
            raise ArgumentError(f"parts: expected data sets with labels, got {got}")
        self.parts = parts
        self.labels = torch.cat([part.labels for part in parts])
        lengths_of_parts = [part.lengths for part in parts if part.lengths is not None]
        self.lengths = torch.cat(lengths_of_parts) if len(lengths_of_parts) == len(parts) else None
        self.classes = next((part.classes for part in parts if part.classes), ())
        self.source = " + ".join(dict.fromkeys(part.source for part in parts))
        self.are_pixels = all(part.are_pixels for part in parts)
        self.form, self.processor = parts[0].form, parts[0].processor
        lengths = torch.tensor([len(part) for part in parts])
        self._ends = lengths.cumsum(0)
        self._starts = self._ends - lengths
        self._positions = torch.arange(len(self))
        form = next((_form(part) for part in parts if len(part)), "")
        for part in parts:
            if part.classes not in ((), self.classes):
                raise DataError(
                    f"parts: expected the same classes everywhere, got {', '.join(self.classes)} "
                    f"and, in {part.source}, {', '.join(part.classes)}. Open all with the same classes."
                )
            if len(part) and _form(part) != form:
                raise DataError(
                    f"parts: expected samples of one shape and type, got {form} and {_form(part)} in {part.source}. "
                    f"Read all at one size, with the same channels."
                )

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
            read.append(self.parts[place].inputs(positions[rows] - self._starts[place]))
        if len(read) <= 1:
            return read[0] if read else self.parts[0].inputs([])
        return concatenate(read)[torch.cat(order).argsort()]

    @cached_property
    def content(self) -> str:
        """A SHA-256 over the contents of the parts, in their order."""
        return fingerprint(part.content for part in self.parts)

    def name(self, index: int) -> str:
        """Returns the name that the sample has in its part."""
        part, row = self._found(index)
        return part.name(row)

    def text(self, index: int) -> str:
        """Returns the text that the sample has in its part."""
        part, row = self._found(index)
        return part.text(row)

    def _found(self, index: int) -> tuple[Data, int]:
        position = int(self._positions[index])
        place = int(torch.searchsorted(self._ends, position, right=True))
        return self.parts[place], position - int(self._starts[place])


def _form(data: Data) -> str:
    """Shape and dtype of the first sample, or of each of its fields."""
    sample = data.inputs([0])
    named = [("", sample)] if isinstance(sample, Tensor) else sorted(sample.items())
    return ", ".join(f"{name} {tuple(tensor.shape[1:])} {tensor.dtype}".lstrip() for name, tensor in named)


def as_data(samples: Any, *, source: str = "data", processor: Tokenizer | ImageProcessor | None = None) -> Data:
    """Returns ``samples`` as `Data`: itself, a pair of inputs and labels, or any map-style data set with labels.

    Args:
        samples: `Data`; or ``(inputs, labels)`` tensors or NumPy arrays, the inputs also as a mapping of these by name
            or a list of texts, and the labels as of `TensorData`; or a data set with a length, such as a
            ``torch.utils.data.Dataset`` of items ``(input, label)``, or a ``datasets.Dataset`` of items by name with
            ``label`` or ``labels`` among them. Inputs other than texts and tokens are read lazily. Labels are those of
            the items: the data set's ``targets`` where an item of each class has its target as label, or else from one
            pass.
        source: Origin of the samples, for messages.
        processor: Prepares texts, or images of Pillow.

    Raises:
        ArgumentError: ``samples`` is none of these.
        DataError: A label is no class number or name.
    """
    if isinstance(samples, Data):
        return samples
    if isinstance(samples, tuple) and len(samples) == 2:
        inputs, labels = samples
        if isinstance(inputs, Tensor | np.ndarray | Fields | Mapping):
            return TensorData(as_batch(inputs), labels, source=source)
        if are_texts(inputs):
            samples = list(zip(inputs, labels.tolist() if hasattr(labels, "tolist") else labels, strict=True))
    named = hasattr(samples, "__getitem__") and hasattr(samples, "__len__")
    if named and not isinstance(samples, Tensor | str | bytes | Mapping):
        from petm.data.map_style import map_style

        return map_style(samples, source, processor)
    wanted = "petm Data, an (inputs, labels) pair of tensors or a map-style dataset"
    step = " Pass its dataset." if hasattr(samples, "dataset") else ""
    raise ArgumentError(f"data: expected {wanted}, got {type(samples).__name__}.{step}")


def _as_indices(chosen: Sequence[int] | Tensor) -> Tensor:
    """int64 indices; those of the true values of a bool mask."""
    chosen = torch.as_tensor(chosen)
    return chosen.nonzero().flatten() if chosen.dtype == torch.bool else chosen.to(torch.int64)


def as_is(batch: Any) -> Any:
    """Returns its argument, a `Batch`: the ``collate_fn`` for data that reads whole batches."""
    return batch


def check_finite(inputs: Inputs, source: str) -> None:
    """Raises DataError when a sample of ``inputs``, ``(N, ...)``, holds NaN or a value that is infinite in float32."""
    finite = [torch.isfinite(tensor.float()) for tensor in tensors_of(inputs) if tensor.is_floating_point()]
    if all(bool(each.all()) for each in finite):
        return
    bad = torch.stack([(~each).flatten(1).any(1) for each in finite]).any(0).nonzero().flatten()
    raise DataError(
        f"{source}: expected finite values, got NaN or infinity in {len(bad)} of {len(inputs)} samples "
        f"(the first is sample {int(bad[0])}). Remove or repair them."
    )
