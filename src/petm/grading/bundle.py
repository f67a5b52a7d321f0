"""A saved grader: a folder with the PEFT adapter, a manifest, and the base weights if asked for. No pickle.

my.petm/
├── adapter_config.json          PEFT's, loadable by PEFT alone
├── adapter_model.safetensors    PEFT's
├── second/                      a further adapter, where there are several, in a folder of its name
├── README.md                    the model card, as Hugging Face has it
├── base.safetensors             A's weights, only if asked for
└── petm.json                    the manifest: what A is, the threshold, where it comes from, a hash of each file
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from petm._internal.files import (
    fingerprint,
    plain,
    sha256_of_file,
    write_json,
    write_text,
)
from petm.adapter.model import AdaptedModel, Member
from petm.adapter.peft_folder import load_adapter, save_adapter
from petm.adapter.split_point import Parting
from petm.errors import BundleError, RunError
from petm.models.loading import load_model, load_weights, save_weights, weights_fingerprint

FORMAT_VERSION = 2
MANIFEST, BASE, CARD = "petm.json", "base.safetensors", "README.md"


def write_bundle(
    path: str | Path,
    adapted: AdaptedModel,
    manifest: Mapping[str, Any],
    *,
    card: str,
    include_base: bool,
    overwrite: bool,
) -> None:
    """Writes a bundle: whole, or not at all.

    Args:
        path: The folder to make.
        adapted: A with its adapter.
        manifest: What a reader needs besides, as JSON has it; the hashes are added here.
        card: The text of ``README.md``.
        include_base: Put A's weights beside the adapter.
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
        members = [asdict(member) for member in adapted.members]
        content = plain(
            {
                "format": "petm bundle",
                "format_version": FORMAT_VERSION,
                **manifest,
                "members": members,
                "look_from": adapted.look_from,
                "files": files,
            }
        )
        write_json(folder / MANIFEST, content | {"checksum": _checksum(content)})
        folder.chmod(0o755)
        _swap(folder, path)
    except OSError as error:
        raise RunError(f"{path}: could not be written ({error.strerror}). Free space.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Checks that a bundle may be written to ``path``, before anything is computed for it.

    Raises:
        RunError: Something is there that is no bundle, or a bundle that is not to be replaced.
    """
    if not path.exists():
        return
    if not (path / MANIFEST).is_file():
        raise RunError(f"{path}: expected no such path yet, got something that is no bundle. Choose another name.")
    if not overwrite:
        raise RunError(f"{path}: expected no such path yet, got a bundle. Choose another name, or overwrite it.")


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Returns a bundle's manifest after checking every file against its hash.

    Raises:
        BundleError: The folder is no bundle, is from a newer version, lacks a file, or a file has changed.
    """
    path = Path(path)
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{path}: expected a petm bundle, got no {MANIFEST} in it.") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: expected a readable {MANIFEST}, got a damaged one ({error}).") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if not isinstance(version, int) or manifest.get("format") != "petm bundle":
        raise BundleError(f"{path}: expected a petm bundle, got a {MANIFEST} of another kind.")
    if version != FORMAT_VERSION:
        step = "Upgrade petm to read it" if version > FORMAT_VERSION else "Fit again"
        raise BundleError(f"{path}: expected bundle version {FORMAT_VERSION}, got {version}. {step}.")
    checksum = manifest.pop("checksum", None)
    if checksum != _checksum(manifest):
        raise BundleError(f"{path}: {MANIFEST} has changed since it was written. Restore it or fit again.")
    for name, expected in manifest["files"].items():
        if not (path / name).is_file():
            raise BundleError(f"{path}: expected the file {name}, got none. Restore it or fit again.")
        if sha256_of_file(path / name) != expected:
            raise BundleError(f"{path}: {name} has changed since it was written. Restore it or fit again.")
    return manifest


def read_bundle(
    path: str | Path,
    model: nn.Module | None = None,
    *,
    weights: str | Path | None = None,
    trust_remote_code: bool = False,
) -> tuple[AdaptedModel, dict[str, Any]]:
    """Returns A with its adapter, and the manifest.

    Args:
        path: The bundle.
        model: A. Absent, it is built by the factory that the manifest names, with the weights in the bundle, else
            those that ``weights`` or the manifest names.
        weights: Where A's weights are now, if not where they were.
        trust_remote_code: As in `petm.models.loading.load_model`; a bundle does not remember it.

    Raises:
        BundleError: As `read_manifest`; or A's weights are not those that the adapter was fitted to.
        ModelError: A cannot be built.
    """
    path, manifest = Path(path), read_manifest(path)
    described = manifest["model"]
    if model is None:
        if described["reference"] is None:
            raise BundleError(f"{path}: does not say how its model is built. Pass the model.")
        model = load_model(
            described["reference"], arguments=described["arguments"], trust_remote_code=trust_remote_code
        )
        inside = path / BASE if BASE in manifest["files"] else None
        source = weights or inside or described["weights"]
        if source is not None:
            load_weights(model, source)
    found = weights_fingerprint(model)
    if found != described["fingerprint"]:
        raise BundleError(
            f"{path}: was made for another model (weights {described['fingerprint'][:12]}, got {found[:12]}). "
            f"Pass the model and the weights that it was fitted to."
        )
    members = [Member(**member) for member in manifest["members"]]
    adapted = load_adapter(model, path, members)
    adapted.look_from = manifest["look_from"]
    if saved := manifest.get("adapter", {}).get("parting"):
        adapted.remembered = Parting.from_json(saved)
    return adapted, manifest


def _checksum(content: Mapping[str, Any]) -> str:
    return fingerprint([json.dumps(content, sort_keys=True)])


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
