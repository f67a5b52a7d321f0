"""``petm suspects``: wrong labels of image folders and tables, from a bundle."""

import csv
import json
import shutil
import sys

import pyarrow.parquet as pq
import pytest

from image_files import write_images
from networks import randomise
from petm.adapter.model import attach_adapter
from petm.cli import main
from petm.evidence.suspicion import suspicion_named
from petm.grading.grader import fit_grader
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.selective.targets import Recall

NAMES = tuple("0123456789")
SUSPECTS = ("suspects", "my.petm", "--trust-bundle-code")


@pytest.fixture
def petm(monkeypatch, capfd):
    """Runs ``petm ...`` and returns exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["petm", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def place(tmp_path, model, digits, monkeypatch):
    """A bundle, and 300 images in class folders of which five are in the wrong one and one is also in another."""
    monkeypatch.chdir(tmp_path)
    adapted = randomise(attach_adapter(model, {"fc1": 4}), scale=0.05)
    origin = Origin(ModelOrigin("networks:TinyCNN", {}, None, NAMES), InputOrigin((28, 28), 1))
    grader = fit_grader(adapted, digits[1], target=Recall(0.8), score=suspicion_named("mean_opinion"), origin=origin)
    grader.save(tmp_path / "my.petm", include_base=True)
    write_images(digits[0], range(300), tmp_path / "train")
    return tmp_path


def misplace(folder, count):
    """Moves some images into the folder of the next class, and returns their names and true classes."""
    moved = {}
    for path in sorted((folder / "train").rglob("*.png"))[:: 300 // count][:count]:
        other = folder / "train" / str((int(path.parent.name) + 1) % 10) / path.name
        moved[str(other.relative_to(folder))] = path.parent.name
        shutil.move(path, other)
    return moved


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_misplaced_images_come_first_with_their_class(place, petm):
    moved = misplace(place, 6)
    code, out, err = petm(*SUSPECTS, "train", "-o", "suspects.csv", "--json")
    assert code == 0, err
    rows = rows_of("suspects.csv")
    found = {row["input"]: row["suggested_name"] for row in rows[:9] if row["input"] in moved}
    assert len(found) >= 5  # of 6, among 300
    assert sum(moved[name] == suggested for name, suggested in found.items()) >= len(found) - 1
    probabilities = [float(row["probability_of_label_error"]) for row in rows]
    assert probabilities == sorted(probabilities, reverse=True)
    assert (json.loads(out)["rows"], len(rows)) == (300, 300)
    assert all(len(row["probability_of_label_error"].lstrip("0.").split("e")[0].replace(".", "")) <= 6 for row in rows)


def test_one_image_in_two_folders_and_classes_that_are_not_the_models(place, petm):
    for folder in sorted((place / "train").iterdir()):
        folder.rename(folder.with_name(f"digit {folder.name}"))
    image = next((place / "train" / "digit 3").iterdir())
    shutil.copy(image, place / "train" / "digit 7" / "copy.png")
    code, _, err = petm(*SUSPECTS, "train", "-o", "suspects.parquet", "--top", 50)
    assert code == 0, err
    table = pq.read_table("suspects.parquet")
    assert len(table) == 50
    first = next(row for row in table.to_pylist() if row["input"].endswith("copy.png"))
    assert first["copies"] == 2
    assert (first["label_name"], first["suggested_name"]) == ("digit 7", "digit 3")
    assert first["probability_of_label_error"] > 0.5
    code, _, err = petm(*SUSPECTS, "train", "-o", "more.csv", "--unseen")
    assert (code, "--unseen: expected" in err) == (1, True)


def test_what_is_unreadable_unlabelled_or_there_already(place, petm):
    (place / "train" / "3" / "broken.png").write_bytes(b"no image")
    code, _, err = petm(*SUSPECTS, "train", "-o", "suspects.csv")
    assert (code, "broken.png" in err) == (1, True)
    code, _, err = petm(*SUSPECTS, "train", "-o", "suspects.jsonl", "--skip-bad")
    assert code == 0, err
    assert len((place / "suspects.jsonl").read_text().splitlines()) == 300
    code, _, err = petm(*SUSPECTS, "train", "-o", "suspects.jsonl")
    assert (code, "--overwrite" in err) == (1, True)
    shutil.copytree(place / "train" / "4", place / "flat")
    code, _, err = petm(*SUSPECTS, "flat", "-o", "flat.csv")
    assert (code, "expected labelled samples" in err) == (1, True)
