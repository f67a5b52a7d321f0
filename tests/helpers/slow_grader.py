"""A grader without a model that takes its time: suspicion is the sum of an image's pixels.

Its workers import no PyTorch: what Ray's processes open stands here, not in a test file, which each would import.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

from petm.adapter.cascade import Allowance
from petm.data.reader import Reader
from petm.grading.grades import Grades
from petm.grading.provenance import Origin

SIZE = (4, 4)


class SlowGrader:
    """Grades a batch in some milliseconds."""

    origin, has_second, sets = Origin(), False, None

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def allow(self, state: int | None) -> Allowance:
        return Allowance(None, state)

    def grade_batch(self, x: Any, **how: Any) -> Grades:
        time.sleep(self.seconds)
        total = x.reshape(len(x), -1).astype(float).sum(1)
        zeros = (total * 0).astype(int)
        return Grades(zeros, zeros, total, total * 0, total >= 8)


def open_slow_grader(seconds: float) -> tuple[SlowGrader, Reader]:
    return SlowGrader(seconds), Reader(size=SIZE, channels=1)


class DyingGrader(SlowGrader):
    """A grader whose process is killed at its third batch, unless another one was before."""

    def __init__(self, marker: Path) -> None:
        super().__init__(0)
        self.marker, self.left = marker, 2

    def grade_batch(self, x: Any, **how: Any) -> Grades:
        self.left -= 1
        if self.left < 0 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().grade_batch(x, **how)


def open_dying_grader(marker: Path) -> tuple[SlowGrader, Reader]:
    return DyingGrader(marker), open_slow_grader(0)[1]


def open_broken_grader() -> tuple[SlowGrader, Reader]:
    raise RuntimeError("the grader cannot be opened")
