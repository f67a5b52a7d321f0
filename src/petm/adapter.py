"""The adapter: LoRA matrices on chosen layers of A, through PEFT, with their strength as a dial."""

import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from petm.drift import allocate_ranks, rank_cost, weight_drift
from petm.errors import ArgumentError, BundleError, RunError
from petm.files import write_atomically
from petm.models import call_model, count_parameters, share_weights
from petm.passes import Pass, follow_passes

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class AdaptedModel(nn.Module):
    """A with an adapter: ``W(alpha) = W0 + alpha * B A`` in the adapted layers.

    ``alpha = 0`` is A to the bit, ``alpha = 1`` the second opinion; any other real number is allowed, given per call,
    so that threads may use one model at different alpha. The weights ``W0`` are those of the caller's model, shared
    and frozen, and always in eval mode: neither training the adapter nor using it moves a bit of A, its BatchNorm
    statistics included.

    Attributes:
        base: A.
        tuned: A with the adapter, as PEFT has it.
        ranks: The rank of each adapted layer, by its name in A.
        parting: Where both opinions part in one pass (`petm.parting.Parting`), once that has been found.

    Reference:
        Hu et al. (2022), LoRA; LoRA-PETM (ACK 2025), section 3.2.
    """

    def __init__(self, base: nn.Module, tuned: PeftModel, ranks: Mapping[str, int]) -> None:
        super().__init__()
        self.base, self.tuned, self.ranks = base, tuned, dict(ranks)
        self.parting: Any = None
        follow_passes(self.network, self.ranks)
        self.eval()

    @property
    def network(self) -> nn.Module:
        """A's own structure with PEFT's layers in it, without PEFT's wrapper around."""
        return self.tuned.get_base_model()

    def forward(self, x: Tensor, alpha: float = 1.0) -> Tensor:
        """Returns logits ``(N, K)`` at ``alpha``."""
        if alpha == 0:
            return call_model(self.base, x)
        if alpha == 1:
            return call_model(self.network, x)
        with Pass(float(alpha)).under_way():
            return call_model(self.network, x)

    def train(self, mode: bool = True) -> "AdaptedModel":
        """Keeps eval mode: A's dropout and BatchNorm are part of A, and the adapter has neither."""
        del mode
        return super().train(False)

    def adapter_parameters(self) -> int:
        """Returns the number of parameters of the adapter."""
        return sum(tensor.numel() for tensor in self.adapter_state().values())

    def adapter_state(self) -> dict[str, Tensor]:
        """Returns the adapter's tensors under PEFT's names."""
        state: dict[str, Tensor] = get_peft_model_state_dict(self.tuned)
        return state

    def save_adapter(self, folder: Path) -> None:
        """Writes ``adapter_config.json`` and ``adapter_model.safetensors``, which PEFT alone can load.

        Raises:
            RunError: A file could not be written.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.adapter_state().items()}
        write_atomically(folder / "adapter_model.safetensors", lambda path: save_file(tensors, path))
        config = deepcopy(self.tuned.peft_config["default"])
        config.inference_mode = True
        try:
            config.save_pretrained(str(folder))
        except OSError as error:
            raise RunError(f"{folder}: could not be written ({error.strerror}). Free space.") from error


def attach_adapter(
    model: nn.Module,
    layers: Mapping[str, int] | None = None,
    *,
    twin: nn.Module | None = None,
    max_extra_parameters: float = 0.02,
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
    _check_ranks(layers, model)
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
        tuned = get_peft_model(_second_structure(base), config)
    return AdaptedModel(base, tuned, layers)


def load_adapter(model: nn.Module, folder: Path) -> AdaptedModel:
    """Returns A with the adapter of a PEFT folder.

    Raises:
        BundleError: The folder holds no LoRA adapter that fits the model.
    """
    base = share_weights(model)
    try:
        # Read by name before PEFT does, which would take a pickle where there are no safetensors.
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            held = set(file.keys())
        tuned = PeftModel.from_pretrained(_second_structure(base), str(folder))
    except Exception as error:  # PEFT and safetensors fail in many ways on a foreign or damaged folder
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(f"{folder}: expected a LoRA adapter that fits the model, got {reason}.") from error
    if held != set(get_peft_model_state_dict(tuned)):
        raise BundleError(f"{folder}: expected a LoRA adapter that fits the model, got one of other layers.")
    ranks = {
        name.removeprefix("base_model.model."): int(module.r["default"])
        for name, module in tuned.named_modules()
        if isinstance(getattr(module, "r", None), dict) and "default" in module.r
    }
    return AdaptedModel(base, tuned, ranks)


def adaptable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the layers that can take an adapter, by name: linear ones and convolutions of 1 to 3 dimensions.

    Those on which PEFT's LoRA would be something else than ``W0 + alpha * B A`` are left out: convolutions with
    dilation, with another padding than zeros or with a class of their own, and the output layer of PyTorch's attention.
    """
    layers = {name: module for name, module in model.named_modules() if name and isinstance(module, _KINDS)}
    return {name: module for name, module in layers.items() if _obstacle(module) is None}


def _obstacle(module: nn.Module) -> str | None:
    """What keeps a linear or convolution layer from taking an adapter."""
    if isinstance(module, nn.Linear):
        # Attention reads the weight of this subclass without calling the module.
        return "the output layer of an attention" if isinstance(module, NonDynamicallyQuantizableLinear) else None
    if type(module) not in _KINDS:
        return f"a convolution of class {type(module).__name__}"
    if set(cast(tuple[int, ...], module.dilation)) != {1}:
        return "a dilated convolution"
    return None if module.padding_mode == "zeros" else f"a convolution with {module.padding_mode} padding"


def _choose_layers(model: nn.Module, twin: nn.Module, max_extra_parameters: float) -> dict[str, int]:
    # A rank on a grouped convolution comes in multiples of its groups only, and costs as much as a dense layer.
    layers = {name: layer for name, layer in adaptable_layers(model).items() if getattr(layer, "groups", 1) == 1}
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


def _check_ranks(layers: Mapping[str, int], model: nn.Module) -> None:
    candidates = adaptable_layers(model)
    available = ", ".join(candidates)
    if not layers:
        raise ArgumentError(f"layers: expected at least one layer, got none. Available: {available}.")
    modules = dict(model.named_modules())
    for name, rank in layers.items():
        module = candidates.get(name)
        if module is None:
            found = modules.get(name)
            reason = f", {_obstacle(found)}" if isinstance(found, _KINDS) else ""
            raise ArgumentError(
                f"layers: expected linear or convolution modules, got {name!r}{reason}. Available: {available}."
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
