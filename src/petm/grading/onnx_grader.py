"""A grader in one ONNX graph, run by onnxruntime: no network code, no PEFT."""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from petm._internal.progress import track
from petm._internal.records import Json, Record
from petm.data.base import Data
from petm.data.fields import Inputs, as_batch, one_tensor
from petm.data.reader import Arrays
from petm.errors import (
    ArgumentError,
    BundleError,
    DataError,
    ExtraError,
    ModelError,
)
from petm.grading.grades import Grades, as_inputs
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.models.prediction import BATCH_SIZE, batches
from petm.selective.thresholds import Threshold

FORMAT_VERSION = 2
PREFIX = "petm."
"""Of the keys in a graph's metadata; their values are JSON."""

Provider: TypeAlias = str | tuple[str, Mapping[str, Any]]


class Answer(NamedTuple):
    """The outputs of the graph, in its order and under its names, for ``N`` samples."""

    label: NDArray[np.int64]
    """A's predictions, ``(N,)``."""
    suspicion: NDArray[np.float64]
    """As in `petm.grading.grades.Grades`, ``(N,)``."""
    probability: NDArray[np.float64]
    """Of an error, ``(N,)``."""
    trusted: NDArray[np.bool_]
    """The grade, ``(N,)``."""
    base: NDArray[np.float32]
    """A's logits, ``(N, K)``."""
    second: NDArray[np.float32]
    """The second opinion's logits, ``(N, K)``."""


class OnnxGrader:
    """Grades predictions of A as `Grader` does, from what `export_onnx` wrote.

    Threads may use one grader at once.

    Args:
        path: The ``.onnx`` file.
        providers: Where onnxruntime computes, the first choice first: names, or pairs of a name and its options.
        threads: CPU threads of one pass; absent means as many as PyTorch uses, which are all cores unless it was told
            otherwise.

    Attributes:
        path: The file.
        threshold: Where suspicion turns from trusted to suspect, and what that promises.
        score: What suspicion is, a name of `petm.models.scores.SCORES`.
        origin: Class names, and how images are read.
        measured: Figures of the fit, by name; empty in graphs from before they were kept.
        fingerprint: SHA-256 of A's weights.
        shape: Of one input, ``(C, H, W)`` for images.

    Raises:
        ArgumentError: A provider is not in this onnxruntime.
        BundleError: The file is absent or damaged, too new, or not from `petm.grading.onnx_export.export_onnx`.
        ExtraError: onnxruntime is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        providers: Sequence[Provider] = ("CPUExecutionProvider",),
        threads: int | None = None,
    ) -> None:
        self.path = Path(path)
        self._session = _open_session(self.path, providers, threads)
        metadata = _read_metadata(self.path, self._session)
        self.threshold, self.score = Threshold.from_json(metadata.record("threshold")), metadata.text("score")
        self.origin = Origin(
            ModelOrigin(classes=metadata.texts("classes")),
            InputOrigin.from_json(metadata.record("inputs")),
        )
        self.measured: Mapping[str, Json] = metadata.free("measured")
        self.fingerprint = metadata.text("fingerprint")
        self.shape: tuple[int, ...] = tuple(self._session.get_inputs()[0].shape[1:])

    def __repr__(self) -> str:
        return f"OnnxGrader({str(self.path)!r})"

    def grade(self, x: Tensor | NDArray[Any] | Data, *, batch_size: int = BATCH_SIZE) -> Grades:
        """Returns labels, suspicion and grades.

        Args:
            x: float32 ``(N, C, H, W)`` (uint8 is divided by 255) as a tensor or NumPy array, or a data set.
            batch_size: Samples in one pass.

        Raises:
            DataError: There is no sample, or one holds NaN or infinity.
            ModelError: The graph cannot take the inputs.
        """
        data = as_inputs(x)
        if not len(data):
            raise DataError(f"{data.source}: expected at least one sample, got none.")
        parts = []
        with track("grade", len(data)) as progress:
            for inputs, _ in batches(data, torch.device("cpu"), batch_size):
                parts.append(self.run(one_tensor(inputs, "for an exported graph").numpy()))
                progress.advance(len(inputs))
        whole = Answer(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        return _grades(whole)

    def grade_batch(self, x: Inputs | Arrays) -> Grades:
        """Returns the grades of one batch, without a look at its values.

        Args:
            x: float32 ``(N, C, H, W)``, as a tensor or NumPy array.

        Raises:
            DataError: The inputs are not one tensor.
            ModelError: The graph cannot take the inputs.
        """
        return _grades(self.run(one_tensor(as_batch(x), "for an exported graph").numpy()))

    def run(self, x: NDArray[np.float32]) -> Answer:
        """Returns what the graph answers to one batch, as it is: the shortest way for one sample after the other.

        Args:
            x: float32 ``(N, C, H, W)``; values are not checked.

        Raises:
            ModelError: The graph cannot take the inputs.
        """
        if x.dtype != np.float32 or x.shape[1:] != self.shape:
            wanted = ", ".join(("N", *map(str, self.shape)))
            raise ModelError(
                f"model: cannot take inputs of shape {x.shape} and dtype {x.dtype}, {self.path} was exported for "
                f"float32 of shape ({wanted}). Check size and channels of the data against it."
            )
        return Answer(*self._session.run(Answer._fields, {"x": x}))


def _grades(answer: Answer) -> Grades:
    return Grades(answer.label, answer.second.argmax(1), answer.suspicion, answer.probability, answer.trusted)


def import_extra(*names: str) -> list[Any]:
    """Returns the modules of the extra ``petm[onnx]``.

    Raises:
        ExtraError: One cannot be imported.
    """
    try:
        return [import_module(name) for name in names]
    except ImportError as error:
        raise ExtraError(
            f"onnx: expected the packages onnx, onnxruntime and onnxscript, got {error}. "
            f"Install them: pip install 'petm[onnx]'."
        ) from error


def _open_session(path: Path, providers: Sequence[Provider], threads: int | None) -> Any:
    (onnxruntime,) = import_extra("onnxruntime")
    available = onnxruntime.get_available_providers()
    # onnxruntime itself would go on without what it does not have.
    absent = [name for name in (p if isinstance(p, str) else p[0] for p in providers) if name not in available]
    if absent or not providers:
        raise ArgumentError(
            f"providers: expected some of {', '.join(available)}, got {', '.join(absent) or 'none'}. "
            f"Install the onnxruntime that has it, or leave it out."
        )
    if not path.is_file():
        raise BundleError(f"{path}: expected an ONNX file, got none.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors; its warnings are about graphs that it makes itself
    try:
        return onnxruntime.InferenceSession(path, options, providers=list(providers))
    except Exception as error:  # onnxruntime has a class of its own for each fault of a file
        reason = str(error).splitlines()[0]
        raise BundleError(f"{path}: expected an ONNX graph, got {reason}. Export it again.") from error


def _read_metadata(path: Path, session: Any) -> Record:
    properties: dict[str, str] = session.get_modelmeta().custom_metadata_map
    try:
        entries = {
            key.removeprefix(PREFIX): json.loads(value) for key, value in properties.items() if key.startswith(PREFIX)
        }
        version = entries["format_version"]
    except (KeyError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: expected a graph from petm export, got another one. Export a bundle.") from error
    if version != FORMAT_VERSION:
        step = "Upgrade petm to read it" if version > FORMAT_VERSION else "Export it again"
        raise BundleError(f"{path}: expected graph version {FORMAT_VERSION}, got {version}. {step}.")
    return Record(entries, f"{path}: metadata")
