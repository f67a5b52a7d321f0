import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

import hf_folders
from petm.data.opening import open_data
from petm.data.reader import Reader
from petm.data.sources import Row, Source, open_sources
from petm.errors import DataError
from petm.models.hf_processors import load_processor
from petm.models.hf_tokenizer import Tokenizer


def pixels(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 5), dtype=np.uint8)


def png(values: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "png")
    return stream.getvalue()


def every(sources: list[Source], size: int = 3) -> list[tuple[Any, ...]]:
    """Input, row, label and fault of all rows."""
    found = (row for source in sources for rows in source.rows(0, source.count(), size) for row in rows)
    return [(row.path, row.number, row.label, row.fault) for row in found]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images, a Parquet file in three groups of rows, an archive, and texts."""
    monkeypatch.chdir(tmp_path)
    for index, values in enumerate(pixels(8)):
        folder = tmp_path / "images" / ("cat", "dog/old")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(png(values))
    (tmp_path / "images" / ".hidden.png").write_bytes(b"")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    encoded = [{"bytes": png(values), "path": None} for values in pixels(10)]
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"]}}}})}
    table = pa.table({"image": pa.array(encoded, kind), "label": [0, 1] * 5, "more": range(10)})
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "x.parquet", row_group_size=4)
    np.savez(tmp_path / "x.npz", images=pixels(7), labels=np.arange(7) % 2)
    np.savez_compressed(tmp_path / "floats.npz", x=pixels(7).astype(np.float64)[:, None] / 300)
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), ("Who\nis it?", "a"), ("no,", ""), (" ", "b"), ("x", "3")])
    lines = [{"text": "one", "label": 1}, {"other": 2}, {"text": 4}, {"text": None}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n{broken\n" + '{"text": "last"}')
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*passed over:petm.errors.PetmWarning")
def test_a_folder_in_the_order_of_its_paths(place: Path) -> None:
    found = every(open_sources(["images"]))
    paths = [f"images/cat/{n}.png" for n in (0, 2, 4, 6)] + [f"images/dog/old/{n}.png" for n in (1, 3, 5, 7)]
    assert [row[0] for row in found] == paths
    assert [row[2] for row in found] == ["cat"] * 4 + ["dog"] * 4
    assert {row[1] for row in found} == {None}


def test_files_globs_and_folders_behind_each_other(place: Path) -> None:
    sources = open_sources(["images/cat/2.png", "images/dog/old/*.png", "x.npz", "images/cat/0.png"])
    assert [source.count() for source in sources] == [5, 7, 1]
    assert [row[0] for row in every(sources)][:3] == [
        "images/cat/2.png", "images/dog/old/1.png", "images/dog/old/3.png",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*passed over:petm.errors.PetmWarning")
@pytest.mark.parametrize(
    ("path", "count", "how"),
    [
        ("images", 8, {}),
        ("x.parquet", 10, {}),
        ("x.npz", 7, {}),
        ("floats.npz", 7, {}),
        ("t.csv", 4, {"text_column": "text"}),
    ],
)
def test_any_part_is_that_part_of_the_whole(place: Path, path: str, count: int, how: dict[str, str]) -> None:
    (source,) = open_sources([path], label_column="label", **how)
    assert source.count() == count
    whole = every([source], size=100)
    assert len(whole) == count
    for start in range(count + 1):
        for stop in range(start, count + 1):
            parts = list(source.rows(start, stop, 2))
            assert all(1 <= len(rows) <= 2 for rows in parts)
            names = [row[:2] for rows in parts for row in rows]
            assert names == [row[:2] for row in whole[start:stop]]


def test_images_are_read_as_data_are(place: Path) -> None:
    reader = Reader(size=(6, 5), channels=1)
    (table,) = open_sources(["x.parquet"])
    got = [reader.read(rows).inputs for rows in table.rows(0, 10, 4)]
    np.testing.assert_array_equal(np.concatenate(got), pixels(10)[:, None] / np.float32(255))
    np.testing.assert_array_equal(np.concatenate(got), open_data("x.parquet").inputs(range(10)))
    for name in ("x.npz", "floats.npz"):
        (archive,) = open_sources([name])
        (rows,) = archive.rows(0, 7, 7)
        np.testing.assert_allclose(reader.read(rows).inputs, open_data(name).inputs(range(7)), rtol=1e-6)


def test_labels_by_name_and_by_number(place: Path) -> None:
    assert [row[2] for row in every(open_sources(["x.parquet"], label_column="label"))] == ["cat", "dog"] * 5
    assert [row[2] for row in every(open_sources(["x.parquet"]))] == [None] * 10
    assert [row[2] for row in every(open_sources(["x.npz"], label_column="label"))] == [0, 1, 0, 1, 0, 1, 0]
    texts = open_sources(["t.csv"], text_column="text", label_column="label")
    assert [row[2] for row in every(texts)] == ["a", None, "b", "3"]


def test_texts_and_what_is_wrong_with_some(place: Path) -> None:
    sources = open_sources(["t.csv", "t.jsonl"], text_column="text")
    rows = every(sources)
    assert [row[:2] for row in rows] == [("t.csv", n) for n in (2, 4, 5, 6)] + [
        ("t.jsonl", n) for n in (1, 2, 3, 4, 6, 7)
    ]
    hf_folders.save(place / "words", hf_folders.word_tokenizer())
    encoder = load_processor(place / "words")
    assert isinstance(encoder, Tokenizer)
    reader = Reader(encoder=encoder)
    reasons = [reason for source in sources for part in source.rows(0, 99, 99) for reason in reader.read(part).reasons]
    other, none = "expected a JSON object with 'text', got none in it", "expected a text in column 'text', got nothing"
    number, broken = "expected a text in column 'text', got int", str(reasons[8])
    assert reasons == [None, None, none, None, None, other, number, none, broken, None]
    assert broken.startswith("expected a JSON object, got: ")


def test_rows_of_another_length_are_faults(place: Path) -> None:
    (place / "odd.csv").write_text("text,label\nfine,1\nfine, but more,1\nfine,2\n")
    rows = every(open_sources(["odd.csv"], text_column="text"))
    assert [row[3] for row in rows] == [None, "expected 2 fields as in the header, got 3", None]


def test_the_others_are_read_beside_a_bad_image(place: Path) -> None:
    entries = [
        ("a.png", None, png(pixels(1)[0])),
        ("b.png", None, png(pixels(1)[0])[:40]),
        ("c.png", None, place / "absent.png"),
        ("d.parquet", 3, None),
        ("e.npz", 0, np.full((1, 6, 5), np.nan, np.float32)),
        ("f.npz", 0, np.zeros((1, 5, 5), np.float32)),
        ("g.npz", 0, np.zeros((1, 6, 5), np.uint8)),
    ]
    readings = Reader(size=(6, 5), channels=1).read([Row(*entry) for entry in entries])
    assert isinstance(readings.inputs, np.ndarray)
    assert readings.inputs.shape == (2, 1, 6, 5)
    assert [reason is None for reason in readings.reasons] == [True, False, False, False, False, False, True]
    assert readings.reasons[3:6] == [
        "expected an image, got nothing",
        "expected finite values, got NaN or infinity",
        "expected an array of shape (1, 6, 5), got (1, 5, 5)",
    ]
    assert "No such file" in str(readings.reasons[2])


def test_a_damaged_file_is_one_row(place: Path) -> None:
    (place / "cut.parquet").write_bytes((place / "x.parquet").read_bytes()[:-20])
    (place / "cut.npz").write_bytes((place / "x.npz").read_bytes()[:-30])
    for name in ("cut.parquet", "cut.npz"):
        ((path, row, label, fault),) = every(open_sources([name]))
        assert (path, row, label) == (name, None, None)
        assert "expected" in fault


@pytest.mark.parametrize(
    ("path", "how", "message"),
    [
        ("absent.png", {}, r"absent.png: expected a file, a folder or a glob, got a path that does not exist"),
        ("images/notes.txt", {}, r"notes.txt: expected images .*, got a file of the kind '.txt'"),
        ("t.csv", {}, r"t.csv: expected images .*, got a file of the kind '.csv'"),
        ("images", {"text_column": "text"}, r"images: expected texts .*, got a folder"),
        ("t.csv", {"text_column": "body"}, r"t.csv: expected a column 'body', got the columns text, label"),
        (
            "x.parquet",
            {"text_column": "body"},
            r"x.parquet: expected a column 'body', got the columns image, label, more",
        ),
        ("x.parquet", {"text_column": "more"}, r"x.parquet: expected texts in column 'more', got int64"),
    ],
)
def test_what_does_not_suit_is_refused_at_once(place: Path, path: str, how: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_sources([path], **how)


@pytest.mark.filterwarnings("ignore:.*passed over:petm.errors.PetmWarning")
def test_identity_follows_names_and_changes(place: Path) -> None:
    before = [source.identity() for source in open_sources(["images", "x.npz"])]
    assert before == [source.identity() for source in open_sources(["images", "x.npz"])]
    (place / "images" / "cat" / "9.png").write_bytes(png(pixels(1)[0]))
    np.savez(place / "x.npz", images=pixels(8))
    after = [source.identity() for source in open_sources(["images", "x.npz"])]
    assert before[0] != after[0]
    assert before[1] != after[1]
    (place / "images" / "cat" / "9.png").write_bytes(png(pixels(1)[0]) + b"more")
    assert open_sources(["images"])[0].identity() != after[0], "the same names, another file"


@pytest.mark.filterwarnings("ignore:.*passed over:petm.errors.PetmWarning")
def test_all_else_is_read_beside_an_unlisted_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refuse(folder: Any) -> Any:
        if str(folder).endswith("cat"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr("petm.data.images.os.scandir", refuse)
    (images,) = open_sources([place / "images"])
    assert [Path(row[0]).name for row in every([images])] == ["cat", "1.png", "3.png", "5.png", "7.png"]
    readings = Reader(size=(6, 5), channels=1).read(next(images.rows(0, 9, 9)))
    assert [reason is None for reason in readings.reasons] == [False, True, True, True, True]
    (place / "t.csv").write_bytes(b"text\none\ntwo\n\xff\n")
    (texts,) = open_sources([place / "t.csv"], text_column="text")
    assert [row[1:] for row in every([texts])] == [
        (2, None, None), (3, None, None), (4, None, "expected text in UTF-8, got other bytes"),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*passed over:petm.errors.PetmWarning")
def test_linked_folders_are_read_in_the_first_place_and_loops_end(place: Path) -> None:
    (place / "links").mkdir()
    (place / "links" / "bird").symlink_to(place / "images" / "cat")
    (place / "images" / "cat" / "loop").symlink_to(place / "images")
    assert [row[2] for row in every(open_sources(["links"]))] == ["bird"] * 4


@pytest.mark.filterwarnings("ignore:.*passed over:petm.errors.PetmWarning")
def test_what_is_no_file_in_a_folder_is_a_row(place: Path) -> None:
    folder = place / "images"
    (folder / "bird").symlink_to("bird")
    (folder / "cat" / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "cat" / "pipe.png")
    (folder / "dog" / "self.png").symlink_to("self.png")
    rows = every(open_sources(["images"], label_column="label"))
    bad = [(row[0], row[2]) for row in rows if row[3]]
    assert bad == [
        ("images/bird", "bird"), ("images/cat/gone.png", "cat"), ("images/cat/pipe.png", "cat"),
        ("images/dog/self.png", "dog"),
    ]  # fmt: skip
    assert len(rows) == 12
    with pytest.raises(DataError, match=r"images/bird: expected a file"):
        open_data("images")
    data = open_data("images", skip_bad=True)
    assert (len(data), list(getattr(data, "skipped", ()))) == (8, [name for name, _ in bad])


def test_pipes_and_absurd_sizes_are_not_opened(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x.png", "y.parquet", "y.npz", "y.csv"):
        os.mkfifo(place / name)
        with pytest.raises(DataError, match=rf"{name}: expected .* got a pipe or a device"):
            open_sources([name], text_column="text" if name == "y.csv" else None)
    for name in ("y.parquet", "y.npz"):
        with pytest.raises(DataError, match=name):
            open_data(name)
    with (place / "images" / "cat" / "0.png").open("r+b") as file:
        file.truncate(1 << 31)
    (rows,) = open_sources(["images/cat/0.png"])[0].rows(0, 1, 1)
    assert "2,147,483,648 bytes" in str(Reader(size=(6, 5), channels=1).read([rows] if isinstance(rows, Row) else rows))


def test_torch_is_not_needed_to_read_images(place: Path) -> None:
    code = """
import sys
from petm.data.reader import Reader
from petm.data.sources import open_sources
(source,) = open_sources(["images"])
(rows,) = source.rows(0, 8, 8)
print(Reader(size=(6, 5), channels=1).read(rows).inputs.shape)
print([name for name in ("torch", "transformers", "pandas") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(8, 1, 6, 5)", "[]"]
