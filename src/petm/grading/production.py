"""Counts of graded production data by window, with labels and a histogram of suspicion, in constant memory."""

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

_UNKNOWN = UNLABELLED - 1
"""Stands for a row without a label; `UNLABELLED` for one of which nobody can tell."""
_COLUMNS = ("input", "row", "label", "probability_of_error", "suspicion", "grade", "true_label")


@dataclass
class Window:
    """Counts of consecutive rows.

    Attributes:
        name: The file, or with ``--window`` the number of its first row, from 0.
        rows: Number of all rows.
        unreadable: Number of unreadable inputs, which no other count includes.
        suspects: Number of suspect rows.
        probability: Sum of the probabilities of error.
        with_probability: Number of rows that have one.
        labelled_trusted: Number of trusted rows whose true label is known.
        wrong_trusted: Number of wrong ones among these.
        suspicion: int64 ``(J + 1,)``, rows between the edges of the profile; empty without a profile.
    """

    name: str
    rows: int = 0
    unreadable: int = 0
    suspects: int = 0
    probability: float = 0.0
    with_probability: int = 0
    labelled_trusted: int = 0
    wrong_trusted: int = 0
    suspicion: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def graded(self) -> int:
        """Rows that could be read."""
        return self.rows - self.unreadable


@dataclass
class Production:
    """Counts of graded production data.

    Attributes:
        windows: Counts by window, in the order of the rows.
        labelled: Counts of all rows whose true label is known.
        among_trusted: int64 ``(2, J + 1)``, histograms of suspicion: labelled trusted rows, other trusted rows.
        untold: Number of trusted rows of which the reviewer cannot tell whether they are right; they count as wrong.
    """

    windows: list[Window]
    labelled: LabelledCounts
    among_trusted: NDArray[np.int64]
    untold: int = 0


def read_production(
    paths: Sequence[str | Located],
    threshold: Threshold,
    profile: SuspicionProfile | None = None,
    *,
    reviewed: Reviewed | None = None,
    window: int | None = None,
) -> Production:
    """Returns the counts of graded files, read in their order.

    Args:
        paths: Files that ``petm grade`` has written.
        threshold: The threshold of the grader that graded them.
        profile: The suspicion in calibration; absent if the bundle has none.
        reviewed: What people decided on rows of these files; overrides true labels in the files. A trusted row on which
            they cannot tell counts as wrong, a suspect one as right: a guarantee holds for either answer.
        window: Rows in a window; absent makes each file a window.

    Raises:
        ArgumentError: ``window`` is below 1, or makes more than 1,000 windows.
        DataError: A file cannot be read, no file holds a row, another grader graded them, or the labels say nothing
            about the trusted (`Reviewed.check_drawn`).
    """
    if reviewed is not None:
        reviewed.check_drawn()
    if window is not None and window < 1:
        raise ArgumentError(f"window: expected at least 1 row, got {window}.")
    bins = len(profile.edges) + 1 if profile else 0
    found = Production([], LabelledCounts(threshold), np.zeros((2, bins), np.int64))
    start = 0
    for path in paths:
        if window is None:
            _open_window(found, str(path), bins)
        for batch in read_grades(path, _COLUMNS):
            while len(batch):
                if window is not None and (not found.windows or found.windows[-1].rows == window):
                    _open_window(found, str(window * len(found.windows)), bins)
                length = len(batch) if window is None else window - found.windows[-1].rows
                piece = batch.slice(0, length)
                _count(piece, found, profile, _decided(piece, start, reviewed, path), path)
                batch, start = batch.slice(length), start + len(piece)
    if not any(each.rows for each in found.windows):
        raise DataError(f"{', '.join(map(str, paths))}: expected at least one graded row, got none. Grade some inputs.")
    trusted_rows = sum(each.graded - each.suspects for each in found.windows)
    if reviewed is not None and trusted_rows and not found.labelled.trusted.sum():
        raise DataError(
            f"labels: expected some of the {trusted_rows:,} trusted rows among the labelled, got "
            f"{found.labelled.suspects:,} suspects alone, which say nothing about the trusted. Label a random part of "
            f"the trusted as well (petm grade --audit)."
        )
    return found


def _open_window(found: Production, name: str, bins: int) -> None:
    if len(found.windows) == MOST_WINDOWS:
        raise ArgumentError(
            f"window: expected at most {MOST_WINDOWS:,} windows, got more. Take more rows into each (--window)."
        )
    found.windows.append(Window(name, suspicion=np.zeros(bins, np.int64)))


def _count(
    rows: pa.RecordBatch,
    found: Production,
    profile: SuspicionProfile | None,
    decided: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]],
    path: str | Located,
) -> None:
    window, (places, labels, drawn) = found.windows[-1], decided
    truth = rows["true_label"].fill_null(_UNKNOWN).to_numpy(zero_copy_only=False).copy()
    chance = np.ones(len(rows))
    truth[places], chance[places] = labels, drawn
    readable = pc.not_equal(rows["grade"], GRADE_NAMES[2])
    window.rows += len(rows)
    table = pa.Table.from_batches([rows]).filter(readable)
    truth, chance = truth[readable.to_numpy(zero_copy_only=False)], chance[readable.to_numpy(zero_copy_only=False)]
    window.unreadable += len(rows) - len(table)
    if not len(table):
        return
    trusted = check_grades(table, found.labelled.threshold, path)
    predicted, suspicion = table["label"].to_numpy(), table["suspicion"].to_numpy()
    window.suspects += int((~trusted).sum())
    probability = table["probability_of_error"].to_numpy()
    window.probability += float(np.nansum(probability))
    window.with_probability += int((~np.isnan(probability)).sum())
    known, untold = truth != _UNKNOWN, truth == UNLABELLED
    wrong = np.where(untold, trusted, truth != predicted)
    found.untold += int((untold & trusted).sum())
    found.labelled.add(trusted[known], wrong[known], predicted[known], chance=chance[known])
    window.labelled_trusted += int((known & trusted).sum())
    window.wrong_trusted += int((known & trusted & wrong).sum())
    if profile is not None:
        window.suspicion += profile.counts(suspicion)
        for row, chosen in enumerate((known & trusted, ~known & trusted)):
            found.among_trusted[row] += profile.counts(suspicion[chosen])


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
        other = np.flatnonzero(told != threshold.trusts(table["suspicion"].to_numpy(), table["label"].to_numpy()))
    except ArgumentError as error:
        raise DataError(f"{path}: expected grades by this bundle, got others ({error})") from error
    if len(other):
        first = table.slice(int(other[0]), 1).to_pylist()[0]
        raise DataError(
            f"{path}: expected grades by this bundle, got {first['input']} {first['grade']} at a suspicion of "
            f"{first['suspicion']:.6g}, where the bundle's threshold says otherwise. Name the bundle that graded them."
        )
    return told
