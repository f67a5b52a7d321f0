"""What graded inputs come to: how many of each grade and, where true labels are known, how good the grades are."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from petm.grading.grade_table import GRADE_NAMES

if TYPE_CHECKING:
    from petm.selective.metrics import Detection
    from petm.selective.monitoring import GuaranteeCheck
    from petm.selective.thresholds import Threshold


@dataclass(frozen=True)
class Judged:
    """How good grades are on inputs whose true label is known.

    Attributes:
        known: How many these are.
        flags: Recall and precision of the suspects, with their intervals.
        auroc: Of suspicion; absent where all predictions are right, or all wrong.
        guarantee: What they say of the threshold's guarantee.
    """

    known: int
    flags: "Detection"
    auroc: float | None
    guarantee: "GuaranteeCheck"


class Summary:
    """Counts graded inputs as they come; of those with a true label 26 bytes each are held.

    Args:
        labelled: Whether true labels are looked at.

    Attributes:
        counts: Inputs by grade.
    """

    def __init__(self, *, labelled: bool) -> None:
        self.labelled = labelled
        self.counts = dict.fromkeys(GRADE_NAMES, 0)
        self._held: list[tuple[NDArray[Any], ...]] = []

    def add(self, table: Any) -> None:
        """Counts some rows of `SCHEMA`; of a table without labels only the grades are looked at."""
        grades = table.column("grade")
        for counted in grades.value_counts().to_pylist():
            self.counts[counted["values"]] += counted["counts"]
        if self.labelled:
            label, true = (_numbers(table, name) for name in ("label", "true_label"))
            known = (label >= 0) & (true >= 0)
            suspicion = table.column("suspicion").to_numpy()
            trusted = grades.to_numpy() == GRADE_NAMES[0]
            self._held.append(tuple(part[known] for part in (suspicion, trusted, label != true, label)))

    def judged(self, threshold: "Threshold") -> Judged | None:
        """Returns how good the grades are where true labels are known; None where none is."""
        from petm.selective.metrics import auroc, detection
        from petm.selective.monitoring import check_guarantee

        suspicion, trusted, wrong, labels = (np.concatenate(parts) for parts in zip(*self._held, strict=True))
        if not len(wrong):
            return None
        return Judged(
            len(wrong),
            detection(~trusted, wrong),
            auroc(suspicion, wrong) if 0 < wrong.sum() < len(wrong) else None,
            check_guarantee(threshold, trusted, wrong, labels),
        )


def _numbers(table: Any, name: str) -> NDArray[np.int64]:
    """A column of whole numbers, -1 where there is none."""
    return np.asarray(table.column(name).fill_null(-1).to_numpy(), np.int64)
