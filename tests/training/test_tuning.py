from pathlib import Path
from typing import Any

import pytest
import torch

from networks import TinyCNN, images, seeded, snapshot
from petm._internal.progress import track
from petm.adapter.model import AdaptedModel, Member, attach_adapter, views_alone
from petm.adapter.one_pass import predict_answers
from petm.data.base import TensorData
from petm.data.digits import load_digits
from petm.data.views import MIRROR
from petm.errors import ArgumentError
from petm.models.prediction import predict_logits
from petm.models.scores import mean_of_both
from petm.selective.metrics import aurc
from petm.training.loop import CROSS_ENTROPY, Storage
from petm.training.tuning import Trajectory, tune, tune_candidates

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


def parts() -> tuple[TensorData, TensorData]:
    return samples(), TensorData(images(40, seed=3), torch.arange(40) % 10)


def logits_at(adapted: AdaptedModel, trajectory: Trajectory, epoch: int, held_out: TensorData) -> torch.Tensor:
    trajectory.take(epoch)
    return predict_answers(adapted, held_out).second


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_a_trajectory_holds_the_logits_and_the_weights_of_each_epoch(budget: int) -> None:
    adapted, (data, held_out) = attach_adapter(seeded(TinyCNN), {"fc1": 4}, members=MEMBERS), parts()
    how: dict[str, Any] = {"learning_rates": [3e-2], "epochs": 3, "patience": 3, "cache_budget": budget}
    one, other = tune_candidates(adapted, data, held_out, counts=(32, 64), device="cpu", **how)
    base = predict_logits(adapted, held_out, alpha=0.0)
    wrong = (base.argmax(1) != held_out.labels).numpy()
    for trajectory in (one, other):
        assert trajectory.logits.shape == (3, 40, 10)
        for epoch, logits in enumerate(trajectory.logits):
            found = logits_at(adapted, trajectory, epoch, held_out)
            torch.testing.assert_close(found.softmax(1), logits.softmax(1), rtol=1e-4, atol=1e-5)
            assert trajectory.aurc[epoch] == pytest.approx(aurc(mean_of_both(base, logits).numpy(), wrong))
    assert (one.samples, other.samples) == (32, 64)
    plain = attach_adapter(seeded(TinyCNN), {"fc1": 4}, members=MEMBERS)
    tune(plain, data, epochs=3, learning_rate=3e-2, cache_budget=budget, device="cpu")
    expected = predict_answers(plain, held_out).second
    torch.testing.assert_close(logits_at(adapted, other, 2, held_out), expected, rtol=1e-4, atol=1e-5)


def test_a_training_stops_where_the_held_out_aurc_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.5, 0.4, 0.45, 0.41, 0.1, *[0.2] * 20])
    monkeypatch.setattr("petm.training.tuning.aurc", lambda suspicion, wrong: next(values))
    adapted, (data, held_out) = attach_adapter(seeded(TinyCNN), {"fc1": 4}), parts()
    (found,) = tune_candidates(adapted, data, held_out, epochs=9, patience=2, device="cpu")
    assert len(found.logits) == 4


def test_the_learning_rate_with_the_lowest_aurc_is_taken() -> None:
    adapted, (data, held_out) = attach_adapter(seeded(TinyCNN), {"fc1": 4}), parts()
    rates = (1e-6, 1e-2, 1e30)
    how: dict[str, Any] = {"epochs": 1, "device": "cpu"}
    each = {rate: tune_candidates(adapted, data, held_out, learning_rates=[rate], **how)[0].aurc for rate in rates[:2]}
    adapted = attach_adapter(seeded(TinyCNN), {"fc1": 4})
    (found,) = tune_candidates(adapted, data, held_out, learning_rates=rates, **how)
    assert found.learning_rate == min(rates[:2], key=lambda rate: each[rate])


def test_an_interrupted_trajectory_is_the_same_once_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {"epochs": 4, "patience": 2, "learning_rates": [3e-2], "device": "cpu"}
    data, held_out = parts()

    def run(storage: bool) -> Trajectory:
        adapted = attach_adapter(seeded(TinyCNN), {"fc1": 4}, members=MEMBERS)
        place = (lambda name: Storage(tmp_path / name, resume=True, every=0.0)) if storage else None
        return tune_candidates(adapted, data, held_out, storage=place, **how)[0]

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return aurc(*arguments)

    calls: list[int] = []
    expected = run(False)
    with monkeypatch.context() as patched:
        patched.setattr("petm.training.tuning.aurc", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(True)
    for _ in range(2):  # resumed, and read again once finished
        found = run(True)
        assert torch.equal(found.logits, expected.logits)
        assert found.aurc == expected.aurc


@pytest.mark.parametrize(
    ("argument", "value"),
    [("counts", ()), ("counts", (65,)), ("counts", (0,)), ("learning_rates", ()), ("patience", 0)],
)
def test_arguments_of_candidates(argument: str, value: object) -> None:
    data, held_out = parts()
    with pytest.raises(ArgumentError, match=f"^{argument}:"):
        tune_candidates(attach_adapter(seeded(TinyCNN), {"fc1": 4}), data, held_out, device="cpu", **{argument: value})  # type: ignore[arg-type]


def test_each_bar_names_what_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    titles = list[str]()
    monkeypatch.setattr(
        "petm.models.prediction.track", lambda title, total: titles.append(title) or track(title, total)
    )
    adapted, (data, held_out) = attach_adapter(seeded(TinyCNN), {"fc1": 4}, members=MEMBERS), parts()
    tune_candidates(adapted, data, held_out, counts=(32, 64), learning_rates=[1e-3, 1e-2], epochs=2, device="cpu")
    tried = [f"adapter 1 of 2 at rate {rate}, epoch 1" for rate in (0.001, 0.01)]
    for samples in (" on 32 samples", ""):
        tried += [f"adapter {each} of 2{samples}, epoch {epoch}" for each in (1, 2) for epoch in (1, 2)]
    assert titles == [f"held-out samples of {what}" for what in ("the model", *tried)]
