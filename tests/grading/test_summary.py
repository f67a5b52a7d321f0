import numpy as np
import pytest

from petm.grading.grade_table import grade_table
from petm.grading.grades import Grades
from petm.grading.summary import Summary
from petm.selective.metrics import auroc
from petm.selective.thresholds import DISAGREEMENT, risk_threshold


def table(count: int, seed: int = 0, *, known: float = 1.0):
    """Grades, true labels for a share of them, and every tenth unreadable."""
    chance = np.random.default_rng(seed)
    reasons = ["violated" if index % 10 == 9 else None for index in range(count)]
    read = [index for index, reason in enumerate(reasons) if reason is None]
    suspicion = chance.random(len(read))
    labels = chance.integers(0, 3, len(read))
    grades = Grades(labels, labels, suspicion, suspicion, suspicion < 0.5)
    wrong = chance.random(len(read)) < suspicion / 2
    true: list[int | None] = [None] * count
    for place, index in enumerate(read):
        if chance.random() < known:
            true[index] = int((labels[place] + wrong[place]) % 3)
    made = grade_table(["x"] * count, list(range(count)), grades, (), reasons=reasons, true_labels=true)
    seen = np.array([true[index] is not None for index in read])
    return made, suspicion[seen], wrong[seen]


def test_counts_and_judgement_over_several_tables() -> None:
    summary, held = Summary(labelled=True), []
    for seed in range(3):
        made, suspicion, wrong = table(200, seed, known=0.6)
        summary.add(made)
        held.append((suspicion, wrong))
    suspicion, wrong = (np.concatenate(parts) for parts in zip(*held, strict=True))
    assert summary.counts["unreadable"] == 60
    assert sum(summary.counts.values()) == 600
    found = summary.judged(DISAGREEMENT)
    assert found is not None
    assert found.known == len(wrong)
    assert found.flags.caught == (wrong & (suspicion >= 0.5)).sum()
    assert found.flags.errors == wrong.sum()
    assert found.auroc == pytest.approx(auroc(suspicion, wrong))


def test_a_violated_guarantee_is_found() -> None:
    made, suspicion, wrong = table(3000)
    summary = Summary(labelled=True)
    summary.add(made)
    easy = risk_threshold(np.linspace(0, 1, 2000), np.zeros(2000, bool), max_risk=0.01)
    assert easy.holds
    judged = summary.judged(easy)
    assert judged is not None
    found = judged.guarantee
    assert (found.found.count, found.found.of) == ((wrong & (suspicion < 0.5)).sum(), (suspicion < 0.5).sum())
    assert found.verdict == "violated"


def test_without_labels_nothing_is_judged() -> None:
    made, _, _ = table(50, known=0.0)
    summary = Summary(labelled=True)
    summary.add(made)
    assert summary.judged(DISAGREEMENT) is None


def test_one_kind_of_prediction_has_no_auroc() -> None:
    grades = Grades(*(np.zeros(4, int),) * 2, np.arange(4.0), np.zeros(4), np.ones(4, bool))
    summary = Summary(labelled=True)
    summary.add(grade_table(["x"] * 4, [0, 1, 2, 3], grades, (), true_labels=[0, 0, 0, 0]))
    judged = summary.judged(DISAGREEMENT)
    assert judged is not None
    assert judged.auroc is None
