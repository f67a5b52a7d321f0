"""Training the adapters on labels, without a teacher."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from petm.adapter.model import AdaptedModel, pool
from petm.adapter.prefix_features import cached_features
from petm.data.base import Data, as_data
from petm.errors import ArgumentError, TrainingError
from petm.models.prediction import Precision, check_labels, move, predict_logits
from petm.models.scores import mean_of_both
from petm.selective.metrics import aurc
from petm.training.loop import CROSS_ENTROPY, History, Judge, Objective, Settings, Storage, train


def tune(
    adapted: AdaptedModel,
    data: Data,
    *,
    objective: Objective = CROSS_ENTROPY,
    epochs: int = 3,
    learning_rate: float = 1e-3,
    batch_size: int = 256,
    seed: int = 0,
    precision: Precision = "float32",
    cache_budget: int = 4 << 30,
    storage: Callable[[str], Storage | None] | None = None,
    device: str = "auto",
) -> dict[str, History]:
    """Trains each adapter in place, independently of the others, on labelled data; returns the history of each.

    Every adapter has weights and an order of samples of its own, so that the ensemble members err in different ways.
    The prefix before the first adapted layer is computed once for all of them where that pays
    (`petm.adapter.prefix_features`). The learning rate falls along half a cosine.

    Args:
        adapted: The base model with untrained adapters; the base model itself stays as it is, to the bit.
        data: Labelled samples, usually the base model's training data and changed copies of them.
        objective: Loss, and the figure shown beside it.
        epochs: Passes over the data.
        learning_rate: Learning rate of Adam at the start.
        batch_size: Samples in one step.
        seed: Seed of the order of samples.
        precision: Precision of the matrix products.
        cache_budget: Bytes of memory for prefix features; larger ones go into a temporary file. 0 caches nothing.
        storage: Place of the checkpoints of an adapter's training, by the adapter's name.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        ArgumentError: An argument breaks its rule, or no member has an adapter.
        RunError: There is no room for the temporary file.
        TrainingError: The loss is no longer finite.
    """
    data = as_data(data)
    move(adapted, device)
    histories, count = {}, len(adapted.adapters)
    cached = cached_features(adapted, data, budget=cache_budget, precision=precision)
    with cached as (student, seen):
        for index, adapter in enumerate(adapted.adapters):
            order = seed * count + index
            settings = Settings(epochs, learning_rate, batch_size, seed=order, schedule="cosine", precision=precision)
            learner, place = student.alone(adapter), storage and storage(adapter)
            title = f"adapter {index + 1} of {count}"
            histories[adapter] = train(learner, seen, objective, settings, storage=place, device=device, title=title)
    return histories


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One training of the adapters, epoch by epoch, as held-out samples see it.

    Attributes:
        adapted: The base model with the adapters that were trained.
        samples: Number of training samples, the first ones of the data.
        learning_rate: Learning rate at the start.
        logits: float32 ``(E, N, K)``, the second opinion on the held-out samples after each epoch; of several adapters
            the mean of their probabilities, on the input itself.
        aurc: The AURC of the mean of both opinions after each epoch, ``E`` numbers in [0, 1].
        states: The weights after each epoch, ``E`` dictionaries, of each adapter by its name. Of an adapter whose
            training stopped before another's, they are those of its best epoch from then on.
    """

    adapted: AdaptedModel
    samples: int
    learning_rate: float
    logits: Tensor
    aurc: tuple[float, ...]
    states: dict[str, tuple[dict[str, Tensor], ...]]

    def take(self, epoch: int) -> None:
        """Sets the adapters to their weights after an epoch, by its place in `logits`."""
        for adapter, states in self.states.items():
            _set(self.adapted, adapter, states[epoch])


def tune_candidates(
    adapted: AdaptedModel,
    data: Data,
    held_out: Data,
    *,
    counts: Sequence[int] | None = None,
    learning_rates: Sequence[float] = (1e-3,),
    epochs: int = 6,
    patience: int = 2,
    batch_size: int = 256,
    seed: int = 0,
    precision: Precision = "float32",
    cache_budget: int = 4 << 30,
    storage: Callable[[str], Storage | None] | None = None,
    device: str = "auto",
) -> tuple[Trajectory, ...]:
    """Trains each adapter as `tune` does, and returns what held-out samples say after each epoch, for each count.

    A training stops once the AURC of the mean of both opinions on the held-out samples has not been lower for
    ``patience`` epochs. The learning rate is the one with the lowest AURC after a training of one epoch on the first
    count of samples. The prefix features of data and held-out samples are computed once for all trainings, which all
    start from the same weights. The adapters are left at the epoch with the lowest AURC of all.

    Whoever chooses an epoch by ``held_out`` has used its labels: a guarantee needs others.

    Args:
        adapted: As in `tune`.
        data: As in `tune`.
        held_out: ``N`` labelled samples that the base model has not seen.
        counts: How many of the first samples each training uses, such as all without and with adversarial copies, which
            come last; absent trains once, on all.
        learning_rates: Learning rates to choose from, at least one.
        epochs: At most so many passes over the data.
        patience: As above, at least 1.
        batch_size: As in `tune`.
        seed: As in `tune`.
        precision: As in `tune`.
        cache_budget: As in `tune`; a part of it is for the held-out samples.
        storage: Place of the checkpoints of a training, by its name.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        ArgumentError: An argument breaks its rule, or no member has an adapter.
        DataError: A held-out sample has no label.
        RunError: There is no room for the temporary file.
        TrainingError: The loss is no longer finite, at any learning rate.
    """
    data, held_out = as_data(data), as_data(held_out)
    counts = (len(data),) if counts is None else tuple(counts)
    if not counts or not all(1 <= count <= len(data) for count in counts):
        raise ArgumentError(f"counts: expected numbers from 1 to {len(data)}, got {counts}.")
    if not learning_rates:
        raise ArgumentError("learning_rates: expected at least one, got none.")
    move(adapted, device)
    base = predict_logits(adapted, held_out, alpha=0.0, title="held-out samples of the model")
    check_labels(held_out.labels, base.shape[1], held_out.source)
    wrong = (base.argmax(1) != held_out.labels).numpy()
    start = {adapter: _state(adapted, adapter) for adapter in adapted.adapters}
    part = cache_budget * len(held_out) // (len(data) + len(held_out))
    settings = Settings(
        epochs, learning_rates[0], batch_size, patience=patience, schedule="cosine", precision=precision
    )

    def judged(second: Tensor) -> float:
        return aurc(mean_of_both(base, second).numpy(), wrong)

    def trained(
        adapter: str, name: str, count: int, settings: Settings, title: str
    ) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """The logits and the weights after each epoch; the best epoch's follow as the last ones."""
        _set(adapted, adapter, start[adapter])
        learner, hearer = student.alone(adapter), other.alone(adapter)
        logits: list[Tensor] = []

        def answers(epoch: int) -> Tensor:
            return predict_logits(hearer, heard, title=f"held-out samples of {title}, epoch {epoch + 1}")

        def after_epoch() -> float:
            logits.append(answers(len(logits)))
            return judged(logits[-1])

        judge = Judge(f"AURC on {held_out.content}", after_epoch)
        place, part = storage and storage(name), seen.subset(range(count))
        history = train(learner, part, CROSS_ENTROPY, settings, judge=judge, storage=place, device=device, title=title)
        missing, states = len(history.states) - len(logits), list[dict[str, Tensor]]()
        for epoch, state in enumerate(history.states):
            learner.load_state_dict(state, strict=False)
            states.append(_state(adapted, adapter))
            if epoch < missing:  # a training that was resumed
                logits.insert(epoch, answers(epoch))
        best = max(history.best_epoch - 1, 0)
        return [*logits, logits[best]], [*states, states[best]]

    def quality(rate: float) -> float:
        """The AURC after one epoch; infinity where the rate is too high to learn at all."""
        adapter, once = adapted.adapters[0], replace(settings, learning_rate=rate, epochs=1, seed=seed * members)
        try:
            title = f"adapter 1 of {members} at rate {rate:g}"
            return judged(trained(adapter, f"{adapter} at rate {rate}", min(counts), once, title)[0][-1])
        except TrainingError:
            return float("inf")

    found, members = list[Trajectory](), len(adapted.adapters)
    caching: Any = {"precision": precision}
    with (
        cached_features(adapted, data, budget=cache_budget - part, **caching) as (student, seen),
        cached_features(adapted, held_out, budget=part, **caching) as (other, heard),
    ):
        rate = min(learning_rates, key=quality) if len(learning_rates) > 1 else learning_rates[0]
        for count in counts:
            runs = {}
            for index, adapter in enumerate(adapted.adapters):
                name = adapter if count == max(counts) else f"{adapter} on {count}"
                how = replace(settings, learning_rate=rate, seed=seed * members + index)
                title = f"adapter {index + 1} of {members}"
                title += "" if count == max(counts) else f" on {count:,} samples"
                runs[adapter] = trained(adapter, name, count, how, title)
            length = max(len(states) for _, states in runs.values()) - 1
            places = {
                adapter: [min(epoch, len(run[1]) - 1) for epoch in range(length)] for adapter, run in runs.items()
            }
            logits = torch.stack(
                [pool([runs[each][0][places[each][epoch]] for each in runs]) for epoch in range(length)]
            )
            states = {each: tuple(runs[each][1][place] for place in places[each]) for each in runs}
            found.append(Trajectory(adapted, count, rate, logits, tuple(map(judged, logits)), states))
    best = min(found, key=lambda each: min(each.aurc))
    best.take(best.aurc.index(min(best.aurc)))
    return tuple(found)


def _state(adapted: AdaptedModel, adapter: str) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in adapted.adapter_state(adapter).items()}


def _set(adapted: AdaptedModel, adapter: str, state: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in adapted.adapter_state(adapter).items():
            tensor.copy_(state[name])
