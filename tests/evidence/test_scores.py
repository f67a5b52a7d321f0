import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from experiments.baselines.odin import Odin
from networks import ResidualNet, TinyCNN, images, seeded
from petm.data.base import TensorData
from petm.errors import NothingToLearnError
from petm.evidence.logit_scores import TemperatureScaling
from petm.evidence.seen import Seen


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
    seen = Seen(model, TensorData(images(400), torch.from_numpy(labels)))
    fitted = TemperatureScaling().fit(seen, seen)
    found = fitted.chosen["temperature"]
    assert abs(np.log(found / best)) < np.log(grid[1] / grid[0])
    assert 1.2 < found < 3.5
    expected = 1 - softmax(logits / found).max(1)
    np.testing.assert_allclose(fitted.suspicion(seen).numpy(), expected, atol=1e-9)


def test_the_temperature_stays_in_its_bounds() -> None:
    model = flat(scale=0.01)
    logits = model(images(50)).detach()
    for labels, expected in ((logits.argmax(1), 0.1), (logits.argmin(1), 100.0)):
        seen = Seen(model, TensorData(images(50), labels))
        assert TemperatureScaling().fit(seen, seen).chosen["temperature"] == pytest.approx(expected, rel=1e-4)


# ODIN


def by_hand(model: nn.Module, data: TensorData, temperature: float, epsilon: float) -> NDArray[np.float64]:
    """ODIN of a linear softmax in closed form: grad log p_T(c) = (W_c - sum_k p_T(k) W_k) / T."""
    W, b = (value.detach().double().numpy() for value in (model[1].weight, model[1].bias))
    x = data.images.flatten(1).double().numpy()
    logits = x @ W.T + b
    chosen = logits.argmax(1)
    gradient = (W[chosen] - softmax(logits / temperature) @ W) / temperature
    low, high = data.value_range
    moved = x + epsilon * (high - low) * np.sign(gradient)
    return 1 - softmax((moved @ W.T + b) / temperature)[np.arange(len(x)), chosen]


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 3.0)])
@pytest.mark.parametrize("temperature", [1.0, 10.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.002, 0.01])
def test_odin_of_a_linear_softmax(temperature: float, epsilon: float, value_range: tuple[float, float]) -> None:
    model = flat(scale=0.05)
    data = TensorData(images(60), torch.arange(60) % 5, value_range=value_range)
    seen = Seen(model, data, batch_size=25)
    fitted = Odin(temperatures=(temperature,), epsilons=(epsilon,)).fit(seen, seen)
    assert fitted.chosen == {"temperature": temperature, "epsilon": epsilon}
    np.testing.assert_allclose(fitted.suspicion(seen).numpy(), by_hand(model, data, temperature, epsilon), atol=1e-6)


@pytest.mark.parametrize("network", [TinyCNN, ResidualNet])
def test_odin_of_a_network_sample_by_sample(network: type[nn.Module]) -> None:
    model = seeded(network).eval()
    data = TensorData(images(12), torch.arange(12) % 10, value_range=(0, 1))
    seen = Seen(model, data, batch_size=5)
    found = Odin(temperatures=(2.0,), epsilons=(0.01,)).fit(seen, seen).suspicion(seen)
    exact = network().double().eval()
    exact.load_state_dict(model.state_dict())
    for index in range(12):
        x: Tensor = data.images[index : index + 1].double().requires_grad_()
        p = torch.softmax(exact(x) / 2, 1)
        chosen = int(p.argmax())
        p[0, chosen].log().backward()
        moved = x.detach() + 0.01 * torch.sign(x.grad)
        expected = 1 - torch.softmax(exact(moved) / 2, 1)[0, chosen].item()
        assert found[index].item() == pytest.approx(expected, abs=1e-5)


def test_odin_chooses_the_best_of_its_grid() -> None:
    linear = flat(scale=0.05)
    noise = torch.randn(300, 5, generator=torch.Generator().manual_seed(1))
    data = TensorData(images(300), (linear(images(300)) + noise).argmax(1), value_range=(0, 1))
    seen = Seen(linear, data)
    temperatures, epsilons = (1.0, 5.0, 50.0), (0.0, 0.01, 0.05)
    aurocs = {
        (t, e): roc_auc_score(seen.wrong.numpy(), by_hand(linear, data, t, e)) for t in temperatures for e in epsilons
    }
    chosen = Odin(temperatures, epsilons).fit(seen, seen).chosen
    assert aurocs[chosen["temperature"], chosen["epsilon"]] == pytest.approx(max(aurocs.values()), abs=1e-3)


def test_odin_prefers_no_step_where_none_helps() -> None:
    seen = Seen(flat(), TensorData(images(20), torch.arange(20) % 5, value_range=(0.5, 0.5)))
    assert Odin(temperatures=(3.0,)).fit(seen, seen).chosen["epsilon"] == 0


def test_odin_learns_from_errors() -> None:
    model = flat()
    right = Seen(model, TensorData(images(30), model(images(30)).argmax(1)))
    message = r"calibration: expected samples that A gets wrong and samples that it gets right, got 0 wrong of 30\. Use"
    with pytest.raises(NothingToLearnError, match=message):
        Odin().fit(right, right)
