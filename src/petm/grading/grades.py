"""Grades, and the inputs that can be graded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from petm.errors import DataError, ExtraError
from petm.grading.input_profile import COMPARED, InputCheck
from petm.selective.audit import check_audit, drawn

if TYPE_CHECKING:
    from petm.data.base import Data
    from petm.data.fields import Inputs
    from petm.data.reader import Arrays
    from petm.grading.provenance import InputOrigin

Batch: TypeAlias = "Arrays | Inputs"
"""The inputs of one pass: images float32 ``(N, C, H, W)``, or other inputs of a model."""


_SHOWN = 5
"""Samples that a representation shows."""

NO_SECOND = -1
"""In place of a second opinion's prediction where none was asked for."""


class Grade(NamedTuple):
    """The grade of one sample; see `Grades`."""

    label: int | str
    name: str | None
    second: int | str | None
    probability_of_error: float
    suspicion: float
    trusted: bool
    candidates: tuple[int | str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Grades:
    """The grades of ``N`` samples.

    They have a length, are iterated over sample by sample, and indexed by a number, a slice or a mask:
    ``grades[~grades.trusted]`` are the suspects.

    Attributes:
        labels: int64 ``(N,)``, the base model's predictions.
        second: int64 ``(N,)``, the second opinion's predictions; -1 where a cascade asked for none, or there is none.
        suspicion: float64 ``(N,)``, higher is more likely wrong.
        probability_of_error: float64 ``(N,)``, calibrated probability that the base model is wrong, or NaN.
        trusted: bool ``(N,)``, the grade: trusted, else suspect.
        classes: ``K`` class names; empty where the grader has none.
        candidates: ``(N,)``, of each sample the classes that it may be, the most probable first: they hold the true one
            with a chosen probability (`petm.selective.sets`). None where the grader has no prediction sets.
    """

    labels: NDArray[np.int64]
    second: NDArray[np.int64]
    suspicion: NDArray[np.float64]
    probability_of_error: NDArray[np.float64]
    trusted: NDArray[np.bool_]
    classes: tuple[str, ...] = ()
    candidates: NDArray[np.object_] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> NDArray[np.object_] | None:
        """Class names of ``labels``, ``(N,)``; None where the grader has none."""
        return np.array(self.classes, object)[self.labels] if self.classes else None

    @overload
    def __getitem__(self, index: int) -> Grade: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | NDArray[Any]) -> "Grades": ...
    def __getitem__(self, index: Any) -> "Grade | Grades":
        """Returns the grade at a number; or the grades at a slice, at numbers, or where a mask is true."""
        if np.ndim(index) or isinstance(index, slice):
            return replace(self, **{name: getattr(self, name)[index] for name in self._arrays})
        label, second, suspicion, error, trusted = (np.asarray(getattr(self, name)[index]).item() for name in _ARRAYS)
        second = None if second == self._none else second
        name, candidates = self.classes[label] if self.classes else None, self.candidates
        sure = None if candidates is None else candidates[index]
        return Grade(label, name, second, error, suspicion, trusted, sure)

    @property
    def _arrays(self) -> tuple[str, ...]:
        return _ARRAYS if self.candidates is None else (*_ARRAYS, "candidates")

    @property
    def candidate_names(self) -> NDArray[np.object_] | None:
        """``candidates`` by class names, or by numbers where the grader has none; None without candidates."""
        if self.candidates is None:
            return None
        known = dict(enumerate(self.classes))
        named = (tuple(known.get(each, str(each)) for each in some) for some in self.candidates)
        return np.fromiter(named, object, len(self))

    @property
    def _none(self) -> int | None:
        """What stands for no second opinion: among a user's own labels, of which -1 may be one, None."""
        return None if self.second.dtype == object else NO_SECOND

    def __iter__(self) -> Iterator[Grade]:
        return (self[row] for row in range(len(self)))

    def to_pandas(self) -> Any:
        """Returns a ``pandas.DataFrame`` with a row for each sample.

        The columns are ``label``, ``label_name`` (None without class names), ``second`` (empty where there is none),
        ``probability_of_error``, ``suspicion``, ``trusted`` and, where the grader has prediction sets, ``candidates``,
        a tuple of names.

        Raises:
            ExtraError: pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ImportError as error:
            raise ExtraError(f"pandas: expected to be installed, got: {error}. Run: pip install pandas.") from error
        second: Any = self.second
        if self._none is not None:
            second = pandas.arrays.IntegerArray(second, second == NO_SECOND, copy=True)
        return pandas.DataFrame(
            {
                "label": self.labels,
                "label_name": self.names,
                "second": second,
                "probability_of_error": self.probability_of_error,
                "suspicion": self.suspicion,
                "trusted": self.trusted,
                **({} if self.candidates is None else {"candidates": self.candidate_names}),
            }
        )

    @staticmethod
    def joined(parts: Sequence["Grades"]) -> "Grades":
        """Returns the grades of several batches, at least one, as one."""
        held: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in parts[0]._arrays
        }
        return replace(parts[0], **held)

    def to_review(self, audit: float, *, seed: int = 0) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Returns which samples a person should label, bool ``(N,)``, and with which chance each was drawn.

        All suspects, and of the trusted each with chance ``audit``, by its position and ``seed``. Labels of these tell
        about all samples where their chances are passed on.

        Raises:
            ArgumentError: ``audit`` is not above 0 and at most 1.
        """
        check_audit(audit)
        return ~self.trusted | drawn(range(len(self)), audit, seed=seed), np.where(self.trusted, audit, 1.0)

    def __repr__(self) -> str:
        shown = [f"Grades({len(self)} samples, {int(self.trusted.sum())} trusted)"]
        for each in self[:_SHOWN]:
            known = not np.isnan(each.probability_of_error)
            error = f", probability of error {each.probability_of_error:.3g}" if known else ""
            grade = "trusted" if each.trusted else "suspect"
            shown.append(f"  {each.label if each.name is None else each.name}: {grade}{error}")
        return "\n".join([*shown, *(["  ..."] if len(self) > _SHOWN else [])])


_ARRAYS = tuple(field.name for field in fields(Grades))[:-2]
"""Names of the attributes ``(N,)`` of every grader, in their order."""


def as_inputs(x: Any) -> "Data":
    """Returns a batch or a data set as `Data`.

    Args:
        x: float or uint8 ``(N, ...)`` (uint8 is divided by 255) as a tensor or NumPy array; several of these by name,
            as a mapping or `Fields`; or anything that `petm.data.base.as_data` accepts.

    Raises:
        ArgumentError: ``x`` is none of these.
        DataError: A batch is neither float nor uint8, or holds NaN or infinity.
    """
    import torch

    from petm.data.base import TensorData, as_data
    from petm.data.fields import Fields, as_batch

    if isinstance(x, torch.Tensor | np.ndarray):
        return TensorData(as_batch(x), source="inputs", value_range=(0, 1))
    return TensorData(as_batch(x), source="inputs") if isinstance(x, Fields | Mapping) else as_data(x)


def check_inputs(data: "Data | NDArray[Any]", inputs: "InputOrigin", source: str | None = None) -> None:
    """Compares some inputs, evenly spread, with those of a fit, of which ``inputs`` tells; warns where doubtful.

    Raises:
        DataError: They cannot be the same.
    """
    some: NDArray[Any] | Inputs | None
    rows = np.linspace(0, len(data) - 1, min(len(data), COMPARED)).astype(int).tolist()
    if isinstance(data, np.ndarray):
        source, pixels, some = source or "inputs", data.dtype == np.uint8, data[rows]
    else:
        source, pixels = source or data.source, data.are_pixels
        some = data.inputs(rows) if len(data) and data.home is None else None
    refuse_pixels(source, pixels, inputs)
    if some is not None:
        InputCheck(inputs.profile)(some, source)


def refuse_pixels(source: str, pixels: bool, inputs: "InputOrigin") -> None:
    """Raises DataError for pixels from 0 to 1 where the inputs of the fit were others."""
    if pixels and not inputs.takes_pixels:
        raise DataError(
            f"{source}: expected inputs prepared as for the fit, got pixels from 0 to 1. "
            f"Pass what the model takes, or read images with its mean and std, or its processor."
        )
