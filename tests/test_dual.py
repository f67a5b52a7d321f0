import pytest
import torch
from torch import nn

from networks import ResidualNet, TinyCNN, images, randomise, seeded
from petm.adapter import AdaptedModel, attach_adapter
from petm.data import TensorData
from petm.dual import DualLogits, dual_logits, predict_dual
from petm.errors import DataError, ModelError


@pytest.fixture(params=[(TinyCNN, {"fc1": 3}), (ResidualNet, {"conv1": 2, "fc": 4})], ids=["plain", "BatchNorm"])
def both(request: pytest.FixtureRequest) -> tuple[nn.Module, AdaptedModel]:
    network, layers = request.param
    model = seeded(network).eval()
    return model, randomise(attach_adapter(model, layers), scale=0.5)


def test_both_opinions_of_a_batch(both: tuple[nn.Module, AdaptedModel]) -> None:
    model, adapted = both
    found = dual_logits(adapted, images(6))
    assert isinstance(found, DualLogits)
    assert torch.equal(found.base, model(images(6)))
    assert torch.equal(found.second, adapted(images(6), alpha=1))
    assert not torch.allclose(found.base, found.second, atol=0.01)
    assert not found.base.requires_grad
    assert not found.second.requires_grad


def test_both_opinions_of_a_data_set(both: tuple[nn.Module, AdaptedModel]) -> None:
    _, adapted = both
    found = predict_dual(adapted, TensorData(images(7)), batch_size=3)
    parts = [dual_logits(adapted, images(7)[start : start + 3]) for start in (0, 3, 6)]
    assert torch.equal(found.base, torch.cat([part.base for part in parts]))
    assert torch.equal(found.second, torch.cat([part.second for part in parts]))
    assert found.base.dtype == found.second.dtype == torch.float32


def test_faults(both: tuple[nn.Module, AdaptedModel]) -> None:
    _, adapted = both
    with pytest.raises(DataError, match=r"mine: expected at least one sample, got none"):
        predict_dual(adapted, TensorData(images(0), source="mine"))
    with pytest.raises(ModelError, match=r"model: cannot take inputs of shape \(2, 5\)"):
        dual_logits(adapted, images(2, 5))
