import copy
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from networks import ResidualNet, TiedNet, TinyCNN, images, seeded
from petm.data.base import TensorData
from petm.errors import ArgumentError, RunError, TrainingError
from petm.training.checkpoint import read_checkpoint
from petm.training.loop import CROSS_ENTROPY, Settings, ShuffledBatches, Storage, evaluate, train
from small_disk import files_of_at_most

SETTINGS = Settings(epochs=2, learning_rate=0.01, batch_size=16, seed=3)


def data(samples: int = 40, *, seed: int = 0) -> TensorData:
    return TensorData(images(samples, seed=seed), torch.arange(samples) % 10)


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def trained(settings: Settings = SETTINGS, network: type[nn.Module] = TinyCNN, **keywords: object) -> dict[str, bytes]:
    model = seeded(network)
    train(model, data(), CROSS_ENTROPY, settings, device="cpu", **keywords)  # type: ignore[arg-type]
    return bits(model)


# what a training does


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_training_is_adam_on_the_mean_loss(weight_decay: float) -> None:
    settings = replace(SETTINGS, weight_decay=weight_decay)
    model, samples = seeded(TinyCNN), data()
    history = train(model, samples, CROSS_ENTROPY, settings, device="cpu")
    by_hand = seeded(TinyCNN)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in by_hand.named_parameters()}
    order, step = ShuffledBatches(40, 16, seed=3), 0
    for epoch in range(2):
        order.epoch, losses, right = epoch, 0.0, 0
        for rows in order:
            inputs, labels = samples.__getitems__(rows)
            log_p = torch.log_softmax(by_hand(inputs), 1)
            loss = -log_p[torch.arange(len(rows)), labels].mean()
            losses += loss.item() * len(rows)
            right += int((log_p.argmax(1) == labels).sum())
            gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
            step += 1
            with torch.no_grad():  # Loshchilov and Hutter (2019), algorithm 2
                for (name, p), g in zip(by_hand.named_parameters(), gradients, strict=True):
                    m, v = moments[name]
                    m.mul_(0.9).add_(0.1 * g)
                    v.mul_(0.999).add_(0.001 * g * g)
                    p.mul_(1 - 0.01 * weight_decay)
                    p.sub_(0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8))
        assert history.epochs[epoch]["loss"] == pytest.approx(losses / 40, rel=1e-4)
        assert history.epochs[epoch]["accuracy"] == pytest.approx(right / 40)
    for (name, found), expected in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5, msg=name)
    assert history.best_epoch == 2
    assert history.seconds > 0
    assert not model.training


@pytest.mark.parametrize(("samples", "batch_size"), [(40, 16), (32, 16), (5, 16), (1, 1)])
def test_each_epoch_sees_each_sample_once_in_an_order_of_its_own(samples: int, batch_size: int) -> None:
    order = ShuffledBatches(samples, batch_size, seed=1)
    seen = []
    for order.epoch in range(3):
        batches = list(order)
        assert len(batches) == len(order) == math.ceil(samples / batch_size)
        assert all(len(batch) == batch_size for batch in batches[:-1])
        seen.append([index for batch in batches for index in batch])
        assert sorted(seen[-1]) == list(range(samples))
        for order.first in range(1, len(batches) + 1):
            assert list(order) == batches[order.first :]
            assert len(order) == len(batches) - order.first
        order.first = 0
    if samples > 1:
        assert seen[0] != seen[1] != seen[2]
        other = ShuffledBatches(samples, batch_size, seed=2)
        assert [index for batch in other for index in batch] != seen[0]


def test_training_reads_what_the_order_says() -> None:
    read: list[int] = []

    class Recording(TensorData):
        def inputs(self, indices: Sequence[int] | Tensor) -> Tensor:
            read.extend(int(index) for index in indices)
            return super().inputs(indices)

    train(seeded(TinyCNN), Recording(images(40), torch.arange(40) % 10), CROSS_ENTROPY, SETTINGS, device="cpu")
    order, expected = ShuffledBatches(40, 16, seed=3), []
    for order.epoch in range(2):
        expected += [index for batch in order for index in batch]
    assert read == expected


def test_the_seed_decides() -> None:
    for network in (TinyCNN, ResidualNet):
        first = trained(network=network)
        torch.rand(5)
        assert trained(network=network) == first
        assert trained(replace(SETTINGS, seed=4), network) != first


def test_the_callers_random_numbers_are_left_alone() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    trained(network=ResidualNet)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert random.getstate() == states[2]


def test_frozen_parameters_stay() -> None:
    model = seeded(TinyCNN)
    model.conv1.requires_grad_(False)
    before = bits(model)
    train(model, data(), CROSS_ENTROPY, SETTINGS, device="cpu")
    changed = {name for name, value in bits(model).items() if value != before[name]}
    assert changed == {name for name in before if not name.startswith("conv1.")}


def test_batchnorm_statistics_follow_their_modules_mode() -> None:
    model, before = seeded(ResidualNet), bits(seeded(ResidualNet))
    train(model, data(), CROSS_ENTROPY, SETTINGS, device="cpu")
    assert bits(model)["bn1.running_mean"] != before["bn1.running_mean"]
    assert int(model.bn1.num_batches_tracked) == 6


def test_training_learns() -> None:
    model = seeded(TinyCNN)
    history = train(model, data(20), CROSS_ENTROPY, replace(SETTINGS, epochs=150), device="cpu")
    assert history.epochs[-1]["accuracy"] == 1
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"] / 5


def test_bfloat16_is_for_the_products_only() -> None:
    """The forward sees bfloat16, the loss and the weights float32; the seed still decides to the bit."""
    model, seen = seeded(TinyCNN), []
    model.fc1.register_forward_hook(lambda *arguments: seen.append(arguments[-1].dtype))

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(logits.dtype)
        return F.cross_entropy(logits, labels)

    half = replace(SETTINGS, precision="bfloat16")
    train(model, data(), replace(CROSS_ENTROPY, loss=loss), half, device="cpu")
    assert set(seen[::2]) == {torch.bfloat16}
    assert set(seen[1::2]) == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert bits(model) == trained(half) != trained()


def test_evaluate_by_hand() -> None:
    model, samples = seeded(ResidualNet).train(), data(300)
    loss, agreement = evaluate(model, samples, CROSS_ENTROPY)
    assert all(module.training for module in model.modules())
    model.eval()
    logits = model(samples.inputs(range(300)))
    assert loss == pytest.approx(F.cross_entropy(logits, samples.labels).item(), rel=1e-5)
    assert agreement == pytest.approx((logits.argmax(1) == samples.labels).double().mean().item())


# early stopping


def test_early_stopping_keeps_the_best_weights() -> None:
    part, held_out = data(40), data(30, seed=9)
    losses, weights = [], []
    for epochs in range(1, 13):  # every epoch's validation loss and weights, from trainings without patience
        model = seeded(TinyCNN)
        history = train(model, part, CROSS_ENTROPY, replace(SETTINGS, epochs=epochs), validation=held_out, device="cpu")
        model_loss = F.cross_entropy(model(held_out.inputs(range(30))), held_out.labels).item()
        assert history.epochs[-1]["validation_loss"] == pytest.approx(model_loss, rel=1e-5)
        assert history.best_epoch == epochs
        losses.append(history.epochs[-1]["validation_loss"])
        weights.append(bits(model))
    best = stopped = 0
    while stopped < 12 and stopped - best < 2:
        stopped += 1
        best = stopped if stopped == 1 or losses[stopped - 1] < min(losses[: stopped - 1]) else best
    assert 1 < best < stopped < 12, "this case ought to stop early"
    model = seeded(TinyCNN)
    settings = replace(SETTINGS, epochs=12, patience=2)
    history = train(model, part, CROSS_ENTROPY, settings, validation=held_out, device="cpu")
    assert history.best_epoch == best
    assert [figures["validation_loss"] for figures in history.epochs] == losses[:stopped]
    assert bits(model) == weights[best - 1]


def test_patience_wants_a_part_held_out() -> None:
    settings = replace(SETTINGS, patience=1)
    for validation in (None, data().subset([])):
        with pytest.raises(ArgumentError, match="validation:"):
            train(seeded(TinyCNN), data(), CROSS_ENTROPY, settings, validation=validation)


# faults


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("epochs", 1.5), ("batch_size", 0), ("patience", 0), ("precision", "half"),
        ("learning_rate", 0.0), ("learning_rate", math.nan), ("learning_rate", math.inf), ("weight_decay", -0.1),
        ("schedule", "step"),
    ],
)  # fmt: skip
def test_settings_outside_their_rule(name: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=f"{name}:"):
        replace(SETTINGS, **{name: value})  # type: ignore[arg-type]


def test_no_data_and_nothing_to_train() -> None:
    with pytest.raises(ArgumentError, match="data:"):
        train(seeded(TinyCNN), data().subset([]), CROSS_ENTROPY, SETTINGS)
    with pytest.raises(ArgumentError, match="model:"):
        train(seeded(TinyCNN).requires_grad_(False), data(), CROSS_ENTROPY, SETTINGS)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(value: float) -> None:
    losses = iter([1.0, 1.0, 1.0, 1.0, value])
    objective = replace(CROSS_ENTROPY, loss=lambda logits, labels: logits.sum() * 0 + next(losses))
    with pytest.raises(TrainingError, match=f"loss: .*{value} in epoch 2, step 2"):
        train(seeded(TinyCNN), data(), objective, SETTINGS, device="cpu")


# interruption and resumption


class Interrupting:
    """The cross-entropy, which sends this process a signal in its n-th step."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.left, self.number, self.steps = step, number, 0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.left -= 1
            self.steps += 1
            if self.left == 0:
                os.kill(os.getpid(), self.number)
        return CROSS_ENTROPY.loss(logits, labels)


CASES = {
    "dropout and BatchNorm": (ResidualNet, replace(SETTINGS, epochs=3)),
    "patience": (TinyCNN, replace(SETTINGS, epochs=12, patience=2)),
    "tied weights": (TiedNet, SETTINGS),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path: Path, case: str, number: int) -> None:
    network, settings = CASES[case]
    keywords = {"validation": data(30, seed=9), "device": "cpu"}
    through = seeded(network)
    count = Interrupting(0)
    expected = train(through, data(), replace(CROSS_ENTROPY, loss=count), settings, **keywords)  # type: ignore[arg-type]
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    # 40 samples in batches of 16: the first step, the last of an epoch, the first of the next, and the very last.
    for step in (1, 3, 4, count.steps):
        storage = Storage(tmp_path / f"{step}.safetensors", resume=True, every=1e9)
        model = seeded(network)
        with pytest.raises(KeyboardInterrupt):
            train(
                model, data(), replace(CROSS_ENTROPY, loss=Interrupting(step, number)), settings,
                storage=storage, **keywords,
            )  # type: ignore[arg-type]  # fmt: skip
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
        assert read_checkpoint(storage.path).progress["finished"] is False
        model, rest = seeded(network), Interrupting(0)
        found = train(model, data(), replace(CROSS_ENTROPY, loss=rest), settings, storage=storage, **keywords)  # type: ignore[arg-type]
        assert bits(model) == bits(through)
        assert found.epochs == expected.epochs
        assert found.best_epoch == expected.best_epoch
        assert rest.steps == count.steps - step, "nothing is done twice"


def test_without_a_checkpoint_a_signal_keeps_its_usual_effect() -> None:
    model = seeded(TinyCNN)
    interrupting = Interrupting(2)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            train(model, data(), replace(CROSS_ENTROPY, loss=interrupting), SETTINGS, device="cpu")
    finally:
        signal.signal(signal.SIGINT, before)
    assert interrupting.steps == 2


def test_a_training_outside_the_main_thread(tmp_path: Path) -> None:
    found: list[dict[str, bytes]] = []
    thread = threading.Thread(target=lambda: found.append(trained(storage=Storage(tmp_path / "c.safetensors"))))
    thread.start()
    thread.join()
    assert found == [trained()]
    assert (tmp_path / "c.safetensors").exists()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    script = Path(__file__).parents[1] / "helpers" / "interrupted_trainings.py"
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dropout and BatchNorm", "patience"])
def test_a_killed_training_goes_on_to_the_same_bits(killed: Path, case: str) -> None:
    through = load_file(killed / case / "through.safetensors")
    history = json.loads((killed / case / "through.json").read_text())
    resumed = sorted((killed / case).glob("killed*.safetensors"))
    assert len(resumed) == 7
    for path in resumed:
        found = load_file(path)
        assert found.keys() == through.keys()
        for name, tensor in through.items():
            assert torch.equal(found[name], tensor), (path.name, name)
        record = json.loads(path.with_suffix(".json").read_text())
        assert record["epochs"] == history["epochs"], path.name
        assert record["best_epoch"] == history["best_epoch"], path.name
    after_ten = json.loads((killed / case / "killed in step 11.json").read_text())
    assert after_ten["steps"] == history["steps"] - 10, "nothing is done twice"


def test_a_finished_training_is_not_run_again(tmp_path: Path) -> None:
    def never(logits: Tensor, labels: Tensor) -> Tensor:
        raise AssertionError("a step was made")

    storage = Storage(tmp_path / "c.safetensors", resume=True)
    settings, held_out = replace(SETTINGS, epochs=12, patience=2), data(30, seed=9)
    model = seeded(ResidualNet)
    history = train(model, data(), CROSS_ENTROPY, settings, validation=held_out, storage=storage, device="cpu")
    again, objective = seeded(ResidualNet), replace(CROSS_ENTROPY, loss=never)
    found = train(again, data(), objective, settings, validation=held_out, storage=storage, device="cpu")
    assert bits(again) == bits(model)
    assert (found.epochs, found.best_epoch) == (history.epochs, history.best_epoch)
    assert found.seconds >= read_checkpoint(storage.path).progress["spent"] > 0
    assert not again.training


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"settings": replace(SETTINGS, learning_rate=0.02)}, "settings"),
        ({"settings": replace(SETTINGS, seed=4), "title": "other"}, "title, settings"),
        ({"data": data(41)}, "data"),
        ({"model": seeded(TinyCNN, seed=1)}, "start"),
        ({"objective": replace(CROSS_ENTROPY, name="another")}, "objective"),
        ({"validation": data(7)}, "validation"),
    ],
)
def test_a_checkpoint_of_another_training(tmp_path: Path, change: dict[str, object], what: str) -> None:
    storage = Storage(tmp_path / "c.safetensors", resume=True)
    train(seeded(TinyCNN), data(), CROSS_ENTROPY, SETTINGS, storage=storage, device="cpu")
    arguments = {"model": seeded(TinyCNN), "data": data(), "objective": CROSS_ENTROPY, "settings": SETTINGS} | change
    with pytest.raises(RunError, match=rf"c.safetensors: .* differs in {what}\."):
        train(**arguments, storage=storage, device="cpu")  # type: ignore[arg-type]


def test_a_frozen_part_of_another_model_is_noticed(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "c.safetensors", resume=True)

    def head_only(shift: float) -> nn.Module:
        model = seeded(TinyCNN).requires_grad_(False)
        model.fc2.requires_grad_(True)
        with torch.no_grad():
            model.conv1.bias += shift
        return model

    train(head_only(0), data(), CROSS_ENTROPY, SETTINGS, storage=storage, device="cpu")
    with pytest.raises(RunError, match="differs in start"):
        train(head_only(1e-3), data(), CROSS_ENTROPY, SETTINGS, storage=storage, device="cpu")


def test_without_resuming_a_checkpoint_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_text("anything")
    assert trained(storage=Storage(path)) == trained()
    assert read_checkpoint(path).progress["finished"] is True


def test_a_truncated_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    trained(storage=Storage(path))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(RunError, match=r"c\.safetensors:"):
        trained(storage=Storage(path, resume=True))


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "c.safetensors", resume=True, every=0)
    through = trained()
    with pytest.raises(KeyboardInterrupt):
        train(
            seeded(TinyCNN), data(), replace(CROSS_ENTROPY, loss=Interrupting(2)), SETTINGS,
            storage=storage, device="cpu",
        )  # fmt: skip
    with files_of_at_most(4000), pytest.raises(RunError, match=r"c\.safetensors:"):
        trained(storage=storage)
    assert os.listdir(tmp_path) == ["c.safetensors"]
    assert read_checkpoint(storage.path).progress["step"] == 2
    assert trained(storage=storage) == through


def test_a_mask_that_modules_share_does_not_stop_the_checkpoint(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self, mask: Tensor) -> None:
            super().__init__()
            self.register_buffer("mask", mask)
            self.fc = nn.Linear(784, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1) * self.mask)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            mask = torch.ones(784)
            self.a, self.b = Masked(mask), Masked(mask)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    model = seeded(Two)
    train(model, data(), CROSS_ENTROPY, SETTINGS, storage=Storage(tmp_path / "c.safetensors"), device="cpu")
    again = copy.deepcopy(seeded(Two))
    storage = Storage(tmp_path / "c.safetensors", resume=True)
    train(again, data(), CROSS_ENTROPY, SETTINGS, storage=storage, device="cpu")
    assert bits(again) == bits(model)
