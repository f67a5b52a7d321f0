"""Opening the grader that a command names: a bundle, or the graph that petm export makes of one."""

from pathlib import Path

import click

from petm.cli.inputs import inputs_at, reader_of
from petm.cli.process import import_from_here, set_up_process
from petm.data.source_reading import Reader
from petm.grading.grader import Grader, load
from petm.grading.onnx_grader import OnnxGrader
from petm.models.loading import load_model
from petm.models.prediction import choose_device


def open_grader(
    bundle: Path, device: str, reference: str | None, weights: Path | None, *, trust_remote_code: bool
) -> Grader | OnnxGrader:
    """Returns the grader at ``bundle``, on a device.

    Raises:
        UsageError: A graph is to have another model, or to run where it cannot.
    """
    if bundle.suffix == ".onnx":
        if reference or weights:
            raise click.UsageError(f"--model, --weights: expected neither beside {bundle}, which holds A.")
        return _open_graph(bundle, device)
    import_from_here()
    model = load_model(reference, weights, trust_remote_code=trust_remote_code) if reference else None
    grader = load(bundle, model, weights=weights, trust_remote_code=trust_remote_code)
    grader.adapted.to(choose_device(device))
    return grader


def open_both(
    bundle: Path,
    device: str,
    reference: str | None,
    weights: Path | None,
    processor: Path | None,
    *,
    trust_remote_code: bool,
) -> tuple[Grader | OnnxGrader, Reader]:
    """Returns the grader at ``bundle``, and what reads its inputs one by one.

    Raises:
        ModelError: Their tokenizer or image processor cannot be read, or is not the one of the fit.
        UsageError: As `open_grader`.
    """
    set_up_process()  # of a worker, where this is called
    grader = open_grader(bundle, device, reference, weights, trust_remote_code=trust_remote_code)
    read_as = inputs_at(grader.origin.inputs, reference, processor)
    return grader, reader_of(read_as, trust_remote_code=trust_remote_code)


def _open_graph(graph: Path, device: str) -> OnnxGrader:
    accelerators = {"auto": (), "cpu": (), "cuda": ("CUDAExecutionProvider",)}
    if device not in accelerators:
        raise click.UsageError(f"--device: expected {', '.join(accelerators)} for an .onnx file, got {device}.")
    return OnnxGrader(graph, providers=(*accelerators[device], "CPUExecutionProvider"))
