"""Both opinions as one ONNX file, run by onnxruntime."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from petm._internal.extras import import_extra
from petm.adapter.lora import AdaptedModel
from petm.grading.grader import Grader
from petm.grading.onnx_export import export_onnx
from petm.selective.thresholds import DISAGREEMENT


def export_graph(adapted: AdaptedModel, path: Path, example: Tensor) -> None:
    """Writes both opinions as an ONNX file.

    Args:
        adapted: A with its adapter, on the CPU.
        path: The ``.onnx`` file.
        example: Some inputs, float32.

    Raises:
        ExportError: The model cannot be traced, or onnxruntime answers otherwise.
        ExtraError: onnx, onnxruntime or onnxscript is not installed.
    """
    export_onnx(Grader(adapted, DISAGREEMENT), path, example)


def run_graph(path: Path) -> Callable[[Tensor], Any]:
    """Returns an ONNX file as a call that takes a batch, on as many threads as PyTorch uses."""
    (onnxruntime,) = import_extra("onnx", "onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())

    def forward(x: Tensor) -> Any:
        return session.run(None, {name: x.numpy()})

    return forward
