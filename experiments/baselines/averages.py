"""Baselines whose suspicion is one minus a mean of probabilities: views, networks, the teacher, dropout."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from experiments.baselines.protocol import Baseline, Learned, Seen
from petm._internal.progress import track
from petm.data.fields import Inputs, one_tensor
from petm.data.views import MIRROR, SAME, view
from petm.errors import ArgumentError, ModelError
from petm.models.loading import call_model, count_parameters, share_weights
from petm.models.penultimate import LastLinear, linear_input
from petm.models.prediction import (
    batches,
    device_of,
    evaluating,
    predict_logits,
)
from petm.models.scores import mean_of_both, second_opinion
from petm.training.checkpoint import seed_of
from petm.training.teacher import require_errors, train_teacher


def mean_suspicion(base: Tensor, opinions: Iterable[Tensor]) -> Tensor:
    """Returns ``1 - mean p_m(c)`` over opinions ``m``, float64 ``(N,)`` in [0, 1].

    Args:
        base: the base model's logits ``(N, K)``; ``c`` is the class that the base model predicts.
        opinions: Logits ``(N, K)`` each.
    """
    return torch.stack([second_opinion(base, logits) for logits in opinions]).mean(0)


@dataclass(frozen=True)
class Views(Baseline):
    """Suspicion is ``1 - mean p(c)`` over views of the image, ``c`` being the base model's answer on the image itself.

    Args:
        views: Names as `view` takes them. A view must keep the label, and a digit's mirror image does not.

    Raises:
        ArgumentError: There is no view of such a name, or none is named.

    Reference:
        Bahat and Shakhnarovich (2018), Confidence from Invariance to Image Transformations; Wang et al. (2019),
        Aleatoric Uncertainty Estimation with Test-time Augmentation.
    """

    views: tuple[str, ...] = (SAME, MIRROR)

    source = "Bahat and Shakhnarovich (2018)"

    def __post_init__(self) -> None:
        if not self.views:
            raise ArgumentError("views: expected at least one name, got none. Name 'same' and one more.")
        for name in self.views:
            view(name)

    @property
    def name(self) -> str:
        """Says how many views there are."""
        return f"views_{len(self.views)}"

    @property
    def title(self) -> str:
        """Names the views."""
        return f"Mean over {len(self.views)} views: {', '.join(self.views)}"

    def _fit(self, train: Seen, calibration: Seen, seed: int, device: str) -> Learned:
        return Learned(self._score)

    def _score(self, seen: Seen) -> Tensor:
        others = [view(name) for name in self.views if name != SAME]
        parts: list[list[Tensor]] = [[] for _ in others]
        if others:  # each image is read once for all its views
            with evaluating(seen.model), track("views", len(seen)) as progress:
                for batch, _ in batches(seen.data, device_of(seen.model), seen.batch_size):
                    inputs = one_tensor(batch, "to look at views")
                    for part, transform in zip(parts, others, strict=True):
                        part.append(call_model(seen.model, transform(inputs)).float().cpu())
                    progress.advance(len(inputs))
        moved = (torch.cat(part) for part in parts)
        return mean_suspicion(seen.logits, [seen.logits if name == SAME else next(moved) for name in self.views])


@dataclass(frozen=True, eq=False)
class Ensemble(Baseline):
    """Suspicion is ``1 - mean p_m(c)`` over the members, ``c`` being the model's answer: the ensemble grades the model.

    The time that the members took to train is the caller's to add.

    Args:
        members: Networks of the base model's classes, each trained by itself.
        with_base: Count the base model as one more member, which costs nothing.

    Raises:
        ArgumentError: There is no member.

    Reference:
        Lakshminarayanan, Pritzel, Blundell (2017), Simple and Scalable Predictive Uncertainty Estimation using Deep
        Ensembles.
    """

    members: tuple[nn.Module, ...]
    with_base: bool = True

    source = "Lakshminarayanan, Pritzel, Blundell (2017)"

    def __post_init__(self) -> None:
        if not self.members:
            raise ArgumentError("members: expected at least one network, got none. Train some from other seeds.")

    @property
    def name(self) -> str:
        """Says how many networks are averaged."""
        return f"ensemble_{len(self.members) + self.with_base}"

    @property
    def title(self) -> str:
        """Says how many networks are averaged, and whether the base model is among them."""
        place = "the model among them" if self.with_base else "without the model"
        return f"Ensemble of {len(self.members) + self.with_base}, {place}"

    def _fit(self, train: Seen, calibration: Seen, seed: int, device: str) -> Learned:
        one = train.data.subset([0])
        classes = predict_logits(train.model, one).shape[1]
        for position, member in enumerate(self.members):
            if (found := predict_logits(member, one).shape[1]) != classes:
                raise ArgumentError(
                    f"members: expected networks of the model's {classes} classes, got {found} from member {position}."
                )
        return Learned(self._score, sum(map(count_parameters, self.members)))

    def _score(self, seen: Seen) -> Tensor:
        opinions = [seen.logits] if self.with_base else []
        opinions += [
            predict_logits(member, seen.data, batch_size=seen.batch_size, title="ensemble") for member in self.members
        ]
        return mean_suspicion(seen.logits, opinions)


@dataclass(frozen=True)
class McDropout(Baseline):
    """Suspicion is ``1 - mean p_s(c)`` over passes ``s`` with dropout, ``c`` being the base model's answer without it.

    Where the base model has dropout modules of its own, they are switched on and the whole of the base model runs once
    for each sample. Else dropout is put before the linear layer that the base model calls last; then the passes differ
    only from there on, and run as one batch behind a single pass of what comes before. Both happen on a second
    structure over the base model's weights.

    Args:
        samples: Passes with dropout.
        rate: Share of the features that dropout before the last layer switches off; the base model's own dropout keeps
            its own rate.

    Raises:
        ArgumentError: An argument breaks its rule.

    Reference:
        Gal and Ghahramani (2016), Dropout as a Bayesian Approximation.
    """

    samples: int = 20
    rate: float = 0.2

    varies = True
    name = "mc_dropout"
    source = "Gal and Ghahramani (2016)"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ArgumentError(f"samples: expected a whole number of at least 1, got {self.samples}.")
        if not 0 < self.rate < 1:
            raise ArgumentError(f"rate: expected a share between 0 and 1, got {self.rate}.")

    @property
    def title(self) -> str:
        """Says how many passes there are."""
        return f"MC dropout, {self.samples} passes"

    def _fit(self, train: Seen, calibration: Seen, seed: int, device: str) -> Learned:
        network = share_weights(train.model)
        if _own_dropout(network):
            return Learned(lambda seen: self._whole_passes(seen, seed))
        layer = _last_linear(network, train.data.inputs([0]).to(device_of(network)))
        return Learned(lambda seen: self._one_pass(seen, layer, seed))

    def _whole_passes(self, seen: Seen, seed: int) -> Tensor:
        network = share_weights(seen.model)
        for module in _own_dropout(network):
            module.train()
        parts = []
        forked = [device] if (device := device_of(network)).type == "cuda" else []
        with torch.random.fork_rng(devices=forked), torch.no_grad(), track(self.title, len(seen)) as progress:
            for start, inputs in _numbered(seen, network):
                torch.manual_seed(seed_of(seed, start))
                opinions = [call_model(network, inputs).float().cpu() for _ in range(self.samples)]
                parts.append(mean_suspicion(seen.logits[start : start + len(inputs)], opinions))
                progress.advance(len(inputs))
        return torch.cat(parts)

    def _one_pass(self, seen: Seen, layer: str, seed: int) -> Tensor:
        """The batch becomes ``1 + samples`` batches before the last layer: one as it is, for the model's own answer."""
        network, generator = share_weights(seen.model), torch.Generator()

        def repeat(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            x = linear_input(arguments, keywords)
            kept = torch.rand(self.samples, *x.shape, generator=generator) >= self.rate
            dropped = x * kept.to(x) / (1 - self.rate)
            return (torch.cat((x, dropped.flatten(0, 1))),), {}

        network.get_submodule(layer).register_forward_pre_hook(repeat, with_kwargs=True)
        parts = []
        with torch.no_grad(), track(self.title, len(seen)) as progress:
            for start, inputs in _numbered(seen, network):
                generator.manual_seed(seed_of(seed, start))
                logits = call_model(network, inputs, rows=(1 + self.samples) * len(inputs)).float().cpu()
                base, *opinions = logits.split(len(inputs))
                parts.append(mean_suspicion(base, opinions))
                progress.advance(len(inputs))
        return torch.cat(parts)


def _own_dropout(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, _DropoutNd) and module.p > 0]


def _numbered(seen: Seen, network: nn.Module) -> Iterator[tuple[int, Inputs]]:
    """Batches of inputs, each with the position of its first sample."""
    start = 0
    for inputs, _ in batches(seen.data, device_of(network), seen.batch_size):
        yield start, inputs
        start += len(inputs)


def _last_linear(network: nn.Module, x: Inputs) -> str:
    """The name of the linear layer that a forward pass calls last."""
    last = LastLinear(network)
    with torch.no_grad():
        call_model(network, x)
    if fault := last.fault(len(x)):
        raise ModelError(f"{fault} Leave MC dropout out.")
    return last.name


@dataclass(frozen=True)
class TwoModels(Baseline):
    """PETM with two whole models: suspicion is ``1 - (p(c) + p'(c)) / 2`` with ``p'`` of the teacher.

    With ``epsilon`` 0 it is the control "A trained further": everything equal, but no error is replaced.

    Args:
        epsilon: FGSM step in units of the inputs.
        epochs: Passes over the training data.
        learning_rate: Of Adam.
        batch_size: Samples in one step.

    Reference:
        Lee et al. (2025), Knowledge-Based Systems 310; LoRA-PETM (ACK 2025), section 2.1.
    """

    epsilon: float = 0.1
    epochs: int = 2
    learning_rate: float = 1e-3
    batch_size: int = 128

    fitted_on = "training"
    varies = True

    @property
    def name(self) -> str:
        """Tells PETM from its control."""
        return "petm" if self.epsilon else "trained_further"

    @property
    def title(self) -> str:
        """Tells PETM from its control."""
        return "PETM with two models" if self.epsilon else "A trained further (control)"

    @property
    def source(self) -> str:
        """The control is this project's own."""
        return "Lee et al. (2025)" if self.epsilon else "control of Lee et al. (2025)"

    def _fit(self, train: Seen, calibration: Seen, seed: int, device: str) -> Learned:
        require_errors(train.errors)
        teacher = train_teacher(
            train.model,
            train.data,
            train.errors,
            epsilon=self.epsilon,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            seed=seed,
            device=device,
            title=self.title,
        )

        def score(seen: Seen) -> Tensor:
            second = predict_logits(teacher, seen.data, batch_size=seen.batch_size, title=self.title)
            return mean_of_both(seen.logits, second)

        return Learned(score, count_parameters(teacher))
