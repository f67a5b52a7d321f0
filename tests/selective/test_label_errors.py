"""Wrong labels: opinions from other folds, and the probability that a label is wrong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from petm.errors import ArgumentError, DataError
from petm.selective.label_errors import label_errors, out_of_fold

CENTRES = np.eye(4) * 3


def blobs(rows, wrong, seed=0, pair=None):
    """Features of four classes, labels of which some are wrong (only within a pair, if named), and the true classes."""
    random = np.random.default_rng(seed)
    true = np.arange(rows) % 4
    features = CENTRES[true] + random.normal(size=(rows, 4))
    labels = true.copy()
    mine = np.flatnonzero(np.isin(true, pair) if pair else np.ones(rows, bool))
    chosen = random.choice(mine, wrong, replace=False)
    labels[chosen] = sum(pair) - true[chosen] if pair else (true[chosen] + random.integers(1, 4, wrong)) % 4
    return features, labels, true


def true_opinions(features):
    """The probabilities of the classes by Bayes' formula."""
    odds = np.exp(features @ CENTRES.T)
    return odds / odds.sum(1, keepdims=True)


def test_wrong_labels_come_first_with_the_true_class_suggested():
    features, labels, true = blobs(800, 40)
    found = label_errors(out_of_fold(features, labels, classes=4), labels)
    wrong = labels != true
    assert wrong[found.order[:40]].mean() > 0.8  # chance: 0.05
    assert (found.suggested[wrong] == true[wrong]).mean() > 0.9
    assert (found.suggested != labels).all()


def test_probability_is_that_of_bayes_formula_with_the_true_rates():
    """Opinions as they are, and labels wrong at one rate: the true posterior is known."""
    features, labels, true = blobs(40_000, 4_000)
    opinions = true_opinions(features)
    rates = np.full((4, 4), 0.1 / 3) + np.eye(4) * (0.9 - 0.1 / 3)
    posterior = opinions * rates[:, labels].T
    expected = 1 - posterior[np.arange(len(labels)), labels] / posterior.sum(1)
    found = label_errors(opinions, labels).probability
    assert abs(found - expected).mean() < 0.01
    assert found.mean() == pytest.approx((labels != true).mean(), abs=0.01)


def test_labels_that_mix_up_one_pair_of_classes_are_found_better_than_by_the_label_alone():
    features, labels, true = blobs(8_000, 400, pair=(1, 2))
    opinions = true_opinions(features)
    found = label_errors(opinions, labels).probability
    alone = 1 - opinions[np.arange(len(labels)), labels]
    missed = [1 - average_precision_score(labels != true, score) for score in (found, alone)]
    assert missed[0] < 0.7 * missed[1]


def test_doubts_between_near_classes_are_not_taken_for_wrong_labels():
    """Any label is flipped at one rate; two classes are near each other, so opinions doubt between them."""
    random = np.random.default_rng(0)
    centres = np.eye(4) * 4
    centres[2] = centres[1] + [0, 0, 2.2, 0]
    true = np.arange(30_000) % 4
    odds = (centres[true] + random.normal(size=(len(true), 4))) @ centres.T - (centres**2).sum(1) / 2
    opinions = np.exp(odds - odds.max(1, keepdims=True))
    labels = np.where(random.random(len(true)) < 0.05, (true + random.integers(1, 4, len(true))) % 4, true)
    found = label_errors(opinions / opinions.sum(1, keepdims=True), labels).probability
    for label in range(4):  # the confident joint would tell 1.2 times as many in the two
        mine = labels == label
        assert found[mine].sum() == pytest.approx((labels != true)[mine].sum(), rel=0.08)


def test_progress_is_told_after_each_fold():
    features, labels, _ = blobs(60, 0)
    done = []
    out_of_fold(features, labels, classes=4, folds=3, on_fold=lambda: done.append(1))
    assert len(done) == 3


def test_no_head_has_seen_the_label_of_its_row_or_of_a_copy():
    """Features that tell each row apart let a head repeat any label it has seen."""
    random = np.random.default_rng(0)
    groups = np.arange(200) // 2
    features = random.normal(size=(100, 300))[groups]
    labels = random.integers(2, size=100)[groups]
    apart = out_of_fold(features, labels, classes=2, groups=groups)
    together = out_of_fold(features, labels, classes=2)
    own = np.arange(200), labels
    assert together[own].mean() > 0.6  # copies in other folds give the label away
    assert abs(apart[own].mean() - 0.5) < 0.06


def test_equal_inputs_with_different_labels_rank_above_others():
    features, labels, _ = blobs(400, 0)
    features, groups = np.concatenate([features, features[:2]]), np.append(np.arange(400), [0, 1])
    labels = np.append(labels, [(labels[0] + 1) % 4, labels[1]])  # another label, the same label
    found = label_errors(out_of_fold(features, labels, classes=4, groups=groups), labels, groups=groups)
    assert found.probability[400] > 0.5 > found.probability[0]
    assert found.probability[0] + found.probability[400] >= 1 - 1e-9  # at most one is right
    assert found.probability[401] == pytest.approx(found.probability[1], abs=1e-6)


def test_a_class_of_one_row_has_no_opinion_and_stands_last():
    features, labels, _ = blobs(200, 0)
    labels[7] = 4
    found = label_errors(out_of_fold(features, labels, classes=5), labels)
    assert np.isnan(found.probability[7])
    assert (found.suggested[7], found.order[-1]) == (4, 7)
    assert np.isfinite(np.delete(found.probability, 7)).all()


def test_classes_with_fewer_rows_than_folds():
    features, labels, _ = blobs(43, 0)
    labels[:3] = 4
    assert np.isfinite(label_errors(out_of_fold(features, labels, classes=5), labels).probability).all()


@given(st.integers(2, 5), st.integers(1, 60), st.integers(0, 10**6))
def test_any_opinions_give_probabilities(classes, rows, seed):
    random = np.random.default_rng(seed)
    opinions = random.dirichlet(np.full(classes, 0.05), rows).astype(np.float32)
    labels = random.integers(classes, size=rows)
    found = label_errors(opinions, labels, groups=random.integers(rows, size=rows))
    told = np.isfinite(found.probability)
    assert ((found.probability[told] >= 0) & (found.probability[told] <= 1)).all()
    assert sorted(found.order) == list(range(rows))


@pytest.mark.parametrize(
    ("labels", "how", "error", "argument"),
    [
        ([0] * 20, {}, DataError, "labels"),
        ([0] * 19 + [1], {}, DataError, "labels"),
        ([0, 1] * 10, {"folds": 1}, ArgumentError, "folds"),
        ([0, 1] * 9, {}, ArgumentError, "labels"),
    ],
)
def test_what_tells_nothing_is_refused(labels, how, error, argument):
    with pytest.raises(error, match=f"^{argument}: expected"):
        out_of_fold(np.zeros((20, 3)), labels, classes=2, **how)
    with pytest.raises(ArgumentError, match=r"^labels: expected"):
        label_errors(np.full((20, 2), 0.5), [0])
