"""A saved grader: a folder with the adapter in PEFT's format, a manifest, and the base weights on request. No pickle.

my.petm/
├── adapter_config.json          the adapter, which PEFT alone can load
├── adapter_model.safetensors
├── second/                      a further adapter, in a folder of its name
├── README.md                    the model card in Hugging Face's format
├── base.safetensors             the base model's weights, on request
└── petm.json                    the manifest: base model, threshold, origin, a hash of each file
"""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from torch import nn

from petm._internal.files import sha256_of_file, write_text
from petm._internal.records import Record
from petm.adapter.model import AdaptedModel, Member
from petm.adapter.peft_folder import load_adapter, save_adapter
from petm.adapter.split_point import from_json
from petm.errors import BundleError, RunError
from petm.grading.manifest import BASE, CARD, MANIFEST, Manifest, check_target, read_manifest, write_manifest
from petm.models.loading import load_model, load_weights, save_weights, weights_fingerprint


def write_bundle(
    path: str | Path, adapted: AdaptedModel, manifest: Manifest, *, card: str, include_base: bool, overwrite: bool
) -> None:
    """Writes a bundle: whole, or not at all.

    Args:
        path: The folder to make.
        adapted: The base model with its adapter.
        manifest: The manifest without the hashes of the files, which are added here.
        card: The text of ``README.md``.
        include_base: Whether to add the base model's weights.
        overwrite: Whether to replace an existing bundle.

    Raises:
        RunError: ``path`` exists and must not be replaced, or the disk is full.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise RunError(f"{path}: could not be written ({error.strerror}). Choose another folder.") from error
    try:
        save_adapter(adapted, folder)
        write_text(folder / CARD, card)
        if include_base:
            save_weights(adapted.base, folder / BASE)
        held = (file for file in sorted(folder.rglob("*")) if file.is_file())
        files = {file.relative_to(folder).as_posix(): sha256_of_file(file) for file in held}
        write_manifest(folder, replace(manifest, files=files))
        folder.chmod(0o755)
        _swap(folder, path)
    except OSError as error:
        raise RunError(f"{path}: could not be written ({error.strerror}). Free space.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_bundle(
    path: str | Path,
    model: nn.Module | None = None,
    *,
    weights: str | Path | None = None,
    trust_remote_code: bool = False,
) -> tuple[AdaptedModel, Manifest]:
    """Returns the base model with its adapter, and the manifest.

    Args:
        path: The bundle.
        model: The base model. Absent, the factory named in the manifest builds it, with the weights in ``weights``,
            else in the bundle, else where the manifest says.
        weights: The base model's weights file, if it has moved.
        trust_remote_code: As in `petm.models.loading.load_model`; never stored in a bundle.

    Raises:
        BundleError: As `read_manifest`; or the base model's weights are not those that the adapter was fitted to.
        ModelError: The base model cannot be built.
    """
    path, manifest = Path(path), read_manifest(path)
    described = manifest.origin.model
    if model is None:
        if described.reference is None:
            raise BundleError(f"{path}: expected a bundle that says how its model is built, got none. Pass the model.")
        model = load_model(
            described.reference, arguments=dict(described.arguments), trust_remote_code=trust_remote_code
        )
        source = weights or (path / BASE if BASE in manifest.files else described.weights)
        if source is not None:
            load_weights(model, source)
    found = weights_fingerprint(model)
    if found != manifest.fingerprint:
        raise BundleError(
            f"{path}: was made for another model (weights {manifest.fingerprint[:12]}, got {found[:12]}). "
            f"Pass the model and the weights that it was fitted to."
        )
    adapted = load_adapter(model, path, [Member(member.adapter, member.view) for member in manifest.members])
    adapted.cascade_threshold = manifest.cascade_threshold
    if manifest.split_point is not None:
        adapted.remembered = from_json(Record(manifest.split_point, f"{path}: {MANIFEST}, adapter, split_point"))
    return adapted, manifest


def _swap(folder: Path, path: Path) -> None:
    """Moves ``folder`` to ``path``; what was there is removed once the new one is in place."""
    if not path.exists():
        os.replace(folder, path)
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
    try:
        os.replace(path, old)
        os.replace(folder, path)
    except BaseException:
        if path.exists():
            old.rmdir()
        else:
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)
