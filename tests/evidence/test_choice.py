from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from petm.adapter.model import Cascade, Member
from petm.adapter.one_pass import Answers
from petm.evidence.candidates import VIEWS, Budget, candidates
from petm.evidence.choice import Candidate, Choosing, Labelled, choose_suspicion, regression
from petm.evidence.features import Mahalanobis
from petm.evidence.formulas import ENTROPY, MARGIN, MEAN_OPINION, SECOND_OPINION, SOFTMAX
from petm.evidence.protocol import FittedEvidence, Need, Part
from petm.evidence.suspicion import EVIDENCE
from petm.models.scores import entropy, maximum_softmax
from petm.selective.metrics import aurc, coverage_at_risk
from petm.training.config import EVIDENCE_NAMES

ADAPTER, FLIPPED = Member(), Member("", "mirror")


def held_out(count: int = 800, *, knows: float = 4.0, seed: int = 0) -> Labelled:
    """Answers of a model that is often wrong, of a member that knows the classes, and of one that knows nothing."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 5
    truth = torch.eye(5)[labels]
    base = 2.5 * truth + 1.2 * torch.randn(count, 5, generator=generator)
    adapter = base + knows * truth
    nothing = base + 2 * torch.randn(count, 5, generator=generator)
    features = truth @ torch.randn(5, 6, generator=generator) + torch.randn(count, 6, generator=generator)
    return Labelled(Answers(base, torch.stack((adapter, nothing), 1), (ADAPTER, FLIPPED), features), labels)


GOOD = Candidate("good", (MEAN_OPINION,), (ADAPTER,), cost=0.1)
BAD = Candidate("bad", (MEAN_OPINION,), (FLIPPED,), cost=1.0)


def test_a_member_that_knows_is_taken_and_no_other() -> None:
    chosen = choose_suspicion(Choosing(held_out()), [BAD, GOOD])
    assert chosen.choice.name == "good"
    assert chosen.members == (ADAPTER,)
    assert chosen.cascade is None
    answers = held_out(50, seed=1).answers.only((ADAPTER,))
    p = torch.stack((answers.base, answers.opinions[:, 0])).double().softmax(2).mean(0)
    expected = 1 - p.gather(1, answers.predicted[:, None])[:, 0]
    torch.testing.assert_close(chosen.suspicion.of(answers), expected)


def test_the_softmax_is_kept_where_nothing_is_better() -> None:
    chosen = choose_suspicion(Choosing(held_out(knows=0.0)), [BAD, GOOD])
    assert (chosen.choice.name, chosen.members, chosen.suspicion.name) == ("softmax", (), "softmax")


def test_a_share_is_the_least_certain() -> None:
    choosing = Choosing(held_out())
    answers, cascade = choosing.seen(Candidate("some", (MEAN_OPINION,), (ADAPTER,), share=0.25))
    assert cascade is not None
    asked = cascade.asks(maximum_softmax(answers.base))
    assert asked.double().mean().item() == pytest.approx(0.25, abs=0.01)
    softmax = maximum_softmax(answers.base)
    assert softmax[asked].min() >= softmax[~asked].max()
    assert torch.equal(answers.opinions[~asked, 0], answers.base[~asked])
    assert torch.equal(answers.opinions[asked], held_out().answers.opinions[asked][:, :1])


def test_a_share_around_the_risk() -> None:
    choosing = Choosing(held_out(), max_risk=0.05)
    answers, cascade = choosing.seen(Candidate("band", (MEAN_OPINION,), (ADAPTER,), share=0.2, around=True))
    assert isinstance(cascade, Cascade)
    softmax = maximum_softmax(answers.base)
    assert cascade.asks(softmax).double().mean().item() == pytest.approx(0.2, abs=0.01)
    middle = coverage_at_risk(softmax.numpy(), choosing.wrong, risk=0.05)
    below = (softmax < cascade.low).double().mean().item()
    assert below == pytest.approx(middle - 0.1, abs=0.01)


def test_a_regression_judges_no_sample_that_it_was_fitted_on() -> None:
    choosing = Choosing(held_out(), seed=3)
    candidate = Candidate("regression", (MARGIN, SECOND_OPINION), (ADAPTER,))
    found = choosing.out_of_fold(candidate)
    answers, _ = choosing.seen(candidate)
    wrong = choosing.wrong
    second = SECOND_OPINION.compute(answers, {}).numpy()
    table = np.stack([MARGIN.compute(answers, {}).numpy(), np.log(second) - np.log1p(-second)], 1)
    folds, expected = StratifiedKFold(5, shuffle=True, random_state=3), np.empty(len(wrong))
    for rest, fold in folds.split(table, wrong):
        centre, scale = table[rest].mean(0), table[rest].std(0, ddof=1)
        model = LogisticRegression(max_iter=1000).fit((table[rest] - centre) / scale, wrong[rest])
        expected[fold] = model.decision_function((table[fold] - centre) / scale)
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_cannot_be_fitted_is_left_out() -> None:
    samples = held_out()
    offered = [Candidate("distance", (Mahalanobis(),)), GOOD]
    assert {row.name for row in choose_suspicion(Choosing(samples), offered).choice.compared} == {"softmax", "good"}
    few = Labelled(samples.answers.rows(samples.labels != 2), samples.labels[samples.labels != 2])
    for training in (samples, few):  # of the few, a class has no sample
        chosen = choose_suspicion(Choosing(samples, training), offered)
        assert ("distance" in {row.name for row in chosen.choice.compared}) == (training is samples)


@pytest.mark.parametrize("most", [0.01, 0.1, 0.25, 1.0, 6.0])
def test_candidates_keep_within_the_budget(most: float) -> None:
    features = {"mahalanobis": 0.02, "relative_mahalanobis": 0.04}
    budget = Budget(most, adapters=0.2, features=features)
    found = candidates((ADAPTER,), VIEWS, budget, targeted=True)
    assert len({each.name for each in found}) == len(found)
    for each in found:
        own = [member for member in each.members if member.adapter]
        whole = (0.2 if own else 0.0) + len(each.members) - len(own)
        cost = whole if each.share == 1 else each.share * len(each.members)
        cost += sum(
            {"mahalanobis": 0.02, "relative_mahalanobis": 0.04}.get(column.name, 0.0) for column in each.evidence
        )
        assert each.cost == pytest.approx(cost)
        assert each.cost <= most * (1 + 1e-9)
    assert any(each.members == (ADAPTER,) and each.share == 1 for each in found) == (most >= 0.2)
    assert any(len(each.members) == 5 and each.share == 1 for each in found) == (most >= 4.2)


def test_one_pass_is_cheaper_than_a_cascade_only_where_it_is() -> None:
    budget = Budget(1.0, adapters=0.2)
    assert budget.of((SOFTMAX,)) == 0
    assert budget.of((MEAN_OPINION,), (ADAPTER,)) == pytest.approx(0.2)
    assert budget.of((MEAN_OPINION,), (ADAPTER, FLIPPED)) == pytest.approx(1.2)
    assert budget.of((MEAN_OPINION,), (ADAPTER, FLIPPED), 0.22) == pytest.approx(0.44)


def test_a_fit_compares_the_evidence_that_its_settings_name() -> None:
    budget = Budget(10.0, adapters=0.2, features={each.name: 0.01 for each in EVIDENCE.values()})
    found = candidates((ADAPTER,), VIEWS, budget, alone=True)
    assert {column.name for each in found for column in each.evidence} == set(EVIDENCE_NAMES)
    assert all(name in EVIDENCE for name in EVIDENCE_NAMES)


def test_entropy_above_1_nat_keeps_its_order_where_none_was_seen() -> None:
    samples = held_out()
    sure = Labelled(replace(samples.answers, base=4 * samples.answers.base), samples.labels)
    kept = entropy(sure.answers.base) < 1
    sure = Labelled(sure.answers.rows(kept), sure.labels[kept])
    suspicion = Choosing(sure).whole(Candidate("regression", (SOFTMAX, ENTROPY)))
    weighting = suspicion.weighting
    assert weighting is not None
    assert weighting.log_odds == (True, False)
    steps = [torch.tensor([0.5]).double()] * 3, [torch.tensor([value]).double() for value in (0.9, 1.0, 1.1)]
    low, middle, high = (weighting.of(columns).item() for columns in zip(*steps, strict=True))
    assert high - middle == pytest.approx(middle - low)


@dataclass(frozen=True)
class Remembering:
    """Evidence that knows the samples it was fitted on by heart, and nothing about others."""

    name: ClassVar[str] = "remembering"
    title: ClassVar[str] = "By heart"
    source: ClassVar[str] = "A user"
    needs: ClassVar[Need] = "logits"
    fitted_on: ClassVar[Part | None] = "calibration"

    def fit(self, answers: Answers, labels: torch.Tensor, *, seed: int = 0) -> FittedEvidence:
        return FittedEvidence(self, {"rows": answers.base, "wrong": (answers.predicted != labels).double()})

    def compute(self, answers: Answers, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        same = (answers.base[:, None] == state["rows"]).all(2).double()
        return same @ state["wrong"]

    def operations(self, classes: int, features: int) -> int:
        return 0


def test_evidence_fitted_on_held_out_samples_judges_none_that_it_has_seen() -> None:
    choosing = Choosing(held_out())
    own = Candidate("by heart", (Remembering(),))
    found = choosing.out_of_fold(own)
    assert found is not None
    assert not found.any()
    assert choose_suspicion(choosing, [own]).choice.name == "softmax"
    both = choosing.out_of_fold(Candidate("regression", (SOFTMAX, Remembering())))
    alone = choosing.out_of_fold(Candidate("softmax alone", (SOFTMAX,)))
    assert both is not None
    assert alone is not None
    assert aurc(both, choosing.wrong) > 0.5 * aurc(alone, choosing.wrong)


def test_evidence_that_is_not_finite_is_not_compared() -> None:
    samples = held_out()
    features = samples.answers.features.clone()
    features[3] = float("inf")
    strange = Labelled(replace(samples.answers, layer_input=features), samples.labels)
    offered = [
        Candidate("distance", (Mahalanobis(),)),
        Candidate("regression", (SOFTMAX, Mahalanobis())),
        GOOD,
    ]
    chosen = choose_suspicion(Choosing(strange, samples), offered)
    assert {row.name for row in chosen.choice.compared} == {"softmax", "good"}


def test_a_column_that_is_constant_up_to_rounding_has_no_weight() -> None:
    choosing = Choosing(held_out())
    constant = torch.full((len(choosing.wrong),), 0.1).double()
    constant[::3] += 1e-17
    softmax = maximum_softmax(choosing.held_out.answers.base)
    weighting, _ = regression([softmax, constant], choosing.wrong, (True, False))
    usual, shifted = (weighting.of([softmax[:1], torch.tensor([value]).double()]).item() for value in (0.1, 0.6))
    assert shifted == pytest.approx(usual, abs=1e-3)
