import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import petm.training.checkpoint
from petm.errors import RunError
from petm.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

TENSORS = {
    "model.fc.weight": torch.tensor([[1.5, float("nan")], [-0.0, float("inf")]]),
    "model.bn.num_batches_tracked": torch.tensor(7),
    "best.fc.weight": torch.arange(4).reshape(2, 2).t(),
    "optimizer.0.step": torch.tensor(3.0, dtype=torch.float64),
    "modelling.x": torch.zeros(0, 3),
}
CHECKPOINT = Checkpoint({"title": "é", "settings": {"rate": 0.1}}, {"best_loss": float("inf"), "figures": []}, TENSORS)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "deep" / "c.safetensors", CHECKPOINT)
    found = read_checkpoint(tmp_path / "deep" / "c.safetensors")
    assert found.identity == CHECKPOINT.identity
    assert found.progress == CHECKPOINT.progress
    assert found.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert found.tensors[name].shape == tensor.shape
        assert found.tensors[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes()


def test_a_part_goes_up_to_the_first_dot() -> None:
    assert CHECKPOINT.part("model").keys() == {"fc.weight", "bn.num_batches_tracked"}
    assert CHECKPOINT.part("optimizer").keys() == {"0.step"}
    assert CHECKPOINT.part("absent") == {}


def test_tensors_may_share_memory(tmp_path: Path) -> None:
    mask = torch.ones(3)
    write_checkpoint(tmp_path / "c.safetensors", Checkpoint({}, {}, {"a": mask, "b": mask, "c": mask[1:]}))
    assert read_checkpoint(tmp_path / "c.safetensors").tensors["c"].tolist() == [1, 1]


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_truncated_file(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, CHECKPOINT)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        RunError, match=r"c.safetensors: expected a whole checkpoint, got a damaged file \(.*\). Remove"
    ):
        read_checkpoint(path)


@pytest.mark.parametrize("metadata", [None, {"petm": "no json"}, {"petm": "[]"}, {"petm": "{}"}, {"other": "x"}])
def test_a_file_of_another_kind(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "c.safetensors", metadata=metadata)
    with pytest.raises(RunError, match=r"expected a whole checkpoint"):
        read_checkpoint(tmp_path / "c.safetensors")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"expected a whole checkpoint"):
        read_checkpoint(tmp_path / "c.safetensors")


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, CHECKPOINT)

    def full(tensors: object, where: Path, metadata: object) -> None:
        where.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(petm.training.checkpoint, "save_file", full)
    with pytest.raises(RunError, match=r"could not be written \(No space left on device\)"):
        write_checkpoint(path, Checkpoint({}, {}, {}))
    assert read_checkpoint(path).identity == CHECKPOINT.identity
    assert os.listdir(tmp_path) == ["c.safetensors"]
