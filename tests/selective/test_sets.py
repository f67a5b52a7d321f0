import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import betabinom, binom

from petm._internal.files import plain
from petm._internal.records import Record
from petm.errors import ArgumentError, BundleError
from petm.selective.sets import (
    Method,
    PredictionSets,
    class_probabilities,
    fewest_labels,
    fit_grade_sets,
    fit_sets,
    sets_of_grades,
)
from petm.selective.targets import Coverage, MaxRisk, Recall, Target
from petm.selective.thresholds import Threshold

METHODS: tuple[Method, ...] = ("threshold", "adaptive")


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    raised: NDArray[np.float64] = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True))


def drawn(random: np.random.Generator, n: int, k: int = 4) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities that are wrong by a factor in the logits, and true classes."""
    logits = 2 * random.normal(size=(n, k))
    truth = (softmax(0.5 * logits).cumsum(1) > random.random((n, 1))).argmax(1)
    return softmax(logits), truth


def by_hand(row: NDArray[np.float64], label: int, first: int, method: Method) -> float:
    """The score of one class, by its definition."""
    if label == first:
        return 0.0
    return float(1 - row[label] if method == "threshold" else row[row > row[label]].sum())


# What the limits are


@pytest.mark.parametrize("method", METHODS)
def test_the_limit_is_the_conformal_quantile_of_scores_by_hand(method: Method) -> None:
    values, truth = drawn(np.random.default_rng(0), 57)
    predicted = np.random.default_rng(1).integers(0, 4, 57)
    found = fit_sets(values, truth, coverage=0.8, method=method, predicted=predicted)
    scores = sorted(by_hand(*each, method) for each in zip(values, truth, predicted, strict=True))
    limit = scores[math.ceil(58 * 0.8) - 1]
    assert found.limits[0] == pytest.approx([limit], abs=1e-12)
    later, _ = drawn(np.random.default_rng(2), 40)
    inside = found.sets(later)
    expected = [
        [by_hand(row, label, int(row.argmax()), method) <= limit + 1e-12 for label in range(4)] for row in later
    ]
    assert inside.tolist() == expected


@pytest.mark.parametrize(("coverage", "fewest"), [(0.95, 19), (0.9, 9), (0.5, 1), (0.99, 99), (0.8, 4)])
def test_the_fewest_labels_are_those_of_the_exact_quantile(coverage: float, fewest: int) -> None:
    assert fewest_labels(coverage) == fewest
    hard = np.tile([0.6, 0.4], (fewest, 1))
    assert fit_sets(hard[1:], np.ones(fewest - 1, int), coverage=coverage).limits == ((1.0,),)
    assert fit_sets(hard, np.ones(fewest, int), coverage=coverage).limits[0] == pytest.approx([0.6])


def test_the_smallest_sets_of_two_classes_are_the_label_or_both() -> None:
    values = np.array([[0.9, 0.1]] * 90 + [[0.6, 0.4]] * 10)
    truth = np.array([0] * 90 + [1] * 10)
    found = fit_sets(values, truth, coverage=0.95)
    assert found.candidates([[0.9, 0.1], [0.45, 0.55], [0.3, 0.7]]).tolist() == [(0,), (1, 0), (1,)]


def test_candidates_are_ordered_by_probability_with_the_models_class_among_them() -> None:
    found = PredictionSets(0.9, "threshold", ((0.75,),), (100,), (1.5,))
    assert found.candidates([[0.3, 0.1, 0.6], [0.0, 0.4, 0.6]], [1, 1]).tolist() == [(2, 0, 1), (2, 1)]


def test_equally_probable_classes_are_in_the_set_together() -> None:
    rows = [[0.4, 0.3, 0.3], [0.3, 0.4, 0.3]]
    for method, limit in zip(METHODS, (0.7, 0.4), strict=True):
        found = PredictionSets(0.9, method, ((limit + 1e-9,),), (100,), (3.0,))
        assert found.sets(rows).all()
        assert PredictionSets(0.9, method, ((limit - 1e-3,),), (1,), (1.0,)).sets(rows).sum() == 2


def test_each_group_and_each_class_has_the_limit_of_its_own_labels() -> None:
    random = np.random.default_rng(3)
    values, truth = drawn(random, 600)
    groups = random.integers(0, 2, 600)
    found = fit_sets(values, truth, coverage=0.9, groups=groups, per_class=True)
    for group in range(2):
        for label in range(4):
            some = (groups == group) & (truth == label)
            alone = fit_sets(values[some], truth[some], coverage=0.9)
            assert found.limits[group][label] == alone.limits[0][0]
    assert found.samples == (int((groups == 0).sum()), int((groups == 1).sum()))
    sizes = [found.sets(values, groups=groups)[groups == group].sum(1).mean() for group in range(2)]
    assert found.mean_sizes == pytest.approx(sizes)


def test_a_class_without_labels_is_in_every_set() -> None:
    values, truth = drawn(np.random.default_rng(4), 400)
    some = truth != 2
    found = fit_sets(values[some], truth[some], coverage=0.9, per_class=True)
    inside = found.sets(values)
    assert inside[:, 2].all()
    assert not inside[:, [0, 1, 3]].all()


def test_labels_with_unequal_chances_are_thinned_to_equal_ones() -> None:
    """Hard samples are labelled ten times as often: without their chances the limit is another."""
    random = np.random.default_rng(5)
    values, truth = drawn(random, 20_000)
    chance = np.where(values.max(1) < 0.6, 1.0, 0.1)
    some = random.random(20_000) < chance
    found = fit_sets(values[some], truth[some], coverage=0.9, chance=chance[some])
    ignored = fit_sets(values[some], truth[some], coverage=0.9)
    of_all = fit_sets(values, truth, coverage=0.9)
    limit = of_all.limits[0][0]
    assert abs(found.limits[0][0] - limit) < 0.01 < 0.02 < abs(ignored.limits[0][0] - limit)
    assert found.samples[0] < some.sum()


# The guarantee


@pytest.mark.parametrize("method", METHODS)
def test_the_true_class_is_in_the_sets_as_often_as_asked(method: Method) -> None:
    """Of one later sample for each of 1,000 calibration sets the covered ones are a binomial number."""
    random, covered = np.random.default_rng(6), 0
    for _ in range(1000):
        values, truth = drawn(random, 60)
        found = fit_sets(values[:59], truth[:59], coverage=0.9, method=method)
        covered += found.sets(values[59:])[0, truth[59]]
    assert binom.cdf(covered, 1000, 0.9) > 1e-4
    assert binom.sf(covered - 1, 1000, 0.9 + 1 / 60) > 1e-4 or method == "adaptive"


def test_later_samples_that_are_covered_follow_the_beta_binomial_law() -> None:
    """Without ties the coverage given the calibration set is Beta(rank, n + 1 - rank)."""
    random, counts = np.random.default_rng(7), []
    for _ in range(300):
        values, truth = drawn(random, 199 + 100, k=3)
        order = np.full(299, -1)
        order[:] = (truth + 1) % 3  # the model is always wrong, so that no score is 0
        found = fit_sets(values[:199], truth[:199], coverage=0.9, predicted=order[:199])
        counts.append(int(found.sets(values[199:], order[199:])[np.arange(100), truth[199:]].sum()))
    law = betabinom(100, 180, 20)
    assert abs(np.mean(counts) - law.mean()) < 4 * law.std() / 300**0.5
    assert np.std(counts) == pytest.approx(law.std(), rel=0.2)


@pytest.mark.parametrize("target", [MaxRisk(0.1), MaxRisk(0.2, per="class"), Recall(0.7), Coverage(0.6)])
def test_suspects_have_the_coverage_though_their_threshold_is_set_on_the_same_labels(target: Target) -> None:
    random, covered, judged = np.random.default_rng(10), 0, 0
    for _ in range(150):
        values, truth = drawn(random, 340)
        predicted, suspicion = values.argmax(1), 1 - values.max(1)
        some, rest = np.arange(300), np.arange(300, 340)
        wrong = (predicted != truth)[some]
        threshold = target.threshold(suspicion[some], wrong, predicted[some], classes=4)
        found = fit_grade_sets(values[some], truth[some], predicted[some], suspicion[some], threshold, coverage=0.9)
        assert found is not None
        suspect = ~threshold.trusts(suspicion[rest], predicted[rest])
        inside = found.sets(values[rest], predicted[rest], suspect)
        asked = np.flatnonzero(suspect)[:1]  # one in each draw, so that all are independent
        covered += int(inside[asked, truth[rest[asked]]].sum())
        judged += len(asked)
    assert judged > 120
    assert binom.cdf(covered, judged, 0.9) > 1e-3
    assert binom.sf(covered - 1, judged, 0.95) > 1e-3, "nor by sets that are too large"


def test_labels_that_nobody_can_tell_and_the_one_at_the_threshold_are_left_out() -> None:
    values, truth = drawn(np.random.default_rng(11), 300)
    predicted, suspicion = values.argmax(1), 1 - values.max(1)
    limit = float(np.sort(suspicion)[150])
    threshold = Threshold(limit, "by hand")
    untold = np.arange(300) % 5 == 0
    found = fit_grade_sets(values, np.where(untold, -1, truth), predicted, suspicion, threshold)
    kept = ~untold & (suspicion != limit)
    suspect = (suspicion > limit).astype(int)
    assert found == fit_sets(values[kept], truth[kept], groups=suspect[kept])
    assert sum(found.samples) == kept.sum()  # type: ignore[union-attr]


def test_with_too_few_suspects_there_are_no_sets() -> None:
    values, truth = drawn(np.random.default_rng(12), 300)
    predicted, suspicion = values.argmax(1), 1 - values.max(1)
    for fewer, some in ((0, True), (1, False)):
        limit = float(np.sort(suspicion)[-fewest_labels(0.9) - 1 + fewer])  # the sample at the threshold is left out
        found = fit_grade_sets(values, truth, predicted, suspicion, Threshold(limit, "by hand"), coverage=0.9)
        assert (found is not None) is some


def test_probabilities_are_the_weighted_mean_of_both_opinions() -> None:
    logits = np.log([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    found = class_probabilities(logits[:1] + 7, logits[1:], 0.75)
    assert found[0] == pytest.approx([0.275, 0.225, 0.5])
    assert class_probabilities([[math.nan, 0.0]], [[0.0, 0.0]], 0.0).tolist() == [[0.5, 0.5]]


# Laws


ARRAYS = st.tuples(st.integers(1, 60), st.integers(2, 6), st.integers(0, 2**32 - 1))


@given(ARRAYS, st.sampled_from(METHODS), st.booleans())
@settings(max_examples=60, deadline=None)
def test_sets_hold_the_prediction_grow_with_coverage_and_survive_json(
    sizes: tuple[int, int, int], method: Method, per_class: bool
) -> None:
    n, k, seed = sizes
    random = np.random.default_rng(seed)
    values = softmax(random.normal(size=(n, k)).round(1) * random.integers(0, 40))  # with ties, zeros and ones
    truth, predicted, groups = random.integers(0, k, n), random.integers(0, k, n), random.integers(0, 3, n)
    inside = np.zeros((n, k), bool)
    for coverage in (0.05, 0.5, 0.9, 0.999):
        how: Any = {"coverage": coverage, "method": method, "predicted": predicted, "groups": groups}
        found = fit_sets(values, truth, per_class=per_class, **how)
        now = found.sets(values, predicted, groups)
        assert now[np.arange(n), predicted].all()
        assert (now >= inside).all()
        covered = now[np.arange(n), truth]
        assert all(covered[groups == group].mean() >= coverage - 1e-9 for group in set(groups.tolist()))
        inside = now
        assert [set(row) for row in found.candidates(values, predicted, groups)] == [
            set(np.flatnonzero(row).tolist()) for row in now
        ]
        told = json.loads(json.dumps(plain(found), allow_nan=False))
        assert PredictionSets.from_json(Record(told, "petm.json, sets")) == found


# What is refused


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("probabilities", {"probabilities": [0.5, 0.5]}),
        ("probabilities", {"probabilities": [[1.0], [1.0]]}),
        ("probabilities", {"probabilities": [[0.5, 0.6], [0.5, 0.5]]}),
        ("probabilities", {"probabilities": [[1.5, -0.5], [0.5, 0.5]]}),
        ("probabilities", {"probabilities": [[np.nan, 0.5], [0.5, 0.5]]}),
        ("labels", {"labels": [0, 2]}),
        ("labels", {"labels": [0, -1]}),
        ("labels", {"labels": [0, 1, 1]}),
        ("labels", {"labels": [0.0, 1.0]}),
        ("labels", {"labels": None}),
        ("coverage", {"coverage": 1.0}),
        ("coverage", {"coverage": math.nan}),
        ("method", {"method": "raps"}),
        ("predicted", {"predicted": [0, 5]}),
        ("groups", {"groups": [0, -1]}),
        ("chance", {"chance": [0.0, 1.0]}),
    ],
)
def test_a_wrong_argument_is_named(argument: str, change: dict[str, object]) -> None:
    fine: dict[str, object] = {"probabilities": [[0.5, 0.5], [0.4, 0.6]], "labels": [0, 1]}
    with pytest.raises(ArgumentError, match=f"^{argument}: "):
        fit_sets(**{**fine, **change})  # type: ignore[arg-type]


def test_other_classes_or_a_group_without_limits_are_refused() -> None:
    values, truth = drawn(np.random.default_rng(9), 200)
    found = fit_sets(values, truth, per_class=True)
    with pytest.raises(ArgumentError, match=r"^probabilities: "):
        found.sets([[0.5, 0.5]])
    with pytest.raises(ArgumentError, match=r"^groups: "):
        found.sets(values, groups=np.ones(200, int))


@pytest.mark.parametrize(
    ("entry", "value"),
    [("method", "other"), ("limits", [[2.0]]), ("limits", [[0.1], [0.1, 0.2]]), ("limits", []), ("samples", [1, 2])],
)
def test_a_damaged_entry_is_refused(entry: str, value: object) -> None:
    whole = plain(PredictionSets(0.9, "threshold", ((0.5,),), (100,), (1.2,)))
    with pytest.raises(BundleError, match=f"{'limits' if entry == 'samples' else entry}: "):
        PredictionSets.from_json(Record({**whole, entry: value}, "petm.json"))


@pytest.mark.parametrize("limits", [((0.5,),), ((0.5, 0.5), (0.5, 0.5)), ((0.5,),) * 3])
def test_a_grader_takes_the_sets_of_two_grades_alone(limits: tuple[tuple[float, ...], ...]) -> None:
    others = PredictionSets(0.9, "threshold", limits, (9,) * len(limits), (1.5,) * len(limits))
    with pytest.raises(BundleError, match="limits: "):
        sets_of_grades(Record(plain(others), "petm.json"))
