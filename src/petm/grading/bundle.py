"""A saved grader: a folder with the PEFT adapter, a manifest, and the base weights if asked for. No pickle.

my.petm/
├── adapter_config.json          PEFT's, loadable by PEFT alone
├── adapter_model.safetensors    PEFT's
├── second/                      a further adapter, where there are several, in a folder of its name
├── README.md                    the model card, as Hugging Face has it
├── base.safetensors             the base model's weights, only if asked for
└── petm.json                    the manifest: what the base model is, the threshold, where it comes from, a hash of
each file
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
        manifest: What a reader needs besides; the hashes of the files are added here.
        card: The text of ``README.md``.
        include_base: Put the base model's weights beside the adapter.
        overwrite: Replace a bundle that is there.

    Raises:
        RunError: Something else is there, a bundle is there and is not to be replaced, or the disk is full.
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
        model: The base model. Absent, it is built by the factory that the manifest names, with the weights in the
            bundle, else those that ``weights`` or the manifest names.
        weights: Where the base model's weights are now, if not where they were.
        trust_remote_code: As in `petm.models.loading.load_model`; a bundle does not remember it.

    Raises:
        BundleError: As `read_manifest`; or the base model's weights are not those that the adapter was fitted to.
        ModelError: The base model cannot be built.
    """
    path, manifest = Path(path), read_manifest(path)
    described = manifest.origin.model
    if model is None:
        if described.reference is None:
            raise BundleError(f"{path}: does not say how its model is built. Pass the model.")
        model = load_model(
            described.reference, arguments=dict(described.arguments), trust_remote_code=trust_remote_code
        )
        inside = path / BASE if BASE in manifest.files else None
        source = weights or inside or described.weights
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
    """Puts ``folder`` where ``path`` is; what was there goes once the new one is in place."""
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
