import errno
import os
from pathlib import Path

import pytest

from petm._internal.scratch import ScratchFile
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
    with pytest.raises(RunError, match=rf"{tmp_path}: expected numbers at 2, got the end of the file"):
        file.read_into(0, bytearray(3))


def test_no_room_beforehand_or_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = ScratchFile("numbers", "Free space.", folder=tmp_path)
    message = rf"{tmp_path}: expected room for numbers, got No space left on device. Free space\."
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RunError, match=message):
        file.write(0, b"12")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=message):
        ScratchFile("numbers", "Free space.", folder=tmp_path, reserve=1)
    with pytest.raises(RunError, match="absent: expected room for numbers, got No such file"):
        ScratchFile("numbers", "Free space.", folder=tmp_path / "absent")
