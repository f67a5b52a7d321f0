"""Detectors of errors side by side on the same samples: the paper's, the controls, the plain softmax."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from petm.models.scores import disagreement, maximum_softmax, opposition
from petm.selective.bootstrap import bootstrap
from petm.selective.metrics import aupr_error, auroc, detection, most_suspect


def compare_detectors(base: Tensor, seconds: Mapping[str, Tensor], labels: Tensor, *, lead: str) -> dict[str, Any]:
    """Returns the figures of each second opinion as a detector of the base model's errors, and of the plain softmax.

    As in the paper, a second opinion flags the samples on which it disagrees with the base model. The softmax flags as
    many samples as ``lead`` does, those of lowest maximum probability.

    Args:
        base: The base model's logits ``(N, K)``.
        seconds: Logits ``(N, K)`` of each second opinion, by name.
        labels: int64 ``(N,)``.
        lead: Name of the second opinion that is compared with the others.

    Returns:
        ``detection``: recall, precision, counts and intervals by name; ``ranking``: AUROC and AUPR-Error of the
        suspicion by name; ``differences``: ``lead`` minus each other, with 95 % paired bootstrap intervals.
    """
    wrong = (base.argmax(1) != labels).numpy()
    flags = {name: disagreement(base, second).bool().numpy() for name, second in seconds.items()}
    suspicion = {name: opposition(base, second).numpy() for name, second in seconds.items()}
    suspicion["softmax"] = maximum_softmax(base).numpy()
    flags["softmax"] = most_suspect(suspicion["softmax"], int(flags[lead].sum()))
    return {
        "detection": {name: _flag_figures(flag, wrong) for name, flag in flags.items()},
        "ranking": {
            name: {"auroc": auroc(score, wrong), "aupr_error": aupr_error(score, wrong)}
            for name, score in suspicion.items()
        },
        "differences": {
            name: {
                "recall": bootstrap(_recall, flags[lead], wrong, minus=flags[name]),
                "precision": bootstrap(_precision, flags[lead], wrong, minus=flags[name]),
                "auroc": bootstrap(auroc, suspicion[lead], wrong, minus=suspicion[name]),
            }
            for name in flags
            if name != lead
        },
    }


def _flag_figures(flags: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> dict[str, Any]:
    found = detection(flags, wrong)
    return {
        "recall": found.recall.value,
        "precision": found.precision.value,
        "flagged": found.flagged,
        "errors": found.errors,
        "caught": found.caught,
        "recall_interval": (found.recall.low, found.recall.high),
        "precision_interval": (found.precision.low, found.precision.high),
    }


def _recall(flags: NDArray[np.float64], wrong: NDArray[np.bool_]) -> float:
    return detection(flags, wrong).recall.value


def _precision(flags: NDArray[np.float64], wrong: NDArray[np.bool_]) -> float:
    return detection(flags, wrong).precision.value
