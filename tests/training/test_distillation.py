import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch import nn

from networks import ResidualNet, TinyCNN, images, seeded, snapshot
from petm.adapter.model import attach_adapter
from petm.data.base import Data, TensorData
from petm.errors import ArgumentError
from petm.models.prediction import predict_logits
from petm.training.distillation import distill, kl_objective
from petm.training.loop import Storage


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_the_divergence_from_the_teacher(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(20, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = (softmax(logits.numpy() / temperature, axis=1) for logits in (teacher, student))
    expected = temperature**2 * np.mean([entropy(a, b) for a, b in zip(p, q, strict=True)])
    objective = kl_objective(temperature)
    assert objective.loss(student, teacher).item() == pytest.approx(expected, rel=1e-10)
    assert objective.loss(teacher, teacher).item() == pytest.approx(0, abs=1e-12)
    assert objective.agrees(student, teacher).tolist() == (p.argmax(1) == q.argmax(1)).tolist()
    assert objective.figure == "fidelity"


def test_a_certain_teacher_gives_a_finite_loss() -> None:
    loss = kl_objective().loss(torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]]))
    assert loss.item() == pytest.approx(200)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperatures_outside_their_rule(temperature: float) -> None:
    with pytest.raises(ArgumentError, match="temperature:"):
        kl_objective(temperature)


def agreement(adapted: nn.Module, teacher: nn.Module, data: Data, alpha: float) -> float:
    answers = predict_logits(adapted, data, alpha=alpha).argmax(1)
    return float((answers == predict_logits(teacher, data).argmax(1)).double().mean())


def test_the_adapter_learns_to_answer_as_the_teacher(model: nn.Module, digits: tuple[Data, ...]) -> None:
    teacher = nn.Sequential(model, nn.Identity())
    teacher = seeded(TinyCNN)
    teacher.load_state_dict(model.state_dict())
    with torch.no_grad():  # a teacher that differs from the model in a few directions, which a small adapter can follow
        generator = torch.Generator().manual_seed(1)
        teacher.fc2.weight += 0.6 * torch.randn(10, 1, generator=generator) @ torch.randn(1, 16, generator=generator)
    teacher.train()
    data, unseen = digits[0].in_memory(), digits[1].in_memory()
    adapted = attach_adapter(model, {"fc1": 4, "fc2": 4})
    model_before, teacher_before = snapshot(model), snapshot(teacher)
    before = agreement(adapted, teacher, unseen, 1.0)
    history = distill(adapted, teacher=teacher, data=data, epochs=8, learning_rate=1e-2, device="cpu")
    assert before < 0.85
    assert agreement(adapted, teacher, unseen, 1.0) > before + 0.1
    assert agreement(adapted, teacher, unseen, 0.0) == before
    assert snapshot(model) == model_before
    assert snapshot(teacher) == teacher_before
    first, best = history.epochs[0], history.epochs[history.best_epoch - 1]
    assert best["validation_loss"] < first["validation_loss"]
    assert best["validation_fidelity"] >= first["validation_fidelity"]
    assert {"loss", "fidelity", "validation_loss", "validation_fidelity"} == set(first)


def test_only_the_adapter_changes() -> None:
    model = seeded(ResidualNet)
    adapted = attach_adapter(model, {"conv1": 2, "fc": 2})
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    samples = TensorData(images(60), torch.arange(60) % 3)
    distill(adapted, teacher=seeded(ResidualNet, seed=1), data=samples, epochs=2, device="cpu")
    changed = {name for name, value in adapted.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "lora_" in name}


def test_without_patience_all_data_are_used_and_all_epochs_run() -> None:
    samples = TensorData(images(50))  # labels are not needed
    keywords: dict[str, Any] = {"data": samples, "epochs": 3, "device": "cpu"}
    adapted = attach_adapter(seeded(TinyCNN), {"fc1": 2})
    history = distill(adapted, teacher=seeded(TinyCNN, seed=1), patience=None, **keywords)
    assert len(history.epochs) == history.best_epoch == 3
    assert set(history.epochs[0]) == {"loss", "fidelity"}
    history = distill(adapted, teacher=seeded(TinyCNN, seed=1), held_out=0.5, **keywords)
    assert set(history.epochs[0]) == {"loss", "fidelity", "validation_loss", "validation_fidelity"}


def test_a_checkpoint_knows_teacher_temperature_and_base(tmp_path: Any) -> None:
    from petm.errors import RunError

    storage = Storage(tmp_path / "c.safetensors", resume=True)
    samples = TensorData(images(50))

    def run(base: int = 0, teacher: int = 1, **keywords: Any) -> None:
        adapted = attach_adapter(seeded(TinyCNN, seed=base), {"fc1": 2})
        arguments = {"epochs": 1, "device": "cpu", "storage": storage} | keywords
        distill(adapted, teacher=seeded(TinyCNN, seed=teacher), data=samples, **arguments)

    run()
    run()
    for change, what in (
        ({"teacher": 2}, r"data, validation\."),
        ({"temperature": 2.0}, r"objective\."),
        ({"base": 3}, r"start\."),
        ({"held_out": 0.3}, r"data, validation\."),
    ):
        with pytest.raises(RunError, match=f"differs in {what}"):
            run(**change)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"temperature": 0.0}, "temperature:"),
        ({"held_out": 0.0}, "held_out:"),
        ({"held_out": 1.0}, "held_out:"),
        ({"held_out": math.nan}, "held_out:"),
        ({"held_out": 0.01}, "validation:"),
        ({"patience": 0}, "patience:"),
    ],
)
def test_arguments_outside_their_rule(keywords: dict[str, Any], message: str) -> None:
    adapted = attach_adapter(seeded(TinyCNN), {"fc1": 2})
    with pytest.raises(ArgumentError, match=message):
        distill(adapted, teacher=seeded(TinyCNN), data=TensorData(images(30)), device="cpu", **keywords)


def test_a_teacher_with_other_classes() -> None:
    adapted = attach_adapter(seeded(TinyCNN), {"fc1": 2})
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(784, 4))
    with pytest.raises(ArgumentError, match="teacher:"):
        distill(adapted, teacher=teacher, data=TensorData(images(30)), device="cpu")
