"""Knowledge distillation: the adapter learns the teacher's predictions."""

from torch import Tensor, nn
from torch.nn import functional as F

from petm.adapter.model import AdaptedModel
from petm.adapter.prefix_features import cached_features
from petm.data.base import Data, WithTargets, as_data
from petm.errors import ArgumentError
from petm.models.loading import share_weights, weights_fingerprint
from petm.models.prediction import Precision, device_of, evaluating, in_fast_layout, move, predict_logits
from petm.training.loop import History, Objective, Settings, Storage, train


def distill(
    adapted: AdaptedModel,
    *,
    teacher: nn.Module,
    data: Data,
    temperature: float = 1.0,
    epochs: int = 20,
    learning_rate: float = 1e-3,
    batch_size: int = 128,
    patience: int | None = 2,
    held_out: float = 0.1,
    seed: int = 0,
    precision: Precision = "float32",
    cache_budget: int = 4 << 30,
    storage: Storage | None = None,
    device: str = "auto",
    title: str = "distill",
) -> History:
    """Trains the adapter so that the second opinion imitates the teacher, and returns the history.

    Minimises ``T² KL(softmax(z_teacher / T) || softmax(z_student / T))`` over the adapter alone. The teacher's logits
    are computed once. The loss on held-out data decides when to stop and which weights to keep.

    Args:
        adapted: The base model with an adapter, which is trained in place; the base model stays as it is, to the bit.
        teacher: The teacher, or any model with the same classes, on any device.
        data: Samples; labels are not used.
        temperature: ``T``, above 0; 1 is plain KL, as in the paper.
        epochs: At most this many; the paper runs 200.
        learning_rate: Learning rate of Adam.
        batch_size: Samples in one step.
        patience: Stop after this many epochs without a better held-out loss; ``None`` runs all epochs on all data.
        held_out: Share of the data held out, between 0 and 1.
        seed: Seed of the held-out part and of the order of samples.
        precision: Precision of the matrix products, as in `petm.training.loop.Settings`.
        cache_budget: Bytes of memory for prefix features (`petm.adapter.prefix_features`); larger ones go into a
            temporary file. 0 caches nothing.
        storage: Place of the checkpoints.
        device: ``auto``, ``cpu``, ``cuda``, ...
        title: Title of the progress bar.

    Raises:
        ArgumentError: An argument breaks its rule, the teacher has another number of classes than the base model, or
            no member has an adapter.
        RunError: There is no room for the temporary file.

    Reference:
        LoRA-PETM (ACK 2025), section 3.3; Hinton, Vinyals, Dean (2015), Distilling the Knowledge in a Neural Network.
    """
    data = as_data(data)
    if not 0 < held_out < 1:
        raise ArgumentError(f"held_out: expected a share between 0 and 1, got {held_out}.")
    objective = kl_objective(temperature)
    fast = in_fast_layout(share_weights(teacher), data.inputs([0]).to(device_of(teacher)))
    logits = predict_logits(fast, data, title="teacher's answers")
    with evaluating(adapted):
        classes = adapted(data.inputs([0]).to(device_of(adapted))).shape[1]
    if logits.shape[1] != classes:
        raise ArgumentError(f"teacher: expected the model's {classes} classes, got {logits.shape[1]}.")
    settings = Settings(epochs, learning_rate, batch_size, patience=patience, seed=seed, precision=precision)
    move(adapted, device)
    cached = cached_features(adapted, data, budget=cache_budget, precision=precision)
    with cached as (student, seen):
        answered: Data = WithTargets(seen, logits, origin=weights_fingerprint(teacher))
        validation = None
        if patience is not None:
            answered, validation = answered.split((1 - held_out, held_out), seed=seed)
        return train(
            student, answered, objective, settings, validation=validation, storage=storage, device=device, title=title
        )


def kl_objective(temperature: float = 1.0) -> Objective:
    """Returns the objective ``T² KL(teacher || student)`` at temperature ``T``, with fidelity as its figure.

    Raises:
        ArgumentError: ``temperature`` is not a positive finite number.
    """
    if not 0 < temperature < float("inf"):
        raise ArgumentError(f"temperature: expected a finite number above 0, got {temperature}.")

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = (F.log_softmax(logits / temperature, dim=1) for logits in (student, teacher))
        return temperature**2 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")

    name = f"KL at temperature {float(temperature)}"
    return Objective(loss, lambda student, teacher: student.argmax(1) == teacher.argmax(1), "fidelity", name)
