"""Images that stay encoded until they are read: what an image folder and Parquet shards have in common."""

import os
import sys
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from time import monotonic

import torch
from torch import Tensor

from petm.data.base import Data
from petm.data.decoding import (
    Channels,
    Encoded,
    ImageForm,
    Processor,
    decode,
    form_of,
    read_image,
)
from petm.errors import DataError

WORKERS = min(8, os.cpu_count() or 1)
"""Threads that decode; Pillow releases the interpreter's lock meanwhile."""


class EncodedImages(Data):
    """Images that are decoded when read, in a few threads.

    A subclass sets ``labels`` and ``source``, says how to get at the encoded images, and then calls `_settle`.

    Attributes:
        form: The shape of every image.
        skipped: Names of the unreadable images that ``skip_bad`` left out.
    """

    value_range = (0.0, 1.0)
    form: ImageForm
    skipped: tuple[str, ...] = ()

    @abstractmethod
    def encoded(self, index: int) -> Encoded:
        """Returns image ``index`` as a file or as bytes."""

    @abstractmethod
    def _keep(self, rows: Tensor) -> None:
        """Forgets every image but those at ``rows``, int64 and ascending."""

    def inputs(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Returns float32 ``(n, C, H, W)`` in ``value_range``: the images at ``indices``, in that order.

        Raises:
            DataError: An image cannot be read, or has another size than the first one and no size was asked for.
        """
        rows: list[int] = torch.as_tensor(indices, dtype=torch.int64).tolist()
        images = torch.empty((len(rows), self.form.channels, *self.form.size))
        pixels = images.numpy()

        def fill(first: int) -> None:
            for place in range(first, len(rows), WORKERS):
                row = rows[place]
                pixels[place] = decode(self.encoded(row), self.name(row), self.form)

        if len(rows) == 1:
            fill(0)
        else:
            with ThreadPoolExecutor(WORKERS) as pool:
                list(pool.map(fill, range(WORKERS)))
        return images

    def _settle(
        self,
        *,
        size: tuple[int, int] | None,
        channels: Channels | None,
        skip_bad: bool,
        processor: Processor | None = None,
    ) -> None:
        """Drops unreadable images where asked to, and fixes the form of the rest."""
        if skip_bad:
            bad = self._unreadable()
            self.skipped = tuple(self.name(row) for row in bad)
            readable = torch.ones(len(self), dtype=torch.bool)
            readable[bad] = False
            self._keep(readable.nonzero().flatten())
        if not len(self):
            lost = f" ({len(self.skipped)} unreadable ones were skipped)" if self.skipped else ""
            raise DataError(f"{self.source}: expected at least one image, got none{lost}. Name other data.")
        self.form = form_of(self.encoded(0), self.name(0), size=size, channels=channels, processor=processor)
        if processor is not None:
            self.value_range = processor.value_range

    def _unreadable(self) -> list[int]:
        """Decodes every image once and returns the indices of those that fail; a bar shows what takes over 2 s."""
        from rich.console import Console
        from rich.progress import Progress

        progress = Progress(console=Console(stderr=True), transient=True)
        task = progress.add_task("Checking images", total=len(self))
        shown, began = not sys.stderr.isatty(), monotonic()
        bad: list[int] = []
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(WORKERS))
            for start in range(0, len(self), 256):
                rows = range(start, min(start + 256, len(self)))
                bad += [row for row, fine in zip(rows, pool.map(self._is_readable, rows), strict=True) if not fine]
                progress.update(task, completed=rows.stop)
                if not shown and monotonic() - began > 2:
                    stack.enter_context(progress)
                    shown = True
        return bad

    def _is_readable(self, index: int) -> bool:
        try:
            read_image(self.encoded(index), self.name(index))
        except DataError:
            return False
        return True
