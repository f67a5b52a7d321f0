"""The scores in the layout of the field's benchmark of failure detection, for whoever wants to check with its code."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.detection_scores import Condition, Scored, write_array
from petm._internal.files import write_json

LAYOUT = "scores"
LOGITS, CONFIDENCES, DATASETS = "raw_logits.npz", "external_confids.npz", "datasets.json"


def write_layout(scored: Sequence[Scored], conditions: Sequence[Condition], folder: Path) -> None:
    """Writes ``scores/METHOD-SEED/`` with ``raw_logits.npz`` and ``external_confids.npz``, row by row the same samples.

    ``raw_logits.npz`` holds float32 ``(N, K + 2)``: A's logits, the label, the index of the data set.
    ``external_confids.npz`` holds float64 ``(N,)``: confidence, which is minus suspicion. Each is the one array
    ``arr_0``. The data sets are the test data and, for the first seed of a method, the conditions;
    ``scores/datasets.json`` names them in the order of their index.

    Args:
        scored: Every method with every seed.
        conditions: The test data first.
        folder: Of the benchmark.

    Raises:
        RunError: A file could not be written.

    Reference:
        Jaeger et al. (2023), A Call to Reflect on Evaluation Practices for Failure Detection in Image Classification;
        the layout is that of its code.
    """
    rows = {
        each.name: np.column_stack(
            (each.seen.logits.numpy(), each.seen.labels.numpy(), np.full(len(each.seen), index))
        ).astype(np.float32)
        for index, each in enumerate(conditions)
    }
    write_json(folder / LAYOUT / DATASETS, {"datasets": list(rows)})
    for one in scored:
        place = folder / LAYOUT / f"{one.method.name}-{one.seed}"
        write_array(place / LOGITS, np.concatenate([rows[name] for name in one.suspicion]))
        write_array(place / CONFIDENCES, -np.concatenate(list(one.suspicion.values())))
