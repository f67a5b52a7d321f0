"""Labels that people gave to graded inputs, joined to their grades by content, path or row."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from petm._internal.storage import locate
from petm.data.decisions import (
    FEWEST,
    Decided,
    check_known,
    cut_off,
    open_table_file,
    read_decisions,
    refuse_former,
    shown,
)
from petm.data.labels import UNLABELLED, Place, row_number
from petm.data.reader import content_hash
from petm.data.sources import TEXT, Columns, names_of, text_of
from petm.data.tables import TABLE_SUFFIXES, Record, Table, find_shards, open_table, unguard
from petm.errors import DataError

UNEXPLAINED = 1e-6
"""Below this probability of so few decisions among rows of one chance, some of the drawn rows have none; below this
probability of suspects alone, the labelled are no random rows."""
_GRADES = ("input", "row", "label", "suspicion", "grade", "chance", "audit", "sha256")
_ERRORS = ("probability", "probability_of_error")
"""Where the earlier name of a column stands alone, an earlier petm wrote the file."""
_CONTENT = ("image", TEXT)
"""Columns of a table in which an input may lie, where nobody says it."""


@dataclass(frozen=True)
class Reviewed:
    """Graded inputs that a person has decided on, in the order of their grades.

    Attributes:
        places: Input and row, as in the grades.
        numbers: int64 ``(N,)``, positions among all rows of the grades, ascending from 0.
        labels: int64 ``(N,)``, true classes; `UNLABELLED` where the person cannot tell.
        predicted: int64 ``(N,)``, the classes that the base model predicted.
        suspicion: float64 ``(N,)``.
        trusted: bool ``(N,)``, the grades.
        chance: float64 ``(N,)``, with which each row was drawn to be labelled; NaN where the grades do not say so.
        by_content: Number of inputs that were found by the hash of their content; the others by path and row.
        unmatched: Number of labelled inputs that no row has.
        repeated: Number of rows that were left out, as they hold the input of an earlier row.
        undrawn: Number of labelled rows that were left out, as they are trusted and the audit did not draw them.
        rows: Number of all rows that could be graded.
        unreached: Number of rows that labels say nothing about: without a chance, or with a lower one than every label.
        unanswered: About how many rows were drawn to be labelled and have no decision; 0 where chance explains it.
        sha256: Hash of each input, where labels or grades have one.
    """

    places: tuple[Place, ...]
    numbers: NDArray[np.int64]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    suspicion: NDArray[np.float64]
    trusted: NDArray[np.bool_]
    chance: NDArray[np.float64]
    by_content: int
    unmatched: int
    repeated: int
    undrawn: int
    rows: int
    unreached: int
    unanswered: int
    sha256: tuple[str | None, ...]

    @property
    def decided(self) -> Decided:
        """What was decided, without the grades."""
        return Decided(self.places, self.sha256, self.labels, self.chance)

    def check_drawn(self) -> None:
        """Checks that the labels speak for all rows, as a calibration or a check of a guarantee needs.

        Raises:
            DataError: A row had no chance of being labelled, or a lower one than each labelled row; or many of the rows
                that were drawn have no decision.
        """
        if self.unreached:
            raise DataError(
                f"labels: expected each graded row to have a chance of being labelled, got {self.unreached:,} of "
                f"{self.rows:,} rows without one or without any label of their kind. Label a random part of the "
                f"trusted as well (petm grade --audit)."
            )
        if self.unanswered:
            raise DataError(
                f"labels: expected a decision on each row that was drawn, got about {self.unanswered:,} rows without "
                f"one. Finish the review queue; what nobody can tell is a decision as well."
            )


def read_reviewed(
    labels: Sequence[str | Path],
    grades: Sequence[str | Path],
    classes: Sequence[str],
    *,
    fewest: int = FEWEST,
    text_column: Columns | None = None,
) -> Reviewed:
    """Returns the graded rows that files of labels decide on.

    Labels are CSV, Parquet or JSON Lines with a ``label`` (or a ``label_name`` beside it) and with ``sha256`` of the
    content (an image file's bytes, or a text in UTF-8), or ``input`` (or ``path``) and, where it applies, ``row``, or
    the text itself in the columns of the graded tables. The
    ``decision`` "cannot tell" needs no label. In the file that ``petm serve`` writes, the last line on an input holds,
    and one without a label takes it back. Elsewhere an empty label means none.

    Grades are what ``petm grade`` or ``petm serve --grades-file`` writes, or folders of such Parquet files; a column
    ``chance`` says with which chance each row was drawn to be labelled, and ``audit`` which of the trusted were.
    Without it, the chance is unknown for labels of a review queue or of suspects alone, and 1 for all others, whose
    labels are said to be those of random rows. Hashes of inputs are computed where labels have some and the grades lack
    them.

    Args:
        labels: Files of labels.
        grades: Files of grades.
        classes: ``K`` class names of the grader.
        fewest: Fewest labelled inputs; 1 takes labels of one class, too.
        text_column: Column of texts in graded tables, and in labels that name their input by nothing else. Absent
            takes ``image`` or ``text`` in graded tables.

    Raises:
        DataError: A file cannot be read; an input has two labels; a hash contradicts the row; a label is none of the
            grader's classes; no label names a row; all labels are of one class; or there are fewer than ``fewest``.
    """
    decisions = read_decisions(labels, classes, text_column)
    by_hash, by_place = decisions.by_hash, decisions.by_place
    found: list[tuple[Any, ...]] = []
    chances, answered = Counter[float | None](), Counter[float | None]()
    used, left, by_content = set[int](), set[int](), 0
    repeated = undrawn = unreadable = trusted = waiting = 0
    chosen = False  # by petm next, whose files have no row that was not drawn
    for file in (file for each in map(locate, grades) for file in (find_shards(each) if each.is_dir() else [each])):
        hashes = _Hashes(text_column, by_hash)
        table = open_table_file(file, (*_GRADES, *_ERRORS), _GRADES[:1], "Name what petm grade wrote.")
        cut = cut_off(file)
        for record in table.records():
            if record.fault is not None and record.number == cut:
                continue
            number = chances.total() + unreadable
            if record.fault is not None:
                raise DataError(f"{table.place(record.number)}: {record.fault.rstrip('.')}. Grade again.")
            name, row, predicted, suspicion, grade, chance, marked, digest, *errors = record.values
            refuse_former(str(file), [each for each, value in zip(_ERRORS, errors, strict=True) if value is not None])
            if grade == "unreadable":
                unreadable += 1
                continue
            place = (unguard(name) if table.path.suffix == ".csv" else name), _whole(row, table, record)
            drawn = _chance(chance, table, record)
            chances[drawn] += 1
            trusted += grade == "trusted"
            entry, told = by_place.get(place), None
            if by_hash:
                digest = digest or hashes.of(place)
                told = by_hash.get(digest)
                if entry is not None and None not in (entry.sha256, digest) and entry.sha256 != digest:
                    raise DataError(
                        f"{entry.source}: expected the hash of {shown(place)}, {str(digest)[:12]}..., got "
                        f"{str(entry.sha256)[:12]}.... The input was changed after it was graded or labelled: grade it "
                        f"again."
                    )
            if entry is not None and told is not None:
                entry.check_agrees(told, shown(place))
            decided = told or entry
            alone = grade == "suspect" and drawn is not None and drawn < 1
            chosen = chosen or alone
            if decided is None:
                waiting += alone or str(marked).lower() == "true"
                continue
            mine = {id(each) for each in (entry, told) if each is not None}
            if drawn is not None and grade == "trusted" and str(marked).lower() == "false":
                left |= mine
                undrawn += 1
                continue
            answered[drawn] += 1
            answer = _answer(predicted, suspicion, table, record)
            if mine & used:
                repeated += 1
                continue
            used |= mine
            by_content += told is not None
            digest = digest or decided.sha256
            found.append((place, number, decided.label, *answer, grade == "trusted", digest, drawn))
    unmatched = len({id(each) for each in (*by_hash.values(), *by_place.values())} - used - left)
    rows = chances.total()
    suspects_alone = not any(each[5] for each in found) and (1 - trusted / max(rows, 1)) ** len(found) < UNEXPLAINED
    if (
        not decisions.queued and set(chances) == {None} and not suspects_alone
    ):  # random rows, by the word of who labelled them
        chances, found = Counter[float | None](), [(*each[:-1], 1.0) for each in found]
    return _checked(found, by_content, unmatched, repeated, undrawn, rows, chances, answered, fewest, waiting * chosen)


def _checked(
    found: Sequence[tuple[Any, ...]],
    by_content: int,
    unmatched: int,
    repeated: int,
    undrawn: int,
    rows: int,
    chances: Counter[float | None],
    answered: Counter[float | None],
    fewest: int,
    unanswered: int,
) -> Reviewed:
    """The joined rows, after checking that there is something to learn from them."""
    if not found:
        got = f"{unmatched:,} of which none does" + (f", and {undrawn:,} of rows that no audit drew" if undrawn else "")
        raise DataError(
            f"labels: expected some that name a graded row, got {got}. Name the grades of "
            f"these inputs, or give labels by sha256, or by input and row as in the grades."
        )
    columns = list(zip(*found, strict=True))
    labels = np.array(columns[2], np.int64)
    check_known(labels, fewest)
    drawn = np.array(columns[7], np.float64)
    least = min((chance for chance in drawn[labels != UNLABELLED].tolist() if chance > 0), default=1.0)
    unreached = 0
    for chance, count in chances.items():
        if chance is None or chance < least:
            unreached += count
        elif scipy.stats.binom.cdf(answered[chance], count, chance) < UNEXPLAINED:
            unanswered += round(count * chance) - answered[chance]
    return Reviewed(
        tuple(columns[0]),
        np.array(columns[1], np.int64),
        labels,
        np.array(columns[3], np.int64),
        np.array(columns[4], np.float64),
        np.array(columns[5], bool),
        drawn,
        by_content,
        unmatched,
        repeated,
        undrawn,
        rows,
        unreached,
        unanswered,
        tuple(columns[6]),
    )


def _whole(row: object, table: Table, record: Record) -> int | None:
    try:
        return row_number(row)
    except ValueError as error:
        raise DataError(f"{table.place(record.number)}: {error}. Grade again.") from error


def _answer(predicted: object, suspicion: object, table: Table, record: Record) -> tuple[int, float]:
    """The prediction and its suspicion from cells of text, after checking that both are there."""
    try:
        return int(predicted), float(suspicion)  # type: ignore[call-overload, arg-type]
    except (TypeError, ValueError) as error:
        place = table.place(record.number)
        raise DataError(
            f"{place}: expected a label and a suspicion, got {predicted!r} and {suspicion!r}. Grade again."
        ) from error


def _chance(value: object, table: Table, record: Record) -> float | None:
    """The chance with which a row was drawn to be labelled; None where the grades say nothing."""
    try:
        chance = None if value is None else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        chance = -1.0
    if chance is not None and not 0 <= chance <= 1:
        place = table.place(record.number)
        raise DataError(f"{place}, chance: expected a number from 0 to 1, got {value!r}. Grade again.")
    return chance


class _Hashes:
    """SHA-256 of graded inputs: of image files, and of the rows of tables, which are read in their order."""

    def __init__(self, text_column: Columns | None, wanted: Collection[str | None]) -> None:
        self._text_column, self._wanted = text_column, wanted
        self._open = dict[str, tuple[Iterator[Record], dict[int, str]]]()

    def of(self, place: Place) -> str | None:
        """Returns the hash of an input, or None where it is no longer there, or none that a person can label."""
        path = Path(place[0])
        try:
            if not path.is_file():
                return None
            if place[1] is None:
                return content_hash(path)
        except (OSError, ValueError):
            return None
        return self._of_row(path, place[1]) if path.suffix.lower() in TABLE_SUFFIXES else None

    def _of_row(self, path: Path, row: int) -> str | None:
        columns = _CONTENT if self._text_column is None else names_of(self._text_column)
        if str(path) not in self._open:
            self._open[str(path)] = open_table(path, columns, required=(), hint="").records(), {}
        records, known = self._open[str(path)]
        digest = known.get(row)
        while digest is None and (record := next(records, None)) is not None:
            value = next((each for each in record.values if each is not None), None)
            value = value.get("bytes") if isinstance(value, dict) else value
            if self._text_column is not None:
                value = text_of(self._text_column, record.values)
            found = content_hash(value) or ""
            if found in self._wanted:
                known[record.number] = found
            if record.number >= row:
                digest = found if record.number == row else ""
        return digest or None
