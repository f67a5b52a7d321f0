"""Inputs that cannot be those of the fit are refused, doubtful ones are named, and others pass."""

import json
import warnings
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from image_files import write_images
from petm._internal.records import Record
from petm.adapter.model import attach_adapter
from petm.cli.graders import reader_of
from petm.data.base import Data, TensorData
from petm.data.image_data import ImageData
from petm.data.opening import open_data
from petm.data.sources import open_sources
from petm.errors import BundleError, DataError, PetmWarning
from petm.fitting import fit
from petm.grading.grader import Grader, fit_grader, load
from petm.grading.grades import check_inputs
from petm.grading.input_profile import InputCheck, InputProfile, describe_inputs
from petm.grading.onnx_export import export_onnx
from petm.grading.onnx_grader import OnnxGrader
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.serving.limits import Limits, Unreadable
from petm.serving.reading import reader_for
from petm.sklearn import GradedClassifier

MEAN, STD = 0.3, 0.32


class Standardised(nn.Module):
    """The digits' network for inputs from which `MEAN` was subtracted, over `STD`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x * STD + MEAN)
        return logits


def whole(data: Data) -> Tensor:
    x = data.inputs(range(len(data)))
    assert isinstance(x, Tensor)
    return x


def standardised(data: Data) -> TensorData:
    return TensorData((whole(data) - MEAN) / STD, data.labels, source="standardised")


@pytest.fixture
def unit(model: nn.Module, digits: tuple[Data, ...]) -> Grader:
    origin = Origin(ModelOrigin("networks:TinyCNN"), InputOrigin((28, 28), 1))
    return fit_grader(attach_adapter(model, {"fc1": 2}), digits[1], origin=origin)


@pytest.fixture
def other(model: nn.Module, digits: tuple[Data, ...]) -> Grader:
    """Fitted on standardised arrays, as `petm fit` does with an .npz file."""
    origin = Origin(ModelOrigin("networks:TinyCNN"), InputOrigin((28, 28), 1))
    return fit_grader(attach_adapter(Standardised(model), {"inner.fc1": 2}), standardised(digits[1]), origin=origin)


def test_the_profile_is_that_of_the_inputs_and_travels_with_the_bundle(
    unit: Grader, model: nn.Module, digits: tuple[Data, ...], tmp_path: Path
) -> None:
    x = whole(digits[1]).double()
    found = unit.origin.inputs.profile
    assert found is not None
    assert (found.samples, found.shape, found.low, found.high) == (179, (1, 28, 28), x.min(), x.max())
    assert found.mean == pytest.approx((x.mean().item(),))
    assert found.deviation == pytest.approx((x.std(correction=0).item(),))
    assert found.means == pytest.approx((x.mean((1, 2, 3)).min().item(), x.mean((1, 2, 3)).max().item()))
    unit.save(tmp_path / "g.petm")
    assert load(tmp_path / "g.petm", model).origin.inputs == unit.origin.inputs


def test_image_files_for_a_fit_on_standardised_arrays(other: Grader, digits: tuple[Data, ...], tmp_path: Path) -> None:
    write_images(digits[2], range(3), tmp_path, flat=True)
    rows = next(open_sources([tmp_path])[0].rows(0, 9, 9))
    readings = reader_of(other.origin.inputs, False).read(rows)
    assert readings.inputs is None
    assert all("expected arrays like those in the fit" in str(reason) for reason in readings.reasons)
    with pytest.raises(BundleError, match=r"^bundle: "):
        reader_for(other.origin.inputs, Limits())
    for pixels in (open_data(tmp_path), (whole(digits[2]) * 255).byte(), (whole(digits[2]) * 255).byte().numpy()):
        with pytest.raises(DataError, match="expected inputs prepared as for the fit"):
            other.grade(pixels)
    assert len(other.grade(standardised(digits[2]))) == len(digits[2])


def test_the_same_files_with_mean_and_std_are_graded_like_the_arrays(
    other: Grader, digits: tuple[Data, ...], tmp_path: Path
) -> None:
    inputs = replace(other.origin.inputs, mean=(MEAN,), std=(STD,))
    write_images(digits[2], range(40), tmp_path, flat=True)
    rows = next(open_sources([tmp_path])[0].rows(0, 99, 99))
    read = reader_of(inputs, False).read(rows).inputs
    served = reader_for(inputs, Limits())
    expected = other.grade(standardised(digits[2].subset(range(40))))
    assert np.array_equal(other.grade_batch(read).labels, expected.labels)
    content = [Path(row.path).read_bytes() for row in rows]
    assert np.array_equal(
        other.grade_batch(served.collate([served.read(each) for each in content])).labels, expected.labels
    )
    data = open_data(tmp_path, mean=(MEAN,), std=(STD,))
    assert isinstance(data, ImageData)
    assert np.array_equal(other.grade(data).labels, expected.labels)
    assert InputOrigin.from_json(Record(json.loads(json.dumps(vars(inputs) | {"profile": None})), "x")) == replace(
        inputs, profile=None
    )


@pytest.mark.parametrize("count", [1, 20])
def test_floats_to_255_for_a_fit_on_0_to_1(unit: Grader, other: Grader, digits: tuple[Data, ...], count: int) -> None:
    pixels = whole(digits[2])[:count] * 255
    for grader in (unit, other):
        for x in (pixels, pixels.numpy(), TensorData(pixels)):
            with pytest.raises(DataError, match="expected inputs like those of the fit"):
                grader.grade(x)
        with pytest.raises(DataError, match="expected inputs like those of the fit"):
            grader.grade_batch(pixels)


def test_standardised_and_plain_floats_are_not_mixed_up(unit: Grader, other: Grader, digits: tuple[Data, ...]) -> None:
    with pytest.raises(DataError, match="expected inputs like those of the fit"):
        unit.grade(standardised(digits[2]))
    with pytest.raises(DataError, match="expected inputs like those of the fit"):
        other.grade(whole(digits[2]))


def test_pixels_divided_twice_are_doubtful_and_said_once(unit: Grader, digits: tuple[Data, ...]) -> None:
    with pytest.warns(PetmWarning, match=r"^inputs: ") as said:
        _ = [unit.grade_batch(whole(digits[2])[:20] / 255) for _ in range(3)]
    assert len(said) == 1


@pytest.mark.parametrize("kind", [torch.Tensor, np.ndarray])
def test_the_whole_of_every_batch_is_compared(
    unit: Grader, other: Grader, digits: tuple[Data, ...], kind: type
) -> None:
    x = whole(digits[2])
    for grader, right, wrong in ((unit, x, x * 255), (other, standardised(digits[2]).inputs(range(len(x))), x)):
        assert isinstance(right, Tensor)
        early = InputCheck(grader.origin.inputs.profile)
        for start in range(0, 160, 40):
            early(right[start : start + 40] if kind is Tensor else right[start : start + 40].numpy())
        mixed = torch.cat([right[:70], (wrong if grader is unit else wrong * 255)[:90]])
        for check, batch in ((early, wrong[:40]), (InputCheck(grader.origin.inputs.profile), mixed)):
            with pytest.raises(DataError, match=r"^inputs: expected inputs like those of the fit"):
                check(batch if kind is Tensor else batch.numpy())
        early((wrong * 255)[:1])  # a single one, behind the first


def test_channels_in_the_last_dimension() -> None:
    x = np.random.default_rng(0).random((20, 3, 8, 8), np.float32)
    check = InputCheck(InputProfile.of(x))
    check(x)
    with pytest.raises(DataError, match="channels first"):
        InputCheck(InputProfile.of(x))(x.transpose(0, 2, 3, 1))


def test_no_false_alarm_for_single_dark_bright_constant_or_chosen_inputs(
    unit: Grader, other: Grader, digits: tuple[Data, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = whole(digits[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for grader, prepare in ((unit, lambda x: x), (other, lambda x: (x - MEAN) / STD)):
            inputs = grader.origin.inputs
            for image in (x[:1] * 0.05, x[:1] * 0.05 + 0.95, torch.zeros(1, 1, 28, 28), torch.ones(300, 1, 28, 28)):
                check_inputs(TensorData(prepare(image)), inputs)
            for digit in range(10):
                check_inputs(TensorData(prepare(x[digits[2].labels == digit])), inputs)
            for _ in range(300):
                count = int(torch.randint(1, 70, (), generator=generator))
                rows = torch.randint(len(x), (count,), generator=generator)
                check_inputs(TensorData(prepare(x[rows])), inputs)


def test_no_false_alarm_for_features_of_heavy_tails() -> None:
    random = np.random.default_rng(0)
    profile = InputProfile.of(random.standard_t(3, (300, 20)).astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(500):
            x = random.standard_t(3, (int(random.integers(1, 40)), 20)).astype(np.float32)
            x[0, 0] = 1e6  # one wild value
            InputCheck(profile)(x)


def test_a_classifier_refuses_them_too(model: nn.Module, digits: tuple[Data, ...]) -> None:
    x = whole(digits[0]).numpy()
    classifier = GradedClassifier(model).fit(x, digits[0].labels.numpy())
    for answer in (classifier.predict, classifier.predict_proba, classifier.grade):
        with pytest.raises(DataError, match=r"^X: "):
            answer(x[:30] * 255)


def test_a_calibration_set_prepared_otherwise_is_refused(model: nn.Module, digits: tuple[Data, ...]) -> None:
    other = TensorData(whole(digits[1]) * 255, digits[1].labels, source="mine")
    with pytest.raises(DataError, match=r"^calibration \(mine\): "):
        fit(model, digits[0], calibration=other)


@pytest.mark.slow
def test_a_graph_compares_them_and_tells_how_images_are_prepared(
    other: Grader, digits: tuple[Data, ...], tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    export_onnx(other, tmp_path / "plain.onnx")
    graph = OnnxGrader(tmp_path / "plain.onnx")
    assert graph.origin.inputs == other.origin.inputs
    x = whole(digits[2])
    for wrong in (x.numpy(), (x * 255).numpy(), (x * 255).byte().numpy(), (x * 255).byte()):
        with pytest.raises(DataError, match=r"^inputs: "):
            graph.grade(wrong)
    assert len(graph.grade(standardised(digits[2]))) == len(x)
    with pytest.raises(DataError, match="expected at least one sample"):
        graph.grade(x[:0].numpy())
    with pytest.raises(DataError, match=r"^inputs: "):
        graph.grade_batch((x * 255).numpy())
    told = replace(other.origin, inputs=replace(other.origin.inputs, mean=(MEAN,), std=(STD,), resize="crop"))
    export_onnx(replace(other, origin=told), tmp_path / "told.onnx")
    entries = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "told.onnx").metadata_props}
    prepared = entries["petm.preprocessing"]
    assert (prepared["mean"], prepared["std"], prepared["resize"]) == ([MEAN], [STD], "crop")
    assert entries["petm.value_range"] == pytest.approx([-MEAN / STD, (1 - MEAN) / STD])
    entries = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "plain.onnx").metadata_props}
    assert entries["petm.preprocessing"] is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("shape", [1.5]), ("means", [1]), ("mean", []), ("samples", 0), ("within_unit", 2), ("low", "a"), ("shape", [-1])],
)
def test_a_forged_profile_is_refused(name: str, value: object) -> None:
    profile = InputProfile.of(np.random.default_rng(0).random((20, 3, 8, 8), np.float32))
    held = json.loads(json.dumps(vars(profile)))
    assert InputProfile.from_json(Record(held, "x")) == profile
    with pytest.raises(BundleError, match=r"^x"):
        InputProfile.from_json(Record(held | {name: value}, "x"))


def test_texts_have_no_profile_and_a_large_set_is_sampled() -> None:
    x = torch.rand(2000, 1, 2, 2)
    found = describe_inputs(TensorData(x))
    assert found is not None
    assert found.samples == 512


def test_an_image_with_content_in_alpha_is_refused_by_the_service_with_its_reason() -> None:
    file, alpha = BytesIO(), np.zeros((8, 8, 4), np.uint8)
    alpha[..., :3], alpha[2:5, 2:5, 3] = 255, 255
    Image.fromarray(alpha).save(file, "PNG")
    with pytest.raises(Unreadable, match="transparency alone"):
        reader_for(InputOrigin((8, 8), 1), Limits()).read(file.getvalue())
