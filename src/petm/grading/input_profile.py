"""What the inputs of a fit looked like, and whether those that a grader gets can be the same."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from petm._internal.records import Record
from petm.errors import BundleError, DataError, PetmWarning

if TYPE_CHECKING:
    from petm.data.base import Data

SAMPLES = 512
"""The most samples of a fit from which a profile is made."""
COMPARED = 64
"""First inputs, of which already a few are refused; and the most that are looked at value by value."""
_ENOUGH = 8
"""Inputs, each of more than one value, from which on their means and deviations are judged."""
_BEYOND, _SOME, _FEW = 10, 4, 50
"""Ranges of the fit beyond which a value is impossible; such values of a sample that make it so, and its share."""
_RARE = 0.01
"""Share of the fit's samples within 0 to 1 up to which it is no chance if all inputs are."""
_WIDER = 1.25
"""Factor by which deviations of single inputs may leave the range of the fit's."""


@dataclass(frozen=True)
class InputProfile:
    """The values of some inputs of a fit.

    Attributes:
        samples: Number of these inputs.
        shape: Shape of one, ``(C, H, W)`` for images.
        low: The least value.
        high: The greatest value.
        mean: Mean by channel; one number where inputs are no images.
        deviation: Standard deviation by channel.
        means: The least and the greatest mean of one input.
        deviations: The least and the greatest standard deviation of one input.
        within_unit: Share of the inputs with all values in 0 to 1.
    """

    samples: int
    shape: tuple[int, ...]
    low: float
    high: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    means: tuple[float, float]
    deviations: tuple[float, float]
    within_unit: float

    @classmethod
    def of(cls, x: NDArray[np.float32]) -> InputProfile:
        """Returns the profile of inputs ``(N, ...)``."""
        flat = x.reshape(len(x), -1).astype(np.float64)
        channels = x.shape[1] if x.ndim == 4 else 1
        by_channel = flat.reshape(len(x), channels, -1)
        mean, deviation = by_channel.mean((0, 2)), by_channel.std((0, 2))
        means, deviations = flat.mean(1), flat.std(1)
        return cls(
            len(x),
            x.shape[1:],
            float(flat.min()),
            float(flat.max()),
            tuple(mean.tolist()),
            tuple(deviation.tolist()),
            (float(means.min()), float(means.max())),
            (float(deviations.min()), float(deviations.max())),
            float(_in_unit(flat).mean()),
        )

    @classmethod
    def from_json(cls, record: Record) -> InputProfile:
        """Returns a profile from a manifest; raises BundleError where an entry breaks its rule."""
        shape, pairs = record.numbers("shape"), [record.numbers(name) for name in ("means", "deviations")]
        mean, deviation = record.numbers("mean"), record.numbers("deviation")
        if not all(side >= 0 and side.is_integer() for side in shape) or {len(pair) for pair in pairs} != {2}:
            raise BundleError(f"{record.place}: expected a shape, and two means and deviations, got others.")
        if len(mean) != len(deviation) or not mean:
            raise BundleError(f"{record.place}, mean: expected as many numbers as deviation, got {len(mean)}.")
        return cls(
            record.whole("samples", least=1),
            tuple(map(int, shape)),
            record.number("low"),
            record.number("high"),
            mean,
            deviation,
            (pairs[0][0], pairs[0][1]),
            (pairs[1][0], pairs[1][1]),
            record.number("within_unit", least=0, most=1),
        )

    @property
    def are_unit(self) -> bool:
        """Whether all values are in 0 to 1, as those of pixels."""
        return self.within_unit == 1

    def __str__(self) -> str:
        return _shown(self.low, self.high, self.mean, self.deviation)


def _shown(low: float, high: float, *moments: tuple[float, ...]) -> str:
    mean, deviation = (", ".join(f"{value:.3g}" for value in each[:4]) for each in moments)
    return f"values from {low:.3g} to {high:.3g} (mean {mean}, standard deviation {deviation})"


def describe_inputs(data: Data) -> InputProfile | None:
    """Returns the profile of up to 512 samples of a data set, evenly spread; None where inputs are several fields."""
    count = min(len(data), SAMPLES) if data.home is None else 0
    x = data.inputs(np.linspace(0, len(data) - 1, count).astype(int).tolist()) if count else None
    values = None if x is None or hasattr(x, "keys") else _finite(x)
    return InputProfile.of(values) if values is not None and values.size else None


class InputCheck:
    """Compares the inputs of a grader, batch by batch, with the profile of its fit.

    Refused is what cannot be the same: values far outside the fit's, all values in 0 to 1 where the fit's were not,
    channels in the last dimension. A warning, once, names what is doubtful. Few or constant inputs are never doubtful;
    behind the first inputs, few are not refused either, so that no single one ends a run.
    """

    def __init__(self, profile: InputProfile | None) -> None:
        self._profile, self._seen, self._warned = profile, 0, False
        self._varied = np.empty((0, 4))

    def __call__(self, x: Any, source: str = "inputs") -> None:
        """Compares a batch ``(n, ...)``; fields are not looked at.

        Raises:
            DataError: The inputs cannot be like those of the fit.
        """
        profile = self._profile
        if profile is None or hasattr(x, "keys"):
            return
        shape, expected = tuple(x.shape[1:]), profile.shape
        places, found = _statistics(x)
        if not len(found):
            return
        if len(shape) == len(expected) == 3 and shape != expected and shape[2] == expected[0] != shape[0]:
            raise DataError(
                f"{source}: expected inputs of shape (N, {', '.join(map(str, expected))}), channels first, got "
                f"(N, {', '.join(map(str, shape))}). Transpose them by (0, 3, 1, 2)."
            )
        at_first, self._seen = self._seen < COMPARED, self._seen + len(found)
        low, high = (0.0, 1.0) if profile.are_unit else (profile.low, profile.high)
        margin = (high - low) * (1 if profile.are_unit and len(shape) == 3 else _BEYOND)
        least, most = low - margin, high + margin
        strange = np.flatnonzero((found[:, 0] < least) | (found[:, 1] > most))
        if margin and 2 * len(strange) > len(found) and (at_first or len(strange) >= _ENOUGH):
            flat = _some(x, places[strange])
            flat = flat.reshape(len(flat), -1)
            beyond = ((flat < least) | (flat > most)).sum(1)
            wrong = beyond >= max(min(_SOME, flat.shape[1]), flat.shape[1] / _FEW)
            if 2 * wrong.mean() * len(strange) > len(found):
                raise _unlike(profile, flat, source)
        varied = found[found[:, 3] > 0]
        if at_first:
            self._varied = varied = np.concatenate([self._varied, varied])
        if len(varied) >= _ENOUGH:
            self._judge(varied, profile, x, source)

    def _judge(self, found: NDArray[np.float64], profile: InputProfile, x: Any, source: str) -> None:
        if profile.within_unit <= _RARE and (found[:, 0] >= 0).all() and (found[:, 1] <= 1).all():
            raise _unlike(profile, _some(x), source)
        mean, deviation, room = np.median(found[:, 2]), np.median(found[:, 3]), max(profile.deviation) / 2
        usual = profile.means[0] - room <= mean <= profile.means[1] + room
        usual &= profile.deviations[0] / _WIDER <= deviation <= profile.deviations[1] * _WIDER
        if not usual and profile.deviations[1] > 0 and not self._warned:
            self._warned = True
            warnings.warn(f"{_unlike(profile, _some(x), source)}", PetmWarning, stacklevel=4)


def _statistics(x: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The places of inputs without NaN or infinity, and their least and greatest value, mean, deviation: ``(n, 4)``."""
    if not np.prod(x.shape):
        return np.empty(0, np.int64), np.empty((0, 4))
    if isinstance(x, np.ndarray):
        with np.errstate(over="ignore", invalid="ignore"):  # infinity is left out
            flat = x.reshape(len(x), -1).astype(np.float32, copy=False)
            found = np.stack((flat.min(1), flat.max(1), flat.mean(1), flat.std(1)), 1).astype(np.float64)
    else:
        rows = x.detach().flatten(1).float()
        parts = rows.amin(1), rows.amax(1), rows.mean(1), rows.std(1, correction=0)
        found = np.stack([part.cpu().double().numpy() for part in parts], 1)
    if str(x.dtype).endswith("uint8"):
        found /= 255
    places = np.flatnonzero(np.isfinite(found[:, :2]).all(1))
    return places, found[places]


def _some(x: Any, places: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """At most so many inputs as are compared, evenly spread over a batch or over some places in it."""
    rows = np.arange(len(x)) if places is None else places
    return _finite(x[rows[np.linspace(0, len(rows) - 1, min(len(rows), COMPARED)).astype(int)].tolist()])


def _unlike(profile: InputProfile, values: NDArray[np.float32], source: str) -> DataError:
    return DataError(
        f"{source}: expected inputs like those of the fit, {profile}, got {InputProfile.of(values)}. "
        f"Prepare them as for the fit."
    )


def _in_unit(flat: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray((flat.min(1) >= 0) & (flat.max(1) <= 1))


def _finite(x: Any) -> NDArray[np.float32]:
    """The samples without NaN or infinity as float32; bytes are divided by 255."""
    with np.errstate(over="ignore"):  # to infinity
        values = np.asarray(x if isinstance(x, np.ndarray) else x.detach().float().cpu(), np.float32)
    if str(x.dtype).endswith("uint8"):
        values = values / np.float32(255)
    return values[np.isfinite(values).all(tuple(range(1, values.ndim)))]
