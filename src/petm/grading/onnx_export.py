"""Exporting a grader as one ONNX graph, or two for a cascade, after comparing their answers with the grader's."""

import copy
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from petm._internal.extras import import_extra
from petm._internal.files import check_new_file, plain, sha256_of_file, write_atomically, written_alone
from petm.adapter.model import AdaptedModel
from petm.adapter.one_pass import Answers, answers_of, base_of, opinions_of, unasked
from petm.data.fields import one_tensor
from petm.data.images import ImageForm
from petm.errors import ArgumentError, ExportError, PetmError, RunError
from petm.grading.grader import Grader
from petm.grading.grades import as_inputs
from petm.grading.onnx_grader import ASKED, FEATURES, FORMAT_VERSION, PREFIX, SECOND, Answer, OnnxGrader
from petm.grading.provenance import InputOrigin, Origin, library_versions, paths_from
from petm.models.hf_processors import ImageProcessor, PlainForm, plain_form
from petm.models.loading import weights_fingerprint
from petm.models.prediction import device_of
from petm.models.scores import maximum_softmax

TOLERANCE = 1e-5
"""Largest allowed difference between logits of graph and grader, times the largest logit if that is above 1."""
ONE_FILE = 1_400_000_000
"""Bytes of weights above which they go into a file of their own; ONNX allows less than 2 GiB in one."""
_VERIFIED = (1, 3, 8)
# Faults are raised in one line; these loggers print hundreds, or name packages that petm does not use.
_LOUD = ("torch.onnx", "torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes", "torch.export")


@dataclass(frozen=True)
class Exported:
    """The files of an export.

    Attributes:
        files: The graph, the second graph of a cascade, and their weights if they are too large for one file.
        size: Bytes of all files.
        difference: Largest difference between logits of graph and grader on the batches compared.
    """

    files: tuple[Path, ...]
    size: int
    difference: float


def export_onnx(
    grader: Grader,
    path: str | Path,
    example: Tensor | NDArray[Any] | None = None,
    *,
    processor: ImageProcessor | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes a grader as an ONNX graph, from the input to the grade, with a batch of any size.

    Input ``x`` float32 ``(N, C, H, W)``; outputs ``label`` int64 ``(N,)``, ``suspicion`` and ``probability_of_error``
    float64 ``(N,)``, ``trusted`` bool ``(N,)``, and the logits ``base`` and ``second``, float32 ``(N, K)``. The
    metadata, under keys that begin with ``petm.``, hold score, threshold, class names, figures of the fit, what was
    compared, what the grader brings, and the preprocessing of images. A file appears only after onnxruntime has
    answered as the grader does on batches of 1, 3 and 8 random inputs and on the example.

    With a cascade the graph computes the base model alone. Another output, ``asked`` bool ``(N,)``, says where a second
    opinion is needed; there the prediction is suspect for the time being. ``NAME.second.onnx`` takes these samples as
    ``x`` with their ``base`` (and ``features``, if the first graph has that output), and returns their suspicion,
    probability of error, trusted and second. The first one's metadata name the second and its SHA-256.

    Args:
        grader: A fitted grader whose model is on the CPU.
        path: The ``.onnx`` file to write, whole or not at all. Weights above 1.4 GB go into ``<path>.data``; all files
            must stay together.
        example: Inputs, float32 or uint8 ``(n, C, H, W)``; needed if neither the grader's origin nor a processor says
            their size and channels.
        processor: The image processor, if the grader's origin names one. Its plain form
            (`petm.models.hf_processors.plain_form`) goes into the metadata, else a note that it is needed.
        overwrite: Whether to replace an existing file.

    Raises:
        ArgumentError: The model is on another device, or an example is needed.
        ExportError: The model cannot be traced, or the graph's answers differ.
        ExtraError: onnx, onnxruntime or onnxscript is not installed.
        ModelError: The model cannot take the inputs.
        RunError: ``path`` exists or does not end in ``.onnx``, or the disk is full.
    """
    path = Path(path)
    check_new_file(path, ".onnx", overwrite=overwrite)
    later = path.with_name(f"{path.stem}.second.onnx") if grader.adapted.cascade is not None else None
    if later is not None:
        check_new_file(later, ".onnx", overwrite=overwrite)
    import_extra("onnx", "onnx", "onnxscript", "onnxruntime")
    if (device := device_of(grader.adapted)).type != "cpu":
        raise ArgumentError(f"grader: expected its model on the CPU, got {device}. Call grader.adapted.to('cpu').")
    x = _example(grader, example, processor)
    programs = _traced(grader, x)
    # Inputs are read by the base model's processor, or else in the size that the graph was traced with.
    inputs, traced = grader.origin.inputs, InputOrigin.of(x.shape)
    inputs = inputs if inputs.processor else replace(inputs, size=traced.size, channels=traced.channels)
    weights = sum(tensor.nbytes for tensor in (*grader.adapted.parameters(), *grader.adapted.buffers()))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            draft, cascade = Path(folder) / path.name, None
            if later is not None:
                second = draft.with_name(later.name)
                programs[1].save(second, external_data=weights > ONE_FILE)
                named = {"second": second.name, "sha256": sha256_of_file(second)}
                cascade = plain(grader.adapted.cascade) | named
            programs[0].model.metadata_props.update(_metadata(grader, inputs, processor, cascade, path))
            programs[0].save(draft, external_data=weights > ONE_FILE)
            return _put_in_place(draft, path, _compare(grader, draft, x))
    except OSError as error:
        raise RunError(f"{path}: could not be written ({error.strerror}). Free space or change the folder.") from error


class _Graded(nn.Module):
    """From answers to outputs."""

    thresholds: Tensor

    def __init__(self, grader: Grader) -> None:
        super().__init__()
        self.adapted, self.suspicion, self.probability = grader.adapted, grader.suspicion, grader.probability
        # As float32, the paper's threshold, the least float64 above 0, would become 0.
        self.register_buffer("thresholds", torch.tensor(grader.threshold.values, dtype=torch.float64))

    def outputs(self, answers: Answers, *, complete: bool = True) -> dict[str, Tensor]:
        """Returns the tensors of `Answer` by name, where answers may be left out unless they are complete."""
        label, suspicion = answers.predicted, self.suspicion.of(answers)
        suspicion = suspicion if complete else answers.raised(suspicion, self.thresholds.amax(0))
        error = self.probability.as_tensor(suspicion) if self.probability else suspicion * float("nan")
        trusted = suspicion < (self.thresholds[label] if len(self.thresholds) > 1 else self.thresholds)
        found = (label, suspicion, error, trusted, answers.base, answers.second)
        return dict(zip(Answer._fields, found, strict=True))


class _Graph(_Graded):
    """The function that is exported: with a cascade, all that needs no second opinion."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.adapted.cascade is None:
            return tuple(self.outputs(answers_of(self.adapted, x).on_cpu()).values())
        answers = unasked(self.adapted, x).on_cpu()
        features = (answers.features,) if self.suspicion.needs_features else ()
        return *self.outputs(answers, complete=False).values(), answers.left_out, *features


class _Second(_Graded):
    """What a cascade computes for the samples for which it asks."""

    def forward(self, x: Tensor, base: Tensor, features: Tensor | None = None) -> tuple[Tensor, ...]:
        opinions = opinions_of(self.adapted, x).float()
        found = self.outputs(Answers(base, opinions, self.adapted.members, features))
        return tuple(found[name] for name in SECOND)


def _example(grader: Grader, example: Tensor | NDArray[Any] | None, processor: ImageProcessor | None) -> Tensor:
    """At least three inputs, as torch.export takes a batch of one for a constant size."""
    if example is not None:
        data = as_inputs(example)
        if not len(data):
            raise ArgumentError(f"example: expected at least one input, got shape {tuple(example.shape)}.")
        return one_tensor(data.inputs(torch.arange(max(3, min(len(data), 8))) % len(data)), "to export")
    form = grader.origin.inputs
    if form.text_column is not None:
        raise ArgumentError("grader: expected one whose inputs are one tensor, got one of texts. Keep to the bundle.")
    if processor is not None:
        return _random(3, processor.shape)
    if form.size is None or form.channels is None:
        raise ArgumentError(
            "example: expected inputs, float32 (n, C, H, W), as the grader names no size, got none. Pass some."
        )
    return _random(3, (form.channels, *form.size))


def _random(count: int, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(count))


def _traced(grader: Grader, x: Tensor) -> list[Any]:
    """The graph as torch's ``ONNXProgram``, and behind it the second graph of a cascade."""
    answers_of(grader.adapted, x)  # raises ModelError on unsuitable inputs, and finds the split point before tracing
    if grader.adapted.cascade is None:
        return [_trace(_Graph(grader), {"x": x}, Answer._fields)]
    answers, given = base_of(grader.adapted, x), {}
    if grader.suspicion.needs_features:
        given[FEATURES] = answers.features
    first = _trace(_Graph(grader), {"x": x}, (*Answer._fields, ASKED, *given))
    return [first, _trace(_Second(grader), {"x": x, "base": answers.base, **given}, SECOND)]


def _trace(graph: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str]) -> Any:
    """A graph as torch's ``ONNXProgram``, without the paths of source files that torch adds."""
    batch = torch.export.Dim("N", min=1)
    how: Any = {"dynamic_shapes": {name: {0: batch} for name in inputs}, "strict": False}
    with _quiet(), torch.no_grad():
        try:
            traced = torch.export.export(graph.eval(), tuple(inputs.values()), **how)
            program: Any = torch.onnx.export(
                traced, input_names=list(inputs), output_names=outputs, dynamo=True, verbose=False
            )
        except Exception as error:  # torch raises the model's exceptions, and many of its own
            raise ExportError(
                f"model: expected one that torch.export can trace with a batch of any size, got {_reason(error)}. "
                f"Replace steps that depend on values, and len(x) by x.shape[0]; or use the bundle."
            ) from error
    for value in (*program.model.graph.inputs, *program.model.graph.outputs):
        value.shape[0] = batch.__name__  # torch names the dimension by a number
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            # torch.onnx uses a class that torch itself has deprecated.
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """The first cause in one line."""
    while isinstance(error, PetmError) and error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__} ({lines[0].rstrip('.:')})" if lines else type(error).__name__


def _preprocessing(inputs: InputOrigin, processor: ImageProcessor | None) -> dict[str, Any] | None:
    """How an image becomes an input; None if inputs are not images."""
    if inputs.processor is not None:
        form = plain_form(processor) if processor else None
        return {"convert_first": True, **asdict(form)} if form else {"needs_processor": inputs.processor}
    if inputs.size is None or inputs.channels is None or not inputs.takes_images:
        return None
    mean, std = inputs.mean or (0.0,) * inputs.channels, inputs.std or (1.0,) * inputs.channels
    plain_one = PlainForm(inputs.size, inputs.channels, "bilinear", 1 / 255, mean, std)
    return {"convert_first": False, **asdict(plain_one), "resize": inputs.resize or "squeeze"}


def _metadata(
    grader: Grader, inputs: InputOrigin, processor: ImageProcessor | None, cascade: dict[str, Any] | None, path: Path
) -> dict[str, str]:
    entries: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "version": library_versions()["petm"],
        "score": grader.score,
        "threshold": grader.threshold.as_json(),
        "cascade": cascade,
        "classes": grader.origin.model.classes,
        "inputs": asdict(inputs),
        "paths": paths_from(Origin(inputs=inputs), path.parent),
        "preprocessing": _preprocessing(inputs, processor),
        "value_range": _value_range(inputs, processor),
        "fingerprint": weights_fingerprint(grader.adapted.base),
        "measured": plain(grader.measured),
        "second_opinion": bool(grader.adapted.members),
        "choice": plain(grader.choice),
        "outcome": plain(grader.outcome),
        "sets": plain(grader.sets),
        "second_share": grader.second_share,
    }
    return {PREFIX + name: json.dumps(value, ensure_ascii=False, allow_nan=False) for name, value in entries.items()}


def _value_range(inputs: InputOrigin, processor: ImageProcessor | None) -> tuple[float, float]:
    if processor is None and not inputs.takes_images and inputs.profile is not None:
        return inputs.profile.low, inputs.profile.high
    return ImageForm((1, 1), 1, True, True, processor, mean=inputs.mean, std=inputs.std).value_range


def _compare(grader: Grader, draft: Path, x: Tensor) -> float:
    """The largest difference between logits of graph and grader."""
    batches = [_random(size, tuple(x.shape[1:])) for size in _VERIFIED] + [x]
    try:
        graph = OnnxGrader(draft)
        found = [_answered(graph, batch.numpy()) for batch in batches]
    except Exception as error:
        raise ExportError(f"model: expected a graph that onnxruntime can run, got {_reason(error)}.") from error
    expected = [_expected(grader.adapted, batch) for batch in batches]
    pairs = [pair for each in zip(expected, found, strict=True) for pair in zip(*each, strict=True)]
    return max(_difference(grader, answers, *answer) for answers, answer in pairs)


def _answered(graph: OnnxGrader, x: NDArray[np.float32]) -> list[tuple[Answer, NDArray[np.bool_] | None]]:
    """A graph's answers to all samples; with a cascade first those before any second opinion, and where it asks."""
    answer, more = graph.first(x)
    if not more:
        return [(answer, None)]
    before = copy.deepcopy(answer)
    graph.second(x, answer, more, np.arange(len(x)))
    return [(before, more[ASKED]), (answer, None)]


def _expected(adapted: AdaptedModel, x: Tensor) -> list[Answers]:
    if adapted.cascade is None:
        return [answers_of(adapted, x).on_cpu()]
    before = unasked(adapted, x).on_cpu()
    none = torch.zeros_like(before.left_out)
    return [before, replace(before, opinions=opinions_of(adapted, x).float(), left_out=none)]


def _difference(grader: Grader, answers: Answers, answer: Answer, asked: NDArray[np.bool_] | None) -> float:
    base, second = answers.base, answers.second
    found = (torch.from_numpy(answer.base), torch.from_numpy(answer.second))
    differences = [float((one - other).abs().max()) for one, other in zip(found, (base, second), strict=True)]
    allowed = TOLERANCE * max(1.0, float(base.abs().max()), float(second.abs().max()))
    # A label may differ only where two logits are equal up to the tolerance.
    chosen = base.gather(1, torch.from_numpy(answer.label)[:, None])[:, 0]
    grades = answer.trusted == grader.threshold.trusts(answer.suspicion, answer.label)
    near = allowed * max(1.0, float(grader.suspicion.of(answers).abs().max()))
    alike = True
    if asked is not None and grader.adapted.cascade is not None:
        cascade, softmax = grader.adapted.cascade, maximum_softmax(base)
        edges = torch.stack([(softmax - edge).abs() for edge in (cascade.low, cascade.high)]).amin(0)
        told = torch.from_numpy(asked)
        alike = bool(((told == answers.left_out) | (edges <= allowed)).all())
        answers = replace(answers, left_out=told)
    suspicion = grader.judge(answers).suspicion
    if not (
        max(differences) <= allowed
        and alike
        and bool((chosen >= base.amax(1) - 2 * allowed).all())
        and np.allclose(answer.suspicion, suspicion, rtol=0, atol=near)
        and bool(grades.all())
    ):
        raise ExportError(
            f"model: expected a graph with the grader's answers up to {allowed:.1e}, got a difference of "
            f"{max(differences):.1e} in the logits for {len(base)} inputs. Check that equal inputs give equal answers."
        )
    return max(differences)


def _put_in_place(draft: Path, path: Path, difference: float) -> Exported:
    # The graph last, as it needs the others.
    drafts = sorted(draft.parent.iterdir(), key=lambda file: (file == draft, file.name))
    with written_alone(path):
        if len(drafts) > 1:
            path.unlink(missing_ok=True)  # a crash must not leave a graph with another one's parts
        for file in drafts:
            write_atomically(path.with_name(file.name), partial(os.replace, file))
        files = tuple(path.with_name(file.name) for file in reversed(drafts))
        return Exported(files, sum(file.stat().st_size for file in files), difference)
