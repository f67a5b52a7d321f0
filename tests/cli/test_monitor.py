"""``petm monitor``: what it says, draws and returns, for bundles and graphs, with labels and without."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graded_tables import graded, write
from networks import TinyCNN, randomise, seeded
from petm._internal.files import take_lock
from petm.adapter.model import attach_adapter
from petm.cli import main
from petm.errors import ArgumentError
from petm.evidence.suspicion import suspicion_named
from petm.grading.grader import Grader
from petm.grading.onnx_export import export_onnx
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.report.monitor_report import monitor
from petm.selective.drift import suspicion_profile
from petm.selective.sequential import sequential_share
from petm.selective.thresholds import DISAGREEMENT, Threshold

CALIBRATION = suspicion_profile(np.random.default_rng(9).random(2000))
THRESHOLD = Threshold(0.5, "guaranteed risk", 0.5, max_risk=0.1, confidence=0.95, risk=0.06)
ORIGIN = Origin(ModelOrigin("networks:TinyCNN", classes=("cat", "dog", "cow")), InputOrigin((28, 28), 1))


def grader(threshold=THRESHOLD, origin=ORIGIN, **measured):
    adapted = randomise(attach_adapter(seeded(TinyCNN), {"fc2": 1}))
    return Grader(adapted, threshold, suspicion_named("mean_opinion"), origin=origin, measured=measured or CALIBRATION)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grader().save("my.petm")
    return tmp_path


@pytest.fixture
def petm(place, monkeypatch, capfd):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["petm", "monitor", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
        return code, *capfd.readouterr()

    return run


def test_a_guarantee_that_holds(petm):
    write(graded(3000, error_rate=0.05), Path("g.parquet"))
    code, out, err = petm("my.petm", "g.parquet")
    assert (code, err) == (0, "")
    assert out.startswith("The guarantee holds: of ")
    assert "10% at most was guaranteed." in out
    assert "This assumes that the labelled are a random part" in out
    assert "No drift of suspicion is seen (Kolmogorov-Smirnov distance 0.0" in out
    assert "against 2,000 calibration samples)" in out


def test_a_violated_guarantee_exits_3_and_names_the_file(petm, place):
    write(graded(800, error_rate=0.02), Path("monday.csv"))
    write(graded(800, seed=1, error_rate=0.4), Path("tuesday.csv"))
    code, out, err = petm("my.petm", "monday.csv", "tuesday.csv", "-o", "watch", "--json")
    assert (code, err) == (3, "")
    told = json.loads(out)
    assert (told["verdict"], told["exit_code"], told["guarantee"]["limit"]) == ("violated", 3, 0.1)
    assert [row["name"] for row in told["windows"]] == ["monday.csv", "tuesday.csv"]
    monday, tuesday = (row["wrong"] for row in told["windows"])
    assert monday["high"] < 0.1 < tuesday["low"]
    assert told["whole"]["rows"] == 1600
    assert told["whole"]["wrong"]["of"] == monday["of"] + tuesday["of"] == told["guarantee"]["found"]["of"]
    assert told["findings"][0].startswith("The guarantee is VIOLATED: of ")

    assert sorted(path.name for path in Path("watch").iterdir()) == [
        f"monitor.{kind}" for kind in ("json", "md", "png", "svg")
    ]
    assert json.loads(Path("watch/monitor.json").read_text()) == told
    assert Path("watch/monitor.md").read_text().startswith("# violated\n\nThe guarantee is VIOLATED")
    with Image.open("watch/monitor.png") as image:
        assert image.format == "PNG"
    drawn = Path("watch/monitor.svg").read_text()
    assert "<svg" in drawn
    assert "tuesday" in Path("watch/monitor.md").read_text()


def test_too_few_labels_give_the_number_needed(petm):
    write(graded(60, error_rate=0.0, labelled=0.3), Path("g.csv"))
    code, out, _ = petm("my.petm", "g.csv")
    assert code == 0
    assert out.startswith("It cannot be told whether the guarantee holds: of ")
    needed = next(n for n in range(1, 200) if sequential_share(0, n).high <= 0.1)
    assert needed > math.log(0.025) / math.log(0.9), "all looks cost more than one"
    assert f"About {needed} labelled trusted predictions, drawn at random, would tell at the error rate seen." in out


def test_no_label_at_all(petm):
    write(graded(200, labelled=0.0), Path("g.csv"))
    code, out, _ = petm("my.petm", "g.csv", "-o", "watch")
    assert code == 0
    assert "It cannot be told whether the guarantee holds: no trusted prediction is labelled; 10% at most" in out
    assert "would tell at the error rate of the calibration samples." in out
    assert "random part" not in out
    assert Path("watch/monitor.png").stat().st_size > 10_000


def test_only_suspects_are_labelled(petm):
    """As the review page leaves it without an audit, and as a person may write it."""
    table = graded(500, labelled=0.0)
    write(table, Path("g.jsonl"))
    suspects = [row for row in table.to_pylist() if row["grade"] == "suspect"]
    lines = [{"input": row["input"], "label": 0, "confirmed": True, "suspicion": 0.7} for row in suspects]
    Path("labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("labels.csv").write_text("input,label\n" + "".join(f"{row['input']},0\n" for row in suspects))
    for labels in ("labels.jsonl", "labels.csv"):
        code, out, err = petm("my.petm", "g.jsonl", "--labels", labels)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "labels: expected" in err
        assert "petm grade --audit" in err


def test_classes_that_are_named_by_numbers_raise_no_false_alarm(petm):
    grader(origin=replace(ORIGIN, model=replace(ORIGIN.model, classes=("1", "2", "3")))).save("stars.petm")
    table = graded(400, unreadable=0, labelled=0.0)
    write(table, Path("g.parquet"))
    right = [(row["input"], row["label"] + 1) for row in table.to_pylist() if row["grade"] == "trusted"]
    Path("l.csv").write_text("input,label\n" + "".join(f"{name},{stars}\n" for name, stars in right))
    code, out, _ = petm("stars.petm", "g.parquet", "--labels", "l.csv")
    assert (code, f"of {len(right)} labelled trusted predictions 0 are wrong" in out) == (0, True)
    Path("l.csv").write_text("input,label\n" + "".join(f"{name},{stars}\n" for name, stars in right if stars < 3))
    code, out, err = petm("stars.petm", "g.parquet", "--labels", "l.csv")
    assert (code, out) == (1, "")
    assert "l.csv: expected labels that are class names or class numbers, got 1" in err


def test_labels_by_name_that_fit_in_part(petm):
    table = graded(400, unreadable=0, labelled=0.0)
    write(table, Path("g.parquet"))
    names = [f"{row['input']},{row['label_name']}" for row in table.to_pylist() if row["grade"] == "trusted"]
    Path("l.csv").write_text("\n".join(["input,label", *names, "elsewhere/1.png,cat"]) + "\n")
    code, out, err = petm("my.petm", "g.parquet", "--labels", "l.csv")
    assert code == 0
    assert f"The guarantee holds: of {len(names)} labelled trusted predictions 0 are wrong" in out
    assert err == (
        f"Warning: labels: expected inputs and rows as in the grades, got 1 of {len(names) + 1} entries that name none "
        f"of them. Compare the columns input and row.\n"
    )
    write(table, Path("again.parquet"))
    _, _, err = petm("my.petm", "g.parquet", "again.parquet", "--labels", "l.csv")
    assert f"labels: expected one graded row for each, got {len(names)} rows with the input of an earlier one" in err


def test_a_labelled_part_that_is_not_random_is_noticed(petm):
    """The more suspect half of the trusted was labelled."""
    table = graded(2000, unreadable=0, labelled=0.0)
    write(table, Path("g.parquet"))
    chosen = [row for row in table.to_pylist() if 0.25 <= row["suspicion"] < 0.5]
    Path("l.csv").write_text("input,label\n" + "".join(f"{row['input']},{row['label']}\n" for row in chosen))
    _, _, err = petm("my.petm", "g.parquet", "--labels", "l.csv")
    assert "Warning: labels: expected a random part of the trusted, got one whose suspicion differs" in err
    write(graded(2000, unreadable=0), Path("random.parquet"))
    assert petm("my.petm", "random.parquet")[2] == ""


def test_drift_warns_and_fails_only_when_asked(petm):
    squeezed = graded(500, threshold=Threshold(0.5, ""), labelled=0.0).to_pylist()
    suspicion = [row["suspicion"] and row["suspicion"] ** 0.5 for row in squeezed]
    for row, value in zip(squeezed, suspicion, strict=True):
        if value is not None:
            row.update(suspicion=value, grade="trusted" if value < 0.5 else "suspect")
    Path("g.jsonl").write_text("".join(json.dumps(row) + "\n" for row in squeezed))
    code, out, _ = petm("my.petm", "g.jsonl")
    assert code == 0
    assert "Suspicion has DRIFTED, it is higher than in calibration" in out
    code, out, _ = petm("my.petm", "g.jsonl", "--fail-on-drift", "--json")
    told = json.loads(out)
    assert (code, told["exit_code"], told["drifted"], told["verdict"]) == (3, 3, True, "cannot tell")
    # P(U ** 0.5 <= x) = x ** 2, the farthest from x at 1/2, where they differ by 1/4.
    assert told["drift"]["distance"] == pytest.approx(0.25, abs=0.06)
    code, out, _ = petm("my.petm", "g.jsonl", "--fail-on-drift", "--significance", "0.0001")
    assert code == 1

    write(graded(500, error_rate=0.02), Path("same.csv"))
    assert petm("my.petm", "same.csv", "--fail-on-drift")[0] == 0


def test_each_class(petm):
    parts = tuple(replace(THRESHOLD, value=value) for value in (0.2, 0.5, 0.8))
    threshold = replace(THRESHOLD, value=0.8, rule="guaranteed risk in each class", classes=parts)
    grader(threshold).save("class.petm")
    write(graded(4000, threshold=threshold, error_rate=0.3), Path("g.csv"))
    code, out, _ = petm("class.petm", "g.csv", "--window", "1500")
    assert code == 3
    for name in ("cat", "dog", "cow"):
        assert f"Class {name}: violated, " in out
    assert "guaranteed in each class." in out
    starts = [line.split()[0] for line in out.splitlines() if line[:1].isdigit()]
    assert starts == ["0", "1500", "3000"], "the rows with which windows begin"
    told = json.loads(petm("class.petm", "g.csv", "--json")[1])
    assert set(told["guarantee"]["classes"]) == {"0", "1", "2"}
    assert told["guarantee"]["classes"]["2"]["verdict"] == "violated"


def test_no_guarantee_and_an_old_bundle(petm):
    grader(replace(DISAGREEMENT, value=0.5), calibration_samples=300).save("old.petm")
    write(graded(400, error_rate=0.5), Path("g.csv"))
    code, out, _ = petm("old.petm", "g.csv", "--fail-on-drift")
    assert code == 0
    assert "Nothing is guaranteed." in out
    assert "Beside it: of " in out
    assert "Whether suspicion has drifted cannot be told" in out


@pytest.mark.slow
def test_a_graph_gives_the_same_as_its_bundle(petm):
    export_onnx(grader(), "my.onnx")
    write(graded(800, error_rate=0.4), Path("g.csv"))
    expected = petm("my.petm", "g.csv", "--json")
    assert expected[0] == 3
    assert petm("my.onnx", "g.csv", "--json") == expected


def test_an_output_that_another_process_writes_or_that_cannot_be(petm, place):
    write(graded(300), Path("g.csv"))
    release = take_lock(place / ".watch.lock")
    code, _, err = petm("my.petm", "g.csv", "-o", "watch")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("Error: watch: ")
    assert not Path("watch").exists()
    release()
    assert petm("my.petm", "g.csv", "-o", "watch")[0] != 1
    assert sorted(path.name for path in place.iterdir()) == ["g.csv", "my.petm", "watch"]
    assert petm("my.petm", "g.csv", "-o", "g.csv/watch")[::2][0] == 1


def test_what_is_refused(petm):
    write(graded(50, threshold=Threshold(0.9, "")), Path("g.csv"))
    for arguments, code, message in (
        (("my.petm",), 2, "Missing argument 'GRADES...'"),
        (("none.petm", "g.csv"), 1, "Error: none.petm: expected"),
        (("my.petm", "none.csv"), 1, "Error: none.csv: expected"),
        (("my.petm", "g.csv"), 1, "Error: g.csv: expected grades by this bundle, got "),
        (("my.petm", "g.csv", "--labels", "none.csv"), 1, "Error: none.csv: expected a table "),
        (("my.petm", "g.csv", "--confidence", "2"), 1, "Error: --confidence: expected"),
        (("my.petm", "g.csv", "--significance", "0"), 1, "Error: --significance: expected"),
        (("my.petm", "g.csv", "--window", "0"), 1, "Error: --window: expected"),
    ):
        found = petm(*arguments)
        assert found[0] == code
        assert message in found[2]
        assert found[1] == ""


@pytest.mark.slow
def test_the_figure_is_the_same_for_the_same_grades(petm):
    write(graded(500), Path("g.csv"))
    pictures = []
    for folder in ("one", "two"):
        petm("my.petm", "g.csv", "-o", folder, "--window", "40")
        pictures.append(Path(folder, "monitor.svg").read_bytes())
    assert pictures[0] == pictures[1]


def test_in_python(place):
    write(graded(500), Path("g.csv"))
    found = monitor(THRESHOLD, CALIBRATION, ["g.csv"], confidence=0.5)
    assert found.guarantee.confidence == 0.5
    with pytest.raises(ArgumentError, match=r"significance: "):
        monitor(THRESHOLD, CALIBRATION, ["g.csv"], significance=1)


# one state for all looks


def days(count, each=400, **asked):
    """Files of so many days, half of them labelled."""
    for day in range(count):
        write(graded(each, seed=day, labelled=0.5, **asked), Path(f"day{day:02}.parquet"))
    return [f"day{day:02}.parquet" for day in range(count)]


def test_looking_every_day_gives_what_one_look_at_all_days_gives(petm):
    names = days(6, error_rate=0.08)
    for name in names:
        code, daily, _ = petm("my.petm", name, "--state", "daily.json", "--json")
    once = petm("my.petm", *names, "--state", "once.json", "--json")[1]
    assert json.loads(daily) == json.loads(once)
    assert (code, len(json.loads(daily)["windows"])) == (0, 6)
    without = json.loads(petm("my.petm", *names, "--json")[1])
    assert json.loads(once)["guarantee"] == without["guarantee"], "each row comes once"
    assert json.loads(Path("daily.json").read_text()) == json.loads(Path("once.json").read_text())


def test_rows_that_come_again_count_once_and_their_labels_are_corrected(petm):
    table = graded(400, error_rate=0.0, labelled=0.5)
    write(table.slice(0, 250), Path("g.csv"))
    petm("my.petm", "g.csv", "--state", "watch.json")
    write(table, Path("g.csv"))  # the file has grown
    told = json.loads(petm("my.petm", "g.csv", "--state", "watch.json", "--json")[1])
    assert (told["again"], told["whole"]["rows"], [row["rows"] for row in told["windows"]]) == (250, 400, [250, 150])
    trusted = [row for row in table.to_pylist() if row["grade"] == "trusted" and row["true_label"] is not None]
    assert (told["guarantee"]["found"]["of"], told["guarantee"]["found"]["count"]) == (len(trusted), 0)
    wrong = [(row["input"], (row["label"] + 1) % 3) for row in trusted[:40]]
    Path("l.csv").write_text("input,label\n" + "".join(f"{name},{label}\n" for name, label in wrong))
    told = json.loads(petm("my.petm", "g.csv", "--labels", "l.csv", "--state", "watch.json", "--json")[1])
    assert (told["guarantee"]["found"]["of"], told["guarantee"]["found"]["count"]) == (len(trusted), 40)
    assert (told["verdict"], told["again"]) == ("violated", 400)


def test_a_rise_is_named_and_compared_with_before(petm):
    names = days(4, error_rate=0.03)
    write(graded(400, seed=9, labelled=0.5, error_rate=0.4), Path("friday.parquet"))
    code, out, _ = petm("my.petm", *names, "friday.parquet", "--since", "friday.parquet")
    assert code == 3
    assert "The evidence is greatest since friday.parquet" in out
    assert "Since friday.parquet the share differs by +" in out
    assert "valid at any time" in out
    code, _, err = petm("my.petm", *names, "--since", "sunday.parquet")
    assert (code, err.count("\n"), err.startswith("Error: --since: expected")) == (1, 1, True)


def test_estimated_accuracy_has_the_truth_beside_it(petm):
    write(graded(4000, error_rate=0.25), Path("g.parquet"))  # probabilities of error are uniform up to 0.5
    told = json.loads(petm("my.petm", "g.parquet", "--json")[1])
    whole = told["whole"]
    assert whole["estimated_accuracy"]["value"] == pytest.approx(0.75, abs=0.02)
    assert whole["gap"]["low"] < 0 < whole["gap"]["high"]
    assert [row["name"] for row in told["class_figures"]] == ["cat", "dog", "cow"]
    assert told["class_figures"][0]["precision"] == pytest.approx(0.75, abs=0.06)
    write(graded(4000, error_rate=0.6), Path("g.parquet"))
    assert "on the labelled the estimate is off by +3" in petm("my.petm", "g.parquet")[1]
    write(graded(400, labelled=0), Path("g.parquet"))
    assert "without labels nobody knows whether they are" in petm("my.petm", "g.parquet")[1]


def test_a_state_of_something_else_is_refused_in_one_line(petm, place):
    write(graded(300), Path("g.csv"))
    petm("my.petm", "g.csv", "--state", "watch.json")
    whole = Path("watch.json").read_text()
    grader(replace(THRESHOLD, max_risk=0.2)).save("other.petm")
    for arguments in (
        ("other.petm", "g.csv"),
        ("my.petm", "g.csv", "--confidence", "0.9"),
        ("my.petm", "g.csv", "--significance", "0.05"),
        ("my.petm", "g.csv", "--window", "50"),
    ):
        code, out, err = petm(*arguments, "--state", "watch.json")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("Error: --state: expected one of the same")
    content = json.loads(whole)
    wild = [
        content | {"windows": [list(content["windows"][0])]},
        content | {"trusted": [2**62, *content["trusted"][1:]]},
    ]
    window = content["windows"][0]
    wild.append(content | {"windows": [window | {"suspicion": [2**63 - 1, *window["suspicion"][1:]]}]})
    for damage in (
        "", "[]", "null", "{}", whole[:-40], whole.replace('"rows": 300', '"rows": -1'), "[" * 100_000,
        *map(json.dumps, wild),
    ):  # fmt: skip
        Path("watch.json").write_text(damage)
        code, out, err = petm("my.petm", "g.csv", "--state", "watch.json")
        assert (code, out, err.count("\n"), err.startswith("Error: --state: expected")) == (1, "", 1, True)
        assert Path("watch.json").read_text() == damage
    Path("watch.json").write_text(whole)
    release = take_lock(place / ".watch.json.lock")
    assert petm("my.petm", "g.csv", "--state", "watch.json")[0] == 1
    release()
    assert petm("my.petm", "g.csv", "--state", "watch.json")[0] != 1


def test_labelled_rows_that_are_there_twice_are_told(petm):
    write(graded(300), Path("g.parquet"))
    assert "expected each labelled row once" not in petm("my.petm", "g.parquet")[2]
    assert "expected each labelled row once" in petm("my.petm", "g.parquet", "g.parquet")[2]
    assert "expected each labelled row once" not in petm("my.petm", "g.parquet", "g.parquet", "--state", "s.json")[2]
