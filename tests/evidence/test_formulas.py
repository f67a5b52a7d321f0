from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from networks import images
from petm.adapter.one_pass import Answers
from petm.errors import ModelError
from petm.evidence.formulas import ENERGY, ENTROPY, MARGIN, SOFTMAX, Formula, TemperatureScaling
from petm.models.scores import energy, entropy, margin, maximum_softmax


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def flat(classes: int = 5, scale: float = 1.0) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, classes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model[1].weight.copy_(scale * torch.randn(classes, 784, generator=generator))
    return model


# Temperature


@pytest.mark.parametrize("scale", [0.05, 0.5])
def test_the_temperature_is_that_of_a_grid(scale: float) -> None:
    model = flat(scale=scale)
    logits = model(images(400)).detach().double().numpy()
    # Labels drawn from the softmax at half the logits: the temperature ought to come out near 2.
    p = softmax(logits / 2)
    labels = (p.cumsum(1) < np.random.default_rng(0).random((400, 1))).sum(1)
    grid = np.geomspace(0.1, 100, 4000)
    losses = [-np.log(softmax(logits / t)[np.arange(400), labels]).mean() for t in grid]
    best = grid[int(np.argmin(losses))]
    answers = Answers(model(images(400)).detach())
    fitted = TemperatureScaling().fit(answers, torch.from_numpy(labels))
    found = fitted.chosen["temperature"]
    assert abs(np.log(found / best)) < np.log(grid[1] / grid[0])
    assert 1.2 < found < 3.5
    expected = 1 - softmax(logits / found).max(1)
    np.testing.assert_allclose(fitted.score(answers).numpy(), expected, atol=1e-9)


def test_the_temperature_stays_in_its_bounds() -> None:
    model = flat(scale=0.01)
    logits = model(images(50)).detach()
    for labels, expected in ((logits.argmax(1), 0.1), (logits.argmin(1), 100.0)):
        assert TemperatureScaling().fit(Answers(logits), labels).chosen["temperature"] == pytest.approx(
            expected, rel=1e-4
        )


# Formulas


@pytest.mark.parametrize(
    ("evidence", "formula"), [(SOFTMAX, maximum_softmax), (ENTROPY, entropy), (MARGIN, margin), (ENERGY, energy)]
)
def test_formulas_of_the_logits(evidence: Formula, formula: Callable[[Tensor], Tensor]) -> None:
    answers = Answers(torch.randn(20, 5, generator=torch.Generator().manual_seed(0)))
    fitted = evidence.fit(Answers(torch.empty(0, 0)), torch.empty(0))
    assert torch.equal(fitted.score(answers), formula(answers.base))
    assert (fitted.parameters, dict(fitted.chosen)) == (0, {})


def test_logits_alone_have_no_features() -> None:
    with pytest.raises(ModelError, match=r"^model: "):
        _ = Answers(torch.zeros(2, 3)).features
