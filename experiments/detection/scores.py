"""Suspicion by method, seed and condition: computed once, kept in the run folder under what it depends on."""

import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.baselines.protocol import Seen
from experiments.detection.methods import FittedMethod, Method, fit_method, settings_of
from petm._internal.files import fingerprint, write_atomically, write_json
from petm._internal.progress import console
from petm.errors import PetmError, RunError
from petm.models.loading import weights_fingerprint
from petm.training.run_folder import LOCK, contents, locked

TEST = "test"
LOGITS, CONFIDENCES = "raw_logits.npz", "external_confids.npz"
_FITS, _MARK = "fits", "detection.json"


@dataclass(frozen=True, eq=False)
class Condition:
    """Samples on which the methods are judged.

    Attributes:
        name: ``test``, or the change and its strength.
        seen: What the base model says of them.
        positions: int64 ``(n,)``, where they are in the test data.
    """

    name: str
    seen: Seen
    positions: Tensor


@dataclass(frozen=True, eq=False)
class Scored:
    """One method with one seed.

    Attributes:
        method: What was fitted.
        seed: With which seed.
        suspicion: float64 ``(n,)`` by condition.
        cost: Extra parameters, passes and seconds to fit.
        chosen: Settings that the method chose on data.
    """

    method: Method
    seed: int
    suspicion: Mapping[str, NDArray[np.float64]]
    cost: Mapping[str, float | None]
    chosen: Mapping[str, float]


@contextmanager
def open_folder(path: Path) -> Iterator[Path]:
    """Opens a folder for a benchmark; what is in it stays good, whatever is added, because its names say what it is.

    Args:
        path: Made when absent.

    Raises:
        RunError: The folder is in use or holds something else.
    """
    with locked(path):
        if contents(path) and not (path / _MARK).is_file():
            (path / LOCK).unlink()
            raise RunError(
                f"{path}: expected an empty folder or a detection benchmark, got other files. Choose another."
            )
        write_json(path / _MARK, {"format": "petm detection benchmark"})
        yield path


def score_all(
    methods: Sequence[Method], train: Seen, conditions: Sequence[Condition], folder: Path, *, device: str = "auto"
) -> tuple[list[Scored], dict[str, str]]:
    """Returns every method's suspicion of every condition, and why a method was left out.

    The first condition is the test data and is scored for every seed, the others for the first seed alone. What is in
    the folder is read; a method of which nothing is missing is not fitted.

    Args:
        methods: The rows.
        train: What the base model says of its training data.
        conditions: The test data first.
        folder: From `open_folder`.
        device: Where something is trained.
    """
    base = (weights_fingerprint(train.model), train.data.content, conditions[0].seen.data.content)
    scored, left_out = [], {}
    jobs = [(method, place, seed) for method in methods for place, seed in enumerate(method.seeds)]
    for done, (method, place, seed) in enumerate(jobs):
        if method.name in left_out:
            continue
        key = fingerprint((*base, settings_of(method.baseline), str(seed)))
        job = _Job(method, seed, folder / _FITS / f"{method.name}-{seed}-{key[:12]}", train, conditions[0].seen, device)
        console.print(f"{done + 1}/{len(jobs)} {method.name}, seed {seed}", highlight=False, markup=False)
        try:
            scored.append(job.run(conditions if place == 0 else conditions[:1]))
        except PetmError as error:
            left_out[method.name] = str(error)
    return [each for each in scored if each.method.name not in left_out], left_out


class _Job:
    """One method with one seed: fitted when the first score is missing."""

    def __init__(self, method: Method, seed: int, folder: Path, train: Seen, test: Seen, device: str) -> None:
        self.method, self.seed, self.folder = method, seed, folder
        self.train, self.test, self.device = train, test, device
        self._fitted: FittedMethod | None = None

    def run(self, conditions: Sequence[Condition]) -> Scored:
        """Returns the suspicion of every condition."""
        suspicion = {condition.name: self._suspicion(condition) for condition in conditions}
        fit = json.loads((self.folder / "fit.json").read_text(encoding="utf-8"))
        return Scored(self.method, self.seed, suspicion, fit["cost"], fit["chosen"])

    def _suspicion(self, condition: Condition) -> NDArray[np.float64]:
        path = self.folder / f"{condition.name}-{condition.seen.data.content[:12]}.npz"
        found = read_array(path)
        if found is None or found.shape != (len(condition.seen),) or not (self.folder / "fit.json").is_file():
            fitted = self._fit()
            found = fitted.suspicion(condition.seen, condition.positions).double().numpy()
            write_array(path, found)
        return found

    def _fit(self) -> FittedMethod:
        if self._fitted is None:
            known, begun = self.folder / "fit.json", self.folder.exists()
            self._fitted = fit_method(
                self.method.baseline, self.train, self.test, seed=self.seed, device=self.device, folder=self.folder
            )
            if not known.is_file():
                few = self.test.data.subset(torch.linspace(0, len(self.test) - 1, min(256, len(self.test))).long())
                # The first call of all may do what is done only once, such as finding where two opinions part.
                self._fitted.fitted.suspicion(Seen(self.test.model, few))
                cost = {
                    "extra_parameters": self._fitted.fitted.learned.extra_parameters,
                    "passes": self._fitted.fitted.passes(few),
                    # A fit that an earlier process began has taken longer than is known here.
                    "seconds": None if begun else self._fitted.seconds,
                }
                write_json(known, {"cost": cost, "chosen": dict(self._fitted.fitted.learned.chosen)})
        return self._fitted


def write_layout(scored: Sequence[Scored], conditions: Sequence[Condition], folder: Path) -> None:
    """Writes the scores in the layout of the field's benchmark, for whoever wants to check with its code.

    Each ``scores/METHOD-SEED/`` has ``raw_logits.npz`` and ``external_confids.npz``, row by row the same
    samples.

    ``raw_logits.npz`` holds float32 ``(N, K + 2)``: the base model's logits, the label, the index of the data set.
    ``external_confids.npz`` holds float64 ``(N,)``: confidence, which is minus suspicion. Each is the one array
    ``arr_0``. The data sets are the test data and, for the first seed of a method, the conditions;
    ``scores/datasets.json`` names them in the order of their index.

    Args:
        scored: Every method with every seed.
        conditions: The test data first.
        folder: Of the benchmark.

    Raises:
        RunError: A file could not be written.

    Reference:
        Jaeger et al. (2023), A Call to Reflect on Evaluation Practices for Failure Detection in Image
        Classification; the layout is that of its code.
    """
    rows = {
        each.name: np.column_stack(
            (each.seen.logits.numpy(), each.seen.labels.numpy(), np.full(len(each.seen), index))
        ).astype(np.float32)
        for index, each in enumerate(conditions)
    }
    write_json(folder / "scores" / "datasets.json", {"datasets": list(rows)})
    for one in scored:
        place = folder / "scores" / f"{one.method.name}-{one.seed}"
        write_array(place / LOGITS, np.concatenate([rows[name] for name in one.suspicion]))
        write_array(place / CONFIDENCES, -np.concatenate(list(one.suspicion.values())))


def read_array(path: Path) -> NDArray[Any] | None:
    """Returns the array in a file of `write_array`; nothing where it is absent or damaged."""
    try:
        with path.open("rb") as file:  # NumPy itself leaves a damaged file open
            found: NDArray[Any] = np.load(file, allow_pickle=False)["arr_0"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, IndexError):
        return None
    return found


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Writes a compressed NumPy archive with one array, ``arr_0``, whole or not at all.

    Raises:
        RunError: The file could not be written.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, array)
    write_atomically(path, lambda temporary: _fill(temporary, buffer))


def _fill(path: Path, buffer: io.BytesIO) -> None:
    path.write_bytes(buffer.getbuffer())
