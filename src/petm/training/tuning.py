"""Training the adapters themselves, without a teacher: cross-entropy on harder data, the model staying as it is."""

from collections.abc import Callable
from pathlib import Path

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
    cache_folder: str | Path | None = None,
    storage: Callable[[str], Storage | None] | None = None,
    device: str = "auto",
) -> dict[str, History]:
    """Trains each adapter by itself on labelled data, in place, and returns what happened, by adapter.

    Every adapter sees the same samples in an order of its own and starts from weights of its own, so that a committee
    of them errs in different ways. What lies before the first adapted layer is computed once for all of them where that
    pays (`petm.adapter.prefix_features`). The learning rate falls along half a cosine.

    Args:
        adapted: The base model with untrained adapters; the base model itself keeps every bit.
        data: Labelled samples, usually the base model's training data beside changed copies of them
            (`petm.training.mining`).
        objective: What is minimised.
        epochs: Passes over the data.
        learning_rate: Of Adam, at the start.
        batch_size: Samples in one step.
        seed: Of the order of samples.
        precision: Of the matrix products.
        cache_budget: Bytes of memory for features that are computed once; more goes into a temporary file. 0: none.
        cache_folder: Where that file goes; absent takes the system's folder for temporary files.
        storage: Where the checkpoints of each adapter's training go, by its name.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        ArgumentError: An argument breaks its rule, or no member has an adapter.
        RunError: There is no room for the temporary file.
        TrainingError: The loss is no longer finite.
    """
    data = as_data(data)
    adapted.to(choose_device(device))
    histories = {}
    with cached_features(adapted, data, budget=cache_budget, folder=cache_folder, precision=precision) as (
        student,
        seen,
    ):
        for place, adapter in enumerate(adapted.adapters):
            settings = Settings(
                epochs=epochs,
                learning_rate=learning_rate,
                batch_size=batch_size,
                seed=seed * len(adapted.adapters) + place,
                schedule="cosine",
                precision=precision,
            )
            title = f"adapter {place + 1} of {len(adapted.adapters)}"
            learner, place_of = student.alone(adapter), storage(adapter) if storage else None
            histories[adapter] = train(learner, seen, objective, settings, storage=place_of, device=device, title=title)
    return histories
