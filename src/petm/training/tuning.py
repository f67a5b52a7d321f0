"""Training the adapters on labels, without a teacher."""

from collections.abc import Callable

from petm.adapter.model import AdaptedModel
from petm.adapter.prefix_features import cached_features
from petm.data.base import Data, as_data
from petm.models.prediction import Precision, choose_device
from petm.training.loop import CROSS_ENTROPY, History, Objective, Settings, Storage, train


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
    adapted.to(choose_device(device))
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
