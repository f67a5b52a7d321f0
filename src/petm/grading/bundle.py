"""A saved grader: a folder with the adapter in PEFT's format, a manifest, and the base weights on request. No pickle.

my.petm/
├── adapter_config.json          the adapter, which PEFT alone can load
├── adapter_model.safetensors
├── second/                      a further adapter, in a folder of its name
├── README.md                    the model card in Hugging Face's format
├── base.safetensors             the base model's weights, on request
├── evidence.safetensors         what the evidence has learned, if anything
└── petm.json                    the manifest: base model, threshold, origin, a hash of each file
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from petm._internal.files import sha256_of_file, write_atomically, write_text, written_alone
from petm._internal.records import Record
from petm.adapter.model import AdaptedModel, Member
from petm.adapter.peft_folder import load_adapter, save_adapter
from petm.adapter.split_point import from_json
from petm.data.views import view
from petm.errors import ArgumentError, BundleError, RunError
from petm.grading.manifest import (
    BASE,
    CARD,
    EVIDENCE,
    MANIFEST,
    Manifest,
    check_target,
    read_manifest,
    recover,
    set_aside,
    write_manifest,
)
from petm.grading.provenance import paths_from
from petm.models.answers import remember
from petm.models.hf_folder import folder_of
from petm.models.loading import arguments_of, load_model, load_weights, save_weights, weights_fingerprint
from petm.models.probe import check_module
from petm.models.trust import build_named


def write_bundle(
    path: str | Path,
    adapted: AdaptedModel,
    manifest: Manifest,
    evidence: Mapping[str, Tensor],
    *,
    card: str,
    include_base: bool,
    overwrite: bool,
) -> None:
    """Writes a bundle as `petm.grading.grader.Grader.save` does, with ``card`` as its ``README.md``.

    ``evidence`` are the tensors of `petm.evidence.suspicion.Suspicion`. The hashes of the files are added here.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_alone(path):
            check_target(path, overwrite=overwrite)  # another process may have written it since
            for stale in path.parent.iterdir():
                if stale.name.startswith(f".{path.name}.draft-"):  # of a process that was killed
                    shutil.rmtree(stale, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.draft-") as draft:
                folder = Path(draft, "new")
                folder.mkdir()
                save_adapter(adapted, folder)
                write_text(folder / CARD, card)
                if evidence:
                    write_atomically(folder / EVIDENCE, partial(save_file, dict(evidence)))
                if include_base:
                    save_weights(adapted.base, folder / BASE)
                held = (file for file in sorted(folder.rglob("*")) if file.is_file())
                files = {file.relative_to(folder).as_posix(): sha256_of_file(file) for file in held}
                write_manifest(folder, replace(manifest, files=files, paths=paths_from(manifest.origin, path)))
                _put(folder, path)
    except OSError as error:
        raise RunError(
            f"{path}: could not be written ({error.strerror}). Free space or choose another folder."
        ) from error


def _put(folder: Path, path: Path) -> None:
    """Puts a bundle in the place of an older one, which `petm.grading.manifest.recover` finds after a kill."""
    old = set_aside(path)
    try:
        while True:
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.replace(path, old)
            try:
                os.replace(folder, path)
                break
            except OSError:
                if not path.exists():  # else a reader has put the old one back in between
                    raise
    except BaseException:
        recover(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def read_bundle(
    path: str | Path,
    model: nn.Module | str | None = None,
    *,
    weights: str | Path | None = None,
    base: str | Path | None = None,
    trust_bundle_code: bool = False,
    trust_remote_code: bool = False,
) -> tuple[AdaptedModel, Manifest, dict[str, Tensor]]:
    """Returns the base model with its adapter, the manifest, and the tensors of the evidence.

    Arguments and errors are those of `petm.grading.grader.load`.

    A model that is built here gets ``weights``, else those in the bundle, else those that the manifest names.
    """
    path, manifest = Path(path), read_manifest(path)
    if not isinstance(model, nn.Module):
        trust = {"trust_bundle_code": trust_bundle_code, "trust_remote_code": trust_remote_code}
        model = _build(path, manifest, model, weights, base, **trust)
    check_module(model)
    check_made_for(path, manifest, model)
    remember(model, manifest.origin.model.reading)
    try:
        for member in manifest.members:
            view(member.view)
    except ArgumentError as error:
        raise BundleError(f"{path}: {MANIFEST}, members: {error} Upgrade petm.") from error
    adapted = load_adapter(model, path, [Member(member.adapter, member.view) for member in manifest.members])
    if adapted.ranks != manifest.layers:
        raise BundleError(f"{path}: expected an adapter on the layers of {MANIFEST}, got one on others. Fit again.")
    adapted.cascade = manifest.cascade if manifest.members else None
    try:
        adapted.take_features(manifest.feature_layer)
        tensors = load_file(path / EVIDENCE) if EVIDENCE in manifest.files else {}
    except (AttributeError, OSError, SafetensorError) as error:
        got = f"{error!s:.100}"
        raise BundleError(f"{path}: expected evidence on the model's features, got {got}. Fit again.") from error
    if manifest.split_point is not None:
        adapted.remembered = from_json(Record(manifest.split_point, f"{path}: {MANIFEST}, adapter, split_point"))
    return adapted, manifest, tensors


def check_made_for(path: Path, manifest: Manifest, model: nn.Module) -> None:
    """Raises BundleError where the model is not the one, to the bit, that a bundle was fitted to."""
    found = weights_fingerprint(model)
    if found != manifest.fingerprint:
        raise BundleError(
            f"{path}: was made for another model (weights {manifest.fingerprint[:12]}, got {found[:12]}). "
            f"Pass the model and the weights that it was fitted to."
        )


def _build(
    path: Path,
    manifest: Manifest,
    named: str | None,
    weights: str | Path | None,
    base: str | Path | None,
    **trust: bool,
) -> nn.Module:
    """The base model by its user's reference, else by the bundle's, with its weights."""
    described = manifest.origin.model
    held = weights or (path / BASE if BASE in manifest.files else described.weights)
    source = Path(held) if held is not None else None
    arguments = described.arguments if base is None else {**described.arguments, "base": str(base)}
    if named is not None:
        if (folder_of(named) is None) != (folder_of(described.reference) is None):
            arguments = {}  # those of a factory are not those of a folder
        model = load_model(named, **arguments_of(named, arguments), trust_remote_code=trust["trust_remote_code"])
    elif described.reference is not None:
        how: Any = {"parameters": manifest.parameters, **trust}
        model = build_named(path, described.reference, arguments, source, **how)
    else:
        raise BundleError(f"{path}: expected a bundle that says how its model is built, got none. Pass the model.")
    if source is not None:
        load_weights(model, source)
    return model
