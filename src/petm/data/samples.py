"""Single samples of any kind: an array, an image, a path, a text, or several values by name; and batches of them."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from petm.data.fields import Inputs, as_batch
from petm.data.images import ImageForm, ImageProcessor, form_of, is_sample
from petm.data.labels import enumerated, refuse_faults
from petm.data.pixels import encoded
from petm.data.reader import Reader, Tokenizer, pad_batch
from petm.data.sources import TEXT, Columns, Row, as_content
from petm.errors import ArgumentError, DataError

LABELS = ("label", "labels", "label_ids")
"""Names of the label among the values of an item, as Hugging Face has them."""
TAKEN = "arrays, tensors, paths, images of Pillow, texts, or a data set or DataLoader of these"


class Parts(NamedTuple):
    """What a data set gives for one sample."""

    given: Any
    label: object = None
    has_label: bool = False


def parts_of(item: Any) -> Parts:
    """Returns the input and the label of an item: ``(input, label)``, values by name, or the input alone."""
    if isinstance(item, Mapping):
        label = [item[name] for name in LABELS if name in item]
        rest = {name: value for name, value in item.items() if name not in LABELS}
        return Parts(rest, label[0], True) if label else Parts(rest)
    if isinstance(item, tuple | list):
        return Parts(item[0], item[1], True) if len(item) > 1 else Parts(item[0] if item else None)
    return Parts(item)


def are_texts(x: Any) -> bool:
    """Returns whether samples are texts: a list, an array or a pandas column of them."""
    values = x[:1].tolist() if hasattr(x, "tolist") and len(getattr(x, "shape", ())) == 1 else x
    return isinstance(values, list | tuple) and len(values) > 0 and isinstance(values[0], str)


class Samples:
    """Makes one batch of a model's inputs of several samples.

    Args:
        processor: The tokenizer or image processor; None where there is none, or none is known.
        columns: The name of the text among values by name, and of others that belong to it; None takes the only one.
        length: As of `petm.data.reader.Reader`.
        **form: As of `petm.data.images.form_of`, in place of a processor.
    """

    def __init__(
        self,
        processor: Tokenizer | ImageProcessor | None = None,
        *,
        columns: Columns | None = None,
        length: int | None = None,
        **form: Any,
    ) -> None:
        self._processor, self._columns, self._length = processor, columns, length
        self._settings: Any = {"processor": processor} if isinstance(processor, ImageProcessor) else form

    @property
    def encoder(self) -> Tokenizer:
        """The tokenizer; raises ArgumentError where there is none."""
        if isinstance(self._processor, Tokenizer):
            return self._processor
        raise ArgumentError(
            "processor: expected a tokenizer, as the samples are texts, got none. Pass processor=tokenizer, or tokens."
        )

    @property
    def form(self) -> ImageForm | None:
        """How images are read, by an image processor; None without one."""
        return form_of(b"", "", **self._settings) if self._settings.get("processor") else None

    @cached_property
    def _reader(self) -> Reader:
        if isinstance(self._processor, Tokenizer):
            return Reader(encoder=self._processor, length=self._length)
        return Reader(**self._settings)

    def is_text(self, given: Any) -> bool:
        """Returns whether an input is a text, or values by name of which one is, and none are tokens."""
        if isinstance(given, Mapping):
            return "input_ids" not in given and any(isinstance(value, str) for value in given.values())
        return isinstance(given, str)

    def text(self, given: Any) -> str:
        """Returns an input as one text; raises DataError where several values are texts."""
        if not isinstance(given, Mapping):
            return str(given)
        texts = [name for name, value in given.items() if isinstance(value, str)]
        first, *others = (self._columns,) if isinstance(self._columns, str) else self._columns or ("",)
        if first not in given:
            first = TEXT if TEXT in texts else texts[0]
            if len(texts) > 1 and first != TEXT:
                raise DataError(f"data: expected one text by name, got {enumerated(texts)}. Name it {TEXT!r}.")
        return as_content({TEXT: given[first], **{name: given.get(name) for name in others}})

    def batch(self, given: Sequence[Any], source: str = "inputs") -> Inputs:
        """Returns the inputs of samples of one kind, in their order.

        Raises:
            ArgumentError: They are of no known kind, or a tokenizer is absent.
            DataError: One cannot be read, or they have several shapes.
        """
        first = given[0]
        if self.is_text(first) and not self._is_path(first):
            assert self.encoder  # or it raises
            return self._read([Row("text", place, self.text(each)) for place, each in enumerate(given)])
        if isinstance(first, str | Path):
            return self._read([Row(str(each), None, Path(each)) for each in given])
        if hasattr(first, "getexif"):
            if not self._settings:
                raise DataError(
                    f"{source}: expected samples that are tensors or arrays, got {type(first).__name__}, and nothing "
                    f"says how an image becomes an input. Give them a transform to tensors, as the model's."
                )
            return self._read([Row("image", place, encoded(each)) for place, each in enumerate(given)])
        if isinstance(first, Mapping):
            return self._fields(given, source)
        if isinstance(first, Tensor | np.ndarray):
            return _stacked(given, source)
        got = f"{type(first).__name__}. Give them a transform to tensors"
        raise ArgumentError(f"{source}: expected samples that are {TAKEN}, got {got}.")

    def of_loader(self, batch: Any) -> Inputs:
        """Returns the inputs of a batch of a DataLoader, with or without labels; raises as `batch`."""
        given = batch if are_texts(batch) else parts_of(batch).given
        if isinstance(given, Mapping):
            least = 2 if "input_ids" in given else 1
            held = {name: value for name, value in given.items() if getattr(value, "ndim", 0) >= least}
            given = next(iter(held.values())) if len(held) == 1 and "input_ids" not in held else held
        return as_batch(given) if isinstance(given, Tensor | np.ndarray | Mapping) else self.batch(given)

    def _is_path(self, given: Any) -> bool:
        if isinstance(self._processor, Tokenizer) or isinstance(given, Mapping):
            return False
        return is_sample(given) or Path(given).exists() or bool(self._settings)

    def _read(self, rows: Sequence[Row]) -> Inputs:
        found = self._reader.read(rows)
        names = (row.path if row.number is None else f"{row.path} {row.number}" for row in rows)
        refuse_faults({name: why for name, why in zip(names, found.reasons, strict=True) if why}, "Leave it out.")
        return as_batch(found.inputs)

    def _fields(self, given: Sequence[Mapping[str, Any]], source: str) -> Inputs:
        """Values by name: the image, the only array, or several, of which texts are padded to one length."""
        images = [name for name, value in given[0].items() if hasattr(value, "getexif")]
        if images:
            return self.batch([each[images[0]] for each in given], source)
        names = [name for name, value in given[0].items() if np.ndim(value) and not isinstance(value, str)]
        if not names:
            raise DataError(f"{source}: expected a tensor by name in each sample, got {enumerated(list(given[0]))}.")
        if "input_ids" in names and len({len(each["input_ids"]) for each in given}) > 1:
            rows = {name: [np.asarray(each[name]).tolist() for each in given] for name in names}
            return as_batch(pad_batch(self.encoder, rows))
        held = {name: _stacked([torch.as_tensor(each[name]) for each in given], source) for name in names}
        return held[names[0]] if len(held) == 1 and "input_ids" not in held else as_batch(held)


def _stacked(given: Sequence[Any], source: str) -> Tensor:
    tensors = [as_batch(each) for each in given]
    shapes = list(dict.fromkeys(tuple(each.shape) for each in tensors))
    if len(shapes) > 1:
        raise DataError(f"{source}: expected samples of one shape, got {shapes[0]} and {shapes[1]}. Bring them to one.")
    return torch.stack(tensors)  # type: ignore[arg-type]  # a sample is one tensor
