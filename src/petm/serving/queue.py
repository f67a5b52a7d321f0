"""The review queue of graded archives: suspects and audit rows, mixed so that nobody sees which is which."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from petm._internal.storage import RemotePath, locate
from petm.data.labels import enumerated
from petm.data.sources import Columns, Source, open_sources
from petm.data.tables import TABLE_SUFFIXES, open_table, unguard
from petm.errors import DataError, PetmWarning
from petm.grading.grade_table import GRADE_NAMES, read_grades
from petm.grading.production import check_grades
from petm.selective.audit import coins
from petm.serving.engine import Facts
from petm.serving.limits import Unreadable
from petm.serving.reading import Reader

AT_ONCE = 16
"""Inputs that the page is told of at a time."""
_LOOKED = 256
"""Inputs that are looked at for them; more wait for the next request."""
_COLUMNS = ("input", "row", "label", "label_name", "suspicion", "grade", "audit", "sha256")
_LABELLED = ("input", "row", "label_name", "suggested_name", "probability_of_label_error")


class Queued(NamedTuple):
    """One input to review."""

    input: str
    row: int | None
    sha256: str | None
    given: str | None = None
    """The label in the data set, where labels are reviewed."""
    suggested: str | None = None
    """The class that is probably right instead."""


class ReviewQueue:
    """Inputs of graded files that people review.

    Suspects come most suspect first. Each input of an audit stands at a random place between them, by its own hash.
    Labels that are probably wrong come in the order of their file.

    Args:
        paths: Files that ``petm grade`` or ``petm suspects`` has written.
        facts: Of the grader that graded them.
        reader: Its reader of inputs.

    Attributes:
        rows: The inputs in the order of review; equal contents once where the grades have hashes.
        lost: Positions of inputs that are gone, changed, or nothing that the page can show.

    Raises:
        DataError: A file cannot be read, another bundle graded it, it holds nothing to review, or no input of it is
            left.
    """

    def __init__(self, paths: Sequence[str], facts: Facts, reader: Reader) -> None:
        self._reader = reader
        self._texts, self._column = reader.kind == "texts", facts.inputs.columns or "text"
        self._held = dict[tuple[str, int], bytes]()
        self._hashes = dict[int, str]()
        self.rows = [row for _, row in sorted(_ranked(paths, facts), key=lambda each: each[0])]
        if not self.rows:
            raise DataError(
                f"{', '.join(paths)}: expected suspects or rows of an audit, got none. To check the trusted, "
                f"grade with petm grade --audit."
            )
        self._hold_texts()
        self.lost = {number for number, row in enumerate(self.rows) if not self._is_there(row)}
        if self.lost:
            first = self.rows[min(self.lost)]
            got = f"{len(self.lost):,} of {len(self.rows):,} that are gone or cannot be shown, such as {first.input}"
            step = "Start petm serve in the folder where petm grade ran"
            if len(self.lost) == len(self.rows):
                raise DataError(f"queue: expected the inputs of the graded rows, got {got}. {step}.")
            step += ", or decide on them in a file of labels (input, row, label or decision)"
            warnings.warn(
                f"queue: expected the inputs of all graded rows, got {got}. {step}.", PetmWarning, stacklevel=2
            )

    def ahead(self, start: int, decided: Callable[[str], bool]) -> tuple[list[int], int | None]:
        """Returns positions from ``start`` on that are not decided, and the next start; None at the end."""
        found: list[int] = []
        for number in range(start, min(start + _LOOKED, len(self.rows))):
            if len(found) == AT_ONCE:
                return found, number
            digest = self._digest(number)
            if digest is not None and not decided(digest):
                found.append(number)
        stop = start + _LOOKED
        return found, stop if stop < len(self.rows) else None

    def decided(self, decided: Callable[[str], bool]) -> int:
        """Returns the number of inputs that are decided, among those whose hash is known."""
        return sum(decided(row.sha256 or self._hashes.get(number, "")) for number, row in enumerate(self.rows))

    def content(self, number: int) -> bytes | None:
        """Returns the content of an input; None where it is gone, changed or no such input, which is remembered."""
        row = self.rows[number]
        try:
            raw = self._read(row)
            self._reader.read(raw or b"")  # whatever a file of grades names, no other file is shown
        except (OSError, ValueError, DataError, Unreadable):
            raw = None
        if raw is None or (row.sha256 is not None and hashlib.sha256(raw).hexdigest() != row.sha256):
            self.lost.add(number)
            return None
        return raw

    def _digest(self, number: int) -> str | None:
        if number in self.lost:
            return None
        known = self.rows[number].sha256 or self._hashes.get(number)
        if known is None and (raw := self.content(number)) is not None:
            known = self._hashes[number] = hashlib.sha256(raw).hexdigest()
        return known

    def _is_there(self, row: Queued) -> bool:
        if row.row is not None and (row.input, row.row) in self._held:
            return True
        place = locate(row.input)
        if (
            self._texts
            or place.suffix.lower() == ".npz"
            or (row.row is not None and place.suffix.lower() != ".parquet")
        ):
            return False
        try:
            return isinstance(place, RemotePath) or place.is_file()
        except (OSError, ValueError):
            return False

    def _read(self, row: Queued) -> bytes | None:
        if row.row is None:
            return locate(row.input).read_bytes()
        held = self._held.get((row.input, row.row))
        if held is not None or self._texts:
            return held
        (source,) = open_sources([row.input])
        (found,) = (each for rows in source.rows(row.row - 1, row.row, 1) for each in rows)
        return found.content if isinstance(found.content, bytes) else None

    def _hold_texts(self) -> None:
        """Keeps the texts of the queue, as rows of a file of lines are found only from its beginning."""
        wanted = {(row.input, row.row) for row in self.rows if self._texts and row.row is not None}
        for path in sorted({path for path, _ in wanted}):
            for content, number in _texts_of(path, self._column):
                if (path, number) in wanted:
                    self._held[path, number] = content


def _texts_of(path: str, column: Columns) -> Iterator[tuple[bytes, int]]:
    try:
        sources: list[Source] = open_sources([path], text_column=column)
        for row in (row for source in sources for rows in source.rows(0, 1 << 62, 1024) for row in rows):
            if isinstance(row.content, str) and row.number is not None:
                yield row.content.encode("utf-8", "surrogatepass"), row.number
    except (OSError, DataError):
        return


def _ranked(paths: Sequence[str], facts: Facts) -> Iterator[tuple[float, Queued]]:
    """The inputs to review, each with a rank from 0 to 1."""
    suspects, audited = list[tuple[float, Queued]](), list[Queued]()
    seen = set[object]()
    labelled = {path: _label_errors(path, facts.classes) for path in paths}
    for each in labelled.values():
        yield from (((place + 0.5) / len(each), one) for place, one in enumerate(each))
    for path in (path for path in paths if not labelled[path]):
        for row in _to_review(path, facts):
            one = Queued(row["input"], row["row"], row["sha256"])
            if (key := one.sha256 or one) in seen:
                continue
            seen.add(key)
            if row["grade"] == GRADE_NAMES[1]:
                suspects.append((row["suspicion"], one))
            else:
                audited.append(one)
    suspects.sort(key=lambda each: -each[0])
    yield from (((place + 0.5) / len(suspects), one) for place, (_, one) in enumerate(suspects))
    yield from zip(coins(audited, seed=1).tolist(), audited, strict=True)


def _label_errors(path: str, classes: Sequence[str]) -> list[Queued]:
    """The rows of a file of ``petm suspects`` that have an opinion; nothing of another file."""
    place, found = locate(path), list[Queued]()
    if not place.is_file() or place.suffix.lower() not in TABLE_SUFFIXES:
        return found
    for record in open_table(place, _LABELLED, required=(), hint="").records():
        if record.fault is not None or record.values[-1] is None:
            break
        name, row, *labels = map(str, record.values[:-1])
        if unknown := [label for label in labels if label not in classes]:
            raise DataError(
                f"{path}: expected labels of the classes {enumerated(classes)}, got {unknown[0]!r}. Review the labels "
                f"with a bundle for these classes."
            )
        name = unguard(name) if place.suffix.lower() == ".csv" else name
        found.append(Queued(name, None if record.values[1] is None else int(row), None, *labels))
    return found


def _to_review(path: str, facts: Facts) -> Iterator[dict[str, Any]]:
    for batch in read_grades(path, _COLUMNS):
        drawn = pc.fill_null(batch["audit"], False)
        rows = pa.Table.from_batches([batch])
        graded = rows.filter(pc.not_equal(rows["grade"], GRADE_NAMES[2]))
        if len(graded):
            check_grades(graded, facts.threshold, path)
        for row in rows.filter(pc.or_(pc.equal(batch["grade"], GRADE_NAMES[1]), drawn)).to_pylist():
            if row["label_name"] not in (None, *facts.classes[row["label"] : row["label"] + 1]):
                raise DataError(
                    f"{path}: expected grades by this bundle, got the class {row['label_name']!r} with the number "
                    f"{row['label']}. Name the bundle that graded them."
                )
            yield row
