"""Trains in forked processes that are killed at chosen moments; run by test_loop as a script of its own.

One import of torch serves all of them: `python interrupted_trainings.py FOLDER`.
"""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import petm.training.checkpoint
from networks import ResidualNet, TinyCNN, images, seeded
from petm.data.base import TensorData
from petm.training.loop import CROSS_ENTROPY, Settings, Storage, train

CASES = {
    "dropout and BatchNorm": (ResidualNet, Settings(epochs=3, learning_rate=0.01, batch_size=16, seed=5)),
    "patience": (TinyCNN, Settings(epochs=30, learning_rate=0.03, batch_size=16, patience=2, seed=5)),
}


def run(case: str, result: Path, storage: Storage | None, die_at_step: int | None, die_in_save: int | None) -> None:
    """Trains one network; kills this very process before the given step, or halfway through the given checkpoint."""
    calls = {"steps": 0, "saves": 0}

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        calls["steps"] += torch.is_grad_enabled()
        if calls["steps"] == die_at_step:
            os.kill(os.getpid(), signal.SIGKILL)
        return CROSS_ENTROPY.loss(logits, labels)

    def save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        calls["saves"] += 1
        save_file(tensors, path, metadata=metadata)
        if calls["saves"] == die_in_save:
            with path.open("rb+") as file:
                file.truncate(path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    petm.training.checkpoint.save_file = save
    network, settings = CASES[case]
    model = seeded(network)
    data = TensorData(images(70), torch.arange(70) % 10)
    history = train(
        model,
        data.subset(range(54)),
        replace(CROSS_ENTROPY, loss=loss),
        settings,
        validation=data.subset(range(54, 70)) if settings.patience else None,
        storage=storage,
        device="cpu",
    )
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, result)
    record = {"epochs": history.epochs, "best_epoch": history.best_epoch, "steps": calls["steps"]}
    result.with_suffix(".json").write_text(json.dumps(record))


def in_a_child(*arguments: object, after: float | None = None) -> int:
    """Runs in a forked process, killed after so many seconds if any; returns the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(*arguments)  # type: ignore[arg-type]
            status = 0
        finally:
            os._exit(status)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a child failed"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def main(folder: Path, case: str) -> None:
    folder.mkdir()
    started = time.monotonic()
    assert in_a_child(case, folder / "through.safetensors", None, None, None) == 0
    whole = time.monotonic() - started
    # 54 samples in batches of 16 are 4 steps an epoch, with a checkpoint after each.
    moments: dict[str, tuple[int | None, int | None, float | None]] = {"after half the time": (None, None, whole / 2)}
    moments |= {f"in step {step}": (step, None, None) for step in (1, 4, 5, 11)}
    moments |= {f"in checkpoint {save}": (None, save, None) for save in (1, 5)}
    for name, (step, save, after) in moments.items():
        storage = Storage(folder / "checkpoints" / f"{name}.safetensors", resume=True, every=0.0)
        ended = in_a_child(case, folder / "lost", storage, step, save, after=after)
        assert ended == signal.SIGKILL or after is not None
        assert in_a_child(case, folder / f"killed {name}.safetensors", storage, None, None) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # imports half of torch, which each child would do anew
    for case in CASES:
        main(Path(sys.argv[1]) / case, case)
