"""The summary of graded inputs: counts by grade and, for known labels, the quality of the grades."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from petm.errors import DataError
from petm.grading.grade_table import GRADE_NAMES

if TYPE_CHECKING:
    from petm.selective.metrics import Detection
    from petm.selective.monitoring import GuaranteeCheck
    from petm.selective.thresholds import Threshold


_MOST_REASONS = 1000


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
    """Counts graded inputs by grade and reason, and those drawn for an audit.

    With ``labelled`` it keeps 26 bytes for each input with a true label.
    """

    def __init__(self, *, labelled: bool) -> None:
        self.labelled = labelled
        self.counts = dict.fromkeys(GRADE_NAMES, 0)
        self.reasons, self.drawn = Counter[str](), 0
        self._held: list[tuple[NDArray[Any], ...]] = []

    def add(self, table: Any) -> None:
        """Counts some rows of `SCHEMA`."""
        grades = table.column("grade")
        told = table.column("reason").drop_null().to_pylist()
        self.reasons.update(reason for reason in told if reason in self.reasons or len(self.reasons) < _MOST_REASONS)
        self.drawn += table.column("audit").to_pylist().count(True) if "audit" in table.column_names else 0
        for counted in grades.value_counts().to_pylist():
            self.counts[counted["values"]] += counted["counts"]
        if self.labelled:
            label, true = (table.column(name).fill_null(-1).to_numpy() for name in ("label", "true_label"))
            known = (label >= 0) & (true >= 0)
            suspicion = table.column("suspicion").to_numpy()
            trusted = grades.to_numpy() == GRADE_NAMES[0]
            self._held.append(tuple(part[known] for part in (suspicion, trusted, label != true, label)))

    def refuse_unread(self) -> None:
        """Raises DataError, with the commonest reason, where there are inputs and none could be read."""
        unread = self.counts[GRADE_NAMES[2]]
        if unread and unread == sum(self.counts.values()):
            reason = self.reasons.most_common(1)[0][0].rstrip(".")
            raise DataError(f"inputs: expected one that can be read, got {unread:,} that cannot, mostly: {reason}.")

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
