"""A grader on fresh labels, or for another target: the threshold is the tested one, and all else is kept."""

from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from networks import randomise, snapshot
from petm.adapter.model import Cascade, Member, attach_adapter
from petm.data.base import Data, Joined, TensorData
from petm.data.labels import UNLABELLED
from petm.data.unseen import sample_hashes
from petm.errors import ArgumentError, DataError, PetmWarning
from petm.evidence.suspicion import suspicion_named
from petm.grading.grader import Grader, fit_grader, load
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin, describe_data
from petm.recalibration import recalibrate
from petm.selective.choice import Choice
from petm.selective.targets import Coverage, MaxRisk, Recall
from petm.selective.thresholds import recall_threshold, risk_threshold

NAMES = tuple("0123456789")


@pytest.fixture
def grader(model: nn.Module, digits: tuple[Data, ...]) -> Grader:
    """A grader with everything that can be lost."""
    adapted = randomise(attach_adapter(model, {"fc1": 4}, members=(Member(), Member("", "mirror"))), scale=0.05)
    adapted.cascade = Cascade(0.01)
    data = {"train": describe_data(digits[0])}
    origin = Origin(ModelOrigin("networks:TinyCNN", {}, None, NAMES), InputOrigin((28, 28), 1), data, {"seed": 3})
    choice = Choice("mean_opinion", "aurc", (), "It was named.")
    how = {"score": suspicion_named("mean_opinion"), "origin": origin, "choice": choice}
    return fit_grader(adapted, digits[1], target=Recall(0.8), **how)


def judged(grader: Grader, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Suspicion, and where the model is wrong."""
    grades = grader.grade(data)
    return grades.suspicion, grades.labels != data.labels.numpy()


def test_only_what_depends_on_the_labels_is_set_anew(grader: Grader, digits: tuple[Data, ...], tmp_path: Path) -> None:
    grader.save(tmp_path / "old.petm")
    before = snapshot(grader.adapted.base)
    grader = load(tmp_path / "old.petm", grader.adapted.base)
    found = recalibrate(grader, digits[2], target=MaxRisk(0.1))
    assert snapshot(grader.adapted.base) == before
    suspicion, wrong = judged(grader, digits[2])
    assert found.threshold == risk_threshold(suspicion, wrong, max_risk=0.1)
    assert (found.target, found.measured["calibration_samples"]) == (MaxRisk(0.1), len(digits[2]))
    assert found.measured["calibration_errors"] == wrong.sum()
    found.save(tmp_path / "new.petm")
    told = load(tmp_path / "new.petm", grader.adapted.base)
    assert (told.origin.model, told.origin.inputs) == (grader.origin.model, grader.origin.inputs)
    assert (told.adapted.members, told.adapted.cascade) == (grader.adapted.members, grader.adapted.cascade)
    assert (told.score, told.choice, told.outcome) == (grader.score, grader.choice, found.outcome)
    assert told.origin.data["train"] == grader.origin.data["train"]
    assert told.origin.data["calibration"].content == digits[2].content
    assert told.origin.settings == {"seed": 3, "parent": grader.bundle}
    assert len(grader.bundle) == 64
    np.testing.assert_array_equal(told.grade(digits[0]).suspicion, grader.grade(digits[0]).suspicion)


def test_without_a_target_the_graders_own_is_kept(grader: Grader, digits: tuple[Data, ...]) -> None:
    found = recalibrate(grader, digits[2])
    assert found.target == Recall(0.8)
    assert found.threshold == recall_threshold(*judged(grader, digits[2]), recall=0.8)


def test_candidates_keep_the_coverage_of_the_grader_unless_another_is_named(
    grader: Grader, digits: tuple[Data, ...]
) -> None:
    other = recalibrate(grader, digits[2], set_coverage=0.8)
    assert other.sets is not None
    assert (grader.sets.coverage if grader.sets else 0, other.sets.coverage) == (0.95, 0.8)
    kept = recalibrate(other, digits[1])
    assert kept.sets is not None
    assert (kept.sets.coverage, kept.sets.limits != other.sets.limits) == (0.8, True)
    with pytest.raises(ArgumentError, match=r"^set_coverage: "):
        recalibrate(grader, digits[2], set_coverage=1.0)


def test_repetitions_count_once(grader: Grader, digits: tuple[Data, ...]) -> None:
    every = Joined(digits[2], digits[2].subset(range(100)))
    found = recalibrate(grader, every, target=Coverage(0.5))
    assert found.threshold == recalibrate(grader, digits[2], target=Coverage(0.5)).threshold
    assert found.origin.data["calibration"].repeated == 100


@pytest.mark.parametrize(
    ("target", "threshold"),
    [
        (MaxRisk(0.1), partial(risk_threshold, max_risk=0.1)),
        (Recall(0.6, confidence=0.9), partial(recall_threshold, recall=0.6, confidence=0.9)),
    ],
)
def test_a_guarantee_holds_for_either_answer_where_nobody_can_tell(grader, digits, target, threshold) -> None:
    suspicion, wrong = judged(grader, digits[2])
    untold = np.argsort(suspicion)[(np.linspace(0.2, 0.95, 5) * len(suspicion)).astype(int)]
    labels = digits[2].labels.clone()
    labels[torch.from_numpy(untold)] = UNLABELLED
    drawn = TensorData(digits[2].inputs(range(len(labels))), labels, classes=digits[2].classes)
    found = recalibrate(grader, drawn, target=target, chance=np.ones(len(labels))).threshold
    for answers in product((False, True), repeat=5):
        wrong[untold] = answers
        assert found.value <= threshold(suspicion, wrong).value
    assert found.holds
    with pytest.raises(DataError, match="got none for sample"):  # without chances it is a label that was forgotten
        recalibrate(grader, drawn, target=target)


@pytest.mark.parametrize("copies", [0, 30])
def test_labels_of_a_review_queue_count_by_their_chance(grader: Grader, digits: tuple[Data, ...], copies: int) -> None:
    chance = np.where(grader.grade(digits[2]).trusted, 0.4, 1.0)
    drawn = np.flatnonzero(np.random.default_rng(0).random(len(chance)) < chance)
    data = digits[2].subset(drawn)
    suspicion, wrong = judged(grader, data)
    rows = np.r_[: len(drawn), :copies]
    found = recalibrate(grader, data.subset(rows), target=Recall(0.8), chance=chance[drawn][rows])
    assert found.threshold == recall_threshold(suspicion, wrong, recall=0.8, chance=chance[drawn])
    everywhere, errors = judged(grader, digits[2])
    trusted = found.threshold.trusts(everywhere)
    for name, true in (("coverage", trusted.mean()), ("risk", errors[trusted].mean())):  # unlike among the labels
        assert found.measured[name]["low"] < true < found.measured[name]["high"]
    assert found.threshold.trusts(suspicion).mean() < trusted.mean() - 0.1
    assert found.outcome is not None
    assert found.outcome.worth.reviewed == pytest.approx(1000 * (1 - trusted.mean()), abs=40)


def test_faults(grader: Grader, digits: tuple[Data, ...], tmp_path: Path) -> None:
    x, y = digits[2].inputs(range(200)), digits[2].labels[:200]
    for data, argument in (
        (TensorData(x), "labels"),
        (TensorData(x, y * 0), "two classes"),
        (TensorData(x, y + 5), "labels"),
        (TensorData(x, (y + 1) % 10), "calibration: .*order"),
        (TensorData(x, y, classes=tuple(reversed(NAMES))), "calibration .*classes of the grader"),
        (TensorData(255 * x, y), "calibration"),
        (TensorData(x[:0], y[:0]), "at least one sample"),
    ):
        with pytest.raises(DataError, match=argument):
            recalibrate(grader, data)
    with pytest.raises(ArgumentError, match="chance"):
        recalibrate(grader, TensorData(x, y), chance=np.zeros(200))
    with pytest.raises(ArgumentError, match="chance"):
        recalibrate(grader, TensorData(x, y), chance=np.ones(199))
    queue = tmp_path / "labels.csv"
    queue.write_text("input,label,confirmed,suspicion\n" + "a.png,1,true,0.5\n" * 9)
    with pytest.raises(DataError, match="review queue"):
        recalibrate(grader, TensorData(x, y, source=str(queue)))
    assert recalibrate(grader, TensorData(x, (y + torch.ones(200).long()) % 10), force=True).measured["risk"]


def test_labels_that_the_grader_has_learned_from_are_no_calibration(grader: Grader, digits: tuple[Data, ...]) -> None:
    some = digits[2].subset(range(300))
    seen = replace(describe_data(some), hashes=tuple(f"{int(each):016x}" for each in sample_hashes(some)))
    learned = replace(grader, origin=replace(grader.origin, data={**grader.origin.data, "labels": seen}))
    with pytest.warns(PetmWarning, match=r"^calibration: .* 300 of "):
        again = recalibrate(learned, digits[2])
    assert again.measured["calibration_samples"] == len(digits[2]) - 300
    with pytest.raises(DataError, match=r"^calibration:"):
        recalibrate(learned, some)
    with pytest.raises(DataError, match=r"^calibration:"):
        recalibrate(learned, digits[2], chance=np.full(len(digits[2]), 0.5))
