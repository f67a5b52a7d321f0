"""A grader as the service uses it: one batch at a time, a PyTorch bundle or an ONNX graph."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from petm.adapter.model import AdaptedModel
from petm.adapter.one_pass import answers_of
from petm.data.fields import Inputs, one_tensor
from petm.errors import RunError
from petm.grading.grader import Grader
from petm.grading.grades import NO_SECOND, Grades
from petm.grading.onnx_grader import OnnxGrader
from petm.grading.provenance import InputOrigin
from petm.models.prediction import device_of
from petm.selective.thresholds import Threshold
from petm.serving.limits import Unreadable
from petm.serving.reading import Reader


class Verdict(NamedTuple):
    """The grade of one input, and both opinions; without a second opinion, the base model's stands for it."""

    label: int  # the base model's prediction
    second: int | None  # the second opinion's; None where none was asked for
    probability_of_error: float | None  # None where it was not calibrated
    suspicion: float  # as in `petm.grading.grades.Grades`
    trusted: bool
    base: NDArray[np.float32]  # the base model's logits, (K,)
    opinion: NDArray[np.float32]  # the second opinion's logits, (K,)
    candidates: tuple[int, ...] | None = None  # the classes that it may be; None where the grader has no sets
    drawn: bool | None = None  # whether it is trusted and drawn for an audit; None where the service draws none


class EngineEndedError(RunError):
    """An engine that has ended unexpectedly and grades no more."""


class Facts(NamedTuple):
    """What is known of a grader before it grades."""

    classes: tuple[str, ...]  # K names; numbers where the grader has none
    threshold: Threshold
    score: str  # the name of the suspicion score
    measured: Mapping[str, Any]  # figures of the fit
    has_second: bool  # whether there is a second opinion
    has_sweep: bool  # whether alpha can be set: only in a bundle with an adapter
    inputs: InputOrigin  # the form of the inputs
    shape: tuple[int, ...] | None  # of one input, where ``inputs`` does not say it


Opinions = tuple[Grades, NDArray[np.float32], NDArray[np.float32]]
"""Grades of ``M`` inputs, the base model's logits ``(M, K)``, and the second opinion's."""
Unread = dict[int, str | None]
"""By position, why an input could not be read; None: it is too large to be read in the engine."""


class GraderEngine:
    """Grades batches in this process, in one thread at a time.

    Args:
        grader: From `petm.grading.grader.load`, or an ONNX graph.
        reader: Reads its inputs.

    Raises:
        ModelError: The grader does not accept what the reader makes.
    """

    def __init__(self, grader: Grader | OnnxGrader, reader: Reader) -> None:
        self._grader, self.reader = grader, reader
        if isinstance(grader, Grader):
            _lay_out(grader.adapted, reader.collate([reader.blank()]))
        # The first passes find the split point and fill the allocator: no request should wait for that.
        count = self._pass([reader.blank()])[1].shape[1]
        names = grader.origin.model.classes
        classes = names if len(names) == count else tuple(map(str, range(count)))
        shape = grader.shape if isinstance(grader, OnnxGrader) else None
        has_sweep = isinstance(grader, Grader) and bool(grader.adapted.adapters)
        known = (grader.threshold, grader.score, grader.measured, grader.has_second, has_sweep)
        self.facts = Facts(classes, *known, grader.origin.inputs, shape)

    def run(self, inputs: Sequence[Any]) -> tuple[Unread, Opinions | None]:
        """Returns which inputs could not be read, and the opinions on the others, if any, in their order.

        Args:
            inputs: Samples from the reader; or the contents of short inputs, which are faster to read here, one after
                the other, than in threads.

        Raises:
            ModelError: The model does not accept the inputs.
        """
        unread: Unread = {}
        samples: list[Any] = []
        for place, given in enumerate(inputs):
            try:
                sample = self.reader.read_short(given) if isinstance(given, bytes | str) else given
            except Unreadable as reason:
                unread[place] = str(reason)
                continue
            if sample is None:
                unread[place] = None
            else:
                samples.append(sample)
        return unread, self._pass(samples) if samples else None

    def _pass(self, samples: Sequence[Any]) -> Opinions:
        x = self.reader.collate(samples)
        if isinstance(self._grader, OnnxGrader):
            answer = self._grader.run(one_tensor(x, "for an exported graph").numpy())
            return self._grader.judge(answer), answer.base, answer.second
        answers = self._grader.answers(x)
        return self._grader.judge(answers), answers.base.numpy(), answers.second.numpy()

    def sweep(self, sample: Any, alphas: Sequence[float]) -> list[list[float]]:
        """Returns the probabilities of the ``K`` classes of one sample at each alpha, where `Facts` has a sweep."""
        assert isinstance(self._grader, Grader)
        adapted = self._grader.adapted
        x = self.reader.collate([sample]).to(device_of(adapted))
        with torch.no_grad():
            return [adapted(x, alpha=alpha)[0].double().softmax(0).tolist() for alpha in alphas]

    def wait(self) -> None:
        """Does nothing, as the engine is ready."""

    check = close = wait  # it ends with this process


def verdicts(unread: Unread, opinions: Opinions | None) -> list[Verdict | str | None]:
    """Returns the verdict of each input from what `GraderEngine.run` returns; for one that was not read, its entry."""
    if opinions is None:
        return list(unread.values())
    grades, base, opinion = opinions
    second = np.ma.masked_equal(grades.second, NO_SECOND).tolist()
    known = np.ma.masked_invalid(grades.probability_of_error).tolist()
    columns = (grades.labels.tolist(), second, known, grades.suspicion.tolist())
    sets = [None] * len(grades) if grades.candidates is None else grades.candidates
    rows = zip(*columns, grades.trusted.tolist(), base, opinion, sets, strict=True)
    places = range(len(grades) + len(unread))
    return [unread[place] if place in unread else Verdict(*next(rows)) for place in places]


def _lay_out(adapted: AdaptedModel, x: Inputs) -> None:
    """Makes the weights of convolutions channels last, a quarter faster, where the model allows it.

    Their values stay, and the service has a base model of its own.
    """
    kernels = [weight for weight in adapted.parameters() if weight.ndim == 4]
    for weight in kernels:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    try:
        answers_of(adapted, x.to(device_of(adapted)))
    except Exception:  # of any kind, from a model that needs another layout
        for weight in kernels:
            weight.data = weight.data.contiguous()


def probabilities(logits: NDArray[np.float32]) -> list[float]:
    """Returns the softmax of ``(K,)`` logits."""
    return softmax(logits.astype(np.float64)).tolist()  # type: ignore[no-any-return]
