"""The stated cost of grading, against what is counted while it runs."""

import pytest
import torch
from torch import nn

from networks import TinyCNN, images, randomise, seeded
from petm._internal.operations import count_operations
from petm.adapter.model import AdaptedModel, Member, attach_adapter, views_alone
from petm.adapter.one_pass import answers_of, find_feature_layer, predict_answers, set_cascade
from petm.data.base import TensorData
from petm.evidence.candidates import extra_operations
from petm.evidence.features import Mahalanobis
from petm.evidence.suspicion import Suspicion, suspicion_named
from petm.grading.grader import fit_grader
from petm.selective.targets import Coverage
from petm.selective.worth import cost_of

DATA = TensorData(images(64), torch.arange(64) % 10)
MIRROR = Member("", "mirror")


@pytest.fixture
def network() -> nn.Module:
    return seeded(TinyCNN).eval()


def counted(adapted: AdaptedModel) -> float:
    """Operations of grading over those of the model alone, less 1."""
    answers_of(adapted, images(4))  # finds the split point
    graded = count_operations(lambda: answers_of(adapted, DATA.inputs(range(64))), adapted.base)
    return graded / count_operations(lambda: adapted.base(DATA.inputs(range(64))), adapted.base) - 1


@pytest.mark.parametrize("members", [(), (Member(),), (MIRROR,), (Member(), MIRROR)])
@pytest.mark.parametrize("share", [0.25, 1.0])
def test_what_is_said_is_what_is_counted(network: nn.Module, members: tuple[Member, ...], share: float) -> None:
    adapted = randomise(attach_adapter(network, {"fc1": 2}, members=members))
    if members and share < 1:
        set_cascade(adapted, DATA, share)
    grader = fit_grader(adapted, DATA, target=Coverage(0.5), score="mean_opinion")
    extra = grader.measured["extra_operations"]
    # A cascade's adapter is counted as a pass of the base model, without its own matrices, 1 % of that here.
    assert extra == pytest.approx(counted(adapted), abs=0.01)
    assert cost_of(grader.measured) == (
        f"Grading takes {1 + extra:.2f} × the operations of the model alone, on the calibration samples.",
    )


def test_evidence_on_features_has_its_cost(network: nn.Module) -> None:
    adapted = views_alone(network, ())
    adapted.take_features(find_feature_layer(adapted, images(4)))
    answers = predict_answers(adapted, DATA)
    distance = Mahalanobis().fit(answers, DATA.labels, seed=0)
    plain = count_operations(lambda: network(images(1)), network)
    found = extra_operations(adapted, Suspicion((distance,)), answers, DATA)
    assert found == pytest.approx(2 * Mahalanobis().operations(10, 16) / plain)
    assert extra_operations(adapted, suspicion_named("softmax"), answers, DATA) == 0


def test_figures_without_it_say_nothing() -> None:
    assert cost_of({}) == cost_of({"extra_operations": None}) == ()
