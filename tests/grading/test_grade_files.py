import csv
import hashlib
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from networks import TinyCNN, images, randomise, seeded
from petm.adapter.model import Cascade, attach_adapter
from petm.data.base import TensorData
from petm.data.reader import Reader, Tokenizer
from petm.data.sources import Row, open_sources
from petm.errors import ArgumentError, DataError, PetmWarning, RunError
from petm.evidence.suspicion import suspicion_named
from petm.grading.grade_files import check_apart, check_output, grade_files, parts_folder
from petm.grading.grade_table import SCHEMA, read_grades
from petm.grading.grader import Grader, fit_grader
from petm.grading.grades import Grades
from petm.grading.stream import Graded, grade_stream
from petm.selective.metrics import auroc, detection
from petm.selective.targets import Coverage
from petm.selective.thresholds import Threshold

READER = Reader(size=(28, 28), channels=1)


@pytest.fixture(scope="module")
def grader() -> Grader:
    adapted = randomise(attach_adapter(seeded(TinyCNN), {"fc1": 2}), scale=0.5)
    labels = torch.arange(300) % 4
    return fit_grader(adapted, TensorData(images(300), labels), target=Coverage(0.6))


@pytest.fixture
def arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Fifty images in two archives, one of them with labels, and a damaged one between."""
    monkeypatch.chdir(tmp_path)
    x = images(50, seed=3)
    np.savez("a.npz", x=x[:30].numpy(), y=np.arange(30) % 4)
    np.savez("c.npz", x=x[30:].numpy())
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:500])
    return x


def graded(path: str | Path) -> list[dict[str, Any]]:
    return [row for batch in read_grades(path) for row in batch.to_pylist()]


def test_each_input_has_the_grade_that_the_grader_gives_it(grader: Grader, arrays: Tensor) -> None:
    summary = grade_files(grader, open_sources(["a.npz", "c.npz"]), READER, Path("g.parquet"), told={}, batch_size=8)
    wanted, rows = grader.grade(arrays), graded("g.parquet")
    assert [(row["input"], row["row"]) for row in rows] == [("a.npz", n) for n in range(1, 31)] + [
        ("c.npz", n) for n in range(1, 21)
    ]
    assert [row["label"] for row in rows] == wanted.labels.tolist()
    assert [row["second"] for row in rows] == wanted.second.tolist()
    np.testing.assert_allclose([row["suspicion"] for row in rows], wanted.suspicion, atol=1e-6)
    np.testing.assert_allclose([row["probability_of_error"] for row in rows], wanted.probability_of_error, atol=1e-5)
    assert [row["grade"] == "trusted" for row in rows] == wanted.trusted.tolist()
    assert summary.counts == {"trusted": wanted.trusted.sum(), "suspect": (~wanted.trusted).sum(), "unreadable": 0}
    assert sorted(path.name for path in Path().iterdir()) == ["a.npz", "b.npz", "c.npz", "g.parquet"]


def test_a_run_that_goes_on_leaves_out_the_same_second_opinions(arrays: Tensor) -> None:
    adapted = randomise(attach_adapter(seeded(TinyCNN), {"fc1": 2}), scale=0.5)
    adapted.cascade = Cascade(0.0, most=0.001)  # asks for all, and computes the first
    capped = Grader(adapted, Threshold(2.0, "by hand"), suspicion_named("mean_opinion"))
    sources = open_sources(["a.npz", "c.npz"])
    with pytest.warns(PetmWarning, match=r"^cascade: "):
        whole = list(grade_stream(capped, sources, READER, batch_size=8))
    grades = [grade for part in whole for grade in part.table.column("grade").to_pylist()]
    assert grades == ["trusted"] + ["suspect"] * 49
    again = next(grade_stream(capped, sources, READER, start=whole[0].after, batch_size=8))
    assert again.table.column("grade").to_pylist() == ["suspect"] * 8
    with pytest.warns(PetmWarning, match=r"^cascade: "):
        grade_files(capped, sources, READER, Path("g.parquet"), told={}, batch_size=8)
    assert [row["grade"] for row in graded("g.parquet")] == grades


def named(grader: Grader, *classes: str) -> Grader:
    """The same grader with names of its classes."""
    return replace(grader, origin=replace(grader.origin, model=replace(grader.origin.model, classes=classes)))


def true_labels(grader: Grader, source: str) -> list[int | None]:
    sources = open_sources([source], label_column="label")
    found = grade_stream(grader, sources, READER, batch_size=2, labelled=True)
    return [label for graded in found for label in graded.table["true_label"].to_pylist()]


def test_true_labels_of_a_source_are_read_the_same_way(grader: Grader, arrays: Tensor) -> None:
    stars = named(grader, *map(str, range(1, 5)))
    for labels, wanted in (
        ([1, 2, 3, 4], [0, 1, 2, 3]),
        ([0, 1, 2, 3], [0, 1, 2, 3]),
        ([4.0, 2.0, 1.0, 1.0], [3, 1, 0, 0]),
    ):
        np.savez("s.npz", x=arrays[:4].numpy(), y=labels)
        assert true_labels(stars, "s.npz") == wanted
    np.savez("s.npz", x=arrays[:4].numpy(), y=[1, 2, 3, 3])
    with pytest.raises(DataError, match=r"s\.npz: expected labels .* label_name"):
        true_labels(stars, "s.npz")
    assert true_labels(grader, "s.npz") == [1, 2, 3, 3]
    np.savez("s.npz", x=arrays[:4].numpy(), y=["dog", "cat", "cow", "dog"])
    with pytest.warns(PetmWarning, match=r"s\.npz: expected true labels .* got cow as well, for 1 inputs"):
        assert true_labels(named(grader, "cat", "dog", "owl", "pig"), "s.npz") == [1, 0, None, 1]


def test_formats_hold_the_same(grader: Grader, arrays: Tensor) -> None:
    for name in ("g.parquet", "g.csv", "g.jsonl"):
        grade_files(grader, open_sources(["a.npz", "b.npz"]), READER, Path(name), told={}, labelled=True)
    rows = graded("g.parquet")
    assert len(rows) == 31
    assert graded("g.jsonl") == rows
    assert graded("g.csv") == [
        {k: float(f"{v:.6g}") if v and k in ("probability_of_error", "confidence") else v for k, v in row.items()}
        for row in rows
    ]
    absent = {"text", "group", "chance", "audit", "sha256"}
    assert pq.read_schema("g.parquet").equals(pa.schema([each for each in SCHEMA if each.name not in absent]))
    assert list(json.loads(Path("g.jsonl").read_text().splitlines()[0])) == pq.read_schema("g.parquet").names
    with open("g.csv", newline="") as file:
        first = next(iter(csv.DictReader(file)))
    assert first["reason"] == ""
    assert [json.loads(line)["row"] for line in Path("g.jsonl").read_text().splitlines()] == [*range(1, 31), None]


def test_a_damaged_file_is_a_row_and_the_next_goes_on(grader: Grader, arrays: Tensor) -> None:
    summary = grade_files(grader, open_sources(["b.npz", "c.npz"]), READER, Path("g.parquet"), told={})
    rows = graded("g.parquet")
    assert (rows[0]["input"], rows[0]["grade"], rows[0]["label"]) == ("b.npz", "unreadable", None)
    assert "expected an npz archive" in rows[0]["reason"]
    assert [row["row"] for row in rows[1:]] == list(range(1, 21))
    assert summary.counts["unreadable"] == 1


def test_a_file_that_breaks_off_is_read_to_there(
    grader: Grader, arrays: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = open_sources(["a.npz", "c.npz"])
    whole = sources[0].rows

    def breaks(start: int, stop: int, size: int) -> Any:
        yield from whole(start, min(stop, 16), size)
        raise DataError("a.npz: the disk is gone.")

    monkeypatch.setattr(sources[0], "rows", breaks)
    found = list(grade_stream(grader, sources, READER, batch_size=8))
    assert [len(part.table) for part in found] == [8, 8, 1, 8, 8, 4]
    assert found[2].table.column("reason").to_pylist() == ["a.npz: the disk is gone."]
    assert [part.after[:2] for part in found] == [(0, 8), (0, 16), (1, 0), (1, 8), (1, 16), (1, 20)]
    for part, after in zip(found[1:], found[:-1], strict=True):
        again = next(grade_stream(grader, sources, READER, start=after.after, batch_size=8))
        assert again.table.column("row").equals(part.table.column("row"))


def test_with_labels_the_grades_are_judged(grader: Grader, arrays: Tensor) -> None:
    summary = grade_files(
        grader, open_sources(["a.npz", "b.npz", "c.npz"], label_column="label"), READER, Path("g.csv"), told={},
        labelled=True,
    )  # fmt: skip
    grades = grader.grade(arrays[:30])
    wrong = grades.labels != np.arange(30) % 4
    found = summary.judged(grader.threshold)
    assert found is not None
    assert found.known == 30
    assert found.flags == detection(~grades.trusted, wrong)
    assert found.auroc == pytest.approx(auroc(grades.suspicion, wrong))
    assert found.guarantee.verdict == "nothing guaranteed"
    assert [row["true_label"] for row in graded("g.csv")] == [n % 4 for n in range(30)] + [None] * 21
    summary = grade_files(grader, open_sources(["c.npz"]), READER, Path("h.csv"), told={}, labelled=True)
    assert summary.judged(grader.threshold) is None


class Failing:
    """Grades some batches, then fails."""

    has_second = True

    def __init__(self, grader: Grader, batches: int) -> None:
        self.grader, self.left, self.origin, self.allow = grader, batches, grader.origin, grader.allow
        self.sets = grader.sets

    def grade_batch(self, x: Any, **how: Any) -> Grades:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return self.grader.grade_batch(x, **how)


def test_an_interrupted_run_goes_on_where_it_was(
    grader: Grader, arrays: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petm.grading.grade_files.PART_ROWS", 10)
    sources, output = open_sources(["a.npz", "b.npz", "c.npz"]), Path("g.parquet")
    how: dict[str, Any] = {"told": {"grader": "one"}, "batch_size": 4}
    for batches in (1, 0, 5, 3):
        with pytest.raises(KeyboardInterrupt):
            grade_files(Failing(grader, batches), sources, READER, output, **how)
        assert not output.exists()
    parts = sorted(parts_folder(output).glob("part-*.parquet"))
    done = 30 + 1 + 4  # nine batches: eight of the first file, of which the last has two rows, and one of the third
    assert sum(pq.read_metadata(part).num_rows for part in parts) == done, "nothing done is lost"
    with pytest.raises(RunError, match=r"holds an interrupted run with other settings \(grader\)"):
        grade_files(grader, sources, READER, output, told={"grader": "other"}, batch_size=4)
    counting = Failing(grader, 99)
    grade_files(counting, sources, READER, output, **how)
    assert 99 - counting.left == 4, "of 13 batches"
    assert [(row["input"], row["row"]) for row in graded(output)] == [
        *(("a.npz", n) for n in range(1, 31)), ("b.npz", None), *(("c.npz", n) for n in range(1, 21)),
    ]  # fmt: skip
    assert not parts_folder(output).exists()


def test_what_is_there_is_kept_unless_told_otherwise(grader: Grader, arrays: Tensor) -> None:
    output = Path("g.csv")
    output.write_text("mine")
    sources = open_sources(["a.npz"])
    with pytest.raises(RunError, match=r"g.csv: expected no such file yet. .*overwrite=True"):
        grade_files(grader, sources, READER, output, told={})
    assert output.read_text() == "mine"
    grade_files(grader, sources, READER, output, told={}, overwrite=True)
    assert len(graded(output)) == 30


def test_a_run_that_could_not_tidy_up_is_over(grader: Grader, arrays: Tensor) -> None:
    output, sources = Path("g.csv"), open_sources(["a.npz"])
    grade_files(grader, sources, READER, output, told={})
    folder = parts_folder(output)
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"settings": {}, "finished": True}))
    with pytest.raises(RunError, match="expected no such file yet"):
        grade_files(grader, sources, READER, output, told={})
    assert not folder.exists()


def test_no_input_and_names_that_do_not_suit(grader: Grader, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"inputs: "):
        grade_files(grader, open_sources([tmp_path / "empty"]), READER, tmp_path / "g.csv", told={})
    with pytest.raises(RunError, match=r"g.txt: expected a name that ends in .parquet, .csv, .jsonl"):
        check_output(tmp_path / "g.txt", overwrite=False)
    with pytest.raises(RunError, match=r"expected a file to write, got a folder"):
        (tmp_path / "g.csv").mkdir()
        check_output(tmp_path / "g.csv", overwrite=True)


@pytest.mark.slow
def test_killed_at_chosen_moments_every_row_is_there_once(tmp_path: Path) -> None:
    x = images(600, 1, 4, 4)
    np.savez(tmp_path / "x.npz", x=x[:350].numpy())
    np.savez(tmp_path / "y.npz", x=x[350:].numpy())
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4), 51, np.uint8)).save(stream, "png")
    table = pa.table({"image": [stream.getvalue()] * 40})
    how: dict[str, Any] = {"use_dictionary": False, "write_page_checksum": True, "compression": "none"}
    pq.write_table(table, tmp_path / "z.parquet", row_group_size=10, **how)
    content = bytearray((tmp_path / "z.parquet").read_bytes())
    content[pq.read_metadata(tmp_path / "z.parquet").row_group(1).column(0).data_page_offset + 500] ^= 1
    (tmp_path / "z.parquet").write_bytes(content)
    script = Path(__file__).parents[1] / "helpers" / "killed_grading.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not parts_folder(tmp_path / "g.parquet").exists()
    rows = graded(tmp_path / "g.parquet")
    assert [(row["input"], row["row"]) for row in rows] == [
        *(("x.npz", n) for n in range(1, 351)), ("gone.png", None), *(("y.npz", n) for n in range(1, 251)),
        *(("z.parquet", n) for n in range(1, 41)),
    ]  # fmt: skip
    bad = [place for place, row in enumerate(rows) if row["reason"]]
    assert bad == [350, *range(611, 621)]
    found = [row["suspicion"] for place, row in enumerate(rows) if place not in bad]
    np.testing.assert_allclose(found, [*x.flatten(1).sum(1).tolist(), *[16 * 0.2] * 30], rtol=1e-5)


def test_an_audit_draws_the_same_rows_after_an_interrupt_and_in_any_batches(
    grader: Grader, arrays: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petm.grading.grade_files.PART_ROWS", 10)
    how: dict[str, Any] = {"told": {}, "audit": 0.5}
    sources = open_sources(["a.npz"])
    for name, size in (("one.parquet", 4), ("two.csv", 7), ("three.jsonl", 5)):
        with pytest.raises(KeyboardInterrupt):
            grade_files(Failing(grader, 3), sources, READER, Path(name), batch_size=size, **how)
        with pytest.raises(RunError, match="other settings"):
            grade_files(grader, sources, READER, Path(name), batch_size=size, told={}, audit=0.5, seed=1)
        summary = grade_files(grader, sources, READER, Path(name), batch_size=size, **how)
        assert summary.drawn == sum(row["audit"] for row in graded(name))
    one, *others = ([*map(dict, graded(name))] for name in ("one.parquet", "two.csv", "three.jsonl"))
    for rows in others:
        assert [row["audit"] for row in rows] == [row["audit"] for row in one]
        assert [row["sha256"] for row in rows] == [row["sha256"] for row in one]
    assert [row["chance"] for row in one] == [0.5 if row["grade"] == "trusted" else 1 for row in one]
    assert not any(row["audit"] for row in one if row["grade"] == "suspect")
    trusted = [row for row in one if row["grade"] == "trusted"]
    assert 0 < sum(row["audit"] for row in trusted) < len(trusted)
    content = [hashlib.sha256(each.tobytes()).hexdigest() for each in np.load("a.npz")["x"]]
    assert [row["sha256"] for row in one] == content
    assert {row["audit"] for row in graded_without(grader)} == {None}


def test_grades_in_memory_tell_whom_to_review(grader: Grader) -> None:
    grades = grader.grade(images(200))
    chosen, chance = grades.to_review(0.25)
    assert (chosen[~grades.trusted]).all()
    assert 0 < chosen[grades.trusted].sum() < grades.trusted.sum() / 2
    assert chance.tolist() == [0.25 if trusted else 1 for trusted in grades.trusted]
    with pytest.raises(ArgumentError, match="audit"):
        grades.to_review(0)


def graded_without(grader: Grader) -> list[dict[str, Any]]:
    grade_files(grader, open_sources(["a.npz"]), READER, Path("none.parquet"), told={})
    return graded("none.parquet")


@pytest.mark.parametrize("audit", [0, -0.1, 1.5, 200, float("nan")])
def test_an_audit_that_is_no_share_is_refused(grader: Grader, arrays: Tensor, audit: float) -> None:
    with pytest.raises(ArgumentError, match="audit"):
        grade_files(grader, open_sources(["a.npz"]), READER, Path("g.csv"), told={}, audit=audit)
    assert not parts_folder(Path("g.csv")).exists()


def test_hashes_are_of_the_file_and_of_the_text_and_need_no_second_name(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"none")
    reader = Reader(size=(4, 4), channels=1)
    rows = [row for source in open_sources([tmp_path]) for some in source.rows(0, 9, 9) for row in some]
    found = reader.read(rows, hashed=True)
    assert found.hashes == [hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest(), None]
    assert reader.read(rows).hashes is None
    tokenizer = Tokenizer(None, {}, False, "", lambda texts, _: {"input_ids": [[1]] * len(texts)})
    read = Reader(encoder=tokenizer).read([Row("t.csv", 2, "h\u00e9")], hashed=True)
    assert read.hashes == [hashlib.sha256("h\u00e9".encode()).hexdigest()]


class Interrupting:
    """Graded inputs at the second look at whose rows Ctrl-C is pressed."""

    def __init__(self, graded: Graded) -> None:
        self.graded, self.after, self.looks = graded, graded.after, 0

    @property
    def table(self) -> Any:
        self.looks += 1
        if self.looks == 2:
            raise KeyboardInterrupt
        return self.graded.table


def test_an_interrupt_as_rows_are_taken_repeats_none(grader: Grader, arrays: Tensor, monkeypatch: Any) -> None:
    def stream(*arguments: Any, **how: Any) -> Any:
        for number, graded in enumerate(grade_stream(*arguments, **how)):
            yield Interrupting(graded) if number == 2 else graded

    with monkeypatch.context() as patch:
        patch.setattr("petm.grading.grade_files.grade_stream", stream)
        with pytest.raises(KeyboardInterrupt):
            grade_files(grader, open_sources(["a.npz"]), READER, Path("g.csv"), told={}, batch_size=4)
    grade_files(grader, open_sources(["a.npz"]), READER, Path("g.csv"), told={}, batch_size=4)
    assert [row["row"] for row in graded("g.csv")] == list(range(1, open_sources(["a.npz"])[0].count() + 1))


def test_a_name_that_is_no_text_is_written_as_one(grader: Grader, arrays: Tensor, tmp_path: Path) -> None:
    folder = tmp_path / "names"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/\xff.png", "wb") as file:
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(file, "png")
    grade_files(grader, open_sources([folder]), READER, Path("g.csv"), told={})
    assert [Path(row["input"]).name for row in graded("g.csv")] == [r"\xff.png"]


def test_an_output_that_is_an_input_or_among_the_inputs_is_refused(grader: Grader, arrays: Tensor) -> None:
    folder = Path("images")
    folder.mkdir()
    Image.new("L", (28, 28)).save(folder / "0.png")
    Path("a.parquet").symlink_to("a.npz")
    before = Path("a.npz").read_bytes()
    for source, output in ((folder, folder / "g.csv"), ("a.npz", Path("a.parquet"))):
        with pytest.raises(RunError, match=r"^output: expected a place apart from the inputs"):
            grade_files(grader, open_sources([source]), READER, output, told={}, overwrite=True)
    Path("graded.parquet").mkdir()
    check_apart(Path("graded.parquet"), ["a.npz"])  # beside it is no clash
    with pytest.raises(RunError, match=r"^output: "):
        check_apart(Path("graded.parquet").parent.resolve(), ["a.npz"])
    assert Path("a.npz").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["0.png"]
