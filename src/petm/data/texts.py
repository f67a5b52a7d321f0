"""Texts with labels from Parquet, CSV and JSON Lines files; and as tokens, which a text classifier takes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from petm._internal.files import fingerprint
from petm._internal.progress import track
from petm.data.base import Data
from petm.data.fields import Fields
from petm.data.labels import UNLABELLED, LabelColumn, Place
from petm.data.opening import find_files, same_class_names
from petm.data.reader import Tokenizer
from petm.data.sources import Columns, ReadableRows, TableRows
from petm.data.tables import TABLE_SUFFIXES
from petm.errors import ArgumentError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 1024
"""Texts that are read, and encoded, at a time."""
_CHUNK = 1 << 16
"""Texts that are held as Python objects at a time; Arrow holds them in a tenth of the memory."""


@dataclass(frozen=True, eq=False)
class Texts:
    """``N`` texts with labels.

    Attributes:
        texts: ``pyarrow.ChunkedArray`` of ``N`` large strings, none of them blank.
        labels: int64 ``(N,)``; ``UNLABELLED`` (-1) where a text has none.
        classes: ``K`` class names in the order of the labels; empty when they have no names.
        source: Origin of the texts, for messages.
        rows: Where each text stands; empty for texts that are from no file.
    """

    texts: "pa.ChunkedArray"
    labels: Tensor
    classes: tuple[str, ...]
    source: str
    rows: ReadableRows = field(default_factory=ReadableRows)

    @classmethod
    def of(cls, texts: Sequence[str], labels: object, source: str, classes: Sequence[str] = ()) -> "Texts":
        """Returns texts in memory; labels are as of `petm.data.base.TensorData`, and raise as there."""
        import pyarrow as pa

        column = LabelColumn.of(labels, source)
        numbers, names = column.numbers(tuple(classes), None, source)
        return cls(pa.chunked_array([pa.array(texts, pa.large_string())]), torch.from_numpy(numbers), names, source)

    def __len__(self) -> int:
        return len(self.labels)


def read_texts(
    *paths: str | Path,
    text_column: Columns = "text",
    label_column: str | None = "label",
    classes: Sequence[str] | None = None,
    skip_bad: bool = False,
) -> Texts:
    """Returns the texts and labels of Parquet, CSV or JSON Lines files, in the order of the files.

    Labels are integers, or names of classes. Names are matched to ``classes``; without these, a label is the place of
    its name among all names in order. Class names in the Hugging Face metadata of a Parquet file count as names.

    Args:
        *paths: A ``.parquet``, ``.csv`` (with a header, separated by commas), ``.jsonl`` or ``.ndjson`` file in UTF-8,
            a glob of files of one kind, or a folder of Parquet shards.
        text_column: The column of texts.
        label_column: The column of labels, where an empty cell means none; None leaves all texts unlabelled.
        classes: The expected class names in order, such as a model's.
        skip_bad: Leave out rows that cannot be read or whose text is blank; reasons by name are in ``rows.skipped``.

    Raises:
        DataError: There is no such file, it is of another kind, damaged, or holds no texts; a column is missing or of
            an unsuitable type; a row cannot be read, or its text is blank; a label is outside 0..K-1 or not in
            ``classes``; the files are several parts, such as train and test, or have different classes.
    """
    import pyarrow as pa

    files = tuple(
        TableRows(file, text_column, label_column, texts=True, needs_labels=True)
        for path in paths
        for file in find_files(path, TABLE_SUFFIXES, "texts")
    )
    source = " + ".join(map(str, paths))
    rows, chunks, held = ReadableRows(), [], list[str]()
    for row in rows.each(files, _ROWS, skip_bad=skip_bad):
        held.append(str(row.content))
        if len(held) >= _CHUNK:
            chunks.append(pa.array(held, pa.large_string()))
            held.clear()
    if not (held or chunks):
        lost = f" ({len(rows.skipped)} unreadable or blank ones were skipped)" if rows.skipped else ""
        raise DataError(f"{source}: expected at least one text, got none{lost}. Name other data.")
    found, names = rows.labels.numbers(same_class_names(files), classes, source)
    if label_column is not None and not (found != UNLABELLED).any():
        raise DataError(f"{source}: expected labels in column '{label_column}', got none. Name it (--label-column).")
    chunks.append(pa.array(held, pa.large_string()))
    return Texts(pa.chunked_array(chunks), torch.from_numpy(found), names, source, rows)


class Tokenized(Data):
    """Texts as tokens, encoded once, held without padding and padded to one length when read.

    Args:
        texts: ``N`` texts with labels.
        encoder: The tokenizer.
        length: ``L``, to which every text is padded or cut; None means that of the longest text, at most what the
            model takes.

    Attributes:
        texts: The texts.
        length: ``L``.
        skipped: Why rows were left out when the texts were read, by name.

    Raises:
        ArgumentError: ``length`` is less than 1 or more than the model takes.
        DataError: A text has no token.
    """

    value_range = (-float("inf"), float("inf"))  # tokens have no order: no attack may move them

    def __init__(self, texts: Texts, encoder: Tokenizer, *, length: int | None = None) -> None:
        self.texts, self.labels, self.classes, self.source = texts, texts.labels, texts.classes, texts.source
        self.skipped, self.processor = texts.rows.skipped, encoder
        most = encoder.maximum
        if length is not None and not 1 <= length <= (length if most is None else most):
            rule = "of at least 1" if most is None else f"from 1 to {most}, the most that the model takes"
            raise ArgumentError(f"length: expected a number of tokens {rule}, got {length}.")
        self._tokens, self._counts = _encode(texts, encoder, most if length is None else length)
        self._starts, self.lengths = self._counts.cumsum(0) - self._counts, self._counts
        self._padding, self._pads_left = encoder.padding, encoder.pads_left
        empty = (self._counts == 0).nonzero().flatten()
        if len(empty):
            raise DataError(
                f"{self.source}: expected at least one token in every text, got none in {len(empty)} of {len(self)} "
                f"(the first is {self.name(int(empty[0]))}). Remove them."
            )
        self.length = length or int(self._counts.max())

    def inputs(self, indices: Sequence[int] | Tensor) -> Fields:
        """Returns int64 ``(n, L)`` fields by name: ``input_ids``, ``attention_mask`` and others of the encoder."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        starts, counts = self._starts[rows, None], self._counts[rows, None]
        places = torch.arange(self.length) - (self.length - counts if self._pads_left else 0)
        real = (places >= 0) & (places < counts)
        fields = {
            name: tokens[(starts + places).clamp(0, len(tokens) - 1)].long().where(real, self._padding.get(name, 0))
            for name, tokens in self._tokens.items()
        }
        return Fields({**fields, "attention_mask": real.long()})

    @cached_property
    def content(self) -> str:
        """A SHA-256 over the tokens, their counts, the labels and the length."""
        tokens = (part for name, held in sorted(self._tokens.items()) for part in (name, held))
        return fingerprint((*tokens, self._counts, self.labels, str(self.length)))

    def name(self, index: int) -> str:
        """Returns where text ``index`` stands: ``train.csv:17``, ``train.parquet row 15``."""
        return self.texts.rows.place(index) if self.texts.rows.tables else str(index)

    def place(self, index: int) -> Place:
        """Returns the file and the row of text ``index``."""
        return self.texts.rows.at(index) if self.texts.rows.tables else super().place(index)

    def text(self, index: int) -> str:
        """Returns text ``index``."""
        return str(self.texts.texts[index].as_py())


def _encode(texts: Texts, encoder: Tokenizer, limit: int | None) -> tuple[dict[str, Tensor], Tensor]:
    """The tokens of all texts in order for each field, in the smallest dtype, and their counts ``(N,)``."""
    parts: dict[str, list[Tensor]] = {}
    counts: list[int] = []
    with track("tokenize", len(texts)) as progress:
        for start in range(0, len(texts), _ROWS):
            chunk = texts.texts.slice(start, _ROWS).to_pylist()
            encoded = encoder.encode(chunk, limit)
            counts += [len(tokens) for tokens in encoded["input_ids"]]
            for name, rows in encoded.items():
                if name != "attention_mask":  # follows from the counts
                    parts.setdefault(name, []).append(_compact([token for row in rows for token in row]))
            progress.advance(len(chunk))
    return {name: torch.cat(held) for name, held in parts.items()}, torch.tensor(counts)


def _compact(numbers: Sequence[int]) -> Tensor:
    kinds, greatest = (torch.uint8, torch.int16, torch.int32, torch.int64), max(numbers, default=0)
    return torch.tensor(numbers, dtype=next(kind for kind in kinds if greatest <= torch.iinfo(kind).max))
