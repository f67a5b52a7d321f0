"""Opening the grader that a command names, a bundle or an exported graph, and the reader of its inputs.

A graph needs no PyTorch, so nothing here imports it before a bundle is opened.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from petm.cli.options import GraderPlace
from petm.cli.process import import_from_here, keep_large_blocks
from petm.data.reader import Reader
from petm.grading.gradable import prepares as prepares
from petm.grading.gradable import processor_of as processor_of
from petm.grading.onnx_grader import OnnxGrader
from petm.models.hf_folder import folder_of
from petm.models.hf_tokenizer import Tokenizer

if TYPE_CHECKING:
    from petm.grading.grader import Grader
    from petm.grading.provenance import InputOrigin

_PROVIDERS = {"auto": (), "cpu": (), "cuda": ("CUDAExecutionProvider",)}


def open_grader(place: GraderPlace, device: str, threads: int | None = None) -> "Grader | OnnxGrader":
    """Returns a grader on a device; an exported graph runs on ``threads`` threads, or on all.

    Raises:
        BundleError: There is no bundle, or it is damaged.
        UsageError: A graph is given another model, or a device that it cannot run on.
    """
    bundle = place.bundle
    if bundle.suffix.lower() == ".onnx":
        if place.reference or place.weights:
            raise click.UsageError(f"--model, --weights: expected neither beside {bundle}, which holds the model.")
        if device not in _PROVIDERS:
            raise click.UsageError(f"--device: expected {', '.join(_PROVIDERS)} for an .onnx file, got {device}.")
        return OnnxGrader(bundle, providers=(*_PROVIDERS[device], "CPUExecutionProvider"), threads=threads)
    return open_bundle(place, device)


def open_bundle(place: GraderPlace, device: str) -> "Grader":
    """Returns the grader of a bundle on a device; raises BundleError where there is none, or it is damaged."""
    from petm.grading.grader import load
    from petm.models.prediction import move

    # Else a file in this folder, with the name of a library, would be code that nobody has named.
    if place.reference or (place.trust_bundle_code and not Path.cwd().is_relative_to(place.bundle.resolve())):
        import_from_here()
    bundled = place.trust_bundle_code
    # Without the bundle's trust, the remote code is that of a folder which the command names.
    remote = place.trust_remote_code and (bundled or place.reference is not None)
    how: Any = {"weights": place.weights, "base": place.base, "trust_bundle_code": bundled, "trust_remote_code": remote}
    grader = load(place.bundle, place.reference, **how)
    move(grader.adapted, device)
    return grader


def open_both(place: GraderPlace, device: str) -> "tuple[Grader | OnnxGrader, Reader]":
    """Returns a grader and the reader of its inputs, in a worker process; raises as `open_grader` and `reader_of`."""
    keep_large_blocks()
    grader = open_grader(place, device)
    return grader, reader_of(inputs_at(grader.origin.inputs, place), place.trust_remote_code)


def inputs_at(inputs: "InputOrigin", place: GraderPlace) -> "InputOrigin":
    """Returns the form of a bundle's inputs, with their processor, if any, in the folder where it is now."""
    folder = place.processor or folder_of(place.reference)
    base = str(place.base) if place.base else inputs.base
    return replace(inputs, processor=str(folder or inputs.processor), base=base) if inputs.processor else inputs


def reader_of(inputs: "InputOrigin", trust_remote_code: bool) -> Reader:
    """Returns the reader of a bundle's inputs; raises as `processor_of`."""
    processor = processor_of(inputs, trust_remote_code)
    if isinstance(processor, Tokenizer):
        return Reader(encoder=processor, length=inputs.length)
    return Reader(**inputs.settings(processor)) if inputs.takes_images else Reader()
