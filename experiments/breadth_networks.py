"""Tiny networks of one's own in many forms, as people write them: signals, volumes, sequences, several inputs."""

# ruff: noqa: D101, D102 - what a network does is its forward

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.breadth_models import CLASSES
from petm.models.paper import PaperCNN


class Mean(nn.Module):
    """The mean over all dimensions behind the second, or over the second where ``of_steps``."""

    def __init__(self, *, of_steps: bool = False) -> None:
        super().__init__()
        self.of_steps = of_steps

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1) if self.of_steps else x.flatten(2).mean(2)


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class Recurrent(nn.Module):
    """LSTM or GRU over ``(N, L, 4)``, and a layer on its last state."""

    def __init__(self, kind: Callable[..., nn.Module], **settings: Any) -> None:
        super().__init__()
        self.recurrent = kind(4, 16, batch_first=True, **settings)
        width = 32 if settings.get("bidirectional") else 16
        self.head = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.recurrent(x)[0][:, -1])
        return out


class Attention(nn.Module):
    """PyTorch's own encoder over ``(N, L, 4)``, whose layers have a fused path."""

    def __init__(self, layers: int = 2, *, norm_first: bool = False) -> None:
        super().__init__()
        self.project = nn.Linear(4, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(self.project(x)).mean(1))
        return out


class ImageAndFacts(nn.Module):
    """An image, and numbers beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), Mean())
        self.facts = nn.Sequential(nn.Linear(5, 16), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, CLASSES))

    def forward(self, image: Tensor, facts: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat((self.image(image), self.facts(facts)), 1))
        return out


class TextAndFacts(nn.Module):
    """Tokens, and numbers beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.facts = nn.Embedding(40, 16), nn.Linear(5, 16)
        self.head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, CLASSES))

    def forward(self, input_ids: Tensor, facts: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat((self.words(input_ids).mean(1), F.relu(self.facts(facts))), 1))
        return out


class Twins(nn.Module):
    """One trunk that runs on two images of a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), Mean())
        self.head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, CLASSES))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat((self.trunk(left), self.trunk(right)), 1))
        return out


class Answer(nn.Module):
    """A small network whose answer is changed: a tuple, a mapping, probabilities, one number."""

    def __init__(self, change: Callable[[Tensor], Any], classes: int = CLASSES) -> None:
        super().__init__()
        self.layers, self.change = nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, classes)), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.layers(x))


class Graph(nn.Module):
    """Messages over the edges of a graph: nodes ``(N, V, F)`` and a matrix ``(N, V, V)``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        held = F.relu(self.first(edges @ nodes))
        out: Tensor = self.head(F.relu(self.second(edges @ held)).mean(1))
        return out


def _convolutions(kind: type[nn.Module], norm: type[nn.Module], channels: int) -> nn.Module:
    make: Any = kind
    layers = (make(channels, 8, 3), norm(8), nn.ReLU(), make(8, 16, 3), norm(16), nn.ReLU())
    return nn.Sequential(*layers, Mean(), nn.Linear(16, CLASSES))


def _residual(norm: nn.Module, activation: nn.Module) -> nn.Module:
    block = Residual(nn.Conv2d(16, 16, 3, padding=1), norm, activation, nn.Conv2d(16, 16, 1))
    return nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), block, activation, Mean(), nn.Linear(16, CLASSES))


def _mixer() -> nn.Module:
    patches = nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.Flatten(2))
    return nn.Sequential(patches, Residual(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16)), Mean(), nn.Linear(16, 3))


def _dense(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(7, 16), *between, nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def _quantised() -> nn.Module:
    from torch.ao.quantization import quantize_dynamic

    made: nn.Module = quantize_dynamic(_dense(nn.ReLU()), {nn.Linear})
    return made


def _compiled() -> nn.Module:
    made: Any = torch.compile(_dense(nn.ReLU()), backend="eager")
    return made  # type: ignore[no-any-return]


FLAT, IMAGE, SIGNAL, VOLUME, STEPS = (7,), (3, 32, 32), (2, 50), (1, 8, 12, 12), (20, 4)

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "PaperCNN": (lambda: PaperCNN(CLASSES), (1, 28, 28)),
    "dense": (lambda: _dense(nn.ReLU()), FLAT),
    "dense with BatchNorm": (lambda: _dense(nn.BatchNorm1d(16), nn.ReLU()), FLAT),
    "dense with dropout": (lambda: _dense(nn.Tanh(), nn.Dropout(0.5)), FLAT),
    "dense, residual": (lambda: _dense(Residual(nn.LayerNorm(16), nn.Linear(16, 16), nn.SiLU())), FLAT),
    "dense, bfloat16": (lambda: _dense(nn.ReLU()).to(torch.bfloat16), FLAT),
    "dense, float64": (lambda: _dense(nn.ReLU()).double(), FLAT),
    "linear": (lambda: nn.Linear(7, CLASSES), FLAT),
    "signals": (lambda: _convolutions(nn.Conv1d, nn.BatchNorm1d, 2), SIGNAL),
    "signals, one channel": (lambda: _convolutions(nn.Conv1d, nn.BatchNorm1d, 1), (1, 50)),
    "dilated signals": (lambda: nn.Sequential(nn.Conv1d(2, 16, 3, dilation=4), nn.ReLU(), Mean(), nn.Linear(16, 3)),
                        SIGNAL),
    "images": (lambda: _convolutions(nn.Conv2d, nn.BatchNorm2d, 3), IMAGE),
    "images of four channels": (lambda: _convolutions(nn.Conv2d, nn.BatchNorm2d, 4), (4, 16, 16)),
    "volumes": (lambda: _convolutions(nn.Conv3d, nn.BatchNorm3d, 1), VOLUME),
    "volumes of three channels": (lambda: _convolutions(nn.Conv3d, nn.InstanceNorm3d, 3), (3, 8, 8, 8)),
    "GroupNorm": (lambda: _residual(nn.GroupNorm(4, 16), nn.ReLU(inplace=True)), IMAGE),
    "InstanceNorm": (lambda: _residual(nn.InstanceNorm2d(16), nn.Hardswish()), IMAGE),
    "PReLU": (lambda: _residual(nn.Identity(), nn.PReLU()), IMAGE),
    "grouped convolutions": (lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=4), nn.ReLU(),
                                                   Mean(), nn.Linear(16, 3)), IMAGE),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), Mean(),
                                        nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)), IMAGE),
    "transposed convolutions": (lambda: nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), Mean(),
                                                      nn.Unflatten(1, (8, 1, 1)), nn.ConvTranspose2d(8, 16, 2),
                                                      nn.ReLU(), Mean(), nn.Linear(16, 3)), IMAGE),
    "pooled and flattened": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
                                                   nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 3)), IMAGE),
    "mixer": (_mixer, IMAGE),
    "spectral norm": (lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(7, 16)), nn.ReLU(),
                                            nn.Linear(16, 3)), FLAT),
    "weight norm": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(7, 16)), nn.ReLU(),
                                          nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)), FLAT),
    "LSTM": (lambda: Recurrent(nn.LSTM), STEPS),
    "GRU": (lambda: Recurrent(nn.GRU), STEPS),
    "LSTM, two layers, both ways": (lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), STEPS),
    "TransformerEncoder": (Attention, STEPS),
    "TransformerEncoder, norm first": (lambda: Attention(norm_first=True), STEPS),
    "TransformerEncoder, one layer": (lambda: Attention(1), STEPS),
    "image and facts": (ImageAndFacts, {"image": IMAGE, "facts": (5,)}),
    "text and facts": (TextAndFacts, {"input_ids": (12,), "facts": (5,)}),
    "twins": (Twins, {"left": IMAGE, "right": IMAGE}),
    "graph": (Graph, {"nodes": (6, 4), "edges": (6, 6)}),
    "a tuple": (lambda: Answer(lambda z: (z, z.sum(1))), FLAT),
    "a mapping": (lambda: Answer(lambda z: {"features": z.sum(1), "logits": z}), FLAT),
    "probabilities": (lambda: Answer(lambda z: z.softmax(1)), FLAT),
    "one logit": (lambda: Answer(lambda z: z, 1), FLAT),
    "one probability": (lambda: Answer(lambda z: z.sigmoid().squeeze(1), 1), FLAT),
    "sigmoids": (lambda: Answer(torch.sigmoid), FLAT),
    "a loss alone": (lambda: Answer(lambda z: z.sum()), FLAT),
    "quantised": (_quantised, FLAT),
    "compiled": (_compiled, FLAT),
    "no parameters": (lambda: nn.Sequential(nn.Flatten(1), nn.AdaptiveAvgPool1d(3)), SIGNAL),
}  # fmt: skip
"""The networks by name, each with the shape of a sample, or of its inputs by name."""
