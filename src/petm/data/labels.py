"""Labels: class numbers from values of any kind beside the samples; and files of true labels by input."""

import re
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from petm.data.tables import TABLE_SUFFIXES, open_table, unguard
from petm.errors import DataError

UNLABELLED = -1

Place: TypeAlias = tuple[str, int | None]
"""An input and its row, as in a table of grades."""


def class_number(label: object, classes: Sequence[str]) -> int | None:
    """Returns the number of the class that a name or a number, also as text, stands for; None where it is neither.

    Without class names every number from 0 on is valid.
    """
    if isinstance(label, str):
        label = label if label in classes else label.strip()
        if label in classes:
            return classes.index(label)
        label = int(label) if label.isdecimal() else None
    if not isinstance(label, int) or isinstance(label, bool):
        return None
    return label if 0 <= label < (len(classes) or label + 1) else None


class LabelColumn:
    """Labels in the order in which they are read; each value is held once."""

    def __init__(self) -> None:
        self._codes, self._code_of = array("q"), dict[int | str, int]()

    def add(self, label: object) -> str | None:
        """Adds the next label (None for no label); or returns why it is no label, and adds nothing."""
        if label is None:
            self._codes.append(UNLABELLED)
            return None
        if isinstance(label, bool) or not isinstance(label, int | str):
            return f"expected a class number or a name as label, got {type(label).__name__}"
        if isinstance(label, int) and abs(label) > 1 << 62:
            return f"expected a class number as label, got {label:.3e}"
        self._codes.append(self._code_of.setdefault(label, len(self._code_of)))
        return None

    def numbers(
        self, names: Sequence[str], classes: Sequence[str] | None, source: str
    ) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Returns int64 ``(N,)`` labels, ``UNLABELLED`` where there is none, and the class names that they index.

        Names that are all whole numbers are numbers. Other names are matched to ``classes``; without these, a label is
        the place of its name among all names in order. The arguments are those of `match_classes`.

        Raises:
            DataError: Names and numbers are mixed, a name is a fraction, or as in `match_classes`.
        """
        values: list[int | str] = list(self._code_of)
        words = [value for value in values if isinstance(value, str)]
        if not set(words) <= set(names):
            if len(words) < len(values):
                raise DataError(f"{source}: expected names or numbers as labels, got both. Use one of them.")
            if not set(words) <= set(classes or ()):
                fractions = [word for word in words if re.fullmatch(r"-?\d+\.\d*", word)]
                if fractions:
                    wanted = "names or whole numbers as labels"
                    raise DataError(f"{source}: expected {wanted}, got {fractions[0]}. Write class numbers.")
                if all(re.fullmatch(r"-?\d{1,18}", word) for word in words):
                    values, words = [int(word) for word in words], []
            names = tuple(sorted(words))
        place = {name: number for number, name in enumerate(names)}
        numbers = [place[value] if isinstance(value, str) else value for value in values]
        labels = np.array([*numbers, UNLABELLED], np.int64)[np.frombuffer(self._codes, np.int64)]
        return match_classes(labels, names, classes, source)


def match_classes(
    labels: NDArray[np.int64], names: Sequence[str], classes: Sequence[str] | None, source: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Returns labels and class names in the order of ``classes``, matched by name where the data have names.

    Args:
        labels: int64 ``(N,)``, indices into ``names``; ``UNLABELLED`` stays.
        names: The data's own class names; empty when they have none, and the labels then index ``classes``.
        classes: ``K`` expected class names; None or empty means the data's own.
        source: Origin of the data, for messages.

    Raises:
        DataError: A sample has a class that is not among ``classes``, or a label outside its range.
    """
    names, classes = tuple(names), tuple(classes or ())
    known = names or classes
    present = [label for label in np.unique(labels).tolist() if label != UNLABELLED]
    bad = [label for label in present if label < 0 or (known and label >= len(known))]
    if bad:
        rule = f"labels from 0 to {len(known) - 1}" if known else "labels of at least 0"
        raise DataError(
            f"{source}: expected {rule} (or {UNLABELLED} for none), got {bad[0]}. "
            f"Check the labels, and the class names if there are any."
        )
    if not names or not classes or names == classes:
        return labels, known
    unknown = sorted({names[label] for label in present} - set(classes))
    if unknown:
        raise DataError(
            f"{source}: expected the classes {_enumerate(classes)}, got {_enumerate(unknown)} as well. "
            f"Rename or remove what the model does not know."
        )
    order = [classes.index(name) if name in classes else UNLABELLED for name in names]
    return np.array([*order, UNLABELLED], np.int64)[labels], classes


def read_true_labels(paths: Sequence[str | Path], classes: Sequence[str] = ()) -> dict[Place, int]:
    """Returns known labels by input and row; the last entry of an input counts.

    A CSV, JSON Lines or Parquet file has the columns ``input``, ``label`` and, where inputs are rows of files, ``row``;
    others are ignored. A label is a class name or a class number as in the column ``label`` of grades; an empty one
    removes earlier ones. Rows without an input are ignored, and so is an unfinished last line of JSON Lines, which
    ``petm serve`` leaves when it is killed.

    Raises:
        DataError: A file is absent, of another kind or damaged, lacks a column, or has a row whose label or row number
            is invalid; the first such row is named with the reason.
    """
    labels: dict[Place, int] = {}
    known = f"one of {_enumerate(classes)}, or a number below {len(classes)}" if classes else "a number from 0 on"
    for path in map(Path, paths):
        kind = path.suffix.lower()
        if not path.is_file() or kind not in TABLE_SUFFIXES:
            got = f"a file of the kind '{path.suffix}'" if path.is_file() else "no file there"
            raise DataError(f"{path}: expected labels ({', '.join(TABLE_SUFFIXES)}), got {got}. Name such a file.")
        by_line = kind in (".jsonl", ".ndjson")
        columns = ("input", "label", "row")
        table = open_table(path, columns, required=() if by_line else columns[:2], hint="Rename the columns.")
        faults: dict[str, str] = {}
        last: str | None = None
        for record in table.records():
            name, said, row = record.values or (None, None, None)
            if kind == ".csv":
                name, said = (unguard(value) if isinstance(value, str) else value for value in (name, said))
            last, fault = table.place(record.number), record.fault
            if isinstance(row, str) and row.isdecimal() and len(row) < 20:
                row = int(row)
            number = class_number(said, classes)
            if name is not None and fault is None:
                if row is not None and not isinstance(row, int):
                    fault = f"expected a whole number as row, got {row!r}"
                elif said is None:
                    labels.pop((str(name), row), None)
                elif number is None:
                    fault = f"expected as label {known}, got {said!r}"
                else:
                    labels[str(name), row] = number
            if fault is not None:
                faults[last] = fault
        if by_line and last in faults and not path.read_bytes().endswith(b"\n"):
            del faults[last]
        refuse_faults(faults, "Correct it.")
    return labels


def refuse_faults(faults: Mapping[str, str], cure: str) -> None:
    """Raises DataError where there are faults (reasons by place): the first, how many more there are, and the cure."""
    if faults:
        place, reason = next(iter(faults.items()))
        more = f" (and {len(faults) - 1:,} more such rows)" if len(faults) > 1 else ""
        raise DataError(f"{place}: {reason.rstrip('.')}{more}. {cure}")


def _enumerate(names: Sequence[str], limit: int = 12) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
