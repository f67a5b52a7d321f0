"""How far accuracy that is estimated without labels lies from the true one, without and under a shift.

    python -m experiments.estimated_accuracy --data-dir DIR --models-dir DIR --cache DIR -o docs/measured

Half of the test data calibrates the probability of error, from the softmax of the base model. The other half comes in
windows of 500, as it is and under each shift of the suite. Writes ``estimated_accuracy.json``.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.suite.models import Base, Places, load_base
from experiments.suite.shifts import SHIFTS
from petm._internal.files import plain, write_json
from petm.models.prediction import predict_logits
from petm.selective.estimated import estimated_accuracy
from petm.selective.probability import ErrorProbability, fit_probability

NAMES = ("mnist_early", "mnist_lenet", "cifar_resnet9")
WINDOW = 500


def suspicion_of(base: Base, shift: str, rows: torch.Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the softmax's suspicion of test data under a shift, and where the base model is wrong."""
    data = base.under(shift).subset(rows)
    probabilities = predict_logits(base.model, data, title=f"{base.name}, {shift}").double().softmax(1)
    wrong = probabilities.argmax(1) != data.labels
    return (1 - probabilities.amax(1)).numpy(), wrong.numpy()


def measure(base: Base, shift: str, curve: ErrorProbability) -> dict[str, Any]:
    """Returns true and estimated accuracy of a base model under a shift, and the error of the estimate by window."""
    suspicion, wrong = suspicion_of(base, shift, base.order[len(base.test) // 2 :])
    p = curve.probability(suspicion)
    errors, covered = [], 0
    for start in range(0, len(p) - WINDOW + 1, WINDOW):
        part = slice(start, start + WINDOW)
        told = estimated_accuracy(float(p[part].sum()), float((p[part] * (1 - p[part])).sum()), WINDOW)
        true = 1 - float(wrong[part].mean())
        errors.append(told.value - true)
        covered += told.low <= true <= told.high
    return {
        "model": base.name,
        "shift": shift,
        "accuracy": 1 - float(wrong.mean()),
        "estimated": 1 - float(p.mean()),
        "windows": len(errors),
        "mean_absolute_error": float(np.abs(errors).mean()),
        "in_the_interval": covered / len(errors),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data-dir", "models-dir", "cache"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")
    told = parser.parse_args()
    places = Places(told.cache, told.models_dir, told.cache, told.cache, told.data_dir)
    rows = []
    for name in NAMES:
        base = load_base(name, places)
        curve = fit_probability(*suspicion_of(base, "none", base.order[: len(base.test) // 2]))
        for shift in SHIFTS:
            rows.append(measure(base, shift, curve))
            print(rows[-1], flush=True)
        write_json(told.output / "estimated_accuracy.json", plain({"window": WINDOW, "rows": rows}))


if __name__ == "__main__":
    main()
