"""Opening the grader that a command names, a bundle or an exported graph, and what reads its inputs.

A graph needs no PyTorch, so nothing here imports it before a bundle is opened.
"""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from petm.cli.process import import_from_here, keep_large_blocks
from petm.data.reader import Reader
from petm.errors import BundleError, ModelError
from petm.grading.onnx_grader import OnnxGrader
from petm.models.hf_folder import folder_of
from petm.models.hf_processors import ImageProcessor, load_processor
from petm.models.hf_tokenizer import Tokenizer

if TYPE_CHECKING:
    from petm.grading.grader import Grader
    from petm.grading.provenance import InputOrigin


def open_grader(
    bundle: Path,
    device: str,
    reference: str | None,
    weights: Path | None,
    *,
    trust_remote_code: bool,
    threads: int | None = None,
) -> "Grader | OnnxGrader":
    """Returns the grader at ``bundle``, on a device; a graph runs on so many threads, or on all.

    Raises:
        BundleError: There is nothing, or it is damaged.
        UsageError: A graph is to have another model, or to run where it cannot.
    """
    if bundle.suffix == ".onnx":
        if reference or weights:
            raise click.UsageError(f"--model, --weights: expected neither beside {bundle}, which holds the model.")
        return _open_graph(bundle, device, threads)
    if not bundle.exists():
        raise BundleError(f"{bundle}: expected a petm bundle or an .onnx file, got nothing there. Check the path.")
    from petm.grading.grader import load
    from petm.models.loading import load_model
    from petm.models.prediction import choose_device

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
) -> "tuple[Grader | OnnxGrader, Reader]":
    """Returns the grader at ``bundle``, and what reads its inputs one by one.

    Raises:
        ModelError: Their tokenizer or image processor cannot be read, or is not the one of the fit.
        UsageError: As `open_grader`.
    """
    keep_large_blocks()  # of a worker, where this is called
    grader = open_grader(bundle, device, reference, weights, trust_remote_code=trust_remote_code)
    read_as = inputs_at(grader.origin.inputs, reference, processor)
    return grader, reader_of(read_as, trust_remote_code=trust_remote_code)


def _open_graph(graph: Path, device: str, threads: int | None) -> OnnxGrader:
    accelerators = {"auto": (), "cpu": (), "cuda": ("CUDAExecutionProvider",)}
    if device not in accelerators:
        raise click.UsageError(f"--device: expected {', '.join(accelerators)} for an .onnx file, got {device}.")
    return OnnxGrader(graph, providers=(*accelerators[device], "CPUExecutionProvider"), threads=threads)


def inputs_at(inputs: "InputOrigin", reference: str | None, processor: Path | None = None) -> "InputOrigin":
    """Returns how a bundle's inputs are read when their processor is now in ``processor``, or in its folder, if any."""
    folder = processor or folder_of(reference)
    return replace(inputs, processor=str(folder)) if folder and inputs.processor else inputs


def image_processor_of(inputs: "InputOrigin", *, trust_remote_code: bool = False) -> ImageProcessor | None:
    """Returns the image processor that prepares a bundle's inputs, or none where it has none or they are texts.

    Raises:
        ModelError: It cannot be read, or is not the one that the grader was fitted with.
    """
    processor = None if inputs.text_column is not None else processor_of(inputs, trust_remote_code)
    return processor if isinstance(processor, ImageProcessor) else None


def processor_of(inputs: "InputOrigin", trust_remote_code: bool) -> Tokenizer | ImageProcessor | None:
    """Returns what prepares inputs, or none where nothing does.

    Raises:
        ModelError: It cannot be read, or is not the one that the grader was fitted with.
    """
    processor = prepares(inputs.processor, trust_remote_code) if inputs.processor else None
    if processor is not None and processor.fingerprint != inputs.fingerprint:
        raise ModelError(
            f"processor: expected the one that the grader was fitted with, got another one in {inputs.processor}. "
            f"Name the folder of the former (--processor), or fit anew."
        )
    return processor


def reader_of(inputs: "InputOrigin", *, trust_remote_code: bool = False) -> Reader:
    """Returns what reads a bundle's inputs one by one.

    Raises:
        ModelError: Their tokenizer or image processor cannot be read, or is not the one of the fit.
    """
    processor = processor_of(inputs, trust_remote_code)
    if isinstance(processor, Tokenizer):
        return Reader(encoder=processor, length=inputs.length)
    channels: Any = inputs.channels
    return Reader(size=inputs.size, channels=channels, processor=processor)


@lru_cache(maxsize=1)
def prepares(folder: str, trust_remote_code: bool) -> Tokenizer | ImageProcessor:
    """Returns what the folder has to prepare inputs, read once for all paths of a command."""
    return load_processor(folder, trust_remote_code=trust_remote_code)
