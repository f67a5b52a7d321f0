import io
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow.fs import FileType
from torch import Tensor

from networks import images
from petm._internal.storage import RemotePath, locate
from petm.data.sources import open_sources
from petm.errors import DataError, ExtraError, RunError
from petm.grading.grade_files import grade_files
from petm.grading.grade_table import SCHEMA, read_grades
from petm.grading.ray_engine import _import_ray, grade_on_ray
from s3_store import put
from slow_grader import open_broken_grader, open_dying_grader, open_slow_grader

pytest.importorskip("ray", reason="needs petm[ray]")


def worker_path() -> str:
    """The import path of the workers."""
    tests = Path(__file__).parents[1]
    return os.pathsep.join(map(str, (tests / "helpers", tests.parent, *sys.path)))


Ended = list[bool]


@pytest.fixture(scope="module")
def cluster(bucket: str) -> Iterator[Ended]:
    """One cluster of two cores, with the keys to the store, for all tests of this module; the first grading starts it.

    Each time that one would end it, ``True`` is added to the list, and it goes on until the module ends.
    """
    ended: Ended = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", worker_path())
        ray = _import_ray()
        shutdown = ray.shutdown
        patch.setattr(ray, "init", partial(ray.init, num_cpus=2))
        patch.setattr(ray, "shutdown", lambda: ended.append(True))
        yield ended
        shutdown()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Two archives of images, with a damaged file between them."""
    monkeypatch.chdir(tmp_path)
    x = images(900, 1, 4, 4)
    np.savez("a.npz", x=x[:500].numpy(), y=np.arange(500) % 3)
    (tmp_path / "b.npz").write_bytes(b"no archive")
    np.savez("c.npz", x=x[500:].numpy())
    monkeypatch.setattr("petm.grading.ray_engine.PIECE", 100)
    return x


def graded(path: Path) -> list[tuple[Any, ...]]:
    rows = [tuple(row.values()) for batch in read_grades(path) for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: (row[0], -1 if row[1] is None else row[1]))


def test_pieces_are_all_inputs_once(place: Tensor) -> None:
    sources = open_sources(["a.npz", "b.npz", "c.npz"])
    found = [part for source in sources for part in source.parts(150)]
    assert [piece.count() for piece in found] == [150, 150, 150, 50, 1, 150, 150, 100]
    rows = [row.number for piece in found for part in piece.rows(0, piece.count(), 64) for row in part]
    assert rows == [*range(1, 501), None, *range(1, 401)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_workers_write_the_rows_of_one_process_though_one_is_killed(
    place: Tensor, tmp_path: Path, cluster: Ended
) -> None:
    def sources() -> Any:
        return open_sources([str(tmp_path / name) for name in ("a.npz", "b.npz", "c.npz")], label_column="label")

    one, two, three = (tmp_path / f"{name}.parquet" for name in ("one", "two", "three"))
    grader, reader = open_slow_grader(0)
    grade_files(grader, sources(), reader, one, told={}, labelled=True, audit=0.3)
    opened = partial(open_dying_grader, tmp_path / "killed")
    grade_on_ray(opened, sources(), two, workers=2, batch_size=8, labelled=True, audit=0.3)
    assert cluster == [True], "who starts it ends it, and nobody else"
    assert (tmp_path / "killed").exists()
    assert graded(two) == graded(one)
    assert any(row[SCHEMA.names.index("audit")] for row in graded(two)), "drawn for the audit"
    assert [row[1] for row in graded(two)] == [*range(1, 501), None, *range(1, 401)]
    suspicion = [row[SCHEMA.names.index("suspicion")] for row in graded(two) if row[1] is not None]
    assert suspicion == pytest.approx(place.flatten(1).double().sum(1).tolist(), rel=1e-6)
    with pytest.raises(RunError, match=r"two.parquet: "):
        grade_on_ray(opened, sources(), two)
    with pytest.raises(RunError, match=r"^ray: .*cannot be opened"):
        grade_on_ray(open_broken_grader, sources(), three, workers=1)
    assert not list(tmp_path.glob("*three*"))
    assert cluster == [True], "who starts it ends it, and nobody else"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_workers_read_from_a_store_and_write_there(
    bucket: str, cluster: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petm.grading.ray_engine.PIECE", 64)
    file, x = io.BytesIO(), np.random.default_rng(0).random((150, 1, 4, 4), np.float32)
    np.savez(file, x=x)
    put(f"s3://shelf/ray.npz?{bucket}", file.getvalue())
    output = locate(f"s3://shelf/graded.parquet?{bucket}")
    assert isinstance(output, RemotePath)
    sources = open_sources([f"s3://shelf/ray.npz?{bucket}"])
    put(f"s3://shelf/graded.parquet/other.parquet?{bucket}", b"of another run")
    with pytest.raises(RunError, match=r"s3://shelf/graded.parquet: expected no such path yet"):
        grade_on_ray(partial(open_slow_grader, 0), sources, output)
    grade_on_ray(partial(open_slow_grader, 0), sources, output, workers=1, overwrite=True)
    rows = sorted((row["row"], row["suspicion"]) for batch in read_grades(output) for row in batch.to_pylist())
    assert [row for row, _ in rows] == list(range(1, 151))
    assert [suspicion for _, suspicion in rows] == pytest.approx(x.astype(float).sum((1, 2, 3)).tolist(), rel=1e-6)
    assert (output / "_SUCCESS").is_file()
    assert output.filesystem.get_file_info(output.key).type == FileType.Directory


def test_no_inputs_and_no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"^inputs: "):
        grade_on_ray(partial(open_slow_grader, 0), open_sources([tmp_path / "empty"]), tmp_path / "g.parquet")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExtraError, match=r"^ray: .*pip install 'petm\[ray\]'"):
        grade_on_ray(partial(open_slow_grader, 0), [], tmp_path / "g.parquet")
