"""A folder for one run: it knows whose it is, keeps a second process out, and holds the checkpoints until the end.

runs/mnist/
├── run.json        what the run was told, and whether it is finished
├── checkpoints/    one file for each training; removed at the end
└── ...             what the run makes
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petm._internal.distributed import group, wait
from petm._internal.files import plain, take_lock, write_json
from petm.errors import RunError

LOCK = ".lock"
_RECORD, _CHECKPOINTS = "run.json", "checkpoints"


@dataclass(frozen=True)
class Storage:
    """Where a training leaves its checkpoint, and whether it goes on from there.

    Attributes:
        path: The checkpoint file.
        resume: Go on from the file if it is there; otherwise an existing file is replaced.
        every: Seconds between two checkpoints.
    """

    path: Path
    resume: bool = False
    every: float = 20.0


class RunFolder:
    """The folder of a run under way.

    Attributes:
        path: The folder.
        seconds: Time spent by step, filled by `timed`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = {}

    def storage(self, step: str) -> Storage:
        """Returns where the training of a step leaves its checkpoint, and goes on from."""
        return Storage(self.path / _CHECKPOINTS / f"{step}.safetensors", resume=True)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Adds the time that the block takes to `seconds`."""
        started = time.monotonic()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - started


@contextmanager
def open_run(
    path: str | Path, settings: Mapping[str, Any], *, resume: bool = False, overwrite: bool = False
) -> Iterator[RunFolder]:
    """Opens a folder for a run; when the block ends well, the run is finished and its checkpoints are removed.

    Of processes that work together (`distributed`) the main one claims it, and the others come in behind.

    Args:
        path: The folder, made when absent.
        settings: All that the result depends on, as JSON has it.
        resume: Go on with the interrupted run that is there, if there is one.
        overwrite: Remove the run that is there, whatever it is, unless it is one to go on with.

    Raises:
        RunError: The folder is in use, holds something else, a finished run, or a run with other settings.
    """
    path, wanted = Path(path), plain(settings)
    if not group().is_main:
        wait()
        yield RunFolder(path)
        return
    with locked(path):
        _claim(path, wanted, resume=resume, overwrite=overwrite)
        write_json(path / _RECORD, {"settings": wanted, "finished": False})
        wait()
        try:
            yield RunFolder(path)
        except BaseException:
            _leave_no_empty_run(path)
            raise
        write_json(path / _RECORD, {"settings": wanted, "finished": True})
        shutil.rmtree(path / _CHECKPOINTS, ignore_errors=True)


def forget_finished(path: Path) -> None:
    """Removes the folder of a run that came to its end, and could not be removed by it."""
    try:
        finished = json.loads((path / _RECORD).read_text(encoding="utf-8"))["finished"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if finished is True:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Makes a folder where there is none, and keeps a second process out of it as long as the block runs.

    Args:
        path: The folder; the lock is a file in it, which is gone when the block ends.

    Raises:
        RunError: The folder is in use, or cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        give_back = take_lock(path / LOCK)
    except BlockingIOError as error:
        raise RunError(f"{path}: another process is at work there. Wait for it, or choose another folder.") from error
    except OSError as error:
        raise RunError(f"{path}: cannot be used as an output folder ({error.strerror}). Choose another.") from error
    try:
        yield
    finally:
        give_back()


def contents(path: Path) -> list[Path]:
    """Returns what is in a locked folder besides its lock."""
    return [entry for entry in path.iterdir() if entry.name != LOCK]


def empty(path: Path) -> None:
    """Removes everything from a locked folder but its lock."""
    for entry in contents(path):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _leave_no_empty_run(path: Path) -> None:
    """Takes back the claim on a folder in which nothing has been made yet, and the folder too."""
    if {entry.name for entry in path.iterdir()} <= {_RECORD, LOCK}:
        shutil.rmtree(path, ignore_errors=True)


def _claim(path: Path, wanted: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Checks that the folder may be used, and empties it where that was asked for."""
    if not contents(path):
        return
    try:
        record = json.loads((path / _RECORD).read_text(encoding="utf-8"))
        before, finished = record["settings"], record["finished"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}: expected an empty folder or one of petm's runs, got other files. Choose another."
        ) from error
    if resume and not finished and before == wanted:
        return
    if overwrite:
        empty(path)
    elif finished:
        raise RunError(f"{path}: holds a finished run. Choose another folder, or pass --overwrite to replace it.")
    elif before != wanted:
        differing = [key for key in {**before, **wanted} if before.get(key) != wanted.get(key)]
        raise RunError(
            f"{path}: holds an interrupted run with other settings ({', '.join(differing)}). Choose another folder, "
            f"or pass --overwrite to replace it."
        )
    else:
        raise RunError(
            f"{path}: holds an interrupted run. Pass --resume to go on with it, or --overwrite to replace it."
        )
