import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import petm
from petm.errors import NothingToLearnError, RunError
from petm.models.loading import save_weights
from petm.paper.reproduction import reproduce
from quick_reproduction import KILLED, QUICK, quick
from quick_reproduction import parts as quick_parts


@pytest.fixture(scope="module")
def parts():
    return quick_parts()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return quick(tmp_path_factory.mktemp("runs") / "quick")


@pytest.mark.slow
def test_result_json_has_what_is_documented(done):
    result = json.loads((done.folder / "result.json").read_text())
    assert result == done.result
    assert set(result["base"]) == {"parameters", "test_accuracy", "train_errors", "test_errors"}
    assert {"base_at_alpha_0", "teacher_at_alpha_1", "small_teacher_at_alpha_1", "error_set"} == set(result["fidelity"])
    methods = {"petm", "lora_petm", "lora_petm_small", "control", "petm_control", "softmax"}
    assert set(result["detection"]) == set(result["ranking"]) == methods
    assert set(result["differences"]) == methods - {"lora_petm"}
    assert {"recall", "precision", "flagged", "errors", "caught"} <= set(result["detection"]["control"])
    assert [entry["layer"] for entry in result["drift"]] == ["conv1", "conv2", "fc1", "fc2"]
    assert {"base", "teacher", "lora_petm", "judge", "analysis"} <= set(result["seconds"])
    assert result["seed"] == 0
    assert result["versions"]["torch"] == torch.__version__
    page = (Path(__file__).parents[2] / "docs" / "reference" / "result.md").read_text()
    assert all(f"`{key}" in page for key in result), [key for key in result if f"`{key}" not in page]


@pytest.mark.slow
def test_figures_follow_from_the_paper_network(done):
    cost = done.result["cost"]
    assert cost["base_parameters"] == 32 * 10 + 64 * (32 * 9 + 1) + 128 * 9217 + 10 * 129 == 1_199_882
    assert cost["adapter_parameters"] == 4 * (9 + 32) + 64 * (9216 + 128) + 5 * (128 + 10) == 598_870
    assert cost["adapter_over_teacher"] <= 0.5
    assert cost["system_over_petm"] <= 0.75
    assert cost["small_over_teacher"] <= 0.02
    assert done.result["fidelity"]["base_at_alpha_0"] == 1.0
    assert done.result["fidelity"]["error_set"]["base_at_alpha_0"] == 1.0
    assert done.result["sweep"]["fidelity_to_base"][0] == 1.0


@pytest.mark.slow
def test_counts_agree_with_each_other(done, parts):
    result = done.result
    wrong = result["base"]["test_errors"]
    assert result["base"]["test_accuracy"] == pytest.approx(1 - wrong / len(parts[1]))
    for found in result["detection"].values():
        assert found["errors"] == wrong
        assert found["caught"] <= min(found["flagged"], wrong)
        assert found["recall"] == (found["caught"] / wrong if wrong else None)
    assert result["detection"]["softmax"]["flagged"] == result["detection"]["lora_petm"]["flagged"]


@pytest.mark.slow
def test_pictures_and_bundle_are_written(done, parts):
    for name in ("figure1", "drift", "alpha"):
        Image.open(done.folder / "figures" / f"{name}.png").verify()
        assert (done.folder / "figures" / f"{name}.svg").read_text().rstrip().endswith("</svg>")
    grades = petm.load(done.folder / "grader.petm").grade(parts[1])
    assert (~grades.trusted).sum() == done.result["detection"]["lora_petm"]["flagged"]
    assert not (done.folder / "checkpoints").exists()


@pytest.mark.slow
def test_suspects_are_the_most_suspect(done, parts):
    scores = [suspect.suspicion for suspect in done.suspects]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == done.grader.grade(parts[1]).suspicion.max()
    for suspect in done.suspects:
        assert suspect.base.sum().item() == pytest.approx(1)


def test_base_without_errors_cannot_be_learned_from(parts, tmp_path):
    model, test = petm.paper_cnn().eval(), parts[1]
    inputs = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * torch.linspace(0, 30, 64).view(
        -1, 1, 1, 1
    )
    answers = model(inputs).argmax(1)
    assert len(answers.unique()) > 1
    save_weights(model, tmp_path / "a.safetensors")
    with pytest.raises(NothingToLearnError, match="errors:"):
        reproduce(
            petm.TensorData(inputs, answers),
            test,
            tmp_path / "run",
            protocol=QUICK,
            base_weights=tmp_path / "a.safetensors",
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_finished_folder_is_refused(done, parts):
    with pytest.raises(RunError, match="holds a finished run"):
        reproduce(*parts, done.folder, protocol=QUICK)


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_result(done, tmp_path):
    """Killed with SIGKILL at several moments, each time in another training, and resumed each time."""
    script = Path(__file__).parents[1] / "helpers" / "quick_reproduction.py"
    killed = subprocess.run([sys.executable, script, tmp_path / "run"], capture_output=True, text=True, timeout=300)
    assert killed.returncode == 0, killed.stderr
    assert {path.stem for path in (tmp_path / "run" / "checkpoints").iterdir()} >= set(KILLED)
    resumed = json.loads((quick(tmp_path / "run", resume=True).folder / "result.json").read_text())
    for key in ("base", "fidelity", "detection", "ranking", "differences", "drift", "sweep", "training"):
        assert resumed[key] == done.result[key], key
