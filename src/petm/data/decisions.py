"""What people decided about inputs, read from files of labels."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from petm._internal.storage import Located
from petm._internal.texts import near
from petm.data.labels import (
    UNLABELLED,
    Label,
    Name,
    Named,
    Place,
    beside,
    class_numbers,
    enumerated,
    refuse_faults,
    row_number,
)
from petm.data.reader import content_hash
from petm.data.sources import Columns, names_of, text_of
from petm.data.tables import TABLE_SUFFIXES, Table, open_table, unguard
from petm.errors import DataError

FEWEST = 20
"""Fewest labelled inputs that are worth a look."""
CANNOT_TELL = "cannot tell"
LINES = (".jsonl", ".ndjson")
_FORMER = "probability"
"""The former name of ``probability_of_error``; the files that have it count the rows of Parquet from 0."""
_COLUMNS = ("input", "path", "row", "label", "label_name", "sha256", "decision", "confirmed", "suspicion")


@dataclass(frozen=True)
class Decided:
    """Inputs that a person has decided on.

    Attributes:
        places: Input and row; None where the label names its input by content alone.
        sha256: Hash of the input, where the label or the grades have one.
        labels: int64 ``(N,)``, true classes; `UNLABELLED` where the person cannot tell.
        chance: float64 ``(N,)``, with which each was drawn to be labelled; NaN where that is not known.
    """

    places: tuple[Place | None, ...]
    sha256: tuple[str | None, ...]
    labels: NDArray[np.int64]
    chance: NDArray[np.float64]


@dataclass(frozen=True)
class Decision:
    """One line of a file of labels.

    Attributes:
        source: Where it stands, for messages.
        said: The label as it is written; None for "cannot tell".
        place: Input and row, if it names them.
        sha256: Hash of the input, if it has one.
        label: The number of the class; `UNLABELLED` for "cannot tell".
    """

    source: str
    said: Label | None
    place: Place | None
    sha256: str | None
    label: int = UNLABELLED

    def check_agrees(self, later: "Decision", what: str) -> None:
        """Raises DataError where another decision on the same input is a different one."""
        if later.label != self.label:
            said = [CANNOT_TELL if each.said is None else str(each.said) for each in (self, later)]
            raise DataError(
                f"{later.source}: expected one label for {what}, got {said[1]!r} and, at {self.source}, {said[0]!r}. "
                f"Remove the wrong one."
            )


@dataclass(frozen=True)
class Decisions:
    """Decisions by what they name; an input may have one by content and another by place.

    Attributes:
        by_hash: By the hash of the content.
        by_place: By input and row.
        queued: Whether some belong to a review queue.
    """

    by_hash: dict[str | None, Decision]
    by_place: dict[Place | None, Decision]
    queued: bool


def read_decisions(
    labels: Sequence[str | Path], classes: Sequence[str], text_column: Columns | None = None
) -> Decisions:
    """Returns the decisions in files of labels; arguments and errors are those of `petm.data.reviewed.read_reviewed`.

    In the file that ``petm serve`` appends to, the last line on an input holds.
    """
    read, queued = list[Decision](), False
    for path in map(Path, labels):
        of_file, of_queue = _read(path, text_column)
        read, queued = read + _numbered(of_file, classes, path), queued or of_queue
    by_hash, by_place = dict[str | None, Decision](), dict[Place | None, Decision]()
    for each in read:
        if each.sha256 is not None:
            by_hash.setdefault(each.sha256, each).check_agrees(each, each.sha256)
        if each.place is not None:
            by_place.setdefault(each.place, each).check_agrees(each, shown(each.place))
    return Decisions(by_hash, by_place, queued)


def read_decided(
    labels: Sequence[str | Path],
    classes: Sequence[str],
    *,
    fewest: int = FEWEST,
    text_column: Columns | None = None,
) -> Decided:
    """Returns the decisions in files of labels whose grades are not at hand; see `petm.data.reviewed.read_reviewed`.

    The chance of being labelled is unknown for labels of a review queue, and 1 for all others.

    Args:
        labels: Files of labels.
        classes: ``K`` class names of the grader.
        fewest: Fewest labelled inputs.
        text_column: Column of texts in labels that name their input by nothing else.

    Raises:
        DataError: As `petm.data.reviewed.read_reviewed`, as far as it does not concern grades.
    """
    found = read_decisions(labels, classes, text_column)
    firsts = {id(each): each for each in (*found.by_hash.values(), *found.by_place.values())}.values()
    each = [entry for entry in firsts if entry.sha256 is None or found.by_hash[entry.sha256] is entry]
    numbers = np.array([entry.label for entry in each], np.int64)
    check_known(numbers, fewest)
    chance = np.full(len(each), np.nan if found.queued else 1.0)
    return Decided(tuple(entry.place for entry in each), tuple(entry.sha256 for entry in each), numbers, chance)


def check_known(labels: NDArray[np.int64], fewest: int = FEWEST) -> None:
    """Checks that there are labels enough, of two classes at least.

    Args:
        labels: int64 ``(N,)``; `UNLABELLED` where there is none.
        fewest: Fewest labels.

    Raises:
        DataError: There are fewer, or all are of one class.
    """
    known = labels[labels != UNLABELLED]
    if len(known) < fewest:
        raise DataError(f"labels: expected at least {fewest} labelled inputs, got {len(known)}. Label some more.")
    if len(np.unique(known)) == 1 and fewest > 1:
        raise DataError(
            f"labels: expected at least two classes, got class {known[0]} for all {len(known)} inputs. Check the "
            f"column of labels, or label inputs of other classes."
        )


def open_table_file(path: Located, columns: Sequence[str], required: Sequence[str], hint: str) -> Table:
    """Returns a table of labels or grades; raises DataError where the path is none."""
    if not path.is_file() or path.suffix.lower() not in TABLE_SUFFIXES:
        got = f"a file of the kind '{path.suffix}'" if path.exists() else "a path that does not exist"
        raise DataError(f"{path}: expected a table ({', '.join(TABLE_SUFFIXES)}), got {got}. {hint}")
    return open_table(path, columns, required=required, hint=hint)


def refuse_former(source: str, columns: Collection[str]) -> None:
    """Raises DataError for the columns of a file that an earlier petm wrote."""
    if _FORMER in columns and "probability_of_error" not in columns:
        raise DataError(
            f"{source}: expected the column 'probability_of_error', got '{_FORMER}', as earlier versions of petm "
            f"wrote. Grade again."
        )


def cut_off(path: Located) -> int | None:
    """Returns the last line of JSON Lines, from 1, where it has no end, as a service leaves it that was killed."""
    if path.suffix.lower() not in LINES or not isinstance(path, Path):
        return None
    lines, last = 1, b"\n"
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            lines, last = lines + block.count(b"\n"), block[-1:]
    return lines if last != b"\n" else None


def _read(path: Path, text_column: Columns | None) -> tuple[list[Decision], bool]:
    """The decisions of a file, and whether it belongs to a review queue."""
    by_line = path.suffix.lower() in LINES
    columns = (*_COLUMNS, *names_of(text_column or ()))
    table = open_table_file(path, columns, () if by_line else ("label",), "Name a file of labels.")
    untyped, faults = path.suffix.lower() == ".csv", dict[str, str]()
    entries: list[Decision] = []
    held: dict[str, Decision | None] = {}  # of the file that petm serve appends to
    queued, cut = False, cut_off(path)
    for record in table.records():
        last = table.place(record.number)
        if record.fault is not None:
            if record.number != cut:
                faults[last] = record.fault
            continue
        known, texts = record.values[: len(_COLUMNS)], record.values[len(_COLUMNS) :]
        name, other, row, label, label_name, digest, decision, confirmed, suspicion = (
            unguard(value) if untyped and isinstance(value, str) else value for value in known
        )
        served = digest is not None and confirmed is not None
        queued = queued or (confirmed is not None and suspicion is not None)
        # The path in a file of petm serve is that of the copy beside it.
        name = name if name is not None or served else other
        try:
            place = None if name is None else (str(name), row_number(row))
            said = beside(label, label_name, untyped=untyped)
        except ValueError as error:
            faults[last] = str(error)
            continue
        entry = None
        if said is not None or decision == CANNOT_TELL:
            if place is None and digest is None and text_column is not None:
                digest = content_hash(text_of(text_column, texts))
            if place is None and digest is None:
                faults[last] = "expected an input (columns sha256, input or path), got a label without one"
                continue
            # By its content alone: the name that a browser sends is no path.
            entry = Decision(last, said, None if served else place, None if digest is None else str(digest).lower())
        if served:
            held[str(digest)] = entry
        elif entry is not None:
            entries.append(entry)
    refuse_faults(faults, "Correct it.")
    return entries + [entry for entry in held.values() if entry is not None], queued


def _numbered(read: Sequence[Decision], classes: Sequence[str], path: Path) -> list[Decision]:
    """The decisions of a file with the numbers of their classes, where all numbers are names or none is."""
    said = {entry.said for entry in read if entry.said is not None}
    try:
        numbers = class_numbers(said, classes)
        # A number beside a name that the grader does not know is another grader's.
        foreign = {each for each in said if isinstance(each, Named) and not class_numbers([Name(each.name)], classes)}
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    known = f"one of the grader's classes {enumerated(classes)}, or a number below {len(classes)}"
    faults = {
        each.source: f"expected as label {known}, got {each.said!s}{near(each.said, classes)}"
        for each in read
        if each.said is not None and (each.said not in numbers or each.said in foreign)
    }
    refuse_faults(faults, "Name the bundle that these labels are for.")
    return [each if each.said is None else replace(each, label=numbers[each.said]) for each in read]


def shown(place: Place) -> str:
    """Returns an input and its row in words."""
    return place[0] if place[1] is None else f"{place[0]} row {place[1]}"
