"""A save that is killed at any step, on a full disk, or beside another: the old or the new bundle, whole."""

import errno
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from networks import TinyCNN, images, randomise, seeded
from petm._internal.files import take_lock
from petm.adapter.model import attach_adapter
from petm.errors import RunError
from petm.grading.grader import Grader, load
from petm.grading.manifest import check_target, read_manifest
from petm.selective.thresholds import DISAGREEMENT
from small_disk import files_of_at_most


def grader(seed: int) -> Grader:
    return Grader(randomise(attach_adapter(seeded(TinyCNN), {"fc1": 2}), seed=seed), DISAGREEMENT)


def suspicion(path: Path) -> list[float]:
    with torch.no_grad():
        return load(path, seeded(TinyCNN)).grade(images(4)).suspicion.tolist()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    grader(1).save(tmp_path / "b.petm")
    return tmp_path / "b.petm"


def save_and_die(path: Path, step: int, function: str) -> None:
    """Saves, and dies without a word before the call of that number."""
    module: Any = {"replace": os, "rmtree": shutil, "fsync": os}[function]
    really, calls = getattr(module, function), iter(range(10**6))

    def counted(*given: Any, **named: Any) -> Any:
        if next(calls) == step:
            os._exit(9)
        return really(*given, **named)

    setattr(module, function, counted)
    torch.set_num_threads(1)
    grader(2).save(path, include_base=True, overwrite=True)
    os._exit(0)


def in_a_process(run: Callable[..., None], *given: Any) -> Any:
    process = multiprocessing.get_context("fork").Process(target=run, args=given)
    process.start()
    return process


@pytest.mark.slow
@pytest.mark.parametrize(("function", "steps"), [("replace", 12), ("rmtree", 4), ("fsync", 8)])
def test_killed_at_every_step(path: Path, function: str, steps: int) -> None:
    old, (new, kept) = suspicion(path), (grader(2).grade(images(4)).suspicion.tolist(), path.parent / "kept")
    shutil.copytree(path, kept)
    codes, found = [], []
    for step in range(steps):
        process = in_a_process(save_and_die, path, step, function)
        process.join(60)
        codes.append(process.exitcode)
        found.append(suspicion(path))
        assert found[-1] in (old, new)
        grader(1).save(path, overwrite=True)  # and nothing is in the way of the next save
        assert suspicion(path) == old
        assert sorted(os.listdir(path.parent)) == ["b.petm", "kept"]
    assert 9 in codes, "it was never killed"
    assert 0 in codes, "every step has been tried"
    assert found[-1] == new


def test_between_the_renames_all_find_the_old_one(path: Path) -> None:
    def refuse(path: Path) -> None:
        with pytest.raises(RunError, match="got a bundle"):
            check_target(path, overwrite=False)

    for use in (read_manifest, suspicion, refuse):
        path.rename(path.with_name(".b.petm.old"))
        use(path)
        assert os.listdir(path.parent) == ["b.petm"]


def test_a_reader_in_between_does_not_stop_the_save(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really, read = os.replace, []

    def replace(source: Any, target: Any) -> None:
        if Path(target) == path and not read:
            read.append(read_manifest(path))
        really(source, target)

    monkeypatch.setattr(os, "replace", replace)
    grader(2).save(path, overwrite=True)
    assert read
    assert suspicion(path) == grader(2).grade(images(4)).suspicion.tolist()
    assert os.listdir(path.parent) == ["b.petm"]


def test_a_full_disk_leaves_the_old_one(path: Path) -> None:
    old = suspicion(path)
    for limit in (10, 300, 1000, 3000):  # the lock, settings, tensors, card
        with files_of_at_most(limit), pytest.raises(RunError, match="could not be written"):
            grader(2).save(path, include_base=True, overwrite=True)
        assert suspicion(path) == old
        assert os.listdir(path.parent) == ["b.petm"]


@pytest.mark.parametrize("step", range(8))
def test_a_disk_that_is_full_at_a_step(path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    old, really, calls = suspicion(path), os.fsync, iter(range(100))

    def fsync(file: int) -> None:
        if next(calls) == step:
            raise OSError(errno.ENOSPC, "No space left on device")
        really(file)

    monkeypatch.setattr(os, "fsync", fsync)
    try:
        grader(2).save(path, include_base=True, overwrite=True)
    except RunError:
        assert suspicion(path) == old
    else:
        assert step >= 5, "there are five files"
    assert os.listdir(path.parent) == ["b.petm"]


def test_another_process_that_writes_it_is_told(path: Path) -> None:
    release = take_lock(path.with_name(".b.petm.lock"))
    old = suspicion(path)
    with pytest.raises(RunError, match=r"b.petm: is being written by another process"):
        grader(2).save(path, overwrite=True)
    assert suspicion(path) == old
    release()


def save_often(path: Path, seed: int) -> None:
    torch.set_num_threads(1)
    made = grader(seed)
    for _ in range(20):
        try:
            made.save(path, overwrite=True)
        except RunError as error:
            if "another process" not in str(error):
                os._exit(1)
    os._exit(0)


@pytest.mark.slow
def test_two_processes_never_mix(path: Path) -> None:
    expected = [grader(seed).grade(images(4)).suspicion.tolist() for seed in (1, 2, 3)]
    processes = [in_a_process(save_often, path, seed) for seed in (2, 3)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert suspicion(path) in expected
    assert os.listdir(path.parent) == ["b.petm"]
