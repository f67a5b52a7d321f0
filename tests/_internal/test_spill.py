import errno
import os
from contextlib import closing
from pathlib import Path

import pytest
import torch

from petm._internal.spill import RowStore, ScratchFile
from petm.errors import RunError


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_is_written_is_read_wherever_it_stands(tmp_path: Path) -> None:
    file = ScratchFile("numbers", "Free space.", folder=tmp_path)
    file.write(5, b"later")
    file.write(0, b"first")
    buffer = bytearray(7)
    file.read_into(2, buffer)
    assert bytes(buffer) == b"rstlate"
    file.close()


def test_the_file_has_no_name_and_is_gone_when_closed_or_forgotten(tmp_path: Path) -> None:
    before = descriptors()
    file = ScratchFile("numbers", "Free space.", folder=tmp_path, reserve=100)
    assert not list(tmp_path.iterdir())
    assert descriptors() == before + 1
    file.close()
    file.close()
    assert descriptors() == before
    file = ScratchFile("numbers", "Free space.", folder=tmp_path)
    del file
    assert descriptors() == before


def test_long_content_takes_several_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda file, content, at: write(file, content[:3], at))
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: read(file, [memoryview(buffers[0])[:4]], at))
    file = ScratchFile("numbers", "Free space.", folder=tmp_path)
    file.write(1, bytes(range(20)))
    buffer = bytearray(19)
    file.read_into(2, buffer)
    assert bytes(buffer) == bytes(range(1, 20))


def test_what_was_never_written(tmp_path: Path) -> None:
    file = ScratchFile("numbers", "Free space.", folder=tmp_path)
    file.write(0, b"12")
    with pytest.raises(RunError, match=f"^{tmp_path}:"):
        file.read_into(0, bytearray(3))


def test_no_room_beforehand_or_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = ScratchFile("numbers", "Free space.", folder=tmp_path)
    message = f"^{tmp_path}:"
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RunError, match=message):
        file.write(0, b"12")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=message):
        ScratchFile("numbers", "Free space.", folder=tmp_path, reserve=1)
    with pytest.raises(RunError, match="absent:"):
        ScratchFile("numbers", "Free space.", folder=tmp_path / "absent")


def test_without_calls_that_take_a_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.delattr(os, "pwrite")
    monkeypatch.delattr(os, "preadv")
    test_what_is_written_is_read_wherever_it_stands(tmp_path)
    test_what_was_never_written(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("budget", [1 << 20, 0], ids=["memory", "file"])
def test_rows_are_read_as_they_were_written(dtype: torch.dtype, budget: int) -> None:
    rows = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    with closing(RowStore(20, 7, dtype, budget=budget)) as store:
        for start in (12, 0):  # in any order; what is no whole in memory too
            store.write(start, rows.T.contiguous().T[start : start + 12])
        for indices in ([3, 19, 3], torch.tensor([11, 0]), range(20), []):
            found = store.read(indices)
            assert found.dtype == dtype
            assert torch.equal(found, rows.to(dtype)[torch.as_tensor(indices, dtype=torch.int64)])
            assert found.shape == (len(indices), 7)


def test_rows_above_the_budget_lie_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petm._internal.spill.ScratchFile", None)
    with closing(RowStore(10, 3, torch.float32, budget=120)) as store:
        store.write(0, torch.ones(10, 3))
    with pytest.raises(TypeError), closing(RowStore(10, 3, torch.float32, budget=119)):
        pass


def test_what_is_read_belongs_to_the_reader() -> None:
    for budget in (1 << 10, 0):
        with closing(RowStore(2, 3, torch.float32, budget=budget)) as store:
            store.write(0, torch.zeros(2, 3))
            store.read([1]).fill_(7)
            assert not store.read([1]).any()
