"""Where a grader comes from: model, inputs, data, settings and versions, as in bundles and results."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

from petm._internal.records import Json, Record
from petm._internal.texts import is_name, visible
from petm.errors import BundleError, DataError

if TYPE_CHECKING:
    from petm.data.base import Data

_LIBRARIES = ("petm", "torch", "numpy", "scikit-learn", "safetensors")
_LONGEST_SIDE = 1 << 16


@dataclass(frozen=True)
class ModelOrigin:
    """How the base model is built again.

    Attributes:
        reference: ``module:factory``; absent if a model was passed in Python.
        arguments: Keyword arguments of the factory.
        weights: The weights file as it was named.
        classes: Class names; empty if there are none.
    """

    reference: str | None = None
    arguments: Mapping[str, Json] = field(default_factory=dict)
    weights: str | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises DataError for names that no terminal shows and no bundle holds, before anything is fitted."""
        strange = [name for name in (self.reference, self.weights, *self.classes) if name and not is_name(name)]
        if strange:
            raise DataError(
                f"classes, model: expected names without control characters, got {strange[0]!a}. Rename it."
            )

    @classmethod
    def from_json(cls, record: Record) -> "ModelOrigin":
        """Returns the origin from a manifest; raises BundleError where an entry breaks its rule."""
        reference, weights = record.text_or_none("reference"), record.text_or_none("weights")
        return cls(reference, record.free("arguments"), weights, record.texts("classes"))


@dataclass(frozen=True)
class InputOrigin:
    """How inputs are read, so that grading reads them as fitting did. What is absent does not apply.

    Attributes:
        size: Height and width that images are resized to.
        channels: 1 for grey, 3 for colour.
        processor: The Hugging Face folder of the tokenizer or image processor.
        fingerprint: SHA-256 of that tokenizer or image processor.
        text_column: The column of texts.
        length: Tokens to which every text is padded or cut; absent takes the longest of the data.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    processor: str | None = None
    text_column: str | None = None
    length: int | None = None
    fingerprint: str | None = None

    @classmethod
    def of(cls, shape: Sequence[int]) -> "InputOrigin":
        """Returns how images are read into batches of ``shape``; empty for other shapes."""
        if len(shape) != 4 or shape[1] not in (1, 3):
            return cls()
        return cls((shape[2], shape[3]), shape[1])

    @classmethod
    def from_json(cls, record: Record) -> "InputOrigin":
        """Returns the origin from a manifest; raises BundleError where an entry breaks its rule."""
        sides = record.numbers("size") if record.has("size") else ()
        if len(sides) not in (0, 2) or not all(side in range(1, _LONGEST_SIDE) for side in sides):
            raise BundleError(f"{record.place}, size: expected height and width in pixels, got {sides}.")
        return cls(
            (int(sides[0]), int(sides[1])) if sides else None,
            record.whole("channels", least=1, most=3) if record.has("channels") else None,
            record.text_or_none("processor"),
            record.text_or_none("text_column"),
            record.whole("length", least=1) if record.has("length") else None,
            record.text_or_none("fingerprint"),
        )


@dataclass(frozen=True)
class DataOrigin:
    """The source of a data set, its number of samples, and the SHA-256 of samples and labels."""

    source: str
    samples: int
    content: str

    @classmethod
    def from_json(cls, record: Record) -> "DataOrigin":
        """Returns the origin from a manifest; raises BundleError where an entry breaks its rule."""
        return cls(record.text("source"), record.whole("samples"), record.text("content"))


@dataclass(frozen=True)
class Origin:
    """Where a grader comes from; ``data`` by role, ``settings`` and results of the fit by name."""

    model: ModelOrigin = field(default_factory=ModelOrigin)
    inputs: InputOrigin = field(default_factory=InputOrigin)
    data: Mapping[str, DataOrigin] = field(default_factory=dict)
    settings: Mapping[str, Json] = field(default_factory=dict)


def describe_data(data: "Data") -> DataOrigin:
    """Returns source, number of samples and content hash of a data set."""
    return DataOrigin(visible(data.source), len(data), data.content)


def library_versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that a result depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}
