"""The data that a command names: several paths as one, and what is left out of them."""

import csv
import json
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from PIL import Image

from image_files import write_images
from petm.cli import main, options
from petm.cli.inputs import labelled, open_inputs, open_labelled
from petm.cli.options import class_names
from petm.data.base import Data, Joined, TensorData
from petm.data.labels import UNLABELLED
from petm.errors import ArgumentError, DataError
from petm.grading.provenance import InputOrigin
from petm.models.loading import save_weights


def folder(path: Path, **classes: int) -> Path:
    """Grey images of 4 by 5 pixels, some of each class."""
    for name, count in classes.items():
        (path / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (5, 4), 10 * number).save(path / name / f"{number}.png")
    return path


def test_several_paths_are_joined_with_one_form_and_one_order_of_classes(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", cat=2, dog=1)
    two = folder(tmp_path / "two", dog=2)
    Image.new("RGB", (9, 9), (255, 0, 0)).save(two / "dog" / "colour.png")
    np.savez(tmp_path / "three.npz", x=np.full((2, 4, 5), 51, np.uint8), y=[0, 1])
    data = open_inputs([one, two, tmp_path / "three.npz"], InputOrigin(resize="squeeze"), skip_bad=False)
    assert isinstance(data, Joined)
    assert (data.classes, data.labels.tolist()) == (("cat", "dog"), [0, 0, 1, 1, 1, 1, 0, 1])
    images = data.inputs(range(8))
    assert images.shape == (8, 1, 4, 5)
    assert images[7].unique().tolist() == pytest.approx([0.2])
    assert data.name(3) == str(two / "dog" / "0.png")
    alone = open_inputs([one], InputOrigin(), skip_bad=False)
    assert (len(alone), alone.classes) == (3, ("cat", "dog"))


def test_what_is_left_out_is_named_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = folder(tmp_path / "one", cat=2, dog=2)
    (place / "cat" / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png: expected a readable image.*--skip-bad"):
        open_inputs([place], InputOrigin(), skip_bad=False).inputs(range(5))
    data = open_inputs([place], InputOrigin(), skip_bad=True)
    assert len(data) == 4
    assert f"skipped: {place / 'cat' / 'bad.png'}: expected a readable image" in capsys.readouterr().err


def test_samples_without_a_label_are_refused_by_name_or_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    data: Data = TensorData(torch.arange(3.0).view(3, 1), torch.tensor([1, UNLABELLED, 0]), source="mine")
    with pytest.raises(DataError, match=r"1: expected a label, got none\. .*--skip-bad"):
        labelled(data, skip_bad=False)
    assert labelled(data, skip_bad=True).labels.tolist() == [1, 0]
    assert "mine: 1 left out, 2 remain." in capsys.readouterr().err
    bare = TensorData(torch.zeros(2, 1))
    assert labelled(bare, skip_bad=True) is bare, "whether labels are needed at all, the caller knows"


def test_labelled_data_of_one_order_of_classes(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "one", cat=1, dog=1), folder(tmp_path / "two", cat=1)
    how = {"skip_bad": False, "trust_remote_code": False, "label_column": None}
    data = open_labelled([one, two], InputOrigin(), "networks:TinyCNN", ("dog", "cat"), **how)  # type: ignore[arg-type]
    assert (data.classes, data.labels.tolist()) == (("dog", "cat"), [1, 0, 1])


def test_names_of_classes_are_matched_and_may_hold_commas(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", **{"a": 1, "b, c": 2, "d": 1})
    how = {"skip_bad": False, "trust_remote_code": False, "label_column": None}
    names = class_names('d,"b, c",a')
    data = open_labelled([one], InputOrigin(), "networks:TinyCNN", names, **how)  # type: ignore[arg-type]
    assert (data.classes, data.labels.tolist()) == (("d", "b, c", "a"), [2, 1, 1, 0])
    with pytest.raises(ArgumentError, match=r"classes: "):
        class_names("a,a,d")


@pytest.mark.slow
def test_data_and_calibration_may_be_repeated(
    tmp_path: Path,
    model: torch.nn.Module,
    digits: tuple[Data, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_weights(model, tmp_path / "w.safetensors")
    for name, rows in (("a", range(150)), ("b", range(150, 300)), ("c", range(300, 400)), ("d", range(400, 500))):
        write_images(digits[0], rows, tmp_path / name)
    arguments = ["fit", "--model", "networks:TinyCNN", "--weights", "w.safetensors", "--data", "a", "--data", "b"]
    arguments += ["--calibration", "c", "--calibration", "d", "--recipe", "paper", "-o", "my.petm", "--json"]
    monkeypatch.setattr(sys, "argv", ["petm", *arguments])
    main()
    told = json.loads(capfd.readouterr().out)["data"]
    assert {part["source"]: part["samples"] for part in told.values()} == {"a + b": 300, "c + d": 200}


def test_mean_std_and_crop_reach_the_model_in_fit_and_grade(
    tmp_path: Path,
    model: torch.nn.Module,
    digits: tuple[Data, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_weights(model, tmp_path / "w.safetensors")
    write_images(digits[0], range(300), tmp_path / "train")
    write_images(digits[2], range(60), tmp_path / "more", flat=True)
    for path in (*tmp_path.glob("train/*/*.png"), *tmp_path.glob("more/*.png")):
        wide = Image.new("L", (56, 28), 255)  # the digit in the middle, and white that cropping cuts off
        wide.paste(Image.open(path), (14, 0))
        wide.save(path)
    (tmp_path / "run.toml").write_text('mean = [0.3]\nresize = "crop"')

    def petm(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["petm", *arguments])
        main()
        return capfd.readouterr()

    fit = ("fit", "--model", "networks:StandardisedCNN", "--weights", "w.safetensors", "--data", "train")
    out, err = petm(*fit, "--size", "28", "--std", "0.32", "--config", "run.toml", "-o", "my.petm", "--json")
    told = json.loads(out)["inputs"]
    assert (told["mean"], told["std"], told["resize"], told["size"]) == ([0.3], [0.32], "crop", [28, 28])
    assert "Warning" not in err
    petm("grade", "my.petm", "--trust-bundle-code", "more", "-o", "grades.csv")
    labels = [int(row["label"]) for row in csv.DictReader((tmp_path / "grades.csv").read_text().splitlines())]
    with torch.no_grad():
        expected = model(digits[2].inputs(range(60))).argmax(1).tolist()
    assert labels == expected

    np.savez(tmp_path / "bytes.npz", x=np.full((3, 28, 28), 9, np.uint8))
    np.savez(tmp_path / "wild.npz", x=255 * digits[2].inputs(range(60)).numpy())
    for name, reason in (("bytes", "expected floats"), ("wild", "expected inputs like those of the fit")):
        with pytest.raises(SystemExit) as ended:
            petm("grade", "my.petm", "--trust-bundle-code", f"{name}.npz")
        assert ended.value.code == 1
        assert reason in capfd.readouterr().err


def test_one_text_in_a_config_file_is_one_of_a_repeatable_option(tmp_path: Path) -> None:
    seen = []

    @click.command()
    @click.option("--data", multiple=True)
    @options.config
    def verb(data: tuple[str, ...]) -> None:
        seen.append(data)

    for text, expected in (('data = "abc"', ("abc",)), ('data = ["a", "b"]', ("a", "b"))):
        (tmp_path / "run.toml").write_text(text)
        verb(["--config", str(tmp_path / "run.toml")], standalone_mode=False)
        assert seen.pop() == expected
