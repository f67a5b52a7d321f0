import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from networks import TinyCNN, images, randomise, seeded
from petm.adapter.model import AdaptedModel, attach_adapter, views_alone
from petm.data.base import Data, TensorData
from petm.errors import ArgumentError, BundleError, DataError, ModelError, PetmWarning
from petm.grading.grader import Grader, Grades, fit_grader, load
from petm.grading.manifest import read_manifest
from petm.grading.provenance import DataOrigin, InputOrigin, ModelOrigin, Origin, describe_data, library_versions
from petm.models.scores import opposition
from petm.selective.metrics import expected_calibration_error
from petm.selective.targets import Coverage, Disagreement, MaxRisk, Recall, Target
from petm.selective.thresholds import DISAGREEMENT, Threshold, risk_threshold


@pytest.fixture
def adapted(model: nn.Module) -> AdaptedModel:
    return randomise(attach_adapter(model, {"fc1": 4, "fc2": 5}), scale=0.25)


def opinions(adapted: AdaptedModel, data: Data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, second opinions and suspicion by plain forwards."""
    with torch.no_grad():
        x = data.inputs(range(len(data)))
        base, second = adapted(x, alpha=0), adapted(x)
    return base.argmax(1).numpy(), second.argmax(1).numpy(), opposition(base, second).numpy()


# grade


def test_grades_of_a_batch(adapted: AdaptedModel, digits: tuple[Data, ...]) -> None:
    data = digits[2].subset(range(100)).in_memory()
    labels, second, suspicion = opinions(adapted, data)
    grades = Grader(adapted, DISAGREEMENT).grade(data.inputs(range(100)))
    assert isinstance(grades, Grades)
    np.testing.assert_array_equal(grades.labels, labels)
    np.testing.assert_array_equal(grades.second, second)
    np.testing.assert_allclose(grades.suspicion, suspicion, atol=1e-6)
    np.testing.assert_array_equal(grades.trusted, labels == second)
    assert 0 < grades.trusted.sum() < 100
    assert (grades.labels.dtype, grades.suspicion.dtype, grades.trusted.dtype) == (np.int64, np.float64, bool)
    assert len(grades) == 100
    assert repr(grades).splitlines()[0] == f"Grades(100 samples, {(labels == second).sum()} trusted)"


def test_data_and_batches_are_graded_alike(adapted: AdaptedModel, digits: tuple[Data, ...]) -> None:
    grader = Grader(adapted, DISAGREEMENT)
    data = digits[2].subset(range(50))
    found, expected = grader.grade(data, batch_size=20), grader.grade(data.inputs(range(50)), batch_size=20)
    np.testing.assert_array_equal(found.suspicion, expected.suspicion)


def test_numpy_is_graded_as_tensors_are(adapted: AdaptedModel) -> None:
    grader = Grader(adapted, DISAGREEMENT)
    np.testing.assert_array_equal(grader.grade(images(10).numpy()).suspicion, grader.grade(images(10)).suspicion)


def test_bytes_are_divided_by_255(adapted: AdaptedModel) -> None:
    pixels = (images(10) * 255).to(torch.uint8)
    grader = Grader(adapted, DISAGREEMENT)
    np.testing.assert_array_equal(grader.grade(pixels).suspicion, grader.grade(pixels.float() / 255).suspicion)


def test_suspicion_on_the_threshold_is_suspect(adapted: AdaptedModel) -> None:
    suspicion = Grader(adapted, DISAGREEMENT).grade(images(9)).suspicion
    grades = Grader(adapted, Threshold(float(np.sort(suspicion)[4]), "by hand")).grade(images(9))
    assert grades.trusted.sum() == 4
    assert not Grader(adapted, Threshold(-math.inf, "by hand")).grade(images(9)).trusted.any()
    assert Grader(adapted, Threshold(math.inf, "by hand")).grade(images(9)).trusted.all()


def test_inputs_that_cannot_be_graded(adapted: AdaptedModel) -> None:
    grader = Grader(adapted, DISAGREEMENT)
    broken = images(3)
    broken[1, 0, 5, 5] = math.nan
    with pytest.raises(DataError, match=r"inputs: .* NaN or infinity in 1 of 3 samples \(the first is sample 1\)"):
        grader.grade(broken)
    with pytest.raises(DataError, match=r"inputs: "):
        grader.grade(images(0))
    with pytest.raises(DataError, match=r"inputs: expected inputs of dtype float or uint8, got torch.int64"):
        grader.grade(torch.zeros(2, 1, 28, 28, dtype=torch.int64))
    with pytest.raises(ModelError, match=r"model: cannot take inputs of shape \(2, 3, 28, 28\)"):
        grader.grade(images(2, 3, 28, 28))


# fit_grader


def test_without_a_risk_the_threshold_is_the_papers(adapted: AdaptedModel, digits: tuple[Data, ...]) -> None:
    calibration = digits[2]
    labels, second, suspicion = opinions(adapted, calibration)
    wrong, flagged = labels != calibration.labels.numpy(), labels != second
    origin = Origin(ModelOrigin("module:factory"))
    grader = fit_grader(adapted, calibration, origin=origin)
    assert grader.threshold.value == DISAGREEMENT.value
    assert grader.threshold.max_risk is None
    assert grader.threshold.coverage == pytest.approx((~flagged).mean())
    assert replace(grader.origin, inputs=origin.inputs) == origin
    measured = dict(grader.measured)
    assert measured["calibration_samples"] == len(calibration)
    assert measured["calibration_errors"] == wrong.sum() > 5
    assert (measured["recall"]["count"], measured["recall"]["of"]) == ((flagged & wrong).sum(), wrong.sum())
    assert (measured["precision"]["count"], measured["precision"]["of"]) == ((flagged & wrong).sum(), flagged.sum())
    assert measured["auroc"] == pytest.approx(roc_auc_score(wrong, suspicion), abs=1e-4)
    with torch.no_grad():
        softmax = adapted(calibration.inputs(range(len(calibration))), alpha=0).double().softmax(1).amax(1)
    assert measured["auroc_of_softmax"] == pytest.approx(roc_auc_score(wrong, -softmax), abs=1e-4)


def test_a_guaranteed_risk(adapted: AdaptedModel, digits: tuple[Data, ...]) -> None:
    calibration = digits[2]
    labels, _, suspicion = opinions(adapted, calibration)
    grader = fit_grader(adapted, calibration, target=MaxRisk(0.2, confidence=0.9), score="opposition")
    threshold, wrong = grader.threshold, labels != calibration.labels.numpy()
    assert threshold == risk_threshold(suspicion, wrong, max_risk=0.2, confidence=0.9)
    assert threshold.holds
    assert (threshold.max_risk, threshold.confidence) == (0.2, 0.9)
    assert grader.grade(calibration).trusted.mean() == pytest.approx(threshold.coverage)


def test_a_guaranteed_risk_in_each_class(adapted: AdaptedModel, digits: tuple[Data, ...]) -> None:
    calibration = digits[2]
    with pytest.warns(
        PetmWarning, match=r"max_risk: .*0.3 .* in each class, 0.95 .* nothing is trusted where it cannot"
    ):
        grader = fit_grader(adapted, calibration, target=MaxRisk(0.3, per="class"))
    assert len(grader.threshold.classes) == 10
    grades = grader.grade(calibration)
    values = np.array(grader.threshold.values)[grades.labels]
    np.testing.assert_array_equal(grades.trusted, grades.suspicion < values)
    assert grades.trusted.any()


@pytest.mark.parametrize(("target", "share"), [(Coverage(0.6), 0.6), (Recall(0.9), 0.9), (None, 0.9)])
def test_a_coverage_and_a_recall(
    adapted: AdaptedModel, digits: tuple[Data, ...], target: Target | None, share: float
) -> None:
    calibration = digits[2]
    grader = fit_grader(adapted, calibration, target=target)
    assert grader.target == (target or Recall(0.9))
    grades = grader.grade(calibration)
    wrong = grades.labels != calibration.labels.numpy()
    found = grades.trusted.mean() if isinstance(target, Coverage) else (~grades.trusted)[wrong].mean()
    assert share <= found < share + 1 / wrong.sum()


def test_suspicion_is_the_score_that_was_asked_for(adapted: AdaptedModel, digits: tuple[Data, ...]) -> None:
    grader = fit_grader(adapted, digits[1], target=Coverage(0.5), score="entropy")
    with torch.no_grad():
        base = adapted(digits[2].inputs(range(9)), alpha=0).double().softmax(1).numpy()
    suspicion = grader.grade(digits[2].inputs(range(9))).suspicion
    np.testing.assert_allclose(suspicion, -(base * np.log(base)).sum(1), atol=1e-5)


def test_the_probability_of_error_is_calibrated(adapted: AdaptedModel, digits: tuple[Data, ...]) -> None:
    grades = fit_grader(adapted, digits[2], target=Coverage(0.5)).grade(digits[2])
    wrong = grades.labels != digits[2].labels.numpy()
    assert grades.probability_of_error.mean() == pytest.approx(wrong.mean(), abs=0.02)
    assert expected_calibration_error(grades.probability_of_error, wrong) < 0.05
    assert (np.diff(grades.probability_of_error[np.argsort(grades.suspicion)]) >= 0).all()
    assert np.isnan(Grader(adapted, DISAGREEMENT).grade(digits[2]).probability_of_error).all()


def test_a_risk_that_cannot_be_guaranteed(adapted: AdaptedModel, digits: tuple[Data, ...]) -> None:
    calibration = digits[1]
    labels, _, _ = opinions(adapted, calibration)
    errors = (labels != calibration.labels.numpy()).sum()
    message = (
        rf"max_risk: .* at most 0.0001 among the trusted, 0.95 confidence from 179 calibration samples "
        rf"with {errors} errors, so nothing is trusted\. (About \d+ calibration samples would do|At the error rates)"
    )
    with pytest.warns(PetmWarning, match=message) as caught:
        grader = fit_grader(adapted, calibration, target=MaxRisk(1e-4))
    assert caught[0].filename == __file__
    assert grader.threshold.value == -math.inf
    assert not grader.grade(calibration).trusted.any()


def test_calibration_that_will_not_do(adapted: AdaptedModel) -> None:
    with pytest.raises(ArgumentError, match=r"^score: .*'gut'"):
        fit_grader(adapted, (images(4), torch.arange(4)), score="gut")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"data: expected labels from 0 to 9, got 11 for sample 1"):
        fit_grader(adapted, (images(2), torch.tensor([0, 11])))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"expected labels from 0 to 9, got none for sample 0"):
        fit_grader(adapted, TensorData(images(2)))
    with pytest.raises(DataError, match=r"expected samples of at least two classes, got only class 3"):
        fit_grader(adapted, (images(2), torch.tensor([3, 3])))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"expected at least one sample, got none"):
        fit_grader(adapted, TensorData(images(0)))


def test_calibration_without_an_error(adapted: AdaptedModel, digits: tuple[Data, ...], tmp_path: Path) -> None:
    x = digits[1].inputs(range(30))
    with torch.no_grad():
        labels = adapted(x, alpha=0).argmax(1)
    assert len(labels.unique()) > 1
    grader = fit_grader(adapted, (x, labels))  # type: ignore[arg-type]
    assert grader.measured["auroc"] is None
    grader.save(tmp_path / "g.petm")
    assert read_manifest(tmp_path / "g.petm").measured["auroc"] is None


# save and load


ORIGIN = Origin(
    ModelOrigin("networks:TinyCNN", {}, "weights/a.safetensors", ("zero", "one")),
    InputOrigin((28, 28), 1),
    {"train": DataOrigin("é", 3, "0" * 64)},
    {"seed": 3, "where": "a/b", "rate": 1e-3},
)


def test_candidates_are_the_conformal_sets_of_each_grade(adapted: AdaptedModel, digits: tuple[Data, ...]) -> None:
    grader = fit_grader(adapted, digits[1], target=Recall(0.6), set_coverage=0.8)
    assert grader.sets is not None
    assert grader.sets.coverage == 0.8

    def told(data: Data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predictions, suspicion and scores of classes by plain forwards."""
        with torch.no_grad():
            opinions = [adapted(data.inputs(range(len(data))), alpha=alpha).double().softmax(1) for alpha in (0, 1)]
        predicted, scores = opinions[0].argmax(1).numpy(), 1 - (opinions[0] + opinions[1]).numpy() / 2
        suspicion = scores[np.arange(len(predicted)), predicted]
        scores[np.arange(len(predicted)), predicted] = 0
        return predicted, suspicion, scores

    _, suspicion, scores = told(digits[1])
    limit, truth = grader.threshold.value, digits[1].labels.numpy()
    limits = []
    for some in (suspicion < limit - 1e-9, suspicion > limit + 1e-9):  # the sample at the threshold is left out
        of_truth = np.sort(scores[some, truth[some]])
        limits.append(of_truth[math.ceil((len(of_truth) + 1) * 0.8) - 1])
    assert [each for (each,) in grader.sets.limits] == pytest.approx(limits, abs=1e-6)
    grades = grader.grade(digits[2].inputs(range(60)))
    _, _, scores = told(digits[2].subset(range(60)))
    assert grades.candidates is not None
    for found, trusted, row in zip(grades.candidates, grades.trusted, scores, strict=True):
        assert set(found) == set(np.flatnonzero(row <= limits[int(not trusted)] + 1e-9).tolist())


@pytest.fixture
def grader(adapted: AdaptedModel, digits: tuple[Data, ...]) -> Grader:
    return fit_grader(adapted, digits[1], origin=ORIGIN)


@pytest.mark.parametrize("include_base", [False, True])
def test_a_loaded_grader_gives_the_same_grades_to_the_bit(
    grader: Grader, model: nn.Module, digits: tuple[Data, ...], tmp_path: Path, include_base: bool
) -> None:
    grader.save(tmp_path / "g.petm", include_base=include_base)
    loaded = load(tmp_path / "g.petm", model)
    x = digits[2].inputs(range(50))
    expected, found = grader.grade(x), loaded.grade(x)
    assert 0 < expected.trusted.sum() < 50
    for name in ("labels", "second", "suspicion", "trusted"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes()
    assert loaded.threshold == grader.threshold
    assert loaded.adapted.ranks == {"fc1": 4, "fc2": 5}
    assert loaded.origin == grader.origin == replace(ORIGIN, inputs=grader.origin.inputs)
    assert loaded.target == grader.target == Disagreement()
    assert loaded.measured == grader.measured
    assert loaded.sets == grader.sets is not None
    assert expected.candidates is not None
    assert found.candidates is not None
    assert found.candidates.tolist() == expected.candidates.tolist()
    loaded.save(tmp_path / "again.petm", include_base=include_base)
    assert read_manifest(tmp_path / "again.petm") == read_manifest(tmp_path / "g.petm")


@pytest.mark.parametrize("value", [-math.inf, math.inf, 5e-324, -0.25, 0.1 + 0.2])
def test_every_threshold_survives(adapted: AdaptedModel, model: nn.Module, tmp_path: Path, value: float) -> None:
    threshold = Threshold(value, "by hand", 0.5, 0.01, 0.95, None, samples_needed=299)
    Grader(adapted, threshold).save(tmp_path / "g.petm")
    json.loads((tmp_path / "g.petm" / "petm.json").read_text(), parse_constant=pytest.fail)
    assert load(tmp_path / "g.petm", model).threshold == threshold


FACTORY = "from networks import TinyCNN, seeded\ndef make(seed=0):\n    return seeded(TinyCNN, seed)\n"


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Origin:
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "factory.py").write_text(FACTORY)
    return Origin(ModelOrigin(f"{tmp_path}/factory.py:make", {"seed": 7}))


def test_a_bundle_may_say_how_its_model_is_built(tmp_path: Path, origin: Origin) -> None:
    adapted = randomise(attach_adapter(seeded(TinyCNN, seed=7), {"fc1": 2}))
    grader = Grader(adapted, DISAGREEMENT, origin=origin)
    grader.save(tmp_path / "g.petm")
    found = load(tmp_path / "g.petm", trust_bundle_code=True).grade(images(5))
    np.testing.assert_array_equal(found.suspicion, grader.grade(images(5)).suspicion)


def test_the_weights_are_in_the_bundle_or_where_it_or_the_caller_says(
    tmp_path: Path, origin: Origin, model: nn.Module, adapted: AdaptedModel
) -> None:
    weights, moved = tmp_path / "w.pt", tmp_path / "moved.pt"
    torch.save(model.state_dict(), weights)
    described = Origin(ModelOrigin(origin.model.reference, {}, str(weights)))
    expected = Grader(adapted, DISAGREEMENT, origin=described).grade(images(5)).suspicion
    Grader(adapted, DISAGREEMENT, origin=described).save(tmp_path / "outside.petm")
    Grader(adapted, DISAGREEMENT, origin=described).save(tmp_path / "inside.petm", include_base=True)
    np.testing.assert_array_equal(
        load(tmp_path / "outside.petm", trust_bundle_code=True).grade(images(5)).suspicion, expected
    )
    weights.rename(moved)
    np.testing.assert_array_equal(
        load(tmp_path / "inside.petm", trust_bundle_code=True).grade(images(5)).suspicion, expected
    )
    with pytest.raises(ModelError, match=r"weights: "):
        load(tmp_path / "outside.petm", trust_bundle_code=True)
    found = load(tmp_path / "outside.petm", weights=moved, trust_bundle_code=True).grade(images(5)).suspicion
    np.testing.assert_array_equal(found, expected)


def test_another_models_weights(grader: Grader, model: nn.Module, tmp_path: Path) -> None:
    grader.save(tmp_path / "g.petm")
    with torch.no_grad():
        model.fc2.bias[0] = torch.nextafter(model.fc2.bias[0], torch.tensor(9.0))
    with pytest.raises(BundleError, match=r"^.*g.petm: "):
        load(tmp_path / "g.petm", model)
    with pytest.raises(BundleError, match=r"g.petm: was made for another model"):
        load(tmp_path / "g.petm", nn.Linear(3, 2))


def test_a_bundle_that_does_not_say_how_its_model_is_built(adapted: AdaptedModel, tmp_path: Path) -> None:
    Grader(adapted, DISAGREEMENT).save(tmp_path / "g.petm")
    with pytest.raises(BundleError, match=r"g.petm: .*Pass the model"):
        load(tmp_path / "g.petm")


def test_the_manifest_tells_what_a_reader_wants_to_know(grader: Grader, model: nn.Module, tmp_path: Path) -> None:
    grader.save(tmp_path / "g.petm")
    manifest = read_manifest(tmp_path / "g.petm")
    assert manifest.layers == {"fc1": 4, "fc2": 5}
    assert manifest.adapter_parameters == 4 * (72 + 16) + 5 * (16 + 10)
    assert manifest.split_point is not None
    assert (manifest.split_point["kind"], manifest.split_point["module"]) == ("inside", "fc1")
    assert manifest.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert manifest.origin.model.classes == ("zero", "one")
    assert manifest.threshold.rule == "disagreement, as in the paper"
    assert manifest.versions == library_versions()
    assert manifest.versions["torch"] == torch.__version__
    assert str(tmp_path) not in (tmp_path / "g.petm" / "petm.json").read_text()


def test_data_are_described_by_their_content(digits: tuple[Data, ...]) -> None:
    part = digits[1]
    assert describe_data(part) == DataOrigin("digits", 179, part.content)


def test_disagreement_needs_a_second_opinion(model: nn.Module, digits: tuple[Data, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"^target: "):
        fit_grader(views_alone(model, ()), digits[1], target=Disagreement(), score="softmax")


def test_a_grader_is_shown_in_six_lines(model: nn.Module, digits: tuple[Data, ...]) -> None:
    names = tuple("abcdefghij")
    origin = Origin(ModelOrigin(classes=names))
    grader = fit_grader(views_alone(model, ()), digits[1], target=Coverage(0.9), score="softmax", origin=origin)
    wrong = np.asarray(grader.grade(digits[1]).labels) != digits[1].labels.numpy()
    shown = repr(grader).splitlines()
    parameters = sum(each.numel() for each in model.parameters())
    assert shown[0] == f"Grader of TinyCNN: 10 classes (a, b, c, d, e, f and 4 more), {parameters:,} parameters"
    assert shown[1] == "  evidence: softmax, 1.00 × the operations of the model alone"
    assert shown[2] == f"  target: {Coverage(0.9)}"
    trusted = grader.grade(digits[1]).trusted
    assert shown[3] == f"  coverage: {trusted.mean():.2%} of the calibration samples trusted"
    assert shown[4] == f"  risk: {wrong[trusted].mean():.2%} of these wrong"
    assert shown[5:] == [f"  calibration: {len(wrong):,} samples, {wrong.sum():,} errors"]
    assert repr(Grader(views_alone(model, ()), Threshold(0.5, "by hand"))).count("\n") == 5
