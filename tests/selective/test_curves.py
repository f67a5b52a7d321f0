import numpy as np
import pytest

from petm.errors import ArgumentError
from petm.selective.curves import COVERAGES, cross_validated, judge, reliability, risk_coverage
from petm.selective.metrics import expected_calibration_error, share
from petm.selective.probability import fit_probability


def samples(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Suspicion with ties, and errors that follow it."""
    random = np.random.default_rng(seed)
    suspicion = random.integers(0, 40, n) / 40
    return suspicion, random.random(n) < suspicion


def test_risk_coverage_accepts_equal_suspicion_together() -> None:
    curve = risk_coverage([0.1, 0.2, 0.2, 0.9], [False, True, False, True])
    np.testing.assert_allclose(curve.coverage, [0.25, 0.75, 1])
    np.testing.assert_allclose(curve.risk, [0, 1 / 3, 1 / 2])


def test_risk_coverage_is_that_of_every_threshold() -> None:
    suspicion, wrong = samples()
    levels = [suspicion <= level for level in np.unique(suspicion)]
    curve = risk_coverage(suspicion, wrong)
    np.testing.assert_allclose(curve.coverage, [accepted.mean() for accepted in levels])
    np.testing.assert_allclose(curve.risk, [wrong[accepted].mean() for accepted in levels])


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    random = np.random.default_rng(0)
    suspicion, wrong = random.random(5000), random.random(5000) < 0.1
    curve = risk_coverage(suspicion, wrong)
    assert 300 < len(curve.coverage) <= 400
    assert (np.diff(curve.coverage) > 0).all()
    assert curve.coverage[-1] == 1
    assert curve.risk[-1] == wrong.mean()
    for coverage, risk in zip(*curve, strict=True):
        assert risk == wrong[np.argsort(suspicion)[: round(coverage * 5000)]].mean()


def test_reliability_cuts_distinct_probabilities_into_equal_bins() -> None:
    probability, wrong = np.linspace(0.05, 0.95, 10), np.array([0, 0, 0, 1, 0, 1, 0, 1, 1, 1], bool)
    found = reliability(probability, wrong, bins=5)
    assert [part.predicted for part in found] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert [part.observed for part in found] == [share(count, 2) for count in (0, 1, 1, 1, 2)]


def test_equal_probabilities_share_one_bin() -> None:
    (only,) = reliability(np.full(8, 0.25), [True, *[False] * 7])
    assert (only.predicted, only.observed) == (0.25, share(1, 8))


def test_the_bins_are_those_of_the_calibration_error() -> None:
    suspicion, wrong = samples()
    found = reliability(suspicion, wrong, bins=7)
    gap = sum(part.observed.of * abs(part.observed.value - part.predicted) for part in found) / len(wrong)
    assert gap == pytest.approx(expected_calibration_error(suspicion, wrong, bins=7))
    assert sum(part.observed.of for part in found) == len(wrong)


def test_each_sample_is_judged_by_a_curve_that_has_not_seen_it() -> None:
    # Three of each kind make three folds of one error and one right prediction each.
    suspicion, wrong = np.arange(6) / 6, np.array([False, True, False, True, False, True])
    found = cross_validated(suspicion, wrong)
    assert found is not None
    for row in range(6):
        candidates = []
        for partner in np.flatnonzero(wrong != wrong[row]):
            rest = np.setdiff1d(np.arange(6), [row, partner])
            candidates.append(fit_probability(suspicion[rest], wrong[rest]).probability(suspicion[row]))
        assert any(found[row] == candidate for candidate in candidates)
    assert ((found > 0) & (found < 1)).all()


@pytest.mark.parametrize("errors", [0, 1, 9, 10])
def test_too_few_of_a_kind_cannot_be_cross_validated(errors: int) -> None:
    wrong = np.arange(10) < errors
    assert cross_validated(np.arange(10) / 10, wrong) is None
    found = judge(np.arange(10) / 10, np.arange(10) / 10, wrong, ~wrong)
    assert found.bins == ()
    assert np.isnan(found.calibration_error)


def test_judge_holds_the_chosen_point_and_the_steps() -> None:
    suspicion, wrong = samples()
    trusted = suspicion < 0.5
    found = judge(suspicion, -suspicion, wrong, trusted)
    assert found.coverage == trusted.mean()
    assert found.risk == share(int((wrong & trusted).sum()), int(trusted.sum()))
    assert [step.coverage for step in found.steps] == list(COVERAGES)
    half = np.sort(suspicion)[99]
    assert found.steps[0].risk == pytest.approx(wrong[suspicion <= half].mean())
    assert found.steps[0].softmax == pytest.approx(wrong[suspicion >= np.sort(suspicion)[-100]].mean())
    assert found.steps[-1].risk == found.steps[-1].softmax == wrong.mean()


def test_shapes_must_agree() -> None:
    for call in (risk_coverage, reliability, cross_validated):
        with pytest.raises(ArgumentError, match=r"^wrong:"):
            call([0.1, 0.2], [True])
    with pytest.raises(ArgumentError, match=r"^wrong:"):
        judge([0.1], [0.1], [True], [True, False])
