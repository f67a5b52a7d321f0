import csv
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow.fs import LocalFileSystem

from petm._internal.storage import RemotePath, for_arrow, identity_of, locate, open_binary
from petm.data.reader import Reader
from petm.data.sources import open_sources
from petm.errors import DataError, RunError
from petm.grading.grade_files import check_output
from s3_store import put


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4), dtype=np.uint8)).save(stream, "png")
    return stream.getvalue()


def read(addresses: list[str], **how: Any) -> list[tuple[Any, ...]]:
    """Input, row, label, and the pixels or the fault, of all rows."""
    reader = Reader(size=(4, 4), channels=1)
    found: list[tuple[Any, ...]] = []
    for source in open_sources(addresses, **how):
        for rows in source.rows(0, source.count(), 3):
            readings = reader.read(rows)
            values = iter(readings.inputs if readings.inputs is not None else ())
            said = [next(values).flatten().tolist() if reason is None else reason for reason in readings.reasons]
            found += [(row.path, row.number, row.label, what) for row, what in zip(rows, said, strict=True)]
    return found


def test_a_path_stays_a_path_and_an_address_loses_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate("a/b.png") == Path("a/b.png")
    assert locate(Path("s3://b")) == Path("s3://b")
    place = locate("file:///tmp/a%20b/c.png")
    assert isinstance(place, RemotePath)
    assert (str(place), place.name, place.suffix) == ("file:///tmp/a b/c.png", "c.png", ".png")
    place = locate("s3://me:secret@shelf/a/*.png?region=us-east-1&endpoint_override=127.0.0.1:9")
    assert str(place) == "s3://shelf/a/*.png"
    assert identity_of(Path(__file__)).startswith(f"{__file__} {os.path.getsize(__file__)} ")
    with pytest.raises(DataError, match=r"nowhere://…: expected a store that can be reached, got: .*//…@") as raised:
        locate("nowhere://me:secret@shelf/a")
    assert "secret" not in str(raised.value)


def test_files_by_their_addresses(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.txt", "c/1.txt", "c/1/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    root = locate(tmp_path.as_uri())
    assert isinstance(root, RemotePath)
    assert [(place.name, folder) for place, folder in (root / "c").entries()] == [("1", True), ("1.txt", False)]
    assert [str(place) for place in (root / "*/1*.txt").matching()] == [f"file://{tmp_path}/{n}/1.txt" for n in "bc"]
    assert (root / "b").is_dir()
    assert not (root / "b").is_file()
    assert (root / "b").exists()
    assert (root / "b/2.txt").is_file()
    assert (root / "b/2.txt").read_bytes() == b"b/2.txt"
    assert not (root / "d").exists()
    assert not (root / "d").is_dir()
    before = identity_of(root / "b/2.txt")
    (tmp_path / "b/2.txt").write_text("longer")
    assert before.startswith(f"{root}/b/2.txt 7 ")
    assert identity_of(root / "b/2.txt") != before
    with open_binary(root / "b/1.txt") as file:
        assert file.seek(2) == 2
        assert file.read() == b"1.txt"
    assert for_arrow(root / "b") == (str(tmp_path / "b"), LocalFileSystem())
    with pytest.raises(DataError, match="d:"):
        (root / "d").entries()


@pytest.mark.filterwarnings("ignore:.*passed over:petm.errors.PetmWarning")
def test_every_kind_of_input_from_a_store(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def at(key: str) -> str:
        return f"s3://shelf/{key}?{bucket}"

    images = [png(seed) for seed in range(7)]
    for seed, name in enumerate(("cat/1.png", "cat/2.png", "dog/old/3.png")):
        put(at(f"images/{name}"), images[seed])
    put(at("images/notes.txt"), b"no image")
    values = [np.asarray(Image.open(io.BytesIO(image))) for image in images]
    plain = [(value.astype(np.float32) / 255).flatten().tolist() for value in values]
    assert read([at("images")]) == [
        ("s3://shelf/images/cat/1.png", None, "cat", plain[0]),
        ("s3://shelf/images/cat/2.png", None, "cat", plain[1]),
        ("s3://shelf/images/dog/old/3.png", None, "dog", plain[2]),
    ]
    found = read([at("images/cat/*.png"), at("images/cat/4.png")])
    assert [row[3] for row in found[:2]] == plain[:2]
    assert found[2][0] == "s3://shelf/images/cat/4.png"
    assert found[2][3].startswith("expected an image, got: ")
    file = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": range(7)}), file, row_group_size=3)
    put(at("tables/1.parquet"), file.getvalue())
    put(at("tables/2.parquet"), file.getvalue()[:-9])
    found = read([at("tables")], label_column="label")
    assert found[:7] == [("s3://shelf/tables/1.parquet", 1 + row, row, plain[row]) for row in range(7)]
    assert len(found) == 8
    assert "expected a whole Parquet file" in found[7][3]
    file = io.BytesIO()
    np.savez_compressed(file, images=np.stack(values))
    put(at("x.npz"), file.getvalue())
    assert [row[3] for row in read([at("x.npz")])] == plain
    text = io.StringIO()
    csv.writer(text).writerows([("text", "label"), ("Größe?\n", "a"), ("no", "b")])
    put(at("t.csv"), text.getvalue().encode())
    (texts,) = open_sources([at("t.csv")], text_column="text", label_column="label")
    (rows,) = texts.rows(0, 9, 9)
    assert ([row[2:4] for row in rows], texts.count()) == ([("Größe?\n", "a"), ("no", "b")], 2)
    before = texts.identity()
    put(at("t.csv"), b"text\nother")
    assert texts.identity() != before
    with pytest.raises(DataError, match=r"s3://shelf/images/x\*: expected a file, a folder or a glob, got a path that"):
        open_sources([at("images/x*")])
    with pytest.raises(RunError, match=r"s3://shelf/g.parquet: expected a file on this machine, got an address"):
        check_output(locate(at("g.parquet")), overwrite=False)
