"""Where a grader comes from: what a bundle and a result say of the model, the data, the settings and the versions."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from petm.data.base import Data

_LIBRARIES = ("petm", "torch", "numpy", "scikit-learn", "safetensors")


@dataclass(frozen=True)
class ModelOrigin:
    """How A is built again.

    Attributes:
        reference: ``module:factory``; absent where a model was passed in Python.
        arguments: Keyword arguments of the factory.
        weights: The weights file as it was named.
        classes: Class names; empty when they have none.
    """

    reference: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class InputOrigin:
    """How inputs are read, so that grading reads them as fitting did.

    Attributes:
        size: Height and width that images are resized to; absent takes them as they are.
        channels: 1 for grey, 3 for colour; absent takes them as they are.
        processor: The Hugging Face folder whose tokenizer or image processor prepares them; absent where none does.
        fingerprint: SHA-256 of that tokenizer or image processor; absent where there is none.
        text_column: The column of texts; absent where the inputs are none.
        length: How many tokens every text is padded or cut to; absent takes the longest of the data.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    processor: str | None = None
    text_column: str | None = None
    length: int | None = None
    fingerprint: str | None = None

    @classmethod
    def of(cls, shape: Sequence[int]) -> "InputOrigin":
        """Returns how images are read so that a batch of them has ``shape``; nothing is said of other inputs."""
        if len(shape) != 4 or shape[1] not in (1, 3):
            return cls()
        return cls((shape[2], shape[3]), shape[1])

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> "InputOrigin":
        """Returns what was written with a grader."""
        return cls(**{**entries, "size": entries["size"] and tuple(entries["size"])})


@dataclass(frozen=True)
class Origin:
    """Where a grader comes from.

    Attributes:
        model: How A is built again.
        inputs: How images are read.
        data: For each part of the data (by its role): source, samples and content hash.
        settings: What the fit was told, the seed included.
    """

    model: ModelOrigin = field(default_factory=ModelOrigin)
    inputs: InputOrigin = field(default_factory=InputOrigin)
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> "Origin":
        """Returns the origin that a bundle's manifest tells of."""
        model = manifest["model"]
        return cls(
            ModelOrigin(model["reference"], model["arguments"], model["weights"], tuple(model["classes"])),
            InputOrigin.from_json(manifest["inputs"]),
            manifest["data"],
            manifest["settings"],
        )


def describe_data(data: "Data") -> dict[str, Any]:
    """Returns what identifies a data set: source, number of samples, content hash."""
    return {"source": data.source, "samples": len(data), "content": data.content}


def library_versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that a result depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}
