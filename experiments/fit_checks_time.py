"""Which share of a fit do its checks take? Both are timed in one fit.

The checks are the probe of the model, the hashes of all samples, the base model's predictions on the calibration set,
the search for another order of the classes, and the profile of the inputs; the share is theirs over all the rest.

    python -m experiments.fit_checks_time --weights mnist_converged.safetensors --data-dir DIR -o docs/measured
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from experiments.machine import describe_machine
from petm import fitting
from petm._internal.files import write_json
from petm.data.digits import load_mnist
from petm.models.loading import load_weights
from petm.models.paper import paper_cnn

CHECKS = (
    "_check_data", "refuse_review_queue", "separate", "_answers", "_check_accuracy", "check_inputs", "describe_inputs",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="of petm.models:PaperCNN")
    parser.add_argument("--data-dir", type=Path, required=True, help="of MNIST")
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/measured"))
    arguments = parser.parse_args()
    train, test = load_mnist(arguments.data_dir)
    model, seconds = paper_cnn(), dict.fromkeys(CHECKS, 0.0)
    load_weights(model, arguments.weights)

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*values: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*values, **named)
            finally:
                seconds[name] += time.perf_counter() - began

        return run

    data, began = train.subset(range(arguments.samples)), time.perf_counter()
    wrapped: dict[str, Any] = {name: timed(name, getattr(fitting, name)) for name in CHECKS}
    with patch.multiple(fitting, **wrapped):
        fitting.fit(model, data, calibration=test, device="cpu")
    whole, checks = time.perf_counter() - began, sum(seconds.values())
    result: dict[str, Any] = {
        "machine": describe_machine(torch.device("cpu")),
        "samples": arguments.samples,
        "seconds": {"fit": whole, "checks": seconds},
        "share": checks / (whole - checks),
    }
    write_json(arguments.output / "fit_checks_time.json", result)
    print(f"checks {checks:.2f} s ({seconds}) of a fit of {whole:.1f} s: {result['share']:.2%} more")


if __name__ == "__main__":
    main()
