"""Base models: loading networks and weights, Hugging Face folders, prediction."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petm.models.paper import PaperCNN as PaperCNN
    from petm.models.paper import paper_cnn as paper_cnn

BATCH_SIZE = 256
"""Samples in one forward pass where nothing is said: large enough to fill a CPU, small enough for its caches."""


def __getattr__(name: str) -> Any:
    """The paper's network, imported on first use: what reads inputs for an ONNX graph needs no PyTorch."""
    if name not in ("PaperCNN", "paper_cnn"):
        raise AttributeError(f"module 'petm.models' has no attribute {name!r}")
    from petm.models import paper

    return getattr(paper, name)
