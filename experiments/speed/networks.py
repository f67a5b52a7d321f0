"""The networks that are timed: the paper's CNN, a ViT and a BERT of base size, and any network that a user brings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from petm.adapter.lora import adaptable_layers
from petm.errors import ArgumentError
from petm.models.loading import load_model
from petm.paper.reproduction import PAPER_RANKS

TRANSFORMER_RANK = 8
LAST_BLOCKS = 2
SEED = 0


@dataclass(frozen=True)
class Case:
    """A network with the layers that carry the adapter, and what it is fed; plain data, which a child process takes.

    Attributes:
        name: Short, for options and files.
        title: In words.
        reference: ``module:factory`` or ``file.py:factory``; its weights stay random.
        shape: Of one input, without the batch.
        layers: Rank by layer, or by a module whose layers all get it; ``None`` adapts the last two of the network's
            blocks and all that follows them.
        vocabulary: Inputs are whole numbers below this, as tokens are; ``None`` feeds floats in [0, 1].
    """

    name: str
    title: str
    reference: str
    shape: tuple[int, ...]
    layers: Mapping[str, int] | None
    vocabulary: int | None = None

    def build(self) -> nn.Module:
        """Returns the base model with random weights, always the same, in eval mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return load_model(self.reference)

    def inputs(self, batch: int) -> Tensor:
        """Returns one batch, ``(batch, *shape)``."""
        generator = torch.Generator().manual_seed(SEED)
        if self.vocabulary is None:
            return torch.rand(batch, *self.shape, generator=generator)
        return torch.randint(self.vocabulary, (batch, *self.shape), generator=generator)

    def ranks(self, model: nn.Module) -> dict[str, int]:
        """Returns the rank of each adapted layer, where a rank that a layer is too small for becomes its largest.

        Raises:
            ArgumentError: A name is no layer and holds none, or the model has no list of blocks.
        """
        layers = adaptable_layers(model)
        if self.layers is None:
            return {name: min(TRANSFORMER_RANK, _most(layers[name])) for name in _last_layers(model, list(layers))}
        ranks: dict[str, int] = {}
        for wanted, rank in self.layers.items():
            names = [name for name in layers if name == wanted or name.startswith(f"{wanted}.")]
            if not names:
                raise ArgumentError(
                    f"layers: expected linear or convolution layers or modules that hold some, got {wanted!r}. "
                    f"Available: {', '.join(layers)}."
                )
            ranks |= {name: min(rank, _most(layers[name])) for name in names}
        return ranks


def vit_base() -> nn.Module:
    """Returns a Vision Transformer of base size, 16×16 patches, for 10 classes, with random weights."""
    config = ViTConfig()
    config.num_labels = 10
    return ViTForImageClassification(config)


def bert_base() -> nn.Module:
    """Returns a BERT of base size for 2 classes, with random weights."""
    config = BertConfig()
    config.num_labels = 2
    return BertForSequenceClassification(config)


_LATE = {name: PAPER_RANKS[name] for name in ("fc1", "fc2")}

CASES = {
    case.name: case
    for case in (
        Case("paper-fc", "The paper's CNN, adapter on fc1 and fc2", "petm.models:paper_cnn", (1, 28, 28), _LATE),
        Case(
            "paper-all",
            "The paper's CNN, adapter on conv1, fc1 and fc2",
            "petm.models:paper_cnn",
            (1, 28, 28),
            PAPER_RANKS,
        ),
        Case(
            "vit-base",
            "ViT of base size, adapter on the last 2 of 12 blocks and the head",
            "experiments.speed.networks:vit_base",
            (3, 224, 224),
            None,
        ),
        Case(
            "bert-base",
            "BERT of base size, 128 tokens, adapter on the last 2 of 12 blocks and the head",
            "experiments.speed.networks:bert_base",
            (128,),
            None,
            vocabulary=30_000,
        ),
    )
}
"""The networks that come with the benchmark, by name."""


def own_case(reference: str, layers: Mapping[str, int], shape: tuple[int, ...]) -> Case:
    """Returns the case of a network that a user brings, with its adapter on ``layers``."""
    where = ", ".join(layers)
    return Case("own", f"{reference.rpartition('/')[2]}, adapter on {where}", reference, shape, layers)


def _last_layers(model: nn.Module, layers: list[str]) -> list[str]:
    """The layers from the last two blocks on, in the order of the modules; the longest list holds the blocks."""
    lists = [(len(module), name) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    count, blocks = max(lists, default=(0, ""))
    first = next((name for name in layers if name.startswith(f"{blocks}.{count - LAST_BLOCKS}.")), None)
    if first is None:
        raise ArgumentError("layers: expected names, as the model has no list of blocks, got none. Name the layers.")
    return layers[layers.index(first) :]


def _most(layer: nn.Module) -> int:
    """The largest rank that a layer takes."""
    weight: Any = layer.weight
    return int(min(weight.shape[0], weight[0].numel()))
