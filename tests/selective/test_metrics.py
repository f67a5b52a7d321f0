import itertools
import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from petm.errors import ArgumentError
from petm.selective.metrics import (
    METRICS,
    augrc,
    aupr_error,
    aurc,
    aurc_achievable,
    auroc,
    coverage_at_risk,
    detection,
    eaurc,
    expected_calibration_error,
    fidelity,
    fpr95,
    most_suspect,
    risk_at_coverage,
    share,
)
from petm.selective.ranking import Metric

Array = NDArray[Any]

# share


def test_wilson_of_eight_in_ten() -> None:
    # 1.959964: (0.8 + z²/20 ± z sqrt(0.8 * 0.2 / 10 + z²/400)) / (1 + z²/10), worked out by hand
    found = share(8, 10)
    assert (found.value, found.count, found.of) == (0.8, 8, 10)
    assert (found.low, found.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-7)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("count", "of"), [(0, 1), (1, 1), (0, 20), (20, 20), (3, 7), (57, 132), (1, 100_000)])
def test_wilson_against_scipy(count: int, of: int, confidence: float) -> None:
    found = share(count, of, confidence=confidence)
    expected = binomtest(count, of).proportion_ci(confidence, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_a_share_without_trials() -> None:
    found = share(0, 0)
    assert math.isnan(found.value)
    assert (found.count, found.of, found.low, found.high) == (0, 0, 0.0, 1.0)


# detection


def test_detection_by_hand() -> None:
    flagged = [True, True, True, False, False, False, False, True]
    wrong = [True, False, True, True, False, False, True, False]
    found = detection(flagged, wrong)
    assert (found.flagged, found.errors, found.caught) == (4, 4, 2)
    assert found.recall == share(2, 4)
    assert found.precision == share(2, 4)
    found = detection(np.array(flagged), np.array([True] + [False] * 7))
    assert (found.recall.value, found.precision.value) == (1.0, 0.25)


def test_detection_without_flags_or_errors() -> None:
    assert math.isnan(detection([False, False], [True, False]).precision.value)
    assert detection([False, False], [True, False]).recall.value == 0
    assert math.isnan(detection([True, False], [False, False]).recall.value)


@pytest.mark.parametrize("metric", [detection, *METRICS.values(), expected_calibration_error])
def test_shapes_must_agree(metric: object) -> None:
    with pytest.raises(ArgumentError, match=r"^wrong:"):
        metric([0, 1, 0], [True, False])  # type: ignore[operator]
    with pytest.raises(ArgumentError, match=r"got \(1, 2\) and \(1, 2\)"):
        metric([[0, 1]], [[True, False]])  # type: ignore[operator]


# fidelity and most_suspect


def test_fidelity() -> None:
    assert fidelity([1, 2, 3, 3], [1, 2, 0, 3]) == 0.75


@pytest.mark.parametrize(("first", "second"), [([], []), ([1], [1, 2])])
def test_fidelity_refuses(first: list[int], second: list[int]) -> None:
    with pytest.raises(ArgumentError, match=r"^fidelity:"):
        fidelity(first, second)


def test_most_suspect_takes_the_earlier_of_equal_ones() -> None:
    suspicion = [0.5, 0.9, 0.5, -1.0, 0.5]
    assert most_suspect(suspicion, 0).tolist() == [False] * 5
    assert most_suspect(suspicion, 1).tolist() == [False, True, False, False, False]
    assert most_suspect(suspicion, 3).tolist() == [True, True, True, False, False]
    assert most_suspect(suspicion, 5).tolist() == [True] * 5
    assert most_suspect(np.arange(1000) % 2, 10).nonzero()[0].tolist() == list(range(1, 20, 2))


# Every metric of a suspicion against its definition, in plain Python and fractions

Points = list[tuple[int, int]]


def accepted(suspicion: Sequence[float], wrong: Sequence[bool]) -> Points:
    """How many samples, and how many errors, every threshold accepts, the strictest first."""
    points = []
    for level in sorted(set(suspicion)):
        taken = [bad for value, bad in zip(suspicion, wrong, strict=True) if value <= level]
        points.append((len(taken), sum(taken)))
    return points


def by_pairs(suspicion: Sequence[float], wrong: Sequence[bool]) -> Fraction:
    """AUROC."""
    bad = [value for value, error in zip(suspicion, wrong, strict=True) if error]
    good = [value for value, error in zip(suspicion, wrong, strict=True) if not error]
    wins = [Fraction(2 * (b > g) + (b == g), 2) for b, g in itertools.product(bad, good)]
    return sum(wins, Fraction(0)) / len(wins)


def by_trapezoids_of_risk(suspicion: Sequence[float], wrong: Sequence[bool]) -> Fraction:
    """AURC."""
    points = accepted(suspicion, wrong)
    before = (0, Fraction(points[0][1], points[0][0]))
    area = Fraction(0)
    for covered, failed in points:
        risk = Fraction(failed, covered)
        area += (covered - before[0]) * (risk + before[1]) / 2
        before = covered, risk
    return area / len(wrong)


def by_excess(suspicion: Sequence[float], wrong: Sequence[bool]) -> float:
    """E-AURC, the least area as the integral of ``max(0, 1 - accuracy / coverage)``."""
    accuracy = 1 - sum(wrong) / len(wrong)
    least = quad(lambda coverage: 1 - accuracy / coverage, accuracy, 1)[0] if accuracy else 1
    return float(by_trapezoids_of_risk(suspicion, wrong)) - least


def by_trapezoids_of_generalised_risk(suspicion: Sequence[float], wrong: Sequence[bool]) -> Fraction:
    """AUGRC."""
    area, before = Fraction(0), (0, 0)
    for covered, failed in accepted(suspicion, wrong):
        area += Fraction((covered - before[0]) * (failed + before[1]), 2)
        before = covered, failed
    return area / len(wrong) ** 2


def by_hull(suspicion: Sequence[float], wrong: Sequence[bool]) -> float:
    """AURC, achievable: from corner to corner of the hull, the risk between two corners integrated numerically."""
    points, corner, area = accepted(suspicion, wrong), (0, 0), 0.0
    while corner[0] < len(wrong):
        slopes = {p: Fraction(p[1] - corner[1], p[0] - corner[0]) for p in points if p[0] > corner[0]}
        further = max(point for point, slope in slopes.items() if slope == min(slopes.values()))
        area += area_of_mixtures(corner, further)
        corner = further
    return area / len(wrong)


def area_of_mixtures(start: tuple[int, int], end: tuple[int, int]) -> float:
    slope = (end[1] - start[1]) / (end[0] - start[0])
    if not start[0]:
        return slope * end[0]
    return float(quad(lambda covered: (start[1] + slope * (covered - start[0])) / covered, start[0], end[0])[0])


def by_thresholds_that_accept_the_right(suspicion: Sequence[float], wrong: Sequence[bool]) -> Fraction:
    """FPR95."""
    errors = sum(wrong)
    right = len(wrong) - errors
    found = [failed for covered, failed in accepted(suspicion, wrong) if 100 * (covered - failed) >= 95 * right]
    return Fraction(found[0], errors)


SLOW = {
    "auroc": by_pairs,
    "aupr_error": lambda suspicion, wrong: average_precision_score(wrong, suspicion),
    "fpr95": by_thresholds_that_accept_the_right,
    "aurc": by_trapezoids_of_risk,
    "eaurc": by_excess,
    "augrc": by_trapezoids_of_generalised_risk,
    "aurc_achievable": by_hull,
}


def samples(seed: int, levels: int, *, count: int = 120, error_rate: float = 0.2) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    wrong = random.random(count) < error_rate
    return random.integers(0, levels, count) + 0.3 * levels * wrong // 1, wrong


def judged(values: st.SearchStrategy[float]) -> st.SearchStrategy[list[tuple[float, bool]]]:
    """Suspicion, and whether the model is wrong, of up to 60 samples."""
    return st.lists(st.tuples(values, st.booleans()), min_size=1, max_size=60)


ties, finite = st.integers(-2, 2).map(float), st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("name", SLOW)
@given(rows=judged(ties) | judged(finite))
def test_metric_against_its_definition(name: str, rows: list[tuple[float, bool]]) -> None:
    suspicion, wrong = zip(*rows, (0.0, True), (0.0, False), strict=True)  # nan where one of the two kinds is missing
    expected = SLOW[name](suspicion, wrong)
    assert METRICS[name](suspicion, wrong) == pytest.approx(float(expected), abs=1e-9)


def test_every_metric_has_a_reference() -> None:
    assert list(METRICS) == list(SLOW)


@given(judged(ties) | judged(finite))
def test_auroc_and_fpr95_against_sklearn(rows: list[tuple[float, bool]]) -> None:
    suspicion, wrong = map(np.array, zip(*rows, (0.0, True), (0.0, False), strict=True))
    assert auroc(suspicion, wrong) == pytest.approx(roc_auc_score(wrong, suspicion), abs=1e-12)
    false, true, _ = roc_curve(~wrong, -suspicion, drop_intermediate=False)
    assert fpr95(suspicion, wrong) == pytest.approx(false[true >= 0.95].min())
    false, true, _ = roc_curve(wrong, suspicion, drop_intermediate=False)
    assert fpr95(-suspicion, ~wrong) == pytest.approx(false[true >= 0.95].min())


@pytest.mark.parametrize("right", [20, 40, 60, 100, 340, 380, 1000])
def test_95_percent_are_counted_without_rounding(right: int) -> None:
    # One error follows the first 95 % of the right predictions: it is accepted only by one more than needed.
    needed = right * 95 // 100
    wrong = np.arange(right + 1) == needed
    assert fpr95(np.arange(right + 1), wrong) == 0
    assert fpr95(np.arange(right + 1), np.arange(right + 1) == needed - 1) == 1


@pytest.mark.parametrize("metric", [*METRICS.values(), expected_calibration_error])
def test_the_order_of_rows_has_no_effect(metric: Metric[...]) -> None:
    suspicion, wrong = samples(1, 3, count=300)
    suspicion = suspicion / suspicion.max()
    expected = metric(suspicion, wrong)
    for order in (np.arange(300)[::-1], np.argsort(wrong), np.argsort(~wrong), np.argsort(suspicion)):
        assert metric(suspicion[order], wrong[order]) == expected


@pytest.mark.parametrize("metric", METRICS.values())
def test_only_the_order_of_suspicion_counts(metric: Metric[[]]) -> None:
    suspicion, wrong = samples(2, 50)
    assert metric(np.exp(suspicion / 10) - 7, wrong) == metric(suspicion, wrong)


@pytest.mark.parametrize("metric", METRICS.values())
def test_which_direction_is_better(metric: Metric[[]]) -> None:
    wrong = np.arange(100) >= 80
    perfect, reverse = metric(np.arange(100), wrong), metric(-np.arange(100), wrong)
    assert (perfect > reverse) == metric.higher_is_better
    assert perfect != reverse


@given(judged(ties) | judged(finite))
@example([(0.0, False)] * 1000)
@example([(float(n % 7), n % 100 == 0) for n in range(1000)])
@example([(float(n), True) for n in range(1000)])
def test_the_identity_of_augrc(rows: list[tuple[float, bool]]) -> None:
    # Traub et al. 2024: AUGRC = (1 - AUROC) acc (1 - acc) + (1 - acc)² / 2; at accuracy 0 or 1 the first term is 0.
    suspicion, wrong = map(np.array, zip(*rows, strict=True))
    accuracy = 1 - wrong.mean()
    ranked_wrong = (1 - auroc(suspicion, wrong)) * accuracy * (1 - accuracy) if 0 < accuracy < 1 else 0
    assert augrc(suspicion, wrong) == pytest.approx(ranked_wrong + (1 - accuracy) ** 2 / 2, abs=1e-12)


# The values of the reference implementation of AUGRC (Traub et al. 2024), recomputed by hand

ROWS = np.arange(100)
TWO = ROWS % 2
AGREE, AGREE_RIGHT = np.repeat([1, 1, 0, 0], [930, 20, 20, 30]), np.repeat([1, 0, 1, 0], [930, 20, 20, 30])
LOG = math.log
CASES = [
    # Coverage 1/2 without error, then 1/2 error at full coverage; the hull's risk is 1 - 1/(2c) from 1/2 on.
    ("aurc", TWO, TWO, 0.5 * (0 + 0.5) / 2),
    ("augrc", TWO, TWO, 0.5 * (0 + 0.5) / 2),
    ("aurc_achievable", TWO, TWO, 0.5 - 0.5 * LOG(2)),
    ("eaurc", TWO, TWO, 0.125 - (0.5 + 0.5 * LOG(0.5))),
    # The first half is all wrong, so its risk is 1 from the start; only to accept all is on the hull.
    ("aurc", 1 - TWO, TWO, 0.5 * 1 + 0.5 * (1 + 0.5) / 2),
    ("augrc", 1 - TWO, TWO, 0.5 * (0 + 0.5) / 2 + 0.5 * 0.5),
    ("aurc_achievable", 1 - TWO, TWO, 0.5),
    # Right and wrong take turns: corners of the hull at coverage 0.01, 0.99 and 1, with slopes 0, 1/2 and 1.
    ("aurc", ROWS / 99, TWO, (sum(n // 2 / n for n in range(1, 101)) - 0.25) / 100),
    ("augrc", ROWS / 99, TWO, 0.2475),
    ("aurc_achievable", ROWS / 99, TWO, 0.5 * 0.98 - 0.005 * LOG(99) + 0.01 - 0.5 * LOG(1 / 0.99)),
    # Plateaus of 12, 13, 12 and 13 errors; corners of the hull at coverage 1/4, 3/4 and 1, with slopes .48, .5, .52.
    ("aurc", ROWS // 25, TWO, (12 / 25 * 1.5 + 25 / 50 + 37 / 75 + 25 / 100) / 4),
    ("augrc", ROWS // 25, TWO, (0.12 + 0.25 + 0.37 + 0.5 / 2) / 4),
    ("aurc_achievable", ROWS // 25, TWO, 0.12 + 0.25 - 0.005 * LOG(3) + 0.13 - 0.02 * LOG(4 / 3)),
    # Each right row is accepted just before the wrong one below it: it beats 50 wrong of 50, then 49, and so on.
    ("auroc", ROWS - 50, TWO, sum(range(1, 51)) / 50**2),
    # 48 of 50 right predictions are 95 %; 47 errors lie between them.
    ("fpr95", ROWS - 50, TWO, 47 / 50),
    ("aupr_error", 50 - ROWS, 1 - TWO, sum(k / (2 * k - 1) for k in range(1, 51)) / 50),
    # 950 agree, 20 of them wrong; 50 disagree, 30 of them wrong.
    ("aurc", AGREE, AGREE_RIGHT, 0.95 * 20 / 950 + 0.05 * (20 / 950 + 0.05) / 2),
    ("augrc", AGREE, AGREE_RIGHT, 0.95 * 0.02 / 2 + 0.05 * (0.02 + 0.05) / 2),
    ("auroc", AGREE, AGREE_RIGHT, (30 * 930 + (30 * 20 + 20 * 930) / 2) / (50 * 950)),
    ("aupr_error", AGREE, AGREE_RIGHT, 30 / 50 * 30 / 50 + 20 / 50 * 50 / 1000),
    ("fpr95", AGREE, AGREE_RIGHT, 20 / 50),
    ("fpr95", -AGREE, 1 - AGREE_RIGHT, 1),
]


@pytest.mark.parametrize(("name", "confidence", "correct", "expected"), CASES)
def test_by_hand(name: str, confidence: Array, correct: Array, expected: float) -> None:
    assert METRICS[name](-confidence, correct == 0) == pytest.approx(expected, abs=1e-12)


GOLDEN = METRICS | {
    "fpr95_correct_positive": fpr95,
    "average_precision_success": lambda suspicion, wrong: aupr_error(-suspicion, ~wrong),
}


def golden_file() -> Path:
    root = os.environ.get("PETM_DATA_DIR")
    if not root:
        pytest.skip("PETM_DATA_DIR is not set: the golden values of the metrics lie beside that folder")
    path = Path(root).parent / "golden" / "selective_metrics.json"
    if not path.exists():
        pytest.skip(f"the golden values of the metrics are not there: {path}")
    return path


def golden_inputs(case: dict[str, Any]) -> tuple[Array, Array]:
    if case["name"].startswith("tie trap: 950 agree (20 wrong), 50 disagree (30 wrong)"):
        return AGREE, AGREE_RIGHT
    numpy_names = {name: getattr(np, name) for name in ("arange", "linspace", "repeat")}
    return eval(case["confidence"], numpy_names), eval(case["correct"], numpy_names)


def test_the_golden_file() -> None:
    compared = 0
    for case in json.loads(golden_file().read_text(), parse_float=Decimal)["cases"]:
        confidence, correct = golden_inputs(case)
        for name, value in case.items():
            if isinstance(value, Decimal):
                found = GOLDEN[name](-confidence, correct == 0)
                written = 0.5 * 10.0 ** int(value.as_tuple().exponent)  # a few values are rounded in the file
                assert found == pytest.approx(float(value), abs=max(1e-9, written)), (case["name"], name)
                compared += 1
    assert compared == 20


# Where there is nothing to measure


@pytest.mark.parametrize("metric", [*METRICS.values(), expected_calibration_error])
def test_no_samples_no_value(metric: Metric[...]) -> None:
    assert math.isnan(metric([], []))


def test_only_one_kind() -> None:
    suspicion, right, wrong = [0.1, 0.2], [False, False], [True, True]
    for undefined in (auroc, fpr95):
        assert math.isnan(undefined(suspicion, right))
        assert math.isnan(undefined(suspicion, wrong))
    assert math.isnan(aupr_error(suspicion, right))
    assert aupr_error(suspicion, wrong) == 1
    assert [area(suspicion, right) for area in (aurc, eaurc, augrc, aurc_achievable)] == [0, 0, 0, 0]
    assert [area(suspicion, wrong) for area in (aurc, eaurc, augrc, aurc_achievable)] == [1, 0, 0.5, 1]


def test_infinite_suspicion_is_a_level_like_others() -> None:
    assert auroc([-math.inf, 0, math.inf], [False, True, True]) == 1


@pytest.mark.slow
def test_a_million_samples() -> None:
    # In every ten the tenth is an error: it is more suspect than the right ones of its own ten and of those before.
    tens = 100_000
    suspicion, wrong = np.arange(10 * tens), np.arange(10 * tens) % 10 == 9
    order = np.random.default_rng(0).permutation(10 * tens)
    of_rank = 9 * tens * (tens + 1) / 2 / (9 * tens * tens)
    assert auroc(suspicion[order], wrong[order]) == pytest.approx(of_rank, abs=1e-12)
    assert augrc(suspicion[order], wrong[order]) == pytest.approx((1 - of_rank) * 0.09 + 0.005, abs=1e-12)
    assert fpr95(suspicion[order], wrong[order]) == (95 * tens // 100 - 1) / tens
    assert aupr_error(suspicion[order], wrong[order]) == pytest.approx(average_precision_score(wrong, suspicion))
    assert auroc(np.repeat(1 - AGREE, 1000), np.repeat(AGREE_RIGHT == 0, 1000)) == pytest.approx(15 / 19, abs=1e-12)


# Points of the curve

POINTS = (np.array([1, 2, 2, 3, 4, 4, 4, 5]), np.array([0, 0, 1, 0, 0, 1, 1, 1], bool))
"""Accepted up to each level: 1, 3, 4, 7, 8; errors among them: 0, 1, 1, 3, 4."""


@pytest.mark.parametrize(
    ("risk", "coverage"), [(0, 1 / 8), (0.24, 1 / 8), (0.25, 4 / 8), (1 / 3, 4 / 8), (3 / 7, 7 / 8), (0.5, 1), (1, 1)]
)
def test_coverage_at_risk(risk: float, coverage: float) -> None:
    assert coverage_at_risk(*POINTS, risk) == coverage_at_risk(*POINTS, risk=risk) == coverage


def test_no_coverage_at_a_risk_below_the_first_level() -> None:
    assert coverage_at_risk([0, 1, 1], [True, False, False], risk=0.3) == 0
    assert coverage_at_risk([0, 1, 1], [True, False, False], risk=0.34) == 1
    assert math.isnan(coverage_at_risk([], [], risk=0.5))


def test_risk_and_coverage_are_read_as_written() -> None:
    # 0.29 * 100 is less than 29 in floating point, but 29 errors in 100 are a risk of 0.29.
    for hundredths in range(1, 101):
        wrong = np.arange(100) < hundredths
        assert coverage_at_risk(np.zeros(100), wrong, hundredths / 100) == 1, hundredths
        expected = max(0, hundredths - sum(~wrong)) / hundredths
        assert risk_at_coverage(np.arange(100), wrong[::-1], hundredths / 100) == expected, hundredths


@pytest.mark.parametrize(
    ("coverage", "risk"), [(0.01, 0), (1 / 8, 0), (0.126, 1 / 3), (3 / 8, 1 / 3), (0.5, 0.25), (0.51, 3 / 7), (1, 0.5)]
)
def test_risk_at_coverage(coverage: float, risk: float) -> None:
    assert risk_at_coverage(*POINTS, coverage) == risk_at_coverage(*POINTS, coverage=coverage) == risk


def test_no_risk_without_samples() -> None:
    assert math.isnan(risk_at_coverage([], [], coverage=0.5))


@pytest.mark.parametrize("risk", [-0.1, 1.1, math.nan])
def test_a_risk_lies_between_0_and_1(risk: float) -> None:
    with pytest.raises(ArgumentError, match=r"^risk:"):
        coverage_at_risk(*POINTS, risk)


@pytest.mark.parametrize("coverage", [0, 1.1, math.nan])
def test_a_coverage_lies_between_0_and_1(coverage: float) -> None:
    with pytest.raises(ArgumentError, match=r"^coverage:"):
        risk_at_coverage(*POINTS, coverage)


# Probabilities


def test_calibration_error_by_hand() -> None:
    # Two bins of two: predicted 0.1 + 0.3 and 0.6 + 0.8 errors, seen 0 and 1.
    assert expected_calibration_error([0.8, 0.1, 0.6, 0.3], [False, False, True, False], 2) == pytest.approx(0.8 / 4)
    # In one bin 1.8 are predicted and 1 is seen.
    assert expected_calibration_error([0.8, 0.1, 0.6, 0.3], [False, False, True, False], bins=1) == pytest.approx(0.2)
    # Four equal ones are never split, though they reach over three bins: 0.4 predicted, 1 seen.
    assert expected_calibration_error([0.1] * 4, [False, False, True, False], bins=3) == pytest.approx(0.6 / 4)


@pytest.mark.parametrize("bins", [1, 4, 15, 500])
@pytest.mark.parametrize("decimals", [1, 2, 9])
def test_calibration_error_against_its_definition(bins: int, decimals: int) -> None:
    random = np.random.default_rng(0)
    probability = (random.random(400) ** 3).round(decimals)
    wrong = random.random(400) < probability
    middle = [((probability < p).sum() + (probability <= p).sum()) / 2 for p in probability]
    gaps: dict[int, float] = defaultdict(float)
    for p, bad, rank in zip(probability, wrong, middle, strict=True):
        gaps[int(Fraction(rank) * bins / 400)] += bad - p
    expected = sum(map(abs, gaps.values())) / 400
    assert expected_calibration_error(probability, wrong, bins) == pytest.approx(expected, abs=1e-12)


def test_bins_hold_equally_many() -> None:
    # Nearly all of these lie below 1/15, where bins of equal width would let the one half make up for the other.
    probability = np.linspace(0.01, 0.02, 1000)
    wrong = np.arange(1000) % 100 == 0
    wrong[:500] = False
    assert expected_calibration_error(probability, wrong, 2) == pytest.approx(
        (abs(0 - probability[:500].sum()) + abs(5 - probability[500:].sum())) / 1000
    )


@pytest.mark.parametrize("suspicion", [[-0.1, 0.5], [0.5, 1.5], [0.5, math.inf]])
def test_a_probability_lies_between_0_and_1(suspicion: list[float]) -> None:
    with pytest.raises(ArgumentError, match=r"^probability:"):
        expected_calibration_error(suspicion, [True, False])


def test_at_least_one_bin() -> None:
    with pytest.raises(ArgumentError, match=r"^bins:"):
        expected_calibration_error([0.5], [True], 0)
