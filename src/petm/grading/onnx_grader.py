"""A grader that runs an ONNX graph by onnxruntime, without the network's code and without PyTorch."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from petm._internal.extras import import_extra
from petm._internal.progress import track
from petm._internal.records import Json, Record, parse_json
from petm.errors import ArgumentError, BundleError, DataError, ModelError
from petm.grading.grades import Batch, Grades, as_inputs, check_inputs
from petm.grading.input_profile import InputCheck
from petm.grading.onnx_file import check_graph
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.models import BATCH_SIZE
from petm.selective.choice import Choice
from petm.selective.outcome import Outcome
from petm.selective.thresholds import Threshold

if TYPE_CHECKING:
    from torch import Tensor

    from petm.data.base import Data

FORMAT_VERSION = 3
PREFIX = "petm."
"""Prefix of the keys in a graph's metadata; the values are JSON."""


class Answer(NamedTuple):
    """The outputs of the graph, in its order and under its names: four of shape ``(N,)``, and logits ``(N, K)``."""

    label: NDArray[np.int64]
    suspicion: NDArray[np.float64]
    probability: NDArray[np.float64]
    trusted: NDArray[np.bool_]
    base: NDArray[np.float32]
    second: NDArray[np.float32]


class OnnxGrader:
    """Grades predictions of the base model as `Grader` does, from what `export_onnx` wrote.

    Several threads may use one grader.

    Args:
        path: The ``.onnx`` file.
        providers: Names of onnxruntime's execution providers, in order of preference.
        threads: CPU threads of one pass; absent means ``OMP_NUM_THREADS``, or else one for each core.

    Attributes:
        path: The file.
        threshold: The threshold on suspicion, with its guarantee.
        score: The name of what suspicion is computed from, as in `petm.evidence.suspicion`.
        origin: Class names, and how images are read.
        measured: Figures of the fit, by name.
        has_second: Whether there is a second opinion; without one, its outputs are those of the base model.
        choice: What the suspicion was compared with, as in `petm.grading.grader.Grader`.
        outcome: What it brings beside the softmax, as there.
        shape: Shape of one input, ``(C, H, W)`` for images.

    Raises:
        ArgumentError: A provider is not in this onnxruntime.
        BundleError: The file is absent, damaged, too new, or not from `petm.grading.onnx_export.export_onnx`.
        ExtraError: onnxruntime is not installed.
    """

    def __init__(
        self, path: str | Path, *, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int | None = None
    ) -> None:
        self.path = Path(path)
        self._session = _open_session(self.path, providers, threads)
        metadata = _read_metadata(self.path, self._session)
        self.threshold, self.score = Threshold.from_json(metadata.record("threshold")), metadata.text("score")
        inputs = InputOrigin.from_json(metadata.record("inputs"))
        self.origin = Origin(ModelOrigin(classes=metadata.texts("classes")), inputs)
        self.measured: Mapping[str, Json] = metadata.free("measured")
        self.has_second = metadata.flag("second_opinion")
        self.choice = Choice.from_json(metadata.record("choice")) if metadata.has("choice") else None
        self.outcome = Outcome.from_json(metadata.record("outcome")) if metadata.has("outcome") else None
        self.shape = _shape_of(self.path, self._session)
        self._check = InputCheck(inputs.profile)

    def __repr__(self) -> str:
        return f"OnnxGrader({str(self.path)!r})"

    def grade(self, x: "NDArray[Any] | Tensor | Data", *, batch_size: int = BATCH_SIZE) -> Grades:
        """Returns labels, suspicion and grades.

        Args:
            x: float32 ``(N, C, H, W)`` (uint8 is divided by 255) as a NumPy array or tensor, or a data set.
            batch_size: Samples in one pass.

        Raises:
            ArgumentError: ``x`` is none of these.
            DataError: There is no sample, one holds NaN or infinity, or they cannot be like those of the fit.
            ModelError: The graph cannot take the inputs.
        """
        data = x if isinstance(x, np.ndarray) else as_inputs(x)
        if isinstance(data, np.ndarray):
            _as_array(data[:0])  # which checks the dtype
        check_inputs(data, self.origin.inputs)
        source, total = getattr(data, "source", "inputs"), len(data)
        if not total:
            raise DataError(f"{source}: expected at least one sample, got none.")
        parts = []
        with track("grade", total) as progress:
            for start in range(0, total, batch_size):
                stop = min(start + batch_size, total)
                inputs = _as_array(
                    data[start:stop] if isinstance(data, np.ndarray) else data.inputs(range(start, stop))
                )
                if not np.isfinite(inputs).all():
                    raise DataError(f"{source}, samples from {start}: expected finite values, got NaN or infinity.")
                parts.append(self.run(inputs))
                progress.advance(len(inputs))
        return _grades(Answer(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True))))

    def grade_batch(self, x: Batch) -> Grades:
        """Returns the grades of one batch ``(N, C, H, W)``.

        Raises:
            ArgumentError: The inputs are neither an array nor a dense tensor.
            DataError: The inputs are not one tensor, or cannot be like those of the fit.
            ModelError: The graph cannot take the inputs.
        """
        values = _as_array(x)
        self._check(values)
        return _grades(self.run(values))

    def run(self, x: NDArray[np.float32]) -> Answer:
        """Returns the graph's outputs for one batch, float32 ``(N, C, H, W)``: the fastest call for single samples.

        Raises:
            ModelError: The graph cannot take the inputs.
        """
        if x.dtype != np.float32 or x.shape[1:] != self.shape:
            wanted = ", ".join(("N", *map(str, self.shape)))
            raise ModelError(
                f"model: cannot take inputs of shape {x.shape} and dtype {x.dtype}, {self.path} was exported for "
                f"float32 of shape ({wanted}). Check size and channels of the data against it."
            )
        try:
            return Answer(*self._session.run(Answer._fields, {"x": x}))
        except Exception as error:  # onnxruntime has one class for each kind of fault
            raise ModelError(
                f"model: expected a graph that can run, got {str(error).splitlines()[0]:.300} in {self.path}. "
                f"Export it again."
            ) from error


def _grades(answer: Answer) -> Grades:
    return Grades(answer.label, answer.second.argmax(1), answer.suspicion, answer.probability, answer.trusted)


def _as_array(x: Any) -> NDArray[np.float32]:
    """A batch of one tensor as float32, on the CPU."""
    if hasattr(x, "keys"):
        raise DataError(f"inputs: expected one tensor for an exported graph, got {', '.join(x.keys())}.")
    if isinstance(x, np.ndarray):
        values = x
    elif str(getattr(x, "layout", None)) == "torch.strided":
        values = (x.float() if x.is_floating_point() else x).detach().cpu().numpy()  # NumPy has no bfloat16
    else:
        raise ArgumentError(f"inputs: expected an array or a dense tensor, got {type(x).__name__}. Convert it.")
    if values.dtype == np.uint8:
        return np.divide(values, 255, dtype=np.float32)
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"inputs: expected float or uint8 values, got {values.dtype}. Convert them.")
    with np.errstate(over="ignore"):  # an overflow becomes infinite, which `grade` refuses by name
        return values.astype(np.float32, copy=False)


def _open_session(path: Path, providers: Sequence[str], threads: int | None) -> Any:
    (onnxruntime,) = import_extra("onnx", "onnxruntime")
    available = onnxruntime.get_available_providers()
    # onnxruntime itself would ignore a provider that it lacks.
    absent = [name for name in providers if name not in available]
    if absent or not providers:
        raise ArgumentError(
            f"providers: expected some of {', '.join(available)}, got {', '.join(absent) or 'none'}. "
            f"Install an onnxruntime that has it, or leave it out."
        )
    if not path.is_file():
        raise BundleError(f"{path}: expected an ONNX file, got none. Name another file.")
    check_graph(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    options.log_severity_level = 3  # errors only; the warnings concern graphs that it makes itself
    try:
        return onnxruntime.InferenceSession(path, options, providers=list(providers))
    except Exception as error:  # onnxruntime has one class for each fault of a file
        raise BundleError(
            f"{path}: expected an ONNX graph, got {str(error).splitlines()[0]}. Export it again."
        ) from error


def _shape_of(path: Path, session: Any) -> tuple[int, ...]:
    """The shape of one input of a graph from petm export."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = tuple(inputs[0].shape[1:]) if [each.name for each in inputs] == ["x"] else ()
    fixed = [isinstance(side, int) and side > 0 for side in shape]
    if [each.name for each in outputs] != list(Answer._fields) or not fixed or not all(fixed):
        raise BundleError(f"{path}: expected a graph from petm export, got other inputs or outputs. Export a bundle.")
    return shape


def _read_metadata(path: Path, session: Any) -> Record:
    properties: dict[str, str] = session.get_modelmeta().custom_metadata_map
    try:
        entries = {
            key.removeprefix(PREFIX): parse_json(value) for key, value in properties.items() if key.startswith(PREFIX)
        }
        version = entries["format_version"]
    except (KeyError, ValueError) as error:
        raise BundleError(f"{path}: expected a graph from petm export, got another one. Export a bundle.") from error
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        step = "Upgrade petm to read it" if newer else "Export it again"
        raise BundleError(f"{path}: expected graph version {FORMAT_VERSION}, got {version!r:.60}. {step}.")
    return Record(entries, f"{path}: metadata")
