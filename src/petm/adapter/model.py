"""The base model with adapters: what it answers at an alpha, and who gives the second opinion."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar
from weakref import finalize

import torch
from torch import Tensor, nn

from petm._internal.texts import near
from petm.adapter.cascade import Cascade as Cascade
from petm.adapter.lora import ADAPTER, Adapter, adaptable_layers, is_layer, obstacle, sizes_of, to_choose_from
from petm.adapter.passes import Hooks, Pass
from petm.adapter.weight_drift import allocate_ranks, weight_drift
from petm.data.fields import Inputs, as_batch, one_tensor
from petm.data.views import SAME, view
from petm.errors import ArgumentError
from petm.models.holding import in_eval_mode
from petm.models.loading import call_model, count_parameters

if TYPE_CHECKING:
    from petm.adapter.split_point import SplitPoint

_Seen = TypeVar("_Seen", Tensor, Inputs)


@dataclass(frozen=True)
class Member:
    """One member of the ensemble that gives the second opinion.

    Attributes:
        adapter: The adapter's name; empty for the base model itself, which has something to add at a view.
        view: The view of the input, as in `petm.data.views.view`: ``same`` is the input itself.
    """

    adapter: str = ADAPTER
    view: str = SAME

    def view_of(self, x: _Seen) -> _Seen:
        """Returns the member's view of inputs ``(N, ...)``; only images have another view than the same.

        Raises:
            DataError: The inputs are several tensors, and the view is another.
        """
        if self.view == SAME:
            return x
        return view(self.view)(one_tensor(x, f"to look at its view {self.view!r}"))


ONE = (Member(),)
"""The second opinion of the paper: one adapter, which sees the input itself."""


class AdaptedModel(nn.Module):
    """The base model with an adapter: ``W(alpha) = W0 + alpha * B A`` in the adapted layers.

    ``alpha = 0`` is the base model to the bit, ``alpha = 1`` the second opinion; any other real number is allowed,
    given per call, so that threads may use one model at different alpha. Where several members give the second opinion
    (several adapters, or views of the input), it is the mean of their probabilities.

    The base model is the user's own object. Forward hooks on its adapted modules add the adapter's part while petm
    runs a pass, and do nothing otherwise (`petm.adapter.passes`). A pass runs in eval mode and without gradients for
    the base model's parameters, and restores both, so that neither training the adapter nor using it changes the model.
    The hooks are removed by `detach`, or with the last reference to the adapted model.

    Attributes:
        base: The base model.
        adapter: All low-rank matrices.
        members: The ensemble that gives the second opinion; without a member it is the base model's own.
        cascade: The predictions for which the second opinion is computed at all; absent computes it for all.
        feature_layer: Name of the linear layer that the base model calls last, whose input are the features; empty
            where evidence needs none.
        split_point: Where the streams of one pass separate (`petm.adapter.split_point`), once that has been found.
        remembered: A split point that was saved with the adapter. It is checked once, where it is first needed.

    Reference:
        Hu et al. (2022), LoRA; LoRA-PETM (ACK 2025), section 3.2.
    """

    takes_batches: ClassVar[bool] = True
    """Several tensors by name are passed on to the base model with all their names (`call_model`)."""

    def __init__(self, base: nn.Module, adapter: Adapter, members: Sequence[Member] = ONE) -> None:
        super().__init__()
        self.base, self.adapter, self.members = base, adapter, tuple(members)
        self.cascade: Cascade | None = None
        self.feature_layer = ""
        self.split_point: SplitPoint | None = None
        self.remembered: SplitPoint | None = None
        self.training = False
        self.hooks = Hooks(adapter.layers(base))
        self._finalize = finalize(self, self.hooks.detach)

    def __deepcopy__(self, memo: dict[int, object]) -> "AdaptedModel":
        """Copies the base model and the adapter, with hooks of their own."""
        other = AdaptedModel(deepcopy(self.base, memo), deepcopy(self.adapter, memo), self.members)
        other.cascade = self.cascade
        other.take_features(self.feature_layer)
        other.take_split_point(self.split_point)
        return other

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each adapted layer, by its name in the base model; the same for every adapter."""
        return self.adapter.ranks

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters in use, each once."""
        return tuple(dict.fromkeys(member.adapter for member in self.members if member.adapter))

    def forward(self, x: Inputs | Mapping[str, Tensor] | None = None, alpha: float = 1.0, **tensors: Tensor) -> Tensor:
        """Returns logits ``(N, K)`` at ``alpha``.

        Args:
            x: ``(N, ...)``, or tensors by name; absent where these are given as arguments of their own.
            alpha: Strength of the adapter.
            **tensors: As the base model takes them.
        """
        batch = as_batch(tensors if x is None else x)
        if alpha == 0 or not self.members:
            return self.run(Pass(0.0, ""), batch)
        return pool([self.run(Pass(float(alpha), each.adapter), each.view_of(batch)) for each in self.members])

    def run(
        self, running: Pass, x: Inputs, *, rows: int | None = None, asked: Mapping[nn.Module, str] | None = None
    ) -> Tensor:
        """Returns the logits of the base model in a pass, ``(rows, K)``.

        Args:
            running: The pass.
            x: ``N`` samples.
            rows: Rows of the logits; absent expects ``N``.
            asked: Modules that ask for their arguments; absent takes those of the split point.

        Raises:
            ModelError: The model cannot take ``x``, or does not return so many rows.
        """
        running = running.running(self.hooks.layers, self.hooks.asked if asked is None else asked)
        with in_eval_mode(self.base, freeze=torch.is_grad_enabled()), running:
            return call_model(self.base, x, rows=rows)

    def take_split_point(self, split_point: "SplitPoint | None") -> None:
        """Sets where the streams separate, and lets the modules concerned ask for their arguments."""
        self.split_point = split_point
        if split_point is not None:
            self.hooks.ask({self.base.get_submodule(name): name for name in split_point.asked})

    def take_features(self, layer: str) -> None:
        """Sets the linear layer whose input are the features; empty for none."""
        self.feature_layer = layer
        if layer:
            self.hooks.ask({self.base.get_submodule(layer): layer})

    def detach(self) -> None:
        """Removes the hooks from the base model, which is then as it was before an adapter was attached."""
        self._finalize()

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Freezes the base model in the block, however often it is called in it."""
        with torch.enable_grad(), in_eval_mode(self.base, freeze=True):
            yield

    def alone(self, adapter: str) -> "AdaptedModel":
        """Returns the same model with one adapter as its only member: what is trained.

        From here on that adapter alone learns.
        """
        self.adapter.learn(adapter)
        return self.over(self.base, (Member(adapter),))

    def over(self, base: nn.Module, members: Sequence[Member] | None = None) -> "AdaptedModel":
        """Returns the same adapter on a network of the same structure, such as a copy in another layout of memory."""
        other = AdaptedModel(base, self.adapter, self.members if members is None else members)
        other.take_features(self.feature_layer)
        if not any(member.view != SAME for member in self.members):
            other.take_split_point(self.split_point)
        return other

    def train(self, mode: bool = True) -> Self:
        """Changes nothing: dropout and BatchNorm are the base model's, and the adapter has neither."""
        del mode
        return self

    def adapter_parameters(self) -> int:
        """Returns the number of parameters of all adapters."""
        return sum(tensor.numel() for adapter in self.adapters for tensor in self.adapter_state(adapter).values())

    def adapter_state(self, adapter: str = ADAPTER) -> dict[str, Tensor]:
        """Returns an adapter's tensors under the names of PEFT's format."""
        return {
            f"base_model.model.{layer}.{name}": tensor
            for layer in self.ranks
            for name, tensor in self.adapter.layer(adapter, layer).state_dict().items()
        }


def pool(logits: Sequence[Tensor]) -> Tensor:
    """Returns the mean opinion of several as logits ``(N, K)``: the logarithm of the mean of their probabilities.

    One opinion alone keeps its own logits, which say the same.
    """
    if len(logits) == 1:
        return logits[0]
    return torch.stack([each.log_softmax(1) for each in logits]).logsumexp(0) - math.log(len(logits))


def attach_adapter(
    model: nn.Module,
    layers: Mapping[str, int] | None = None,
    *,
    teacher: nn.Module | None = None,
    max_extra_parameters: float = 0.02,
    members: Sequence[Member] = ONE,
    seed: int = 0,
) -> AdaptedModel:
    """Returns the base model with an untrained adapter, which answers as the base model does at every alpha.

    Without named layers, they and their ranks follow from the weight drift between the base model and its teacher:
    rank after rank goes where it holds most of the relative drift for its parameters, until the budget is spent.

    Args:
        model: The base model. Neither its modules nor its weights are changed; hooks are attached to its layers.
        layers: The rank of each layer to adapt, by module name.
        teacher: The teacher, from which to choose where no layers are named.
        max_extra_parameters: Then, the budget as a share of the base model's parameters. 2 % carries the method about
            as well as the paper's 50 % (see docs/benchmark/reproduction.md).
        members: The ensemble that gives the second opinion; each adapter named gets initial values of its own.
        seed: Seed of the initial values.

    Raises:
        ArgumentError: A layer does not exist or cannot be adapted, a rank is out of range, or there is nothing to
            choose by.

    Example:
        >>> from petm.models import paper_cnn
        >>> attach_adapter(paper_cnn(), {"conv1": 4, "fc1": 64, "fc2": 5}).adapter_parameters()
        598870
    """
    if layers is None:
        if teacher is None:
            raise ArgumentError(
                "layers: expected a rank by layer name, or teacher=... to choose by, got neither. "
                f"Available: {', '.join(adaptable_layers(model))}."
            )
        layers = _choose_layers(model, teacher, max_extra_parameters)
    check_ranks(layers, model)
    names = dict.fromkeys(member.adapter for member in members if member.adapter)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AdaptedModel(model, Adapter(model, names, layers if names else {}), members)


def views_alone(model: nn.Module, members: Sequence[Member]) -> AdaptedModel:
    """Returns the base model with members that need no adapter: itself at views of the input."""
    return AdaptedModel(model, Adapter(model, (), {}), members)


def _choose_layers(model: nn.Module, teacher: nn.Module, max_extra_parameters: float) -> dict[str, int]:
    layers = to_choose_from(model)
    drift = [entry for entry in weight_drift(model, teacher) if entry.layer in layers]
    budget = int(max_extra_parameters * count_parameters(model))
    try:
        ranks = allocate_ranks(drift, {name: sizes_of(layer).rank_cost for name, layer in layers.items()}, budget)
    except ArgumentError as error:
        raise ArgumentError(
            f"max_extra_parameters: expected a larger share, got {max_extra_parameters}: {error}"
        ) from error
    if not ranks:
        raise ArgumentError(
            f"teacher: expected weights that differ from the model's in {', '.join(layers) or 'a layer'}, got the "
            f"same. Train it, or name the layers."
        )
    return ranks


def check_ranks(layers: Mapping[str, int], model: nn.Module) -> None:
    """Checks that layers can have an adapter of these ranks.

    Raises:
        ArgumentError: A layer does not exist or cannot be adapted, or a rank is out of range.
    """
    candidates = adaptable_layers(model)
    available = ", ".join(candidates)
    if not layers:
        raise ArgumentError(f"layers: expected at least one layer, got none. Available: {available}.")
    modules = dict(model.named_modules())
    for name, rank in layers.items():
        module = candidates.get(name)
        if module is None:
            found = modules.get(name)
            reason = near(name, candidates)
            if found and is_layer(found):
                reason = f", {obstacle(found) or 'a layer under several names'}"
            elif found and next(iter(found.state_dict(keep_vars=True)), None) and not [*found.children()]:
                reason = f", a {type(found).__name__} without in_features and out_features"
            raise ArgumentError(
                f"layers: expected linear, convolution or embedding modules, got {name!r}{reason}. "
                f"Available: {available}."
            )
        sizes = sizes_of(module)
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= sizes.full_rank:
            raise ArgumentError(f"layers: expected a rank from 1 to {sizes.full_rank} for {name!r}, got {rank!r}.")
        if rank % sizes.groups:
            raise ArgumentError(
                f"layers: expected a multiple of {sizes.groups} as rank of the grouped convolution {name!r}, "
                f"got {rank}."
            )
