"""The network of a Hugging Face folder, and the names of its classes."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from petm._internal.extras import import_extra
from petm._internal.tensor_files import tensors_in
from petm.errors import ModelError
from petm.models.hf_adapter import is_adapter, read_adapter
from petm.models.hf_folder import read_classifier_config, read_json, transformers_reading
from petm.models.hf_tokenizer import has_vocabulary, padding_id, read_tokenizer
from petm.models.label_words import LabelWords

_INDEX = "model.safetensors.index.json"
_MORE_BUFFERS = 1 << 30
"""Bytes of buffers, such as masks, that no file holds, beyond those of the weights."""


def load_classifier(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    label_tokens: Mapping[str, int] | None = None,
) -> nn.Module:
    """Returns the image or sequence classifier of a folder, in eval mode, in the precision of its config or weights.

    A text model without a padding token gets one in memory: the tokenizer's, else the one that ends a text. A LoRA
    adapter of PEFT, with a last layer of its own or without, is put beside the layers of its base model, unmerged.

    Args:
        folder: With ``config.json`` and weights as safetensors, as ``save_pretrained`` writes them; or with an adapter.
        base: The folder of the model that an adapter was trained on, if not the one that its settings name.
        device_map: How accelerate spreads the model over devices, as transformers takes it; absent does not.
        trust_remote_code: Whether to run the folder's own code, if its model needs any.
        label_tokens: The token of each label word, for the causal language model of a folder.

    Raises:
        ExtraError: The model needs a package that is not installed, such as bitsandbytes.
        ModelError: There is no such folder, config or weights; it is not a classifier with one of at least two classes
            as its answer; weights are missing, in the adapter too, or do not fit; or it has code of its own that is not
            trusted.
    """
    adapter_folder, adapter = Path(folder), None
    if is_adapter(adapter_folder):
        if label_tokens is not None:
            raise ModelError(f"label_words: expected a causal language model, got {folder}, an adapter. Merge it.")
        adapter = read_adapter(adapter_folder, base, trust_remote_code=trust_remote_code)
        folder, config, task = adapter.base, adapter.config, adapter.task
    elif base is not None:
        raise ModelError(f"base: expected none beside {folder}, no adapter of PEFT, got {base}. Leave it out.")
    else:
        folder = Path(folder)
        asked = label_tokens is not None
        config, task = read_classifier_config(folder, trust_remote_code=trust_remote_code, label_words=asked)
    if not list(folder.glob("*.safetensors")):
        others = ", ".join(sorted(file.name for pattern in ("*.bin", "*.h5", "*.pt") for file in folder.glob(pattern)))
        raise ModelError(
            f"model: expected weights as *.safetensors in {folder}, got {others or 'none'}. "
            f"Write them with model.save_pretrained; nothing is loaded through pickle."
        )
    files = _weights_of(folder)
    if device_map is not None:
        import_extra("hf", "accelerate")
        places = device_map.values() if isinstance(device_map, Mapping) else ()
        if "disk" in places:
            raise ModelError(
                "device_map: expected every layer on a device, got one on disk, where no adapter can learn. "
                "Use more or larger devices, or a quantised model."
            )
    with transformers_reading(folder) as transformers:
        kinds = {name: kind for file in files for name, (kind, _) in tensors_in(file).items()}
        auto = getattr(transformers, f"AutoModelFor{task}")
        if not trust_remote_code:
            held = sum(file.stat().st_size for file in files)
            _check_size(folder, auto, config, held + (adapter.bytes if adapter else 0))
        model, found = auto.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            dtype="auto",
            device_map=device_map,
            ignore_mismatched_sizes=True,  # named below, where transformers would point to its log
            output_loading_info=True,
        )
    own = adapter.own if adapter else {}
    faults = [
        f"{key} is {tuple(got)} in the file and {tuple(wanted)} in the model"
        for key, got, wanted in sorted(found["mismatched_keys"])
        if key not in own
    ]
    missing = "missing in the file" if adapter is None else f"missing here and in the adapter {adapter.folder}"
    faults += [f"{key} is {missing}" for key in sorted(found["missing_keys"]) if key not in own]
    floats = [name for name, weight in model.named_parameters() if weight.is_floating_point()]
    faults += [
        f"{name} is {kinds[name]} in the file and floats in the model"
        for name in floats
        if kinds.get(name, "F").startswith(("I", "U", "BOOL"))
    ]
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise ModelError(
            f"model: expected the weights of the whole classifier in {folder}, got others: "
            f"{'; '.join(faults[:3])}{more}. Save the trained classifier with its last layer."
        )
    if task == "SequenceClassification" and getattr(config, "pad_token_id", None) is None:
        place = next((each for each in (adapter_folder, folder) if has_vocabulary(each)), None)
        tokenizer = read_tokenizer(place, trust_remote_code=trust_remote_code) if place else None
        model.config.pad_token_id = padding_id(config, tokenizer)
    away = sorted(name for name, weight in model.named_parameters() if weight.is_meta)
    if away:
        raise ModelError(
            f"device_map: expected every layer on a device, got {away[0]} on meta, as memory does not suffice. "
            f"Use more or larger devices, or a quantised model."
        )
    network: nn.Module = model.eval()
    if label_tokens is not None:
        return LabelWords(network, label_tokens)
    return network if adapter is None else adapter.attached(network)


def _weights_of(folder: Path) -> list[Path]:
    """The files of weights; raises ModelError where the list of several names others than those in the folder."""
    if (folder / "adapter_config.json").is_file():  # transformers would put the adapter into the model
        raise ModelError(
            f"model: expected a model without an adapter of PEFT in {folder}, got adapter_config.json. "
            f"Move the adapter into a folder of its own, or merge it."
        )
    whole = folder / "model.safetensors"
    if whole.is_file() or not (folder / _INDEX).is_file():
        return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    listed = read_json(folder / _INDEX).get("weight_map")
    names = [*listed.values()] if isinstance(listed, Mapping) else []
    there = {file.name for file in folder.glob("*.safetensors")}
    strange = [name for name in names if not isinstance(name, str) or name not in there]
    if strange or not names:
        raise ModelError(
            f"model: expected {_INDEX} to name files of weights in {folder}, got {[*strange, 'none'][0]!r:.100}. "
            f"Fetch it again."
        )
    return [folder / name for name in sorted(set(names))]


def _check_size(folder: Path, auto: Any, config: Any, held: int) -> None:
    """Builds the model without memory first, as its configuration may ask for any size."""
    with torch.device("meta"):
        sketch = auto.from_config(copy.deepcopy(config))
    weights, buffers = sum(each.numel() for each in sketch.parameters()), sum(each.nbytes for each in sketch.buffers())
    most = 8 * held if getattr(config, "quantization_config", None) else held  # of one bit, or of one byte
    if weights > most or buffers > held + _MORE_BUFFERS:
        raise ModelError(
            f"model: expected weights of the size that config.json says in {folder}, got {held:,} bytes of files for "
            f"{weights:,} parameters and {buffers:,} bytes of buffers. Fetch it again."
        )


def read_classes(
    folder: str | Path, *, base: str | Path | None = None, trust_remote_code: bool = False
) -> tuple[int, tuple[str, ...]]:
    """Returns ``K`` and the names of the classes in the order of the outputs; none for ``LABEL_0``, ``LABEL_1``, ...

    Raises:
        ModelError: As `load_classifier`, as far as ``config.json`` tells.
    """
    if is_adapter(Path(folder)):
        config = read_adapter(Path(folder), base, trust_remote_code=trust_remote_code).config
    else:
        config, _ = read_classifier_config(Path(folder), trust_remote_code=trust_remote_code)
    return int(config.num_labels), _names(config.id2label)


def names_of(model: nn.Module) -> tuple[str, ...]:
    """Returns the class names in a Hugging Face model's configuration; none for ``LABEL_0`` or for other models."""
    found = getattr(getattr(model, "config", None), "id2label", None)
    return _names(found) if isinstance(found, Mapping) else ()


def _names(id2label: Mapping[int, str]) -> tuple[str, ...]:
    names = tuple(str(id2label[number]) for number in sorted(id2label))
    return () if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names
