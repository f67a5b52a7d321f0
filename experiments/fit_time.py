"""How many epochs of its own training does a second opinion take to fit? Both run here, one after the other, in turn.

The base model is trained further by `train` for one epoch, on the same data, in the batch size of the recipe's
steps. Fitting is the recipe ``fast`` after the count of the base model's errors on a sample, as `petm.fit` does both.

    python -m experiments.fit_time --weights mnist_converged.safetensors --data-dir DIR -o docs/measured
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from experiments.machine import describe_machine
from petm._internal.files import write_json
from petm.data.digits import load_mnist
from petm.models.loading import load_weights
from petm.models.paper import PaperCNN, paper_cnn
from petm.training.loop import CROSS_ENTROPY, Settings, train
from petm.training.preflight import CHECKED, preflight
from petm.training.recipes import adapt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="of petm.models:PaperCNN")
    parser.add_argument("--data-dir", type=Path, required=True, help="of MNIST")
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/measured"))
    arguments = parser.parse_args()
    data = load_mnist(arguments.data_dir)[0].subset(range(arguments.samples))

    def epoch() -> None:
        settings = Settings(1, 1e-4)
        train(_model(arguments.weights), data, CROSS_ENTROPY, settings, device="cpu")

    def fitting() -> None:
        model = _model(arguments.weights)
        preflight(model, data.subset(range(min(CHECKED, len(data)))))
        adapt(model, data, device="cpu")

    times: dict[str, list[float]] = {"epoch of A": [], "fitting": []}
    for _ in range(arguments.rounds):
        for name, call in (("epoch of A", epoch), ("fitting", fitting)):
            times[name].append(_seconds(call))
            print(f"{name}: {times[name][-1]:.1f} s", flush=True)
    ratios = [fit / one for fit, one in zip(times["fitting"], times["epoch of A"], strict=True)]
    result: dict[str, Any] = {
        "machine": describe_machine(torch.device("cpu")),
        "recipe": "auto",
        "samples": arguments.samples,
        "precision": "float32",
        "seconds": times,
        "epochs_of_a": ratios,
    }
    write_json(arguments.output / "fit_time-fast-float32.json", result)
    print(f"fast: {median(ratios):.2f} epochs of A")


def _model(weights: Path) -> PaperCNN:
    model = paper_cnn()
    load_weights(model, weights)
    return model


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
