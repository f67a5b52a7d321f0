import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from petm._internal.records import Record
from petm.adapter.model import Member
from petm.adapter.one_pass import Answers
from petm.errors import ArgumentError, BundleError
from petm.evidence.choice import regression
from petm.evidence.features import Mahalanobis
from petm.evidence.formulas import MEAN_OPINION, SOFTMAX
from petm.evidence.protocol import FittedEvidence
from petm.evidence.suspicion import (
    EVIDENCE,
    Suspicion,
    evidence_named,
    suspicion_from_json,
    suspicion_named,
)
from petm.selective.weighting import as_log_odds


def answers(count: int = 80, classes: int = 4, features: int = 5, seed: int = 0) -> Answers:
    generator = torch.Generator().manual_seed(seed)
    base = 3 * torch.randn(count, classes, generator=generator)
    second = base + torch.randn(count, classes, generator=generator)
    held = torch.randn(count, features, generator=generator)
    return Answers(base, second[:, None], (Member(),), held)


LABELS = torch.arange(80) % 4


def regressed() -> Suspicion:
    columns = tuple(each.fit(answers(), LABELS) for each in (SOFTMAX, MEAN_OPINION, Mahalanobis()))
    wrong = (answers().predicted != LABELS).numpy()
    return Suspicion(columns, regression([each.score(answers()) for each in columns], wrong, (True, True, False))[0])


def test_a_regression_is_that_of_scikit_learn() -> None:
    columns = [torch.rand(200, dtype=torch.float64), 7 * torch.randn(200, dtype=torch.float64) - 3]
    wrong = (columns[0] + 0.1 * columns[1] > 0.4).numpy()
    weighting, intercept = regression(columns, wrong, (True, False))
    raw = np.stack([logit(columns[0].numpy()), columns[1].numpy()], 1)
    table = (raw - raw.mean(0)) / raw.std(0, ddof=1)
    expected = LogisticRegression(max_iter=1000).fit(table, wrong).decision_function(table)
    np.testing.assert_allclose(weighting.of(columns) + intercept, expected, atol=1e-9)
    torch.testing.assert_close(weighting.as_tensor(columns), torch.from_numpy(weighting.of(columns)), atol=1e-9, rtol=0)


def test_log_odds_are_finite_and_in_order() -> None:
    inside = np.array([1e-200, 1e-9, 0.3, 0.999])
    np.testing.assert_allclose(as_log_odds(inside), logit(inside), rtol=1e-12)
    ends = as_log_odds([0.0, 1.0])
    assert np.isfinite(ends).all()
    assert ends[0] < as_log_odds(inside).min() < as_log_odds(inside).max() < ends[1]


@pytest.mark.parametrize("name", EVIDENCE)
def test_every_kind_is_saved_and_read(name: str) -> None:
    suspicion = Suspicion((evidence_named(name).fit(answers(), LABELS),))
    again = back(suspicion.as_json(), suspicion.tensors)
    assert torch.equal(again.of(answers(30, seed=1)), suspicion.of(answers(30, seed=1)))
    assert again.name == name


def test_a_regression_is_saved_and_read() -> None:
    suspicion = regressed()
    again = back(suspicion.as_json(), suspicion.tensors)
    assert torch.equal(again.of(answers(30, seed=1)), suspicion.of(answers(30, seed=1)))
    assert again.name == "softmax + mean_opinion + mahalanobis"
    assert again.needs_features
    assert again.needs_opinions


def back(entry: Mapping[str, Any], tensors: Mapping[str, Tensor], features: int = 5) -> Suspicion:
    return suspicion_from_json(Record(json.loads(json.dumps(entry)), "here"), tensors, features=features)


def weights(values: list[float], scales: list[float]) -> dict[str, Any]:
    return {"weights": values, "centres": values, "scales": scales, "log_odds": [True] * len(values)}


@pytest.mark.parametrize(
    ("change", "tensors", "named"),
    [
        ({"evidence": ["luck"]}, {}, "evidence"),
        ({"evidence": []}, {}, "evidence"),
        ({"evidence": "softmax"}, {}, "evidence"),
        ({"evidence": ["softmax", "softmax"]}, {}, "evidence"),
        ({"evidence": ["softmax"]}, {}, "weighting"),
        ({"weighting": None}, {}, "weighting"),
        ({"weighting": weights([1, 1, 1], [1, 0, 1])}, {}, "weighting"),
        ({"weighting": weights([1], [1])}, {}, "weighting"),
        ({}, {"mahalanobis.whiten": torch.zeros(3, 3, dtype=torch.float64)}, "tensors"),
        ({}, {"mahalanobis.centres": torch.zeros(0, 5, dtype=torch.float64)}, "tensors"),
        ({}, {"mahalanobis.whiten": torch.full((5, 5), float("nan"), dtype=torch.float64)}, "tensors"),
        ({}, {"else.where": torch.zeros(1)}, "tensors"),
    ],
)  # fmt: skip
def test_a_forged_suspicion(change: dict[str, Any], tensors: dict[str, Tensor], named: str) -> None:
    suspicion = regressed()
    with pytest.raises(BundleError, match=named):
        back(suspicion.as_json() | change, suspicion.tensors | tensors)


def test_evidence_of_the_users_own() -> None:
    class LogitSum:
        name, title, source, needs, fitted_on = "logit_sum", "Sum of the logits", "me", "logits", None

        def fit(self, answers: Answers, labels: Tensor, *, seed: int = 0) -> FittedEvidence:
            return FittedEvidence(self, {"offset": labels.double().mean()})

        def compute(self, answers: Answers, state: Mapping[str, Tensor]) -> Tensor:
            return answers.base.double().sum(1) + state["offset"]

        def operations(self, classes: int, features: int) -> int:
            return classes

    suspicion = Suspicion((LogitSum().fit(answers(), LABELS),))
    record = Record(suspicion.as_json(), "here")
    with pytest.raises(BundleError, match="evidence"):
        suspicion_from_json(record, suspicion.tensors, features=0)
    again = suspicion_from_json(record, suspicion.tensors, features=0, own=[LogitSum()])
    assert torch.equal(again.of(answers()), answers().base.double().sum(1) + 1.5)


@pytest.mark.parametrize("name", ["luck", "mahalanobis"])
def test_only_evidence_without_a_fit_goes_by_its_name(name: str) -> None:
    with pytest.raises(ArgumentError, match=r"^score:"):
        suspicion_named(name)
    if name == "luck":
        with pytest.raises(ArgumentError, match=r"^evidence:"):
            evidence_named(name)
