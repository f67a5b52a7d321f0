import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from petm._internal.distributed import FEWEST, Group, gathered, group, sum_gradients, together, totals, wait
from petm.errors import RunError
from together_trainings import train_together

SCRIPT = Path(__file__).parents[1] / "helpers" / "together_trainings.py"


def result(folder: Path, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{kind}.json").read_text())
    return found


def expect_alike(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for one, other in zip(found["epochs"], expected["epochs"], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert found["second"] == pytest.approx(expected["second"], rel=1e-3, abs=1e-2)
    assert found["mean"] == pytest.approx(found["second"]), "every process has all answers"


KINDS = ("cached", "uncached", "early", "distilled")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of training by one process, this one, and by two; and by two of which one dies, and what was said."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("1", "2", "died"):
        (folder / name).mkdir()
    for kind in KINDS:
        train_together(folder / "1", kind)
    environment = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(SCRIPT), str(folder), ",".join(KINDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stderr)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_have_the_losses_of_one(kind: str, trained: Path) -> None:
    found, expected = (result(trained / str(processes), kind) for processes in (2, 1))
    assert (found["count"], expected["count"]) == (2, 1)
    expect_alike(found, expected)


@pytest.mark.slow
def test_a_dead_worker_ends_the_run_and_another_number_goes_on(trained: Path, tmp_path: Path) -> None:
    said = (trained / "said").read_text()
    assert "expected all 2 to work together until the end, but one cannot be reached" in said
    assert "with resume=True (--resume) the run continues from its checkpoint" in said
    died = shutil.copytree(trained / "died", tmp_path / "died")
    assert (died / "cached.safetensors").exists()
    assert not (died / "cached.json").exists()
    train_together(died, "cached")
    for folder in (died, trained / "3"):
        expect_alike(result(folder, "cached"), result(trained / "1", "cached"))


def test_one_process_alone() -> None:
    with together() as team:
        assert team == group() == Group(0, 1)
        assert team.is_main
        assert list(team.own(3)) == [0, 1, 2]
        wait()
        rows = torch.arange(6.0).view(3, 2)
        assert gathered(rows, 3) is rows
        assert totals([1.5, 2]) == [1.5, 2]
        weight = torch.ones(2, requires_grad=True)
        (2 * weight).sum().backward()
        sum_gradients([weight])
        assert weight.grad is not None
        assert weight.grad.tolist() == [2, 2]


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("n", [0, 7, 40, 101])
def test_shards_cover_all_samples_once(count: int, n: int) -> None:
    shares = [list(Group(rank, count).own(n)) for rank in range(count)]
    if n < FEWEST * count:
        assert shares == [list(range(n))] * count, "of a few, each does the whole"
    else:
        assert sorted(index for share in shares for index in share) == list(range(n))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_launch_that_cuts_the_model_in_parts(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(RunError, match=r"^processes:"), together():
        pass
    monkeypatch.setenv(variable, "false")
    with together() as team:
        assert team.count == 1


def test_a_launcher_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes are announced, but the address of the other one is missing."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=r"^processes: expected all 2 to work together"), together(cpu=True):
        pass
    assert group() == Group(0, 1)
