"""The result of a reproduction that was never run."""

import json
from typing import Any

from petm._internal.files import plain


def found(caught: int, flagged: int, errors: int = 40) -> dict[str, Any]:
    recall, precision = (caught / of if of else float("nan") for of in (errors, flagged))
    return {
        "recall": recall,
        "precision": precision,
        "flagged": flagged,
        "errors": errors,
        "caught": caught,
        "recall_interval": (0.1234, 0.9876),
        "precision_interval": (0.25, 0.75),
    }


def differences(**words: str) -> dict[str, Any]:
    """Differences whose intervals mean the given words; the other measures are unclear."""
    intervals = {"better": (0.1, 0.3), "worse": (-0.3, -0.1), "unclear": (-0.05, 0.05), "missing": (float("nan"),) * 2}
    chosen = {measure: intervals[words.get(measure, "unclear")] for measure in ("recall", "precision", "auroc")}
    return {measure: {"value": (low + high) / 2, "low": low, "high": high} for measure, (low, high) in chosen.items()}


def example() -> dict[str, Any]:
    """A result as `reproduce` writes it, with round numbers, as JSON has it."""
    caught = {
        "petm": (30, 50),
        "lora_petm": (20, 40),
        "lora_petm_small": (10, 16),
        "petm_control": (31, 50),
        "control": (20, 44),
        "softmax": (0, 0),
    }
    result = {
        "protocol": {
            "base_epochs": 4, "teacher_epochs": 6, "epochs": 60, "patience": None, "batch_size": 32, "epsilon": 0.1,
            "start": "base", "samples": "replaced", "temperature": 1.0, "seed": 7, "base_weights": None,
        },
        "data": {
            "train": {"source": "digits", "samples": 2000, "content": "ab" * 32},
            "test": {"source": "digits", "samples": 1000, "content": "cd" * 32},
        },
        "base": {"parameters": 1000, "test_accuracy": 0.96, "train_errors": 1, "test_errors": 40},
        "fidelity": {
            "base_at_alpha_0": 1.0, "teacher_at_alpha_1": 0.98765, "small_teacher_at_alpha_1": 0.9,
            "error_set": {"base_at_alpha_0": 1.0, "teacher_at_alpha_1": 0.5, "small_teacher_at_alpha_1": float("nan")},
        },
        "detection": {name: found(*counts) for name, counts in caught.items()},
        "ranking": {name: {"auroc": 0.98765, "aupr_error": float("nan")} for name in caught},
        "differences": {
            "petm": differences(),
            "lora_petm_small": differences(auroc="missing"),
            "petm_control": differences(recall="worse", precision="better"),
            "control": differences(),
            "softmax": differences(recall="better", precision="better", auroc="better"),
        },
        "cost": {
            "base_parameters": 1000, "teacher_parameters": 1000, "adapter_parameters": 500, "small_parameters": 20,
            "base_bytes": 4000, "teacher_bytes": 4000, "adapter_bytes": 2000, "small_bytes": 80,
            "adapter_over_teacher": 0.5, "small_over_teacher": 0.02,
            "system_over_petm": 0.75, "small_system_over_petm": 0.51,
        },
        "drift": [
            {"layer": "conv1", "relative_norm": 0.0956, "rank_90": 2, "full_rank": 9},
            {"layer": "fc1", "relative_norm": float("inf"), "rank_90": 13, "full_rank": 128},
        ],
        "sweep": {
            "alpha": [0.0, 0.5, 1.0], "fidelity_to_base": [1.0, 0.99, 0.95], "fidelity_to_teacher": [0.9, 0.95, 0.98],
        },
        "figure_1": {
            "conv1_explained": {"base": [0.3, 0.2, 0.5], "teacher": [0.5, 0.25, 0.25]},
            "conv2_explained": {"base": [0.3, 0.2, 0.5], "teacher": [0.5, 0.25, 0.25]},
            "silhouette_features": 0.1, "silhouette_map": 0.04, "probe_accuracy": 0.875, "images": 300,
        },
        "training": {"lora_petm": {"epochs": 23, "best_epoch": 18, "loss": 0.0159}},
        "seconds": {"errors": 0.456, "lora_petm": 11.49, "something new": 2000.0},
        "seed": 7,
        "versions": {"python": "3.11.7", "petm": "0.1.0"},
        "paper": {
            "source": "LoRA-PETM (ACK 2025)",
            "fidelity": {"base_at_alpha_0": 1.0, "teacher_at_alpha_1": 0.96},
            "detection": {
                "petm": {"recall": 0.8750, "precision": 0.5904},
                "lora_petm": {"recall": 0.8842, "precision": 0.5348},
            },
            "cost": {"adapter_over_teacher": 0.5, "system_over_petm": 0.75},
        },
    }  # fmt: skip
    return json.loads(json.dumps(plain(result), allow_nan=False))
