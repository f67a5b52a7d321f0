"""Texts with labels in Parquet, CSV and JSON Lines files."""

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from petm.data.base import UNLABELLED
from petm.data.classes import match_classes
from petm.data.parquet import find_shards, refuse_several_splits
from petm.data.text_files import READERS, Rows
from petm.errors import DataError

TEXT_SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True, eq=False)
class Texts:
    """``N`` texts with labels.

    Attributes:
        texts: ``pyarrow.ChunkedArray`` of ``N`` large strings, none of them blank.
        labels: int64 ``(N,)``; ``UNLABELLED`` (-1) where a text has none.
        classes: ``K`` class names, the label being the index; empty when they have no names.
        source: Where the texts come from, in words that fit into a message.
        places: For each file its name in front of a number, such as ``train.csv:``.
        file_of: int64 ``(N,)``, the file of each text.
        numbers: int64 ``(N,)``, its line (of a CSV or JSON Lines file, from 1) or row (of a Parquet file, from 0).
        skipped: Names of the blank texts that ``skip_bad`` left out.
    """

    texts: Any
    labels: Tensor
    classes: tuple[str, ...]
    source: str
    places: tuple[str, ...]
    file_of: Tensor
    numbers: Tensor
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def text(self, index: int) -> str:
        """Returns text ``index``."""
        return str(self.texts[index].as_py())

    def name(self, index: int) -> str:
        """Returns where text ``index`` stands: ``train.csv:17``, ``train.parquet row 15``."""
        return f"{self.places[int(self.file_of[index])]}{int(self.numbers[index])}"


def read_texts(
    path: str | Path,
    *,
    text_column: str = "text",
    label_column: str | None = "label",
    classes: Sequence[str] | None = None,
    skip_bad: bool = False,
) -> Texts:
    """Returns the texts and labels of a Parquet, CSV or JSON Lines file.

    Labels are integers, or names of classes. Names are matched to ``classes``; without these, a label is the place of
    its name among all names in order. Class names in the Hugging Face metadata of a Parquet file count as names.

    Args:
        path: A ``.parquet``, ``.csv`` (with a header, separated by commas), ``.jsonl`` or ``.ndjson`` file in UTF-8, a
            glob of files of one kind, or a folder of Parquet shards.
        text_column: The column of texts.
        label_column: The column of labels, where an empty cell means none; None leaves all texts unlabelled.
        classes: The expected class names in order, such as a model's.
        skip_bad: Leave blank texts out; their names are in ``skipped``.

    Raises:
        DataError: There is no such file, it is of another kind, is not whole, or holds no texts; a column is missing
            or has an unsuitable type; a text is blank; a label is outside 0..K-1 or names no class of ``classes``; the
            files are of several parts such as train and test, or do not agree on the classes.
    """
    files = _find_files(Path(path))
    rows = [READERS[file.suffix.lower()](file, text_column, label_column) for file in files]
    for file, read in zip(files, rows, strict=True):
        if read.names != rows[0].names:
            raise DataError(
                f"{file}: expected the same class names as in {files[0].name}, got others. Open files of one data set."
            )
    labels, found = _labels(rows, classes, str(path))
    return _without_blanks(rows, labels, found, str(path), skip_bad=skip_bad)


def _find_files(path: Path) -> list[Path]:
    """The files that a path stands for, all of one kind."""
    kinds = ", ".join(f"*{suffix}" for suffix in TEXT_SUFFIXES)
    if path.is_dir():
        files = find_shards(path)
        got = "a folder without Parquet files"
    else:
        files = [path] if path.exists() else sorted(Path(file) for file in glob.glob(str(path)))
        got = "nothing there"
    if not files:
        raise DataError(f"{path}: expected texts ({kinds}), got {got}. Check the path.")
    suffixes = sorted({file.suffix.lower() for file in files})
    if len(suffixes) > 1 or suffixes[0] not in TEXT_SUFFIXES:
        got = " and ".join(f"'{suffix}'" for suffix in suffixes)
        raise DataError(f"{path}: expected texts ({kinds}), got a file of the kind {got}. Convert it.")
    refuse_several_splits(path, files)
    return files


def _labels(rows: Sequence[Rows], classes: Sequence[str] | None, source: str) -> tuple[Tensor, tuple[str, ...]]:
    """The labels of all files as one tensor, and the class names that they index."""
    code_of: dict[int | str, int] = {}
    codes = []
    for read in rows:
        places = [code_of.setdefault(value, len(code_of)) for value in read.labels.values]
        codes.append(_looked_up(places, read.labels.codes))
    names = rows[0].names
    words = [value for value in code_of if isinstance(value, str)]
    numbers = [value for value in code_of if isinstance(value, int)]
    if words and numbers:
        raise DataError(f"{source}: expected names or numbers as labels, got both. Use one of them.")
    if words and not set(words) <= set(classes or ()):
        fractions = [word for word in words if re.fullmatch(r"-?\d+\.\d*", word)]
        if fractions:
            raise DataError(
                f"{source}: expected names or whole numbers as labels, got {fractions[0]}. Write class numbers."
            )
        if all(re.fullmatch(r"-?\d+", word) for word in words):
            words, numbers = [], [int(word) for word in words]
    if words:
        names = tuple(sorted(words))
        numbers = [names.index(word) for word in words]
    return match_classes(_looked_up(numbers, torch.cat(codes)), names, classes, source)


def _looked_up(numbers: Sequence[int], codes: Tensor) -> Tensor:
    """The number of each code, int64; ``UNLABELLED`` stays."""
    return torch.tensor([*numbers, UNLABELLED], dtype=torch.int64)[codes]


def _without_blanks(
    rows: Sequence[Rows], labels: Tensor, classes: tuple[str, ...], source: str, *, skip_bad: bool
) -> Texts:
    """The texts of all files, after blank ones are refused or left out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pa.chunked_array([chunk for read in rows for chunk in read.texts.chunks], pa.large_string())
    numbers = torch.cat([read.numbers for read in rows])
    file_of = torch.repeat_interleave(torch.tensor([len(read.numbers) for read in rows]))
    found = Texts(texts, labels, classes, source, tuple(read.place for read in rows), file_of, numbers)
    written = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(texts), ""), False)
    kept = torch.tensor(written.to_numpy())
    blank = (~kept).nonzero().flatten().tolist()
    if blank and not skip_bad:
        raise DataError(
            f"{source}: expected a text in every row, got {len(blank)} of {len(found)} without any (the first is "
            f"{found.name(blank[0])}). Remove them, or leave them out with skip_bad=True (--skip-bad)."
        )
    if not bool(kept.any()):
        lost = f" ({len(blank)} blank ones were skipped)" if blank else ""
        raise DataError(f"{source}: expected at least one text, got none{lost}. Name other data.")
    if not blank:
        return found
    return replace(
        found,
        texts=texts.filter(written),
        labels=labels[kept],
        file_of=file_of[kept],
        numbers=numbers[kept],
        skipped=tuple(map(found.name, blank)),
    )
