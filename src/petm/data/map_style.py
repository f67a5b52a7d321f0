"""Map-style data sets of others, such as one of torch or of Hugging Face's datasets, as `Data`."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from petm._internal.files import fingerprint
from petm.data.base import Data, TensorData
from petm.data.fields import Fields, Inputs, as_batch, as_floats, tensors_of
from petm.data.images import ImageProcessor
from petm.data.labels import LabelColumn, plain_label
from petm.data.reader import Tokenizer
from petm.data.samples import LABELS, Samples, parts_of
from petm.data.texts import Texts, Tokenized
from petm.errors import ArgumentError


def map_style(samples: Any, source: str, processor: Tokenizer | ImageProcessor | None) -> Data:
    """Returns a data set with a length, of items with a label, as `Data`; otherwise as `petm.data.base.as_data`."""
    return _in_memory(samples, source, processor) or MapStyle(samples, source, processor)


def _in_memory(samples: Any, source: str, processor: Tokenizer | ImageProcessor | None) -> Data | None:
    """Texts as tokens, and tokens, which are batched by their length; nothing for other samples."""
    first = parts_of(samples[0])[0] if len(samples) else None
    content = Samples(processor)
    if not content.is_text(first) and not (isinstance(first, Mapping) and "input_ids" in first):
        return None
    inputs, labels = zip(*(_labelled(samples, index) for index in range(len(samples))), strict=True)
    classes = _class_names(samples, [])
    if content.is_text(first):
        return Tokenized(Texts.of([content.text(each) for each in inputs], labels, source, classes), content.encoder)
    found = TensorData(as_batch(content.batch(inputs)), list(labels), source=source, classes=classes)
    found.processor = processor
    return found


class MapStyle(Data):
    """A map-style data set of items with a label."""

    def __init__(self, dataset: Any, source: str, processor: Tokenizer | ImageProcessor | None) -> None:
        self.dataset, self.source, self.processor = dataset, source, processor
        self._samples = Samples(processor)
        self.form = self._samples.form
        targets, names = getattr(dataset, "targets", None), [str(name) for name in getattr(dataset, "classes", ())]
        labels: object = targets
        if targets is None or not _are_labels(targets, dataset):
            labels = _column_of_labels(dataset) or [_label_in(dataset, index) for index in range(len(dataset))]
            names = _class_names(dataset, names) if targets is None else []  # a transform changes the classes
        numbers, self.classes = LabelColumn.of(labels, source).numbers(names, None, source)
        self.labels = torch.from_numpy(numbers)

    @cached_property
    def value_range(self) -> tuple[float, float]:  # type: ignore[override]
        """The least and the greatest value present, found in one pass; no limits for fields."""
        if self.form is not None:
            return self.form.value_range
        if isinstance(self.inputs([0]), Fields):
            return -float("inf"), float("inf")
        extremes = [cast(Tensor, self.inputs([index])).aminmax() for index in range(len(self))]
        return min(float(low) for low, _ in extremes), max(float(high) for _, high in extremes)

    def inputs(self, indices: Sequence[int] | Tensor) -> Inputs:
        """Returns float32 ``(n, ...)`` or fields: the inputs at ``indices``, in that order."""
        found = self._samples.batch([parts_of(self.dataset[int(index)])[0] for index in indices], self.source)
        return as_floats(found, self.source) if isinstance(found, Tensor) else found

    @cached_property
    def content(self) -> str:
        """A SHA-256 over the labels and the first and last input; reading all would cost an epoch."""
        ends = tensors_of(self.inputs([0, len(self) - 1])) if len(self) else (torch.empty(0),)
        return fingerprint((self.source, self.labels, *ends))


def _labelled(dataset: Any, index: int) -> tuple[Any, object]:
    """The input of an item and its label: a number or a name, or as it is where it is neither."""
    item = dataset[index]
    given, label, has_label = parts_of(item)
    if not has_label:
        raise ArgumentError(f"data: expected items (input, label), got {type(item).__name__}. Wrap the data set.")
    try:
        return given, plain_label(label)
    except ValueError:
        return given, label


def _label_in(dataset: Any, index: int) -> object:
    return _labelled(dataset, index)[1]


def _column_of_labels(dataset: Any) -> list[Any] | None:
    """The labels of a ``datasets.Dataset``, without reading its images."""
    name = next((name for name in LABELS if name in getattr(dataset, "column_names", ())), None)
    return None if name is None else [plain_label(label) for label in dataset[name]]


def _class_names(dataset: Any, names: list[str]) -> list[str]:
    """The class names of a ``datasets.Dataset``, or the others."""
    features = getattr(dataset, "features", None)
    known = [getattr(features.get(name), "names", None) for name in LABELS] if isinstance(features, Mapping) else []
    return next((list(found) for found in known if found), names)


def _are_labels(targets: Any, dataset: Any) -> bool:
    """Whether ``targets`` are the labels of the items: of one item of each class, and of some others."""
    values = targets.tolist() if hasattr(targets, "tolist") else list(targets)
    if len(values) != len(dataset):
        return False
    of_each = {str(value): index for index, value in enumerate(values)}
    checked = {*of_each.values(), *range(0, len(values), max(1, len(values) // 16))}
    try:
        return all(_label_in(dataset, index) == plain_label(values[index]) for index in sorted(checked))
    except ValueError:
        return False
