"""A grader as the service uses it: one batch at a time, a PyTorch bundle or an ONNX graph."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from petm.adapter import AdaptedModel
from petm.allocator import keep_large_blocks
from petm.dual import dual_logits
from petm.errors import ModelError
from petm.fields import Inputs, one_tensor
from petm.grader import Grader
from petm.grades import Grades
from petm.inference import device_of
from petm.onnx_grader import OnnxGrader
from petm.service.reading import Reader


class Verdict(NamedTuple):
    """What the grader says of one input."""

    label: int
    """A's prediction."""
    second: int
    """The second opinion's."""
    probability: float | None
    """Of an error; None where none was calibrated."""
    suspicion: float
    """As in `petm.grades.Grades`."""
    trusted: bool
    """The grade."""
    base: NDArray[np.float32]
    """A's logits, ``(K,)``."""
    opinion: NDArray[np.float32]
    """The second opinion's logits, ``(K,)``."""


class Engine:
    """Grades batches, in one thread at a time.

    Args:
        grader: From `petm.grader.load`, or an ONNX graph.
        reader: Makes its inputs.

    Attributes:
        grader: The grader.
        reader: The reader.
        classes: ``K`` names; numbers where the grader has none.

    Raises:
        ModelError: The grader cannot take what the reader makes.
    """

    def __init__(self, grader: Grader | OnnxGrader, reader: Reader) -> None:
        self.grader, self.reader = grader, reader
        keep_large_blocks()
        if isinstance(grader, Grader):
            _lay_out(grader.adapted, reader.collate([reader.blank()]))
        # The first passes find where the opinions part and fill the allocator; nobody should have to wait for that.
        count = len(self.judge([reader.blank()])[0].base)
        names = grader.origin.model.classes
        self.classes = names if len(names) == count else tuple(map(str, range(count)))

    @property
    def has_dial(self) -> bool:
        """Whether the strength of the adapter can be set: not in a graph."""
        return isinstance(self.grader, Grader)

    def judge(self, samples: Sequence[Any]) -> list[Verdict]:
        """Returns what the grader says of at least one sample, in their order.

        Raises:
            ModelError: The model cannot take them.
        """
        grades, base, opinion = self._pass(samples)
        known = [None if math.isnan(value) else value for value in grades.probability.tolist()]
        arrays = (grades.labels.tolist(), grades.second.tolist(), known, grades.suspicion.tolist())
        return [Verdict(*row) for row in zip(*arrays, grades.trusted.tolist(), base, opinion, strict=True)]

    def turn(self, sample: Any, alphas: Sequence[float]) -> list[list[float]]:
        """Returns the probabilities of the ``K`` classes at each strength of the adapter.

        Args:
            sample: One.
            alphas: 0 is A, 1 the second opinion.

        Raises:
            ModelError: The grader has no such dial.
        """
        if not isinstance(self.grader, Grader):
            raise ModelError("dial: expected a PyTorch bundle, got a graph. Serve the bundle.")
        adapted = self.grader.adapted
        x = self.reader.collate([sample]).to(device_of(adapted))
        with torch.no_grad():
            return [adapted(x, alpha=alpha)[0].double().softmax(0).tolist() for alpha in alphas]

    def _pass(self, samples: Sequence[Any]) -> tuple[Grades, NDArray[np.float32], NDArray[np.float32]]:
        x = self.reader.collate(samples)
        if isinstance(self.grader, OnnxGrader):
            answer = self.grader.run(one_tensor(x, "for an exported graph").numpy())
            label, suspicion, probability, trusted, base, second = answer
            return Grades(label, second.argmax(1), suspicion, probability, trusted), base, second
        adapted = self.grader.adapted
        both = dual_logits(adapted, x.to(device_of(adapted)))
        held = both._replace(base=both.base.float().cpu(), second=both.second.float().cpu())
        return self.grader.judge(held), held.base.numpy(), held.second.numpy()


def _lay_out(adapted: AdaptedModel, x: Inputs) -> None:
    """Lays the weights of convolutions out channels last, which takes a quarter off their time, where A bears it.

    The values stay, and A is the service's own: nobody else holds it.
    """
    kernels = [weight for weight in adapted.parameters() if weight.ndim == 4]
    for weight in kernels:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    try:
        dual_logits(adapted, x.to(device_of(adapted)))
    except Exception:  # whatever a model raises that asks for another layout
        for weight in kernels:
            weight.data = weight.data.contiguous()


def probabilities(logits: NDArray[np.float32]) -> list[float]:
    """Returns the softmax of ``(K,)`` logits."""
    values = np.exp(logits.astype(np.float64) - logits.max())
    return (values / values.sum()).tolist()  # type: ignore[no-any-return]
