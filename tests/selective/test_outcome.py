"""What a grader brings beside the softmax: the same target for both, and a bundle gives it back."""

import json
from dataclasses import replace

import numpy as np
import pytest

from petm._internal.files import plain
from petm._internal.records import Record
from petm.errors import BundleError
from petm.selective.outcome import Outcome, outcome_of
from petm.selective.tables import trade_off_table
from petm.selective.targets import Coverage, Disagreement, MaxRisk, Target


def outcome(target: Target, *, softmax_alone: bool = False) -> tuple[Outcome, np.ndarray, np.ndarray]:
    """The outcome of 2,000 samples, where suspicion is better than the softmax; the softmax, and where it is wrong."""
    generator = np.random.default_rng(0)
    suspicion = generator.random(2000) - 0.5
    wrong = generator.random(2000) < (suspicion + 0.5) ** 4
    softmax = suspicion if softmax_alone else suspicion + generator.normal(0, 0.3, 2000)
    predicted = np.zeros(2000, int)
    threshold = target.threshold(suspicion, wrong, predicted, classes=2)
    how = {"threshold": threshold, "target": target, "classes": 2}
    return outcome_of(suspicion, softmax, wrong, predicted, **how), softmax, wrong


def test_both_have_the_same_target() -> None:
    found, softmax, wrong = outcome(Coverage(0.7))
    kept = np.sort(softmax)[:1400]
    assert (found.worth.reviewed, found.worth.softmax_reviewed) == (300, 300)
    assert found.worth.softmax_missed == pytest.approx(1000 * wrong[softmax <= kept[-1]].sum() / 2000)
    assert found.worth.missed < found.worth.softmax_missed
    assert found.sentences[1].startswith("Worth it:")
    assert {row.confidence for row in outcome(MaxRisk(0.1, confidence=0.9))[0].trade_off} == {0.9}


def test_beside_the_papers_flag_the_softmax_trusts_as_many() -> None:
    found, _, _ = outcome(Disagreement())
    assert found.worth.softmax_reviewed == pytest.approx(found.worth.reviewed, abs=1)
    assert found.worth.reviewed > 100


def test_the_softmax_itself_is_not_compared_with_itself() -> None:
    found, _, _ = outcome(MaxRisk(0.1), softmax_alone=True)
    assert found.softmax_alone
    assert len(found.sentences) == 1
    assert "softmax" not in found.sentences[0]


def test_the_table_guarantees_nothing_on_labels_that_suspicion_was_chosen_on() -> None:
    found, _, _ = outcome(MaxRisk(0.1))
    table, chosen_here = (trade_off_table(replace(found, chosen_here=here)) for here in (False, True))
    assert [row[0] for row in table.rows] == ["0.5%", "1%", "2%", "5%", "10%"]
    assert all("(" in cell for row in table.rows for cell in row[1:])
    assert table.header[1] == "Guaranteed"
    assert "Guaranteed" not in (*chosen_here.header, chosen_here.caption)
    assert "fresh labels" in chosen_here.caption
    alone = trade_off_table(outcome(MaxRisk(0.1), softmax_alone=True)[0])
    assert not any("(" in cell for row in alone.rows for cell in row)


def test_a_bundle_gives_it_back() -> None:
    found, _, _ = outcome(MaxRisk(0.1))
    told = json.loads(json.dumps(plain(found)))
    assert Outcome.from_json(Record(told, "bundle")) == found
    told["worth"]["answer"] = "splendid"
    with pytest.raises(BundleError, match="answer"):
        Outcome.from_json(Record(told, "bundle"))
    told = plain(replace(found, trade_off=found.trade_off[:1]))
    told["trade_off"][0]["chosen"]["seen"] = 1.5
    with pytest.raises(BundleError, match="seen"):
        Outcome.from_json(Record(told, "bundle"))
