"""Progress on standard error, for people; nothing of it goes to standard output."""

from collections.abc import Iterator
from contextlib import contextmanager
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

_running: Progress | None = None


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
    global _running
    outermost = _running is None
    progress = _running or Progress(
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
    task = progress.add_task(title, total=total, completed=done, figures="")
    try:
        if outermost:
            _running = progress
            progress.start()
        yield Bar(progress, task)
    finally:
        state: Any = next(entry for entry in progress.tasks if entry.id == task)
        seconds, figures = state.elapsed or 0.0, state.fields["figures"]
        progress.remove_task(task)
        if outermost:
            progress.stop()
            _running = None
        if seconds > 2:
            line = f"{title:<24} {seconds:6.1f} s  {figures}"
            console.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)
