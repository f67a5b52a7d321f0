"""Image files: which there are in a folder; and one image, from encoded bytes to the values that a model takes."""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from petm._internal.files import fingerprint
from petm._internal.storage import Located, RemotePath, check_regular
from petm.data.pixels import IMAGE_SUFFIXES, as_shown
from petm.data.sound import SOUND_SUFFIXES
from petm.errors import ArgumentError, DataError, PetmWarning

if TYPE_CHECKING:
    from PIL.Image import Image

Encoded = Path | bytes
"""An image file, or its content."""

Channels = Literal[1, 3]
Resize = Literal["squeeze", "crop"]
"""How an image of another ratio of sides is brought to a size: distorted, or cut at two sides after resizing."""

WORKERS = min(8, os.cpu_count() or 1)
"""Threads that decode; Pillow releases the interpreter's lock meanwhile."""

MOST_BYTES = 1 << 30
"""Bytes of an image file; larger ones are not opened."""

LEAVE_OUT = "Repair or remove it, or leave out what cannot be read with skip_bad=True (--skip-bad)."

_NO_DATA = frozenset({"desktop.ini", "thumbs.db"})
"""Files that Windows puts into folders."""

_SUFFIXES = IMAGE_SUFFIXES | SOUND_SUFFIXES

_SQUEEZED = 1.05
"""Ratio of two ratios of sides from which on a distortion is said."""


def is_sample(name: str) -> bool:
    """Returns whether a file of this name is taken for an image or a sound."""
    return os.path.splitext(name)[1].lower() in _SUFFIXES


class Found(NamedTuple):
    """An image file that was found, or what stands in the place of one and cannot be read."""

    path: str | RemotePath
    """Text for a local path: there may be millions."""
    label: str | None = None
    """The name of the outermost folder below the one that was named."""
    fault: str | None = None
    """Why a folder could not be listed, or a file is none: a pipe, a link that leads nowhere or to itself."""


def images_below(folder: Located) -> Iterator[Found]:
    """Yields the images below a folder, each folder in the order of its names; hidden ones are left out.

    Links to folders are followed in the folder itself, where they may be classes, and not below, where they may be
    loops. A folder below that cannot be listed, and an image that is no file, are entries with a fault. A warning at
    the end counts what is no image.

    Raises:
        DataError: The folder itself cannot be listed.
    """
    passed_over: Counter[str] = Counter()
    yield from _below(folder if isinstance(folder, RemotePath) else str(folder), None, passed_over)
    if passed_over:
        kinds = ", ".join(f"{count:,} of {kind}" for kind, count in passed_over.most_common(12))
        what = f"expected images of a known kind, got others as well: {kinds}"
        warnings.warn(f"{folder}: {what}. They were passed over.", PetmWarning, stacklevel=1)


def first_image(folder: Located) -> str | RemotePath | None:
    """Returns the path of the first image below a folder, if there is one; raises DataError as `images_below`."""
    found = _below(folder if isinstance(folder, RemotePath) else str(folder), None, Counter())
    return next((each.path for each in found if each.fault is None), None)


def class_folders(folder: Path) -> list[str]:
    """Returns the names of the folders in a folder, empty ones included; raises DataError as `images_below`."""
    return [name for name, path, is_folder, _ in _entries(str(folder), follow=True) if is_folder and not _is_loop(path)]


def _below(folder: str | RemotePath, label: str | None, passed_over: Counter[str]) -> Iterator[Found]:
    for name, path, is_folder, fault in _entries(folder, follow=label is None):
        if is_folder and _is_loop(path):
            yield Found(path, label or name, "expected a folder of images, got a link to a folder that holds the link")
        elif is_folder:
            try:
                yield from _below(path, label or name, passed_over)
            except DataError as error:
                yield Found(path, label or name, str(error))
        elif is_sample(name):
            yield Found(path, label, fault)
        elif fault is not None and "." not in name:  # it may have been a class
            yield Found(path, label or name, fault)
        elif name.lower() not in _NO_DATA:
            passed_over[os.path.splitext(name)[1] or name] += 1


def _is_loop(path: str | RemotePath) -> bool:
    """Whether a path is a link to a folder in which the link lies."""
    if isinstance(path, RemotePath) or not os.path.islink(path):
        return False
    return Path(os.path.realpath(os.path.dirname(path))).is_relative_to(os.path.realpath(path))


def _entries(folder: str | RemotePath, *, follow: bool) -> Iterator[tuple[str, str | RemotePath, bool, str | None]]:
    """Name, path, whether it is a folder and why it is no file, of what is not hidden, in the order of the names."""
    if isinstance(folder, RemotePath):
        yield from ((path.name, path, is_folder, None) for path, is_folder in folder.entries() if path.name[0] != ".")
        return
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: expected a folder of images, got: {error.strerror}. Check the path.") from error
    for entry in entries:
        is_folder, fault = False, None
        try:
            is_folder = entry.is_dir(follow_symlinks=follow)
            if not (is_folder or entry.is_file() or entry.is_dir()):
                fault = "expected a file, got a pipe, a device or a link that leads nowhere"
        except OSError as error:  # a link to itself
            fault = f"expected a file, got: {error.strerror}"
        yield entry.name, entry.path, is_folder, fault


@dataclass(frozen=True, eq=False)
class ImageProcessor:
    """Prepares images for a model, as the image processor of a Hugging Face folder: size, cropping and normalisation.

    Attributes:
        shape: ``(C, H, W)`` of a prepared image.
        value_range: The least and the greatest value of a prepared image.
        settings: All settings as text, which identifies the processor.
        prepare: Returns float32 ``(C, H, W)`` for an image as `read_image` gives it.
        hear: Returns what is prepared of the bytes of a sound, in place of an image; shapes are then those of sounds.
        told: As of `petm.data.reader.Tokenizer`.
    """

    shape: tuple[int, ...]
    value_range: tuple[float, float]
    settings: str
    prepare: Callable[[Any], NDArray[np.float32]]
    hear: Callable[[bytes], Any] | None = None
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the settings."""
        return fingerprint((self.settings,))


class ImageError(DataError):
    """An image that cannot be read; ``reason`` says what was expected and got, without the name of the image."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class FormSettings(TypedDict, total=False):
    """How images are read, as keyword arguments; see `form_of`."""

    size: tuple[int, int] | None
    channels: Channels | None
    resize: Resize | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    processor: ImageProcessor | None


@dataclass(frozen=True)
class ImageForm:
    """The shape of every image of a data set.

    Attributes:
        size: Height and width in pixels.
        channels: 1 for grey, 3 for red, green and blue.
        resizes: Whether an image of another size is resized; otherwise it is refused.
        converts: Whether a colour image is turned grey where ``channels`` is 1; otherwise it is refused.
        processor: Prepares the images in place of all this; None means values in [0, 1].
        most_pixels: The most pixels of an image before resizing, for images that strangers send; None has no limit.
        resize: How images are resized; None squeezes them, and says so once.
        mean: Subtracted from the values in [0, 1], by channel; empty subtracts nothing.
        std: Divisor then, by channel.
    """

    size: tuple[int, int]
    channels: int
    resizes: bool
    converts: bool
    processor: ImageProcessor | None = None
    most_pixels: int | None = None
    resize: Resize | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    _squeezed: dict[str, object] = field(default_factory=dict, compare=False, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a prepared image."""
        return self.processor.shape if self.processor else (self.channels, *self.size)

    def __str__(self) -> str:
        shape = "×".join(map(str, self.shape))
        if self.processor:
            return f"{shape} by {self.processor.settings}"
        cropped = " cropped" if self.resize == "crop" else ""
        return f"{shape}{cropped}{f' with mean {self.mean} and std {self.std}' if self.mean else ''}"

    @property
    def value_range(self) -> tuple[float, float]:
        """The least and the greatest value of a prepared image."""
        if self.processor is not None:
            return self.processor.value_range
        ends = [((end - mean) / std) for mean, std in zip(self.mean, self.std, strict=True) for end in (0.0, 1.0)]
        return min(ends, default=0.0), max(ends, default=1.0)


def form_of(
    encoded: Encoded,
    name: str,
    *,
    size: tuple[int, int] | None = None,
    channels: Channels | None = None,
    resize: Resize | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    processor: ImageProcessor | None = None,
) -> ImageForm:
    """Returns the form that the user asks for: what is None is that of the first image, which is read then.

    Args:
        encoded: The first image.
        name: Its name.
        size: Height and width.
        channels: 1 or 3.
        resize: ``squeeze`` or ``crop``.
        mean: Subtracted from the values in [0, 1]: one number, or one for each channel.
        std: Divisor then, above 0 and at most 1.
        processor: Prepares images in place of all others.

    Raises:
        ArgumentError: An argument breaks its rule, or is given beside ``processor``.
        DataError: The first image is needed and cannot be read.
    """
    if processor is not None:
        told = {"size": size, "channels": channels, "resize": resize, "mean": mean, "std": std}
        for given, value in told.items():
            if value is not None:
                raise ArgumentError(f"{given}: expected none, got {value}. The model's processor decides on it.")
        height, width = (1, 1, *processor.shape)[-2:]
        return ImageForm((height, width), processor.shape[0], True, True, processor)
    if channels not in (None, 1, 3):
        raise ArgumentError(f"channels: expected 1, 3 or None, got {channels}.")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ArgumentError(f"size: expected a positive height and width in pixels, got {tuple(size)}.")
    if resize not in (None, "squeeze", "crop"):
        raise ArgumentError(f"resize: expected squeeze, crop or None, got {resize!r}.")
    resizes, converts = size is not None, channels is not None
    if size is None or channels is None:
        first = read_image(encoded, name)
        size, channels = size or (first.height, first.width), channels or (3 if first.mode == "RGB" else 1)
    means, stds = by_channel(mean, std, channels)
    return ImageForm((size[0], size[1]), channels, resizes, converts, None, None, resize, means, stds)


def by_channel(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation, one number for each channel; both empty where there is neither.

    Raises:
        ArgumentError: There are others than one number, or one for each channel, or they are no shares of 255.
    """
    means, stds = _by_channel("mean", mean, channels), _by_channel("std", std, channels)
    return (means or (0.0,) * channels, stds or (1.0,) * channels) if means or stds else ((), ())


def _by_channel(name: str, values: Sequence[float] | None, channels: int) -> tuple[float, ...]:
    """Numbers in units of a pixel's range, one for each channel; empty for None."""
    if values is None:
        return ()
    found = tuple(map(float, values))
    found = found * channels if len(found) == 1 else found
    if len(found) != channels or not all(0 <= value <= 1 for value in found) or (name == "std" and not all(found)):
        rule = "above 0 and at most 1" if name == "std" else "from 0 to 1"
        raise ArgumentError(
            f"{name}: expected one number {rule} for each of {channels} channels, got {', '.join(map(str, values))}. "
            f"Pixels are from 0 to 1 here: divide numbers for 0 to 255 by 255."
        )
    return found


def decode(encoded: Encoded, name: str, form: ImageForm) -> NDArray[np.float32]:
    """Returns one image as float32 ``(C, H, W)`` in the data set's form, in its ``value_range``.

    Resizing is bilinear with antialiasing, colour becomes grey by ITU-R 601 luma, grey is repeated over 3 channels.

    Raises:
        DataError: The image cannot be read, or the form does not allow its size or its colours.
    """
    image = read_image(encoded, name, form.most_pixels, form.processor)
    if form.processor is not None:
        return form.processor.prepare(image)
    height, width = form.size
    if (image.height, image.width) != form.size:
        if not form.resizes:
            raise DataError(
                f"{name}: expected {height}×{width} pixels (height × width) as in the first image, "
                f"got {image.height}×{image.width}. Pass a size to resize all images to."
            )
        image = _resized(image, name, form)
    if image.mode == "RGB" and form.channels == 1:
        if not form.converts:
            raise DataError(
                f"{name}: expected a grey image like the first one, got colours. "
                f"Pass channels=1 to turn all images grey, or channels=3 to keep colours."
            )
        image = image.convert("L")
    values: Any = np.array(image) if image.mode == "F" else np.asarray(image) / np.float32(255)
    planes = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    if form.mean:
        mean, std = (np.array(each, np.float32).reshape(-1, 1, 1) for each in (form.mean, form.std))
        return np.asarray((planes - mean) / std)
    return planes if len(planes) == form.channels else np.broadcast_to(planes, (form.channels, height, width))


def _resized(image: Image, name: str, form: ImageForm) -> Image:
    from PIL import ImageOps
    from PIL.Image import Resampling

    height, width = form.size
    if form.resize == "crop":
        return ImageOps.fit(image, (width, height), Resampling.BILINEAR)
    squeezed = abs(math.log(image.width * height / (image.height * width))) > math.log(_SQUEEZED)
    told = object()  # of several threads, one says it
    if squeezed and form.resize is None and form._squeezed.setdefault("told", told) is told:
        warnings.warn(
            f"resize: {name or 'an image'} of {image.height}×{image.width} pixels (height × width) is squeezed to "
            f"{height}×{width}, and others may be. Fit with squeeze or crop, as in the model's training (--resize).",
            PetmWarning,
            stacklevel=2,
        )
    return image.resize((width, height), Resampling.BILINEAR)


def read_image(
    encoded: Encoded, name: str, most_pixels: int | None = None, processor: ImageProcessor | None = None
) -> Any:
    """Returns an image as `petm.data.pixels.as_shown` does, or a sound where the processor takes sounds.

    Raises:
        ImageError: It is damaged, truncated, of an unknown format, absurdly large or of too many pixels.
    """
    from PIL import UnidentifiedImageError

    hear = processor.hear if processor else None
    try:
        if isinstance(encoded, Path):
            check_regular(encoded, MOST_BYTES)
            encoded = encoded.read_bytes()
        return hear(encoded) if hear else as_shown(encoded, most_pixels)
    except Exception as error:  # each of Pillow's parsers raises what it likes
        unknown = isinstance(error, UnidentifiedImageError)
        got = "an empty or unknown format" if unknown else str(error).rstrip(".") or type(error).__name__
        reason = f"expected a readable {'sound' if hear else 'image'}, got: {got}"
        raise ImageError(f"{name}: {reason}. {LEAVE_OUT}", reason) from error
