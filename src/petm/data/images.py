"""Image files: which there are in a folder; and one image, from encoded bytes to float32 values in [0, 1]."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from petm._internal.files import fingerprint
from petm._internal.storage import Located, RemotePath
from petm.errors import ArgumentError, DataError, PetmWarning

if TYPE_CHECKING:
    from PIL.Image import Image

Encoded = Path | bytes
"""An image file, or its content."""

Channels = Literal[1, 3]

WORKERS = min(8, os.cpu_count() or 1)
"""Threads that decode; Pillow releases the interpreter's lock meanwhile."""

LEAVE_OUT = "Repair or remove it, or leave out what cannot be read with skip_bad=True (--skip-bad)."

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)


def is_image(name: str) -> bool:
    """Returns whether a file of this name is taken for an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


class Found(NamedTuple):
    """An image file that was found, or a folder that could not be listed."""

    path: str | RemotePath
    """Text for a local path: there may be millions."""
    label: str | None = None
    """The name of the outermost folder below the one that was named."""
    fault: str | None = None
    """Why a folder could not be listed."""


def images_below(folder: Located) -> Iterator[Found]:
    """Yields the images below a folder, each folder in the order of its names; hidden ones are left out.

    Links to folders are followed in the folder itself, where they may be classes, and not below, where they may be
    loops. A folder below that cannot be listed is one entry with a fault. A warning at the end counts what is no image.

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
    return [name for name, path, is_folder in _entries(str(folder), follow=True) if is_folder and not _is_loop(path)]


def _below(folder: str | RemotePath, label: str | None, passed_over: Counter[str]) -> Iterator[Found]:
    for name, path, is_folder in _entries(folder, follow=label is None):
        if is_folder and _is_loop(path):
            yield Found(path, label or name, "expected a folder of images, got a link to a folder that holds the link")
        elif is_folder:
            try:
                yield from _below(path, label or name, passed_over)
            except DataError as error:
                yield Found(path, label or name, str(error))
        elif is_folder is False and is_image(name):
            yield Found(path, label)
        else:
            passed_over[os.path.splitext(name)[1] or name] += 1


def _is_loop(path: str | RemotePath) -> bool:
    """Whether a path is a link to a folder in which the link lies."""
    if isinstance(path, RemotePath) or not os.path.islink(path):
        return False
    return Path(os.path.realpath(os.path.dirname(path))).is_relative_to(os.path.realpath(path))


def _entries(folder: str | RemotePath, *, follow: bool) -> Iterator[tuple[str, str | RemotePath, bool | None]]:
    """Name, path, and whether it is a folder (None: neither folder nor file), of what is not hidden, in order."""
    if isinstance(folder, RemotePath):
        yield from ((path.name, path, is_folder) for path, is_folder in folder.entries() if path.name[0] != ".")
        return
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: expected a folder of images, got: {error.strerror}. Check the path.") from error
    for entry in entries:
        is_folder = entry.is_dir(follow_symlinks=follow)
        yield entry.name, entry.path, is_folder if is_folder or entry.is_file() else None


@dataclass(frozen=True, eq=False)
class ImageProcessor:
    """Prepares images for a model, as the image processor of a Hugging Face folder: size, cropping and normalisation.

    Attributes:
        shape: ``(C, H, W)`` of a prepared image.
        value_range: The least and the greatest value of a prepared image.
        settings: All settings as text, which identifies the processor.
        prepare: Returns float32 ``(C, H, W)`` for an image as `read_image` gives it.
    """

    shape: tuple[int, int, int]
    value_range: tuple[float, float]
    settings: str
    prepare: Callable[[Image], NDArray[np.float32]]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the settings."""
        return fingerprint((self.settings,))


@dataclass(frozen=True)
class ImageLimits:
    """Limits checked by the first bytes, before a pixel is decoded: for images that strangers send.

    Attributes:
        formats: Names of Pillow's formats that are read, such as ``PNG``.
        pixels: The most pixels of an image.
    """

    formats: tuple[str, ...]
    pixels: int


class ImageError(DataError):
    """An image that cannot be read; ``reason`` says what was expected and got, without the name of the image."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class TooManyPixelsError(ValueError):
    """An image beyond `ImageLimits.pixels`."""


@dataclass(frozen=True)
class ImageForm:
    """The shape of every image of a data set.

    Attributes:
        size: Height and width in pixels.
        channels: 1 for grey, 3 for red, green and blue.
        resizes: Whether an image of another size is resized; otherwise it is refused.
        converts: Whether a colour image is turned grey where ``channels`` is 1; otherwise it is refused.
        processor: Prepares the images in place of all this; None means values in [0, 1].
        limits: What is refused; None reads what Pillow reads.
    """

    size: tuple[int, int]
    channels: int
    resizes: bool
    converts: bool
    processor: ImageProcessor | None = None
    limits: ImageLimits | None = None

    def __str__(self) -> str:
        shape = f"{self.channels}×{self.size[0]}×{self.size[1]}"
        return f"{shape} by {self.processor.settings}" if self.processor else shape


def form_of(
    encoded: Encoded,
    name: str,
    *,
    size: tuple[int, int] | None,
    channels: Channels | None,
    processor: ImageProcessor | None = None,
) -> ImageForm:
    """Returns the form that the user asks for: what is None is that of the first image, which is read then.

    Raises:
        ArgumentError: ``size`` or ``channels`` breaks its rule, or is given beside ``processor``.
        DataError: The first image is needed and cannot be read.
    """
    if processor is not None:
        if size is not None or channels is not None:
            given = "size" if size is not None else "channels"
            raise ArgumentError(f"{given}: expected none, got {size or channels}. The model's processor decides on it.")
        return ImageForm((processor.shape[1], processor.shape[2]), processor.shape[0], True, True, processor)
    if channels not in (None, 1, 3):
        raise ArgumentError(f"channels: expected 1, 3 or None, got {channels}.")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ArgumentError(f"size: expected a positive height and width in pixels, got {tuple(size)}.")
    resizes, converts = size is not None, channels is not None
    if size is not None and channels is not None:
        return ImageForm((size[0], size[1]), channels, resizes, converts)
    first = read_image(encoded, name)
    height, width = size or (first.height, first.width)
    return ImageForm((height, width), channels or (3 if first.mode == "RGB" else 1), resizes, converts)


def decode(encoded: Encoded, name: str, form: ImageForm) -> NDArray[np.float32]:
    """Returns one image as float32 ``(C, H, W)`` in the data set's form, in [0, 1] unless a processor is set.

    Resizing is bilinear with antialiasing, colour becomes grey by ITU-R 601 luma, grey is repeated over 3 channels.

    Raises:
        DataError: The image cannot be read, or the form does not allow its size or its colours.
    """
    from PIL.Image import Resampling

    image = read_image(encoded, name, form.limits)
    if form.processor is not None:
        return form.processor.prepare(image)
    height, width = form.size
    if (image.height, image.width) != form.size:
        if not form.resizes:
            raise DataError(
                f"{name}: expected {height}×{width} pixels (height × width) as in the first image, "
                f"got {image.height}×{image.width}. Pass a size to resize all images to."
            )
        image = image.resize((width, height), Resampling.BILINEAR)
    if image.mode == "RGB" and form.channels == 1:
        if not form.converts:
            raise DataError(
                f"{name}: expected a grey image like the first one, got colours. "
                f"Pass channels=1 to turn all images grey, or channels=3 to keep colours."
            )
        image = image.convert("L")
    values: Any = np.array(image) if image.mode == "F" else np.asarray(image) / np.float32(255)
    planes = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    return planes if len(planes) == form.channels else np.broadcast_to(planes, (form.channels, height, width))


def read_image(encoded: Encoded, name: str, limits: ImageLimits | None = None) -> Image:
    """Returns one upright image without alpha: mode L or RGB with 8 bits, or F in [0, 1] for 16-bit grey.

    Raises:
        ImageError: The image is damaged, truncated, of an unknown format, absurdly large or beyond the limits.
    """
    from PIL import UnidentifiedImageError

    try:
        return _read(encoded.read_bytes() if isinstance(encoded, Path) else encoded, limits)
    except Exception as error:  # each of Pillow's parsers raises what it likes
        unknown = isinstance(error, UnidentifiedImageError)
        got = "an empty or unknown format" if unknown else str(error).rstrip(".") or type(error).__name__
        reason = f"expected a readable image, got: {got}"
        raise ImageError(f"{name}: {reason}. {LEAVE_OUT}", reason) from error


def _read(encoded: bytes, limits: ImageLimits | None) -> Image:
    from PIL import Image, ImageOps

    try:
        image: Image.Image = Image.open(BytesIO(encoded), formats=limits.formats if limits else None)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # where warnings are errors
        raise TooManyPixelsError(str(error)) from error
    if limits and image.width * image.height > limits.pixels:
        raise TooManyPixelsError(f"more than {limits.pixels} pixels: {image.height}×{image.width}")
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if image.mode.startswith("I"):  # I;16 and its byte orders; I where a 16-bit value is held in 32 bits
        values = np.asarray(image).astype(np.float32)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"grey values from {values.min():.0f} to {values.max():.0f}, outside 0 to 65535")
        return Image.fromarray(values / 65535)
    image.info.pop("transparency", None)
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    return image if image.mode == mode else image.convert(mode)
