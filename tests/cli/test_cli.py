"""The command line, run in this process: what it prints, what it returns, what it leaves behind."""

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from image_files import write_images
from petm.cli import main
from petm.cli import petm as commands
from petm.cli.grade import _report
from petm.grading.grade_table import grade_table
from petm.grading.grades import Grades
from petm.grading.stream import grade_stream
from petm.grading.summary import Summary
from petm.models.loading import save_weights
from petm.selective.thresholds import risk_threshold

NETWORK = "networks:TinyCNN"


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
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def place(tmp_path, model, digits, monkeypatch):
    """A folder with weights of the base model, labelled images, and images to grade."""
    monkeypatch.chdir(tmp_path)
    save_weights(model, tmp_path / "w.safetensors")
    write_images(digits[0], range(300), tmp_path / "images")
    write_images(digits[2], range(20), tmp_path / "more", flat=True)
    return tmp_path


def listing(*paths):
    """Standard input with paths in bytes, one a line."""
    return io.TextIOWrapper(io.BytesIO(b"".join(path + b"\n" for path in paths)))


def fit_arguments(*more):
    return (
        "fit", "--model", NETWORK, "--weights", "w.safetensors", "--data", "images", "-o", "my.petm",
        "--recipe", "paper", "--max-extra-parameters", 0.2, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle(_trained, digits, tmp_path_factory):
    """A bundle that has its weights."""
    folder = tmp_path_factory.mktemp("fitted")
    save_weights(_trained, folder / "w.safetensors")
    write_images(digits[0], range(300), folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["petm", *map(str, fit_arguments("--include-base"))])
        main()
    return folder / "my.petm"


@pytest.fixture
def fitted(bundle, place):
    """The same place with a bundle of its own."""
    shutil.copytree(bundle, place / "my.petm")
    return place


def test_fit_grade_inspect(place, petm):
    code, out, err = petm(*fit_arguments("--json", "--include-base"))
    assert code == 0, err
    manifest = json.loads(out)
    assert manifest["model"]["reference"] == NETWORK
    assert {"size": [28, 28], "channels": 1}.items() <= manifest["inputs"].items()
    assert manifest["adapter"]["parameters"] <= 0.2 * manifest["model"]["parameters"]
    split_point = manifest["adapter"]["split_point"]
    assert 0 < split_point["share_before"] <= 1 < split_point["counted_ratio"]
    assert sorted(entry.name for entry in place.glob("my.petm*")) == ["my.petm"], "no run folder is left"

    code, out, err = petm("grade", "my.petm", "--trust-bundle-code", "more", "-o", "grades.csv")
    assert (code, out) == (0, "")
    rows = list(csv.DictReader((place / "grades.csv").read_text().splitlines()))
    assert list(rows[0]) == [
        "input", "row", "label", "label_name", "second", "second_name", "probability_of_error", "confidence",
        "suspicion", "grade", "reason",
    ]  # fmt: skip
    assert [row["input"] for row in rows] == [str(path.relative_to(place)) for path in sorted(place.glob("more/*"))]
    for row in rows:
        disagrees = row["label"] != row["second"]
        assert row["grade"] == ("suspect" if disagrees else "trusted")
        assert (float(row["suspicion"]) > 0) == disagrees
    assert f"{len(rows)} inputs" in err

    code, out, err = petm("grade", "my.petm", "--trust-bundle-code", "more")
    assert (code, out) == (0, (place / "grades.csv").read_text())
    code, out, err = petm("grade", "my.petm", "--trust-bundle-code", "more", "--json")
    trusted = sum(row["grade"] == "trusted" for row in rows)
    assert json.loads(out) == {
        "inputs": len(rows), "trusted": trusted, "suspect": len(rows) - trusted, "unreadable": 0,
    }  # fmt: skip

    code, _, err = petm("grade", "my.petm", "--trust-bundle-code", "more", "--audit", 0.5, "-o", "audit.csv")
    drawn = [row for row in csv.DictReader((place / "audit.csv").read_text().splitlines()) if row["audit"] == "True"]
    assert (code, f"{len(drawn)} of the trusted are drawn" in err) == (0, True)
    assert "Next: petm serve my.petm --queue audit.csv" in err
    assert all(row["sha256"] == hashlib.sha256((place / row["input"]).read_bytes()).hexdigest() for row in drawn)
    code, out, err = petm("grade", "my.petm", "--trust-bundle-code", "more", "--audit", 200)
    assert (code, out, "audit: expected a share" in err) == (1, "", True)

    code, out, err = petm("inspect", "my.petm")
    assert code == 0
    assert "disagreement, as in the paper" in " ".join(out.replace("│", "").split())
    assert f"split point {split_point['kind']} {split_point['module']}" in " ".join(out.replace("│", "").split())

    code, out, err = petm(*fit_arguments())
    assert code == 1
    assert "got a bundle. Choose another name, or replace it with --overwrite." in err


@pytest.mark.slow
def test_the_cache_budget_bounds_what_is_decoded_beforehand(place, petm, monkeypatch):
    asked = []
    monkeypatch.setattr("petm.data.base.Data.in_memory", lambda data, budget: asked.append(budget) or data)
    code, _, err = petm(*fit_arguments("--cache-budget", 1000))
    assert code == 0, err
    assert asked == [250], "a quarter, as of the 4 GiB that are the default"


def test_grade_reads_lists_names_what_it_cannot_read_and_judges(fitted, petm, monkeypatch):
    broken = fitted / "images" / "0" / "zz_broken.png"
    broken.write_bytes(b"no picture")
    code, out, err = petm("grade", "my.petm", "--trust-bundle-code", "images", "--labels")
    assert code == 0, err
    rows = list(csv.DictReader(out.splitlines()))
    (bad,) = (row for row in rows if row["grade"] == "unreadable")
    assert (bad["input"], bad["label"], bad["reason"]) == (str(broken.relative_to(fitted)), "", bad["reason"])
    assert bad["reason"] == "expected a readable image, got: an empty or unknown format"
    known = [row for row in rows if row is not bad]
    names = [row["input"].split("/")[1] for row in known]
    wrong = [row["label_name"] != name for row, name in zip(known, names, strict=True)]
    assert [row["true_label"] != row["label"] for row in known] == wrong
    caught = sum(row["grade"] == "suspect" for row, error in zip(known, wrong, strict=True) if error)
    assert f"{len(known)} with true labels, {sum(wrong)} of them wrong: recall {100 * caught / sum(wrong):.1f}%" in err
    assert f"{len(rows)} inputs: " in err
    assert ", 1 unreadable." in err

    listed = [row["input"] for row in rows[:5]]
    monkeypatch.setattr("sys.stdin", listing(*map(os.fsencode, listed)))
    code, out, err = petm("grade", "my.petm", "--trust-bundle-code", "-")
    assert code == 0, err
    assert [row["input"] for row in csv.DictReader(out.splitlines())] == listed


def test_labels_of_another_column_are_another_run(fitted, petm, monkeypatch):
    def broken_off(*arguments, **how):
        yield next(grade_stream(*arguments, **how))
        raise KeyboardInterrupt

    command = ("grade", "my.petm", "--trust-bundle-code", "images", "--labels", "-o", "g.csv", "--batch-size", "4")
    with monkeypatch.context() as patch:
        patch.setattr("petm.grading.grade_files.grade_stream", broken_off)
        code, _, err = petm(*command)
        assert (code, "Interrupted. To continue, run the same command" in err) == (130, True)
    code, _, err = petm(*command, "--label-column", "other")
    assert code == 1
    assert "g.csv.parts" in err
    assert petm(*command)[0] == 0


def test_a_full_disk_behind_standard_output_is_one_line(fitted, petm, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("sys.stdout", Full())
    code, _, err = petm("grade", "my.petm", "--trust-bundle-code", "more")
    assert (code, err.splitlines()[-1].startswith("Error: standard output: ")) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("absent",), 1, "INPUTS: expected"),
        (("more", "-o", "g.txt"), 1, "g.txt: expected"),
        (("more", "-o", "g.csv", "--engine", "ray"), 2, "-o: expected"),
        (("more", "--labels"), 0, "Warning: labels: expected"),
        (("notes.txt",), 1, "notes.txt: expected"),
        (("empty",), 1, "INPUTS: expected"),
    ],
)
def test_grade_says_what_is_wrong_in_one_line(fitted, petm, arguments, code, message):
    (fitted / "notes.txt").write_text("x")
    (fitted / "empty").mkdir()
    got, _, err = petm("grade", "my.petm", "--trust-bundle-code", *arguments)
    assert got == code
    assert message in " ".join(err.split())
    assert not list(fitted.glob("g.*"))


def test_grade_resizes_as_fit_did(fitted, petm):
    (fitted / "colour").mkdir()
    Image.new("RGB", (40, 30), (10, 200, 30)).save(fitted / "colour" / "big.png")
    Image.new("RGB", (50, 30), (10, 200, 30)).save(fitted / "colour" / "wide.png")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, out, err = petm("grade", "my.petm", "--trust-bundle-code", "colour")
    assert code == 0
    assert len(out.splitlines()) == 3
    assert err.count("Warning: resize: ") == 1


def test_unreadable_image_is_named_and_skipped_only_when_asked(place, petm):
    bad = place / "images" / "0" / "broken.png"
    bad.write_bytes(b"no picture")
    code, _, err = petm(*fit_arguments())
    assert code == 1
    assert "broken.png" in err
    assert "--skip-bad" in err
    assert not list(place.glob("my.petm"))

    code, _, err = petm(*fit_arguments("--skip-bad"))
    assert code == 0, err
    assert "skipped: " in err
    assert "1 left out, 300 remain" in err


def test_weights_of_another_network(place, petm):
    save_file({"conv1.weight": torch.zeros(3, 1, 2, 2)}, place / "w.safetensors")
    code, out, err = petm(*fit_arguments())
    assert (code, out) == (1, "")
    assert err.startswith("Error: --weights: w.safetensors ")
    assert "conv1.weight is (3, 1, 2, 2) in the file and (6, 1, 5, 5) in the model" in err
    assert len(err.splitlines()) == 1


def test_one_class_only(place, petm):
    for folder in (place / "images").iterdir():
        if folder.name != "3":
            for image in folder.iterdir():
                image.unlink()
            folder.rmdir()
    code, _, err = petm(*fit_arguments("--classes", "0,1,2,3,4,5,6,7,8,9"))
    assert code == 1
    assert "at least two classes" in err


def test_more_classes_than_the_model_has(place, petm):
    (place / "images" / "zebra").mkdir()
    Image.new("L", (28, 28)).save(place / "images" / "zebra" / "1.png")
    code, _, err = petm(*fit_arguments())
    assert code == 1
    assert "expected labels from 0 to 9, got 10" in err


def test_layers_by_hand(place, petm):
    code, out, err = petm(*fit_arguments("--layers", "fc1=3,fc2=1", "--json"))
    assert code == 0, err
    assert json.loads(out)["adapter"]["layers"] == {"fc1": 3, "fc2": 1}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--layers", "fc9=3"), 1, "layers: expected"),
        (("--layers", "fc1"), 2, "a pair lacks its name or '='"),
        (("--layers", "fc1=two"), 2, "expected layer=rank,..., got 'fc1=two'"),
        (("--size", "0x4"), 2, "expected one or two positive numbers such as 64 or 64x48"),
        (("--max-risk", "2"), 2, "--max-risk: expected"),
        (("--max-risk", "0.1", "--confidence", "2"), 2, "confidence: expected"),
        (("--coverage", "0.5", "--confidence", "0.9"), 2, "confidence: expected"),
        (("--per-class",), 2, "--per-class: expected"),
        (("--max-risk", "0.1"), 2, "calibration: expected"),
        (("--recall", "0.5", "--confidence", "0.9"), 2, "calibration: expected"),
        (("--calibration", "more", "--calibration-from-data"), 2, "--calibration-from-data: expected"),
        (("--max-extra-parameters", "-1"), 2, "--max-extra-parameters: expected"),
        (("--cache-budget", "-1"), 2, "--cache-budget: expected"),
        (("--layers", "fc1=0"), 2, "layers: expected"),
        (("--calibration", "absent"), 1, "calibration: expected"),
        (("--weights", "absent"), 1, "weights: expected"),
        (("-o", "w.safetensors/x/my.petm"), 1, "cannot be written"),
        (("--report", "w.safetensors/x.html"), 1, "cannot be written"),
        (("--adapter", "absent", "--dry-run"), 2, "--dry-run"),
        (("--recipe", "slow"), 2, "recipe: "),
        (("--coverage", "0"), 2, "coverage: expected"),
        (("--max-risk", "0.1", "--recall", "0.9"), 2, "--max-risk, recall: expected"),
        (("--nonsense",), 2, "No such option"),
        (("--config", "absent.toml"), 2, "does not exist"),
    ],
)
def test_bad_options_are_answered_before_any_pass(place, petm, monkeypatch, options, code, message):
    monkeypatch.setattr("petm.models.prediction._of_all", lambda *_: pytest.fail("a pass over the data"))
    got, out, err = petm(*fit_arguments(*options))
    assert (got, out) == (code, "")
    assert message in err
    assert not (place / "my.petm").exists()


@pytest.mark.filterwarnings("default::petm.errors.PetmWarning")
def test_a_guarantee_that_cannot_be_given_warns_in_one_line(place, petm):
    code, out, err = petm(*fit_arguments("--max-risk", "0.001", "--calibration-from-data", "--json"))
    assert code == 0
    assert "Warning: --max-risk: " in err
    threshold = json.loads(out)["threshold"]
    assert threshold["value"] == "-inf"
    assert threshold["samples_needed"] > 1000


def test_config_file(place, petm):
    (place / "run.toml").write_text("max-risk = 0.5\nlayers = {fc1 = 2}\n[other]\nx = 1\n")
    assert "names no option of this verb: other" in petm(*fit_arguments("--config", "run.toml"))[2]
    told = "max-risk = 0.5\nconfidence = 0.9\ncalibration-from-data = true\nlayers = {fc1 = 2}"
    (place / "run.toml").write_text(f"[fit]\n{told}\n")
    code, out, err = petm(*fit_arguments("--config", "run.toml", "--confidence", 0.8, "--json"))
    assert code == 0, err
    manifest = json.loads(out)
    assert manifest["adapter"]["layers"] == {"fc1": 2}
    assert manifest["threshold"]["max_risk"] == 0.5
    assert manifest["threshold"]["confidence"] == 0.8, "the command line wins"
    assert manifest["threshold"]["stated"] is True
    assert manifest["data"]["calibration"]["part_of_data"] is True
    assert "calibration_from_data" in petm("inspect", "my.petm")[1]
    assert "calibration\\_from\\_data" in (place / "my.petm" / "README.md").read_text()
    (place / "run.toml").write_text("max-risk = [")
    assert "is not readable TOML" in petm(*fit_arguments("--config", "run.toml"))[2]


def test_a_wrong_target_needs_no_pytorch(tmp_path):
    code = (
        "import sys; from petm.cli import main; sys.argv = sys.argv[1:]\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    options = ("petm", "fit", "--model", "a:b", "--data", tmp_path, "-o", tmp_path / "my.petm")
    for wrong in (("--max-risk", "5"), ("--coverage", "0"), ("--layers", "fc1=0"), ("--report", f"{__file__}/r.html")):
        done = subprocess.run([sys.executable, "-c", code, *options, *wrong], capture_output=True, text=True)
        assert done.returncode in (1, 2)
        assert done.stderr.endswith("False\n"), done.stderr


def test_calibration_of_other_classes_costs_no_training(place, petm, monkeypatch, digits):
    monkeypatch.setattr("petm.fitting.preflight", lambda *_: pytest.fail("a pass over the data"))
    images = digits[2].inputs(range(40)).numpy()
    labels = digits[2].labels[:40].numpy()
    for name, entries in (
        ("shape", {"images": images[..., :20], "labels": labels}),
        ("unlabelled", {"images": images}),
        ("label", {"images": images, "labels": labels + 5}),
    ):
        np.savez(place / f"{name}.npz", **entries)
        code, _, err = petm(*fit_arguments("--calibration", f"{name}.npz"))
        assert (code, "Error: " in err) == (1, True), name
        assert not list(place.glob("my.petm*"))


def test_a_full_disk_is_found_before_training(place, petm, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr("petm.fitting.preflight", lambda *_: pytest.fail("a pass over the data"))
    code, _, err = petm(*fit_arguments("--include-base"))
    assert code == 1
    assert "my.petm: expected room for" in err


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "branch"), [("auto", "adapters"), ("paper", "teacher")])
def test_a_dry_run_trains_nothing_and_says_what_the_fit_will_take(place, petm, recipe, branch):
    code, out, err = petm(*fit_arguments("--recipe", recipe, "--dry-run", "--json"))
    assert code == 0, err
    told = json.loads(out)
    assert told["branch"] == branch
    assert told["seconds"] == pytest.approx(sum(stage["seconds"] for stage in told["stages"]))
    assert not list(place.glob("my.petm*"))
    code, out, err = petm(*fit_arguments("--recipe", recipe, "--dry-run"))
    assert code == 0, err
    assert branch in out
    code, out, err = petm(*fit_arguments("--recipe", recipe, "--json"))
    assert code == 0, err
    adapter = json.loads(out)["adapter"]
    if branch == "adapters" and adapter["layers"]:  # something beat the softmax, and it needs them
        assert (told["layers"], told["adapter_parameters"]) == (adapter["layers"], adapter["parameters"])
        assert told["split_point"]["module"] == adapter["split_point"]["module"]
    assert told["adapter_bytes"] == 4 * told["adapter_parameters"]


def test_damaged_bundle(fitted, petm):
    adapter = fitted / "my.petm" / "adapter_model.safetensors"
    content = bytearray(adapter.read_bytes())
    content[-1] ^= 1
    adapter.write_bytes(content)
    code, out, err = petm("grade", "my.petm", "--trust-bundle-code", "more")
    assert (code, out) == (1, "")
    assert "adapter_model.safetensors has changed since it was written" in err


@pytest.mark.slow
def test_interrupt_exits_130_and_resume_gives_the_same_result(fitted, bundle, petm, monkeypatch):
    import petm.training.loop as training

    place = fitted
    expected = petm("grade", "my.petm", "--trust-bundle-code", "more")[1]
    step = training._Run._step

    def interrupted(*more):
        shutil.rmtree(place / "my.petm")
        count = 0

        def interrupted_step(self, *arguments):
            nonlocal count
            count += 1
            if count == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return step(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(training._Run, "_step", interrupted_step)
            code, out, err = petm(*fit_arguments(*more))
        assert (code, out) == (130, "")
        assert "--resume" in err
        assert (place / "my.petm.run" / "checkpoints").is_dir()

    interrupted("--include-base")
    code, _, err = petm(*fit_arguments("--include-base", "--resume"))
    assert code == 0, err
    assert petm("grade", "my.petm", "--trust-bundle-code", "more")[1] == expected

    interrupted()
    code, _, err = petm(*fit_arguments("--resume", "--seed", 1))
    assert (code, "seed" in err) == (1, True), "what training depends on may not differ"
    others = ("--include-base", "--coverage", 0.7, "--report", "r.html")
    code, _, err = petm(*fit_arguments("--resume", *others))
    assert code == 0, err
    assert (place / "r.html").is_file()
    adapters = [folder / "adapter_model.safetensors" for folder in (place / "my.petm", bundle)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_missing_mnist_says_what_to_do(tmp_path, petm):
    code, _, err = petm("reproduce", "--dataset", "mnist", "--data-dir", tmp_path, "-o", tmp_path / "run")
    assert code == 1
    assert "--download" in err or "download" in err
    assert not (tmp_path / "run").exists()


def test_grades_without_suspects_or_without_trusted_are_judged_without_nan(capfd):
    threshold = risk_threshold(np.linspace(0, 1, 2000), np.zeros(2000, bool), max_risk=0.01)
    for trusted in (True, False):
        none = np.zeros(4, int)
        grades = Grades(none, none, np.full(4, 0.1), np.full(4, 0.1), np.full(4, trusted))
        summary = Summary(labelled=True)
        summary.add(grade_table(["x"] * 4, range(4), grades, ("a", "b"), true_labels=[0, 0, 0, 1]))
        _report(summary, threshold, None, as_json=False)
        told = capfd.readouterr().err
        assert "nan" not in told
        assert f"precision {'–' if trusted else '25.0%'}, AUROC" in told
        assert f"Here {'25.00% (' if trusted else '– are'}" in told


def test_inspect_shows_what_a_graph_holds(fitted, petm):
    assert petm("export", "my.petm", "-o", "my.onnx", "--trust-bundle-code")[0] == 0
    told = json.loads(petm("inspect", "my.petm", "--json")[1])
    code, out, err = petm("inspect", "my.onnx")
    assert (code, err) == (0, "")
    assert "float32 of shape (N, 1, 28, 28)" in out
    assert f"Grading takes {1 + told['measured']['extra_operations']:.2f} ×" in out
    assert f"Grading takes {1 + told['measured']['extra_operations']:.2f} ×" in petm("inspect", "my.petm")[1]
    assert ", ".join(told["model"]["classes"]) in out
    graph = json.loads(petm("inspect", "my.onnx", "--json")[1])
    assert graph["measured"] == told["measured"]
    assert graph["threshold"] == told["threshold"]


@pytest.mark.parametrize("verb", ["", *commands.commands])
def test_help(petm, verb):
    code, out, _ = petm(*verb.split(), "--help")
    assert code == 0
    assert out.startswith("Usage: petm")
    if verb:
        assert "Example: petm" in out


def test_a_list_with_paths_of_which_nothing_can_be_read(fitted, petm, monkeypatch):
    good = sorted((fitted / "more").iterdir())
    odd = os.fsencode(fitted) + b"/\xff.png"
    shutil.copy(good[0], odd)
    os.mkfifo(fitted / "pipe.png")
    (fitted / "loop.png").symlink_to("loop.png")
    bad = [b"gone.png", b"pipe.png", b"loop.png", b"no.kind", b"x" * 5000, b"a\0b.png", b"[.png"]
    monkeypatch.setattr("sys.stdin", listing(os.fsencode(good[0]), odd, *bad, os.fsencode(good[1])))
    code, out, err = petm("grade", "my.petm", "--trust-bundle-code", "-")
    assert code == 0, err
    rows = list(csv.DictReader(io.StringIO(out.replace("\0", "\\0"))))
    assert [row["grade"] == "unreadable" for row in rows] == [False, False, *[True] * len(bad), False]
    assert [row["input"] for row in rows[2:5]] == ["gone.png", "pipe.png", "loop.png"]
    assert rows[1]["label"] == rows[0]["label"]
    assert rows[1]["input"].endswith("/\\xff.png")
    assert all("expected" in row["reason"] for row in rows[2:-1])


def test_nothing_that_can_be_read_is_an_error_with_the_commonest_reason(fitted, petm):
    (fitted / "bad").mkdir()
    for number in range(3):
        (fitted / "bad" / f"{number}.png").write_bytes(b"none")
    (fitted / "bad" / "3.png").symlink_to("nowhere")
    code, _, err = petm("grade", "my.petm", "--trust-bundle-code", "bad", "-o", "g.csv")
    assert code == 1
    assert err.splitlines()[-1].startswith("Error: INPUTS: expected one that can be read, got 4 that cannot, mostly: ")
    assert "an empty or unknown format" in err.splitlines()[-1]
    assert len((fitted / "g.csv").read_text().splitlines()) == 5
    assert petm("grade", "my.petm", "--trust-bundle-code", "bad", "--json")[0] == 1


def test_an_output_among_the_inputs_is_refused(fitted, petm):
    np.savez("x.npz", images=np.zeros((3, 28, 28), np.uint8))
    (fitted / "link").symlink_to("more")
    (fitted / "classes").mkdir()
    (fitted / "classes" / "a").symlink_to(fitted / "more")
    os.link("x.npz", "y.csv")
    (fitted / "z.csv").symlink_to("x.npz")
    before = sorted(map(str, fitted.rglob("*")))
    for given, output in (
        ("more", "more/g.csv"), ("more", "link/g.csv"), ("link", "more/g.csv"), ("classes", "more/deep/g.csv"),
        ("x.npz", "y.csv"), ("x.npz", "z.csv"), ("*.npz", "z.csv"), (".", "g.csv"), ("x.npz", "my.petm/g.csv"),
    ):  # fmt: skip
        code, _, err = petm("grade", "my.petm", "--trust-bundle-code", given, "-o", output, "--overwrite")
        assert (code, "Error: --output: expected a place apart" in err) == (1, True), (
            given,
            output,
            err,
        )
    assert sorted(map(str, fitted.rglob("*"))) == before
    assert petm("grade", "my.petm", "--trust-bundle-code", "more", "-o", "more.csv")[0] == 0
