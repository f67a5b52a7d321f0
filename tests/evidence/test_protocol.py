import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks import ResidualNet, TinyCNN, images, seeded, snapshot
from petm.data.base import TensorData
from petm.errors import ModelError
from petm.evidence.protocol import compute_answers
from petm.models.prediction import predict_logits


def data(count: int = 60) -> TensorData:
    return TensorData(images(count), torch.arange(count) % 10, source="noise")


@pytest.mark.parametrize("network", [TinyCNN, ResidualNet])
def test_logits_and_features_of_any_batch_size(network: type[nn.Module]) -> None:
    model = seeded(network).train()
    before = snapshot(model)
    answers = compute_answers(model, data(50), batch_size=20)
    assert snapshot(model) == before
    model.eval()
    assert torch.equal(answers.base, predict_logits(model, data(50), batch_size=20))
    head = model.fc2 if network is TinyCNN else model.fc
    torch.testing.assert_close(F.linear(answers.features, head.weight, head.bias), answers.base)
    assert torch.equal(answers.predicted, answers.base.argmax(1))


class CalledInAnotherOrder(nn.Module):
    """The last linear layer that is called is the first that is defined, is called by keyword, and is scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 10)
        self.body = nn.Linear(784, 6)

    def forward(self, x: Tensor) -> Tensor:
        return 0.125 * self.head(input=torch.relu(self.body(x.flatten(1))))


def test_the_last_layer_is_the_one_that_is_called_last() -> None:
    model = seeded(CalledInAnotherOrder)
    answers = compute_answers(model, data())
    with torch.no_grad():
        assert torch.equal(answers.features, torch.relu(model.body(data().images.flatten(1))))


class NoLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 10, 28)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1)


class LinearOnTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(28, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.squeeze(1)).mean(1)


@pytest.mark.parametrize("network", [NoLinear, LinearOnTokens])
def test_a_model_without_features(network: type[nn.Module]) -> None:
    answers = compute_answers(seeded(network), data())
    assert answers.base.shape == (60, 10)
    with pytest.raises(ModelError, match=r"^model:"):
        _ = answers.features
