"""Where a grader comes from: model, inputs, data, settings and versions, as in bundles and results."""

import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from petm._internal.records import Json, Record
from petm._internal.texts import is_name, visible
from petm.data.images import FormSettings, Resize
from petm.data.reader import Tokenizer
from petm.data.sources import TEXT, Columns
from petm.errors import BundleError, DataError
from petm.grading.input_profile import InputProfile
from petm.models.hf_folder import PREFIX, folder_of
from petm.models.prompt import Prompt
from petm.models.reading import Reading

if TYPE_CHECKING:
    from petm.data.base import Data

_LIBRARIES = ("petm", "torch", "numpy", "scikit-learn", "safetensors")
_LONGEST_SIDE = 1 << 16


@dataclass(frozen=True)
class ModelOrigin:
    """How the base model is built again.

    Attributes:
        reference: ``module:factory``; absent if a model was passed in Python.
        arguments: Keyword arguments of the factory; ``base``, the folder of an adapter's base model.
        weights: The weights file as it was named.
        classes: Class names; empty if there are none.
        reading: How the model is called and its answer becomes logits.
    """

    reference: str | None = None
    arguments: Mapping[str, Json] = field(default_factory=dict)
    weights: str | None = None
    classes: tuple[str, ...] = ()
    reading: Reading = field(default_factory=Reading)

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
        reading = Reading.from_json(record.record("reading")) if record.has("reading") else Reading()
        return cls(reference, record.free("arguments"), weights, record.texts("classes"), reading)


@dataclass(frozen=True)
class InputOrigin:
    """How inputs are read, so that grading reads them as fitting did. What is absent does not apply.

    Attributes:
        size: Height and width that images are resized to.
        channels: 1 for grey, 3 for colour.
        processor: The Hugging Face folder of the tokenizer or image processor.
        base: Where this is the folder of a LoRA adapter, that of its base model.
        fingerprint: SHA-256 of that tokenizer or image processor.
        text_column: The column of texts.
        length: Tokens to which every text is padded or cut; absent takes the longest of the data.
        resize: How images are resized (``petm.data.images.Resize``).
        mean: Subtracted from pixels in 0 to 1, by channel; empty if nothing is.
        std: Divisor then, by channel.
        profile: The values of the fit's inputs, where they are one tensor.
        prompt: In which a language model is asked about each text.
        pair_column: The column of the second of two texts.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    processor: str | None = None
    text_column: str | None = None
    length: int | None = None
    fingerprint: str | None = None
    resize: Resize | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    profile: InputProfile | None = None
    base: str | None = None
    prompt: Prompt | None = None
    pair_column: str | None = None

    @property
    def columns(self) -> Columns | None:
        """The column of texts, with that of their second ones, or those that the prompt names besides."""
        if self.text_column is None:
            return None
        others = (self.pair_column,) if self.pair_column else self.prompt.columns if self.prompt else ()
        return (self.text_column, *others) if others else self.text_column

    @property
    def takes_pixels(self) -> bool:
        """Whether pixels divided by 255 are inputs like those of the fit: not where the model takes others."""
        return not (self.processor or self.mean) if self.profile is None else self.profile.are_unit

    @property
    def takes_images(self) -> bool:
        """Whether images can be made inputs like those of the fit: not where they were standardised beforehand."""
        return bool(self.processor or self.mean) or self.takes_pixels

    @property
    def reads_files(self) -> bool:
        """Whether files can be made inputs like those of the fit; vectors and signals are arrays in any case."""
        known = bool(self.processor or self.size)
        return known or (self.profile is not None and len(self.profile.shape) != 3)

    def settings(self, processor: Any = None) -> FormSettings:
        """Returns how images are read; ``processor`` is the one that is named here."""
        if processor is not None:
            return {"processor": processor}
        channels: Any = self.channels
        told: FormSettings = {"size": self.size, "channels": channels, "resize": self.resize}
        return told | {"mean": self.mean or None, "std": self.std or None}

    @classmethod
    def of(cls, shape: Sequence[int]) -> "InputOrigin":
        """Returns how images are read into batches of ``shape``; empty for other shapes."""
        if len(shape) != 4 or shape[1] not in (1, 3):
            return cls()
        return cls((shape[2], shape[3]), shape[1])

    @classmethod
    def of_data(cls, data: "Data") -> "InputOrigin":
        """Returns how a data set is read; empty where it prepares its samples itself, as one of torch does."""
        processor, form = data.processor, data.form
        if isinstance(processor, Tokenizer):
            told: Any = {"text_column": TEXT, "fingerprint": processor.fingerprint} if processor.told else {}
            return cls(**processor.told, **told)
        if processor is not None:
            return cls(**processor.told, fingerprint=processor.fingerprint if processor.told else None)
        if form is not None:
            return cls(form.size, form.channels, resize=form.resize, mean=form.mean, std=form.std)
        return cls.of(data.inputs([0]).shape) if data.are_pixels else cls()

    @classmethod
    def from_json(cls, record: Record) -> "InputOrigin":
        """Returns the origin from a manifest; raises BundleError where an entry breaks its rule."""
        sides = record.numbers("size") if record.has("size") else ()
        if len(sides) not in (0, 2) or not all(side in range(1, _LONGEST_SIDE) for side in sides):
            raise BundleError(f"{record.place}, size: expected height and width in pixels, got {sides}.")
        channels = record.whole("channels", least=1, most=3) if record.has("channels") else None
        mean, std = (record.numbers(name) if record.has(name) else () for name in ("mean", "std"))
        if not len(mean) == len(std) in (0, channels) or not all(value > 0 for value in std):
            raise BundleError(f"{record.place}, std: expected one number above 0 for each channel, got {std}.")
        resize: Any = record.text_or_none("resize")
        if resize not in (None, *get_args(Resize)):
            raise BundleError(f"{record.place}, resize: expected squeeze or crop, got {resize[:80]!r}.")
        return cls(
            (int(sides[0]), int(sides[1])) if sides else None,
            channels,
            record.text_or_none("processor"),
            record.text_or_none("text_column"),
            record.whole("length", least=1) if record.has("length") else None,
            record.text_or_none("fingerprint"),
            resize,
            mean,
            std,
            InputProfile.from_json(record.record("profile")) if record.has("profile") else None,
            record.text_or_none("base"),
            Prompt.from_json(record.record("prompt")) if record.has("prompt") else None,
            record.text_or_none("pair_column"),
        )


@dataclass(frozen=True)
class DataOrigin:
    """The origin of a data set.

    Attributes:
        source: Where it was read.
        samples: Number of samples.
        content: SHA-256 of samples and labels.
        part_of_data: Whether the samples were held out of the data of the fit.
        seen: Number of samples left out as equal to a training sample.
        repeated: Number of samples left out as equal to an earlier one.
        hashes: Of labels, the hashes (`petm.data.unseen.sample_hashes`) of all that suspicion has learned from, in hex.
    """

    source: str
    samples: int
    content: str
    part_of_data: bool = False
    seen: int = 0
    repeated: int = 0
    hashes: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = "held out of the data" if self.part_of_data else f"from {self.source}"
        left = {"training samples": self.seen, "repetitions": self.repeated}
        out = "".join(f", without {count:,} {what}" for what, count in left.items() if count)
        return f"{self.samples:,} samples {where}{out}"

    @classmethod
    def from_json(cls, record: Record) -> "DataOrigin":
        """Returns the origin from a manifest; raises BundleError where an entry breaks its rule."""
        more: dict[str, Any] = {name: record.whole(name) for name in ("seen", "repeated") if record.has(name)}
        hashes = record.texts("hashes") if record.has("hashes") else ()
        strange = [each for each in hashes if not re.fullmatch("[0-9a-f]{16}", each)]
        if strange:
            raise BundleError(f"{record.place}, hashes: expected 16 hexadecimal digits, got {strange[0][:80]!r}.")
        return cls(
            record.text("source"),
            record.whole("samples"),
            record.text("content"),
            record.flag("part_of_data"),
            hashes=hashes,
            **more,
        )


@dataclass(frozen=True)
class Origin:
    """Where a grader comes from; ``data`` by role, ``settings`` and results of the fit by name."""

    model: ModelOrigin = field(default_factory=ModelOrigin)
    inputs: InputOrigin = field(default_factory=InputOrigin)
    data: Mapping[str, DataOrigin] = field(default_factory=dict)
    settings: Mapping[str, Json] = field(default_factory=dict)

    @property
    def learned_from(self) -> NDArray[np.uint64]:
        """Hashes of the confirmed labels' inputs that suspicion has learned from, which no longer judge it."""
        known = self.data.get("labels")
        return np.array([int(each, 16) for each in known.hashes] if known else [], np.uint64)


def paths_from(origin: Origin, bundle: Path) -> dict[str, str]:
    """Returns where the files and folders that an origin names are, from a bundle's folder on, by their names."""
    found: dict[str, str] = {}

    def note(named: str) -> str:
        if os.path.exists(named):
            with suppress(ValueError):  # another drive
                found[named] = Path(os.path.relpath(named, bundle)).as_posix()
        return named

    _with_paths(origin, note)
    return found


def found_from(origin: Origin, bundle: Path, paths: Mapping[str, str]) -> Origin:
    """Returns an origin that names files and folders where they lie from a bundle's folder on, if they are there.

    Args:
        origin: As it was written.
        bundle: The folder where the bundle is now.
        paths: From `paths_from`, when it was written.
    """

    def place(named: str) -> str:
        found = os.path.normpath(bundle / paths.get(named, ""))
        moved = named in paths and is_name(found) and os.path.exists(found)
        return found if moved and not (os.path.exists(named) and os.path.samefile(named, found)) else named

    return _with_paths(origin, place)


def _with_paths(origin: Origin, place: Callable[[str], str]) -> Origin:
    """The origin with each path of its model and its inputs replaced by its ``place``."""
    model, inputs = origin.model, origin.inputs
    reference, arguments = model.reference, model.arguments
    if (folder := folder_of(reference)) is not None:
        reference = f"{PREFIX}{place(str(folder))}"
        base = arguments.get("base")
        arguments = {**arguments, "base": place(base)} if isinstance(base, str) else arguments
    elif reference is not None and (file := re.fullmatch(r"(.+\.py):(\w+)", reference)):
        reference = f"{place(file[1])}:{file[2]}"
    weights, processor, base = (each and place(each) for each in (model.weights, inputs.processor, inputs.base))
    return replace(
        origin,
        model=replace(model, reference=reference, arguments=arguments, weights=weights),
        inputs=replace(inputs, processor=processor, base=base),
    )


def describe_data(data: "Data", *, part_of_data: bool = False, seen: int = 0, repeated: int = 0) -> DataOrigin:
    """Returns the origin of a data set; the other arguments are attributes of `DataOrigin`."""
    return DataOrigin(visible(data.source), len(data), data.content, part_of_data, seen, repeated)


def library_versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that a result depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}
