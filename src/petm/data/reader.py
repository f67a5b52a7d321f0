"""Rows made into what the classifier takes, each by itself: one that cannot be read does not spoil the others."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from petm._internal.storage import RemotePath
from petm.data.images import WORKERS, Channels, ImageError, ImageForm, Processor, decode, form_of
from petm.data.sources import Content, Rows
from petm.errors import DataError

_REQUESTS = 32
"""Images that are fetched from a store at a time: most of that is waiting."""

Arrays: TypeAlias = NDArray[np.float32] | Mapping[str, NDArray[np.int64]]
"""A batch as NumPy has it: images float32 ``(N, C, H, W)``, or the fields ``(N, L)`` of texts by name."""


class Encoder(Protocol):
    """What turns texts into tokens, such as `petm.models.hf_tokenizer.Tokenizer`."""

    @property
    def maximum(self) -> int | None:
        """The most tokens that the model takes; None where there is no limit."""

    @property
    def padding(self) -> Mapping[str, int]:
        """What the fields are filled up with, by name; those that are not named, with 0."""

    @property
    def pads_left(self) -> bool:
        """Whether they are filled up on the left."""

    def encode(self, texts: Sequence[str], limit: int | None) -> Mapping[str, Sequence[Sequence[int]]]:
        """Returns ``input_ids`` and the other fields of each text, one number a token, of at most ``limit`` tokens."""


@dataclass(frozen=True)
class Readings:
    """What was read of some rows.

    Attributes:
        inputs: Of the ``m`` rows that could be read, in their order; absent where there are none.
        reasons: Why a row could not be read; None where it could.
    """

    inputs: Arrays | None
    reasons: list[str | None]


class Reader:
    """Makes a classifier's inputs of rows, images in a few threads.

    Args:
        size: Height and width that images are resized to.
        channels: 1 or 3.
        processor: What prepares images instead.
        encoder: What makes tokens of texts; absent reads images and arrays.
        length: To which every text is padded or cut; absent takes the longest of those that are read together.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int] | None = None,
        channels: Channels | None = None,
        processor: Processor | None = None,
        encoder: Encoder | None = None,
        length: int | None = None,
    ) -> None:
        self.encoder, self.length = encoder, length
        self.form: ImageForm | None = None
        if processor is not None:
            self.form = form_of(b"", "", size=None, channels=None, processor=processor)
        elif size is not None and channels is not None:
            self.form = ImageForm((size[0], size[1]), channels, resizes=True, converts=True)
        self._pool, self._requests = ThreadPoolExecutor(WORKERS), ThreadPoolExecutor(_REQUESTS)

    def read(self, rows: Rows) -> Readings:
        """Returns the inputs of those rows that can be read, and why the others cannot."""
        if self.encoder is not None:
            return self._texts(self.encoder, rows, list(rows.faults))
        remote = any(isinstance(content, RemotePath) for content in rows.contents)
        pool = self._requests if remote else self._pool
        made = list(pool.map(self._image, rows.contents, rows.inputs, rows.faults))
        arrays = [answer for answer in made if not isinstance(answer, str)]
        reasons = [answer if isinstance(answer, str) else None for answer in made]
        return Readings(np.stack(arrays) if arrays else None, reasons)

    def _image(self, content: Content, name: str, fault: str | None) -> NDArray[np.float32] | str:
        """Float32 ``(C, H, W)``, or why there is none."""
        if fault is not None:
            return fault
        if isinstance(content, np.ndarray):
            return self._array(content)
        if isinstance(content, RemotePath):
            try:
                content = content.read_bytes()
            except OSError as error:
                return f"expected an image, got: {str(error).splitlines()[0].rstrip('.')}"
        if not isinstance(content, Path | bytes) or content == b"":
            return "expected an image, got nothing"
        if self.form is None:
            return "expected arrays, as the grader was fitted with, got an image"
        try:
            return decode(content, name, self.form)
        except ImageError as error:
            return error.reason
        except DataError as error:
            return str(error)

    def _array(self, content: NDArray[np.generic]) -> NDArray[np.float32] | str:
        values = content.astype(np.float32)
        if content.dtype == np.uint8:
            values /= 255
        shape = (self.form.channels, *self.form.size) if self.form else values.shape
        if values.shape != shape:
            return f"expected an array of shape {shape}, got {values.shape}"
        return values if np.isfinite(values).all() else "expected finite values, got NaN or infinity"

    def _texts(self, encoder: Encoder, rows: Rows, reasons: list[str | None]) -> Readings:
        for place, content in enumerate(rows.contents):
            if reasons[place] is None and not isinstance(content, str):
                reasons[place] = "expected a text, got none"
        readable = [place for place, reason in enumerate(reasons) if reason is None]
        if not readable:
            return Readings(None, reasons)
        encoded = encoder.encode([str(rows.contents[place]) for place in readable], self.length or encoder.maximum)
        kept = [index for index, tokens in enumerate(encoded["input_ids"]) if len(tokens)]
        for index in set(range(len(readable))) - set(kept):
            reasons[readable[index]] = "expected a text with a token in it, got none"
        fields = {name: [values[index] for index in kept] for name, values in encoded.items()}
        return Readings(pad_batch(encoder, fields, self.length) if kept else None, reasons)


def pad_batch(
    encoder: Encoder, encoded: Mapping[str, Sequence[Sequence[int]]], length: int | None = None
) -> dict[str, NDArray[np.int64]]:
    """Returns encoded texts as int64 ``(n, L)`` fields by name, padded to one length.

    Args:
        encoder: What has encoded them.
        encoded: One row of numbers a text, of at least one token, for each field.
        length: ``L``; absent takes the longest's.
    """
    counts = np.array([len(tokens) for tokens in encoded["input_ids"]])[:, None]
    most = length or int(counts.max())
    places = np.arange(most) - (most - counts if encoder.pads_left else 0)
    real = (places >= 0) & (places < counts)
    fields = {}
    for name, rows in encoded.items():
        if name != "attention_mask":
            fields[name] = np.full((len(rows), most), encoder.padding.get(name, 0), np.int64)
            fields[name][real] = [token for row in rows for token in row]
    return {**fields, "attention_mask": real.astype(np.int64)}
