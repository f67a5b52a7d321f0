"""Texts with labels in Parquet, CSV and JSON Lines, and as tokens: what is read, and what is refused."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import hf_folders
from petm.data.base import Data, Subset
from petm.data.labels import UNLABELLED
from petm.data.texts import Texts, Tokenized, read_texts
from petm.errors import ArgumentError, DataError
from petm.models.hf_processors import load_processor
from petm.models.hf_tokenizer import Tokenizer

SUFFIXES = (".csv", ".jsonl", ".parquet")


def write(path: Path, **columns: Sequence[Any]) -> Path:
    """A table in the format that the suffix says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)
        return path
    rows = list(zip(*columns.values(), strict=True))
    if path.suffix == ".csv":
        quoted = [
            [f'"{str(cell).replace(chr(34), chr(34) * 2)}"' if cell is not None else "" for cell in row] for row in rows
        ]
        path.write_text("\n".join(",".join(line) for line in [list(columns), *quoted]) + "\n")
    else:
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    return path


def contents(texts: Texts) -> list[str]:
    return [texts.texts[index].as_py() for index in range(len(texts))]


TEXTS = ["a plain one", 'with "quotes", commas', "två lines\nof text", "  padded "]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_texts_and_labels_come_back_as_they_were_written(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", id=[7, 8, 9, 10], text=TEXTS, label=[2, 0, 1, 2])
    texts = read_texts(path)
    assert contents(texts) == TEXTS
    assert (texts.labels.dtype, texts.labels.tolist()) == (torch.int64, [2, 0, 1, 2])
    assert (texts.classes, texts.source, texts.rows.skipped) == ((), str(path), {})
    assert read_texts(path, label_column=None).labels.tolist() == [UNLABELLED] * 4
    assert read_texts(path, classes="pqr").classes == ("p", "q", "r")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_are_sorted_or_matched_to_the_classes(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", question=["u", "v", "w"], kind=["place", "age", "place"])
    columns = {"text_column": "question", "label_column": "kind"}
    texts = read_texts(path, **columns)
    assert (texts.labels.tolist(), texts.classes) == ([1, 0, 1], ("age", "place"))
    texts = read_texts(path, **columns, classes=["place", "colour", "age"])
    assert (texts.labels.tolist(), texts.classes) == ([0, 2, 0], ("place", "colour", "age"))
    with pytest.raises(DataError, match=rf"x\{suffix}: "):
        read_texts(path, **columns, classes=["colour", "place"])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_label_is_none(tmp_path: Path, suffix: str) -> None:
    numbers = write(tmp_path / f"n{suffix}", text=["a", "b", "c"], label=[1, None, 0])
    assert read_texts(numbers).labels.tolist() == [1, UNLABELLED, 0]
    names = write(tmp_path / f"s{suffix}", text=["a", "b", "c"], label=["y", None, "x"])
    assert read_texts(names).labels.tolist() == [1, UNLABELLED, 0]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_sample_is_named_by_its_place(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", text=TEXTS, label=[0] * 4)
    texts = read_texts(path)
    expected = {
        ".csv": [f"{path}:{line}" for line in (2, 3, 4, 6)],  # the third takes two lines
        ".jsonl": [f"{path}:{line}" for line in (1, 2, 3, 4)],
        ".parquet": [f"{path} row {row}" for row in (1, 2, 3, 4)],
    }
    assert [texts.rows.place(index) for index in range(4)] == expected[suffix]


def test_empty_lines_count_but_are_no_samples(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("\ufefftext,label\r\na,1\r\n\r\nb,0\r\n", encoding="utf-8")
    (tmp_path / "x.jsonl").write_text('{"text": "a", "label": 1}\n\n{"text": "b", "label": 0}')
    for name, lines in (("x.csv", (2, 4)), ("x.jsonl", (1, 3))):
        texts = read_texts(tmp_path / name)
        assert (contents(texts), texts.labels.tolist()) == (["a", "b"], [1, 0])
        assert [texts.rows.place(index) for index in range(2)] == [f"{tmp_path / name}:{line}" for line in lines]


def test_integers_of_a_csv_file_are_names_only_where_the_classes_say_so(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", text=["a", "b", "c"], label=["10", "9", "-1"])
    assert read_texts(path).labels.tolist() == [10, 9, UNLABELLED]
    named = write(tmp_path / "y.csv", text=["a", "b"], label=["10", "9"])
    assert read_texts(named, classes=["9", "10"]).labels.tolist() == [1, 0]
    wide = write(tmp_path / "z.csv", text=["a", "b"], label=["1.5", "2"])
    assert read_texts(wide, classes=["1.5", "2"]).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(["y", "x", "y"]).dictionary_encode(),
        pa.array(["y", "x", "y"], pa.large_string()),
        pa.array([1, 0, 1], pa.uint8()),
    ],
)
def test_kinds_of_parquet_columns(tmp_path: Path, labels: pa.Array) -> None:
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(pa.table({"text": pa.array(["a", "b", "a"], kind), "label": labels}), tmp_path / "x.parquet")
        texts = read_texts(tmp_path / "x.parquet")
        assert (contents(texts), texts.labels.tolist()) == (["a", "b", "a"], [1, 0, 1])


def test_class_names_in_the_hugging_face_metadata(tmp_path: Path) -> None:
    features = {"text": {"_type": "Value"}, "label": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    table = pa.table({"text": ["a", "b"], "label": [0, 1]})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    assert read_texts(tmp_path / "a.parquet").classes == ("no", "yes")
    assert read_texts(tmp_path / "a.parquet", classes=["yes", "no"]).labels.tolist() == [1, 0]
    pq.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b.parquet: "):
        read_texts(tmp_path)


def test_several_files(tmp_path: Path) -> None:
    for name, texts, labels in (("a", ["one", "two"], ["y", "x"]), ("b", ["three"], ["z"])):
        for suffix in SUFFIXES:
            write(tmp_path / f"{name}{suffix}", text=texts, label=labels)
    for path in (tmp_path, tmp_path / "*.parquet", tmp_path / "*.csv", tmp_path / "*.jsonl"):
        found = read_texts(path)
        assert (contents(found), found.labels.tolist()) == (["one", "two", "three"], [1, 0, 2])
        assert found.classes == ("x", "y", "z")
    assert read_texts(tmp_path / "*.csv").rows.place(2) == f"{tmp_path / 'b.csv'}:2"
    assert read_texts(tmp_path / "*.parquet").rows.place(2) == f"{tmp_path / 'b.parquet'} row 1"
    with pytest.raises(DataError, match=r"a.\*: "):
        read_texts(tmp_path / "a.*")
    write(tmp_path / "train.csv", text=["a"], label=["b"])
    write(tmp_path / "test.csv", text=["a"], label=["b"])
    with pytest.raises(DataError, match="expected the files of one part of a data set, got test, train"):
        read_texts(tmp_path / "t*.csv")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_blank_texts_are_counted_and_named_or_left_out(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", text=["a", "", "b", " \t\n", None], label=[0, 1, 2, 3, 4])
    names = {".csv": (":3", ":5", ":7"), ".jsonl": (":2", ":4", ":5"), ".parquet": (" row 2", " row 4", " row 5")}
    blank = [f"{path}{name}" for name in names[suffix]]
    with pytest.raises(DataError, match=r"expected a text .*, got nothing \(and 2 more .*--skip-bad") as caught:
        read_texts(path)
    assert str(caught.value).startswith(f"{blank[0]}: ")
    texts = read_texts(path, skip_bad=True)
    assert (contents(texts), texts.labels.tolist(), list(texts.rows.skipped)) == (["a", "b"], [0, 2], blank)
    assert texts.rows.place(1) == f"{path}{ {'.csv': ':4', '.jsonl': ':3', '.parquet': ' row 3'}[suffix] }"
    only = write(tmp_path / f"only{suffix}", text=["", " "], label=[0, 1])
    with pytest.raises(DataError, match=r"expected at least one text, got none \(2 .* were skipped\)"):
        read_texts(only, skip_bad=True)


def test_rows_that_cannot_be_read_spoil_no_others(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b'text,label\na,0\nb, c,1\n"d,1\n\xff,1\ne,1\n')
    (tmp_path / "x.jsonl").write_bytes(
        b'{"text": "a", "label": 0}\n{"text": \n[]\n{"text": 7, "label": 1}\n{"text": "\xff", "label": 1}\n'
        b'{"text": "b", "label": 0.5}\n{"label": 1}\n{"text": "\\ud800", "label": 1}\n{"text": "e", "label": 1}'
    )
    for name, lines in (("x.csv", (3, 4, 5)), ("x.jsonl", (2, 3, 4, 5, 6, 7, 8))):
        texts = read_texts(tmp_path / name, skip_bad=True)
        assert (contents(texts), texts.labels.tolist()) == (["a", "e"], [0, 1])
        assert list(texts.rows.skipped) == [f"{tmp_path / name}:{line}" for line in lines]
        with pytest.raises(DataError, match=rf"{name}:{lines[0]}: expected .* \(and {len(lines) - 1} more such rows\)"):
            read_texts(tmp_path / name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_columns_that_are_missing_or_no_labels(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", sentence=["a", "b"], score=[0.5, 1.5], fine=[True, False])
    with pytest.raises(DataError, match=rf"x\{suffix}.*expected .*'text'"):
        read_texts(path)
    with pytest.raises(DataError, match=rf"x\{suffix}.*expected .*'label'.*--label-column"):
        read_texts(path, text_column="sentence")
    kind = {".csv": "whole numbers as labels, got 0.5", ".jsonl": "as label, got 0.5", ".parquet": "label, got 0.5"}
    with pytest.raises(DataError, match=rf"x\{suffix}.*expected .*{kind[suffix]}"):
        read_texts(path, text_column="sentence", label_column="score")
    if suffix != ".csv":  # where everything is text
        with pytest.raises(DataError, match=r"expected a class number or a name as label, got True"):
            read_texts(path, text_column="sentence", label_column="fine")
        with pytest.raises(DataError, match=r"expected (a text|texts) in column 'score', got (float|double)"):
            read_texts(path, text_column="score", label_column=None)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_labels_outside_the_classes(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x{suffix}", text=["a", "b"], label=[0, 2])
    with pytest.raises(DataError, match=r"expected labels from 0 to 1 \(or -1 for none\), got 2"):
        read_texts(path, classes=["x", "y"])


def test_labels_of_two_kinds(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", text=["a", "b"], label=[0, "x"])
    with pytest.raises(DataError, match=r"x.jsonl: "):
        read_texts(path)


WHOLE = b"text,label\na,0\nb,1\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "expected a column 'text', got the columns of an empty file"),
        ("x.csv", b"text,label\n", "expected at least one text, got none. Name other data"),
        ("x.csv", b'text,label\n"a,0\n', r"x\.csv:2: expected a quote that closes the cell, got none"),
        ("x.csv", b"text,label\n\xff\xfe,0\n", r"x\.csv:2: expected text in UTF-8"),
        ("x.csv", b"te\xff,label\na,0\n", r"x\.csv: expected a whole CSV file, got: a header that is not in UTF-8"),
        ("x.csv", b'"text,label\na,0\n', r"x\.csv: expected a whole CSV file, got: expected a quote"),
        ("x.csv", b"text,label\na,0\nb, or not,1\n", r"x\.csv:3: expected 2 fields as in the header, got 3"),
        ("x.jsonl", b"", "expected at least one text, got none"),
        ("x.jsonl", b'{"text": "a", "label": 0}\n{"text": ', r"x\.jsonl:2: expected a JSON object, got: Expect"),
        ("x.jsonl", b"[1, 2]\n", r"x\.jsonl:1: expected a JSON object, got list"),
        ("x.jsonl", b'{"text": "\xff"}', r"x\.jsonl:1: expected text in UTF-8"),
        ("x.jsonl", b'{"text": "\\ud800", "label": 0}', r"x\.jsonl:1: expected text in UTF-8"),
        ("x.jsonl", b"[" * 100_000, r"x\.jsonl:1: expected a JSON object"),
        ("x.jsonl", b'{"text": "a", "label": 0}\n{"label": 0}', r"x\.jsonl:2: expected a JSON object with 'text'"),
        ("x.parquet", WHOLE, "expected a whole Parquet file, got: .*Fetch it again"),
        ("x.txt", WHOLE, r"expected texts \(\*.csv, \*.jsonl, \*.ndjson, \*.parquet\), got a file of the kind '.txt'"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_texts(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1
    assert name in str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent.csv: "):
        read_texts(tmp_path / "absent.csv")
    with pytest.raises(DataError, match=r"expected texts .*, got a folder without Parquet files"):
        read_texts(tmp_path)


def test_long_texts_and_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petm.data.texts._CHUNK", 1000)
    long, count = "word " * 100_000, 3000  # longer than the csv module's limit, more rows than one chunk
    path = write(tmp_path / "x.csv", text=[long, *map(str, range(count))], label=[n % 7 for n in range(count + 1)])
    texts = read_texts(path)
    assert texts.texts[0].as_py() == long
    assert texts.texts[count].as_py() == str(count - 1)
    assert texts.labels.tolist() == [n % 7 for n in range(count + 1)]
    assert texts.rows.place(count) == f"{path}:{count + 2}"


def test_several_paths_are_read_in_order(tmp_path: Path) -> None:
    one = write(tmp_path / "a.csv", text=["a", "b"], label=["y", "x"])
    two = write(tmp_path / "b.parquet", text=["c"], label=["z"])
    texts = read_texts(one, two)
    assert (contents(texts), texts.labels.tolist(), texts.classes) == (["a", "b", "c"], [1, 0, 2], ("x", "y", "z"))
    assert [texts.rows.place(index) for index in (1, 2)] == [f"{one}:3", f"{two} row 1"]


def test_the_real_trec() -> None:
    root = os.environ.get("PETM_DATA_DIR")
    if not root:
        pytest.skip("PETM_DATA_DIR is not set: TREC is read from there")
    texts = read_texts(Path(root) / "trec" / "train.parquet", classes=["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"])
    assert len(texts) == 5452
    assert (texts.texts[0].as_py(), int(texts.labels[0])) == ("How did serfdom develop in and then leave Russia ?", 1)
    assert len(texts.labels.unique()) == 6


@dataclass(frozen=True)
class Letters:
    """A text's letters as their codes, ``^`` in front of them; digits make tokens of another type."""

    maximum: int | None = 6
    pads_left: bool = False
    padding: Mapping[str, int] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        object.__setattr__(self, "padding", {"input_ids": 9})

    def encode(self, texts: Sequence[str], limit: int | None) -> dict[str, list[list[int]]]:
        kept = [f"^{text}"[:limit].replace("^^", "") for text in texts]
        return {
            "input_ids": [[ord(letter) for letter in text] for text in kept],
            "token_type_ids": [[int(letter.isdigit()) for letter in text] for text in kept],
            "attention_mask": [[1] * len(text) for text in kept],
        }


def texts_of(folder: Path, *texts: str) -> Texts:
    path = folder / "x.csv"
    path.write_text("text,label\n" + "".join(f"{text},{number % 3}\n" for number, text in enumerate(texts)))
    return read_texts(path, classes=["zero", "one", "two"])


def rows(data: Data, name: str = "input_ids") -> list[list[int]]:
    fields = data.inputs(range(len(data)))
    return fields[name].tolist()  # type: ignore[union-attr, no-any-return]


def test_texts_are_padded_to_the_longest(tmp_path: Path) -> None:
    data = Tokenized(texts_of(tmp_path, "a", "b1c", "dé"), Letters())
    caret, accent = ord("^"), ord("é")
    assert data.length == 4
    assert rows(data) == [[caret, 97, 9, 9], [caret, 98, 49, 99], [caret, 100, accent, 9]]
    assert rows(data, "token_type_ids") == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert rows(data, "attention_mask") == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert {tensor.dtype for tensor in data.inputs([0]).values()} == {torch.int64}
    assert (data.labels.tolist(), data.classes) == ([0, 1, 2], ("zero", "one", "two"))
    assert data.name(1) == f"{tmp_path / 'x.csv'}:3"
    assert data.in_memory() is data


def test_padding_on_the_left(tmp_path: Path) -> None:
    data = Tokenized(texts_of(tmp_path, "a", "bc"), Letters(pads_left=True))
    assert rows(data) == [[9, 94, 97], [94, 98, 99]]
    assert rows(data, "attention_mask") == [[0, 1, 1], [1, 1, 1]]


def test_a_given_length_pads_and_cuts(tmp_path: Path) -> None:
    texts = texts_of(tmp_path, "a", "bcdefghijk")
    assert Tokenized(texts, Letters()).inputs([1])["input_ids"].shape == (1, 6), "no more than the model takes"
    assert Tokenized(texts, Letters(maximum=None)).length == 11
    assert rows(Tokenized(texts, Letters(), length=3)) == [[94, 97, 9], [94, 98, 99]]
    assert Tokenized(texts_of(tmp_path, "a"), Letters(), length=5).inputs([0])["input_ids"].shape == (1, 5)
    with pytest.raises(ArgumentError, match=r"length: "):
        Tokenized(texts, Letters(), length=7)
    with pytest.raises(ArgumentError, match=r"length: "):
        Tokenized(texts, Letters(maximum=None), length=0)


def test_a_text_without_tokens(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at least one token in every text, got none in 1 of 2 \(the first is .*csv:3"):
        Tokenized(texts_of(tmp_path, "a", "^"), Letters())


def test_views_batches_and_splits(tmp_path: Path) -> None:
    data = Tokenized(texts_of(tmp_path, *"abcdefghi"), Letters())
    view = data.subset([4, 1])
    assert isinstance(view, Subset)
    assert rows(view) == [[94, 101], [94, 98]]
    assert view.name(0) == data.name(4)
    assert view.in_memory() is view
    batch = data.__getitems__([8, 0])
    assert batch.inputs["input_ids"].tolist() == [[94, 105], [94, 97]]  # type: ignore[call-overload]
    assert batch.targets.tolist() == [2, 0]
    parts = data.split((2 / 3, 1 / 3))
    assert sorted(row[1] for part in parts for row in rows(part)) == list(range(97, 106))
    assert rows(data.subset([-1])) == [[94, 105]]
    assert data.inputs([])["input_ids"].shape == (0, 2)


def test_content_follows_texts_labels_and_length(tmp_path: Path) -> None:
    same = [Tokenized(texts_of(tmp_path, "a", "b"), Letters()).content for _ in range(2)]
    others = [
        Tokenized(texts_of(tmp_path, "a", "c"), Letters()).content,
        Tokenized(texts_of(tmp_path, "a", "b"), Letters(), length=5).content,
        Tokenized(texts_of(tmp_path, "b", "a"), Letters()).content,
    ]
    (tmp_path / "x.csv").write_text("text,label\na,2\nb,1\n")
    others.append(Tokenized(read_texts(tmp_path / "x.csv"), Letters()).content)
    assert same[0] == same[1]
    assert len({same[0], *others}) == 5


@pytest.mark.parametrize(("letter", "bytes_a_token"), [("a", 1), ("ё", 2), ("😀", 4)])
def test_tokens_are_held_in_as_few_bytes_as_they_need(tmp_path: Path, letter: str, bytes_a_token: int) -> None:
    data = Tokenized(texts_of(tmp_path, *[letter] * 2000), Letters())
    assert data.inputs([1999])["input_ids"].tolist() == [[94, ord(letter)]]
    held = sum(value.nbytes for name, value in data._tokens.items() if name == "input_ids")
    assert held == 2000 * 2 * bytes_a_token


def test_a_real_tokenizer_pads_as_transformers_does(tmp_path: Path) -> None:
    folder = hf_folders.save(tmp_path / "bert", hf_folders.bert(), hf_folders.word_tokenizer())
    encoder = load_processor(folder)
    assert isinstance(encoder, Tokenizer)
    written = [text.replace(",", "") for text, _ in hf_folders.QUESTIONS]
    data = Tokenized(texts_of(tmp_path, *written), encoder)
    expected = hf_folders.word_tokenizer()(written, padding=True, return_tensors="pt")
    for name, tensor in data.inputs(range(len(data))).items():
        assert torch.equal(tensor, expected[name])


def test_of_a_services_labels_the_last_of_each_text_holds(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    said = (("good", 1, "a"), ("bad", 1, "b"), ("odd", 0, "c"), ("bad", 0, "b"), ("odd", None, "c"))
    lines = [{"text": text, "label": label, "sha256": digest, "confirmed": False} for text, label, digest in said]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_texts(path, classes=("neg", "pos"))
    assert (contents(found), found.labels.tolist()) == (["good", "bad"], [1, 0])
    assert [found.rows.place(index) for index in range(2)] == [f"{path}:1", f"{path}:4"]
    assert contents(read_texts(path, label_column=None)) == ["good", "bad", "odd", "bad", "odd"]


@pytest.mark.parametrize(
    ("name", "row", "place"),
    [
        ("x.csv", b'"question 200,1', "x.csv:202"),
        ("x.csv", b"caf\xe9,1", "x.csv:202"),
        ("x.jsonl", b'{"text": "\\ud83d", "label": 1}', "x.jsonl:201"),
        ("x.jsonl", b'{"text": "a", "label": ' + b"9" * 5_000 + b"}", "x.jsonl:201"),
    ],
)
def test_a_bad_row_is_an_error_with_its_line_or_left_out(tmp_path: Path, name: str, row: bytes, place: str) -> None:
    labels = [number % 3 for number in range(400)]
    path = write(tmp_path / name, text=[f"question {number}" for number in range(400)], label=labels)
    lines = path.read_bytes().splitlines()
    lines[int(place.partition(":")[2]) - 1] = row
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=place):
        read_texts(path)
    texts = read_texts(path, skip_bad=True)
    assert contents(texts) == [f"question {number}" for number in range(400) if number != 200]
    assert texts.labels.tolist() == labels[:200] + labels[201:]
    assert [Path(each).name for each in texts.rows.skipped] == [place]


def test_a_text_with_further_columns_is_one_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('review,title,stars,label\n"Good, {title}",Film,5,0\nBad,Bücher,1,1\n')
    texts = read_texts(tmp_path / "a.csv", text_column=("review", "title", "stars"))
    assert [json.loads(text) for text in texts.texts.to_pylist()] == [
        {"text": "Good, {title}", "title": "Film", "stars": "5"},
        {"text": "Bad", "title": "Bücher", "stars": "1"},
    ]
    assert texts.labels.tolist() == [0, 1]
    with pytest.raises(DataError, match="author"):
        read_texts(tmp_path / "a.csv", text_column=("review", "author"))
    (tmp_path / "b.csv").write_text("text,title,label\nGood,,0\nBad,Book,1\n")
    with pytest.raises(DataError, match="title"):
        read_texts(tmp_path / "b.csv", text_column=("text", "title"))
