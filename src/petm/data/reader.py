"""From rows to a classifier's inputs: a row that cannot be read gets a reason, and the others are read."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, Unpack

import numpy as np
from numpy.typing import NDArray

from petm._internal.files import fingerprint
from petm._internal.storage import RemotePath
from petm.data.images import WORKERS, FormSettings, ImageError, ImageForm, decode, form_of
from petm.data.sources import TEXT, Content, Row, as_content
from petm.errors import DataError

_REQUESTS = 32
"""Images fetched from a store at the same time: most of that is waiting."""

Arrays: TypeAlias = NDArray[np.float32] | Mapping[str, NDArray[np.int64]]
"""A batch in NumPy: images float32 ``(N, C, H, W)``, or the fields ``(N, L)`` of texts by name."""


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """The tokenizer of a text classifier.

    Attributes:
        maximum: The most tokens that the model takes; None where there is no limit.
        padding: The number that fills up each field, by name; 0 for others.
        pads_left: Whether fields are filled up on the left.
        fingerprint: SHA-256 of vocabulary and rules.
        encode: Returns ``input_ids`` and the other fields of each text, or pair of texts, one number a token and at
            most the given number of them, special tokens included, without padding.
        example: A short text.
        told: How it is read again, by the arguments of `petm.models.hf_processors.load_processor`; empty if it cannot.
    """

    maximum: int | None
    padding: Mapping[str, int]
    pads_left: bool
    fingerprint: str
    encode: Callable[[Sequence[Any], int | None], Mapping[str, Sequence[Sequence[int]]]]
    example: str = "a"
    told: Mapping[str, Any] = field(default_factory=dict)


def of_pairs(encoder: Tokenizer, column: str) -> Tokenizer:
    """Returns a tokenizer of pairs, each one text in JSON with the first text and a second one under its column."""

    def pair(content: str) -> tuple[str, str]:
        try:
            held = json.loads(content)
            return str(held[TEXT]), str(held[column])
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise DataError(f"text: expected a JSON object of {TEXT}, {column}, got {content!r:.60}.") from error

    return replace(
        encoder,
        fingerprint=fingerprint((encoder.fingerprint, column)),
        encode=lambda texts, limit: encoder.encode([pair(text) for text in texts], limit),
        example=as_content(dict.fromkeys((TEXT, column), "a")),
    )


@dataclass(frozen=True)
class Readings:
    """Inputs of the rows that could be read, in order (None where there are none), and why each other was not.

    Where hashes were asked for, ``hashes`` has one for each row that was read: the SHA-256 of an image file, a text in
    UTF-8, or the numbers of an array.
    """

    inputs: Arrays | None
    reasons: list[str | None]
    hashes: list[str | None] | None = None


class Reader:
    """Makes a classifier's inputs of rows, images in a few threads.

    Args:
        encoder: Tokenizer of texts; None reads images and arrays.
        length: Number of tokens to which every text is padded or cut; None means that of the longest in a batch.
        **form: As of `petm.data.images.form_of`; without a size and channels, or a processor, only arrays are read.
    """

    def __init__(
        self, *, encoder: Tokenizer | None = None, length: int | None = None, **form: Unpack[FormSettings]
    ) -> None:
        self.encoder, self.length = encoder, length
        self.form: ImageForm | None = None
        if form.get("processor") or (form.get("size") and form.get("channels")):
            self.form = form_of(b"", "", **form)
        self._pool, self._requests = ThreadPoolExecutor(WORKERS), ThreadPoolExecutor(_REQUESTS)

    def read(self, rows: Sequence[Row], *, hashed: bool = False) -> Readings:
        """Returns the inputs of the rows that can be read, and why the others cannot; with ``hashed`` their hashes."""
        if self.encoder is not None:
            found = self._texts(self.encoder, rows)
            return replace(found, hashes=[content_hash(row.content) for row in rows]) if hashed else found
        remote = any(isinstance(row.content, RemotePath) for row in rows)
        pool = self._requests if remote else self._pool
        made = list(pool.map(partial(self._fetched, hashed=hashed), rows))
        arrays = [answer for answer, _ in made if not isinstance(answer, str)]
        reasons = [answer if isinstance(answer, str) else None for answer, _ in made]
        hashes = [digest for _, digest in made] if hashed else None
        return Readings(np.stack(arrays) if arrays else None, reasons, hashes)

    def _fetched(self, row: Row, *, hashed: bool) -> tuple[NDArray[np.float32] | str, str | None]:
        """What `_image` returns, and the hash of the content where that could be read and is asked for."""
        if isinstance(row.content, RemotePath) and row.fault is None:
            try:
                row = row._replace(content=row.content.read_bytes())
            except OSError as error:
                return f"expected an image, got: {str(error).splitlines()[0].rstrip('.')}", None
        answer = self._image(row)
        return answer, None if not hashed or isinstance(answer, str) else content_hash(row.content)

    def _image(self, row: Row) -> NDArray[np.float32] | str:
        """Float32 ``(C, H, W)``, or why there is none."""
        content = row.content
        if row.fault is not None:
            return row.fault
        if isinstance(content, np.ndarray):
            return self._array(content)
        if not isinstance(content, Path | bytes) or content == b"":
            return "expected an image, got nothing"
        if self.form is None:
            return "expected arrays like those in the fit of the grader, got an image. Fit on images, or save arrays"
        try:
            return decode(content, row.path, self.form)
        except ImageError as error:
            return error.reason
        except DataError as error:
            return str(error)

    def _array(self, content: NDArray[np.generic]) -> NDArray[np.float32] | str:
        if content.dtype == np.uint8 and self.form is not None and (self.form.processor or self.form.mean):
            return "expected floats as they are prepared for the model, got bytes"
        values = content.astype(np.float32)
        if content.dtype == np.uint8:
            values /= 255
        shape = self.form.shape if self.form else values.shape
        if values.shape != shape:
            return f"expected an array of shape {shape}, got {values.shape}"
        return values if np.isfinite(values).all() else "expected finite values, got NaN or infinity"

    def _texts(self, encoder: Tokenizer, rows: Sequence[Row]) -> Readings:
        reasons = [row.fault or (None if isinstance(row.content, str) else "expected a text, got none") for row in rows]
        readable = [place for place, reason in enumerate(reasons) if reason is None]
        if not readable:
            return Readings(None, reasons)
        encoded = encoder.encode([str(rows[place].content) for place in readable], self.length or encoder.maximum)
        kept = [index for index, tokens in enumerate(encoded["input_ids"]) if len(tokens)]
        for index in set(range(len(readable))) - set(kept):
            reasons[readable[index]] = "expected a text with a token in it, got none"
        fields = {name: [values[index] for index in kept] for name, values in encoded.items()}
        return Readings(pad_batch(encoder, fields, self.length) if kept else None, reasons)


def content_hash(content: Content) -> str | None:
    """Returns the SHA-256 of an image file, encoded image, text in UTF-8 or array; None of what cannot be read."""
    if isinstance(content, Path):
        with suppress(OSError), content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return None
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")
    elif isinstance(content, np.ndarray):
        content = content.tobytes()
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else None


def pad_batch(
    encoder: Tokenizer, encoded: Mapping[str, Sequence[Sequence[int]]], length: int | None = None
) -> dict[str, NDArray[np.int64]]:
    """Returns encoded texts, each of at least one token, as int64 ``(n, L)`` fields by name.

    All are padded to the given length, or to that of the longest.
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
