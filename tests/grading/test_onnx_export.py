"""A grader as an ONNX graph: what is in the file, that onnxruntime answers as the grader does, and what is refused."""

import copy
import csv
import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from image_files import write_images
from networks import ResidualNet, images, randomise, seeded, snapshot
from petm.adapter.model import Cascade, Member, attach_adapter
from petm.adapter.one_pass import dual_logits
from petm.cli import main
from petm.data.base import Data
from petm.errors import ArgumentError, BundleError, DataError, ExportError, ExtraError, ModelError, PetmError, RunError
from petm.grading.grader import Grader, fit_grader
from petm.grading.onnx_export import export_onnx
from petm.grading.onnx_grader import OnnxGrader
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.models.loading import weights_fingerprint
from petm.selective.choice import Choice, Compared
from petm.selective.targets import MaxRisk, Recall
from petm.selective.thresholds import DISAGREEMENT, Threshold
from petm.training.distillation import distill

NAMES = ("zéro", *"123456789")
ORIGIN = Origin(ModelOrigin("networks:TinyCNN", classes=NAMES), InputOrigin((28, 28), 1))


@pytest.fixture(scope="module")
def grader(_trained: nn.Module, digits: tuple[Data, ...]) -> Grader:
    """A trained adapter on a trained base model, with a threshold that is not the default."""
    model = copy.deepcopy(_trained)
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += (
                0.1
                * parameter.abs().mean()
                * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    adapted = attach_adapter(model, {"conv2": 2, "fc1": 4, "fc2": 5})
    distill(adapted, teacher=teacher, data=digits[0], epochs=2)
    rows = (Compared("softmax", 0, 0.1, 0, 0, False, False), Compared("mean_opinion", 0.2, 0.09, -0.02, 0, True, True))
    choice = Choice("mean_opinion", "aurc", rows, "It is the cheapest of the best.")
    return fit_grader(adapted, digits[1], target=MaxRisk(0.08, confidence=0.8), origin=ORIGIN, choice=choice)


@pytest.fixture(scope="module")
def graph(grader: Grader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export_onnx(grader, path)
    return path


class Small(nn.Module):
    """Two inputs, three classes, and a step of the test's in between."""

    def __init__(self, step: Any = lambda x: x) -> None:
        super().__init__()
        self.step, self.fc = step, nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.step(x))


def small(step: Any = lambda x: x, threshold: Threshold = DISAGREEMENT) -> Grader:
    return Grader(randomise(attach_adapter(Small(step), {"fc": 1})), threshold)


def nothing_in(folder: Path) -> bool:
    return not list(folder.iterdir())


# the graph


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_onnxruntime_alone_answers_as_the_grader(
    grader: Grader, graph: Path, digits: tuple[Data, ...], count: int
) -> None:
    x = digits[2].inputs(range(count))
    session = onnxruntime.InferenceSession(graph)
    label, suspicion, probability, trusted, base, second = session.run(None, {"x": x.numpy()})
    with torch.no_grad():
        expected_base, expected_second = grader.adapted(x, alpha=0), grader.adapted(x, alpha=1)
    np.testing.assert_allclose(base, expected_base.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(second, expected_second.numpy(), rtol=0, atol=1e-5)
    grades = grader.grade(x)
    np.testing.assert_array_equal(label, grades.labels)
    np.testing.assert_allclose(suspicion, grades.suspicion, rtol=0, atol=2e-5)
    np.testing.assert_allclose(probability, grades.probability_of_error, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(trusted, grades.trusted)
    assert (label.dtype, suspicion.dtype, trusted.dtype, base.dtype) == (np.int64, np.float64, np.bool_, np.float32)


BY_CLASS = Threshold(0.9, "by hand", classes=tuple(Threshold(label / 10, "by hand") for label in range(10)))


@pytest.mark.slow
@pytest.mark.parametrize("cascade", [None, Cascade(0.3), Cascade(0.2, 0.5)])
def test_ensemble_members_with_a_view_and_a_cascade(
    model: nn.Module, digits: tuple[Data, ...], tmp_path: Path, cascade: Cascade | None
) -> None:
    members = (Member(), Member("second", "mirror"), Member("", "shift 1 0"))
    adapted = randomise(attach_adapter(model, {"fc1": 2, "fc2": 2}, members=members), scale=0.3)
    adapted.cascade = cascade
    grader = replace(fit_grader(adapted, digits[1], target=Recall(0.8)), threshold=BY_CLASS)
    export_onnx(grader, tmp_path / "committee.onnx", digits[0].inputs(range(3)))
    expected, found = grader.grade(digits[2]), OnnxGrader(tmp_path / "committee.onnx").grade(digits[2])
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.trusted, expected.trusted)
    np.testing.assert_allclose(found.suspicion, expected.suspicion, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.probability_of_error, expected.probability_of_error, rtol=0, atol=1e-3)


def test_form_of_the_graph(graph: Path) -> None:
    onnx.checker.check_model(str(graph), full_check=True)
    content = onnx.load(graph).graph
    shapes = {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*content.input, *content.output)
    }
    assert shapes == {
        "x": ["N", 1, 28, 28],
        "label": ["N"],
        "suspicion": ["N"],
        "probability_of_error": ["N"],
        "trusted": ["N"],
        "base": ["N", 10],
        "second": ["N", 10],
    }
    # Both opinions in one pass, or in two: no more convolutions than that, the adapter's among them.
    assert 4 <= sum(node.op_type == "Conv" for node in content.node) <= 6


def test_metadata_says_what_a_reader_needs(grader: Grader, graph: Path) -> None:
    entries = {entry.key: json.loads(entry.value) for entry in onnx.load(graph).metadata_props}
    assert entries["petm.format_version"] == 4
    assert entries["petm.version"] == "0.1.0"
    assert entries["petm.classes"] == list(NAMES)
    assert entries["petm.cascade"] is None
    assert {"size": [28, 28], "channels": 1}.items() <= entries["petm.inputs"].items()
    assert entries["petm.value_range"] == [0, 1]
    assert entries["petm.fingerprint"] == weights_fingerprint(grader.adapted.base)
    assert entries["petm.score"] == grader.score
    assert entries["petm.threshold"]["value"] == grader.threshold.value
    assert entries["petm.threshold"]["rule"] == "guaranteed risk"
    assert grader.sets is not None
    assert entries["petm.sets"]["limits"] == [list(row) for row in grader.sets.limits]
    assert entries["petm.second_share"] == 0.5, "one second opinion, of which suspicion is computed"


def test_nothing_of_the_machine_is_in_the_file(graph: Path) -> None:
    content = graph.read_bytes()
    for trace in (b".py", str(Path.home()).encode(), str(Path(torch.__file__).parent).encode()):
        assert trace not in content


def test_weights_are_held_once(grader: Grader, graph: Path) -> None:
    parameters = sum(parameter.numel() for parameter in grader.adapted.parameters())
    assert graph.stat().st_size < 4 * parameters + 22_000, "the rest is structure and metadata"
    assert [entry.name for entry in graph.parent.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_export_touches_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    grader = small()
    capfd.readouterr()
    dual_logits(grader.adapted, images(3, 2))
    before = snapshot(grader.adapted)
    exported = export_onnx(grader, tmp_path / "made" / "model.onnx", images(3, 2))
    assert snapshot(grader.adapted) == before
    assert exported.files == (tmp_path / "made" / "model.onnx",)
    assert exported.size == exported.files[0].stat().st_size
    assert 0 <= exported.difference <= 1e-5
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_batchnorm_dropout_and_a_residual(tmp_path: Path) -> None:
    adapted = randomise(attach_adapter(seeded(ResidualNet), {"conv1": 2, "block.conv1": 2, "fc": 3}))
    suspicion = Grader(adapted, DISAGREEMENT).grade(images(64)).suspicion
    middle = float(np.sort(suspicion)[31:33].mean())
    grader = Grader(adapted, Threshold(middle, "by hand"))
    export_onnx(grader, tmp_path / "model.onnx", images(1))
    found, expected = OnnxGrader(tmp_path / "model.onnx").grade(images(64)), grader.grade(images(64))
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.second, expected.second)
    np.testing.assert_array_equal(found.trusted, expected.trusted)
    np.testing.assert_allclose(found.suspicion, expected.suspicion, rtol=0, atol=1e-5)
    assert found.trusted.sum() == 32


@pytest.mark.slow
@pytest.mark.parametrize(("value", "trusted"), [(DISAGREEMENT.value, True), (0.0, False)])
def test_a_tie_is_graded_as_the_threshold_says(tmp_path: Path, value: float, trusted: bool) -> None:
    """An untrained adapter on equal logits: the suspicion is exactly 0, and the paper's threshold the least above."""
    model = Small()
    nn.init.zeros_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    export_onnx(
        Grader(attach_adapter(model, {"fc": 1}), Threshold(value, "by hand")), tmp_path / "tie.onnx", images(2, 2)
    )
    grader = OnnxGrader(tmp_path / "tie.onnx")
    grades = grader.grade(images(5, 2))
    assert not grades.suspicion.any()
    assert grades.trusted.tolist() == [trusted] * 5
    assert grader.threshold.value == value


@pytest.mark.slow
def test_weights_too_large_for_one_file_lie_beside_it(
    grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petm.grading.onnx_export.ONE_FILE", 5000)
    exported = export_onnx(grader, tmp_path / "model.onnx")
    assert [file.name for file in exported.files] == ["model.onnx", "model.onnx.data"]
    assert sorted(tmp_path.iterdir()) == sorted(exported.files)
    assert exported.size == sum(file.stat().st_size for file in exported.files)
    assert (
        OnnxGrader(tmp_path / "model.onnx").grade(images(2)).labels.tolist() == grader.grade(images(2)).labels.tolist()
    )


# the grader on it


def test_same_interface_same_grades(grader: Grader, graph: Path, digits: tuple[Data, ...]) -> None:
    same = OnnxGrader(graph)
    data = digits[2].subset(range(150))
    expected = grader.grade(data)
    assert 0 < expected.trusted.sum() < 150
    x = data.inputs(range(150))
    for inputs in (data, x, x.numpy(), (x.numpy(), data.labels.numpy())):
        found = same.grade(inputs, batch_size=64)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_array_equal(found.second, expected.second)
        np.testing.assert_array_equal(found.trusted, expected.trusted)
        np.testing.assert_allclose(found.suspicion, expected.suspicion, rtol=0, atol=2e-5)
        assert list(found.candidates) == list(expected.candidates)  # type: ignore[arg-type]
    pixels = (x * 255).to(torch.uint8)
    assert same.score == grader.score
    np.testing.assert_array_equal(same.grade(pixels).suspicion, same.grade(pixels.float() / 255).suspicion)
    assert same.threshold == grader.threshold
    assert same.origin.inputs == grader.origin.inputs
    assert same.origin.model.classes == NAMES
    assert repr(same) == f"OnnxGrader({str(graph)!r})"


def test_threads_may_share_it(graph: Path) -> None:
    grader = OnnxGrader(graph, threads=1)
    batches = [images(5 + index, seed=index) for index in range(16)]
    expected = [grader.grade(batch).suspicion for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: grader.grade(batch).suspicion, batches))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_inputs_that_cannot_be_graded(graph: Path) -> None:
    grader = OnnxGrader(graph)
    broken = images(3)
    broken[1, 0, 5, 5] = math.nan
    with pytest.raises(DataError, match=r"inputs: .* NaN or infinity in 1 of 3 samples \(the first is sample 1\)"):
        grader.grade(broken)
    with pytest.raises(DataError, match=r"inputs: "):
        grader.grade(images(0))
    with pytest.raises(DataError, match=r"^inputs: .*int64"):
        grader.grade(np.zeros((2, 1, 28, 28), np.int64))
    message = (
        r"model: cannot take inputs of shape \(2, 3, 28, 28\) .* was exported for float32 of shape \(N, 1, 28, 28\)"
    )
    with pytest.raises(ModelError, match=message):
        grader.grade(images(2, 3, 28, 28))
    for odd in ([[0.5]], None, images(2).to_sparse()):
        for grade in (grader.grade, grader.grade_batch):
            with pytest.raises(ArgumentError):
                grade(odd)  # type: ignore[arg-type]


def test_each_type_of_float_is_taken(graph: Path) -> None:
    """As PyTorch's grader takes them: bfloat16, which NumPy lacks, and what a float32 cannot hold."""
    grader, x = OnnxGrader(graph), images(3).bfloat16()
    expected = grader.grade(x.float().numpy()).suspicion
    for values in (x, x.double().numpy(), x.float().numpy().astype(">f8"), x.float().numpy().astype(np.longdouble)):
        for grade in (grader.grade, grader.grade_batch):
            np.testing.assert_array_equal(grade(values).suspicion, expected)  # type: ignore[operator]
    with pytest.raises(DataError, match="infinity"):
        grader.grade(x.double().numpy() * 1e300)


def test_files_that_are_no_graph_of_petm(graph: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(BundleError, match=r"model\.onnx: expected an ONNX file, got none"):
        OnnxGrader(path)
    path.write_bytes(graph.read_bytes()[:3000])
    with pytest.raises(BundleError, match=r"model\.onnx: expected an ONNX graph, got .*\. Export it again"):
        OnnxGrader(path)
    content = onnx.load(graph)
    next(entry for entry in content.metadata_props if entry.key == "petm.format_version").value = "5"
    onnx.save(content, path)
    with pytest.raises(BundleError, match=r"expected graph version 4, got 5\. Upgrade petm"):
        OnnxGrader(path)
    del content.metadata_props[:]
    onnx.save(content, path)
    with pytest.raises(BundleError, match=r"expected a graph from petm export, got another one"):
        OnnxGrader(path)


def test_providers_that_are_not_there(graph: Path) -> None:
    available = ", ".join(onnxruntime.get_available_providers())
    message = f"^providers: .*{available}, got ImaginaryExecutionProvider"
    with pytest.raises(ArgumentError, match=message):
        OnnxGrader(graph, providers=["ImaginaryExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(ArgumentError, match=r"^providers: .*got none"):
        OnnxGrader(graph, providers=[])


# what is refused


@pytest.mark.slow
def test_what_is_there_stays(grader: Grader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("precious")
    with pytest.raises(RunError, match=r"model\.onnx: expected no such file yet\. Choose another name"):
        export_onnx(grader, path)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(RunError, match=r"folder\.onnx: expected a file to write, got a folder"):
        export_onnx(grader, tmp_path / "folder.onnx", overwrite=True)
    with pytest.raises(RunError, match=r"model\.bin: expected a name that ends in \.onnx"):
        export_onnx(grader, tmp_path / "model.bin")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx.ONNXProgram, "save", full)
        with pytest.raises(RunError, match=r"model\.onnx: could not be written \(No space left on device\)"):
            export_onnx(small(), path, images(1, 2), overwrite=True)
    assert path.read_text() == "precious"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder.onnx", "model.onnx"]
    export_onnx(small(), path, images(1, 2), overwrite=True)
    assert OnnxGrader(path).shape == (2,)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (lambda x: x + 1 if x.sum() > 0 else x, r"GuardOnDataDependentSymNode"),
        (lambda x: x.view(len(x), -1), r"Constraints violated \(N\)"),
    ],
)
def test_a_model_that_cannot_be_traced(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], step: Any, reason: str
) -> None:
    message = r"model: expected one that torch.export can trace with a batch of any size, got \w+ \(.*\)\. Replace"
    with pytest.raises(ExportError, match=message) as raised:
        export_onnx(small(step), tmp_path / "model.onnx", images(4, 2))
    assert raised.match(reason)
    assert "\n" not in str(raised.value)
    assert nothing_in(tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_graph_with_other_answers_is_not_left(tmp_path: Path) -> None:
    def counts(x: Tensor) -> Tensor:
        calls.append(1)
        return x * len(calls)

    calls: list[int] = []
    with pytest.raises(ExportError, match=r"^model: .* got a difference"):
        export_onnx(small(counts), tmp_path / "model.onnx", images(4, 2))
    assert nothing_in(tmp_path)


@pytest.mark.slow
def test_form_of_the_inputs_must_be_known(grader: Grader, tmp_path: Path) -> None:
    unknown = Grader(grader.adapted, DISAGREEMENT)
    with pytest.raises(ArgumentError, match=r"^example: .* got none"):
        export_onnx(unknown, tmp_path / "model.onnx")
    with pytest.raises(ArgumentError, match=r"example: expected at least one input, got shape \(0, 1, 28, 28\)"):
        export_onnx(unknown, tmp_path / "model.onnx", images(0))
    with pytest.raises(ModelError, match=r"model: cannot take inputs of shape \(3, 3, 28, 28\)"):
        export_onnx(unknown, tmp_path / "model.onnx", images(2, 3, 28, 28))
    assert nothing_in(tmp_path)
    export_onnx(unknown, tmp_path / "model.onnx", (images(1) * 255).to(torch.uint8).numpy())
    assert OnnxGrader(tmp_path / "model.onnx").origin.inputs == InputOrigin((28, 28), 1)


def test_model_on_another_device(tmp_path: Path) -> None:
    grader = small()
    grader.adapted.to("meta")
    with pytest.raises(ArgumentError, match=r"grader: "):
        export_onnx(grader, tmp_path / "model.onnx", images(1, 2))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_without_the_extra(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"^onnx: .*{package}.*pip install 'petm\[onnx\]'"
    with pytest.raises(ExtraError, match=message) as raised:
        export_onnx(small(), tmp_path / "model.onnx", images(1, 2))
    assert isinstance(raised.value, PetmError)
    assert nothing_in(tmp_path)
    if package == "onnxruntime":
        with pytest.raises(ExtraError, match=message):
            OnnxGrader(graph)


# the command line


@pytest.fixture
def petm(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, grader: Grader) -> Any:
    """Runs ``petm ...`` beside a bundle and some images, and returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    grader.save("my.petm", include_base=True)

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["petm", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
        return code, *capfd.readouterr()

    return run


def test_a_graph_says_what_its_bundle_says_of_the_result(petm: Any, grader: Grader, graph: Path) -> None:
    found = OnnxGrader(graph)
    assert (found.choice, found.outcome, found.has_second) == (grader.choice, grader.outcome, True)
    of_graph, of_bundle = (petm("inspect", path)[1].partition("└")[2].splitlines()[1:] for path in (graph, "my.petm"))
    assert of_graph == of_bundle
    assert {"Risk and coverage", "It is the cheapest of the best."} <= {line.strip() for line in of_graph}
    told = [json.loads(petm("inspect", path, "--json")[1]) for path in (graph, "my.petm")]
    assert told[0]["outcome"] == told[1]["outcome"]
    assert told[0]["choice"] == told[1]["choice"]


@pytest.mark.slow
def test_export_then_grade(petm: Any, digits: tuple[Data, ...]) -> None:
    write_images(digits[2], range(30), Path("more"), flat=True)
    code, out, err = petm("export", "my.petm", "--model", "networks:TinyCNN", "-o", "model.onnx")
    assert (code, err) == (0, "")
    assert out.startswith(f"model.onnx: {Path('model.onnx').stat().st_size:,} bytes, logits within ")
    assert len(out.splitlines()) == 1

    tables = []
    for source in (("my.petm", "--model", "networks:TinyCNN"), ("model.onnx",)):
        code, out, err = petm("grade", *source, "more")
        assert code == 0, err
        tables.append(list(csv.DictReader(out.splitlines())))
    assert len(tables[0]) == 30
    for expected, found in zip(*tables, strict=True):
        for figure, allowed in (("suspicion", 2e-5), ("probability_of_error", 1e-4), ("confidence", 1e-4)):
            assert float(found.pop(figure)) == pytest.approx(float(expected.pop(figure)), abs=allowed)
        assert found == expected
        assert found["label_name"] in NAMES

    code, _, err = petm("export", "my.petm", "--model", "networks:TinyCNN", "-o", "model.onnx")
    assert code == 1
    assert "model.onnx: expected no such file yet" in err
    code, out, err = petm(
        "export",
        "my.petm",
        "--model",
        "networks:TinyCNN",
        "-o",
        "model.onnx",
        "--overwrite",
        "--example",
        "more",
        "--json",
    )
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["files"] == ["model.onnx"]
    assert report["bytes"] == Path("model.onnx").stat().st_size
    assert report["difference"] <= 1e-5


def test_grade_refuses_what_a_graph_has_already(petm: Any, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    for options, message in (
        (("--model", "networks:TinyCNN"), "--model, --weights: expected neither beside model.onnx"),
        (("--device", "mps"), "--device: expected auto, cpu, cuda for an .onnx file, got mps"),
    ):
        code, _, err = petm("grade", "model.onnx", "more", *options)
        assert code == 2
        assert message in err
    code, _, err = petm("grade", "absent.onnx", "more")
    assert (code, err.startswith("Error: BUNDLE: expected ")) == (1, True)


@pytest.mark.slow
def test_a_graph_says_how_a_processor_reads_its_inputs(tmp_path: Path) -> None:
    """Else its images would be read without the base model's normalisation."""
    read = replace(small(), origin=Origin(inputs=InputOrigin(processor="a/folder")))
    export_onnx(read, tmp_path / "g.onnx", images(4, 2))
    assert OnnxGrader(tmp_path / "g.onnx").origin.inputs.processor == "a/folder"


@pytest.mark.slow
def test_a_graph_that_is_moved_with_its_processor_finds_it(tmp_path: Path) -> None:
    folder = tmp_path / "here" / "processor"
    folder.mkdir(parents=True)
    read = replace(small(), origin=Origin(inputs=InputOrigin(processor=str(folder))))
    export_onnx(read, tmp_path / "here" / "g.onnx", images(4, 2))
    (tmp_path / "here").rename(tmp_path / "there")
    assert OnnxGrader(tmp_path / "there" / "g.onnx").origin.inputs.processor == str(tmp_path / "there" / "processor")
