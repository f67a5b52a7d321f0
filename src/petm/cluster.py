"""Grading on many machines through Ray Data: the same rows as one process, in whatever order."""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from petm.errors import DataError, ExtraError, RunError
from petm.inference import BATCH_SIZE
from petm.sources import Reader, Source
from petm.stream import GradesBatches, grade_stream

PIECE = 1 << 12
"""Inputs that a worker is given at a time: a lost worker repeats no more than these."""

_ALONE: dict[str, Any] = {"include_dashboard": False}
"""Of a cluster that is started for one call."""

Open = Callable[[], tuple[GradesBatches, Reader]]
"""What a worker opens once: the grader, and what reads its inputs. Its files must be there on every machine."""


def grade_on_ray(
    open_grader: Open,
    sources: Sequence[Source],
    output: Path,
    *,
    workers: int = 2,
    address: str | None = None,
    batch_size: int = BATCH_SIZE,
    labelled: bool = False,
    overwrite: bool = False,
) -> None:
    """Grades inputs by workers of a Ray cluster into a folder of Parquet files, of `petm.grade_table.SCHEMA`.

    Each worker opens the grader once and takes pieces of the inputs as it is ready. When one is lost, Ray starts
    another and its piece is graded again; the folder appears when all pieces are there.

    Args:
        open_grader: What each worker calls at its start.
        sources: The inputs; their files must be readable on every machine.
        output: The folder to make.
        workers: How many.
        address: Of a running cluster, or ``auto``; absent starts one on this machine for the time of the call.
        batch_size: Inputs in one pass.
        labelled: Whether true labels are read.
        overwrite: Replace what is there.

    Raises:
        DataError: There is no input.
        ExtraError: Ray is not installed.
        RunError: Something is there already, the cluster cannot be reached, or the work has failed.
    """
    ray = _import_ray()
    if output.exists() and not overwrite:
        raise RunError(f"{output}: expected no such path yet. Choose another name, or pass --overwrite to replace it.")
    items = [{"piece": piece} for piece in pieces(sources, PIECE)]
    if not items:
        raise DataError("inputs: expected at least one, got none. Name files, folders or globs that hold some.")
    draft = output.with_name(f".{output.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    started = not ray.is_initialized()
    try:
        if started:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **_ALONE if not address else {})
        ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
        found = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Worker,
            fn_constructor_args=(open_grader, batch_size, labelled),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
            num_cpus=1,
        )
        found.write_parquet(str(draft))
    except (ray.exceptions.RayError, ConnectionError, OSError, ValueError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise RunError(f"ray: expected the work to come to its end, got: {_reason(error)}.") from error
    finally:
        if started:
            ray.shutdown()
    if output.exists():
        shutil.rmtree(output) if output.is_dir() else output.unlink()
    draft.rename(output)


def pieces(sources: Sequence[Source], size: int) -> Iterator[Source]:
    """Yields all inputs in sources of up to ``size``."""
    for source in sources:
        for start in range(0, source.count(), size):
            yield source.part(start, start + size)


class Worker:
    """Grades one piece after the other.

    Args:
        open_grader: Called once.
        batch_size: Inputs in one pass.
        labelled: Whether true labels are read.
    """

    def __init__(self, open_grader: Open, batch_size: int, labelled: bool) -> None:
        self.grader, self.reader = open_grader()
        self.batch_size, self.labelled = batch_size, labelled

    def __call__(self, batch: dict[str, Any]) -> Iterator[Any]:
        """Yields the rows of the pieces in a batch, as tables."""
        how: Any = {"batch_size": self.batch_size, "labelled": self.labelled}
        for graded in grade_stream(self.grader, list(batch["piece"]), self.reader, **how):
            yield graded.table


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing phones home
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ExtraError(f"ray: expected the package, got {error}. Install it: pip install 'petm[ray]'.") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _reason(error: BaseException) -> str:
    """What a worker raised first, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "petm.errors." in line]
    return (told[-1].partition("petm.errors.")[2] if told else lines[-1] if lines else type(error).__name__).rstrip(".")
