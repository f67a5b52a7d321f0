"""The adapter: LoRA matrices on chosen layers of A, through PEFT, with their strength as a dial."""

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from petm._internal.files import write_atomically
from petm.adapter.passes import ADAPTER, Pass, follow_passes
from petm.adapter.weight_drift import (
    allocate_ranks,
    is_conv1d,
    rank_cost,
    weight_drift,
)
from petm.data.fields import Inputs, as_batch, one_tensor
from petm.data.views import SAME, view
from petm.errors import ArgumentError, BundleError, RunError
from petm.models.loading import call_model, count_parameters, share_weights

_WEIGHTS = "adapter_model.safetensors"
_Seen = TypeVar("_Seen", Tensor, Inputs)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_KINDS = (nn.Linear, *_CONVOLUTIONS, nn.Embedding)


@dataclass(frozen=True)
class Member:
    """One who gives a second opinion.

    Attributes:
        adapter: PEFT's name of the adapter; empty for A itself, which has something to add where it looks at a view.
        view: What it looks at, as in `petm.data.views.view`: ``same`` is the input itself.
    """

    adapter: str = ADAPTER
    view: str = SAME

    def look(self, x: _Seen) -> _Seen:
        """Returns what the member sees of inputs ``(N, ...)``; of images only there is another view than the same.

        Raises:
            DataError: The inputs are several tensors, and the view is another.
        """
        if self.view == SAME:
            return x
        return view(self.view)(one_tensor(x, f"to look at its view {self.view!r}"))


ONE = (Member(),)
"""The second opinion of the paper: one adapter, which looks at the input itself."""


class AdaptedModel(nn.Module):
    """A with an adapter: ``W(alpha) = W0 + alpha * B A`` in the adapted layers.

    ``alpha = 0`` is A to the bit, ``alpha = 1`` the second opinion; any other real number is allowed, given per call,
    so that threads may use one model at different alpha. Where several members give the second opinion (a committee of
    adapters, or one that looks at another view of the input), it is the mean of their probabilities. The weights ``W0``
    are those of the caller's model, shared and frozen, and always in eval mode: neither training the adapter nor using
    it moves a bit of A, its BatchNorm statistics included.

    Attributes:
        base: A.
        tuned: A with the adapter, as PEFT has it.
        ranks: The rank of each adapted layer, by its name in A; the same for every adapter.
        members: Who gives the second opinion, one at least.
        look_from: A's own suspicion (`maximum_softmax`) from which on the second opinion is asked for at
            all; what A is surer of keeps A's answer as both. 0 asks for it always. It holds in `petm.adapter.one_pass`.
        parting: Where both opinions part in one pass (`petm.adapter.split_point.Parting`), once that has been found.
        remembered: The same as a bundle remembers it, which is checked once and then spares the search.

    Reference:
        Hu et al. (2022), LoRA; LoRA-PETM (ACK 2025), section 3.2.
    """

    takes_batches: ClassVar[bool] = True
    """Several tensors by name are passed on to A with all their names (`petm.models.loading.call_model`)."""

    def __init__(
        self, base: nn.Module, tuned: PeftModel, ranks: Mapping[str, int], members: Sequence[Member] = ONE
    ) -> None:
        super().__init__()
        self.base, self.tuned, self.ranks, self.members = base, tuned, dict(ranks), tuple(members)
        self.look_from = 0.0
        self.parting: Any = None
        self.remembered: Any = None
        follow_passes(self.network, self.ranks)
        self.eval()

    @property
    def network(self) -> nn.Module:
        """A's own structure with PEFT's layers in it, without PEFT's wrapper around."""
        return self.tuned.get_base_model()

    @property
    def adapters(self) -> tuple[str, ...]:
        """PEFT's names of the adapters in use, each once."""
        return tuple(dict.fromkeys(member.adapter for member in self.members if member.adapter))

    def forward(self, x: Inputs | Mapping[str, Tensor] | None = None, alpha: float = 1.0, **tensors: Tensor) -> Tensor:
        """Returns logits ``(N, K)`` at ``alpha``.

        Args:
            x: ``(N, ...)``, or tensors by name; absent where these are given as arguments of their own.
            alpha: Strength of the adapter.
            **tensors: As A takes them.
        """
        batch = as_batch(tensors if x is None else x)
        if alpha == 0:
            return call_model(self.base, batch)
        return pool([self._member(member, batch, alpha) for member in self.members])

    def _member(self, member: Member, x: Inputs, alpha: float) -> Tensor:
        with Pass(float(alpha), member.adapter).under_way():
            return call_model(self.network, member.look(x))

    def unfreeze(self) -> None:
        """Lets the adapters learn, all of them, and nothing else."""
        for name, parameter in self.tuned.named_parameters():
            parameter.requires_grad_(".lora_" in name)

    def alone(self, adapter: str) -> "AdaptedModel":
        """Returns the same model with one adapter as its only member, looking at the input itself: what is trained.

        From here on that adapter alone learns.
        """
        self.unfreeze()
        for name, parameter in self.tuned.named_parameters():
            if parameter.requires_grad:
                parameter.requires_grad_(adapter in name.split("."))
        alone = AdaptedModel(self.base, self.tuned, self.ranks, (Member(adapter),))
        alone.remembered = self.parting or self.remembered
        return alone

    def train(self, mode: bool = True) -> "AdaptedModel":
        """Keeps eval mode: A's dropout and BatchNorm are part of A, and the adapter has neither."""
        del mode
        return super().train(False)

    def adapter_parameters(self) -> int:
        """Returns the number of parameters of all adapters."""
        return sum(tensor.numel() for adapter in self.adapters for tensor in self.adapter_state(adapter).values())

    def adapter_state(self, adapter: str = ADAPTER) -> dict[str, Tensor]:
        """Returns an adapter's tensors under PEFT's names."""
        return _adapter_state(self.tuned, adapter)

    def save_adapter(self, folder: Path) -> None:
        """Writes ``adapter_config.json`` and ``adapter_model.safetensors``, which PEFT alone can load.

        Further adapters go into folders of their names, as PEFT does it.

        Raises:
            RunError: A file could not be written.
        """
        for adapter in self.adapters:
            place = _folder_of(folder, adapter)
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.adapter_state(adapter).items()}
            config = deepcopy(self.tuned.peft_config[adapter])
            config.inference_mode = True
            try:
                place.mkdir(exist_ok=True)
                config.save_pretrained(str(place))
            except OSError as error:
                raise RunError(f"{place}: could not be written ({error.strerror}). Free space.") from error
            write_atomically(place / _WEIGHTS, lambda path, held=tensors: save_file(held, path))  # type: ignore[misc]


def pool(logits: Sequence[Tensor]) -> Tensor:
    """Returns the opinion of several as logits ``(N, K)``: the logarithm of the mean of their probabilities.

    One opinion alone keeps its own logits, which say the same.
    """
    if len(logits) == 1:
        return logits[0]
    return torch.stack([each.log_softmax(1) for each in logits]).logsumexp(0) - math.log(len(logits))


def _adapter_state(tuned: PeftModel, adapter: str) -> dict[str, Tensor]:
    """An adapter's tensors under PEFT's names; never a whole embedding, for which PEFT would ask the hub."""
    state: dict[str, Tensor] = get_peft_model_state_dict(tuned, adapter_name=adapter, save_embedding_layers=False)
    return state


def _folder_of(folder: Path, adapter: str) -> Path:
    return folder if adapter == ADAPTER else folder / adapter


def attach_adapter(
    model: nn.Module,
    layers: Mapping[str, int] | None = None,
    *,
    twin: nn.Module | None = None,
    max_extra_parameters: float = 0.02,
    members: Sequence[Member] = ONE,
    seed: int = 0,
) -> AdaptedModel:
    """Returns A with an untrained adapter, which still answers as A does at every alpha.

    Without named layers, they and their ranks follow from the weight drift between A and its twin: rank after rank
    goes where it holds most of the relative drift for its parameters, until the budget is spent.

    Args:
        model: A. Neither its modules nor its weights are touched.
        layers: The rank of each layer to adapt, by module name: linear or convolution layers.
        twin: A', from which to choose where no layers are named.
        max_extra_parameters: Then, the budget as a share of A's parameters. 2 % carries the method about as well as
            the paper's 50 % (see docs/reproduction.md).
        members: Who is to give the second opinion; each adapter named gets initial values of its own.
        seed: Of the initial values.

    Raises:
        ArgumentError: A layer does not exist or cannot be adapted, a rank is out of range, or there is nothing to
            choose by.
        ModelError: The model cannot be copied.

    Example:
        >>> from petm.models import paper_cnn
        >>> attach_adapter(paper_cnn(), {"conv1": 4, "fc1": 64, "fc2": 5}).adapter_parameters()
        598870
    """
    if layers is None:
        if twin is None:
            raise ArgumentError(
                "layers: expected a rank by layer name, or twin=... to choose by, got neither. "
                f"Available: {', '.join(adaptable_layers(model))}."
            )
        layers = _choose_layers(model, twin, max_extra_parameters)
    check_ranks(layers, model)
    exactly = {f"^{re.escape(name)}": rank for name, rank in layers.items()}
    config = LoraConfig(
        r=1,
        target_modules="|".join(re.escape(name) for name in layers),
        rank_pattern=exactly,
        # PEFT scales by lora_alpha / r; equal numbers leave the strength to our alpha.
        lora_alpha=1,
        alpha_pattern=exactly,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = share_weights(model)
        with _quiet_peft():
            tuned = get_peft_model(_second_structure(base), config)
        for name in dict.fromkeys(member.adapter for member in members):
            if name not in ("", ADAPTER):
                with _quiet_peft():
                    tuned.add_adapter(name, deepcopy(config))
    return AdaptedModel(base, tuned, layers, members)


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Keeps back what PEFT sees to by itself, and what nobody here asks for: merging, a name that goes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Merging is not supported")
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def views_alone(model: nn.Module, members: Sequence[Member]) -> AdaptedModel:
    """Returns A with members that need no adapter: A itself at views of the input.

    Raises:
        ArgumentError: A has no linear or convolution layer.
    """
    *_, last = adaptable_layers(model) or [""]
    return attach_adapter(model, {last: 1}, members=members)  # an adapter that nobody asks, for the one way to run A


def load_adapter(model: nn.Module, folder: Path, members: Sequence[Member] = ONE) -> AdaptedModel:
    """Returns A with the adapters of a PEFT folder.

    Raises:
        BundleError: The folder holds no LoRA adapters that fit the model.
    """
    if not any(member.adapter for member in members):
        return views_alone(model, members)
    base = share_weights(model)
    others = [name for name in dict.fromkeys(member.adapter for member in members) if name not in ("", ADAPTER)]
    try:
        with _quiet_peft():
            held = _tensors_in(
                folder
            )  # by name, before PEFT reads, which takes a pickle where there are no safetensors
            tuned = PeftModel.from_pretrained(_second_structure(base), str(folder))
            for name in others:
                held |= {f"{name}.{key}" for key in _tensors_in(folder / name)}
                tuned.load_adapter(str(folder / name), adapter_name=name)
    except Exception as error:  # PEFT and safetensors fail in many ways on a foreign or damaged folder
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(f"{folder}: expected a LoRA adapter that fits the model, got {reason}.") from error
    wanted = set(_adapter_state(tuned, ADAPTER))
    wanted |= {f"{name}.{key}" for name in others for key in _adapter_state(tuned, name)}
    if held != wanted:
        raise BundleError(f"{folder}: expected a LoRA adapter that fits the model, got one of other layers.")
    ranks = {
        name.removeprefix("base_model.model."): int(module.r[ADAPTER])
        for name, module in tuned.named_modules()
        if isinstance(getattr(module, "r", None), dict) and ADAPTER in module.r
    }
    return AdaptedModel(base, tuned, ranks, members)


def _tensors_in(folder: Path) -> set[str]:
    with safe_open(folder / _WEIGHTS, framework="pt") as file:
        return set(file.keys())


def adaptable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the layers that can take an adapter, by name: linear ones, convolutions of 1 to 3 dimensions, embeddings.

    Those on which PEFT's LoRA would be something else than ``W0 + alpha * B A`` are left out: convolutions with
    dilation, with another padding than zeros or with a class of their own, the output layer of PyTorch's attention,
    embeddings with a greatest norm, and a layer that stands in A under several names, of which PEFT would change one.
    """
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    layers = {name: module for name, module in model.named_modules() if name and _is_kind(module)}
    return {
        name: module for name, module in layers.items() if _obstacle(module) is None and len(names[id(module)]) == 1
    }


def to_choose_from(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the adaptable layers that are chosen where nobody names any.

    A rank on a grouped convolution comes in multiples of its groups only and costs as much as on a dense layer; one on
    an embedding costs a number for every token.
    """
    return {
        name: layer
        for name, layer in adaptable_layers(model).items()
        if getattr(layer, "groups", 1) == 1 and not isinstance(layer, nn.Embedding)
    }


def _is_kind(module: nn.Module) -> bool:
    return isinstance(module, _KINDS) or is_conv1d(module)


def _obstacle(module: nn.Module) -> str | None:
    """What keeps a layer from taking an adapter, besides a second name."""
    if isinstance(module, nn.Linear):
        # Attention reads the weight of this subclass without calling the module.
        return "the output layer of an attention" if isinstance(module, NonDynamicallyQuantizableLinear) else None
    if isinstance(module, nn.Embedding):
        return None if module.max_norm is None else "an embedding with a greatest norm"
    if is_conv1d(module):
        return None
    if type(module) not in _CONVOLUTIONS:
        return f"a convolution of class {type(module).__name__}"
    if set(cast(tuple[int, ...], module.dilation)) != {1}:
        return "a dilated convolution"
    return None if module.padding_mode == "zeros" else f"a convolution with {module.padding_mode} padding"


def _choose_layers(model: nn.Module, twin: nn.Module, max_extra_parameters: float) -> dict[str, int]:
    layers = to_choose_from(model)
    drift = [entry for entry in weight_drift(model, twin) if entry.layer in layers]
    budget = int(max_extra_parameters * count_parameters(model))
    try:
        ranks = allocate_ranks(drift, {name: rank_cost(layer) for name, layer in layers.items()}, budget)
    except ArgumentError as error:
        raise ArgumentError(
            f"max_extra_parameters: expected a larger share, got {max_extra_parameters}: {error}"
        ) from error
    if not ranks:
        raise ArgumentError(
            f"twin: expected weights that differ from the model's in {', '.join(layers) or 'a layer'}, got the same. "
            f"Train it, or name the layers."
        )
    return ranks


def check_ranks(layers: Mapping[str, int], model: nn.Module) -> None:
    """Checks that a model has layers of these names, which take an adapter of these ranks.

    Raises:
        ArgumentError: It has not.
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
            reason = f", {_obstacle(found) or 'a layer under several names'}" if found and _is_kind(found) else ""
            raise ArgumentError(
                f"layers: expected linear, convolution or embedding modules, got {name!r}{reason}. "
                f"Available: {available}."
            )
        weight: Any = module.weight
        most = min(weight.shape[0], weight[0].numel())
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most:
            raise ArgumentError(f"layers: expected a rank from 1 to {most} for {name!r}, got {rank!r}.")
        groups = getattr(module, "groups", 1)
        if rank % groups:
            raise ArgumentError(
                f"layers: expected a multiple of {groups} as rank of the grouped convolution {name!r}, got {rank}."
            )


def _second_structure(base: nn.Module) -> nn.Module:
    """A copy of the modules over the very same parameter and buffer objects."""
    same: dict[int, Any] = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    return deepcopy(base, same)
