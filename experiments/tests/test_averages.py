from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from experiments.baselines.averages import Ensemble, McDropout, TwoModels, Views
from experiments.baselines.protocol import Seen
from networks import ResidualNet, TinyCNN, images, seeded
from petm.data.base import Data, TensorData
from petm.data.views import view
from petm.errors import ArgumentError, NothingToLearnError
from petm.training.error_set import find_errors
from petm.training.teacher import train_teacher


def probabilities(model: nn.Module, x: Tensor) -> NDArray[np.float64]:
    with torch.no_grad():
        logits = model.eval()(x).double().numpy()
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def one_minus_mean(base: NDArray[np.float64], *opinions: NDArray[np.float64]) -> list[float]:
    """Sample by sample, in the words of the formula."""
    return [1 - float(np.mean([p[row, base[row].argmax()] for p in opinions])) for row in range(len(base))]


# Views


@pytest.mark.parametrize("network", [TinyCNN, ResidualNet])
@pytest.mark.parametrize(
    "names", [("same", "mirror"), ("shift 2 0", "same", "mirror", "shift 0 -1"), ("mirror",), ("same",)]
)
def test_views_are_averaged_for_the_answer_on_the_image(network: type[nn.Module], names: tuple[str, ...]) -> None:
    model, x = seeded(network), images(33)
    seen = Seen(model, TensorData(x), batch_size=16)
    found = Views(names).fit(seen, seen).suspicion(seen).numpy()
    base = probabilities(model, x)
    np.testing.assert_allclose(
        found, one_minus_mean(base, *(probabilities(model, view(name)(x)) for name in names)), atol=1e-6
    )


def test_views_have_names() -> None:
    with pytest.raises(ArgumentError, match=r"views: expected at least one name, got none\. Name 'same' and one more"):
        Views(())
    with pytest.raises(ArgumentError, match=r"view: expected 'same', 'mirror' or 'shift X Y', got 'upside down'"):
        Views(("same", "upside down"))
    assert Views(("same", "mirror")).name == "views_2"


# Ensemble


@pytest.mark.parametrize("with_base", [True, False])
def test_an_ensemble_grades_a(with_base: bool) -> None:
    model, members, x = seeded(TinyCNN), (seeded(TinyCNN, 1), seeded(ResidualNet, 2).train()), images(30)
    seen = Seen(model, TensorData(x), batch_size=16)
    ensemble = Ensemble(members, with_base=with_base)
    found = ensemble.fit(seen, seen).suspicion(seen).numpy()
    assert members[1].training
    base = probabilities(model, x)
    opinions = [probabilities(member, x) for member in members]
    np.testing.assert_allclose(found, one_minus_mean(base, *opinions, *([base] if with_base else [])), atol=1e-6)
    assert ensemble.name == ("ensemble_3" if with_base else "ensemble_2")
    assert ensemble.title == (
        "Ensemble of 3, the model among them" if with_base else "Ensemble of 2, without the model"
    )


def test_an_ensemble_has_members_of_the_same_classes() -> None:
    with pytest.raises(ArgumentError, match=r"members: expected at least one network, got none\. Train some from"):
        Ensemble(())
    seen = Seen(seeded(TinyCNN), TensorData(images(4)))
    other = nn.Sequential(nn.Flatten(), nn.Linear(784, 7))
    with pytest.raises(
        ArgumentError, match=r"members: expected networks of the model's 10 classes, got 7 from member 1\."
    ):
        Ensemble((seeded(TinyCNN, 1), other)).fit(seen, seen)


# MC dropout


class Small(nn.Module):
    """Four features, so that all sixteen masks can be tried; what follows the last layer is not the identity."""

    def __init__(self, *between: nn.Module) -> None:
        super().__init__()
        self.body, self.between, self.head = nn.Linear(784, 4), nn.Sequential(*between), nn.Linear(4, 3)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.head(self.between(self.features(x)))


def small(*between: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = Small(*between)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (4 if parameter.ndim < 2 else 2))
        model.body.weight.mul_(0.05)
    return model


def over_all_masks(model: nn.Module, x: Tensor, rate: float) -> NDArray[np.float64]:
    """The mean of 1 - p(c) over all sixteen masks, each by its probability."""
    W, b = (value.detach().double().numpy() for value in (model.head.weight, model.head.bias))
    features = model.features(x).detach().double().numpy()
    chosen = (features @ W.T + b).argmax(1)
    total = np.zeros(len(x))
    for mask in product((0, 1), repeat=4):
        kept = np.array(mask)
        logits = 0.5 * (features * kept / (1 - rate) @ W.T + b)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        total += np.prod(np.where(kept, 1 - rate, rate)) * (1 - p[np.arange(len(x)), chosen])
    return total


@pytest.mark.parametrize(
    ("between", "rate"), [((), 0.2), ((), 0.5), ((nn.Dropout(0.0),), 0.3), ((nn.Dropout(0.4),), 0.2)]
)
def test_dropout_converges_to_the_mean_over_all_masks(between: tuple[nn.Module, ...], rate: float) -> None:
    model, x = small(*between).train(), images(8)
    own = [module.p for module in between if module.p]
    expected = over_all_masks(model, x, own[0] if own else rate)
    assert np.ptp(expected) > 0.05
    seen = Seen(model, TensorData(x), batch_size=5)
    found = McDropout(samples=4000, rate=rate).fit(seen, seen, seed=1).suspicion(seen).numpy()
    np.testing.assert_allclose(found, expected, atol=0.03)


def test_dropout_has_a_seed_and_keeps_batchnorm_still() -> None:
    for network in (TinyCNN, ResidualNet):
        seen = Seen(seeded(network), TensorData(images(10)))
        first, same, other = (McDropout(samples=3).fit(seen, seen, seed=s).suspicion(seen) for s in (1, 1, 2))
        assert torch.equal(first, same)
        assert not torch.equal(first, other)
    # BatchNorm in training mode would let the other samples of the batch have a say.
    model = seeded(ResidualNet)
    model.dropout.p = 1e-9
    alone, together = (Seen(model, TensorData(images(10)), batch_size=size) for size in (1, 10))
    found = [McDropout(samples=2).fit(seen, seen).suspicion(seen) for seen in (alone, together)]
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)


def test_dropout_survives_a_failing_network() -> None:
    class Failing(TinyCNN):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 1:
                raise KeyboardInterrupt
            return super().forward(x)

    model = seeded(Failing)
    one = Seen(model, TensorData(images(1)))
    fitted = McDropout().fit(one, one)
    with pytest.raises(KeyboardInterrupt):
        fitted.suspicion(Seen(model, TensorData(images(5))))
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"samples": 0}, r"samples: expected a whole number of at least 1, got 0\."),
        ({"rate": 0.0}, r"rate: expected a share between 0 and 1, got 0\.0\."),
        ({"rate": 1.0}, r"rate: expected a share between 0 and 1, got 1\.0\."),
    ],
)
def test_dropout_settings_outside_their_rule(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        McDropout(**keywords)


# Two models


@pytest.mark.parametrize(("epsilon", "name"), [(0.15, "petm"), (0.0, "trained_further")])
def test_two_models_are_a_and_its_teacher(
    model: nn.Module, digits: tuple[Data, ...], epsilon: float, name: str
) -> None:
    train, test = digits[0].subset(range(200)).in_memory(), digits[2].subset(range(50)).in_memory()
    seen, graded = Seen(model, train), Seen(model, test)
    baseline = TwoModels(epsilon=epsilon, epochs=1, learning_rate=2e-3, batch_size=32)
    assert baseline.name == name
    found = baseline.fit(seen, seen, seed=5, device="cpu").suspicion(graded).numpy()
    teacher = train_teacher(
        model, train, find_errors(model, train), epsilon=epsilon, epochs=1, learning_rate=2e-3, batch_size=32, seed=5,
        device="cpu",
    )  # fmt: skip
    x = test.inputs(range(50))
    base = probabilities(model, x)
    np.testing.assert_allclose(found, one_minus_mean(base, base, probabilities(teacher, x)), atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.1, 0.0])
def test_two_models_learn_from_errors(epsilon: float) -> None:
    model = small()
    seen = Seen(model, TensorData(images(40), model(images(40)).argmax(1)))
    assert not len(seen.errors)
    with pytest.raises(
        NothingToLearnError, match=r"errors: expected at least one sample that the model gets wrong, got none"
    ):
        TwoModels(epsilon=epsilon).fit(seen, seen)
