"""Which settings come near the paper's Table 2? Recall and precision of PETM on MNIST, over what the paper leaves open.

The paper names neither its data, nor epsilon, nor the epochs, nor how the teacher starts. This trains the teacher for
each combination and prints recall and precision of "A and the teacher disagree", over the test images and over the
training images.

    python -m experiments.paper_grid --data-dir DIR --base mnist_early.safetensors -o docs/measured/paper_grid.json
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

from petm._internal.files import write_json
from petm.data.digits import load_mnist
from petm.models.loading import load_model
from petm.models.prediction import predict_logits
from petm.selective.metrics import detection
from petm.training.error_set import find_errors
from petm.training.teacher import train_teacher

WHOLE: list[dict[str, Any]] = [
    {"samples": "replaced", "start": start, "epsilon": epsilon, "epochs": epochs, "learning_rate": 1e-3}
    for start, epsilon, epochs in (
        ("base", 0.1, 1), ("base", 0.05, 2), ("base", 0.1, 2), ("base", 0.2, 2), ("base", 0.3, 2), ("base", 0.1, 5),
        ("scratch", 0.1, 1), ("scratch", 0.1, 3),
    )
]  # fmt: skip
ERRORS_ALONE: list[dict[str, Any]] = [
    {"samples": "errors", "start": "base", "epsilon": epsilon, "epochs": epochs, "learning_rate": rate}
    for epsilon, epochs, rate in itertools.product((0.1, 0.3), (1, 5, 10), (1e-3, 1e-4, 1e-5))
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--base", required=True, help="weights of the paper's network")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()

    train, test = load_mnist(arguments.data_dir)
    model = load_model("petm.models:PaperCNN", arguments.base)
    errors = find_errors(model, train)
    answers = [(data, predict_logits(model, data).argmax(1)) for data in (test, train)]
    rows = []
    for settings in ERRORS_ALONE + WHOLE:
        teacher = train_teacher(model, train, errors, **settings)
        found = [
            detection(predict_logits(teacher, data).argmax(1) != predicted, predicted != data.labels)
            for data, predicted in answers
        ]
        rows.append(settings | {"test": found[0], "train": found[1]})
        shown = "  ".join(f"{100 * part.recall.value:5.1f} / {100 * part.precision.value:5.1f}" for part in found)
        print(shown, settings, flush=True)
        write_json(arguments.output, {"base_train_errors": len(errors), "rows": rows})


if __name__ == "__main__":
    main()
