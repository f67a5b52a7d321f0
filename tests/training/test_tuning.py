import pytest
import torch

from networks import TinyCNN, images, seeded, snapshot
from petm.adapter.model import Member, attach_adapter, views_alone
from petm.adapter.one_pass import predict_answers
from petm.data.base import TensorData
from petm.data.digits import load_digits
from petm.data.views import MIRROR
from petm.errors import ArgumentError
from petm.models.prediction import predict_logits
from petm.training.loop import CROSS_ENTROPY
from petm.training.tuning import tune

MEMBERS = (Member(), Member("second"))


def samples(n: int = 64) -> TensorData:
    return TensorData(images(n), torch.arange(n) % 10)


def test_every_adapter_learns_alone_and_the_base_model_keeps_every_bit() -> None:
    model = seeded(TinyCNN)
    before, (data, _) = snapshot(model), load_digits(splits=(0.2, 0.8))
    adapted = attach_adapter(model, {"fc1": 4, "fc2": 4}, members=MEMBERS)
    untrained = CROSS_ENTROPY.loss(predict_logits(model, data), data.labels).item()
    histories = tune(adapted, data, epochs=8, learning_rate=3e-2, batch_size=16, device="cpu")
    assert snapshot(model) == before
    assert list(histories) == ["default", "second"] == list(adapted.adapters)
    opinions = [predict_answers(adapted.alone(name), data).second for name in adapted.adapters]
    assert not torch.equal(*opinions), "each starts from weights and sees an order of its own"
    for opinion in opinions:
        assert CROSS_ENTROPY.loss(opinion, data.labels).item() < 0.8 * untrained


def test_cached_features_change_no_result() -> None:
    found = []
    for budget in (0, 1 << 30):
        adapted = attach_adapter(seeded(TinyCNN), {"fc1": 4}, members=MEMBERS)
        tune(adapted, samples(), epochs=2, cache_budget=budget, device="cpu")
        found.append(predict_answers(adapted, samples()).second)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_views_of_the_base_model_have_nothing_to_train() -> None:
    alone = views_alone(seeded(TinyCNN), (Member("", MIRROR),))
    with pytest.raises(ArgumentError, match="adapted:"):
        tune(alone, samples(), device="cpu")
