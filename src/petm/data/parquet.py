"""Images in Parquet files, in the layout that the Hugging Face hub uses."""

import glob
import json
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from petm._internal.files import fingerprint, sha256_of_file
from petm.data.base import UNLABELLED
from petm.data.blobs import Blobs
from petm.data.classes import SPLIT_NAMES, match_classes
from petm.data.decoding import Channels, Processor
from petm.data.encoded import EncodedImages
from petm.errors import DataError

_BUFFER, _ROWS = 1 << 20, 32
"""Bytes of a file, and rows of it, that are read at a time."""


class ParquetImages(EncodedImages):
    """Images of one or more Parquet files: encoded bytes in memory or a temporary file, pixels decoded when read.

    The image column is a struct with a field ``bytes``, or plain binary. Class names are taken from the Hugging Face
    metadata of the schema when it has them.

    Args:
        path: A file, a folder of ``*.parquet`` shards, or a glob of them.
        image_column: The column of encoded images.
        label_column: The column of integer labels; absent means ``label`` when there is such a column, and otherwise
            that the images are unlabelled.
        size: Height and width to resize to, bilinear with antialiasing; absent means that all images must have the
            size of the first.
        channels: 1 or 3; absent means as the first image.
        classes: The expected class names in order, such as a model's; labels are matched by name when the file has
            names, and by number when it has none.
        skip_bad: Decode every image once now, and leave the unreadable and the missing ones out; their names are in
            ``skipped``.
        processor: What prepares the images for a model, in place of ``size`` and ``channels``; its values may lie
            outside [0, 1].

    Attributes:
        skipped: File and row of the images that were left out.

    Raises:
        ArgumentError: ``size`` or ``channels`` breaks its rule.
        RunError: There is no room for the temporary file.
        DataError: There is no such file, or it is not a whole Parquet file; a column is missing or has an unsuitable
            type; an image or a label is missing; the shards are of several parts such as train and test, or do not
            agree on the classes; a class is not among ``classes``; there are no rows.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        image_column: str = "image",
        label_column: str | None = None,
        size: tuple[int, int] | None = None,
        channels: Channels | None = None,
        classes: Sequence[str] | None = None,
        skip_bad: bool = False,
        processor: Processor | None = None,
    ) -> None:
        self.source = str(path)
        self.files = find_shards(path)
        if not self.files:
            raise DataError(f"{path}: expected Parquet files, got nothing there. Check the path.")
        refuse_several_splits(path, self.files)
        self._images = Blobs()
        shards = [_read_shard(file, image_column, label_column, skip_bad, self._images) for file in self.files]
        for file, shard in zip(self.files, shards, strict=True):
            if shard.names != shards[0].names:
                raise DataError(
                    f"{file}: expected the same class names as in {self.files[0].name}, got others. "
                    f"Open files of one data set."
                )
        self.ends = torch.tensor([len(shard.labels) for shard in shards]).cumsum(0).tolist()
        self.rows = torch.arange(self.ends[-1])
        labels = torch.cat([shard.labels for shard in shards])
        self.labels, self.classes = match_classes(labels, shards[0].names, classes, self.source)
        self._settle(size=size, channels=channels, skip_bad=skip_bad, processor=processor)

    def encoded(self, index: int) -> bytes:
        """Returns the encoded bytes of image ``index``; empty when it is missing."""
        return self._images[int(self.rows[index])]

    def name(self, index: int) -> str:
        """Returns the file and the row, counted from 0, of image ``index``."""
        row = int(self.rows[index])
        shard = bisect_right(self.ends, row)
        return f"{self.files[shard]} row {row - (self.ends[shard - 1] if shard else 0)}"

    @cached_property
    def content(self) -> str:
        """A SHA-256 over the files, the rows in use, the labels and the form."""
        return fingerprint((str(self.form), *map(sha256_of_file, self.files), self.rows, self.labels))

    def _keep(self, rows: Tensor) -> None:
        self.rows, self.labels = self.rows[rows], self.labels[rows]


def find_shards(path: str | Path) -> list[Path]:
    """Returns the sorted Parquet files that a file, a folder or a glob stands for."""
    path = Path(path)
    if path.is_dir():
        return sorted(file for file in path.glob("*.parquet") if not file.name.startswith("."))
    return [path] if path.exists() else sorted(Path(file) for file in glob.glob(str(path)))


class _Shard(NamedTuple):
    labels: Tensor  # int64 (n,)
    names: tuple[str, ...]


def _read_shard(file: Path, image_column: str, label_column: str | None, skip_bad: bool, images: Blobs) -> _Shard:
    """Reads the two columns of one file, appends the images, and checks types and that nothing is missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Buffered, a column is read page by page; otherwise a group of rows is, which may be the whole file.
        with pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as opened:
            schema = opened.schema_arrow
            label_name = label_column or ("label" if "label" in schema.names else None)
            for column in (image_column, label_name) if label_name else (image_column,):
                if column not in schema.names:
                    raise DataError(
                        f"{file}: expected a column '{column}', got the columns {', '.join(schema.names)}. "
                        f"Name the columns of images and labels."
                    )
            read = 0
            for batch in opened.iter_batches(_ROWS, columns=[image_column]):
                images.append(_encoded(batch.column(image_column), file, image_column, read, skip_bad))
                read += len(batch)
            labels = opened.read(columns=[label_name]).column(label_name) if label_name else None
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{file}: expected a whole Parquet file, got: {str(error).splitlines()[0].rstrip('.')}. Fetch it again."
        ) from error
    if label_name is None or labels is None:
        return _Shard(torch.full((read,), UNLABELLED), ())
    if not pa.types.is_integer(labels.type):
        raise DataError(f"{file}: expected integers in column '{label_name}', got {labels.type}. Store class numbers.")
    if labels.null_count:
        raise DataError(
            f"{file} row {_first_null(labels)}: expected a label in column '{label_name}', got null. "
            f"Remove the row, or store {UNLABELLED} for no label."
        )
    numbers = torch.tensor(labels.cast(pa.int64()).to_numpy(), dtype=torch.int64)
    return _Shard(numbers, class_names(schema.metadata, label_name))


def _encoded(column: Any, file: Path, name: str, start: int, skip_bad: bool) -> Any:
    """Returns the encoded images of some rows from ``start`` on as large_binary, a missing one empty."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column = pc.struct_field(column, "bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise DataError(
            f"{file}: expected encoded images in column '{name}' (binary, or a struct with a field bytes), got {kind}. "
            f"Store the bytes of PNG or JPEG files."
        )
    if column.null_count and not skip_bad:
        raise DataError(
            f"{file} row {start + _first_null(column)}: expected an image in column '{name}', got null. "
            f"Remove the row, or leave such images out with skip_bad=True (--skip-bad)."
        )
    return column.fill_null(b"").cast(pa.large_binary())


def _first_null(column: Any) -> int:
    return int(column.is_null().index(True).as_py())


def class_names(metadata: dict[bytes, bytes] | None, label_column: str) -> tuple[str, ...]:
    """Returns the class names in a schema's Hugging Face metadata, or none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label_column]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def refuse_several_splits(path: str | Path, files: Sequence[Path]) -> None:
    """Raises DataError when file names such as ``train-00000-of-00002.parquet`` tell of several splits."""
    splits = sorted({file.name.lower().replace("_", "-").replace(".", "-").split("-")[0] for file in files})
    splits = [split for split in splits if split in SPLIT_NAMES]
    if len(splits) > 1:
        raise DataError(
            f"{path}: expected the files of one part of a data set, got {', '.join(splits)}. "
            f"Name one of them, such as {Path(path) / (splits[0] + '*.parquet') if Path(path).is_dir() else files[0]}."
        )
