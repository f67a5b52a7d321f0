"""One input: what was sent in, what the model takes out."""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from petm.data.fields import Inputs, as_batch
from petm.data.images import Channels, ImageForm, ImageLimits, Processor, TooManyPixelsError, decode
from petm.data.reader import Encoder, pad_batch
from petm.errors import BundleError, DataError
from petm.grading.provenance import InputOrigin
from petm.models.hf_processors import ImageProcessor
from petm.models.hf_tokenizer import Tokenizer
from petm.serving.limits import FORMATS, Limits, Unreadable

Content = bytes | str
"""An encoded image, the same in base64, or a text."""
SMALL_FILE, SMALL_IMAGE, SMALL_TEXT = 1 << 14, 1 << 16, 1000
"""Bytes, pixels and characters of an input that is read in next to no time."""


class Reader(Protocol):
    """Makes samples of contents, in any thread, and batches of samples."""

    @property
    def kind(self) -> Literal["images", "texts"]:
        """What it reads."""

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """``(C, H, W)`` of an image; None for texts."""

    def read(self, content: Content) -> Any:
        """Returns a sample.

        Raises:
            Unreadable: There is none in it.
        """

    def is_short(self, content: Content) -> bool:
        """Returns whether an input is so short that it should be read among others of its kind, by `read_short`."""

    def read_short(self, content: Content) -> Any | None:
        """Returns a sample of a short input that takes next to no time, or None where it takes more after all.

        Raises:
            Unreadable: There is none in it.
        """

    def raw(self, content: Content) -> bytes:
        """Returns the input itself as bytes: the image file, or the text in UTF-8.

        Raises:
            Unreadable: An image is not valid base64.
        """

    def collate(self, samples: Sequence[Any]) -> Inputs:
        """Returns a batch of at least one sample."""

    def blank(self) -> Any:
        """Returns a sample without meaning, to try a model with."""


class ImageReader:
    """Reads images by their first bytes, within limits, in the form of the fit.

    Args:
        size: Height and width that they are resized to.
        channels: 1 for grey, 3 for colour.
        limits: Beyond which an image is refused.
        processor: What prepares the images in place of size and channels.
    """

    kind: Literal["images", "texts"] = "images"

    def __init__(
        self, size: tuple[int, int], channels: Channels, limits: Limits, processor: Processor | None = None
    ) -> None:
        self._pixels = limits.pixels
        self.form = ImageForm(size, channels, True, True, processor, ImageLimits(FORMATS, limits.pixels))
        self._small = replace(self.form, limits=ImageLimits(FORMATS, min(SMALL_IMAGE, limits.pixels)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        return self.form.channels, *self.form.size

    def read(self, content: Content) -> NDArray[np.float32]:
        """Returns float32 ``(C, H, W)``.

        Raises:
            Unreadable: It is no image, damaged, or too large.
        """
        sample = self._decode(content, self.form)
        if sample is None:
            raise Unreadable(f"The image has more than {self._pixels:,} pixels.")
        return sample

    def is_short(self, content: Content) -> bool:
        """Returns whether an image has few bytes; a processor takes its time however few there are."""
        return len(content) <= SMALL_FILE and self.form.processor is None

    def read_short(self, content: Content) -> NDArray[np.float32] | None:
        """Returns what `read` does of an image with few pixels, and None of another.

        Raises:
            Unreadable: It is no image, or damaged.
        """
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
            raise Unreadable("The file is not an image of a known format, or it is damaged.") from error

    def raw(self, content: Content) -> bytes:
        """Returns the image file.

        Raises:
            Unreadable: It is not valid base64.
        """
        try:
            return content if isinstance(content, bytes) else b64decode(content, validate=True)
        except ValueError as error:
            raise Unreadable("The image is not valid base64.") from error

    def collate(self, samples: Sequence[NDArray[np.float32]]) -> torch.Tensor:
        """Returns float32 ``(N, C, H, W)``."""
        return torch.from_numpy(np.stack(samples))

    def blank(self) -> NDArray[np.float32]:
        """Returns a black image."""
        return np.zeros(self.shape, np.float32)


class TextReader:
    """Reads texts as tokens.

    Args:
        encoder: What makes tokens of them.
        length: How many tokens every text is padded or cut to; absent takes the longest of a batch.
        limits: Beyond which a text is refused.
    """

    kind: Literal["images", "texts"] = "texts"
    shape = None

    def __init__(self, encoder: Encoder, length: int | None, limits: Limits) -> None:
        self._encoder, self._length, self._limits = encoder, length, limits

    def read(self, content: Content) -> dict[str, Sequence[int]]:
        """Returns the fields of the text, one number a token.

        Raises:
            Unreadable: It is blank, not UTF-8, too long, or without a token.
        """
        text = _text(content)
        if not text.strip():
            raise Unreadable("The text is blank.")
        if len(text) > self._limits.characters:
            raise Unreadable(f"The text has more than {self._limits.characters:,} characters.")
        encoded = self._encoder.encode([text], self._length or self._encoder.maximum)
        if not encoded["input_ids"][0]:
            raise Unreadable("The text has no token.")
        return {name: rows[0] for name, rows in encoded.items()}

    def is_short(self, content: Content) -> bool:
        """Returns whether a text has few characters."""
        return len(content) <= SMALL_TEXT

    def read_short(self, content: Content) -> dict[str, Sequence[int]]:
        """Returns what `read` does.

        Raises:
            Unreadable: As by `read`.
        """
        return self.read(content)

    def raw(self, content: Content) -> bytes:
        """Returns the text in UTF-8.

        Raises:
            Unreadable: It is not UTF-8.
        """
        return _text(content).encode()

    def collate(self, samples: Sequence[Mapping[str, Sequence[int]]]) -> Inputs:
        """Returns int64 ``(N, L)`` by name."""
        fields = {name: [row[name] for row in samples] for name in samples[0]}
        return as_batch(pad_batch(self._encoder, fields, self._length))

    def blank(self) -> dict[str, Sequence[int]]:
        """Returns a short text."""
        return self.read("a")


def reader_for(
    inputs: InputOrigin,
    limits: Limits,
    processor: Tokenizer | ImageProcessor | None = None,
    shape: Sequence[int] | None = None,
) -> Reader:
    """Returns what reads the inputs of a grader.

    Args:
        inputs: How the grader was fitted to read them.
        limits: Beyond which an input is refused.
        processor: What prepares them, where ``inputs`` names such.
        shape: ``(C, H, W)``, where ``inputs`` does not say it.

    Raises:
        BundleError: Nobody knows how images are read.
    """
    if isinstance(processor, Tokenizer):
        return TextReader(processor, inputs.length, limits)
    if isinstance(processor, ImageProcessor):
        return ImageReader(processor.shape[1:], _channels(processor.shape[0]), limits, processor)
    if inputs.size is not None and inputs.channels is not None:
        return ImageReader(inputs.size, _channels(inputs.channels), limits)
    if shape is not None and len(shape) == 3 and shape[0] in (1, 3):
        return ImageReader((shape[1], shape[2]), _channels(shape[0]), limits)
    raise BundleError(
        "bundle: expected one that says size and channels of images, or what prepares its inputs, got neither. "
        "Fit it with petm fit, or save it with an Origin that has them."
    )


def _channels(count: int) -> Channels:
    return 1 if count == 1 else 3


def _text(content: Content) -> str:
    try:
        return content if isinstance(content, str) else content.decode()
    except UnicodeDecodeError as error:
        raise Unreadable("The text is not UTF-8.") from error
