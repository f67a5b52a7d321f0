"""The summary of graded inputs: counts by grade and, for known labels, the quality of the grades."""

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
    """The quality of grades on the inputs whose true label is known.

    Attributes:
        known: Number of these inputs.
        flags: Recall and precision of the suspects, with intervals.
        auroc: AUROC of suspicion; absent if all predictions are right, or all wrong.
        guarantee: Whether the threshold's guarantee holds on them.
    """

    known: int
    flags: "Detection"
    auroc: float | None
    guarantee: "GuaranteeCheck"


class Summary:
    """Counts graded inputs by grade, and with ``labelled`` keeps 26 bytes for each input with a true label."""

    def __init__(self, *, labelled: bool) -> None:
        self.labelled = labelled
        self.counts = dict.fromkeys(GRADE_NAMES, 0)
        self._held: list[tuple[NDArray[Any], ...]] = []

    def add(self, table: Any) -> None:
        """Counts some rows of `SCHEMA`."""
        grades = table.column("grade")
        for counted in grades.value_counts().to_pylist():
            self.counts[counted["values"]] += counted["counts"]
        if self.labelled:
            label, true = (table.column(name).fill_null(-1).to_numpy() for name in ("label", "true_label"))
            known = (label >= 0) & (true >= 0)
            suspicion = table.column("suspicion").to_numpy()
            trusted = grades.to_numpy() == GRADE_NAMES[0]
            self._held.append(tuple(part[known] for part in (suspicion, trusted, label != true, label)))

    def judged(self, threshold: "Threshold") -> Judged | None:
        """Returns the quality of the grades where true labels are known; None if none is."""
        from petm.selective.metrics import auroc, detection
        from petm.selective.monitoring import LabelledCounts

        suspicion, trusted, wrong, labels = (np.concatenate(parts) for parts in zip(*self._held, strict=True))
        if not len(wrong):
            return None
        return Judged(
            len(wrong),
            detection(~trusted, wrong),
            auroc(suspicion, wrong) if 0 < wrong.sum() < len(wrong) else None,
            LabelledCounts(threshold).add(trusted, wrong, labels).check(),
        )
