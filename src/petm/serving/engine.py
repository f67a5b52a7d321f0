"""A grader as the service uses it: one batch at a time, a PyTorch bundle or an ONNX graph."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from petm.adapter.model import AdaptedModel
from petm.adapter.one_pass import dual_logits
from petm.data.fields import Inputs, one_tensor
from petm.errors import ModelError, RunError
from petm.grading.grader import Grader
from petm.grading.grades import Grades
from petm.grading.onnx_grader import OnnxGrader
from petm.grading.provenance import InputOrigin
from petm.models.prediction import device_of
from petm.selective.thresholds import Threshold
from petm.serving.limits import Unreadable
from petm.serving.reading import Reader


class Verdict(NamedTuple):
    """What the grader says of one input."""

    label: int
    """The base model's prediction."""
    second: int
    """The second opinion's."""
    probability: float | None
    """Of an error; None where none was calibrated."""
    suspicion: float
    """As in `petm.grading.grades.Grades`."""
    trusted: bool
    """The grade."""
    base: NDArray[np.float32]
    """The base model's logits, ``(K,)``."""
    opinion: NDArray[np.float32]
    """The second opinion's logits, ``(K,)``."""


class EngineEndedError(RunError):
    """An engine that has ended by itself and grades no more."""


class Facts(NamedTuple):
    """What is known of a grader before it grades."""

    classes: tuple[str, ...]
    """``K`` names; numbers where the grader has none."""
    threshold: Threshold
    """Where suspicion turns."""
    score: str
    """What suspicion is."""
    measured: Mapping[str, Any]
    """Figures of the fit."""
    has_sweep: bool
    """Whether the strength of the adapter can be set: not in a graph."""
    inputs: InputOrigin
    """How its inputs are read."""
    shape: tuple[int, ...] | None
    """Of one, where ``inputs`` does not say it."""


class Opinions(NamedTuple):
    """What one pass says of ``N`` inputs, ``M`` of which could be read."""

    unread: dict[int, str | None]
    """By place, why an input could not be read; None where it takes more than an input should that is read here."""
    grades: Grades
    """Of the others in their order."""
    base: NDArray[np.float32]
    """The base model's logits of these, ``(M, K)``."""
    opinion: NDArray[np.float32]
    """The second opinion's, ``(M, K)``."""


class Engine(Protocol):
    """Grades batches, in one thread at a time.

    Attributes:
        reader: Makes its inputs.
        facts: Of the grader.
    """

    reader: Reader
    facts: Facts

    def wait(self) -> None:
        """Returns when it is ready to grade.

        Raises:
            EngineEndedError: It has ended before.
            PetmError: It cannot be made.
        """

    def run(self, inputs: Sequence[Any]) -> Opinions:
        """Returns what the grader says of at least one input, in their order.

        Args:
            inputs: Samples that the reader has made; or short inputs as they came, which are read here, as one after
                the other that takes less time than each by itself.

        Raises:
            EngineEndedError: It has ended by itself.
            ModelError: The model cannot take them.
        """

    def turn(self, sample: Any, alphas: Sequence[float]) -> list[list[float]]:
        """Returns the probabilities of the ``K`` classes at each strength of the adapter.

        Args:
            sample: One.
            alphas: 0 is the base model, 1 the second opinion.

        Raises:
            EngineEndedError: It has ended by itself.
            ModelError: The grader has no such sweep.
        """

    def check(self) -> None:
        """Raises EngineEndedError where it has ended by itself."""

    def close(self) -> None:
        """Ends it, from any thread."""


class GraderEngine:
    """An engine in this process.

    Args:
        grader: From `petm.grading.grader.load`, or an ONNX graph.
        reader: Makes its inputs.

    Attributes:
        reader: The reader.
        facts: Of the grader.

    Raises:
        ModelError: The grader cannot take what the reader makes.
    """

    def __init__(self, grader: Grader | OnnxGrader, reader: Reader) -> None:
        self._grader, self.reader = grader, reader
        if isinstance(grader, Grader):
            _lay_out(grader.adapted, reader.collate([reader.blank()]))
        # The first passes find where the opinions part and fill the allocator; nobody should have to wait for that.
        count = self.run([reader.blank()]).base.shape[1]
        names = grader.origin.model.classes
        classes = names if len(names) == count else tuple(map(str, range(count)))
        shape = grader.shape if isinstance(grader, OnnxGrader) else None
        known = (grader.threshold, grader.score, grader.measured, isinstance(grader, Grader))
        self.facts = Facts(classes, *known, grader.origin.inputs, shape)

    def run(self, inputs: Sequence[Any]) -> Opinions:
        """As in `Engine`."""
        unread: dict[int, str | None] = {}
        samples: list[Any] = []
        for place, given in enumerate(inputs):
            try:
                sample = self.reader.read_short(given) if isinstance(given, bytes | str) else given
            except Unreadable as reason:
                unread[place] = str(reason)
            else:
                if sample is None:
                    unread[place] = None
                else:
                    samples.append(sample)
        return Opinions(unread, *self._pass(samples)) if samples else Opinions(unread, *_NOTHING)

    def _pass(self, samples: Sequence[Any]) -> tuple[Grades, NDArray[np.float32], NDArray[np.float32]]:
        x = self.reader.collate(samples)
        if isinstance(self._grader, OnnxGrader):
            answer = self._grader.run(one_tensor(x, "for an exported graph").numpy())
            label, suspicion, probability, trusted, base, second = answer
            return Grades(label, second.argmax(1), suspicion, probability, trusted), base, second
        adapted = self._grader.adapted
        both = dual_logits(adapted, x.to(device_of(adapted)))
        held = both._replace(base=both.base.float().cpu(), second=both.second.float().cpu())
        return self._grader.judge(held), held.base.numpy(), held.second.numpy()

    def turn(self, sample: Any, alphas: Sequence[float]) -> list[list[float]]:
        """As in `Engine`."""
        if not isinstance(self._grader, Grader):
            raise ModelError("sweep: expected a PyTorch bundle, got a graph. Serve the bundle.")
        adapted = self._grader.adapted
        x = self.reader.collate([sample]).to(device_of(adapted))
        with torch.no_grad():
            return [adapted(x, alpha=alpha)[0].double().softmax(0).tolist() for alpha in alphas]

    def wait(self) -> None:
        """As in `Engine`: it is."""

    def check(self) -> None:
        """As in `Engine`: it lives as long as this process."""

    def close(self) -> None:
        """As in `Engine`: there is nothing to end."""


def verdicts(said: Opinions) -> list[Verdict | str | None]:
    """Returns what one pass says, input by input; of one that was not read, what `Opinions.unread` says."""
    grades = said.grades
    known = [None if math.isnan(value) else value for value in grades.probability.tolist()]
    columns = (grades.labels.tolist(), grades.second.tolist(), known, grades.suspicion.tolist())
    rows = zip(*columns, grades.trusted.tolist(), said.base, said.opinion, strict=True)
    return [
        said.unread[place] if place in said.unread else Verdict(*next(rows))
        for place in range(len(grades) + len(said.unread))
    ]


_NONE: Any = np.empty(0, np.int64)
_NOTHING: Any = (Grades(_NONE, _NONE, _NONE, _NONE, _NONE), np.empty((0, 0), np.float32), np.empty((0, 0), np.float32))
"""What a pass says where no input could be read."""


def _lay_out(adapted: AdaptedModel, x: Inputs) -> None:
    """Lays the weights of convolutions out channels last, a quarter faster, where the model allows it.

    The values stay, and the base model is the service's own: nobody else holds it.
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
