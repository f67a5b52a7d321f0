"""Labels: class numbers from values of any kind beside the samples."""

import hashlib
import math
import re
import reprlib
import unicodedata
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from petm._internal.texts import near
from petm.errors import DataError

UNLABELLED = -1

Place: TypeAlias = tuple[str, int | None]
"""An input and its row, as in a table of grades."""

_LONGEST_NAME = 255
"""Bytes of a file's name on common systems."""
_NUMERAL = re.compile(r"([+-]?[0-9]{1,18})(?:\.0*)?")
_NO_LABEL = re.compile(r"[+-]?[0-9]*(?:\.[0-9]+|[0-9]{19,})")
"""Text that is neither a class number nor meant as a name: a fraction, or more digits than any number of classes."""


class Cell(str):
    """Text of a file without types (CSV), where a number may be a class number or a name."""

    __slots__ = ()


class Name(str):
    """A class name for certain: of a folder, or of a file that names the classes of its numbers."""

    __slots__ = ()


class Named(NamedTuple):
    """A class by the columns ``label`` and ``label_name``, as petm writes both."""

    label: int | str
    name: str

    def __str__(self) -> str:
        return f"{self.label} ({self.name})"


Label: TypeAlias = int | str | Named


def plain_label(value: object) -> Label | None:
    """Returns a label as a number or a name; None where there is none.

    Whole floats are numbers, a one-hot row is the place of its 1, and scalars of NumPy and PyTorch are their values.

    Raises:
        ValueError: It is neither, with the reason.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, str | Named):
        return value
    if isinstance(value, list) and len(value) == 1:
        return plain_label(value[0])
    if isinstance(value, list) and value.count(1) == 1 and value.count(0) == len(value) - 1:
        return value.index(1)
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) < 1 << 62:
            return value
        raise ValueError("expected a class number as label, got one of more than 18 digits")
    raise ValueError(f"expected a class number or a name as label, got {reprlib.repr(value)}")


def class_numbers(labels: Collection[Label], classes: Sequence[str]) -> dict[Label, int]:
    """Returns the class numbers of the labels of one column; a label that stands for no class is absent.

    Text is a name first. Other numbers are all names or all class numbers, whichever all of them can be. Without class
    names every number from 0 on is valid.

    Raises:
        ValueError: Numbers can be both and would differ, or some can only be names and others only class numbers.
    """
    found: dict[Label, int] = {}
    names, numbers = dict[Label, int](), dict[Label, int]()
    for label in labels:
        value, own = label, None
        if isinstance(label, Named):
            value, own = label.label, _place(label.name, tuple(classes))
        text, number = str(value), _number(value)
        name = _place(text, tuple(classes))
        if number is not None and (not 0 <= number < (len(classes) or number + 1) or (classes and type(value) is Name)):
            number = None
        if own is not None:
            if own in (name, number):
                found[label] = own
        elif name is not None and isinstance(value, str) and not isinstance(value, Cell):
            found[label] = name
        else:
            names |= {label: name} if name is not None else {}
            numbers |= {label: number} if number is not None else {}
    either = names.keys() | numbers.keys()
    if names == numbers or not names.keys() >= either:
        chosen = numbers
    elif not numbers.keys() >= either:
        chosen = names
    else:
        chosen = {}
    if len(chosen) < len(either):
        label = min(either, key=str)
        raise ValueError(
            f"expected labels that are class names or class numbers, got {label!s}, where the classes are named "
            f"{enumerated(classes)}: a name and a number may mean different classes. "
            f"Write names into a column label_name beside label, or as text into JSON Lines or Parquet."
        )
    return found | chosen


def numbers_are_names(classes: Sequence[str]) -> bool:
    """Returns whether some number may be the name of a class and the number of another."""
    return any(_number(name) not in (None, number) for number, name in enumerate(classes))


def _number(value: object) -> int | None:
    numeral = _NUMERAL.fullmatch(value.strip()) if isinstance(value, str) else None
    return int(numeral[1]) if numeral else value if isinstance(value, int) else None


@lru_cache(16)
def _places(classes: tuple[str, ...]) -> list[dict[str, int]]:
    """Class numbers by name, by name in normal form, and by folder name; without those that several classes have."""
    forms = (classes, tuple(map(normal_name, classes)), tuple(map(folder_name, classes)))
    counts = [Counter(form) for form in forms]
    pairs = zip(forms, counts, strict=True)
    return [{name: n for n, name in enumerate(form) if count[name] == 1} for form, count in pairs]


def normal_name(name: str) -> str:
    """Returns a name without what may differ where it is the same: Unicode form, spaces, how a number is written."""
    numeral = _NUMERAL.fullmatch(name.strip())
    return str(int(numeral[1])) if numeral else unicodedata.normalize("NFC", name).strip()


def _place(name: str, classes: tuple[str, ...]) -> int | None:
    """The number of the class of this name, or of this name of its folder."""
    exact, normal, cut = _places(classes)
    if name in classes:
        return exact.get(name)
    folder = folder_name(name)
    return normal.get(normal_name(name), exact.get(folder, cut.get(folder)))


def folder_name(name: str) -> str:
    """Returns the name of a class as a folder name, with forbidden characters written as in a URL.

    One of more bytes than a folder's name may have is cut, and ends in a part of its SHA-256.
    """
    whole = re.sub(r'[%/\\:*?"<>|\x00-\x1f]|^\.', lambda found: f"%{ord(found[0]):02X}", name) or "%"
    encoded = whole.encode("utf-8", "surrogatepass")
    if len(encoded) <= _LONGEST_NAME:
        return whole
    cut = re.sub("%.?$", "", encoded[:200].decode(errors="ignore"))
    return f"{cut}~{hashlib.sha256(encoded).hexdigest()[:32]}"


def class_of_folder(name: str) -> str:
    """Returns the class name for which `folder_name` gives this one; where there is none, the folder's own."""
    found = "" if name == "%" else unquote(name)
    return found if folder_name(found) == name else name


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Returns different class names in the order of their numbers where all are numbers or ``LABEL_i``, else as text.

    Example:
        >>> in_order(["10", "9", "b"]), in_order(["10", "9"])
        (('10', '9', 'b'), ('9', '10'))
    """
    texts = sorted(set(names))
    found = [re.fullmatch(r"(?:LABEL_)?([0-9]{1,18})", name) for name in texts]
    numbers = [int(numeral[1]) for numeral in found if numeral]
    if len(numbers) < len(texts):
        return tuple(texts)
    return tuple(name for _, name in sorted(zip(numbers, texts, strict=True)))


class LabelColumn:
    """Labels in the order in which they are read; each value is held once."""

    def __init__(self) -> None:
        self._codes, self._code_of = array("q"), dict[Label, int]()

    def add(self, label: object) -> str | None:
        """Adds the next label (None for no label); or returns why it is no label, and adds nothing."""
        try:
            value = plain_label(label)
        except ValueError as error:
            return str(error)
        if value is None or value == UNLABELLED:
            self._codes.append(UNLABELLED)
        else:
            self._codes.append(self._code_of.setdefault(value, len(self._code_of)))
        return None

    @classmethod
    def of(cls, labels: object, source: str) -> "LabelColumn":
        """Returns the labels of a list, an array, a tensor or a pandas column; raises DataError for what is none."""
        values = labels.tolist() if hasattr(labels, "tolist") else labels
        if not isinstance(values, list | tuple):
            raise DataError(f"{source}: expected one label for each sample, got {reprlib.repr(values)}.")
        column = cls()
        for row, value in enumerate(values):
            if fault := column.add(value):
                raise DataError(f"{source}: {fault} for sample {row}. Pass class numbers, names or one-hot rows.")
        return column

    def numbers(
        self, names: Sequence[str], classes: Sequence[str] | None, source: str
    ) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Returns int64 ``(N,)`` labels, ``UNLABELLED`` where there is none, and the class names that they index.

        Labels are matched to ``classes`` (`class_numbers`). Without these, names that are all whole numbers are
        numbers, and another label is the place of its name among all names (`in_order`). The arguments are those of
        `match_classes`.

        Raises:
            DataError: Names and numbers are mixed, a name is a fraction, or as in `class_numbers` and `match_classes`.
        """
        values = list(self._code_of)
        if not names and classes:
            names = tuple(classes)
            try:
                place = class_numbers(values, classes)
            except ValueError as error:
                raise DataError(f"{source}: {error}") from error
            beyond = {
                value: _number(value) for value in values if value not in place and type(value) in (int, str, Cell)
            }
            place |= {value: number for value, number in beyond.items() if number is not None}
            if unknown := [str(value) for value in values if value not in place]:
                raise _unknown(source, classes, unknown)
        else:
            plain = {value: value.label if isinstance(value, Named) else value for value in values}
            words = {value: word for value, word in plain.items() if isinstance(word, str)}
            if words and not set(words.values()) <= set(names):
                names, words = self._names_among(words, len(values), source)
            order = {name: number for number, name in enumerate(names)}
            place = {value: number for value, said in plain.items() if (number := _number(said)) is not None}
            place |= {value: order[word] for value, word in words.items()}
        labels = np.array([*(place[value] for value in values), UNLABELLED], np.int64)
        return match_classes(labels[np.frombuffer(self._codes, np.int64)], names, classes, source)

    @staticmethod
    def _names_among(words: Mapping[Label, str], count: int, source: str) -> tuple[tuple[str, ...], dict[Label, str]]:
        """The class names, and each label's; none where all are numbers."""
        if len(words) < count:
            raise DataError(f"{source}: expected names or numbers as labels, got both. Use one of them.")
        stripped = {label: word.strip() for label, word in words.items()}
        if all(map(_NUMERAL.fullmatch, stripped.values())):
            return (), {}
        if odd := [word for word in stripped.values() if _NO_LABEL.fullmatch(word)]:
            wanted = "names or whole numbers as labels"
            raise DataError(f"{source}: expected {wanted}, got {odd[0][:20]}. Write class numbers.")
        return in_order(stripped.values()), stripped


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
    order = [_place(name, classes) for name in names]
    if unknown := [names[label] for label in present if order[label] is None]:
        raise _unknown(source, classes, unknown)
    return np.array([UNLABELLED if place is None else place for place in (*order, None)], np.int64)[labels], classes


def _unknown(source: str, classes: Sequence[str], unknown: Sequence[str]) -> DataError:
    return DataError(
        f"{source}: expected the classes {enumerated(classes)}, got {enumerated(in_order(unknown))} as well"
        f"{near(unknown[0], classes)}. "
        f"Rename or remove what the model does not know."
    )


def beside(label: object, name: object, *, untyped: bool) -> Label | None:
    """Returns the label of a row with a class name beside it or None; ``untyped`` text may be a number.

    Raises:
        ValueError: As `plain_label`.
    """
    value = plain_label(label)
    if value is None or isinstance(value, Named) or (isinstance(value, str) and not value.strip()):
        return value if isinstance(value, Named) else None
    if isinstance(name, str):
        return Named(value, name)
    return Cell(value) if untyped and isinstance(value, str) else value


def row_number(value: object) -> int | None:
    """Returns the number of a row, None where there is none.

    Raises:
        ValueError: It is no whole number.
    """
    row = _number(int(value) if isinstance(value, float) and value.is_integer() else value)
    if row is None and value is not None:
        raise ValueError(f"expected a whole number as row, got {reprlib.repr(value)}")
    return row


def refuse_faults(faults: Mapping[str, str], cure: str) -> None:
    """Raises DataError where there are faults (reasons by place): the first, how many more there are, and the cure."""
    if faults:
        place, reason = next(iter(faults.items()))
        more = f" (and {len(faults) - 1:,} more such rows)" if len(faults) > 1 else ""
        raise DataError(f"{place}: {reason.rstrip('.')}{more}. {cure}")


def enumerated(names: Sequence[str], limit: int = 12) -> str:
    """Returns the first names, and the number of others."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
