"""The plain form of an image processor: equal to the processor on any image, or none."""

import json
import sys

import numpy as np
import onnx
import pytest
from PIL import Image

import hf_folders
from networks import randomise
from petm.adapter.model import attach_adapter
from petm.cli import main
from petm.grading import onnx_export
from petm.grading.grader import Grader
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.models.hf_processors import load_processor, plain_form
from petm.models.loading import load_model
from petm.selective.thresholds import DISAGREEMENT


def processor_with(folder, *, channels=3, **settings):
    hf_folders.save(folder, hf_folders.vit(channels=channels), hf_folders.image_processor(**settings))
    return load_processor(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"resample": 3, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"size": {"height": 12, "width": 20}, "resample": 1},
        {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    ],
)
def test_plain_processors(tmp_path, settings):
    processor = processor_with(tmp_path / "vit", **settings)
    form = plain_form(processor)
    assert (form.channels, *form.size) == processor.shape
    assert form.resample == {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}[settings.get("resample", 2)]
    assert form.std == tuple(settings.get("image_std", [0.5] * 3 if settings.get("do_normalize", True) else [1.0] * 3))
    generator = np.random.default_rng(5)
    for shape in ((16, 16, 3), (100, 31, 3), (5, 64, 3), (40, 40)):
        image = Image.fromarray(generator.integers(0, 256, shape, np.uint8))
        span = processor.value_range[1] - processor.value_range[0]
        np.testing.assert_allclose(form(image), processor.prepare(image), rtol=0, atol=1e-5 * max(1, span))


def test_grey(tmp_path):
    processor = processor_with(tmp_path / "vit", channels=1, image_mean=[0.5], image_std=[0.25])
    form = plain_form(processor)
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (30, 40, 3), np.uint8))
    assert form.channels == 1
    np.testing.assert_allclose(form(image), processor.prepare(image), rtol=0, atol=1e-5)


def test_a_processor_that_crops_has_none(tmp_path):
    """It makes images of one size as well, but not by resizing alone."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    made = CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16})
    hf_folders.save(tmp_path / "vit", hf_folders.vit(), made)
    processor = load_processor(tmp_path / "vit")
    assert processor.shape == (3, 16, 16)
    assert plain_form(processor) is None


# in the metadata of a graph


def test_a_graph_has_the_form_of_its_processor(tmp_path):
    processor = processor_with(tmp_path / "vit", resample=3)
    assert onnx_export._preprocessing(InputOrigin(processor="vit"), processor) == {
        "convert_first": True,
        "size": (16, 16),
        "channels": 3,
        "resample": "bicubic",
        "scale": pytest.approx(1 / 255),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }
    assert onnx_export._preprocessing(InputOrigin(processor="vit"), None) == {"needs_processor": "vit"}


def test_a_graph_without_a_processor_has_the_form_that_petm_reads():
    assert onnx_export._preprocessing(InputOrigin((28, 28), 1), None) == {
        "convert_first": False,
        "size": (28, 28),
        "channels": 1,
        "resample": "bilinear",
        "scale": pytest.approx(1 / 255),
        "mean": (0.0,),
        "std": (1.0,),
        "resize": "squeeze",
    }
    assert onnx_export._preprocessing(InputOrigin(), None) is None, "of inputs that are no images"


def preprocessing(path):
    entries = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    return entries["petm.preprocessing"], entries["petm.value_range"]


@pytest.mark.slow
def test_petm_export_finds_the_processor(tmp_path, monkeypatch, capfd):
    """In the folder that the bundle names or in --processor, and refuses another one; no example is needed."""
    monkeypatch.chdir(tmp_path)
    processor = processor_with(tmp_path / "vit")
    adapted = randomise(attach_adapter(load_model("hf:vit"), {"classifier": 2}))
    inputs = InputOrigin(processor="vit", fingerprint=processor.fingerprint)
    origin = Origin(ModelOrigin("hf:vit", classes=hf_folders.KINDS), inputs)
    Grader(adapted, DISAGREEMENT, origin=origin).save("my.petm")

    def export(*arguments):
        monkeypatch.setattr(sys, "argv", ["petm", "export", "my.petm", *arguments])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
        return code, capfd.readouterr().err

    assert export("-o", "one.onnx") == (0, "")
    form, span = preprocessing("one.onnx")
    assert (form["convert_first"], form["size"], form["mean"]) == (True, [16, 16], [0.5] * 3)
    assert span == pytest.approx([-1, 1])
    hf_folders.save(tmp_path / "other", hf_folders.vit(), hf_folders.image_processor(resample=3))
    code, err = export("-o", "two.onnx", "--processor", "other")
    assert code == 1
    assert "processor: " in err
