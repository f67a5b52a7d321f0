"""Labels join grades by whatever both have; what contradicts itself is refused in one line."""

import csv
import hashlib
import json

import numpy as np
import pytest

from petm.data.labels import UNLABELLED
from petm.data.reviewed import read_reviewed
from petm.data.sources import open_sources
from petm.errors import DataError

CLASSES = ("cat", "dog", "owl")
ROWS = 60


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def images(tmp_path):
    """Files with different contents, and grades of them: every third row is suspect, all predicted as class 0 or 1."""
    rows = []
    for number in range(ROWS):
        path = tmp_path / f"{number}.png"
        path.write_bytes(b"image %d" % number)
        rows.append(graded(str(path), None, number))
    return rows


def graded(name, row, number, **more):
    suspect = number % 3 == 0
    return {"input": name, "row": row, "label": number % 2, "suspicion": number / ROWS,
            "grade": "suspect" if suspect else "trusted"} | more  # fmt: skip


def lines(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def of_page(row, label, content, **more):
    """A line that petm serve writes."""
    name = None if label is None else CLASSES[label]
    return {"input": "upload.png", "label": label, "label_name": name, "confirmed": label == row["label"],
            "suspicion": row["suspicion"], "sha256": sha(content), "path": "images/copy.png"} | more  # fmt: skip


@pytest.mark.parametrize("kind", [".csv", ".parquet", ".jsonl"])
@pytest.mark.parametrize("column", ["input", "path"])
def test_labels_join_by_path(tmp_path, images, kind, column):
    told = [{column: row["input"], "label": CLASSES[number % 3]} for number, row in enumerate(images[:30])]
    found = read_reviewed([lines(tmp_path / f"l{kind}", told)], [lines(tmp_path / f"g{kind}", images)], CLASSES)
    assert found.places == tuple((row["input"], None) for row in images[:30])
    assert found.labels.tolist() == [number % 3 for number in range(30)]
    assert found.predicted.tolist() == [number % 2 for number in range(30)]
    assert found.trusted.tolist() == [bool(number % 3) for number in range(30)]
    assert found.suspicion == pytest.approx(np.arange(30) / ROWS)
    assert (found.chance == 1).all()
    assert (found.by_content, found.unmatched, found.repeated, found.rows) == (0, 0, 0, ROWS)
    found.check_drawn()


def test_the_labels_of_the_page_join_by_content_and_its_last_line_holds(tmp_path, images):
    told = [of_page(row, 2, b"image %d" % number) for number, row in enumerate(images[:30])]
    told += [of_page(row, number % 2, b"image %d" % number) for number, row in enumerate(images[:29])]
    told += [of_page(images[0], None, b"image 0")]  # taken back
    told += [of_page(images[1], None, b"image 1", decision="cannot tell"), of_page(images[2], 1, b"elsewhere")]
    labels, grades = lines(tmp_path / "labels.jsonl", told), lines(tmp_path / "g.parquet", images)
    found = read_reviewed([labels], [grades], CLASSES)
    assert found.places == tuple((row["input"], None) for row in images[1:30])
    assert found.labels.tolist() == [UNLABELLED, *(number % 2 for number in range(2, 29)), 2]
    assert (found.by_content, found.unmatched) == (29, 1)
    assert np.isnan(found.chance).all()
    with pytest.raises(DataError, match=r"labels.*chance"):  # a queue whose chances nobody knows
        found.check_drawn()


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_the_labels_of_the_page_join_texts_in_a_table(tmp_path, kind):
    texts = [{"text": f"text {number}", "other": 1} for number in range(ROWS)]
    source = lines(tmp_path / f"texts{kind}", texts)
    first = {".csv": 2, ".jsonl": 1, ".parquet": 1}[kind]
    rows = [graded(str(source), first + number, number) for number in range(ROWS)]
    told = [of_page(rows[n], n % 3, f"text {n}".encode(), text=f"text {n}") for n in range(25, 50)]
    found = read_reviewed([lines(tmp_path / "l.jsonl", told)], [lines(tmp_path / "g.jsonl", rows)], CLASSES)
    assert found.places == tuple((str(source), first + number) for number in range(25, 50))
    assert found.labels.tolist() == [number % 3 for number in range(25, 50)]


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("labels", ["l.jsonl", "l.csv", "texts.csv"])
def test_labels_join_pairs_of_texts_as_graders_read_them(tmp_path, kind, labels):
    pairs = [{"premise": f"text {number % 40}", "hypothesis": f"é {number}"} for number in range(ROWS)]
    source = lines(tmp_path / f"pairs{kind}", pairs)
    columns = ("premise", "hypothesis")
    (table,) = open_sources([source], text_column=columns)
    (read,) = table.rows(0, ROWS, ROWS)
    rows = [graded(str(source), row.number, number) for number, row in enumerate(read)]
    told = [of_page(rows[n], n % 3, row.content.encode(), text=row.content) for n, row in enumerate(read) if n < 30]
    if labels.endswith("csv"):
        told = [{"sha256": each["sha256"], "label": each["label"]} for each in told]
    if labels == "texts.csv":
        told = [{**pair, "label": n % 3} for n, pair in enumerate(pairs[:30])]
    files = [lines(tmp_path / labels, told)], [lines(tmp_path / "g.jsonl", rows)]
    found = read_reviewed(*files, CLASSES, text_column=columns)
    assert (found.by_content, found.unmatched, found.repeated) == (30, 0, 0)
    assert found.places == tuple((str(source), row.number) for row in read[:30])
    assert found.labels.tolist() == [number % 3 for number in range(30)]


def test_a_column_of_hashes_in_the_grades_is_taken_and_an_equal_input_counts_once(tmp_path):
    rows = [graded("gone.png", number, number, sha256=sha(b"%d" % (number % 40))) for number in range(ROWS)]
    told = [{"sha256": sha(b"%d" % number), "label": number % 3} for number in range(30)]
    found = read_reviewed([lines(tmp_path / "l.csv", told)], [lines(tmp_path / "g.csv", rows)], CLASSES)
    assert [row for _, row in found.places] == list(range(30))
    assert found.repeated == 20


def audited(images, chance):
    return [row | {"chance": 1.0 if row["grade"] == "suspect" else chance} for row in images]


def test_the_chances_of_the_grades_are_returned_and_an_audit_is_evidence(tmp_path, images):
    rows = audited(images, 0.25)
    drawn = [n for n in range(ROWS) if n % 3 == 0 or n % 4 == 1]
    told = [of_page(rows[n], n % 3, b"image %d" % n) for n in drawn]
    found = read_reviewed([lines(tmp_path / "l.jsonl", told)], [lines(tmp_path / "g.csv", rows)], CLASSES)
    assert found.chance.tolist() == [1.0 if n % 3 == 0 else 0.25 for n in drawn]
    found.check_drawn()


@pytest.mark.parametrize("chance", [0.0, 0.25, None])
def test_labels_of_suspects_alone_are_no_evidence(tmp_path, images, chance):
    rows = audited(images, chance)
    told = [{"input": rows[n]["input"], "label": n % 4 // 2} for n in range(0, ROWS, 3)]
    found = read_reviewed([lines(tmp_path / "l.csv", told)], [lines(tmp_path / "g.csv", rows)], CLASSES)
    assert (len(found.labels), found.unreached) == (20, 40)
    with pytest.raises(DataError, match=r"labels.*chance"):
        found.check_drawn()


def test_labels_of_suspects_alone_are_no_random_rows_where_grades_have_no_chances(tmp_path, images):
    told = [{"input": images[n]["input"], "label": n % 4 // 2} for n in range(0, ROWS, 3)]
    grades = [lines(tmp_path / "g.csv", images)]
    found = read_reviewed([lines(tmp_path / "l.csv", told)], grades, CLASSES)
    assert np.isnan(found.chance).all()
    with pytest.raises(DataError, match=r"labels.*chance"):
        found.check_drawn()
    told.append({"input": images[1]["input"], "label": 1})  # of a random sample, by whoever labelled it
    found = read_reviewed([lines(tmp_path / "l.csv", told)], grades, CLASSES)
    assert (found.chance == 1).all()
    found.check_drawn()


def test_an_audit_of_which_nobody_can_tell_anything_is_no_evidence(tmp_path, images):
    rows = audited(images, 0.25)
    told = [of_page(rows[n], n % 4 // 2, b"image %d" % n) for n in range(0, ROWS, 3)]
    told += [of_page(rows[n], None, b"image %d" % n, decision="cannot tell") for n in range(1, ROWS, 4) if n % 3]
    found = read_reviewed([lines(tmp_path / "l.jsonl", told)], [lines(tmp_path / "g.csv", rows)], CLASSES)
    with pytest.raises(DataError, match=r"labels.*chance"):
        found.check_drawn()


def test_a_queue_that_is_not_finished_is_no_evidence(tmp_path, images):
    rows = audited(images, 0.25)
    told = [{"input": rows[n]["input"], "label": n % 4 // 2} for n in range(ROWS) if n % 3 == 0 or n % 4 == 1][:-6]
    labels = lines(tmp_path / "l.csv", told)
    found = read_reviewed([labels], [lines(tmp_path / "g.csv", rows)], CLASSES)
    assert found.unanswered > 0
    with pytest.raises(DataError, match=r"labels.*Finish"):
        found.check_drawn()


def test_a_copy_of_a_labelled_input_needs_no_label_of_its_own(tmp_path, images):
    rows = [*audited(images, 0.25), images[0] | {"input": "gone.png", "chance": 1.0, "sha256": sha(b"image 0")}]
    told = [of_page(rows[n], n % 3, b"image %d" % n) for n in range(ROWS) if n % 3 == 0 or n % 4 == 1]
    found = read_reviewed([lines(tmp_path / "l.jsonl", told)], [lines(tmp_path / "g.jsonl", rows)], CLASSES)
    assert found.repeated == 1
    found.check_drawn()


def plain(images, count=30):
    return [{"input": row["input"], "label": number % 3} for number, row in enumerate(images[:count])]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda told: [row | {"input": f"elsewhere/{n}"} for n, row in enumerate(told)], "labels.*name a graded row"),
        (lambda told: [*told, told[0] | {"label": 1}], r"l\.jsonl:31.*one label"),
        (lambda told: [*told, told[0] | {"label": None, "decision": "cannot tell"}], r"l\.jsonl:31.*one label"),
        (lambda told: [*told[:-1], told[-1] | {"label": 3}], r"l\.jsonl:30.*classes"),
        (lambda told: [*told[:-1], told[-1] | {"label_name": "fox"}], r"l\.jsonl:30.*classes"),
        (lambda told: [*told[:-1], told[-1] | {"row": "x"}], r"l\.jsonl:30.*row"),
        (lambda told: [*told[:-1], {"label": 1}], r"l\.jsonl:30.*input"),
        (lambda told: [row | {"label": 1} for row in told], "labels.*two classes"),
        (lambda told: told[:19], "labels.*at least 20"),
        (lambda told: [*told[:-1], told[-1] | {"sha256": sha(b"other")}], r"l\.jsonl:30.*hash"),
        (lambda told: [*told, {"sha256": sha(b"image 0"), "label": 1}], r"l\.jsonl.*one label"),
    ],
)
def test_bad_labels_are_one_line(tmp_path, images, change, match):
    labels, grades = lines(tmp_path / "l.jsonl", change(plain(images))), lines(tmp_path / "g.jsonl", images)
    with pytest.raises(DataError, match=match) as told:
        read_reviewed([labels], [grades], CLASSES)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("chance", [-0.5, 1.5, "much"])
def test_bad_files_are_one_line(tmp_path, images, chance):
    labels, bad = lines(tmp_path / "l.jsonl", plain(images)), [row | {"chance": chance} for row in images]
    for paths, match in (
        (([labels], [lines(tmp_path / "g.jsonl", bad)]), r"g\.jsonl:1.*chance"),
        (([labels], [tmp_path / "none.csv"]), r"none\.csv"),
        (([tmp_path / "none.txt"], [tmp_path / "g.jsonl"]), r"none\.txt"),
        (([labels], [labels]), "petm grade|Grade again|labels"),
    ):
        with pytest.raises(DataError, match=match):
            read_reviewed(*paths, CLASSES)
