"""The time of fitting: distillation as one would write it with PEFT, and petm's without and with cached features."""

import gc
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.machine import order, ratio_spread, spread
from experiments.speed.contenders import shaken
from experiments.speed.networks import CASES, SEED
from petm._internal.operations import count_operations
from petm._internal.progress import track
from petm.adapter.model import attach_adapter
from petm.data.base import Data, TensorData
from petm.data.digits import DATA_DIR_VARIABLE, load_mnist
from petm.data.fields import one_tensor
from petm.errors import ArgumentError
from petm.models.loading import share_weights
from petm.models.prediction import Precision, device_of, predict_logits
from petm.training.distillation import distill, kl_objective

NAIVE, ANSWERED, UNCACHED, CACHED, HALF = "naive", "answered", "uncached", "cached", "cached-bfloat16"
LEARNING_RATE = 1e-3

_CACHE = 4 << 30
"""The default of `petm.training.distillation.distill`; all of MNIST takes 2.2 GB."""

FITS = {
    NAIVE: (
        "Naive, PEFT",
        "The usual loop of knowledge distillation (as in PyTorch's tutorial): get_peft_model, torch.optim.Adam, in "
        "each step a forward of the teacher and one of the whole student; the images lie in one tensor.",
    ),
    ANSWERED: ("Naive, teacher once", "The same, but the teacher's logits are computed once."),
    UNCACHED: ("petm, no cache", "petm.distill with cache_budget=0."),
    CACHED: ("petm, cache", "petm.distill: what lies before the first adapted layer is computed once."),
    HALF: ("petm, cache, bfloat16", "The same with precision='bfloat16'."),
}
"""Title and definition of each way to fit, in the order of the rows."""


@dataclass(frozen=True)
class FitSettings:
    """How the fitting is timed, on the paper's CNN with the adapter on fc1 and fc2.

    Attributes:
        data_dir: Where MNIST is; absent, ``PETM_DATA_DIR``, or else random images.
        samples: At most so many of the images.
        epochs: Timed for all ways.
        long: Epochs that the naive way is extrapolated to and that petm with cache runs; ``None`` leaves that out.
        repeats: Times that each way runs, in turn.
        batch_size: Samples in one step.
    """

    data_dir: Path | None = None
    samples: int = 6000
    epochs: int = 5
    long: int | None = None
    repeats: int = 3
    batch_size: int = 128

    def __post_init__(self) -> None:
        for name in ("samples", "epochs", "long", "repeats", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"{name}: expected at least 1, got {value}. Leave it out for the default.")


@dataclass(frozen=True)
class Fitted:
    """One fit.

    Attributes:
        seconds: From the untrained adapter to the trained one, the teacher's answers and the cache included.
        epoch: Those of one epoch of the naive way, without what comes before the first.
        loss: KL divergence from the teacher over the training samples afterwards.
    """

    seconds: float
    epoch: float
    loss: float


def measure_fit(settings: FitSettings, device: torch.device) -> dict[str, Any]:
    """Returns times and ratios of the ways to fit.

    Raises:
        DataError: ``data_dir`` holds no MNIST.
    """
    data = _data(settings)
    case = CASES["paper-fc"]
    model = case.build().to(device)
    bench = _Bench(model, case.ranks(model), data, settings)
    runs: dict[str, list[Fitted]] = {name: [] for name in FITS}
    with track("fit", (settings.repeats + 1) * len(runs) + bool(settings.long)) as progress:
        operations = {}
        for name in runs:
            operations[name] = bench.operations(name, settings.epochs)
            progress.advance()
        for repeat in range(settings.repeats):
            for name in order(list(runs), repeat):
                runs[name].append(bench.run(name, settings.epochs))
                progress.advance()
        long = None
        if settings.long:
            long = _long(bench, runs, settings.long)
            progress.advance()
    rows = [
        {
            "way": name,
            "title": FITS[name][0],
            "definition": FITS[name][1],
            "seconds": asdict(spread([fit.seconds for fit in fits])),
            "speedup": asdict(ratio_spread(*([fit.seconds for fit in runs[way]] for way in (NAIVE, name)))),
            "counted_speedup": operations[NAIVE] / operations[name],
            "loss": fits[-1].loss,
        }
        for name, fits in runs.items()
    ]
    return {
        "data": PurePath(data.source).name,
        "samples": len(data),
        "ranks": bench.ranks,
        "settings": asdict(settings) | {"data_dir": None},
        "rows": rows,
        "long": long,
    }


class _Bench:
    """What the fits share: The base model, its teacher, the data."""

    def __init__(self, model: nn.Module, ranks: dict[str, int], data: Data, settings: FitSettings) -> None:
        self.model, self.teacher, self.ranks = model, shaken(model, SEED + 1), ranks
        self.data, self.settings, self.device = data, settings, device_of(model)

    def run(self, way: str, epochs: int) -> Fitted:
        """Fits a fresh adapter in one of the ways, and returns its time."""
        gc.collect()
        start = time.perf_counter()
        student, ready = self._fit(way, self.data, epochs)
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        end = time.perf_counter()
        answers, wanted = (predict_logits(model, self.data, title="compare") for model in (student, self.teacher))
        return Fitted(end - start, (end - ready) / epochs, float(kl_objective().loss(answers, wanted)))

    def operations(self, way: str, epochs: int) -> float:
        """Returns the counted operations of a fit: linear in the samples, and so told from two small fits."""
        few, more = self.settings.batch_size, 2 * self.settings.batch_size
        counted = [
            count_operations(partial(self._fit, way, self.data.subset(torch.arange(count) % len(self.data)), epochs))
            for count in (few, more)
        ]
        slope = (counted[1] - counted[0]) / (more - few)
        return counted[0] + slope * (len(self.data) - few)

    def _fit(self, way: str, data: Data, epochs: int) -> tuple[nn.Module, float]:
        """Returns what was fitted, and when the first epoch began as far as that is known."""
        if way in (NAIVE, ANSWERED):
            return self._naive(data, epochs, once=way == ANSWERED)
        return self._ours(data, epochs, 0 if way == UNCACHED else _CACHE, "bfloat16" if way == HALF else "float32")

    def _ours(self, data: Data, epochs: int, budget: int, precision: Precision) -> tuple[nn.Module, float]:
        began = time.perf_counter()
        adapted = attach_adapter(self.model, self.ranks, seed=SEED)
        distill(
            adapted,
            teacher=self.teacher,
            data=data,
            epochs=epochs,
            learning_rate=LEARNING_RATE,
            batch_size=self.settings.batch_size,
            patience=None,
            seed=SEED,
            device=str(self.device),
            precision=precision,
            cache_budget=budget,
        )
        return adapted, began

    def _naive(self, data: Data, epochs: int, *, once: bool) -> tuple[nn.Module, float]:
        """As one would write it: no part of petm is timed, and each step is a forward of the whole model."""
        torch.manual_seed(SEED)
        ranks = {f"^{re.escape(name)}$": rank for name, rank in self.ranks.items()}
        config = LoraConfig(r=1, lora_alpha=1, target_modules=list(self.ranks), rank_pattern=ranks, alpha_pattern=ranks)
        student = get_peft_model(share_weights(self.model), config)
        images = one_tensor(data.inputs(range(len(data))), "to time").to(self.device)

        @torch.no_grad()
        def taught(part: Tensor) -> Tensor:
            return F.log_softmax(self.teacher(part), 1)

        targets = torch.cat([taught(part) for part in images.split(256)]) if once else None
        optimizer = torch.optim.Adam((p for p in student.parameters() if p.requires_grad), lr=LEARNING_RATE)
        began = time.perf_counter()
        for _ in range(epochs):
            for rows in torch.randperm(len(images), device=self.device).split(self.settings.batch_size):
                optimizer.zero_grad()
                answer = F.log_softmax(student(images[rows]), 1)
                target = taught(images[rows]) if targets is None else targets[rows]
                F.kl_div(answer, target, log_target=True, reduction="batchmean").backward()
                optimizer.step()
        return student, began


def _long(bench: _Bench, runs: Mapping[str, list[Fitted]], epochs: int) -> dict[str, Any]:
    """Many epochs: petm with its cache runs them, the naive way is extrapolated from its few."""
    ours = bench.run(CACHED, epochs)
    first = bench.settings.epochs
    naive = spread([fit.seconds + (epochs - first) * fit.epoch for fit in runs[NAIVE]]).median
    return {
        "epochs": epochs,
        "naive_seconds": naive,
        "naive_from_epochs": first,
        "cached_seconds": ours.seconds,
        "speedup": naive / ours.seconds,
        "loss": ours.loss,
    }


def _data(settings: FitSettings) -> Data:
    """MNIST where it is named, else random images of its shape."""
    if settings.data_dir is None and not os.environ.get(DATA_DIR_VARIABLE):
        generator = torch.Generator().manual_seed(SEED)
        images = torch.randint(256, (settings.samples, 1, 28, 28), generator=generator, dtype=torch.uint8)
        return TensorData(images, source="random images of MNIST's shape")
    train: Data = load_mnist(settings.data_dir)[0]
    if settings.samples < len(train):
        train = train.subset(range(settings.samples)).in_memory()
    return train
