import inspect
import math
import pickle

import numpy as np
import pytest

from petm.errors import ArgumentError
from petm.selective.metrics import auroc, risk_at_coverage
from petm.selective.ranking import RankedRows

ROWS = RankedRows([0.5, -1.0, 0.5, 7.0, 0.5], [True, False, False, True, False])


def test_counts_at_each_level() -> None:
    ranking = ROWS.ranking()
    assert ranking.levels.tolist() == [-1.0, 0.5, 7.0]
    assert ranking.right.tolist() == [1, 2, 0]
    assert ranking.wrong.tolist() == [0, 1, 1]


def test_a_resample_has_the_same_levels_and_other_counts() -> None:
    ranking = ROWS.ranking(np.array([0, 0, 0, 2, 4]))
    assert ranking.levels.tolist() == [-1.0, 0.5, 7.0]
    assert ranking.right.tolist() == [0, 2, 0]
    assert ranking.wrong.tolist() == [0, 3, 0]


def test_nan_is_no_suspicion() -> None:
    with pytest.raises(ArgumentError, match=r"^suspicion:"):
        RankedRows([math.nan, 1, math.nan], [True, False, False])


def test_a_metric_has_the_attributes_of_a_function() -> None:
    assert auroc.name == "auroc"
    assert auroc.title == "AUROC"
    assert repr(auroc) == "petm.selective.metrics.auroc"
    assert (auroc.__doc__ or "").startswith("Returns the probability that an error is more suspect")
    assert list(inspect.signature(auroc).parameters)[:2] == ["suspicion", "wrong"]
    assert auroc(suspicion=[0, 1], wrong=[False, True]) == 1


def test_a_metric_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(auroc)) is auroc
    assert pickle.loads(pickle.dumps(risk_at_coverage)) is risk_at_coverage
