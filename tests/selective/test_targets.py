import copy
import json
from typing import Any

import numpy as np
import pytest

from petm._internal.records import Record
from petm.errors import ArgumentError, BundleError
from petm.selective.targets import (
    Coverage,
    Disagreement,
    MaxRisk,
    Recall,
    Target,
    target_from_json,
    target_of,
    target_to_json,
)
from petm.selective.thresholds import class_thresholds, coverage_threshold, recall_threshold, risk_threshold

TARGETS: tuple[Target, ...] = (
    MaxRisk(0.1),
    MaxRisk(0.2, confidence=0.8, per="class"),
    Coverage(0.7),
    Coverage(1),
    Recall(0.9),
    Recall(0.8, confidence=0.9),
    Disagreement(),
)
RANDOM = np.random.default_rng(0)
PREDICTED = RANDOM.integers(0, 3, 400)
SUSPICION = RANDOM.normal(size=400)
WRONG = RANDOM.random(400) < np.where(SUSPICION > 1, 0.5, 0.02)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_target_survives_json_and_a_copy(target: Target) -> None:
    again = target_from_json(Record(json.loads(json.dumps(target_to_json(target))), "f"))
    assert again == target == copy.deepcopy(target)
    assert hash(again) == hash(target)


def test_a_target_gives_the_threshold_of_its_rule() -> None:
    def of(target: Target) -> Any:
        return target.threshold(SUSPICION, WRONG, PREDICTED, classes=3)

    assert of(MaxRisk(0.1, confidence=0.9)) == risk_threshold(SUSPICION, WRONG, max_risk=0.1, confidence=0.9)
    assert of(MaxRisk(0.1, per="class")) == class_thresholds(SUSPICION, WRONG, PREDICTED, classes=3, max_risk=0.1)
    assert of(Coverage(0.6)) == coverage_threshold(SUSPICION, 0.6)
    assert of(Recall(0.6)) == recall_threshold(SUSPICION, WRONG, recall=0.6)
    assert of(Recall(0.6, confidence=0.9)) == recall_threshold(SUSPICION, WRONG, recall=0.6, confidence=0.9)
    found = of(Disagreement())
    assert found.coverage == (SUSPICION <= 0).mean()
    np.testing.assert_array_equal(found.trusts(np.array([-1.0, 0.0, 1e-300])), [True, True, False])


@pytest.mark.parametrize(
    ("kind", "arguments", "argument"),
    [
        (MaxRisk, {"max_risk": 0}, "max_risk"),
        (MaxRisk, {"max_risk": 1}, "max_risk"),
        (MaxRisk, {"max_risk": 5.0}, "max_risk"),
        (MaxRisk, {"max_risk": float("nan")}, "max_risk"),
        (MaxRisk, {"max_risk": "0.1"}, "max_risk"),
        (MaxRisk, {"max_risk": True}, "max_risk"),
        (MaxRisk, {"max_risk": 0.1, "confidence": 1.0}, "confidence"),
        (MaxRisk, {"max_risk": 0.1, "confidence": None}, "confidence"),
        (MaxRisk, {"max_risk": 0.1, "per": "row"}, "per"),
        (Coverage, {"coverage": 0}, "coverage"),
        (Coverage, {"coverage": 1.01}, "coverage"),
        (Recall, {"recall": -0.1}, "recall"),
        (Recall, {"recall": 1.0, "confidence": 0.9}, "recall"),
        (Recall, {"recall": 0.9, "confidence": 2}, "confidence"),
    ],
)
def test_a_target_is_checked_when_it_is_made(kind: type, arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}:"):
        kind(**arguments)
    if arguments.get("max_risk") == arguments.get("max_risk"):  # no NaN, which compares with nothing
        with pytest.raises(BundleError, match=argument):
            target_from_json(Record({"kind": kind.kind, **arguments}, "f"))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({}, None),
        ({"max_risk": 0.1}, MaxRisk(0.1)),
        ({"max_risk": 0.1, "confidence": 0.9, "per_class": True}, MaxRisk(0.1, confidence=0.9, per="class")),
        ({"coverage": 0.5}, Coverage(0.5)),
        ({"recall": 0.5}, Recall(0.5)),
        ({"recall": 0.5, "confidence": 0.9}, Recall(0.5, confidence=0.9)),
    ],
)
def test_options_name_a_target(options: dict[str, Any], target: Target | None) -> None:
    assert target_of(**options) == target


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"max_risk": 0.1, "recall": 0.9}, "max_risk, recall"),
        ({"coverage": 0.0}, "coverage"),
        ({"confidence": 0.9}, "confidence"),
        ({"confidence": 2.0}, "confidence"),
        ({"max_risk": 0.1, "confidence": 0.0}, "confidence"),
        ({"coverage": 0.9, "confidence": 0.9}, "confidence"),
        ({"recall": 0.9, "per_class": True}, "per_class"),
    ],
)
def test_options_that_name_none(options: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument}:"):
        target_of(**options)
