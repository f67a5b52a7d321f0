"""Reading one input: from the content of a request to a sample for the model."""

import re
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from petm.data.fields import Inputs, as_batch
from petm.data.images import ImageForm, ImageProcessor, decode, form_of
from petm.data.pixels import TooManyPixelsError, UnclearImageError
from petm.data.reader import Tokenizer, pad_batch
from petm.errors import BundleError, DataError
from petm.grading.provenance import InputOrigin
from petm.serving.limits import Limits, Unreadable

Content = bytes | str
"""An encoded image, the same in base64, or a text."""
_DATA_URI = re.compile(r"\s*data:[^,]{0,200};base64,", re.IGNORECASE)
_STANDARD = bytes.maketrans(b"-_", b"+/")
SMALL_FILE, SMALL_IMAGE, SMALL_TEXT = 1 << 14, 1 << 16, 1000
"""Bytes, pixels and characters of an input that takes almost no time to read."""


class ImageReader:
    """Reads images, whatever their names say, within limits and in the ``form`` of the fit."""

    kind: Literal["images", "texts"] = "images"

    def __init__(self, form: ImageForm, limits: Limits) -> None:
        self._pixels = limits.pixels
        self.form = replace(form, most_pixels=limits.pixels)
        self._small = replace(form, most_pixels=min(SMALL_IMAGE, limits.pixels))

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        return self.form.channels, *self.form.size

    def read(self, content: Content) -> NDArray[np.float32]:
        """Returns float32 ``(C, H, W)``.

        Raises:
            Unreadable: The content is no image, damaged, or too large.
        """
        sample = self._decode(content, self.form)
        if sample is None:
            raise Unreadable(f"The image has more than {self._pixels:,} pixels.")
        return sample

    def is_short(self, content: Content) -> bool:
        """Returns whether `read_short` should try an image: it has few bytes and no processor, which takes time."""
        return len(content) <= SMALL_FILE and self.form.processor is None

    def read_short(self, content: Content) -> NDArray[np.float32] | None:
        """Returns the same as `read` for an image with few pixels, and None for another; raises the same."""
        return self._decode(content, self._small)

    def _decode(self, content: Content, form: ImageForm) -> NDArray[np.float32] | None:
        """None where there are too many pixels."""
        encoded = self.raw(content)
        if not encoded:
            raise Unreadable("The file is empty.")
        try:
            return decode(encoded, "", form)
        except DataError as error:
            if isinstance(error.__cause__, TooManyPixelsError):
                return None
            if isinstance(error.__cause__, UnclearImageError):
                raise Unreadable(f"The image cannot be used: it has {error.__cause__}.") from error
            raise Unreadable("The file is not an image of a known format, or it is damaged.") from error

    def raw(self, content: Content) -> bytes:
        """Returns the image file; base64 may be a data URI, in lines, URL-safe, or unpadded.

        Raises:
            Unreadable: The content is not valid base64.
        """
        if isinstance(content, bytes):
            return content
        try:
            found = _DATA_URI.match(content)
            plain = content[found.end() if found else 0 :].encode("ascii").translate(_STANDARD, b" \t\r\n").rstrip(b"=")
            return b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
        except ValueError as error:
            raise Unreadable("The image is not valid base64.") from error

    def collate(self, samples: Sequence[Any]) -> torch.Tensor:
        """Returns float32 ``(N, C, H, W)``."""
        return torch.from_numpy(np.stack(samples))

    def blank(self) -> NDArray[np.float32]:
        """Returns a black image."""
        return np.zeros(self.shape, np.float32)


class TextReader:
    """Reads texts as tokens, padded or cut to ``length`` of them, or else to the longest text of a batch."""

    kind: Literal["images", "texts"] = "texts"
    shape = None

    def __init__(self, encoder: Tokenizer, length: int | None, limits: Limits) -> None:
        self._encoder, self._length, self._limits = encoder, length, limits

    def read(self, content: Content) -> dict[str, Sequence[int]]:
        """Returns the fields of the text, one number a token.

        Raises:
            Unreadable: The text is blank, not UTF-8, too long, without a token, or lacks a column.
        """
        text = self.raw(content).decode()
        if not text.strip():
            raise Unreadable("The text is blank.")
        if len(text) > self._limits.characters:
            raise Unreadable(f"The text has more than {self._limits.characters:,} characters.")
        try:
            encoded = self._encoder.encode([text], self._length or self._encoder.maximum)
        except DataError as error:
            raise Unreadable(str(error)) from error
        if not encoded["input_ids"][0]:
            raise Unreadable("The text has no token.")
        return {name: rows[0] for name, rows in encoded.items()}

    def is_short(self, content: Content) -> bool:
        """Returns whether a text has few characters."""
        return len(content) <= SMALL_TEXT

    read_short = read

    def raw(self, content: Content) -> bytes:
        """Returns the text in UTF-8.

        Raises:
            Unreadable: It is not UTF-8.
        """
        try:
            return (content if isinstance(content, str) else content.decode()).encode()
        except UnicodeDecodeError as error:
            raise Unreadable("The text is not UTF-8.") from error

    def collate(self, samples: Sequence[Any]) -> Inputs:
        """Returns int64 ``(N, L)`` by name."""
        fields = {name: [row[name] for row in samples] for name in samples[0]}
        return as_batch(pad_batch(self._encoder, fields, self._length))

    def blank(self) -> dict[str, Sequence[int]]:
        """Returns a short text."""
        return self.read(self._encoder.example)


Reader = ImageReader | TextReader
"""Reads one input, in any thread, and makes batches of what it has read."""


def reader_for(
    inputs: InputOrigin,
    limits: Limits,
    processor: Tokenizer | ImageProcessor | None = None,
    shape: Sequence[int] | None = None,
) -> Reader:
    """Returns the reader of inputs in the form of the fit.

    ``processor`` is the tokenizer or image processor that ``inputs`` names; ``shape``, ``(C, H, W)``, is that of images
    whose form ``inputs`` does not say.

    Raises:
        BundleError: The form of images is unknown.
    """
    if isinstance(processor, Tokenizer):
        return TextReader(processor, inputs.length, limits)
    if processor is not None and processor.hear is not None:
        raise BundleError("bundle: expected one that takes images or texts, got one of sounds. Use petm grade.")
    told = inputs.settings(processor)
    if not inputs.takes_images:
        raise BundleError(
            "bundle: expected one that takes images, got one fitted on arrays outside 0 to 1. "
            "Fit it on image files, with the mean and std of the model (--mean, --std)."
        )
    if processor is None and inputs.size is None and shape is not None and len(shape) == 3 and shape[0] in (1, 3):
        told |= {"size": (shape[1], shape[2]), "channels": 1 if shape[0] == 1 else 3}
    if not (processor or (told.get("size") and told.get("channels"))):
        raise BundleError(
            "bundle: expected one that says size and channels of images, or what prepares its inputs, got neither. "
            "Fit it with petm fit, or save it with an Origin that has them."
        )
    return ImageReader(form_of(b"", "", **told), limits)
