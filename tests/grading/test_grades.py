import sys
from dataclasses import replace

import numpy as np
import pytest

from petm.errors import ExtraError
from petm.grading.grades import NO_SECOND, Grade, Grades

LABELS, SECOND, TRUSTED = np.array([2, 0, 1]), np.array([2, 1, 1]), np.array([True, False, True])
SUSPICION, PROBABILITY = np.array([0.1, 0.9, 0.25]), np.array([0.01, 0.5, 0.125])
GRADES = Grades(LABELS, SECOND, SUSPICION, PROBABILITY, TRUSTED, ("ant", "bee", "cow"))


def test_names_are_those_of_the_labels() -> None:
    assert GRADES.names is not None
    assert GRADES.names.tolist() == ["cow", "ant", "bee"]
    assert replace(GRADES, classes=()).names is None


def test_a_table_has_a_row_for_each_sample() -> None:
    pandas = pytest.importorskip("pandas")
    expected = pandas.DataFrame(
        {
            "label": [2, 0, 1],
            "label_name": ["cow", "ant", "bee"],
            "second": [2, 1, 1],
            "probability_of_error": [0.01, 0.5, 0.125],
            "suspicion": [0.1, 0.9, 0.25],
            "trusted": [True, False, True],
        }
    )
    pandas.testing.assert_frame_equal(GRADES.to_pandas(), expected, check_dtype=False)
    assert replace(GRADES, classes=()).to_pandas()["label_name"].isna().all()


def test_a_second_opinion_that_was_not_asked_for_is_empty() -> None:
    pandas = pytest.importorskip("pandas")
    some = replace(GRADES, second=np.array([2, NO_SECOND, 1]))
    assert [each.second for each in some] == [2, None, 1]
    table = some.to_pandas()["second"]
    assert (table.tolist(), str(table.dtype)) == ([2, pandas.NA, 1], "Int64")
    own = replace(GRADES, labels=np.array([-1, 1, 1]), second=np.array([-1, None, 1], object))  # a user's labels
    assert [each.second for each in own] == own.to_pandas()["second"].tolist() == [-1, None, 1]


def test_a_table_without_pandas_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ExtraError, match=r"^pandas: expected .* pip install pandas\.$"):
        GRADES.to_pandas()


def test_samples_are_counted_indexed_and_iterated() -> None:
    assert len(GRADES) == 3
    assert list(GRADES) == [
        Grade(2, "cow", 2, 0.01, 0.1, True),
        Grade(0, "ant", 1, 0.5, 0.9, False),
        Grade(1, "bee", 1, 0.125, 0.25, True),
    ]
    assert GRADES[-1] == GRADES[2]
    with pytest.raises(IndexError):
        GRADES[3]
    suspects = GRADES[~GRADES.trusted]
    assert list(suspects) == [GRADES[1]]
    assert list(GRADES[1:]) == [GRADES[1], GRADES[2]]
    assert replace(GRADES, classes=())[0].name is None


def test_candidates_follow_rows_and_have_names() -> None:
    pytest.importorskip("pandas")
    some = replace(GRADES, candidates=np.fromiter([(2,), (0, 1), (1, 2)], object))
    assert [each.candidates for each in some] == [(2,), (0, 1), (1, 2)]
    assert GRADES[0].candidates is GRADES.candidate_names is None
    assert [each.candidates for each in Grades.joined([some[~some.trusted], some[:1]])] == [(0, 1), (2,)]
    named = [("cow",), ("ant", "bee"), ("bee", "cow")]
    assert some.candidate_names is not None
    assert some.candidate_names.tolist() == some.to_pandas()["candidates"].tolist() == named
    assert replace(some, classes=()).candidate_names.tolist() == [("2",), ("0", "1"), ("1", "2")]  # type: ignore[union-attr]


def test_parts_are_joined_in_their_order() -> None:
    assert list(Grades.joined([GRADES[:1], GRADES[1:1], GRADES[1:]])) == list(GRADES)


def test_what_is_shown_names_classes_and_grades() -> None:
    assert repr(GRADES) == (
        "Grades(3 samples, 2 trusted)\n"
        "  cow: trusted, probability of error 0.01\n"
        "  ant: suspect, probability of error 0.5\n"
        "  bee: trusted, probability of error 0.125"
    )
    many = replace(GRADES[[0] * 9], classes=(), probability_of_error=np.full(9, np.nan))
    assert repr(many).splitlines() == ["Grades(9 samples, 9 trusted)", *["  2: trusted"] * 5, "  ..."]
