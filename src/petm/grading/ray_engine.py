"""Grading on many machines through Ray Data: the same rows as one process, in whatever order."""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from petm._internal.extras import import_extra
from petm._internal.storage import Located, RemotePath, for_arrow
from petm.data.reader import Reader
from petm.data.sources import Source
from petm.errors import DataError, RunError
from petm.grading.stream import GradesBatches, grade_stream
from petm.models import BATCH_SIZE

PIECE, _SHARES = 1 << 12, 16
"""Inputs that a worker is given at a time, at least, which is what a lost worker repeats; and how often it is given
such, about, at most: Ray keeps account of them all."""

_ALONE: dict[str, Any] = {"include_dashboard": False}
"""Of a cluster that is started for one call."""

Open = Callable[[], tuple[GradesBatches, Reader]]
"""What a worker opens once: the grader, and what reads its inputs. Its files must be there on every machine."""


def grade_on_ray(
    open_grader: Open,
    sources: Sequence[Source],
    output: Located,
    *,
    workers: int = 2,
    address: str | None = None,
    batch_size: int = BATCH_SIZE,
    labelled: bool = False,
    overwrite: bool = False,
) -> None:
    """Grades inputs by workers of a Ray cluster into a folder of Parquet files, of `petm.grading.grade_table.SCHEMA`.

    Each worker opens the grader once and takes pieces of the inputs as it is ready. When one is lost, Ray starts
    another and its piece is graded again. The folder appears when all pieces are there; in a store, where folders
    cannot be renamed, it fills as they come, and is whole when it holds an empty ``_SUCCESS``.

    Args:
        open_grader: What each worker calls at its start.
        sources: The inputs; their files must be readable on every machine, by path or in a store.
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
    total = sum(source.count() for source in sources)
    size = max(PIECE, total // (_SHARES * workers))
    items = [{"piece": piece} for source in sources for piece in source.parts(size)]
    if not items:
        raise DataError("inputs: expected at least one, got none. Name files, folders or globs that hold some.")
    draft = _draft(output)
    _remove(draft)
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
        path, filesystem = for_arrow(draft)
        found.write_parquet(path, filesystem=filesystem)
    except (ray.exceptions.RayError, ConnectionError, OSError, ValueError) as error:
        _remove(draft)
        raise RunError(f"ray: expected the work to come to its end, got: {_reason(error)}.") from error
    finally:
        if started:
            ray.shutdown()
    if isinstance(draft, RemotePath):
        draft.filesystem.open_output_stream((draft / "_SUCCESS").key).close()
    else:
        _remove(output)
        draft.rename(str(output))


def _draft(output: Located) -> Located:
    """Where the folder is written: beside its place, and in a store in its place."""
    return output.with_name(f".{output.name}.draft") if isinstance(output, Path) else output


def _remove(place: Located) -> None:
    if isinstance(place, RemotePath):
        if place.is_dir():
            place.filesystem.delete_dir(place.key)
        elif place.exists():
            place.filesystem.delete_file(place.key)
    elif place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


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
    # Its processes call much an error that nobody can do anything about, such as how Ray Data starts its actors.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray, _ = import_extra("ray", "ray", "ray.data")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _reason(error: BaseException) -> str:
    """What a worker raised first, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "petm.errors." in line]
    return (told[-1].partition("petm.errors.")[2] if told else lines[-1] if lines else type(error).__name__).rstrip(".")
