import errno
import hashlib
import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from petm._internal.files import fingerprint, plain, sha256_of_file, to_json, write_atomically, write_json, write_text
from petm.errors import RunError
from small_disk import files_of_at_most

# write_atomically


def test_writing_makes_the_folder_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text.txt"
    write_text(path, "first: é\n")
    write_text(path, "second")
    assert path.read_text(encoding="utf-8") == "second"
    assert os.listdir(path.parent) == ["text.txt"]


def test_a_written_file_has_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_text(tmp_path / "ours", "")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("no"), KeyboardInterrupt()]
)
def test_whatever_happens_the_old_content_stays(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def half(temporary: Path) -> None:
        assert temporary.parent == tmp_path
        temporary.write_text("half of the n")
        assert path.read_text() == "old"
        raise error

    expected = RunError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as raised:
        write_atomically(path, half)
    if expected is RunError:
        assert str(raised.value) == (
            f"{path}: could not be written (No space left on device). Free space or choose another folder."
        )
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file/x:"):
        write_text(tmp_path / "file" / "x", "")


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(RunError, match="x:"):
        write_text(tmp_path / "x", "")
    assert os.listdir(tmp_path) == ["x"]


def test_a_full_disk_while_text_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with files_of_at_most(1000), pytest.raises(RunError, match=r"could not be written \(File too large\)"):
        write_text(path, "x" * 5000)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_full_disk_while_safetensors_writes(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with files_of_at_most(1000), pytest.raises(RunError, match=r"could not be written \(.*File too large"):
        write_atomically(path, lambda temporary: save_file({"x": torch.zeros(5000)}, temporary))
    assert os.listdir(tmp_path) == []


# JSON


@dataclass(frozen=True)
class Point:
    x: float
    where: Path | None = None


def test_json_holds_what_json_can_hold(tmp_path: Path) -> None:
    content = {"points": (Point(1.5), Point(math.nan, Path("a/b"))), 3: [math.inf, -math.inf, np.float64(2)], "é": None}
    write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "points": [{"x": 1.5, "where": None}, {"x": None, "where": "a/b"}],
        "3": [None, None, 2.0],
        "é": None,
    }
    assert "é" in text
    assert text.endswith("}\n")


def test_plain_keeps_plain_values() -> None:
    value = {"a": [1, True, None, "x", 2.5], "b": {}}
    assert plain(value) == value
    assert plain(Point) is Point


# hashes


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_of_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_fingerprint_by_hand() -> None:
    digest = hashlib.sha256(b"text 2\nab\n" + b"tensor torch.int16 (2,)\n" + np.array([1, -2], "<i2").tobytes())
    assert fingerprint(["ab", torch.tensor([1, -2], dtype=torch.int16)]) == digest.hexdigest()


def test_fingerprints_differ_where_content_differs() -> None:
    x = torch.arange(6.0)
    parts: list[list] = [
        [], [""], ["ab"], ["a", "b"], ["b", "a"], [x], [x.reshape(2, 3)], [x.reshape(3, 2)], [x.double()],
        [x.int()], [x.bfloat16()], [x[:3], x[3:]], [-x], [x.flip(0)], ["é"], [x[:0]], [torch.tensor(1.0)],
        [torch.tensor([1.0])], [torch.tensor([True])], [torch.tensor([1], dtype=torch.uint8)],
    ]  # fmt: skip
    found = [fingerprint(part) for part in parts]
    assert len(set(found)) == len(parts)
    assert all(len(text) == 64 for text in found)


def test_fingerprints_do_not_depend_on_strides_or_gradients() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    for same in (x.t().contiguous().t(), x.clone().requires_grad_(), torch.nn.Parameter(x)):
        assert fingerprint([same]) == fingerprint([x])


@dataclass
class Figures:
    share: float
    where: Path


def test_json_has_neither_nan_nor_infinity() -> None:
    content = {"a": [math.nan, 1.5], "b": {"c": -math.inf}, "d": (Figures(math.inf, Path("x")), "é")}
    found = json.loads(to_json(content), parse_constant=pytest.fail)
    assert found == {"a": [None, 1.5], "b": {"c": None}, "d": [{"share": None, "where": "x"}, "é"]}
    assert to_json({"a": "é"}) == '{"a": "é"}'
