"""A grader that runs an ONNX graph by onnxruntime, without the network's code and without PyTorch."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from petm._internal.extras import import_extra
from petm._internal.files import sha256_of_file
from petm._internal.progress import track
from petm._internal.records import Json, Record, parse_json
from petm.adapter.cascade import Allowance, Cascade
from petm.errors import ArgumentError, BundleError, DataError, ModelError
from petm.grading.gradable import Batches, Gradable, graded
from petm.grading.grades import NO_SECOND, Batch, Grades, check_inputs
from petm.grading.input_profile import InputCheck
from petm.grading.onnx_file import check_graph
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin, found_from
from petm.models import BATCH_SIZE
from petm.selective.choice import Choice
from petm.selective.outcome import Outcome
from petm.selective.sets import class_probabilities, sets_of_grades
from petm.selective.thresholds import Threshold

FORMAT_VERSION = 4
PREFIX = "petm."
"""Prefix of the keys in a graph's metadata; the values are JSON."""


class Answer(NamedTuple):
    """The outputs of the graph, in its order and under its names: four of shape ``(N,)``, and logits ``(N, K)``."""

    label: NDArray[np.int64]
    suspicion: NDArray[np.float64]
    probability_of_error: NDArray[np.float64]
    trusted: NDArray[np.bool_]
    base: NDArray[np.float32]
    second: NDArray[np.float32]


ASKED, FEATURES = "asked", "features"
"""Outputs of a graph with a cascade besides those of `Answer`: where a second opinion is asked for; what it needs."""
SECOND = ("suspicion", "probability_of_error", "trusted", "second")
"""The outputs of a cascade's second graph, in place of those of the first, for the samples that it is given."""


class OnnxGrader:
    """Grades predictions of the base model as `Grader` does, from what `export_onnx` wrote.

    With a cascade a second graph, ``NAME.second.onnx`` beside the first, runs on the samples for which it is asked.

    Several threads may use one grader.

    Args:
        path: The ``.onnx`` file.
        providers: Names of onnxruntime's execution providers, in order of preference.
        threads: CPU threads of one pass; absent means ``OMP_NUM_THREADS``, or else one for each core.

    Attributes:
        path: The file.
        files: It, and the second graph of a cascade.
        threshold: The threshold on suspicion, with its guarantee.
        score: The name of what suspicion is computed from, as in `petm.evidence.suspicion`.
        origin: Class names, and how images are read.
        measured: Figures of the fit, by name.
        has_second: Whether there is a second opinion; without one, the output ``second`` is ``base``.
        choice: What the suspicion was compared with, as in `petm.grading.grader.Grader`.
        outcome: What it brings beside the softmax, as there.
        sets: The candidates of a prediction, as there.
        shape: Shape of one input, ``(C, H, W)`` for images.
        allowance: The second opinions that batches outside a run may still compute.

    Raises:
        ArgumentError: A provider is not in this onnxruntime.
        BundleError: The file is absent, damaged, too new, or not from `petm.grading.onnx_export.export_onnx`.
        ExtraError: onnxruntime is not installed.
    """

    def __init__(
        self, path: str | Path, *, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int | None = None
    ) -> None:
        self.path = Path(path)
        self.files: tuple[Path, ...] = (self.path,)
        self._session = _open_session(self.path, providers, threads)
        metadata = _read_metadata(self.path, self._session)
        self._cascade, self._second = self._open_second(metadata, providers, threads)
        self.threshold, self.score = Threshold.from_json(metadata.record("threshold")), metadata.text("score")
        inputs = InputOrigin.from_json(metadata.record("inputs"))
        paths = metadata.record("paths") if metadata.has("paths") else Record({}, metadata.place)
        moved = {name: paths.text(name) for name in paths.content}
        self.origin = found_from(
            Origin(ModelOrigin(classes=metadata.texts("classes")), inputs), self.path.parent, moved
        )
        self.measured: Mapping[str, Json] = metadata.free("measured")
        self.has_second = metadata.flag("second_opinion")
        self.choice = Choice.from_json(metadata.record("choice")) if metadata.has("choice") else None
        self.outcome = Outcome.from_json(metadata.record("outcome")) if metadata.has("outcome") else None
        self.sets = sets_of_grades(metadata.record("sets")) if metadata.has("sets") else None
        self._second_share = metadata.number("second_share", least=0, most=1) if self.sets else 0.0
        self.shape = _shape_of(self.path, self._session, asks=self._cascade is not None)
        self._check, self.allowance = InputCheck(inputs.profile), self.allow()

    def _open_second(
        self, metadata: Record, providers: Sequence[str], threads: int | None
    ) -> tuple[Cascade | None, Any]:
        """The cascade and the session of its second graph, which must be the one that was exported with the first."""
        if not metadata.has("cascade"):
            return None, None
        record = metadata.record("cascade")
        name, told = record.text("second"), record.text("sha256")
        path = self.path.with_name(name) if name and Path(name).name == name else self.path
        try:
            found = sha256_of_file(path) if path.is_file() else ""
        except OSError:
            found = ""
        if path == self.path or found != told:
            raise BundleError(
                f"{self.path}: expected its second graph {name[:80]!r} beside it, as it was exported, got none or "
                f"another one. Copy both files, or export the bundle again."
            )
        session = _open_session(path, providers, threads)
        inputs, given = ([each.name for each in side] for side in (session.get_inputs(), self._session.get_outputs()))
        if inputs != ["x", "base", *(each for each in given if each == FEATURES)] or [
            each.name for each in session.get_outputs()
        ] != list(SECOND):
            raise BundleError(f"{path}: expected a second graph from petm export, got another. Export a bundle.")
        self.files += (path,)
        return Cascade.from_json(record), session

    def __repr__(self) -> str:
        return f"OnnxGrader({str(self.path)!r})"

    def grade(self, x: Any, *, batch_size: int = BATCH_SIZE) -> Grades:
        """Returns labels, suspicion and grades.

        Args:
            x: float32 ``(N, C, H, W)`` (uint8 is divided by 255) as a NumPy array or tensor, or anything else that
                `petm.grading.grader.Grader.grade` takes.
            batch_size: Samples in one pass.

        Raises:
            ArgumentError: ``x`` is none of these.
            DataError: There is no sample, one holds NaN or infinity, or they cannot be like those of the fit.
            ModelError: The graph cannot take the inputs.
        """
        data = Gradable(self.origin.inputs).opened(x, batch_size)
        if isinstance(data, Batches):
            allowance = self.allow()
            grades = graded(data, self.grade_batch, allowance)
            allowance.tell()
            return grades
        if isinstance(data, np.ndarray):
            _as_array(data[:0])  # which checks the dtype
        check_inputs(data, self.origin.inputs)
        source, total = getattr(data, "source", "inputs"), len(data)
        if not total:
            raise DataError(f"{source}: expected at least one sample, got none.")
        parts, allowance = [], self.allow()
        with track("grade", total) as progress:
            for start in range(0, total, batch_size):
                stop = min(start + batch_size, total)
                inputs = _as_array(
                    data[start:stop] if isinstance(data, np.ndarray) else data.inputs(range(start, stop))
                )
                if not np.isfinite(inputs).all():
                    raise DataError(f"{source}, samples from {start}: expected finite values, got NaN or infinity.")
                parts.append(self.run(inputs, allowance=allowance))
                progress.advance(len(inputs))
        allowance.tell()
        return self.judge(Answer(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True))))

    def allow(self, state: int | None = None) -> Allowance:
        """Returns the second opinions that a run over many batches may compute, from a state of its on."""
        return Allowance(self._cascade, state)

    def grade_batch(self, x: Batch, *, allowance: Allowance | None = None) -> Grades:
        """Returns the grades of one batch ``(N, C, H, W)``.

        Args:
            x: The inputs.
            allowance: That of a run (`allow`), which warns at its end; absent takes the one for all other batches.

        Raises:
            ArgumentError: The inputs are neither an array nor a dense tensor.
            DataError: The inputs are not one tensor, or cannot be like those of the fit.
            ModelError: The graph cannot take the inputs.
        """
        values = _as_array(x)
        self._check(values)
        return self.judge(self.run(values, allowance=allowance))

    def run(self, x: NDArray[np.float32], *, allowance: Allowance | None = None) -> Answer:
        """Returns the answers to one batch, float32 ``(N, C, H, W)``: the fastest call for single samples.

        Args:
            x: The inputs.
            allowance: As in `grade_batch`.

        Raises:
            ModelError: The graph cannot take the inputs.
        """
        answer, more = self.first(x)
        if self._cascade is not None:
            granted = np.flatnonzero((allowance or self.allowance).grants(more[ASKED]))
            if len(granted):
                self.second(x, answer, more, granted)
            if allowance is None:
                self.allowance.tell()
        return answer

    def first(self, x: NDArray[np.float32]) -> tuple[Answer, dict[str, NDArray[Any]]]:
        """Returns the first graph's outputs, and by name those besides `Answer`; otherwise as `run`.

        Where it asks for a second opinion, its answers are those for a prediction whose second opinion is left out.
        """
        if x.dtype != np.float32 or x.shape[1:] != self.shape:
            wanted = ", ".join(("N", *map(str, self.shape)))
            raise ModelError(
                f"model: cannot take inputs of shape {x.shape} and dtype {x.dtype}, {self.path} was exported for "
                f"float32 of shape ({wanted}). Check size and channels of the data against it."
            )
        found = self._run(self._session, {"x": x})
        count = len(Answer._fields)
        names = [each.name for each in self._session.get_outputs()][count:]
        return Answer(*found[:count]), dict(zip(names, found[count:], strict=True))

    def second(
        self, x: NDArray[np.float32], answer: Answer, more: Mapping[str, NDArray[Any]], rows: NDArray[np.int64]
    ) -> None:
        """Writes the second graph's outputs for some samples into what `first` returned for all."""
        held = {"x": x, "base": answer.base, **more}
        given = {each.name: held[each.name][rows] for each in self._second.get_inputs()}
        for name, values in zip(SECOND, self._run(self._second, given), strict=True):
            getattr(answer, name)[rows] = values

    def judge(self, answer: Answer) -> Grades:
        """Returns the grades of samples from the answers to them."""
        label, suspicion, error, trusted, base, second = answer
        asked = (second != base).any(1) if self._cascade else self.has_second
        seconds = np.where(asked, second.argmax(1), NO_SECOND)
        candidates = None
        if self.sets is not None:
            believed = class_probabilities(base, second, self._second_share)
            candidates = self.sets.candidates(believed, label, ~trusted)
        return Grades(label, seconds, suspicion, error, trusted, self.origin.model.classes, candidates)

    def _run(self, session: Any, given: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        try:
            return session.run(None, given)  # type: ignore[no-any-return]
        except Exception as error:  # onnxruntime has one class for each kind of fault
            raise ModelError(
                f"model: expected a graph that can run, got {str(error).splitlines()[0]:.300} in {self.path}. "
                f"Export it again."
            ) from error


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


def _shape_of(path: Path, session: Any, *, asks: bool) -> tuple[int, ...]:
    """The shape of one input of a graph from petm export, which asks for second opinions or does not."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = tuple(inputs[0].shape[1:]) if [each.name for each in inputs] == ["x"] else ()
    fixed = [isinstance(side, int) and side > 0 for side in shape]
    names, known = [each.name for each in outputs], [*Answer._fields, *([ASKED] if asks else [])]
    if names not in (known, [*known, FEATURES] if asks else known) or not fixed or not all(fixed):
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
