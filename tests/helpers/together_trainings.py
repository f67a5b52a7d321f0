"""Trainings by several processes: `python together_trainings.py FOLDER KIND,KIND`.

Two processes that torchrun's launcher starts train each kind; and two, of which one is killed, train the first, with
which three go on. All are forked, so that PyTorch is imported once.
"""

import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from networks import TinyCNN, seeded
from petm._internal.distributed import together, totals
from petm.adapter.model import attach_adapter
from petm.adapter.one_pass import predict_answers
from petm.data.digits import load_digits
from petm.training.distillation import distill
from petm.training.error_set import ErrorSet
from petm.training.loop import CROSS_ENTROPY, Objective, Storage
from petm.training.replacement import replace_errors
from petm.training.tuning import tune


def train_together(folder: Path, kind: str, *, die_at: int = 0) -> None:
    """Trains, and writes down the losses; kills the process of rank 1 in a step, if any."""
    train, _ = load_digits(splits=(0.2, 0.8))
    model = seeded(TinyCNN).eval()
    layers = {"conv1": 2, "fc1": 3} if kind == "early" else {"fc1": 4, "fc2": 2}
    steps = 0

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == die_at and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return CROSS_ENTROPY.loss(logits, targets)

    with together(cpu=True) as team:
        adapted = attach_adapter(model, layers)
        storage = Storage(folder / f"{kind}.safetensors", resume=True, every=0.0)
        if kind == "distilled":
            teacher = seeded(TinyCNN, seed=5).eval()
            history = distill(adapted, teacher=teacher, data=train, epochs=2, batch_size=48, device="cpu")
        else:
            every = ErrorSet(torch.arange(len(train)), train.labels, len(train))
            budget = 0 if kind == "cached" else None
            moved = replace_errors(model, train, every, epsilon=0.1, budget=budget)
            objective = Objective(loss, CROSS_ENTROPY.agrees, "accuracy", "cross-entropy")
            history = tune(
                adapted, moved, objective=objective, epochs=2, batch_size=50, learning_rate=1e-2,
                cache_budget=0 if kind == "uncached" else 1 << 28, storage=lambda _: storage, device="cpu",
            )["default"]  # fmt: skip
        opinions = predict_answers(adapted, train)
        alike = totals([float(opinions.second.double().sum())])[0] / team.count
        if team.is_main:
            second = opinions.second.double()
            told = {"epochs": history.epochs, "second": float(second.sum()), "mean": alike, "count": team.count}
            (folder / f"{kind}.json").write_text(json.dumps(told))


def forked(count: int, folder: Path, kind: str, *, die_at: int = 0) -> list[int]:
    """Trains in so many processes, and returns how each ended: its exit code, or minus the signal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        children.append(os.fork())
        if children[-1] == 0:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank)}
            train_together(folder, kind, die_at=die_at)
            sys.exit()
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def launched(folder: Path, kinds: list[str]) -> None:
    for kind in kinds:
        train_together(folder, kind)


def main(folder: Path, kinds: list[str]) -> None:
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # imports what each child would import anew
    load_digits()  # this too
    ended = forked(2, folder / "died", kinds[0], die_at=11)
    assert ended == [1, -signal.SIGKILL], ended
    shutil.copytree(folder / "died", folder / "3")
    ended = forked(3, folder / "3", kinds[0])
    assert ended == [0, 0, 0], ended
    # What `torchrun --standalone --nproc-per-node 2` does, but that it forks.
    config = LaunchConfig(
        1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="fork", max_restarts=0
    )
    elastic_launch(config, launched)(folder / "2", kinds)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2].split(","))
