from dataclasses import replace

import numpy as np
import pytest

from petm.selective.guarantee import guarantee
from petm.selective.thresholds import DISAGREEMENT, Threshold, coverage_threshold, recall_threshold

GOOD = Threshold(0.5, "guaranteed risk", 0.8, 0.05, 0.9, 0.01)
BAD = replace(GOOD, value=-np.inf, coverage=0.0, risk=None, samples_needed=700)
SCORES, WRONG = np.arange(10) / 10, np.arange(10) >= 6


@pytest.mark.parametrize(
    ("threshold", "said"),
    [
        (
            GOOD,
            "The guarantee: of later predictions at most 5% of the trusted are wrong, with 90% confidence, as long as",
        ),
        (
            replace(GOOD, rule="guaranteed risk in each class", classes=(GOOD, GOOD)),
            "at most 5% of the trusted are wrong in each class that the model predicts, with 90% confidence",
        ),
        (
            BAD,
            "It cannot be guaranteed that at most 5% of the trusted are wrong, and so nothing is trusted. About 700 "
            "calibration samples would do",
        ),
        (replace(GOOD, classes=(GOOD, BAD)), "and so in 1 of 2 classes nothing is trusted. "),
        (
            Threshold(0.5, "guaranteed recall", 0.8, None, 0.95, 0.01, 0.975),
            "The guarantee: of later predictions at least 97.5% of the model's errors are flagged, with 95% "
            "confidence, as long",
        ),
        (
            Threshold(-np.inf, "guaranteed recall", 0.0, None, 0.95, recall=0.9, samples_needed=50),
            "It cannot be guaranteed that at least 90% of the model's errors are flagged, and so nothing is "
            "trusted. About 50 ",
        ),
        (recall_threshold(SCORES, WRONG, recall=0.9), "Nothing is guaranteed: the threshold flags at least 90% of the"),
        (
            coverage_threshold(SCORES, 0.7),
            "Nothing is guaranteed about errors: the threshold was set by the share to trust",
        ),
        (DISAGREEMENT, "Nothing is guaranteed. The threshold: disagreement, as in the paper."),
    ],
    ids=lambda value: getattr(value, "rule", "said"),
)
def test_the_guarantee_in_words(threshold: Threshold, said: str) -> None:
    assert said in guarantee(threshold)
