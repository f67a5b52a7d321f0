"""An adapter that PEFT has trained elsewhere, taken as a second opinion."""

import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from petm.adapter.lora import AdaptedModel, adaptable_layers, load_adapter
from petm.errors import BundleError, PetmWarning

_CONFIG, _WEIGHTS, _PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_TAKEN = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "peft_type",
        "peft_version",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
"""Settings that say which layers are adapted, how strongly, and where the adapter comes from: any value will do."""
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    # Others, such as pissa, change the base weights as the adapter is loaded.
    "init_lora_weights": (True, "gaussian", "orthogonal"),
    "megatron_core": ("megatron.core",),
    "qalora_group_size": (16,),
}
"""Beside empty ones, the values of further settings that leave an adapted layer ``W0 + alpha * B A``."""


def adopt_adapter(model: nn.Module, folder: str | Path) -> AdaptedModel:
    """Returns A with a LoRA adapter that PEFT has trained, as its second opinion; nothing is trained.

    At ``alpha = 1`` it answers as PEFT does in eval mode, ``W0 + s * B A`` in each adapted layer, where PEFT's scale
    ``s`` is ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with ``use_rslora``; dropout acts in training only. Pass it
    to `fit_grader` for a threshold. Shapes and names of layers tell whether the adapter fits A; whether
    it was trained on these very weights a PEFT folder does not say. Where the folder and A both name a base model and
    the names differ, a warning says so.

    Args:
        model: A, with the weights that the adapter was trained on. Neither its modules nor its weights are touched.
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT's ``save_pretrained`` writes.

    Raises:
        BundleError: The folder holds no LoRA adapter, one that changes more than ``W0 + alpha * B A`` in layers of A,
            one for other layers, or weights in a pickle.
    """
    folder = Path(folder)
    config = _read_config(folder)
    _check_config(folder, config)
    if not (folder / _WEIGHTS).is_file():
        found = f"{_PICKLE}, a pickle" if (folder / _PICKLE).is_file() else "no such file"
        raise BundleError(
            f"{folder}: expected {_WEIGHTS}, got {found}. Save the adapter again with safe_serialization=True."
        )
    adapted = load_adapter(model, folder)
    strange = sorted(set(adapted.ranks) - set(adaptable_layers(model)))
    if strange:
        raise BundleError(
            f"{folder}: expected an adapter on layers that can take one, got {', '.join(strange)}. "
            f"Available: {', '.join(adaptable_layers(model))}."
        )
    _compare_names(folder, config.get("base_model_name_or_path"), model)
    return adapted


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{folder}: expected an adapter that PEFT has saved, got no {_CONFIG} in it.") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder}: expected a readable {_CONFIG}, got a damaged one ({error}).") from error
    if not isinstance(config, dict):
        raise BundleError(f"{folder}: expected an object in {_CONFIG}, got {type(config).__name__}.")
    return config


def _check_config(folder: Path, config: dict[str, Any]) -> None:
    """Checks that the adapter is LoRA, and that no setting makes more of it."""
    if config.get("peft_type") != "LORA":
        raise BundleError(f"{folder}: expected an adapter of type LORA, got {config.get('peft_type')}. Train LoRA.")
    for name, value in config.items():
        if name not in _TAKEN and value and value not in _HARMLESS.get(name, ()):
            raise BundleError(
                f"{folder}: expected an adapter that is W0 + alpha * B A in layers of A and nothing else, got one with "
                f"{name} = {value!r}. Train it without."
            )


def _compare_names(folder: Path, trained_on: str | None, model: nn.Module) -> None:
    """Warns where A is named otherwise than what the adapter was trained on; a folder may have moved."""
    own = getattr(model, "name_or_path", None)
    if own and trained_on and Path(own).name != Path(trained_on).name:
        warnings.warn(
            f"{folder}: was trained on {trained_on!r}, but the model is {own!r}. Pass the model it was trained on, "
            f"unless this is the same.",
            PetmWarning,
            stacklevel=3,
        )
