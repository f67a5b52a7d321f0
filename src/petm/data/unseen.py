"""Calibration samples that are no training samples, each known by a hash of the input that the model gets.

Nor are they samples that somebody chose by their suspicion.
"""

import glob
import warnings
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from petm._internal.progress import track
from petm.data.base import Data
from petm.data.fields import Fields
from petm.data.tables import TABLE_SUFFIXES, open_table
from petm.errors import DataError, PetmWarning

_REVIEWED = ("confirmed", "suspicion")
"""Columns of a file of labels that people gave in a review queue, which `petm serve` writes."""
_READ = 1024
"""Samples that are read at a time."""


@dataclass(frozen=True)
class Separated:
    """Training and calibration samples of which none is in both, and none twice in the calibration set.

    Attributes:
        data: The training samples.
        calibration: The calibration samples.
        seen: Number of calibration samples that were left out as equal to a training sample.
        repeated: Number that were left out as equal to an earlier calibration sample.
        left_out: What counts besides where later inputs repeat as well: all of these, or of data from which the
            calibration set was held out, the same share of all repetitions. None where there is none.
        kept: Which samples `distinct` has kept, bool by their former place; empty elsewhere.
    """

    data: Data
    calibration: Data
    seen: int = 0
    repeated: int = 0
    left_out: Data | None = None
    kept: NDArray[np.bool_] = field(default_factory=lambda: np.ones(0, bool))


def sample_hashes(data: Data) -> NDArray[np.uint64]:
    """Returns a 64-bit BLAKE2b of each sample, ``(N,)``: of the bytes that the model gets, a text without padding.

    Two of a million different samples have one hash with a probability of 3e-8.
    """
    found = np.empty(len(data), np.uint64)
    with track("look for equal samples", len(data)) as progress:
        for start in range(0, len(data), _READ):
            stop = min(start + _READ, len(data))
            inputs = data.inputs(range(start, stop))
            rows = _of_fields(inputs) if isinstance(inputs, Fields) else _of_tensor(inputs)
            digests = b"".join(blake2b(row, digest_size=8).digest() for row in rows)
            found[start:stop] = np.frombuffer(digests, np.uint64)
            progress.advance(stop - start)
    return found


def separate(data: Data, calibration: Data) -> Separated:
    """Returns the calibration samples without those equal to a training sample, and each once.

    Args:
        data: Training samples.
        calibration: Samples that the base model should not have seen.

    Raises:
        DataError: More than half of the calibration samples are training samples.
    """
    hashes = sample_hashes(calibration)
    seen, first = np.isin(hashes, sample_hashes(data)), one_of_each(hashes, calibration, "calibration")
    if 2 * seen.sum() > len(seen):
        raise DataError(
            f"calibration: expected samples that the model has not seen, got {calibration.source}, in which "
            f"{int(seen.sum()):,} of {len(seen):,} samples are training samples. Name fresh samples."
        )
    kept = first & ~seen
    repeated = int((~first & ~seen).sum())
    return Separated(data, _kept(calibration, kept), int(seen.sum()), repeated, _left_out(calibration, kept))


def distinct(calibration: Data) -> Separated:
    """Returns calibration samples, each once, where there are no training samples."""
    first = one_of_each(sample_hashes(calibration), calibration, "calibration")
    repeated = int((~first).sum())
    kept, left_out = _kept(calibration, first), _left_out(calibration, first)
    return Separated(calibration, kept, repeated=repeated, left_out=left_out, kept=first)


def hold_out(data: Data, share: float, *, seed: int) -> Separated:
    """Returns a random share of the different samples, of every class, for calibration, and the others to train on.

    All copies of a sample are on the same side, and count once in the calibration set.

    Raises:
        DataError: There are too few samples.
    """
    hashes = sample_hashes(data)
    first = one_of_each(hashes, data, "data")
    kept, held = _kept(data, first).split((1 - share, share), seed=seed)
    if not len(held):
        raise DataError(
            f"data: expected samples enough to hold out {share:.0%} of each class for calibration, got {len(data)} "
            f"({data.source}). Add samples, or name a calibration set."
        )
    if first.all():
        return Separated(kept, held)
    inside = np.isin(hashes, sample_hashes(held))
    copies = torch.from_numpy(np.flatnonzero(~first))
    drawn = torch.rand(len(copies), generator=torch.Generator().manual_seed(seed)) < share
    left_out = data.subset(copies[drawn]) if drawn.any() else None
    return Separated(_kept(data, ~inside), held, repeated=int(inside.sum()) - len(held), left_out=left_out)


def refuse_review_queue(calibration: Data) -> None:
    """Checks that calibration samples were not chosen by their suspicion.

    Raises:
        DataError: A file that they come from, or the one that a folder of images belongs to, has the columns of a
            review queue.
    """
    for path in (Path(path) for source in calibration.source.split(" + ") for path in glob.glob(source) or [source]):
        file = path.with_suffix("") if path.suffix == ".images" else path
        if file.suffix.lower() not in TABLE_SUFFIXES or not file.is_file():
            continue
        rows = open_table(file, _REVIEWED, required=(), hint="").records(0, _READ)
        if any(row.values and None not in row.values for row in islice(rows, _READ)):
            raise DataError(
                f"calibration: expected samples drawn like later inputs, got {path}, labels from a review queue "
                f"(columns {' and '.join(_REVIEWED)}), whose samples were chosen by suspicion. Name samples drawn at "
                f"random."
            )


def one_of_each(hashes: NDArray[np.uint64], data: Data, argument: str) -> NDArray[np.bool_]:
    """Returns where an input stands first; of one with several labels, a random place, and a warning says so.

    Its label is then drawn from those of the input, as the guarantee assumes; the first is that of the first folder.
    """
    labels = data.labels.numpy()
    _, places, inputs = np.unique(hashes, return_index=True, return_inverse=True)
    unlike = np.bincount(inputs, labels != labels[places][inputs]) > 0
    if unlike.any():
        shuffled = np.random.default_rng(0).permutation(len(hashes))
        at_random = shuffled[np.unique(hashes[shuffled], return_index=True)[1]]
        places = np.where(unlike, at_random, places)
        warnings.warn(
            f"{argument}: expected one label for each input, got several for {int(unlike.sum()):,} of "
            f"{len(unlike):,} different inputs of {data.source}. Of these a label drawn at random counts: correct the "
            f"labels, unless they are of texts that differ in words which the model does not know.",
            PetmWarning,
            stacklevel=4,
        )
    one = np.zeros(len(hashes), bool)
    one[places] = True
    return one


def _kept(data: Data, kept: NDArray[np.bool_]) -> Data:
    return data if kept.all() else data.subset(torch.from_numpy(kept))


def _left_out(data: Data, kept: NDArray[np.bool_]) -> Data | None:
    return None if kept.all() else data.subset(torch.from_numpy(~kept))


def _of_tensor(inputs: Tensor) -> list[bytes]:
    """The bytes of each sample."""
    flat = (inputs + 0.0).reshape(len(inputs), -1)  # -0.0 becomes 0.0, which it equals
    return [row.tobytes() for row in flat.view(torch.uint8).numpy()]


def _of_fields(fields: Fields) -> list[bytes]:
    """The bytes of each sample's fields by name, of a text without its padding."""
    named = {name: tensor + 0.0 if tensor.is_floating_point() else tensor.long() for name, tensor in fields.items()}
    real = named["attention_mask"].bool() if "attention_mask" in named else torch.empty(0)
    tokens = {name for name, tensor in named.items() if tensor.shape == real.shape}
    return [
        b"".join(
            name.encode() + (named[name][row][real[row]] if name in tokens else named[name][row]).numpy().tobytes()
            for name in sorted(named)
        )
        for row in range(len(fields))
    ]
