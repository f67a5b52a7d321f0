"""What each base model says of its samples, kept in one file, so that rules of choice are studied without a network."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.detection.recipes import RECIPES
from experiments.suite.models import Base
from petm._internal.files import fingerprint, write_atomically
from petm.data.base import Data, Subset
from petm.data.fields import one_tensor
from petm.data.views import MIRROR, view
from petm.evidence.protocol import compute_answers
from petm.models.prediction import predict_logits
from petm.training.recipes import adapt

VIEWS = (MIRROR, "shift 2 0", "shift -2 0", "shift 0 2", "shift 0 -2")
TRAIN = 5000
"""Training samples of which the answers are kept, at most."""
FAST = replace(RECIPES["fast"], title="an adapter, no adversarial copy", epsilon=0.0, mirrored=None)


class Viewed(Subset):
    """The same samples, each image in a view.

    Args:
        data: Images.
        name: A name of `petm.data.views.view`.
    """

    def __init__(self, data: Data, name: str) -> None:
        super().__init__(data, torch.arange(len(data)))
        self.name_of_view, self.view, self.source = name, view(name), f"{data.source}, {name}"

    def inputs(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Returns the changed images at ``indices``."""
        return self.view(one_tensor(self.data.inputs(indices), "to look at in another view"))

    @cached_property
    def content(self) -> str:
        """A SHA-256 over the data set's content and the view."""
        return fingerprint((self.data.content, self.name_of_view))


def write_answers(base: Base, folder: Path, *, seed: int = 0, adapter_samples: int | None = None) -> Path:
    """Writes ``NAME.safetensors`` and returns its path.

    ``logits (N, K)``, ``features (N, D)``, ``labels (N,)``, ``adapter (N, K)`` and, of images, ``views (V, N, K)`` in
    the order of `VIEWS`, all of the half to choose by; and logits, features and labels of training samples with the
    suffix ``_train``. What the file holds already stays.

    Args:
        base: The base model and its data.
        folder: Where to write.
        seed: Seed of the adapter.
        adapter_samples: Training samples that the adapter learns from, at most; 0 leaves the adapter out.
    """
    data, model, path = base.choosing, base.model, folder / f"{base.name}.safetensors"
    order = torch.randperm(len(base.train), generator=torch.Generator().manual_seed(seed))
    held: dict[str, Tensor] = load_file(path) if path.is_file() else {}
    if "logits" not in held:
        some = base.train.subset(order[:TRAIN])
        for suffix, part in (("", data), ("_train", some)):
            answers = compute_answers(model, part)
            held |= {f"logits{suffix}": answers.base, f"features{suffix}": answers.features}
            held[f"labels{suffix}"] = part.labels
        if isinstance(data.inputs([0]), Tensor):
            held["views"] = torch.stack([predict_logits(model, Viewed(data, name), title=name) for name in VIEWS])
    if "adapter" not in held and adapter_samples != 0:
        adapted = adapt(model, base.train.subset(order[:adapter_samples]), recipe=FAST, seed=seed, device="cpu")
        held["adapter"] = predict_logits(adapted, data, title="adapter")
        adapted.detach()
    written = {name: tensor.contiguous().clone() for name, tensor in held.items()}
    write_atomically(path, lambda temporary: save_file(written, temporary, {"views": ", ".join(VIEWS)}))
    return path
