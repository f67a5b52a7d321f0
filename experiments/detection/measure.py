"""How well each method finds the errors of one base model: on the same samples, with intervals and costs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.baselines.protocol import Seen
from experiments.detection.conditions import ATTACKS, SHIFTS, attacked, choose_epsilon, shifted
from experiments.detection.judge import (
    DIFFERENCES,
    PAPER_PRECISION,
    SPLITS,
    at_precision,
    calibration,
    curves,
    judge,
    under_conditions,
)
from experiments.detection.methods import Method, plan
from experiments.detection.scores import TEST, Condition, Scored, open_folder, score_all, write_layout
from experiments.machine import describe_machine
from petm._internal.files import plain, write_json
from petm._internal.progress import track
from petm.data.base import Data
from petm.errors import ArgumentError, DataError
from petm.models.loading import count_parameters, weights_fingerprint
from petm.models.prediction import Precision, choose_device

RESULT = "result.json"


@dataclass(frozen=True, eq=False)
class DetectionSettings:
    """What the benchmark is told besides the base model and the data.

    Attributes:
        title: What this base model on these data is called.
        methods: Which methods, ``NAME`` or ``NAME:SEEDS``; empty takes all.
        views: ``mirror`` or ``shift``, as in `experiments.detection.methods.plan`.
        members: Networks of the ensemble besides the base model.
        seeds: How many seeds a method is fitted with whose result depends on the seed.
        shift: Judge under noise, blur, rotation and less contrast too.
        attack: Judge on FGSM and PGD inputs too.
        resamples: Of the bootstrap intervals.
        at_most: Test samples that are shifted and attacked.
        precision: Of the matrix products in the recipes' trainings.
        device: Where everything runs.
    """

    title: str = "A"
    methods: tuple[str, ...] = ()
    views: str = "shift"
    members: Sequence[nn.Module] = ()
    seeds: int = 5
    shift: bool = False
    attack: bool = False
    resamples: int = 1000
    at_most: int = 2000
    precision: Precision = "float32"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("seeds", "resamples", "at_most"):
            if getattr(self, name) < 1:
                raise ArgumentError(
                    f"{name}: expected at least 1, got {getattr(self, name)}. Leave it out for the default."
                )


def measure_detection(
    model: nn.Module,
    train: Data,
    test: Data,
    folder: Path,
    settings: DetectionSettings,
) -> dict[str, Any]:
    """Returns the result as ``result.json`` holds it, and leaves it in the folder with every score that it rests on.

    Nothing is fitted to the test data, save what the table says of calibration: the probability of error, the
    temperature and the settings of ODIN are fitted on one half of them and judged on the other.

    Args:
        model: The base model; moved to the device.
        train: Labelled samples that the base model was trained on.
        test: Labelled samples that it was not.
        folder: Of the scores; a later run computes only what is not there yet.
        settings: What to compare, and how.

    Raises:
        ArgumentError: A method or the views are unknown.
        DataError: A label is missing or foreign, or the base model is always right or always wrong on the test data.
        RunError: The folder cannot be used.
    """
    methods = plan(
        settings.methods,
        views=settings.views,
        members=settings.members,
        seeds=range(settings.seeds),
        precision=settings.precision,
    )
    device = choose_device(settings.device)
    for network in (model, *settings.members):
        network.to(device).eval()
    with open_folder(folder) as place:
        seen = Seen(model, train)
        conditions, epsilon = _conditions(model, train, test, settings, place)
        wrong = {each.name: each.seen.wrong.numpy() for each in conditions}
        errors = int(wrong[TEST].sum())
        if not 0 < errors < len(test):
            raise DataError(
                f"{test.source}: expected samples that the model gets right and samples that it gets wrong, got "
                f"{errors} wrong "
                f"of {len(test)}. Use more samples."
            )
        scored, left_out = score_all(methods, seen, conditions, place, device=settings.device)
        write_layout(scored, conditions, place)
        result: dict[str, Any] = plain(
            {
                "format": "petm detection result",
                "title": settings.title,
                "model": {"parameters": count_parameters(model), "weights": weights_fingerprint(model)},
                "data": {"train": _describe(train), "test": _describe(test)},
                "errors": {"test": errors, "train": int(seen.wrong.sum())},
                "settings": {
                    "views": settings.views,
                    "members": len(settings.members),
                    "seeds": settings.seeds,
                    "precision_of_training": settings.precision,
                    "resamples": settings.resamples,
                    "splits": SPLITS,
                    "precision": PAPER_PRECISION,
                    "at_most": settings.at_most,
                    "epsilon": epsilon,
                },
                "methods": _judged(scored, wrong, settings.resamples),
                "conditions": {
                    each.name: {"samples": len(each.seen), "errors": int(wrong[each.name].sum())}
                    for each in conditions[1:]
                },
                "left_out": left_out,
                "machine": describe_machine(device),
                "date": time.strftime("%Y-%m-%d"),
            }
        )
        write_json(place / RESULT, result)
    return result


def random_part(data: Data, samples: int | None) -> Data:
    """Returns so many samples drawn at random, always the same ones, in their order; all where there are no more.

    Args:
        data: The samples.
        samples: How many, at least 1; absent takes all.

    Raises:
        ArgumentError: ``samples`` is below 1.
    """
    if samples is not None and samples < 1:
        raise ArgumentError(f"samples: expected at least 1, got {samples}. Leave it out for all.")
    if samples is None or samples >= len(data):
        return data
    return data.subset(random_rows(len(data), samples))


def random_rows(of: int, count: int) -> torch.Tensor:
    """Returns ``count`` of the numbers below ``of``, always the same, or all of them; int64, ascending."""
    return torch.randperm(of, generator=torch.Generator().manual_seed(0))[:count].sort().values


def _conditions(
    model: nn.Module, train: Data, test: Data, settings: DetectionSettings, folder: Path
) -> tuple[list[Condition], float | None]:
    """The test data, then what is shifted and attacked; and the size of the attack's step, where there is one."""
    found = [Condition(TEST, Seen(model, test), torch.arange(len(test)))]
    rows = random_rows(len(test), settings.at_most)
    some, epsilon = test.subset(rows), None
    if settings.shift:
        for name, shift in SHIFTS.items():
            found += [
                Condition(f"{name} {strength:g}", Seen(model, shifted(some, name, strength)), rows)
                for strength in shift.strengths
            ]
    if settings.attack:
        epsilon = choose_epsilon(model, train)
        for name in ATTACKS:
            moved = attacked(model, some, name, epsilon, folder=folder / "inputs")
            found.append(Condition(name, Seen(model, moved), rows))
    return found, epsilon


def _judged(scored: Sequence[Scored], wrong: dict[str, Any], resamples: int) -> list[dict[str, Any]]:
    """A row for each method."""
    by_method: dict[str, list[Scored]] = {}
    for each in scored:
        by_method.setdefault(each.method.name, []).append(each)
    elsewhere = under_conditions(
        {name: runs[0].suspicion for name, runs in by_method.items()},
        {name: errors for name, errors in wrong.items() if name != TEST},
        resamples=resamples,
    )
    rows = []
    scores = {name: [each.suspicion[TEST] for each in runs] for name, runs in by_method.items()}
    rivals = {name: scores[name] for name, runs in by_method.items() if runs[0].method.is_rival}
    with track("judge", len(by_method)) as progress:
        for name, runs in by_method.items():
            suspicion = scores[name]
            against = rivals if runs[0].method.is_ours else {}
            rows.append(
                {
                    **_about(runs[0].method),
                    "seeds": [each.seed for each in runs],
                    **judge(suspicion, scores["softmax"], wrong[TEST], resamples=resamples),
                    "against": {
                        rival: judge(suspicion, theirs, wrong[TEST], names=DIFFERENCES, resamples=resamples)[
                            "difference"
                        ]
                        for rival, theirs in against.items()
                    },
                    "calibration_error": calibration(suspicion, wrong[TEST]),
                    "recall_at_precision": at_precision(suspicion, wrong[TEST]),
                    "cost": {
                        key: _mean([each.cost[key] for each in runs])
                        for key in ("extra_parameters", "passes", "seconds")
                    },
                    "chosen": [dict(each.chosen) for each in runs],
                    "conditions": elsewhere[name],
                    "curves": curves(suspicion[0], wrong[TEST]),
                }
            )
            progress.advance()
    return rows


def _about(method: Method) -> dict[str, Any]:
    baseline = method.baseline
    return {
        "name": method.name,
        "title": baseline.title,
        "definition": baseline.definition,
        "source": baseline.source,
        "ours": method.is_ours,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _describe(data: Data) -> dict[str, Any]:
    """What identifies a data set to others: no folder of this machine."""
    return {"source": PurePath(data.source).name, "samples": len(data), "content": data.content}
