"""A folder of images: one sub-folder a class, or images alone to be graded."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from petm._internal.files import fingerprint
from petm.data.base import UNLABELLED
from petm.data.classes import SPLIT_NAMES, match_classes
from petm.data.decoding import Channels, Processor
from petm.data.encoded import EncodedImages
from petm.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)


class ImageFolder(EncodedImages):
    """Images of a folder in the order of their paths, listed at once and decoded when read.

    Each sub-folder that holds images, at any depth, is a class; a folder that only holds images itself, or a single
    image file, is unlabelled. Files without an image's suffix and hidden files are ignored. Palettes become colours,
    alpha is dropped, the EXIF orientation is applied, and 16-bit grey keeps its precision.

    Args:
        path: The folder, or one image file.
        size: Height and width to resize to, bilinear with antialiasing; absent means that all images must have the
            size of the first.
        channels: 1 or 3; absent means as the first image.
        classes: The expected class names in order, such as a model's; absent means the sorted names of the folders.
        skip_bad: Decode every image once now, and leave the unreadable ones out; their names are in ``skipped``.
        processor: What prepares the images for a model, in place of ``size`` and ``channels``; its values may lie
            outside [0, 1].

    Attributes:
        skipped: Paths of the images that were left out.

    Raises:
        ArgumentError: ``size`` or ``channels`` breaks its rule.
        DataError: There is no such folder, or no image in it; images lie beside class folders; the folders are parts
            such as train and test; a class is not among ``classes``; the first image is unreadable.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: tuple[int, int] | None = None,
        channels: Channels | None = None,
        classes: Sequence[str] | None = None,
        skip_bad: bool = False,
        processor: Processor | None = None,
    ) -> None:
        path = Path(path)
        self.source = str(path)
        names: tuple[str, ...] = ()
        if path.is_file():
            self.root, self.paths = path.parent, [path.name]
            labels = [UNLABELLED]
        else:
            self.root = path
            self.paths, labels, names = _list_folder(path)
        self.labels, self.classes = match_classes(torch.tensor(labels, dtype=torch.int64), names, classes, self.source)
        self._settle(size=size, channels=channels, skip_bad=skip_bad, processor=processor)

    def encoded(self, index: int) -> Path:
        """Returns the file of image ``index``."""
        return self.root / self.paths[index]

    def name(self, index: int) -> str:
        """Returns the path of image ``index``."""
        return str(self.encoded(index))

    @cached_property
    def content(self) -> str:
        """A SHA-256 over relative paths, file sizes, labels and the form; pixels are not read for it."""
        sizes = torch.tensor([self.encoded(index).stat().st_size for index in range(len(self))])
        return fingerprint((str(self.form), *self.paths, sizes, self.labels))

    def _keep(self, rows: Tensor) -> None:
        self.paths = [self.paths[row] for row in rows.tolist()]
        self.labels = self.labels[rows]


def _list_folder(root: Path) -> tuple[list[str], list[int], tuple[str, ...]]:
    """Returns the images' paths relative to ``root``, their labels, and the class names."""
    try:
        with os.scandir(root) as entries:
            children = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        nested = {child.name: sorted(_images_below(child)) for child in children if child.is_dir()}
    except OSError as error:
        raise DataError(
            f"{error.filename or root}: expected a folder of images, got: {error.strerror}. Check the path."
        ) from error
    flat = [child.name for child in children if child.is_file() and is_image(child.name)]
    names = tuple(name for name, paths in nested.items() if paths)
    if flat and names:
        raise DataError(
            f"{root}: expected images or class folders, got both ({flat[0]} beside the folder {names[0]}). "
            f"Move the images into class folders, or the folders away."
        )
    if names and SPLIT_NAMES.issuperset(name.lower() for name in names):
        raise DataError(
            f"{root}: expected one folder for each class, got parts of a data set: {', '.join(names)}. "
            f"Name one of them, such as {root / names[0]}."
        )
    if flat:
        return flat, [UNLABELLED] * len(flat), ()
    paths = [f"{name}/{path}" for name in names for path in nested[name]]
    return paths, [label for label, name in enumerate(names) for _ in nested[name]], names


def is_image(name: str) -> bool:
    """Returns whether a file of this name is taken for an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _images_below(folder: os.DirEntry[str]) -> Iterator[str]:
    """Yields paths relative to ``folder``; links to folders further down are not followed, as they may be loops."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from (f"{entry.name}/{path}" for path in _images_below(entry))
            elif is_image(entry.name) and entry.is_file():
                yield entry.name
