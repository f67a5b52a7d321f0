import subprocess
import sys

import pytest

import petm


def test_public_names():
    assert petm.__all__ == sorted(
        [
            "AdaptedModel",
            "Coverage",
            "Data",
            "Disagreement",
            "DualLogits",
            "ErrorSet",
            "FitConfig",
            "FoundLabelErrors",
            "GradedClassifier",
            "Grader",
            "Grades",
            "MaxRisk",
            "Member",
            "OnnxGrader",
            "PROTOCOLS",
            "PaperCNN",
            "PetmError",
            "RECIPES",
            "Recall",
            "Recipe",
            "Storage",
            "TensorData",
            "adapt",
            "adopt_adapter",
            "attach_adapter",
            "distill",
            "dual_logits",
            "estimate",
            "export_onnx",
            "fgsm",
            "find_errors",
            "find_label_errors",
            "fit",
            "fit_grader",
            "learn",
            "load",
            "load_digits",
            "load_mnist",
            "load_model",
            "negative_aurc",
            "open_data",
            "paper_cnn",
            "push_to_hub",
            "recalibrate",
            "replace_errors",
            "reproduce",
            "train_teacher",
            "weight_drift",
        ]
    )


def test_every_public_name_is_there_and_no_module_takes_its_place():
    for name in petm.__all__:
        assert type(getattr(petm, name)).__name__ != "module", name


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'petm' has no attribute 'missing'"):
        _ = petm.missing


def test_import_is_light():
    code = "import sys, petm; print({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names))"
    answer = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(eval(answer.stdout)) - {"__main__"}
    assert not {name for name in loaded if not name.startswith(("_", "sitecustomize"))} - {"petm"}


def test_help_needs_no_torch():
    code = "import sys, petm.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
