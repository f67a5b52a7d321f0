"""Grades archives and damaged inputs into a file, in processes killed at chosen moments; run by test_grade_files.

One import serves all of them: `python killed_grading.py FOLDER`, where x.npz, y.npz and z.parquet lie.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from petm._internal.files import write_atomically
from petm.data.sources import open_sources
from petm.grading import grade_files
from petm.grading.grades import Grades
from slow_grader import SlowGrader, open_slow_grader

OUTPUT = "g.parquet"
MOMENTS = (
    ("before a batch", 1), ("before a batch", 5), ("in a part", 1), ("behind a part", 1), ("before a batch", 9),
    ("in a part", 3), ("behind a part", 2), ("in the file", 1), ("behind the file", 1),
)  # fmt: skip
"""What the process does, and the how manieth time, when it is killed."""


class Dying:
    """Kills this process at a moment."""

    def __init__(self, moment: str, left: int) -> None:
        self.moment, self.left = moment, left

    def passes(self, moment: str) -> None:
        self.left -= moment == self.moment
        if moment == self.moment and not self.left:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, path: Path, write: Callable[[Path], Any]) -> None:
        """As `write_atomically`; ``in`` is when all is written, but not yet in its place."""
        name = "the file" if path.name == OUTPUT else "a part"

        def written(temporary: Path) -> None:
            write(temporary)
            self.passes(f"in {name}")

        write_atomically(path, written)
        self.passes(f"behind {name}")


class DyingGrader(SlowGrader):
    """Passes a moment before each batch."""

    def __init__(self, dying: Dying) -> None:
        super().__init__(0)
        self.dying = dying

    def grade_batch(self, x: Any, **how: Any) -> Grades:
        self.dying.passes("before a batch")
        return super().grade_batch(x, **how)


def in_a_child(moment: str, left: int) -> int:
    """Grades in a forked process that is killed at a moment; returns its exit code, or minus the signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            dying = Dying(moment, left)
            grade_files.PART_ROWS = 40
            grade_files.write_atomically = dying.write
            reader = open_slow_grader(0)[1]
            sources = open_sources(["x.npz", "gone.png", "y.npz", "z.parquet"], keep_faults=True)
            grade_files.grade_files(DyingGrader(dying), sources, reader, Path(OUTPUT), told={}, batch_size=16)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path) -> None:
    os.chdir(folder)
    for moment, count in MOMENTS:
        assert in_a_child(moment, count) == -signal.SIGKILL, (moment, count)
    assert in_a_child("never", 0) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
