"""The folder of one run: its settings, a lock against other processes, and the checkpoints until it is finished.

runs/mnist/
├── run.json        the settings of the run, and whether it is finished
├── checkpoints/    one file for each training; removed at the end
└── ...             the results
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
from petm._internal.files import REPLACE, plain, take_lock, write_json
from petm.errors import RunError

LOCK = ".lock"
_RECORD, _CHECKPOINTS = "run.json", "checkpoints"


@dataclass(frozen=True)
class Storage:
    """The place of a training's checkpoint.

    Attributes:
        path: The checkpoint file.
        resume: Whether to continue from an existing file instead of replacing it.
        every: Seconds between two checkpoints.
    """

    path: Path
    resume: bool = False
    every: float = 20.0


class RunFolder:
    """The folder of an open run.

    Attributes:
        path: The folder.
        seconds: Seconds of each step, filled by `timed`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = {}

    def storage(self, step: str) -> Storage:
        """Returns the place of the checkpoint of a step's training, to be resumed."""
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

    Of several processes (`petm._internal.distributed`) the main one claims it before the others enter.

    Args:
        path: The folder, made when absent.
        settings: Everything that the result depends on, in JSON's types.
        resume: Whether to continue an interrupted run in it.
        overwrite: Whether to remove a run in it that is not to be continued.

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
            if {entry.name for entry in contents(path)} <= {_RECORD}:  # nothing has been made yet
                shutil.rmtree(path, ignore_errors=True)
            raise
        write_json(path / _RECORD, {"settings": wanted, "finished": True})
        shutil.rmtree(path / _CHECKPOINTS, ignore_errors=True)


def forget_finished(path: Path) -> None:
    """Removes the folder of a finished run, if it is one."""
    if (record := _record(path)) and record[1]:
        shutil.rmtree(path, ignore_errors=True)


def _record(path: Path) -> tuple[Mapping[str, Any], bool] | None:
    """The settings of the run in a folder, and whether it is finished; None without a run of petm."""
    try:
        record = json.loads((path / _RECORD).read_text(encoding="utf-8"))
        return record["settings"], record["finished"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Makes a folder where there is none, and locks it against other processes while the block runs.

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
    """Returns the paths in a locked folder without its lock."""
    return [entry for entry in path.iterdir() if entry.name != LOCK]


def _claim(path: Path, wanted: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Checks that the folder may be used, and empties it to be overwritten."""
    if not contents(path):
        return
    if (record := _record(path)) is None:
        raise RunError(f"{path}: expected an empty folder or a run of petm, got other files. Choose another.")
    before, finished = record
    if resume and not finished and before == wanted:
        return
    if overwrite:
        for entry in contents(path):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    elif finished:
        raise RunError(f"{path}: holds a finished run. Choose another folder, or {REPLACE}.")
    elif before != wanted:
        differing = [key for key in {**before, **wanted} if before.get(key) != wanted.get(key)]
        raise RunError(
            f"{path}: holds an interrupted run with other settings ({', '.join(differing)}). Choose another folder, "
            f"or {REPLACE}."
        )
    else:
        raise RunError(f"{path}: holds an interrupted run. Continue it with resume=True (--resume), or {REPLACE}.")
