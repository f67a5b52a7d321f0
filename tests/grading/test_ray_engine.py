import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from networks import images
from petm.data.sources import open_sources
from petm.errors import DataError, ExtraError, RunError
from petm.grading.grade_files import grade_files
from petm.grading.grade_table import read_grades
from petm.grading.ray_engine import grade_on_ray
from slow_grader import open_slow_grader

ray = pytest.importorskip("ray", reason="needs petm[ray]")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Two archives of images, with a damaged file between them."""
    monkeypatch.chdir(tmp_path)
    x = images(900, 1, 4, 4)
    np.savez("a.npz", x=x[:500].numpy(), y=np.arange(500) % 3)
    (tmp_path / "b.npz").write_bytes(b"no archive")
    np.savez("c.npz", x=x[500:].numpy())
    monkeypatch.setattr("petm.grading.ray_engine.PIECE", 100)
    tests = Path(__file__).parents[1]
    path = (tests / "helpers", tests.parent, *sys.path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, path)))  # for the workers
    return x


def graded(path: Path) -> list[tuple[Any, ...]]:
    rows = [tuple(row.values()) for batch in read_grades(path) for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: (row[0], -1 if row[1] is None else row[1]))


def test_pieces_are_all_inputs_once(place: Tensor) -> None:
    sources = open_sources(["a.npz", "b.npz", "c.npz"])
    found = [part for source in sources for part in source.parts(150)]
    assert [piece.count() for piece in found] == [150, 150, 150, 50, 1, 150, 150, 100]
    rows = [row for piece in found for part in piece.rows(0, piece.count(), 64) for row in part.rows]
    assert rows == [*range(500), None, *range(400)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_workers_write_the_rows_of_one_process(place: Tensor, capfd: pytest.CaptureFixture[str]) -> None:
    def sources() -> Any:
        return open_sources([str(Path(name).absolute()) for name in ("a.npz", "b.npz", "c.npz")], label_column="label")

    grader, reader = open_slow_grader(0)
    grade_files(grader, sources(), reader, Path("one.parquet"), told={}, labelled=True)
    grade_on_ray(partial(open_slow_grader, 0), sources(), Path("two.parquet"), workers=2, labelled=True)
    assert graded(Path("two.parquet")) == graded(Path("one.parquet"))
    assert len(graded(Path("two.parquet"))) == 901
    with pytest.raises(RunError, match=r"two.parquet: expected no such path yet"):
        grade_on_ray(partial(open_slow_grader, 0), sources(), Path("two.parquet"))
    with pytest.raises(RunError, match=r"ray: expected the work to come to its end, got: .*cannot be opened"):
        grade_on_ray(broken, sources(), Path("three.parquet"), workers=1)
    assert not list(Path().glob("*three*"))


def broken() -> Any:
    raise RuntimeError("the grader cannot be opened")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_worker_killed_in_the_middle_loses_nothing(place: Tensor) -> None:
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 90
        while not killed and time.monotonic() < deadline:
            time.sleep(0.2)
            workers = [pid for pid in descendants() if "MapWorker(MapBatches(Worker))" in command(pid)]
            if workers:
                time.sleep(1.5)  # it is at work by then: 900 images take nine seconds of two workers
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])

    thread = threading.Thread(target=kill_one)
    thread.start()
    sources = open_sources([str(Path(name).absolute()) for name in ("a.npz", "c.npz")])
    grade_on_ray(partial(open_slow_grader, 0.15), sources, Path("g.parquet"), workers=2, batch_size=8)
    thread.join()
    assert killed
    rows = graded(Path("g.parquet"))
    assert [row[1] for row in rows] == [*range(500), *range(400)]
    assert [row[7] for row in rows] == pytest.approx(place.flatten(1).double().sum(1).tolist(), rel=1e-6)


def descendants() -> list[int]:
    """All processes; those of other users' clusters are not looked at here."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_no_inputs_and_no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"inputs: expected at least one, got none"):
        grade_on_ray(partial(open_slow_grader, 0), open_sources([tmp_path / "empty"]), tmp_path / "g.parquet")
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ExtraError, match=r"^ray: .*pip install 'petm\[ray\]'"):
        grade_on_ray(partial(open_slow_grader, 0), [], tmp_path / "g.parquet")
