"""What is timed side by side: ways to a second opinion, and what else the same time could buy."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from experiments.speed.networks import SEED, Case
from petm.adapter.lora import adaptable_layers
from petm.adapter.model import AdaptedModel, attach_adapter
from petm.adapter.one_pass import dual_logits
from petm.adapter.peft_folder import save_adapter
from petm.errors import ModelError, PetmError
from petm.grading.grader import Grader
from petm.grading.onnx_export import export_onnx
from petm.models.loading import share_weights
from petm.selective.thresholds import DISAGREEMENT

PLAIN, TWO, ONE = "plain", "two_models", "one_pass"
MEMBERS, SAMPLES, DROPOUT = 5, 20, 0.5

Forward = Callable[[Tensor, int], Any]
"""Takes a batch, and how many of the call's equal forwards to run."""


class LeftOutError(Exception):
    """A contender cannot run here; the message says why, and stands in the table."""


class Setup:
    """The base model with what the contenders share of it, each made when it is first asked for.

    Args:
        case: The network and its adapted layers.
        device: Where everything lies.
        folder: Where adapter and ONNX file are written once, for this process and for those that measure memory.
    """

    def __init__(self, case: Case, device: torch.device, folder: Path) -> None:
        self.case, self.device, self.folder = case, device, folder

    @cached_property
    def model(self) -> nn.Module:
        """A."""
        return self.case.build().to(self.device).eval()

    @cached_property
    def adapted(self) -> AdaptedModel:
        """The base model with an adapter whose weights are random, so that its opinion is another one."""
        adapted = attach_adapter(self.model, self.case.ranks(self.model), seed=SEED)
        generator = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for tensor in adapted.adapter_state().values():
                tensor.copy_(0.02 * torch.randn(tensor.shape, generator=generator))
        return adapted

    def another(self, number: int) -> nn.Module:
        """Returns a copy of the base model whose weights are its own: each a little off the base model's."""
        return shaken(self.model, SEED + number)

    def inputs(self, batch: int) -> Tensor:
        """Returns one batch on the device."""
        return self.case.inputs(batch).to(self.device)


def shaken(model: nn.Module, seed: int) -> nn.Module:
    """Returns a copy of a network with weights of its own, each about 1 % off."""
    generator = torch.Generator().manual_seed(seed)
    other = deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + 0.01 * torch.randn(parameter.shape, generator=generator).to(parameter.device))
    return other


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        title: What the row is called.
        definition: What a call does, for whoever doubts the number.
        make: From what is shared to the call.
        parts: Equal forwards that one call is made of. Where they take too long, one is timed and multiplied.
        counted_as: The contender whose operations it carries out in a library that cannot be counted.
    """

    title: str
    definition: str
    make: Callable[[Setup], Forward]
    parts: int = 1
    counted_as: str | None = None


def _plain(setup: Setup) -> Forward:
    base = setup.model
    return lambda x, _: base(x)


def _two_models(setup: Setup) -> Forward:
    base, teacher = setup.model, setup.another(1)
    return lambda x, _: (base(x), teacher(x))


def _one_pass(setup: Setup) -> Forward:
    adapted = setup.adapted
    return lambda x, _: dual_logits(adapted, x)


def _mixed_batch(setup: Setup) -> Forward:
    folder = setup.folder / "adapter"
    if not folder.exists():
        save_adapter(setup.adapted, folder)
    model = PeftModel.from_pretrained(share_weights(setup.model), str(folder)).eval()

    def forward(x: Tensor, _: int) -> Any:
        names = ["__base__"] * len(x) + ["default"] * len(x)
        return model(torch.cat([x, x]), adapter_names=names)

    return forward


def _onnxruntime(setup: Setup) -> Forward:
    if setup.device.type != "cpu":
        raise LeftOutError(f"onnxruntime is timed on the CPU alone, not on {setup.device}.")
    if setup.case.vocabulary is not None:
        raise LeftOutError("petm.grading.onnx_export takes float inputs, and these are tokens.")
    path = setup.folder / "grader.onnx"
    try:
        if not path.exists():
            export_onnx(Grader(setup.adapted, DISAGREEMENT), path, setup.inputs(3))
    except PetmError as error:
        raise LeftOutError(str(error)) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())
    return lambda x, _: session.run(None, {name: x.numpy()})


def _ensemble(setup: Setup) -> Forward:
    members = [setup.model, *(setup.another(number) for number in range(1, MEMBERS))]
    return lambda x, parts: _mean_probabilities(members[:parts], x)


def _dropout(setup: Setup) -> Forward:
    model = dropping(setup.model)
    return lambda x, parts: _mean_probabilities([model] * parts, x)


def dropping(model: nn.Module) -> nn.Module:
    """Returns the model over the same weights with its dropout at work, or one of 50 % before its last layer."""
    model = share_weights(model)
    if any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in model.modules()):
        model.train()
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return model
    last = list(adaptable_layers(model).values())
    if not last:
        raise ModelError("model: expected a linear or convolution layer to put dropout before, got none.")
    last[-1].register_forward_pre_hook(lambda _, inputs: (F.dropout(inputs[0], DROPOUT), *inputs[1:]))
    return model


def _mean_probabilities(models: list[nn.Module], x: Tensor) -> Tensor:
    total: Any = 0
    for model in models:
        output = model(x)
        total = total + getattr(output, "logits", output).softmax(1)
    mean: Tensor = total / len(models)
    return mean


CONTENDERS = {
    PLAIN: Contender(
        "Plain forward", "the model's logits alone, eager, in eval mode; every ratio is over this.", _plain
    ),
    TWO: Contender("Two models, PETM", "A, then a whole second model of its own weights.", _two_models),
    ONE: Contender("One pass", "petm.dual_logits: both opinions of the model with its adapter.", _one_pass),
    "mixed_batch": Contender(
        "PEFT mixed batch",
        "PEFT with adapter_names: the batch twice over, one half without and one half with the adapter.",
        _mixed_batch,
    ),
    "onnxruntime": Contender(
        "onnxruntime",
        "petm.export: one pass as an ONNX file, from the input to the grade, run by onnxruntime.",
        _onnxruntime,
        counted_as=ONE,
    ),
    "ensemble": Contender(
        "Ensemble of 5", "Five networks of their own weights, mean of the probabilities.", _ensemble, MEMBERS
    ),
    "mc_dropout": Contender(
        "MC dropout, 20",
        "Twenty whole forwards, mean of the probabilities. Dropout is the network's own, or else 50% before its last "
        "layer.",
        _dropout,
        SAMPLES,
    ),
}
"""In the order of the rows."""
