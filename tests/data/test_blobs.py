import pyarrow as pa
import pytest

from petm.data import blobs
from petm.data.blobs import Blobs

IMAGES = [b"one", b"", b"three", b"4", b"", b"six" * 50]


@pytest.mark.parametrize("held", [1 << 20, 5, 0], ids=["memory", "both", "file"])
def test_images_are_read_in_any_order(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "HELD", held)
    found = Blobs()
    array = pa.array([b"before", *IMAGES], pa.large_binary())
    for part in (array.slice(1, 2), array.slice(3, 0), array.slice(3), pa.array([], pa.large_binary())):
        found.append(part)
    assert len(found) == len(IMAGES)
    for row in (5, 0, 1, 4, 2, 3, 0):
        assert found[row] == IMAGES[row]
