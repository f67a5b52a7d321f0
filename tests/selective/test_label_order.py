import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, fisher_exact

from petm.selective.label_order import DOUBTFUL, PERMUTED, better_order, guessing_probability, pairing_probability


def predictions(
    random: np.random.Generator, n: int, classes: int, accuracy: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Predictions of a model with a taste for some classes, and labels."""
    labels = random.choice(classes, n, p=random.dirichlet(np.full(classes, 3.0)))
    guesses = random.choice(classes, n, p=random.dirichlet(np.ones(classes)))
    return np.where(random.random(n) < accuracy, labels, guesses), labels


def test_guessing_is_tested_exactly() -> None:
    assert guessing_probability([0, 1, 1, 2, 0, 1], [0, 1, 2, 2, 1, 1], classes=3) == pytest.approx(
        binomtest(4, 6, 1 / 3, alternative="greater").pvalue
    )
    rare = np.arange(100) >= 90
    assert guessing_probability(np.zeros(100), rare, classes=2) > 0.5, "90 % right, by one class alone"
    mixed = np.where(np.arange(100) < 20, 1 - rare, rare)
    assert guessing_probability(mixed, rare, classes=2) < 0.05, "80 % right and useful, below the commonest class"


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_predictions_are_compared_with_those_dealt_out_at_random(classes: int) -> None:
    random = np.random.default_rng(classes)
    found, labels = predictions(random, 200, classes, 0.05)
    dealt = [int((random.permutation(found) == labels).sum()) for _ in range(4000)]
    as_often = float(np.mean(np.array(dealt) >= (found == labels).sum()))
    assert pairing_probability(found, labels, classes=classes) == pytest.approx(as_often, abs=0.03)
    if classes == 2:
        table = [[int(((found == one) & (labels == other)).sum()) for other in (0, 1)] for one in (0, 1)]
        exact = fisher_exact(table, alternative="greater").pvalue
        assert pairing_probability(found, labels, classes=2) == pytest.approx(exact)
    assert pairing_probability(np.zeros(9), np.arange(9) % classes, classes=classes) == 1


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_an_order_of_the_classes_is_found(classes: int) -> None:
    random = np.random.default_rng(classes)
    for order in (np.roll(np.arange(classes), 1), np.arange(classes)[::-1]):
        found, labels = predictions(random, 300, classes, 0.9)
        outputs = np.argsort(order)[found]  # output k stands for label order[k]
        moved = better_order(outputs, labels, classes=classes)
        assert moved is not None
        seen = np.unique(outputs)
        np.testing.assert_array_equal(moved[seen], order[seen])


def test_a_weak_model_raises_no_false_alarm() -> None:
    random, alarms, tries = np.random.default_rng(0), 0, 0
    for classes in (2, 3, 10):
        for n in (10, 40, 200):
            for above in (0.0, 0.1, 0.4, 0.9):
                for _ in range(60):
                    alarms += better_order(*predictions(random, n, classes, above), classes=classes) is not None
                    tries += 1
    assert alarms <= binom.ppf(0.999, tries, PERMUTED)


@pytest.mark.parametrize(("classes", "n", "doubted", "found"), [(10, 100, 0.9, 0.6), (100, 1000, 0.75, 0.45)])
def test_two_classes_in_the_others_place_are_found_among_many(
    classes: int, n: int, doubted: float, found: float
) -> None:
    random, counts = np.random.default_rng(classes), {PERMUTED: 0, DOUBTFUL: 0}
    for _ in range(50):
        labels = random.integers(0, classes, n)
        partner = (labels + 1) % classes  # each class is taken for one other
        answers = np.where(random.random(n) < 0.05, partner, labels)
        order = np.arange(classes)
        order[[0, classes // 2]] = classes // 2, 0
        for level in counts:
            assert better_order(answers, labels, classes=classes, level=level) is None
            moved = better_order(order[answers], labels, classes=classes, level=level)
            counts[level] += moved is not None and np.array_equal(moved, order)
    assert counts[DOUBTFUL] >= 50 * doubted
    assert counts[PERMUTED] >= 50 * found
