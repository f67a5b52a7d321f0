"""The manifest of a bundle, ``petm.json``: typed, versioned, and checked entry by entry when it is read."""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from petm._internal.files import REPLACE, fingerprint, plain, sha256_of_file, write_json
from petm._internal.records import LONGEST_FILE, Json, Record
from petm._internal.tensor_files import tensors_in
from petm.adapter.cascade import Cascade
from petm.errors import BundleError, RunError
from petm.grading.provenance import DataOrigin, InputOrigin, ModelOrigin, Origin, found_from
from petm.selective.choice import Choice
from petm.selective.outcome import Outcome
from petm.selective.probability import ErrorProbability
from petm.selective.sets import PredictionSets, sets_of_grades
from petm.selective.targets import Target, target_from_json, target_to_json
from petm.selective.thresholds import Threshold

FORMAT, FORMAT_VERSION = "petm bundle", 4
MANIFEST, BASE, CARD, EVIDENCE = "petm.json", "base.safetensors", "README.md", "evidence.safetensors"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_AT_ROOT = "default"
"""The adapter whose files are not in a folder of its name, as in PEFT."""
_HASH = re.compile("[0-9a-f]{64}")
_MOST_MEMBERS, _LONGEST_NAME = 64, 255


@dataclass(frozen=True)
class MemberRecord:
    """One ensemble member: the name of its adapter, empty for the base model itself, and its view of the input."""

    adapter: str
    view: str

    @classmethod
    def from_json(cls, record: Record) -> "MemberRecord":
        """Returns the member from a manifest; raises BundleError where an entry breaks its rule."""
        adapter, view = record.text("adapter"), record.text("view")
        if adapter and ("/" in _inside(record, adapter) or len(adapter) > _LONGEST_NAME):
            raise BundleError(f"{record.place}, adapter: expected the name of a folder, got {adapter[:60]!r}.")
        if len(view) > _LONGEST_NAME:
            raise BundleError(f"{record.place}, view: expected at most {_LONGEST_NAME} characters, got {view[:60]!r}.")
        return cls(adapter, view)


@dataclass(frozen=True)
class Manifest:
    """Everything in a bundle besides the weights; see `petm.grading.grader.Grader` for what is not listed.

    Attributes:
        fingerprint: SHA-256 of the base model's weights.
        parameters: Number of the base model's parameters.
        layers: The rank of each adapted layer.
        adapter_parameters: Number of all adapters' parameters.
        split_point: As `petm.adapter.split_point` writes it; absent if it was never searched.
        members: The ensemble members.
        cascade: The predictions for which a second opinion is computed; absent for all.
        feature_layer: Name of the linear layer whose input are the features; empty where none are needed.
        suspicion: As `petm.evidence.suspicion.Suspicion.as_json` writes it.
        versions: Versions of Python and of the libraries.
        files: SHA-256 of each file of the bundle, by its path in the folder.
        paths: Where the files and folders that the origin names are from the bundle's folder on, by their names.
    """

    origin: Origin
    fingerprint: str
    parameters: int
    layers: Mapping[str, int]
    adapter_parameters: int
    split_point: Mapping[str, Json] | None
    members: tuple[MemberRecord, ...]
    cascade: Cascade | None
    feature_layer: str
    suspicion: Mapping[str, Json]
    threshold: Threshold
    target: Target | None
    probability: ErrorProbability | None
    measured: Mapping[str, Json]
    choice: Choice | None
    outcome: Outcome | None
    sets: PredictionSets | None
    versions: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """Returns the manifest in JSON's types, as in ``petm.json`` and ``petm inspect --json``."""
        origin, model = self.origin, asdict(self.origin.model)
        found: dict[str, Json] = plain(
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "model": {**model, "fingerprint": self.fingerprint, "parameters": self.parameters},
                "adapter": {
                    "layers": self.layers,
                    "parameters": self.adapter_parameters,
                    "split_point": self.split_point,
                },
                "members": self.members,
                "cascade": self.cascade,
                "feature_layer": self.feature_layer,
                "inputs": origin.inputs,
                "suspicion": self.suspicion,
                "threshold": self.threshold.as_json(),
                "target": target_to_json(self.target) if self.target else None,
                "probability": self.probability,
                "data": origin.data,
                "settings": origin.settings,
                "measured": self.measured,
                "choice": self.choice,
                "outcome": self.outcome,
                "sets": self.sets,
                "versions": self.versions,
                "files": self.files,
                "paths": self.paths,
            }
        )
        return found

    @classmethod
    def from_json(cls, record: Record) -> "Manifest":
        """Returns the manifest that `to_json` wrote; raises BundleError where an entry breaks its rule."""
        model, adapter, data = record.record("model"), record.record("adapter"), record.record("data")
        layers, files, versions = adapter.record("layers"), record.record("files"), record.record("versions")
        paths = record.record("paths") if record.has("paths") else Record({}, record.place)
        members = [MemberRecord.from_json(entry) for entry in record.records("members")]
        if len(members) > _MOST_MEMBERS:
            raise BundleError(f"{record.place}, members: expected at most {_MOST_MEMBERS}, got {len(members)}.")
        origin = Origin(
            ModelOrigin.from_json(model),
            InputOrigin.from_json(record.record("inputs")),
            {role: DataOrigin.from_json(data.record(role)) for role in data.content},
            record.free("settings"),
        )
        return cls(
            origin,
            _hash(model, "fingerprint"),
            model.whole("parameters"),
            {name: layers.whole(name, least=1) for name in layers.content},
            adapter.whole("parameters"),
            adapter.free("split_point") if adapter.has("split_point") else None,
            tuple(members),
            Cascade.from_json(record.record("cascade")) if record.has("cascade") else None,
            record.text("feature_layer"),
            record.free("suspicion"),
            Threshold.from_json(record.record("threshold")),
            target_from_json(record.record("target")) if record.has("target") else None,
            ErrorProbability.from_json(record.record("probability")) if record.has("probability") else None,
            record.free("measured"),
            Choice.from_json(record.record("choice")) if record.has("choice") else None,
            Outcome.from_json(record.record("outcome")) if record.has("outcome") else None,
            sets_of_grades(record.record("sets")) if record.has("sets") else None,
            {name: versions.text(name) for name in versions.content},
            {_inside(record, name): _hash(files, name) for name in files.content},
            {name: paths.text(name) for name in paths.content},
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes ``petm.json``; raises RunError where it cannot be written."""
    content = manifest.to_json()
    write_json(folder / MANIFEST, content | {"checksum": checksum(content)})


def read_manifest(path: str | Path) -> Manifest:
    """Returns a bundle's manifest after checking its entries, and every file against its hash.

    Raises:
        BundleError: The folder is no bundle or of another version, a file is missing or changed, or an entry breaks its
            rule.
    """
    path = Path(path)
    recover(path)
    record = Record.from_file(path / MANIFEST)
    version = record.content.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or record.content.get("format") != FORMAT:
        raise BundleError(f"{path}: expected a petm bundle, got a {MANIFEST} of another kind.")
    if version != FORMAT_VERSION:
        step = "Upgrade petm to read it" if version > FORMAT_VERSION else "Fit again"
        raise BundleError(f"{path}: expected bundle version {FORMAT_VERSION}, got {version}. {step}.")
    held = {name: value for name, value in record.content.items() if name != "checksum"}
    if record.content.get("checksum") != checksum(held):
        raise BundleError(f"{path}: {MANIFEST} has changed since it was written. Restore it or fit again.")
    manifest = Manifest.from_json(record)
    _check_names(path, manifest)
    for name, expected in manifest.files.items():
        if not Path(os.path.realpath(path / name)).is_relative_to(os.path.realpath(path)):
            raise BundleError(f"{path}: expected the file {name} itself, got a link out of the bundle. Copy the file.")
        if not (path / name).is_file():
            raise BundleError(f"{path}: expected the file {name}, got none. Restore it or fit again.")
        _check_size(path, name)
        if sha256_of_file(path / name) != expected:
            raise BundleError(f"{path}: {name} has changed since it was written. Restore it or fit again.")
    return replace(manifest, origin=found_from(manifest.origin, path, manifest.paths))


def _check_names(path: Path, manifest: Manifest) -> None:
    """Checks that the manifest lists the files that are read, so that all are hashed, and no others."""
    places = {member.adapter for member in manifest.members if member.adapter}
    wanted = {f"{'' if place == _AT_ROOT else f'{place}/'}{name}" for place in places for name in ADAPTER_FILES}
    listed = set(manifest.files)
    strange = sorted((wanted - listed) | (listed - wanted - {CARD, BASE, EVIDENCE}))
    if strange:
        raise BundleError(
            f"{path}: {MANIFEST}, files: expected the adapter's files, {CARD}, {EVIDENCE} and {BASE}, "
            f"got another list ({strange[0]!r:.80}). Fit again."
        )


def _check_size(path: Path, name: str) -> None:
    """Checks a file before it is hashed, which could take hours: a few bytes on the disk can be a file of any size."""
    file = path / name
    try:
        if file.suffix == ".safetensors":
            tensors_in(file)
        elif file.stat().st_size > LONGEST_FILE:
            raise ValueError(f"{file.stat().st_size:,} bytes, more than {LONGEST_FILE:,}")
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{path}: expected {name} as petm writes it, got {error}. Restore it or fit again."
        ) from error


def set_aside(path: Path) -> Path:
    """Returns where an older bundle is while a new one takes its place."""
    return path.with_name(f".{path.name}.old")


def recover(path: Path) -> None:
    """Puts an older bundle back, if a process was killed after it had set it aside."""
    with suppress(OSError, ValueError):  # a read-only disk; a path without a name
        if not path.exists() and (set_aside(path) / MANIFEST).is_file():
            os.rename(set_aside(path), path)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raises RunError if a bundle must not be written to ``path``."""
    recover(path)
    if not path.exists():
        return
    if not (path / MANIFEST).is_file():
        raise RunError(f"{path}: expected no such path yet, got something that is no bundle. Choose another name.")
    if not overwrite:
        raise RunError(f"{path}: expected no such path yet, got a bundle. Choose another name, or {REPLACE}.")


def _hash(record: Record, name: str) -> str:
    found = record.text(name)
    if not _HASH.fullmatch(found):
        raise BundleError(f"{record.place}, {name}: expected 64 hexadecimal digits, got {found[:80]!r}.")
    return found


def _inside(record: Record, name: str) -> str:
    """The name of a file inside the bundle."""
    parts = name.split("/")
    if not all(parts) or {".", ".."} & set(parts) or "\\" in name or ":" in name or "\0" in name:
        raise BundleError(f"{record.place}, files: expected names within the folder, got {name[:80]!r}.")
    return name


def checksum(content: Mapping[str, Json]) -> str:
    """Returns the SHA-256 of JSON, in any order of its entries."""
    return fingerprint([json.dumps(content, sort_keys=True)])
