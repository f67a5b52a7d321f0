"""MC dropout: the mean over what A says with random parts of it switched off."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from experiments.baselines.averages import mean_suspicion
from petm._internal.progress import track
from petm.data.fields import Inputs
from petm.errors import ArgumentError, ModelError
from petm.evidence.protocol import Baseline, Learned
from petm.evidence.seen import REMEDY, Seen
from petm.models.loading import call_model, share_weights
from petm.models.penultimate import LastLinear, linear_input
from petm.models.prediction import batches, device_of
from petm.training.checkpoint import seed_of


@dataclass(frozen=True)
class McDropout(Baseline):
    """Suspicion is ``1 - mean p_s(c)`` over passes ``s`` with dropout, ``c`` being A's answer without it.

    Where A has dropout modules of its own, they are switched on and the whole of A runs once for each sample. Else
    dropout is put before the linear layer that A calls last; then the passes differ only from there on, and run as one
    batch behind a single pass of what comes before. Both happen on a second structure over A's weights.

    Args:
        samples: Passes with dropout.
        rate: Share of the features that dropout before the last layer switches off; A's own dropout keeps its own rate.

    Raises:
        ArgumentError: An argument breaks its rule.

    Reference:
        Gal and Ghahramani (2016), Dropout as a Bayesian Approximation.
    """

    samples: int = 20
    rate: float = 0.2

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
        """The batch becomes ``1 + samples`` batches before the last layer: one as it is, for A's own answer."""
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
        raise ModelError(f"{fault} {REMEDY}")
    return last.name
