"""Whether a guarantee holds: the interval by its definition, verdicts, and how often these are wrong."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binom

from petm.errors import ArgumentError
from petm.selective.monitoring import LabelledCounts, exact_share, samples_to_tell
from petm.selective.thresholds import DISAGREEMENT, Threshold

RISK = Threshold(0.3, "guaranteed risk", 0.9, max_risk=0.05, confidence=0.95, risk=0.02)
RECALL = Threshold(0.3, "guaranteed recall", 0.9, confidence=0.9, recall=0.8)


def rows(trusted_right=0, trusted_wrong=0, suspects_right=0, suspects_wrong=0):
    """Grades and errors of so many labelled predictions."""
    counts = (trusted_right, trusted_wrong, suspects_right, suspects_wrong)
    return np.repeat([True, True, False, False], counts), np.repeat([False, True, False, True], counts)


def check_guarantee(threshold, *labelled, confidence=None):
    return LabelledCounts(threshold).add(*labelled).check(confidence=confidence)


def clopper_pearson(count, of, confidence):
    """The ends as they are defined: where so few or so many become too unlikely."""
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else brentq(lambda p: binom.sf(count - 1, of, p) - tail, 1e-12, 1 - 1e-12)
    high = 1.0 if count == of else brentq(lambda p: binom.cdf(count, of, p) - tail, 1e-12, 1 - 1e-12)
    return low, high


@pytest.mark.parametrize(("count", "of"), [(0, 1), (0, 72), (3, 40), (40, 40), (217, 10_000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_the_interval_is_clopper_and_pearsons(count, of, confidence):
    share = exact_share(count, of, confidence=confidence)
    assert (share.value, share.count, share.of) == (count / of, count, of)
    assert (share.low, share.high) == pytest.approx(clopper_pearson(count, of, confidence), abs=1e-9)


def test_without_a_trial_nothing_is_known():
    share = exact_share(0, 0)
    assert math.isnan(share.value)
    assert (share.low, share.high) == (0, 1)


@pytest.mark.parametrize(
    ("right", "wrong", "verdict"),
    [
        (71, 0, "cannot tell"),  # 0.025 ** (1 / 71) = 0.9494
        (72, 0, "holds"),  # 0.025 ** (1 / 72) = 0.9501
        (990, 10, "holds"),
        (94, 6, "cannot tell"),
        (90, 10, "cannot tell"),
        (88, 12, "violated"),
        (0, 1, "cannot tell"),  # the interval begins at 0.025
        (0, 2, "violated"),  # at 0.158
    ],
)
def test_verdicts(right, wrong, verdict):
    check = check_guarantee(RISK, *rows(right, wrong, suspects_right=30, suspects_wrong=70))
    low, high = clopper_pearson(wrong, right + wrong, 0.95)
    assert verdict == ("holds" if high <= 0.05 else "violated" if low > 0.05 else "cannot tell"), "the test's own table"
    assert check.verdict == verdict
    assert (check.limit, check.confidence, check.of) == (0.05, 0.95, "wrong among the trusted")
    assert (check.found.count, check.found.of) == (wrong, right + wrong)
    assert (check.labelled_trusted, check.labelled_suspects) == (right + wrong, 100)
    assert (check.samples_needed is None) == (verdict != "cannot tell")


def test_another_confidence():
    assert check_guarantee(RISK, *rows(88, 12), confidence=0.999).verdict == "cannot tell"
    assert check_guarantee(RISK, *rows(88, 12), confidence=0.999).confidence == 0.999
    for level in (0, 1, 1.5):
        with pytest.raises(ArgumentError, match=r"^confidence:"):
            check_guarantee(RISK, *rows(88, 12), confidence=level)


def test_labels_of_suspects_alone_say_nothing_of_the_trusted():
    check = check_guarantee(RISK, *rows(suspects_right=400, suspects_wrong=100))
    assert check.verdict == "cannot tell"
    assert (check.labelled_trusted, check.labelled_suspects) == (0, 500)
    assert check.found.of == 0
    assert check.samples_needed == samples_to_tell(0.02, 0.05, 0.95), "at the rate of the calibration samples"


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.045, 0.08, 0.5, 1.0])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_samples_to_tell(rate, confidence):
    """So many tell, by the definition of the interval; nine tenths of them do not."""
    found = samples_to_tell(rate, 0.05, confidence)

    def tells(trials):
        low, high = clopper_pearson(math.ceil(rate * trials) if rate < 0.05 else int(rate * trials), trials, confidence)
        return high <= 0.05 or low > 0.05

    assert tells(found)
    assert found < 3 or not tells(math.ceil(0.9 * found) - 1)
    if rate == 0:
        assert found == pytest.approx(math.log((1 - confidence) / 2) / math.log(0.95), rel=0.02)


def test_a_share_at_the_limit_needs_no_number():
    assert samples_to_tell(0.05, 0.05, 0.95) is None
    check = check_guarantee(RISK, *rows(95, 5))
    assert (check.verdict, check.samples_needed) == ("cannot tell", None)


@pytest.mark.slow
@pytest.mark.parametrize(("risk", "wrong_verdict"), [(0.05, "violated"), (0.0501, "holds")])
@pytest.mark.parametrize("count", [20, 100, 500])
def test_a_wrong_verdict_is_as_rare_as_said(risk, wrong_verdict, count):
    """Exactly, over all numbers of errors: at most 2.5 % each, at a risk just at the bound of the guarantee."""
    wrong = sum(
        binom.pmf(errors, count, risk)
        for errors in range(count + 1)
        if check_guarantee(RISK, *rows(count - errors, errors)).verdict == wrong_verdict
    )
    assert wrong <= 0.025


# other guarantees


def test_a_recall_is_about_the_errors_wherever_they_are():
    """Of 40 labelled errors 2 were trusted, where a fifth may be."""
    check = check_guarantee(RECALL, *rows(900, 2, 100, 38))
    low, high = clopper_pearson(2, 40, 0.9)
    assert (check.of, check.limit) == ("trusted among the wrong", pytest.approx(0.2))
    assert (check.found.low, check.found.high) == pytest.approx((low, high))
    assert (check.verdict, high <= 0.2) == ("holds", True)
    assert check_guarantee(RECALL, *rows(900, 20, 100, 20)).verdict == "violated"
    only_suspects = check_guarantee(RECALL, *rows(suspects_right=10, suspects_wrong=90))
    assert only_suspects.verdict == "cannot tell", "it would hold for sure, however many errors were trusted"


@pytest.mark.parametrize(
    "threshold",
    [
        DISAGREEMENT,
        Threshold(0.3, "coverage", 0.9),
        Threshold(0.3, "recall", 0.9, recall=0.9),
        Threshold(-math.inf, "guaranteed risk", 0.0, max_risk=0.01, confidence=0.95),
    ],
)
def test_without_a_guarantee_there_is_no_violation(threshold):
    check = check_guarantee(threshold, *rows(0, 100))
    assert (check.verdict, check.limit, check.samples_needed) == ("nothing guaranteed", None, None)
    assert check.found.value == 1
    assert check.confidence == 0.95


def by_class(*values, max_risk=0.05):
    parts = tuple(Threshold(value, "guaranteed risk", 0.5, max_risk, 0.95, risk=0.01) for value in values)
    return Threshold(max(values), "guaranteed risk in each class", 0.5, max_risk, 0.95, classes=parts)


def in_classes(*counts):
    """Trusted, wrong and labels, from (right, wrong) among the trusted of each class."""
    trusted, wrong = zip(*(rows(*pair) for pair in counts), strict=True)
    labels = np.repeat(np.arange(len(counts)), [sum(pair) for pair in counts])
    return np.concatenate(trusted), np.concatenate(wrong), labels


def test_a_guarantee_in_each_class_is_checked_in_each_class():
    threshold = by_class(0.2, 0.3, -math.inf)
    check = check_guarantee(threshold, *in_classes((500, 0), (500, 60), (0, 0)))
    assert check.verdict == "violated"
    assert [label for label, _ in check.classes] == [0, 1], "the third class is never trusted"
    first, second = (part for _, part in check.classes)
    assert (first.verdict, second.verdict) == ("holds", "violated")
    assert first.confidence == pytest.approx(0.975), "both intervals hold together at 95 %"
    assert (second.found.low, second.found.high) == pytest.approx(clopper_pearson(60, 560, 0.975))
    assert (check.found.count, check.found.of) == (60, 1060)

    assert check_guarantee(threshold, *in_classes((500, 0), (500, 0), (0, 0))).verdict == "holds"
    open_ = check_guarantee(threshold, *in_classes((500, 0), (50, 0), (0, 0)))
    assert open_.verdict == "cannot tell"
    needed = samples_to_tell(0, 0.05, 0.975)
    assert open_.samples_needed == math.ceil(needed * 550 / 50), "a random draw has one of class 1 in eleven"
    none_yet = check_guarantee(threshold, *in_classes((500, 0), (0, 0), (0, 0)))
    assert (none_yet.verdict, none_yet.samples_needed) == ("cannot tell", None)


def test_an_average_that_holds_hides_no_broken_class():
    check = check_guarantee(by_class(0.2, 0.3), *in_classes((5000, 0), (80, 20)))
    assert check.found.high < 0.05
    assert check.verdict == "violated"


def test_no_class_is_trusted():
    check = check_guarantee(by_class(-math.inf, -math.inf), *in_classes((0, 0), (0, 0)))
    assert (check.verdict, check.classes) == ("nothing guaranteed", ())


def test_pieces_give_what_the_whole_gives():
    generator = np.random.default_rng(0)
    trusted, wrong, labels = generator.random(1000) < 0.8, generator.random(1000) < 0.04, generator.integers(0, 2, 1000)
    counts = LabelledCounts(by_class(0.2, 0.3))
    for start in range(0, 1000, 130):
        piece = slice(start, start + 130)
        counts.add(trusted[piece], wrong[piece], labels[piece])
    assert counts.check() == check_guarantee(by_class(0.2, 0.3), trusted, wrong, labels)


def test_what_does_not_fit():
    with pytest.raises(ArgumentError, match=r"^wrong:"):
        check_guarantee(RISK, [True] * 3, [False] * 2)
    with pytest.raises(ArgumentError, match=r"^predicted:"):
        check_guarantee(by_class(0.2, 0.3), [True] * 3, [False] * 3)
    with pytest.raises(ArgumentError, match=r"^predicted:"):
        check_guarantee(by_class(0.2, 0.3), [True] * 3, [False] * 3, [0, 1, 2])
