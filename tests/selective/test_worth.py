"""The result in the user's units: the numbers by hand, the answer by how often it is wrong."""

import numpy as np
import pytest

from petm.errors import ArgumentError
from petm.selective.worth import worth


def graded(*cells: tuple[int, bool, bool, bool]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grades, grades by the softmax, and errors of so many samples each."""
    counts = [cell[0] for cell in cells]
    ours, theirs, wrong = (np.repeat([cell[place] for cell in cells], counts) for place in (1, 2, 3))
    return ours, theirs, wrong


def test_the_numbers_and_the_sentence():
    rows = graded((600, True, True, False), (300, True, False, False), (90, False, False, True), (10, True, True, True))
    found = worth(*rows)
    assert (found.reviewed, found.softmax_reviewed, found.missed, found.softmax_missed) == (90, 390, 10, 10)
    assert found.reviewed_more.value == -300
    assert found.reviewed_more.high < -290
    assert (found.missed_more.low, found.missed_more.high) == (0, 0)
    assert found.answer == "better"
    assert all(number in found.summary for number in ("1,000", "90", "390", "10"))
    assert found.sentence.startswith("Worth it:")
    assert "300 fewer" in found.sentence


@pytest.mark.parametrize(
    ("cell", "answer"),
    [
        ((40, False, True, False), "worse"),  # more goes to a person
        ((40, True, False, True), "mixed"),  # less goes to a person, and more errors stay
        ((40, False, True, True), "mixed"),  # more goes to a person, and fewer errors stay
        ((4, True, False, False), "cannot tell"),
    ],
)
def test_the_answer(cell, answer):
    assert worth(*graded((960, True, True, False), cell)).answer == answer


def test_where_there_is_no_difference_it_seldom_says_so():
    random, told = np.random.default_rng(0), 0
    for _ in range(400):
        ours, theirs = random.random((2, 500)) < 0.7
        told += worth(ours, theirs, random.random(500) < 0.1).answer != "cannot tell"
    assert told <= 400 * 0.05 + 4 * (400 * 0.05) ** 0.5


def test_chances_weigh_the_counts():
    ours, theirs, wrong = graded((50, True, True, False), (10, True, True, True), (100, False, False, True))
    found = worth(ours, theirs, wrong, chance=np.where(ours, 0.1, 1.0))
    assert found.missed == pytest.approx(1000 * 100 / 700)
    assert found.reviewed == pytest.approx(1000 * 100 / 700)


def test_wrong_arguments_are_refused():
    for arrays in (([], [], []), ([True], [True, False], [False])):
        with pytest.raises(ArgumentError, match="wrong"):
            worth(*arrays)
