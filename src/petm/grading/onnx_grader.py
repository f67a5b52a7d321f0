"""A grader in one ONNX graph, run by onnxruntime: neither the network's code nor PyTorch is needed."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from petm._internal.extras import import_extra
from petm._internal.progress import track
from petm._internal.records import Json, Record
from petm.errors import ArgumentError, BundleError, DataError, ModelError
from petm.grading.grades import Batch, Grades, as_inputs
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.models import BATCH_SIZE
from petm.selective.thresholds import Threshold

if TYPE_CHECKING:
    from torch import Tensor

    from petm.data.base import Data

FORMAT_VERSION = 2
PREFIX = "petm."
"""Of the keys in a graph's metadata; their values are JSON."""

Provider: TypeAlias = str | tuple[str, Mapping[str, Any]]


class Answer(NamedTuple):
    """The outputs of the graph, in its order and under its names, for ``N`` samples."""

    label: NDArray[np.int64]
    """The base model's predictions, ``(N,)``."""
    suspicion: NDArray[np.float64]
    """As in `petm.grading.grades.Grades`, ``(N,)``."""
    probability: NDArray[np.float64]
    """Of an error, ``(N,)``."""
    trusted: NDArray[np.bool_]
    """The grade, ``(N,)``."""
    base: NDArray[np.float32]
    """The base model's logits, ``(N, K)``."""
    second: NDArray[np.float32]
    """The second opinion's logits, ``(N, K)``."""


class OnnxGrader:
    """Grades predictions of the base model as `Grader` does, from what `export_onnx` wrote.

    Threads may use one grader at once.

    Args:
        path: The ``.onnx`` file.
        providers: Where onnxruntime computes, the first choice first: names, or pairs of a name and its options.
        threads: CPU threads of one pass; absent means ``OMP_NUM_THREADS``, or else one for each core.

    Attributes:
        path: The file.
        threshold: Where suspicion turns from trusted to suspect, and what that guarantees.
        score: What suspicion is, a name of `petm.models.scores.SCORES`.
        origin: Class names, and how images are read.
        measured: Figures of the fit, by name; empty in graphs from before they were kept.
        fingerprint: SHA-256 of the base model's weights.
        shape: Of one input, ``(C, H, W)`` for images.

    Raises:
        ArgumentError: A provider is not in this onnxruntime.
        BundleError: The file is absent or damaged, too new, or not from `petm.grading.onnx_export.export_onnx`.
        ExtraError: onnxruntime is not installed.
    """

    def __init__(
        self, path: str | Path, *, providers: Sequence[Provider] = ("CPUExecutionProvider",), threads: int | None = None
    ) -> None:
        self.path = Path(path)
        self._session = _open_session(self.path, providers, threads)
        metadata = _read_metadata(self.path, self._session)
        self.threshold, self.score = Threshold.from_json(metadata.record("threshold")), metadata.text("score")
        self.origin = Origin(
            ModelOrigin(classes=metadata.texts("classes")), InputOrigin.from_json(metadata.record("inputs"))
        )
        self.measured: Mapping[str, Json] = metadata.free("measured")
        self.fingerprint = metadata.text("fingerprint")
        self.shape: tuple[int, ...] = tuple(self._session.get_inputs()[0].shape[1:])

    def __repr__(self) -> str:
        return f"OnnxGrader({str(self.path)!r})"

    def grade(self, x: "NDArray[Any] | Tensor | Data", *, batch_size: int = BATCH_SIZE) -> Grades:
        """Returns labels, suspicion and grades.

        Args:
            x: float32 ``(N, C, H, W)`` (uint8 is divided by 255) as a NumPy array or tensor, or a data set.
            batch_size: Samples in one pass.

        Raises:
            DataError: There is no sample, or one holds NaN or infinity.
            ModelError: The graph cannot take the inputs.
        """
        read: Callable[[range], Any]
        if isinstance(x, np.ndarray):
            total, source, read = len(x), "inputs", lambda rows: x[rows.start : rows.stop]
        else:
            data = as_inputs(x)
            total, source, read = len(data), data.source, data.inputs
        if not total:
            raise DataError(f"{source}: expected at least one sample, got none.")
        parts = []
        with track("grade", total) as progress:
            for start in range(0, total, batch_size):
                rows = range(start, min(start + batch_size, total))
                inputs = _as_array(read(rows))
                if not np.isfinite(inputs).all():
                    raise DataError(f"{source}, samples from {start}: expected finite values, got NaN or infinity.")
                parts.append(self.run(inputs))
                progress.advance(len(rows))
        whole = Answer(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        return _grades(whole)

    def grade_batch(self, x: Batch) -> Grades:
        """Returns the grades of one batch, without a look at its values.

        Args:
            x: ``(N, C, H, W)``.

        Raises:
            DataError: The inputs are not one tensor.
            ModelError: The graph cannot take the inputs.
        """
        return _grades(self.run(_as_array(x)))

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


def _as_array(x: Any) -> NDArray[np.float32]:
    """A batch of one tensor as float32, on the CPU."""
    if hasattr(x, "keys"):
        raise DataError(f"inputs: expected one tensor for an exported graph, got {', '.join(x.keys())}.")
    values = x if isinstance(x, np.ndarray) else x.detach().cpu().numpy()
    if values.dtype == np.uint8:
        return np.divide(values, 255, dtype=np.float32)
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"inputs: expected float or uint8 values, got {values.dtype}. Convert them.")
    return values.astype(np.float32, copy=False)


def _open_session(path: Path, providers: Sequence[Provider], threads: int | None) -> Any:
    (onnxruntime,) = import_extra("onnx", "onnxruntime")
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
    options.intra_op_num_threads = threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
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
