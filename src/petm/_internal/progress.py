"""Progress bars on standard error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from petm._internal.texts import visible

# A notebook's kernel asks for colours of a terminal, but cannot move its cursor; Jupyter's widgets need a package.
console = Console(stderr=True, force_jupyter=False, force_terminal=False if "ipykernel" in sys.modules else None)
"""Console of progress and prose."""

_lock = Lock()
_shown: list[tuple[Progress, TaskID]] = []
"""The running bars of all threads, in one display: a terminal has room for one."""


class Bar:
    """One running task, with figures beside its progress."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: int = 1) -> None:
        """Advances the bar."""
        self._progress.advance(self._task, steps)

    def show(self, **figures: float) -> None:
        """Shows figures such as ``loss=0.02`` beside the bar."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self._progress.update(self._task, figures=text)


def note(text: str) -> None:
    """Prints a line on standard error, above the running bars."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def track(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    """Shows a live bar with figures and time left while the block runs; a nested bar stands below.

    A bar that runs longer than two seconds leaves a line at its end, also where standard error is no terminal.

    Args:
        title: Name of the task.
        total: Number of steps.
        done: Steps of an earlier, interrupted run.
    """
    with _lock:
        progress = _shown[0][0] if _shown else _new_display()
        task = progress.add_task(visible(title), total=total, completed=done, figures="")
        _shown.append((progress, task))
    try:
        yield Bar(progress, task)
    finally:
        with _lock:
            state: Any = next(entry for entry in progress.tasks if entry.id == task)
            progress.remove_task(task)
            _shown.remove((progress, task))
            if not _shown:
                progress.stop()
        if (state.elapsed or 0.0) > 2:
            line = f"{state.description:<24} {state.elapsed:6.1f} s  {state.fields['figures']}"
            note(line.rstrip())


def _new_display() -> Progress:
    progress = Progress(
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        redirect_stdout=False,
        # Without a terminal rich would leave an empty line for every bar.
        disable=not (console.is_interactive or console.is_jupyter),
    )
    progress.start()
    return progress
