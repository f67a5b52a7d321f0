"""The paper's experiment on a sixth of the digits; as a script, `python quick_reproduction.py FOLDER`, killed again and
again.

One import of PyTorch serves all the forked processes that are killed.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import petm.training.loop
import petm.training.run_folder
from petm.data.base import Data
from petm.data.digits import load_digits
from petm.paper import reproduction
from petm.paper.reproduction import PROTOCOLS, Reproduction, reproduce
from petm.training.checkpoint import Checkpoint, write_checkpoint
from petm.training.loop import Storage

QUICK = replace(PROTOCOLS["digits"], base_epochs=2, teacher_epochs=1, epochs=2, patience=1)
KILLED = ("base", "teacher", "lora_petm", "control")
"""The trainings in which a process is killed, in their order."""


def parts() -> tuple[Data, Data]:
    """Training and test digits."""
    train, _, test = load_digits()
    return train.subset(range(0, len(train), 6)), test.subset(range(0, len(test), 6))


def quick(folder: Path, *, resume: bool = False) -> Reproduction:
    """Runs the experiment with small figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduction, "MAP_IMAGES", 24)
        patch.setattr(reproduction, "SWEEP_IMAGES", 24)
        return reproduce(*parts(), folder, protocol=QUICK, resume=resume)


def die_in(step: str) -> None:
    """Makes this process kill itself behind the fifth checkpoint of a training."""
    written = 0

    def write(path: Path, checkpoint: Checkpoint) -> None:
        nonlocal written
        write_checkpoint(path, checkpoint)
        written += path.stem == step
        if written == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    def often(path: Path, resume: bool) -> Storage:
        return Storage(path, resume, every=0.0 if path.stem == step else 20.0)

    petm.training.loop.write_checkpoint = write
    petm.training.run_folder.Storage = often


def main(folder: Path) -> None:
    """Leaves a run that was killed in each of the trainings."""
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # imports half of torch, which each child would do anew
    load_digits()  # imports scikit-learn
    for step in KILLED:
        child = os.fork()
        if child == 0:
            die_in(step)
            try:
                quick(folder, resume=True)
            finally:
                os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, f"it ended before it was killed in {step}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
