"""The training loop: with live progress, checkpoints and an exact resume, in one process or several."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler

from petm._internal.distributed import group, sum_gradients, totals
from petm._internal.interrupts import deferred_interrupts
from petm._internal.progress import track
from petm._internal.spill import give_back_blocks
from petm.data.base import Batch, Data, as_is
from petm.data.fields import Inputs, in_parts, tensors_of, trimmed
from petm.errors import ArgumentError, ModelError, RunError, TrainingError
from petm.models.loading import call_model, weights_fingerprint
from petm.models.prediction import Precision, batches_by_length, device_of, evaluating, move
from petm.training.at_once import samples_at_once
from petm.training.checkpoint import Checkpoint, ShuffledBatches, read_checkpoint, seed_of, write_checkpoint
from petm.training.run_folder import Storage as Storage


@dataclass(frozen=True)
class Objective:
    """A loss, and the figure shown beside it.

    Attributes:
        loss: ``(logits (n, K), targets)`` to a scalar, the mean over the batch.
        agrees: ``(logits (n, K), targets)`` to bool ``(n,)``.
        figure: The name of the mean of ``agrees``.
        name: The loss in words; a checkpoint of another objective is not resumed.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    agrees: Callable[[Tensor, Tensor], Tensor]
    figure: str
    name: str


CROSS_ENTROPY = Objective(
    F.cross_entropy, lambda logits, labels: logits.argmax(1) == labels, "accuracy", "cross-entropy"
)


@dataclass(frozen=True)
class Settings:
    """The hyperparameters of one training.

    Attributes:
        epochs: At most this many passes over the data.
        learning_rate: Learning rate of Adam.
        batch_size: Samples in one step, over all processes.
        weight_decay: Decoupled weight decay, as in AdamW.
        patience: Stop after this many epochs without a lower validation loss, and keep the best weights; absent runs
            all epochs and keeps the last.
        seed: Seed of the order of the samples and of dropout.
        schedule: ``constant``, or ``cosine``: the learning rate falls to 0 along half a cosine, step by step.
        precision: ``float32``, or ``bfloat16``: matrix products in bfloat16 (autocast), weights and loss in float32.
    """

    epochs: int
    learning_rate: float
    batch_size: int = 128
    weight_decay: float = 0.0
    patience: int | None = None
    seed: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1) and not (name == "patience" and value is None):
                raise ArgumentError(f"{name}: expected a whole number of at least 1, got {value}.")
        if self.precision not in get_args(Precision):
            raise ArgumentError(f"precision: expected 'float32' or 'bfloat16', got {self.precision!r}.")
        if self.schedule not in ("constant", "cosine"):
            raise ArgumentError(f"schedule: expected 'constant' or 'cosine', got {self.schedule!r}.")
        if not 0 < self.learning_rate < float("inf"):
            raise ArgumentError(f"learning_rate: expected a finite number above 0, got {self.learning_rate}.")
        if not 0 <= self.weight_decay < float("inf"):
            raise ArgumentError(f"weight_decay: expected a finite number of at least 0, got {self.weight_decay}.")


@dataclass(frozen=True)
class Judge:
    """What decides, in place of a validation loss, when a training stops and which epoch it keeps.

    Attributes:
        name: Name of the figure; a checkpoint of another judge is not resumed.
        value: Called after each epoch; the lower its result, the better the weights.
    """

    name: str
    value: Callable[[], float]


@dataclass(frozen=True)
class History:
    """The history of a training.

    Attributes:
        epochs: One dictionary an epoch: ``loss`` and the objective's figure over its steps, and, with validation data,
            ``validation_loss`` and ``validation_<figure>``, or the figure of a judge.
        best_epoch: The epoch, from 1, whose weights were kept.
        seconds: Duration, earlier parts of a resumed training included.
        states: With a judge, what training changes as it was after each epoch.
    """

    epochs: tuple[dict[str, float], ...]
    best_epoch: int
    seconds: float
    states: tuple[dict[str, Tensor], ...] = ()


def train(
    model: nn.Module,
    data: Data,
    objective: Objective,
    settings: Settings,
    *,
    validation: Data | None = None,
    judge: Judge | None = None,
    storage: Storage | None = None,
    device: str = "auto",
    title: str = "train",
) -> History:
    """Trains the parameters of ``model`` that require a gradient, and leaves it in eval mode.

    The order of samples and the random numbers of a step depend on the seed and the step alone. So a training that was
    interrupted or killed, and is resumed from its checkpoint, ends with the same weights, to the bit, as an
    uninterrupted one. Ctrl-C and SIGTERM take effect between two steps, after a last checkpoint.

    Each of several ranks (`petm._internal.distributed`) takes its shard of each batch, and gradients are summed: the
    losses are those of one process, to rounding. The number of ranks may change when a training is resumed. Dropout
    and BatchNorm statistics are separate on each rank.

    Args:
        model: Network from inputs to logits ``(N, K)``.
        data: Samples, with labels or the targets of the objective.
        objective: Loss, and the figure shown beside it.
        settings: The hyperparameters.
        validation: Held-out data for early stopping; this or a judge is required with ``settings.patience``.
        judge: Figure for early stopping in place of the validation loss; the weights of every epoch are then kept.
        storage: Place of the checkpoints; absent writes none.
        device: ``auto``, ``cpu``, ``cuda``, ...
        title: Title of the progress bar.

    Raises:
        ArgumentError: ``patience`` without ``validation`` or ``judge``, no data, or no parameter that requires a
            gradient.
        RunError: The checkpoint belongs to another training, or cannot be read or written.
        TrainingError: The loss is no longer finite.
    """
    if settings.patience is not None and not judge and not (validation and len(validation)):
        raise ArgumentError("validation: expected held-out data for early stopping, got none. Hold out more.")
    if not len(data):
        raise ArgumentError("data: expected at least one sample to train on, got none.")
    with getattr(model, "learning", nullcontext)():  # an adapted model freezes its base model meanwhile
        model.train()
        identity = {
            "title": title,
            "settings": asdict(settings),
            "objective": objective.name,
            "data": data.content,
            "validation": None if validation is None else validation.content,
            "start": weights_fingerprint(model),
        }
        if judge is not None:
            identity["judge"] = judge.name
        if data.lengths is not None:
            identity["batches"] = "by length"
        place = move(model, device)
        run = _Run(model, objective, settings, identity, storage, place)
        forked = [place] if place.type == "cuda" else []
        signals = deferred_interrupts() if storage else nullcontext(lambda: False)
        with torch.random.fork_rng(devices=forked), signals as interrupted:
            history = run.epochs(data, validation, judge, title, interrupted)
            if interrupted():
                raise KeyboardInterrupt
        model.eval()
        give_back_blocks()
        return history


class _Run:
    """The state of one training, and its checkpoint."""

    def __init__(
        self, model: nn.Module, objective: Objective, settings: Settings, identity: dict[str, Any],
        storage: Storage | None, device: torch.device,
    ) -> None:  # fmt: skip
        self.model, self.objective, self.settings = model, objective, settings
        self.identity, self.storage, self.device = identity, storage, device
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.trainable:
            raise ArgumentError("model: expected a parameter that requires a gradient, got none. Unfreeze some.")
        rate, decay = settings.learning_rate, settings.weight_decay
        self.optimizer = torch.optim.AdamW(self.trainable, lr=rate, weight_decay=decay, fused=True)
        self.epoch = self.step = self.seen = self.best_epoch = 0
        self.loss_sum = self.agree_sum = 0.0
        self.best_loss = float("inf")
        self.best: dict[str, Tensor] = {}
        self.figures: list[dict[str, float]] = []
        self.states: list[dict[str, Tensor]] = []
        self.finished = False
        self.at_once: int | None = None
        self.started, self.spent = time.monotonic(), 0.0
        self.saved = time.monotonic()
        if storage is not None and storage.resume and storage.path.exists():
            self._restore(read_checkpoint(storage.path))

    def epochs(
        self, data: Data, validation: Data | None, judge: Judge | None, title: str, interrupted: Callable[[], bool]
    ) -> History:
        """Runs the remaining epochs, and returns the history of all of them."""
        settings = self.settings
        order = ShuffledBatches(len(data), settings.batch_size, settings.seed, data.lengths)
        per_epoch = len(order)
        if hasattr(self.model, "learning") and len(own := _own_part(data)):  # else its samples see each other
            first = own.inputs([0]).to(self.device)  # of all runs alike, so that a resume is exact
            first = first if data.lengths is None else trimmed(first)
            self.at_once = samples_at_once(lambda x: _logits(self.model, x, settings.precision), first)
        loader = DataLoader(data, batch_sampler=_OwnPart(order, data), collate_fn=as_is)
        if not self.finished:
            with track(title, settings.epochs * per_epoch, self.epoch * per_epoch + self.step) as progress:
                while self.epoch < settings.epochs and not self._stalled():
                    order.epoch, order.first = self.epoch, self.step
                    sizes = [len(indices) for indices in order.all()]
                    for inputs, targets in loader:
                        batch = Batch(inputs if data.lengths is None else trimmed(inputs), targets)
                        done = (self.epoch + self.step / per_epoch) / settings.epochs
                        stopped = self._step(batch, sizes[self.step], done, interrupted())
                        progress.advance()
                        progress.show(**self._so_far())
                        if stopped or (group().count == 1 and interrupted()):
                            self.save()
                            raise KeyboardInterrupt
                        if self.storage is not None and time.monotonic() - self.saved > self.storage.every:
                            self.save()
                    self._end_epoch(validation, judge)
            if self.best:
                self.model.load_state_dict(self.best, strict=False)
            self.finished, self.best = True, {}
            self.save()
        return History(tuple(self.figures), self.best_epoch, self._seconds(), tuple(self.states))

    def _step(self, batch: Batch, size: int, done: float, interrupted: bool) -> bool:
        """One step with this rank's shard of a batch of ``size``; returns whether any rank is to stop."""
        if self.settings.schedule == "cosine":
            for group_ in self.optimizer.param_groups:
                group_["lr"] = self.settings.learning_rate * (1 + math.cos(math.pi * done)) / 2
        inputs, targets, own = batch.inputs.to(self.device), batch.targets.to(self.device), len(batch.targets)
        self._seed(seed_of(self.settings.seed, self.epoch, self.step, *([group().rank] if group().rank else [])))
        self.optimizer.zero_grad(set_to_none=True)
        figures, seen = [0.0, 0.0], 0
        if own:
            for part in in_parts(inputs, self.at_once or own):
                loss, agreed = self._backward(part, targets[seen : seen + len(part)], size)
                figures, seen = [figures[0] + loss, figures[1] + agreed], seen + len(part)
        sum_gradients(self.trainable)
        loss_sum, agreed, stopped = totals([*figures, float(interrupted)], self.device)
        if not math.isfinite(loss_sum):
            raise TrainingError(
                f"loss: expected finite values, got {loss_sum / size} in epoch {self.epoch + 1}, step {self.step + 1}. "
                f"Use a lower learning rate, and check the data for NaN."
            )
        self.optimizer.step()
        self.step += 1
        self.seen += size
        self.loss_sum += loss_sum
        self.agree_sum += agreed
        return stopped > 0

    def _backward(self, inputs: Inputs, targets: Tensor, size: int) -> tuple[float, float]:
        """Adds the gradients of some samples of a batch of ``size``; returns the sum of their losses, and of agreement.

        The graph is gone when this returns.
        """
        logits = _logits(self.model, inputs, self.settings.precision)
        loss = self.objective.loss(logits, targets) * (len(targets) / size)
        if not loss.requires_grad:
            raise ModelError(
                "model: expected a gradient to what is to learn, got none (no_grad, detach or argmax behind it). "
                "Name layers behind that step."
            )
        loss.backward()
        return loss.item() * size, float(self.objective.agrees(logits.detach(), targets).sum())

    def _seed(self, seed: int) -> None:
        # torch.manual_seed seeds every kind of device, which takes half a millisecond.
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def _so_far(self) -> dict[str, float]:
        """The figures of the epoch up to now."""
        return {"loss": self.loss_sum / self.seen, self.objective.figure: self.agree_sum / self.seen}

    def _end_epoch(self, validation: Data | None, judge: Judge | None) -> None:
        figures = self._so_far()
        self.epoch, self.step, self.seen, self.loss_sum, self.agree_sum = self.epoch + 1, 0, 0, 0.0, 0.0
        found = float("inf")
        if judge is not None:
            found = judge.value()
            figures |= {judge.name: found}
            self.states.append(_copied(_moving_state(self.model)))
        elif validation is not None:
            found, agreement = evaluate(self.model, validation, self.objective, self.settings.precision)
            figures |= {"validation_loss": found, f"validation_{self.objective.figure}": agreement}
        if found < self.best_loss and self.settings.patience is not None:
            self.best_loss, self.best_epoch = found, self.epoch
            self.best = _copied(_moving_state(self.model))
        if self.settings.patience is None:
            self.best_epoch = self.epoch
        self.figures.append(figures)

    def _stalled(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.epoch - self.best_epoch >= patience

    def _seconds(self) -> float:
        return self.spent + time.monotonic() - self.started

    def save(self) -> None:
        """Writes the checkpoint, on the main rank and where it has a place."""
        if self.storage is None or not group().is_main:
            return
        tensors = {f"model.{name}": tensor for name, tensor in _moving_state(self.model).items()}
        for epoch, state in enumerate(self.states):
            tensors |= {f"epoch{epoch}.{name}": tensor for name, tensor in state.items()}
        if not self.finished:
            tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
            for index, state in self.optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        progress = {name: getattr(self, name) for name in _PROGRESS} | {"spent": self._seconds()}
        write_checkpoint(self.storage.path, Checkpoint(self.identity, progress, tensors))
        self.saved = time.monotonic()

    def _restore(self, checkpoint: Checkpoint) -> None:
        assert self.storage is not None
        other = [key for key, value in self.identity.items() if checkpoint.identity.get(key) != value]
        if other:
            raise RunError(
                f"{self.storage.path}: expected a checkpoint of this training, got one that differs in "
                f"{', '.join(other)}. Use another output folder, or start afresh without resuming."
            )
        for name, value in checkpoint.progress.items():
            setattr(self, name, value)
        self.model.load_state_dict(checkpoint.part("model"), strict=False)
        self.best = checkpoint.part("best")
        states = (checkpoint.part(f"epoch{epoch}") for epoch in range(self.epoch))
        self.states = [state for state in states if state]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in checkpoint.part("optimizer").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})


_PROGRESS = (
    "epoch", "step", "seen", "loss_sum", "agree_sum", "best_epoch", "best_loss", "figures", "finished",
)  # fmt: skip


def evaluate(
    model: nn.Module, data: Data, objective: Objective, precision: Precision = "float32"
) -> tuple[float, float]:
    """Returns the mean loss and the objective's figure over a data set, in eval mode, and restores the modes."""
    loss = agreement = 0.0
    with evaluating(model):
        for _, (inputs, targets) in batches_by_length(_own_part(data), device_of(model)):
            logits = _logits(model, inputs, precision)
            loss += objective.loss(logits, targets).item() * len(inputs)
            agreement += objective.agrees(logits, targets).sum().item()
    loss, agreement = totals([loss, agreement], device_of(model))
    return loss / len(data), agreement / len(data)


class _OwnPart(Sampler[list[int]]):
    """The samples of each batch that belong to this rank."""

    def __init__(self, order: ShuffledBatches, data: Data) -> None:
        self.order, self.home = order, _home(data)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.order:
            yield batch if self.home is None else [index for index in batch if self.home[index] == group().rank]


def _own_part(data: Data) -> Data:
    home = _home(data)
    return data if home is None else data.subset(home == group().rank)


def _home(data: Data) -> Tensor | None:
    """The rank of each sample, int64 ``(N,)``, or nothing for a single process."""
    if group().count == 1:
        return None
    return torch.arange(len(data)) % group().count if data.home is None else data.home


def _logits(model: nn.Module, inputs: Inputs, precision: Precision) -> Tensor:
    """float32 logits, computed in the given precision."""
    with torch.autocast(tensors_of(inputs)[0].device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return call_model(model, inputs).float()


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def _moving_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: the parameters with a gradient, and the buffers of modules in training mode."""
    state = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    persistent = model.state_dict().keys()
    for prefix, module in model.named_modules():
        if module.training:
            buffers = dict(module.named_buffers(prefix, recurse=False))
            state |= {name: buffer for name, buffer in buffers.items() if name in persistent}
    return state
