"""Grading on many machines through Ray Data: the same rows as one process, in any order."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from petm._internal.extras import import_extra
from petm._internal.files import REPLACE
from petm._internal.storage import Located, RemotePath, for_arrow
from petm.data.reader import Reader
from petm.data.sources import Source
from petm.errors import DataError, RunError
from petm.grading.grade_files import check_apart
from petm.grading.stream import AnyGrader, grade_stream
from petm.models import BATCH_SIZE
from petm.selective.audit import check_audit

PIECE, _SHARES = 1 << 12, 16
"""Least number of inputs in a piece, which a lost worker repeats; and about the largest number of pieces a worker."""

Open = Callable[[], tuple[AnyGrader, Reader]]
"""Opens the grader and the reader of its inputs, once a worker; their files must exist on every machine."""


def grade_on_ray(
    open_grader: Open,
    sources: Sequence[Source],
    output: Located,
    *,
    workers: int = 2,
    address: str | None = None,
    batch_size: int = BATCH_SIZE,
    labelled: bool = False,
    audit: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Grades inputs by workers of a Ray cluster into a folder of Parquet files of `petm.grading.grade_table.SCHEMA`.

    Each worker opens the grader once and grades one piece of the inputs after the other. Ray replaces a lost worker and
    grades its piece again. The folder appears when it is whole; in a store, where folders cannot be renamed, it is
    whole when it holds an empty ``_SUCCESS``.

    Args:
        open_grader: Called by each worker at its start.
        sources: The inputs; their files must be readable on every machine, by path or in a store.
        output: The folder to make.
        workers: Number of workers.
        address: Address of a running cluster, or ``auto``; absent starts one on this machine for this call.
        batch_size: Inputs in one pass.
        labelled: Whether true labels are read.
        audit: Chance of each trusted row to be drawn for review, above 0, as by one process; None draws none.
        seed: Seed of the draw.
        overwrite: Whether to replace an existing folder.

    Raises:
        ArgumentError: ``audit`` is no such chance.
        DataError: There is no input.
        ExtraError: Ray is not installed.
        RunError: ``output`` exists, is an input or lies in a folder that is read; the cluster cannot be reached; or the
            work failed.
    """
    check_audit(audit)
    ray = _import_ray()
    check_apart(output, [source.name for source in sources])
    if output.exists() and not overwrite:
        raise RunError(f"{output}: expected no such path yet. Choose another name, or {REPLACE}.")
    how = {"batch_size": batch_size, "labelled": labelled, "audit": audit, "seed": seed}
    total = sum(source.count() for source in sources)
    size = max(PIECE, total // (_SHARES * workers))
    items = [{"piece": piece} for source in sources for piece in source.parts(size)]
    if not items:
        raise DataError("inputs: expected at least one, got none. Name files, folders or globs that hold some.")
    # Where folders can be renamed, the draft stands beside its place.
    draft = output.with_name(f".{output.name}.draft") if isinstance(output, Path) else output
    _remove(draft)
    started = not ray.is_initialized()
    try:
        if started:
            alone = {} if address else {"include_dashboard": False}
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **alone)
        ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
        found = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Worker,
            fn_constructor_args=(open_grader, how),
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
            num_cpus=1,
        )
        path, filesystem = for_arrow(draft)
        found.write_parquet(path, filesystem=filesystem)
    except (ray.exceptions.RayError, ConnectionError, OSError, ValueError) as error:
        _remove(draft)
        raise RunError(f"ray: expected every worker to finish, got: {_reason(error)}.") from error
    finally:
        if started:
            ray.shutdown()
    if isinstance(draft, RemotePath):
        draft.filesystem.open_output_stream((draft / "_SUCCESS").key).close()
    else:
        _remove(output)
        draft.rename(str(output))


def _remove(place: Located) -> None:
    from pyarrow.fs import LocalFileSystem

    path, filesystem = for_arrow(place)
    if place.is_dir():
        (filesystem or LocalFileSystem()).delete_dir(path)
    elif place.exists():
        (filesystem or LocalFileSystem()).delete_file(path)


class Worker:
    """Grades one piece after the other; ``how`` are arguments of `grade_stream`."""

    def __init__(self, open_grader: Open, how: dict[str, Any]) -> None:
        (self.grader, self.reader), self.how = open_grader(), how

    def __call__(self, batch: dict[str, Any]) -> Iterator[Any]:
        """Yields the rows of the pieces in a batch, as tables."""
        for graded in grade_stream(self.grader, list(batch["piece"]), self.reader, **self.how):
            yield graded.table


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing phones home
    # Ray's processes log errors that are none, such as how Ray Data starts its actors.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray, _ = import_extra("ray", "ray", "ray.data")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _reason(error: BaseException) -> str:
    """A worker's first error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "petm.errors." in line]
    return (told[-1].partition("petm.errors.")[2] if told else lines[-1] if lines else type(error).__name__).rstrip(".")
