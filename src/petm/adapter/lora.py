"""LoRA: the two low-rank factors beside a layer, ``W(alpha) = W0 + alpha * B A``, and which layers can have them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

ADAPTER = "default"
"""The name of an adapter where there is only one; PEFT's too."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_Factor = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class Sizes(NamedTuple):
    """What decides the size of an adapter on a layer.

    Attributes:
        kind: ``linear``, ``convolution`` or ``embedding``.
        inputs: Input features, channels or tokens.
        outputs: Output features or channels.
        kernel: Entries of the kernel; 1 but for convolutions.
        groups: Of a convolution.
    """

    kind: str
    inputs: int
    outputs: int
    kernel: int = 1
    groups: int = 1

    @property
    def rank_cost(self) -> int:
        """Parameters that one rank costs: ``inputs * kernel + outputs / groups``."""
        return self.inputs * self.kernel + self.outputs // self.groups

    @property
    def weights(self) -> int:
        """Entries of the layer's weight."""
        return self.outputs * self.inputs // self.groups * self.kernel

    @property
    def full_rank(self) -> int:
        """Greatest rank that the layer's weight can have."""
        return min(self.outputs, self.inputs // self.groups * self.kernel)


class LoraLayer(nn.Module):
    """``x`` to ``scale * B A x`` for one layer.

    Args:
        layer: The layer of the base model.
        rank: ``r``.
        scale: 1 but for adapters that PEFT has trained with another.
        bias: Whether a linear layer's ``B`` has a bias, as PEFT's has with ``lora_bias``.
    """

    def __init__(self, layer: nn.Module, rank: int, scale: float = 1.0, *, bias: bool = False) -> None:
        super().__init__()
        sizes, self.rank, self.scale = sizes_of(layer), rank, scale
        inner: Any = innermost(layer)
        held = next((tensor for tensor in (*layer.parameters(), *layer.buffers())), torch.empty(0))
        place: dict[str, Any] = {
            "device": held.device,
            "dtype": torch.float64 if held.dtype == torch.float64 else torch.float32,
        }
        self.kind = sizes.kind
        if sizes.kind == "convolution":
            kind = next(kind for kind in _CONVOLUTIONS if isinstance(inner, kind))
            how: dict[str, Any] = {
                name: getattr(inner, name) for name in ("stride", "padding", "dilation", "padding_mode")
            }
            self.lora_A: _Factor = kind(sizes.inputs, rank, inner.kernel_size, bias=False, **how, **place)
            self.lora_B: _Factor = kind(rank, sizes.outputs, 1, groups=sizes.groups, bias=False, **place)
        elif sizes.kind == "embedding":
            self.lora_embedding_A = nn.Parameter(torch.zeros(rank, sizes.inputs, **place))
            self.lora_embedding_B = nn.Parameter(torch.randn(sizes.outputs, rank, **place))
        else:
            self.lora_A = nn.Linear(sizes.inputs, rank, bias=False, **place)
            self.lora_B = nn.Linear(rank, sizes.outputs, bias=bias, **place)
        if sizes.kind != "embedding":
            nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
            nn.init.zeros_(self.lora_B.weight)
            if self.lora_B.bias is not None:
                nn.init.zeros_(self.lora_B.bias)

        # Held once more, as a module's attributes take long to find beside a small layer's own time.
        plain = sizes.kind == "linear" and not bias
        self._linear = (self.lora_A.weight, self.lora_B.weight) if plain else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns the part that the adapter adds to the layer's output for the input ``x``."""
        if self._linear is not None:
            down, up = self._linear
            part = F.linear(F.linear(x if x.dtype == down.dtype else x.to(down.dtype), down), up)
        elif self.kind == "embedding":
            part = F.embedding(x, self.lora_embedding_A.T) @ self.lora_embedding_B.T
        else:
            part = self.lora_B(self.lora_A(x.to(self.lora_A.weight.dtype)))
        return part if self.scale == 1 else part * self.scale

    def sum(self, base: Tensor, x: Tensor) -> Tensor:
        """Returns ``base`` plus what the adapter adds for the input ``x``."""
        if self._linear is not None and base.ndim == 2 and base.dtype == x.dtype == self._linear[0].dtype:
            down, up = self._linear
            return torch.addmm(base, F.linear(x, down), up.t(), alpha=self.scale)
        total: Tensor = base + self(x)
        return total.to(base.dtype)

    def add_(self, base: Tensor, x: Tensor) -> None:
        """Adds to ``base``, in place, what the adapter adds for the input ``x``."""
        if self._linear is not None and base.ndim == 2 and base.dtype == x.dtype == self._linear[0].dtype:
            down, up = self._linear
            base.addmm_(F.linear(x, down), up.t(), alpha=self.scale)
        else:
            base.add_(self(x))


@dataclass(frozen=True, eq=False)
class AdaptedLayer:
    """A layer of the base model with its adapters.

    Attributes:
        name: Its name in the base model.
        adapters: By the names of the adapters.
    """

    name: str
    adapters: Mapping[str, LoraLayer]


class Adapter(nn.Module):
    """Every LoRA matrix of an adapted model, apart from the user's modules.

    Args:
        model: The base model.
        names: Of the adapters.
        ranks: The rank of each layer, by its name in the model.
        scales: By layer, where it is not 1.
        bias: Whether the linear layers' ``B`` have biases.

    Attributes:
        ranks: The same.
        bias: The same.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Iterable[str],
        ranks: Mapping[str, int],
        scales: Mapping[str, float] | None = None,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.ranks, self.names, self.bias, scales = dict(ranks), tuple(names), bias, scales or {}
        for name in self.names:
            for layer, rank in self.ranks.items():
                lora = LoraLayer(model.get_submodule(layer), rank, scales.get(layer, 1.0), bias=bias)
                self.add_module(_key(name, layer), lora)

    def layer(self, name: str, layer: str) -> LoraLayer:
        """Returns what an adapter has for a layer."""
        found = self._modules[_key(name, layer)]
        assert isinstance(found, LoraLayer)
        return found

    def layers(self, model: nn.Module) -> dict[nn.Module, AdaptedLayer]:
        """Returns the adapted layers by the module of a model with the base model's structure."""
        return {
            model.get_submodule(layer): AdaptedLayer(layer, {name: self.layer(name, layer) for name in self.names})
            for layer in self.ranks
        }

    def learn(self, *names: str) -> None:
        """Lets these adapters learn, and no others."""
        for name in self.names:
            for layer in self.ranks:
                self.layer(name, layer).requires_grad_(name in names)


def _key(name: str, layer: str) -> str:
    # A module's name has no dots, and must not be that of an attribute.
    return f"{name}: {layer.replace('.', '/')}"


def adaptable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the layers that can have an adapter, by name.

    These are linear layers, convolutions of 1 to 3 dimensions, embeddings, transformers' ``Conv1D``, and whatever has
    ``in_features`` and ``out_features`` and computes the base in its own forward, as quantised layers and the layers
    of an unmerged PEFT model do. Left out are layers whose weight somebody else reads without calling them (the output
    layer of PyTorch's attention), convolutions with a forward of their own, embeddings with a greatest norm, layers
    inside of an adaptable one, those in whose place PEFT has put others (``modules_to_save``), and a layer that has
    several names in the model, as PEFT's format knows one only.
    """
    names: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        names[id(module)] = names.get(id(module), 0) + 1
    found: dict[str, nn.Module] = {}
    within: list[str] = []
    for name, module in model.named_modules():
        if isinstance(getattr(module, "modules_to_save", None), nn.ModuleDict):
            within.append(f"{name}.original_module")
        if not name or any(name.startswith(parent) for parent in within) or not is_layer(module):
            continue
        if hasattr(module, "base_layer"):
            within.append(f"{name}.")
        if obstacle(module) is None and names[id(module)] == 1:
            found[name] = module
    return found


def to_choose_from(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the adaptable layers that are chosen where nobody names any.

    A rank on a grouped convolution comes in multiples of its groups only and costs as much as on a dense layer; one on
    an embedding costs a number for every token.
    """
    return {
        name: layer
        for name, layer in adaptable_layers(model).items()
        if (sizes := sizes_of(layer)).groups == 1 and sizes.kind != "embedding"
    }


def innermost(module: nn.Module) -> nn.Module:
    """Returns the layer that PEFT's wrappers, if any, were put around."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        module = inner
    return module


def is_layer(module: nn.Module) -> bool:
    """Returns whether a module is of a kind that can have an adapter."""
    return _kind(innermost(module)) is not None


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, _CONVOLUTIONS):
        return "convolution"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.Linear) or is_conv1d(module):
        return "linear"
    sized = all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features"))
    return "linear" if sized and not any(map(is_layer, module.children())) else None


def is_conv1d(module: nn.Module) -> bool:
    """Returns whether a module is transformers' ``Conv1D``, a linear layer that holds its weight transposed."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and getattr(module, "weight", None) is not None


def sizes_of(layer: nn.Module) -> Sizes:
    """Returns the sizes of a layer that is of a kind that can have an adapter."""
    module: Any = innermost(layer)
    kind = _kind(module)
    if kind == "convolution":
        return Sizes(kind, module.in_channels, module.out_channels, math.prod(module.kernel_size), module.groups)
    if kind == "embedding":
        return Sizes(kind, module.num_embeddings, module.embedding_dim)
    if is_conv1d(module):
        return Sizes("linear", *module.weight.shape)
    return Sizes("linear", module.in_features, module.out_features)


def obstacle(module: nn.Module) -> str | None:
    """Returns what keeps a layer from having an adapter, besides a second name."""
    module = innermost(module)
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return "the output layer of an attention"
    if isinstance(module, nn.Embedding):
        return None if module.max_norm is None else "an embedding with a greatest norm"
    if isinstance(module, _CONVOLUTIONS):
        kind = next(kind for kind in _CONVOLUTIONS if isinstance(module, kind))
        own = type(module).forward is not kind.forward or type(module)._conv_forward is not kind._conv_forward
        return f"a convolution of class {type(module).__name__}" if own else None
    return None
