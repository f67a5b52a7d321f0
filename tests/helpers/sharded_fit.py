"""A fit with the base model sharded between two processes, and one without: `python sharded_fit.py FOLDER`."""

import json
import os
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from petm._internal.distributed import together
from petm.adapter.model import attach_adapter
from petm.data.base import TensorData
from petm.fitting import fit
from petm.grading.grader import load
from petm.models.loading import weights_fingerprint
from petm.models.placing import shard
from petm.training.loop import CROSS_ENTROPY
from petm.training.tuning import tune
from short_recipe import SHORT


class Network(nn.Module):
    """Blocks in a list, and layers outside of it, which the root holds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(32, 32), nn.Linear(32, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(x)
        return logits


def network() -> nn.Module:
    torch.manual_seed(0)
    return Network().eval()


def fitted(folder: Path, *, sharded: bool) -> dict[str, Any]:
    """Fits a grader, and returns what it says."""
    model = network()
    x = torch.randn(300, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::5] = (y[::5] + 1) % 3
    if sharded:
        shard(model, torch.device("cpu"))
    held = sum(getattr(weight, "to_local", lambda weight=weight: weight)().numel() for weight in model.parameters())
    data = TensorData(x, y)
    how: Any = {"objective": CROSS_ENTROPY, "epochs": 2, "batch_size": 50, "learning_rate": 1e-2, "device": "cpu"}
    told: dict[str, Any] = {"held": held, "fingerprint": weights_fingerprint(model)}
    for budget in (0, 1 << 24):
        adapted = attach_adapter(model, {"blocks.2.0": 2, "head": 2})
        history = tune(adapted, data, cache_budget=budget, **how)["default"]
        told[f"losses {budget}"] = [epoch["loss"] for epoch in history.epochs]
        adapted.detach()
    grader = fit(model, data, recipe=SHORT, device="cpu", force=True)
    grader.save(folder / "my.petm", overwrite=True)
    grades = grader.grade(x)
    told |= {"trusted": grades.trusted.tolist(), "suspicion": grades.suspicion.tolist()}
    told["held at the end"] = sum(
        getattr(weight, "to_local", lambda weight=weight: weight)().numel() for weight in model.parameters()
    )
    told["gradients"] = [name for name, weight in model.named_parameters() if weight.grad is not None]
    return told


def main(folder: Path) -> None:
    """Forks two processes, and compares."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(2):
        if os.fork() == 0:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with together(cpu=True, sharded=True) as team:
                told = fitted(folder, sharded=True)
                if not team.is_main:
                    (folder / "other.json").write_text(json.dumps(told))
            sys.exit()
    codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2)]
    assert codes == [0, 0], codes
    alone = folder / "alone"
    alone.mkdir()
    told = fitted(alone, sharded=False)
    grades = load(folder / "my.petm", network()).grade(torch.randn(300, 32, generator=torch.Generator().manual_seed(1)))
    told["loaded"] = grades.trusted.tolist()
    (folder / "alone.json").write_text(json.dumps(told))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
