"""Images read by index: listed or copied once, and decoded when read."""

from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from petm._internal.files import fingerprint, sha256_of_file
from petm._internal.progress import track
from petm._internal.spill import ScratchFile
from petm.data.base import Data
from petm.data.images import (
    WORKERS,
    Encoded,
    FormSettings,
    ImageError,
    ImageForm,
    ImageProcessor,
    decode,
    form_of,
    read_image,
)
from petm.data.labels import Place
from petm.data.sources import ReadableRows, Source
from petm.errors import DataError

_HELD, _WRITTEN = 32 << 20, 1 << 20
"""Bytes up to which encoded images lie in memory; and, of more, those that are written at a time."""
_ROWS = 32
"""Rows of a source that are read at a time."""


class ImageData(Data):
    """The images of sources in their order, decoded in a few threads when read; arguments as of `open_data`.

    Images are read as a viewer shows them (`petm.data.pixels.as_shown`); 16-bit grey keeps its precision.

    Args:
        sources: Image files, or tables with encoded images; all of one kind.
        source: Origin of the samples, for messages.
        root: The folder to which the paths of image files are relative in `content`.
        names: The data's own class names in order; empty where they have none.
        classes: The expected class names in order.
        skip_bad: Whether to leave out what cannot be read, for which every image is decoded once now.
        **form: As of `petm.data.images.form_of`; size and channels are those of the first image where they are absent.

    Attributes:
        form: The shape of every image.
        skipped: Why images were left out, by name.

    Raises:
        ArgumentError, DataError: As `open_data`.
        RunError: There is no room for a temporary file.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        source: str,
        *,
        root: Path | None = None,
        names: Sequence[str] = (),
        classes: Sequence[str] | None = None,
        skip_bad: bool = False,
        **form: Unpack[FormSettings],
    ) -> None:
        self.source, self._root = source, root or Path()
        self._found, self._files, self._blobs = ReadableRows(), list[str](), Blobs()
        for row in self._found.each(sources, _ROWS, skip_bad=skip_bad):
            if isinstance(row.content, bytes):
                self._blobs.append(row.content)
            else:
                self._files.append(str(Path(row.path).relative_to(self._root)))
        self.skipped = self._found.skipped
        numbers, self.classes = self._found.labels.numbers(names, classes, source)
        self.labels = torch.from_numpy(numbers)
        self._rows = torch.arange(len(numbers))
        if skip_bad:
            bad = self._unreadable(form.get("processor"))
            self.skipped.update((self.name(row), reason) for row, reason in sorted(bad.items()))
            kept = torch.tensor([row not in bad for row in range(len(self))], dtype=torch.bool)
            self.labels, self._rows = self.labels[kept], self._rows[kept]
        if not len(self):
            lost = f" ({len(self.skipped)} unreadable ones were skipped)" if self.skipped else ""
            raise DataError(f"{source}: expected at least one image, got none{lost}. Name other data.")
        self.form: ImageForm = form_of(self._encoded(0), self.name(0), **form)
        self.value_range, self.processor = self.form.value_range, self.form.processor
        self.are_pixels = not (self.form.processor or self.form.mean)

    def inputs(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Returns float32 ``(n, C, H, W)`` in ``value_range``: the images at ``indices``, in order; sounds as well.

        Raises:
            DataError: An image cannot be read, or has another size than the first one and no size was given.
        """
        rows: list[int] = torch.as_tensor(indices, dtype=torch.int64).tolist()
        images = torch.empty((len(rows), *self.form.shape))
        pixels = images.numpy()

        def fill(first: int) -> None:
            for place in range(first, len(rows), WORKERS):
                row = rows[place]
                pixels[place] = decode(self._encoded(row), self.name(row), self.form)

        if len(rows) == 1:
            fill(0)
        else:
            with ThreadPoolExecutor(WORKERS) as pool:
                list(pool.map(fill, range(WORKERS)))
        return images

    def name(self, index: int) -> str:
        """Returns the path of image ``index``, or the file and the row."""
        row = int(self._rows[index])
        return str(self._root / self._files[row]) if self._files else self._found.place(row)

    def place(self, index: int) -> Place:
        """Returns the path of image ``index``, or the table and the row."""
        return (self.name(index), None) if self._files else self._found.at(int(self._rows[index]))

    @cached_property
    def content(self) -> str:
        """A SHA-256 over labels, form, and relative paths and sizes of files, or the content of tables."""
        if self._files:
            paths = [self._files[row] for row in self._rows.tolist()]
            sizes = torch.tensor([(self._root / path).stat().st_size for path in paths])
            return fingerprint((str(self.form), *paths, sizes, self.labels))
        hashes = [sha256_of_file(Path(table.name)) for table in self._found.tables]
        return fingerprint((str(self.form), *hashes, self._rows, self.labels))

    def _encoded(self, index: int) -> Encoded:
        row = int(self._rows[index])
        return self._root / self._files[row] if self._files else self._blobs[row]

    def _unreadable(self, processor: ImageProcessor | None) -> dict[int, str]:
        """Decodes every image once and returns why some fail."""
        bad: dict[int, str] = {}

        def check(row: int) -> None:
            try:
                read_image(self._encoded(row), self.name(row), processor=processor)
            except ImageError as error:
                bad[row] = error.reason

        with track("check images", len(self)) as progress, ThreadPoolExecutor(WORKERS) as pool:
            for start in range(0, len(self), 256):
                rows = range(start, min(start + 256, len(self)))
                list(pool.map(check, rows))
                progress.advance(len(rows))
        return bad


class Blobs:
    """Encoded images that are appended, and then read one by one in any order.

    Parquet is read in groups of rows: a shuffled batch would take a whole group for each image. Copied once into a
    file, every image is one short read away, and needs 8 bytes of memory.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._file: ScratchFile | None = None
        self._ends = array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, image: bytes) -> None:
        """Appends an image; raises RunError where there is no room for the temporary file."""
        self._held += image
        self._ends.append(self._ends[-1] + len(image))
        if len(self._held) > (_HELD if self._file is None else _WRITTEN):
            if self._file is None:
                cure = "Free space, or name another folder for temporary files in the environment (TMPDIR)."
                self._file = ScratchFile("the encoded images", cure)
            self._file.write(self._ends[-1] - len(self._held), self._held)
            self._held = bytearray()

    def __getitem__(self, row: int) -> bytes:
        start, end = self._ends[row], self._ends[row + 1]
        waiting = self._ends[-1] - len(self._held)  # where the part in memory begins
        if self._file is None or start >= waiting:
            return bytes(memoryview(self._held)[start - waiting : end - waiting])
        image = bytearray(end - start)
        self._file.read_into(start, image)
        return bytes(image)
