"""Which source a path is."""

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from petm._internal.storage import Located, RemotePath, locate
from petm.data.image_folder import is_image
from petm.data.parquet import find_shards
from petm.data.source import Rows, Source
from petm.data.source_arrays import ArrayFile
from petm.data.source_images import (
    Found,
    held,
    in_folder,
    listed,
)
from petm.data.source_tables import ParquetFile
from petm.data.source_texts import TextLines
from petm.errors import DataError

_TEXTS = (".csv", ".jsonl", ".ndjson")
_IMAGES = "images (files, folders, *.parquet, *.npz)"


class Unreadable(Source):
    """A file that is there and cannot be read: one input with a fault."""

    def __init__(self, path: Located, reason: str) -> None:
        self.name, self.path, self.reason = str(path), path, reason

    def count(self) -> int:
        """Returns 1."""
        return 1

    def identity(self) -> str:
        """Returns the path and why."""
        return f"{self.path} {self.reason}"

    def rows(self, start: int, stop: int, size: int) -> Iterator[Rows]:
        """Yields the one."""
        if start < 1 <= stop:
            yield Rows([str(self.path)], [None], [None], [None], [self.reason])


def open_sources(
    paths: Iterable[str | Path], *, text_column: str | None = None, label_column: str | None = None
) -> list[Source]:
    """Returns what paths, folders and globs stand for, in their order.

    Args:
        paths: Image files that follow each other become one source.
        text_column: Of texts, where the classifier reads such; absent reads images.
        label_column: Of labels, where they are wanted; folders of images have those of their classes.

    Raises:
        DataError: There is nothing at a path, or it is of a kind that the classifier does not read, or lacks a column.
    """
    sources: list[Source] = []
    images: list[Found] = []
    for path in paths:
        for found in _matching(path):
            if text_column is None and is_image(found.name) and (isinstance(found, RemotePath) or found.is_file()):
                images.append((held(found), None))
                continue
            if images:
                sources.append(listed(tuple(images)))
                images.clear()
            sources += open_source(found, text_column=text_column, label_column=label_column)
    return [*sources, listed(tuple(images))] if images else sources


def open_source(path: Located, *, text_column: str | None, label_column: str | None) -> list[Source]:
    """Returns what one path stands for; the shards of a folder are several.

    Raises:
        DataError: It is of a kind that the classifier does not read, or lacks a column.
    """
    if path.is_dir():
        shards = _shards(path)
        if shards:
            return [
                source
                for shard in shards
                for source in open_source(shard, text_column=text_column, label_column=label_column)
            ]
        if text_column is not None:
            raise DataError(f"{path}: expected texts (*.parquet, {', '.join('*' + s for s in _TEXTS)}), got a folder.")
        return [in_folder(path)]
    suffix = path.suffix.lower()
    wanted = f"texts (*.parquet, {', '.join('*' + kind for kind in _TEXTS)})" if text_column is not None else _IMAGES
    try:
        if suffix == ".parquet":
            return [ParquetFile(path, text_column or "image", label_column, texts=text_column is not None)]
        if text_column is not None and suffix in _TEXTS:
            return [TextLines(path, text_column, label_column)]
        if text_column is None and suffix == ".npz":
            return [ArrayFile(path, labelled=label_column is not None)]
        if text_column is None and is_image(path.name):
            return [listed(((held(path), None),))]
    except DataError as error:
        if error.__cause__ is None:  # it is whole, and does not suit
            raise
        return [Unreadable(path, str(error))]
    raise DataError(f"{path}: expected {wanted}, got a file of the kind '{suffix or path.name}'. Name other inputs.")


def _matching(path: str | Path) -> list[Located]:
    place = locate(path)
    found: list[Located]
    if isinstance(place, RemotePath) and is_image(place.name) and "*" not in place.name:
        found = [place]  # whether it is there, is seen when it is fetched: a question each would take hours for a list
    elif place.exists():
        found = [place]
    elif isinstance(place, RemotePath):
        found = [*place.matching()] if "*" in place.key else []
    else:
        found = [*sorted(map(Path, glob.glob(str(path))))]
    if not found:
        raise DataError(f"{place}: expected a file, a folder or a glob, got nothing there. Check the path.")
    return found


def _shards(folder: Located) -> Sequence[Located]:
    return (folder / "*.parquet").matching() if isinstance(folder, RemotePath) else find_shards(folder)
