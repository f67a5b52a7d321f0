"""The cap on a cascade: which second opinions are computed, and what becomes of the others."""

import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from networks import TinyCNN, images, randomise, seeded
from petm._internal.records import Record
from petm.adapter.cascade import BOUND, Allowance, Cascade
from petm.adapter.model import AdaptedModel, attach_adapter
from petm.adapter.one_pass import answers_of, predict_answers, set_cascade
from petm.data.base import TensorData
from petm.errors import ArgumentError, BundleError, PetmWarning
from petm.evidence.suspicion import suspicion_named
from petm.grading.grader import Grader
from petm.selective.thresholds import Threshold

ALL = Cascade(0.0)
"""Asks for every prediction."""


def bucket(asked: NDArray[np.bool_], most: Fraction, bound: int = BOUND) -> list[bool]:
    """The rule, row by row, in exact numbers."""
    full = max(Fraction(1), bound * most)
    tokens, granted = full, []
    for asks in asked.tolist():
        tokens = min(full, tokens + most)
        granted.append(asks and tokens >= 1)
        tokens -= granted[-1]
    return granted


@pytest.mark.parametrize("most", [0.0005, 0.1, 0.25, 1.0])
@pytest.mark.parametrize("share", [0.05, 0.6, 1.0])
@pytest.mark.parametrize("size", [1, 7, 5000])
def test_a_token_bucket_whatever_the_batch(most: float, share: float, size: int) -> None:
    asked = np.random.default_rng(0).random(5000) < share
    allowance = Allowance(Cascade(0.1, most=most))
    found = np.concatenate([allowance.grants(asked[start : start + size]) for start in range(0, 5000, size)])
    assert found.tolist() == bucket(asked, Fraction(str(most)))


def test_without_a_cascade_or_a_cap_nothing_is_left_out() -> None:
    asked = np.ones(3000, np.bool_)
    assert all(Allowance(which).grants(asked).all() for which in (None, ALL))


def test_an_allowance_goes_on_from_its_state() -> None:
    asked = np.random.default_rng(1).random(4000) < 0.7
    cascade = Cascade(0.1, most=0.2)
    whole, first = Allowance(cascade).grants(asked), Allowance(cascade)
    parts = [first.grants(asked[:2345]), Allowance(cascade, first.state).grants(asked[2345:])]
    assert np.concatenate(parts).tolist() == whole.tolist()


def test_threads_share_an_allowance() -> None:
    allowance = Allowance(Cascade(0.1, most=0.1))
    with ThreadPoolExecutor(4) as pool:
        found = sum(pool.map(lambda _: int(allowance.grants(np.ones(10, np.bool_)).sum()), range(500)))
    assert found == sum(bucket(np.ones(5000, np.bool_), Fraction(1, 10)))


def test_the_cap_is_twice_the_share_asked() -> None:
    suspicion = torch.arange(100, dtype=torch.float64) / 200
    for low, high, most in ((0.4, 1.0, 0.4), (0.4, 0.45, 0.2), (0.1, 1.0, 1.0)):
        assert Cascade(low, high).capped(suspicion) == Cascade(low, high, most)
    adapted = attach_adapter(seeded(TinyCNN), {"fc1": 2})
    set_cascade(adapted, TensorData(images(40)), 0.25)
    assert adapted.cascade is not None
    assert adapted.cascade.most == 0.5


def test_what_cannot_be() -> None:
    for most in (-0.1, 1.1, float("nan")):
        with pytest.raises(ArgumentError, match=r"^most: "):
            Cascade(0.1, most=most)
    told = {"low": 0.1, "high": 0.5, "most": 0.2}
    assert Cascade.from_json(Record(told, "here")) == Cascade(0.1, 0.5, 0.2)
    for wrong in ({"most": 2}, {"most": None}, {"low": 0.6}):
        with pytest.raises(BundleError, match=r"^here"):
            Cascade.from_json(Record(told | wrong, "here"))


def test_it_needs_no_torch() -> None:
    """An exported graph is run without it."""
    code = "import sys; sys.modules['torch'] = None; import petm.adapter.cascade, petm.grading.onnx_grader"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# in use


@pytest.fixture
def adapted(monkeypatch: pytest.MonkeyPatch) -> AdaptedModel:
    """A bucket of two tokens at a cap of a fifth, and a cascade that asks for every prediction."""
    monkeypatch.setattr("petm.adapter.cascade.BOUND", 10)
    made = randomise(attach_adapter(seeded(TinyCNN).eval(), {"fc1": 3}), scale=0.5)
    made.cascade = Cascade(0.0, most=0.2)
    return made


def expected(count: int) -> list[bool]:
    return bucket(np.ones(count, np.bool_), Fraction(1, 5), 10)


@pytest.mark.parametrize("size", [1, 16, 50])
def test_what_is_left_out_is_suspect(adapted: AdaptedModel, size: int) -> None:
    threshold = Threshold(0.0, "by hand", classes=tuple(Threshold(0.9 + label / 99, "by hand") for label in range(10)))
    grader = Grader(adapted, threshold, suspicion_named("mean_opinion"))
    with pytest.warns(PetmWarning, match=r"^cascade: ") as said:
        grades = grader.grade(images(50), batch_size=size)
    assert len(said) == 1
    granted = np.array(expected(50))
    assert 10 <= granted.sum() <= 12
    full = grader.judge(predict_answers(adapted, TensorData(images(50))))
    np.testing.assert_allclose(grades.suspicion[granted], full.suspicion[granted], atol=1e-6)
    assert full.trusted.sum() > granted.sum()
    assert not grades.trusted[~granted].any()
    assert (grades.suspicion[~granted] >= max(threshold.values)).all()
    np.testing.assert_array_equal(grades.trusted, threshold.trusts(grades.suspicion, grades.labels))


def test_each_run_has_its_own_allowance_and_batches_share_one(adapted: AdaptedModel) -> None:
    grader = Grader(adapted, Threshold(2.0, "by hand"), suspicion_named("mean_opinion"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        runs = [grader.grade(images(8)).trusted.tolist() for _ in range(2)]
        batches = [grader.grade_batch(images(8)).trusted for _ in range(2)]
    assert runs == [expected(8)] * 2
    assert np.concatenate(batches).tolist() == expected(16)
    assert len([each for each in said if issubclass(each.category, PetmWarning)]) == 3, "once for each allowance"


def test_texts_of_many_lengths_are_counted_in_their_order(adapted: AdaptedModel) -> None:
    """They are batched by length, the longest first."""
    data = TensorData(images(40))
    data.lengths = torch.arange(40)
    found = predict_answers(adapted, data, batch_size=4, allowance=Allowance(adapted.cascade))
    assert (~found.left_out).tolist() == expected(40)
    assert torch.equal(found.opinions[found.left_out][:, 0], found.base[found.left_out])
    plain = answers_of(adapted, images(40))
    assert not plain.left_out.any()
    granted = ~found.left_out
    torch.testing.assert_close(found.opinions[granted], plain.opinions[granted])
    assert not torch.allclose(found.opinions[granted][:, 0], found.base[granted], atol=0.01)
