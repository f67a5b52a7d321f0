"""Counts of graded production data by window, with labels and a histogram of suspicion."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from petm._internal.storage import Located
from petm.data.labels import UNLABELLED
from petm.data.reviewed import Reviewed
from petm.errors import ArgumentError, DataError
from petm.grading.grade_table import GRADE_NAMES, read_grades
from petm.selective.drift import SuspicionProfile
from petm.selective.monitoring import LabelledCounts
from petm.selective.thresholds import Threshold

MOST_WINDOWS = 1_000
"""Limit that keeps memory constant and the picture readable."""
LABELLED = np.dtype(
    [
        ("id", "<u8"),
        ("window", "<u2"),
        ("bin", "u1"),
        ("trusted", "u1"),
        ("predicted", "<i8"),
        ("part", "<i4"),
        ("truth", "<i8"),
        ("chance", "<f8"),
        ("probability", "<f8"),
    ]
)
"""A row whose true label is known: its hash, window and bin of suspicion; ``truth`` is `UNLABELLED` where nobody can
tell, ``part`` the class or, with groups, the place that has a threshold of its own, ``probability`` that of an error,
NaN where it was not calibrated."""

_UNKNOWN = UNLABELLED - 1
"""Stands for a row without a label; `UNLABELLED` for one of which nobody can tell."""
_COLUMNS = ("input", "row", "label", "probability_of_error", "suspicion", "group", "grade", "true_label", "sha256")


@dataclass
class Window:
    """Counts of consecutive rows.

    Attributes:
        name: The file, or with ``--window`` the number of its first row, from 0.
        rows: Number of all rows.
        unreadable: Number of unreadable inputs, which no other count includes.
        suspects: Number of suspect rows.
        probability: Sum of the probabilities of error ``p``.
        variance: Sum of ``p (1 - p)``.
        with_probability: Number of rows that have one.
        suspicion: int64 ``(J + 1,)``, rows between the edges of the profile; empty without a profile.
    """

    name: str
    rows: int = 0
    unreadable: int = 0
    suspects: int = 0
    probability: float = 0.0
    variance: float = 0.0
    with_probability: int = 0
    suspicion: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def graded(self) -> int:
        """Rows that could be read."""
        return self.rows - self.unreadable


@dataclass
class Production:
    """Counts of graded production data; 48 bytes for each labelled row, and about 100 for each row that is remembered.

    Attributes:
        windows: Counts by window, in the order of the rows.
        trusted: int64 ``(J + 1,)``, histogram of the suspicion of the trusted.
        predicted: float64 ``(2, K)``: rows that the base model predicts as each class, sum of their probabilities of
            error; of those that have one.
        labelled: The rows with a label, of the type `LABELLED`.
        seen: Window of each row's hash; None where rows are not remembered.
        again: Number of rows that were seen before, and count once.
    """

    windows: list[Window]
    trusted: NDArray[np.int64]
    predicted: NDArray[np.float64]
    labelled: NDArray[np.void] = field(default_factory=lambda: np.empty(0, LABELLED))
    seen: dict[int, int] | None = None
    again: int = 0

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Which labelled rows count as wrong: also the trusted of which nobody can tell."""
        rows = self.labelled
        return np.where(rows["truth"] == UNLABELLED, rows["trusted"] > 0, rows["truth"] != rows["predicted"])

    @property
    def untold(self) -> int:
        """Number of trusted rows of which nobody can tell whether they are right."""
        return int(((self.labelled["truth"] == UNLABELLED) & (self.labelled["trusted"] > 0)).sum())

    def counts(self, threshold: Threshold) -> LabelledCounts:
        """Returns the labelled rows by window, as the check of a guarantee takes them."""
        rows = self.labelled
        grades, coins = rows["trusted"] > 0, rows["id"] / 2.0**64
        return LabelledCounts(threshold).add(
            grades, self.wrong, rows["part"], chance=rows["chance"], coins=coins, block=rows["window"]
        )

    def among_trusted(self) -> NDArray[np.int64]:
        """Returns histograms of suspicion, int64 ``(2, J + 1)``: labelled trusted rows, other trusted rows."""
        bins = self.labelled["bin"][self.labelled["trusted"] > 0]
        known = np.bincount(bins, minlength=len(self.trusted))[: len(self.trusted)]
        return np.stack([known, self.trusted - known])


def no_production(profile: SuspicionProfile | None, classes: int, *, remember: bool = False) -> Production:
    """Returns the counts of nothing, for so many classes; with ``remember``, rows that come again count once."""
    bins = len(profile.edges) + 1 if profile else 0
    return Production([], np.zeros(bins, np.int64), np.zeros((2, classes)), seen={} if remember else None)


def read_production(
    paths: Sequence[str | Located],
    threshold: Threshold,
    profile: SuspicionProfile | None = None,
    *,
    reviewed: Reviewed | None = None,
    window: int | None = None,
    classes: int = 0,
    begun: Production | None = None,
) -> Production:
    """Returns the counts of graded files, read in their order.

    Args:
        paths: Files that ``petm grade`` has written.
        threshold: The threshold of the grader that graded them.
        profile: The suspicion in calibration; absent if the bundle has none.
        reviewed: What people decided on rows of these files; overrides true labels in the files. A trusted row on which
            they cannot tell counts as wrong, a suspect one as right: a guarantee holds for either answer.
        window: Rows in a window; absent makes each file a window.
        classes: Number of classes whose predictions are counted.
        begun: Counts to continue. Where it remembers rows, one that comes again (by input, row and ``sha256``) changes
            nothing but its label, where it has one.

    Raises:
        ArgumentError: ``window`` is below 1, or makes more than 1,000 windows.
        DataError: A file cannot be read, no file holds a row, another grader graded them, or the labels say nothing
            about the trusted (`Reviewed.check_drawn`).
    """
    if reviewed is not None:
        reviewed.check_drawn()
    if window is not None and window < 1:
        raise ArgumentError(f"window: expected at least 1 row, got {window}.")
    found = no_production(profile, classes) if begun is None else begun
    pieces, start = [found.labelled], 0
    for path in paths:
        opened = False
        if window is None and found.seen is None:
            opened = _open_window(found, str(path))
        for batch in read_grades(path, _COLUMNS):
            rows, start = _joined(batch, start, reviewed, path), start + len(batch)
            hashes = _hashes(rows) if found.seen is not None else None
            if hashes is not None:
                again, rows, hashes = _seen_before(rows, hashes, found, path, threshold, profile)
                pieces.append(again)
            while len(rows):
                if window is not None and (not found.windows or found.windows[-1].rows >= window):
                    _open_window(found, str(window * len(found.windows)))
                if window is None and not opened:
                    opened = _open_window(found, str(path))
                length = len(rows) if window is None else window - found.windows[-1].rows
                some = None if hashes is None else hashes[:length]
                pieces.append(_count(rows.slice(0, length), some, found, threshold, profile, path))
                rows, hashes = rows.slice(length), None if hashes is None else hashes[length:]
    found.labelled = _last_of_each(np.concatenate(pieces), remembered=found.seen is not None)
    if not any(each.rows for each in found.windows):
        raise DataError(f"{', '.join(map(str, paths))}: expected at least one graded row, got none. Grade some inputs.")
    trusted_rows = sum(each.graded - each.suspects for each in found.windows)
    if reviewed is not None and trusted_rows and not found.labelled["trusted"].any():
        raise DataError(
            f"labels: expected some of the {trusted_rows:,} trusted rows among the labelled, got "
            f"{len(found.labelled):,} suspects alone, which say nothing about the trusted. Label a random part of "
            f"the trusted as well (petm grade --audit)."
        )
    return found


def _open_window(found: Production, name: str) -> bool:
    if len(found.windows) == MOST_WINDOWS:
        raise ArgumentError(
            f"window: expected at most {MOST_WINDOWS:,} windows, got more. Take more rows into each (--window)."
        )
    found.windows.append(Window(name, suspicion=np.zeros_like(found.trusted)))
    return True


def _joined(batch: pa.RecordBatch, start: int, reviewed: Reviewed | None, path: str | Located) -> pa.Table:
    """The rows with their labels, of people or of the file, as ``truth``, and ``chance``."""
    places, labels, drawn = _decided(batch, start, reviewed, path)
    truth = batch["true_label"].fill_null(_UNKNOWN).to_numpy(zero_copy_only=False).copy()
    chance = np.ones(len(batch))
    truth[places], chance[places] = labels, drawn
    table = pa.Table.from_batches([batch])
    return table.append_column("truth", pa.array(truth)).append_column("chance", pa.array(chance))


def _hashes(rows: pa.Table) -> NDArray[np.uint64]:
    """A number for each row that tells it from others: 8 bytes of a hash of input, row and content."""
    names = zip(*(rows[name].to_pylist() for name in ("input", "row", "sha256")), strict=True)
    keys = (repr(each).encode("utf-8", "surrogatepass") for each in names)
    return np.array([int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") for key in keys], np.uint64)


def _seen_before(
    rows: pa.Table,
    hashes: NDArray[np.uint64],
    found: Production,
    path: str | Located,
    threshold: Threshold,
    profile: SuspicionProfile | None,
) -> tuple[NDArray[np.void], pa.Table, NDArray[np.uint64]]:
    """The labels of rows that were seen before, and the other rows with their hashes; of copies, the first."""
    seen = found.seen or {}
    windows = np.array([seen.get(each, -1) for each in hashes.tolist()])
    first = np.zeros(len(hashes), bool)
    first[np.unique(hashes, return_index=True)[1]] = True
    old, new = windows >= 0, (windows < 0) & first
    found.again += int((~new).sum())
    readable = np.asarray(pc.not_equal(rows["grade"], GRADE_NAMES[2]).to_numpy(), bool)
    table = rows.filter(pa.array(old & readable))
    again = np.empty(0, LABELLED)
    if len(table):
        trusted = check_grades(table, threshold, path)
        again = _labelled(table, trusted, hashes[old & readable], windows[old & readable], threshold, profile)
    return again, rows.filter(pa.array(new)), hashes[new]


def _count(
    rows: pa.Table,
    hashes: NDArray[np.uint64] | None,
    found: Production,
    threshold: Threshold,
    profile: SuspicionProfile | None,
    path: str | Located,
) -> NDArray[np.void]:
    """Counts new rows in the last window, and returns the labelled among them."""
    window, number = found.windows[-1], len(found.windows) - 1
    if found.seen is not None and hashes is not None:
        found.seen.update(dict.fromkeys(hashes.tolist(), number))
    readable = pc.not_equal(rows["grade"], GRADE_NAMES[2])
    window.rows += len(rows)
    table = rows.filter(readable)
    window.unreadable += len(rows) - len(table)
    if not len(table):
        return np.empty(0, LABELLED)
    trusted = check_grades(table, threshold, path)
    window.suspects += int((~trusted).sum())
    probability = table["probability_of_error"].to_numpy()
    told = ~np.isnan(probability)
    window.probability += float(probability[told].sum())
    window.variance += float((probability[told] * (1 - probability[told])).sum())
    window.with_probability += int(told.sum())
    predicted, classes = table["label"].to_numpy(), found.predicted.shape[1]
    known = told & (predicted >= 0) & (predicted < classes)
    for place, weights in enumerate((None, probability[known])):
        found.predicted[place] += np.bincount(predicted[known], weights, minlength=classes)
    if profile is not None:
        suspicion = table["suspicion"].to_numpy()
        window.suspicion += profile.counts(suspicion)
        found.trusted += profile.counts(suspicion[trusted])
    mine = None if hashes is None else hashes[readable.to_numpy().astype(bool)]
    return _labelled(table, trusted, mine, np.full(len(table), number), threshold, profile)


def _labelled(
    table: pa.Table,
    trusted: NDArray[np.bool_],
    hashes: NDArray[np.uint64] | None,
    windows: NDArray[np.int64],
    threshold: Threshold,
    profile: SuspicionProfile | None,
) -> NDArray[np.void]:
    """The rows with a label, of readable ones with their grades, hashes and windows."""
    known = table["truth"].to_numpy() != _UNKNOWN
    rows, some = np.empty(int(known.sum()), LABELLED), table.filter(pa.array(known))
    rows["id"] = _hashes(some) if hashes is None else hashes[known]
    rows["window"], rows["trusted"] = windows[known], trusted[known]
    rows["bin"] = 0 if profile is None else np.searchsorted(profile.edges, some["suspicion"].to_numpy(), side="left")
    for field_name, column in (("predicted", "label"), ("truth", "truth"), ("chance", "chance")):
        rows[field_name] = some[column].to_numpy()
    rows["part"] = _parts(some, threshold)
    rows["probability"] = some["probability_of_error"].to_numpy()
    return rows


def _parts(table: pa.Table, threshold: Threshold) -> NDArray[np.int64]:
    """The classes of rows, or with groups the places of their thresholds; raises ArgumentError for unknown groups."""
    if threshold.groups is None:
        return np.asarray(table["label"].to_numpy())
    names = {name: place for place, name in enumerate(threshold.groups.names)}
    groups = table["group"].to_pylist()
    if unknown := set(groups) - set(names):
        raise ArgumentError(f"group: expected combinations of the calibration, got {sorted(map(str, unknown))[:3]}")
    return np.array([names[each] for each in groups], np.int64)


def _last_of_each(rows: NDArray[np.void], *, remembered: bool) -> NDArray[np.void]:
    """The rows, of those with one hash the last, in the order of their windows and hashes."""
    if not remembered:
        return rows
    last = len(rows) - 1 - np.unique(rows["id"][::-1], return_index=True)[1]
    return np.asarray(rows[last][np.argsort(rows["window"][last], kind="stable")])


def _decided(
    rows: pa.RecordBatch, start: int, reviewed: Reviewed | None, path: str | Located
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Which of the rows from the position ``start`` on people decided on, their labels and chances."""
    if reviewed is None:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    low, high = np.searchsorted(reviewed.numbers, (start, start + len(rows))).tolist()
    places = reviewed.numbers[low:high] - start
    some = rows.take(pa.array(places))
    if tuple(zip(some["input"].to_pylist(), some["row"].to_pylist(), strict=True)) != reviewed.places[low:high]:
        raise DataError(f"{path}: expected the rows that were joined to labels, got others. Is it being written?")
    return places, reviewed.labels[low:high], reviewed.chance[low:high]


def check_grades(table: pa.Table, threshold: Threshold, path: str | Located) -> NDArray[np.bool_]:
    """Returns which rows are trusted, bool ``(n,)``, after checking the grades against the threshold.

    Args:
        table: ``n`` graded rows, with ``input``, ``label``, ``suspicion`` and ``grade``.
        threshold: The threshold of the grader.
        path: The file, for messages.

    Raises:
        DataError: A value is missing, or another grader graded them.
    """
    for name in ("label", "suspicion"):
        if absent := table[name].null_count:
            raise DataError(f"{path}: expected a {name} in each graded row, got none in {absent}. Grade again.")
    told = np.asarray(pc.equal(table["grade"], GRADE_NAMES[0]).to_numpy(), bool)
    try:
        other = np.flatnonzero(told != threshold.trusts(table["suspicion"].to_numpy(), _parts(table, threshold)))
    except ArgumentError as error:
        raise DataError(f"{path}: expected grades by this bundle, got others ({error})") from error
    if len(other):
        first = table.slice(int(other[0]), 1).to_pylist()[0]
        raise DataError(
            f"{path}: expected grades by this bundle, got {first['input']} {first['grade']} at a suspicion of "
            f"{first['suspicion']:.6g}, where the bundle's threshold says otherwise. Name the bundle that graded them."
        )
    return told
