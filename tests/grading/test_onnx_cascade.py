"""A cascade as two ONNX graphs: the second runs on the samples for which the first asks, and on no others."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from networks import TinyCNN, images, randomise, seeded
from petm.adapter.model import AdaptedModel, Cascade, Member, attach_adapter
from petm.adapter.one_pass import find_feature_layer, predict_answers
from petm.data.base import TensorData
from petm.errors import BundleError, PetmWarning, RunError
from petm.evidence.features import Mahalanobis
from petm.evidence.protocol import FittedEvidence
from petm.evidence.suspicion import Suspicion, Weighting, suspicion_named
from petm.grading.grader import Grader
from petm.grading.grades import NO_SECOND
from petm.grading.onnx_export import Exported, export_onnx
from petm.grading.onnx_grader import OnnxGrader
from petm.models.scores import maximum_softmax
from petm.selective.thresholds import Threshold

X = images(60, seed=5)


def made(most: float = 1.0) -> AdaptedModel:
    """Two members, of which one has a view, for the least certain half of the images."""
    members, model = (Member(), Member("", "mirror")), seeded(TinyCNN).eval()
    with torch.no_grad():
        model.fc2.weight *= 20
    adapted = randomise(attach_adapter(model, {"fc1": 3}, members=members), scale=0.5)
    low = float(maximum_softmax(predict_answers(adapted, TensorData(X)).base).median())
    adapted.cascade = Cascade(low, most=most)
    return adapted


def trusting(adapted: AdaptedModel, suspicion: Suspicion) -> Grader:
    """A grader that trusts four of five images."""
    found = suspicion.of(predict_answers(adapted, TensorData(X))).sort().values
    return Grader(adapted, Threshold(float(found[47:49].mean()), "by hand"), suspicion)


@pytest.fixture(scope="module")
def grader() -> Grader:
    return trusting(made(most=0.3), suspicion_named("mean_opinion"))


@pytest.fixture(scope="module")
def exported(grader: Grader, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_onnx(grader, tmp_path_factory.mktemp("export") / "model.onnx", X[:8])


@pytest.fixture
def graph(exported: Exported) -> Path:
    return exported.files[0]


def asked(grader: Grader, x: Tensor = X) -> np.ndarray:
    cascade = grader.adapted.cascade
    assert cascade is not None
    return cascade.asks(maximum_softmax(grader.adapted(x, alpha=0))).numpy()


class Counting:
    """A session that counts the rows it is given."""

    def __init__(self, session: Any) -> None:
        self.session, self.rows = session, []

    def get_inputs(self) -> Any:
        return self.session.get_inputs()

    def run(self, names: None, given: dict[str, np.ndarray]) -> Any:
        self.rows.append(len(given["x"]))
        return self.session.run(names, given)


def check(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.second, expected.second)
    np.testing.assert_array_equal(found.trusted, expected.trusted)
    np.testing.assert_allclose(found.suspicion, expected.suspicion, rtol=0, atol=1e-5)


def test_the_second_graph_runs_on_the_asked_rows_alone(grader: Grader, graph: Path) -> None:
    same, rows = OnnxGrader(graph), asked(grader)
    same._second = second = Counting(same._second)
    assert rows.sum() == 31, "from the median on"
    check(same.grade(X, batch_size=20), found := grader.grade(X))
    np.testing.assert_array_equal(found.second == NO_SECOND, ~rows)
    assert second.rows == [int(rows[start : start + 20].sum()) for start in (0, 20, 40)]
    before = len(second.rows)
    check(same.grade_batch(X[~rows]), grader.grade(X[~rows]))
    assert len(second.rows) == before, "where none is asked it does not run"


def test_the_first_graph_alone_trusts_nothing_that_it_asks_for(grader: Grader, graph: Path) -> None:
    session = onnxruntime.InferenceSession(graph)
    label, suspicion, _, trusted, base, second, asks = session.run(None, {"x": X.numpy()})
    rows, expected = asked(grader), grader.grade(X)
    np.testing.assert_array_equal(asks, rows)
    np.testing.assert_array_equal(label, expected.labels)
    np.testing.assert_array_equal(trusted, expected.trusted & ~rows)
    np.testing.assert_array_equal(trusted, suspicion < grader.threshold.value)
    np.testing.assert_allclose(suspicion[~rows], expected.suspicion[~rows], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(second, base)


def test_what_each_graph_computes(exported: Exported) -> None:
    """The base model's two convolutions in the first; two members' in the second, without those of the base pass."""
    assert [file.name for file in exported.files] == ["model.onnx", "model.second.onnx"]
    assert exported.size == sum(file.stat().st_size for file in exported.files)
    for file, convolutions in zip(exported.files, (2, 4), strict=True):
        onnx.checker.check_model(str(file), full_check=True)
        assert sum(node.op_type == "Conv" for node in onnx.load(file).graph.node) == convolutions
    assert {value.name for value in onnx.load(exported.files[1]).graph.input} == {"x", "base"}


@pytest.mark.parametrize("size", [7, 60])
def test_the_cap_holds_in_a_graph(grader: Grader, graph: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petm.adapter.cascade.BOUND", 10)
    same = OnnxGrader(graph)
    with pytest.warns(PetmWarning, match=r"^cascade: "):
        expected = grader.grade(X)
    with pytest.warns(PetmWarning, match=r"^cascade: "):
        check(same.grade(X, batch_size=size), expected)
    assert (expected.suspicion == grader.threshold.value).any()
    with pytest.warns(PetmWarning, match=r"^cascade: "):
        batches = [same.grade_batch(X[start : start + size]).trusted for start in range(0, 60, size)]
    np.testing.assert_array_equal(np.concatenate(batches), expected.trusted)


def test_a_graph_takes_no_other_second_half(graph: Path, tmp_path: Path, grader: Grader) -> None:
    first, second = tmp_path / "renamed.onnx", tmp_path / "model.second.onnx"
    shutil.copy(graph, first)
    with pytest.raises(BundleError, match=r"renamed\.onnx: .*model\.second\.onnx"):
        OnnxGrader(first)
    shutil.copy(graph.with_name(second.name), second)
    check(OnnxGrader(first).grade(X), grader.grade(X))
    second.write_bytes(second.read_bytes() + b"\0")
    with pytest.raises(BundleError, match=r"renamed\.onnx: .*model\.second\.onnx"):
        OnnxGrader(first)
    content = onnx.load(graph)
    entry = next(each for each in content.metadata_props if each.key == "petm.cascade")
    entry.value = entry.value.replace("model.second.onnx", f"../{graph.parent.name}/model.second.onnx")
    onnx.save(content, first)
    with pytest.raises(BundleError, match=r"renamed\.onnx: "):
        OnnxGrader(first)


def test_a_second_half_that_is_there_stays(grader: Grader, tmp_path: Path) -> None:
    (tmp_path / "model.second.onnx").write_text("precious")
    with pytest.raises(RunError, match=r"model\.second\.onnx: expected no such file"):
        export_onnx(grader, tmp_path / "model.onnx", X[:3])
    assert [file.name for file in tmp_path.iterdir()] == ["model.second.onnx"]


@pytest.mark.slow
def test_both_files_appear_or_none(grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, save = [], torch.onnx.ONNXProgram.save

    def full_at_last(self: Any, path: Any, **how: Any) -> None:
        save(self, path, **how)
        saved.append(path)
        if len(saved) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", full_at_last)
    with pytest.raises(RunError, match=r"No space left"):
        export_onnx(grader, tmp_path / "model.onnx", X[:3])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_features_go_from_the_first_graph_to_the_second(tmp_path: Path) -> None:
    adapted = made()
    adapted.take_features(find_feature_layer(adapted, X[:4]))
    answers = predict_answers(adapted, TensorData(X))
    distance = Mahalanobis().fit(answers, torch.arange(60) % 10, seed=0)
    opinion = suspicion_named("mean_opinion").columns[0]
    both = Weighting((1.0, 0.1), (0.0, 0.0), (1.0, 10.0), (True, False))
    grader = trusting(adapted, Suspicion((opinion, FittedEvidence(distance.evidence, distance.state)), both))
    grader = replace(grader, threshold=replace(grader.threshold, classes=(grader.threshold,) * 10))
    files = export_onnx(grader, tmp_path / "model.onnx", X[:8]).files
    assert [value.name for value in onnx.load(files[1]).graph.input] == ["x", "base", "features"]
    check(OnnxGrader(files[0]).grade(X), grader.grade(X))
