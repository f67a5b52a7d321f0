"""Progress on standard error, for people; nothing of it goes to standard output."""

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

console = Console(stderr=True)
"""Where progress and prose go."""

_lock = Lock()
_shown: list[tuple[Progress, TaskID]] = []
"""The bars under way, of all threads, in one display: a terminal has room for one."""


class Bar:
    """One running task: how far it is, and the figures that it shows beside."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: int = 1) -> None:
        """Moves the bar on."""
        self._progress.advance(self._task, steps)

    def show(self, **figures: float) -> None:
        """Shows figures such as ``loss=0.02`` beside the bar."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self._progress.update(self._task, figures=text)


@contextmanager
def track(title: str, total: int, done: int = 0) -> Iterator[Bar]:
    """Shows a live bar with figures and time left while the block runs; a bar inside a bar stands below it.

    A bar that ends within two seconds leaves no trace; a longer one leaves its last line. Where standard error is no
    terminal, only those last lines appear. Standard output stays the caller's.

    Args:
        title: What is being done.
        total: Number of steps.
        done: Steps that an earlier, interrupted run has made.
    """
    progress, task = _open(title, total, done)
    try:
        yield Bar(progress, task)
    finally:
        _close(progress, task)


def _open(title: str, total: int, done: int) -> tuple[Progress, TaskID]:
    """A new bar in the display, which is put up where there is none."""
    with _lock:
        if _shown:
            progress = _shown[0][0]
        else:
            progress = Progress(
                TextColumn("{task.description:<24}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(compact=True),
                console=console,
                transient=True,
                redirect_stdout=False,
                # Where there is no terminal, rich would leave an empty line for every bar.
                disable=not (console.is_interactive or console.is_jupyter),
            )
            progress.start()
        task = progress.add_task(title, total=total, completed=done, figures="")
        _shown.append((progress, task))
        return progress, task


def _close(progress: Progress, task: TaskID) -> None:
    """Takes the bar away, and with the last one the display; what took long leaves a line."""
    with _lock:
        state: Any = next(entry for entry in progress.tasks if entry.id == task)
        progress.remove_task(task)
        _shown.remove((progress, task))
        if not _shown:
            progress.stop()
    if (state.elapsed or 0.0) > 2:
        line = f"{state.description:<24} {state.elapsed:6.1f} s  {state.fields['figures']}"
        console.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)
