"""PEFT's folder format, which is ours on disk: an adapter is written, read and adopted without PEFT itself."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from petm._internal.files import write_atomically, write_json
from petm._internal.records import LONGEST_FILE, parse_json
from petm.adapter.lora import ADAPTER, Adapter, adaptable_layers, innermost, is_conv1d, sizes_of
from petm.adapter.model import ONE, AdaptedModel, Member, views_alone
from petm.errors import BundleError, RunError
from petm.models.hf_adapter import CONFIG, PICKLE, PREFIX, TAKEN, WEIGHTS, compare_names, may_hang, strange_setting

_FACTOR = re.compile(r"(.+)\.(lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB])")
_FLOATS = frozenset(("F16", "BF16", "F32", "F64"))


def save_adapter(adapted: AdaptedModel, folder: Path) -> None:
    """Writes ``adapter_config.json`` and ``adapter_model.safetensors``, which PEFT alone can load.

    Further adapters are written into folders of their names, as PEFT does it.

    Raises:
        RunError: A file could not be written.
    """
    for adapter in adapted.adapters:
        place = _folder_of(folder, adapter)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapted.adapter_state(adapter).items()}
        exactly = {f"^{re.escape(layer)}": rank for layer, rank in adapted.ranks.items()}
        scales = {layer: adapted.adapter.layer(adapter, layer).scale for layer in adapted.ranks}
        # PEFT scales by lora_alpha / r.
        alphas = {f"^{re.escape(layer)}": scale * adapted.ranks[layer] for layer, scale in scales.items()}
        config = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": getattr(adapted.base, "name_or_path", None),
            "inference_mode": True,
            "fan_in_fan_out": any(is_conv1d(adapted.base.get_submodule(layer)) for layer in adapted.ranks),
            "r": 1,
            "lora_alpha": 1,
            "lora_dropout": 0.0,
            "bias": "none",
            "lora_bias": adapted.adapter.bias,
            "use_rslora": False,
            "target_modules": "|".join(re.escape(layer) for layer in adapted.ranks),
            "rank_pattern": exactly,
            "alpha_pattern": alphas,
        }
        try:
            place.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(f"{place}: could not be written ({error.strerror}). Free space.") from error
        write_json(place / CONFIG, config)
        write_atomically(place / WEIGHTS, lambda path, held=tensors: save_file(held, path))  # type: ignore[misc]


def load_adapter(
    model: nn.Module, folder: Path, members: Sequence[Member] = ONE, *, heads: bool = False
) -> AdaptedModel:
    """Returns the base model with the adapters of a PEFT folder.

    With ``heads``, a linear layer of the folder's own, ``W' x + b'``, is taken as an adapter of full rank on that of
    the model: ``(W' - W0) x + (b' - b0)``.

    Raises:
        BundleError: The folder holds no LoRA adapters that fit the model.
    """
    names = tuple(dict.fromkeys(member.adapter for member in members if member.adapter))
    if not names:
        return views_alone(model, members)
    try:
        paths = [_folder_of(folder, name) / WEIGHTS for name in names]
        config, shapes = _read_config(paths[0].parent), _shapes(paths[0])
        own = _heads(shapes, config, model) if heads else {}
        told = {key: shape for key, shape in shapes.items() if _FACTOR.fullmatch(key) or _layer_of(key) not in own}
        ranks = _ranks(told)
        _check_layers({**ranks, **own}, told, model)
        if any(_shapes(path) != shapes for path in paths[1:]):  # before any is allocated: each is held by its file
            raise _UnfitError("adapters of several shapes")
        bias = any(key.endswith(".bias") for key in shapes)
        adapter = Adapter(model, names, {**ranks, **own}, _scales(config, ranks), bias=bias)
        for name, path in zip(names, paths, strict=True):
            _fill(adapter, name, told, path, {layer: model.get_submodule(layer) for layer in own})
    except (_UnfitError, OSError, SafetensorError) as error:
        got = str(error).splitlines()[0]
        raise BundleError(f"{folder}: expected a LoRA adapter that fits the model, got {got}.") from error
    return AdaptedModel(model, adapter, members)


class _UnfitError(Exception):
    """Why an adapter does not fit, as the end of a sentence."""


def _folder_of(folder: Path, adapter: str) -> Path:
    return folder if adapter == ADAPTER else folder / adapter


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors, which are not read."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > LONGEST_FILE:
        raise _UnfitError(f"a list of tensors of {header:,} bytes")
    with safe_open(path, framework="pt") as opened:
        slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118  # it has no iterator
    strange = [key for key, part in slices.items() if part.get_dtype() not in _FLOATS]
    if strange:
        raise _UnfitError(f"{strange[0]!r:.100} of dtype {slices[strange[0]].get_dtype()}")
    return {key: tuple(part.get_shape()) for key, part in slices.items()}


def _ranks(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The rank of each layer, by the tensors there are."""
    ranks: dict[str, int] = {}
    for key, shape in shapes.items():
        match = _FACTOR.fullmatch(key.removeprefix(PREFIX)) if key.startswith(PREFIX) else None
        if match is None:
            raise _UnfitError(f"the tensor {key!r:.100}")
        if match[2].startswith(("lora_A", "lora_embedding_A")):
            ranks[match[1]] = shape[0] if shape else 0
    if not ranks:
        raise _UnfitError("no tensor of an adapter")
    return ranks


def _layer_of(key: str) -> str:
    """The layer of the model that a tensor replaces."""
    return key.removeprefix(PREFIX).rpartition(".")[0]


def _heads(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], model: nn.Module) -> dict[str, int]:
    """The full ranks of the linear layers that the folder's own replace."""
    named = tuple(map(str, config.get("modules_to_save") or ()))
    found: dict[str, int] = {}
    for layer, module in model.named_modules():
        inside = any(part.endswith(named) for part in accumulate(layer.split("."), "{}.{}".format)) if named else False
        wanted = {f"{PREFIX}{layer}.{name}": tensor for name, tensor in module.named_parameters(recurse=False)}
        if not inside or not wanted:
            continue
        for key, tensor in wanted.items():
            if type(module) is not nn.Linear or not tensor.is_floating_point():
                raise _UnfitError(f"one with {layer} of its own, which is no linear layer")
            if shapes.get(key) != tuple(tensor.shape):
                raise _UnfitError(f"{key} of shape {shapes.get(key, 'none')} where {tuple(tensor.shape)} fits")
        found[layer] = sizes_of(module).full_rank
    return found


def _check_layers(ranks: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], model: nn.Module) -> None:
    modules = dict(model.named_modules())
    absent = [layer for layer in ranks if layer not in modules]
    if absent:
        raise _UnfitError(f"one of other layers ({', '.join(absent[:3]):.200})")
    candidates = adaptable_layers(model)
    strange = sorted(set(ranks) - set(candidates))
    if strange:
        raise _UnfitError(
            f"one on layers that can have none: {', '.join(strange):.200}. Available: {', '.join(candidates)}"
        )
    for key, shape in shapes.items():  # before the adapter is allocated: a rank may be any number beside a side of 0
        layer, factor = _FACTOR.fullmatch(key.removeprefix(PREFIX)).groups()  # type: ignore[union-attr]  # as in _ranks
        if factor.startswith(("lora_A", "lora_embedding_A")):
            sizes = sizes_of(candidates[layer])
            if not ranks[layer] or math.prod(shape) != ranks[layer] * sizes.inputs * sizes.kernel:
                raise _UnfitError(f"{key} of shape {shape}")


def _fill(
    adapter: Adapter,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    path: Path,
    heads: Mapping[str, nn.Module],
) -> None:
    """Copies an adapter's tensors from a file into their places, and the differences of ``heads`` into theirs."""
    wanted = {
        f"{PREFIX}{layer}.{key}": tensor
        for layer in adapter.ranks
        if layer not in heads
        for key, tensor in adapter.layer(name, layer).state_dict().items()
        if not (heads and key.endswith(".bias")) or f"{PREFIX}{layer}.{key}" in shapes  # all or none: others stay 0
    }
    if wanted.keys() != shapes.keys():
        raise _UnfitError("one of other layers")
    for key, tensor in wanted.items():
        if tensor.shape != shapes[key]:
            raise _UnfitError(f"{key} of shape {shapes[key]} where {tuple(tensor.shape)} fits")
    state = load_file(path)
    for key, tensor in wanted.items():
        tensor.copy_(state[key])
    for layer, module in heads.items():
        places = adapter.layer(name, layer).state_dict()
        moved = {
            key: state[f"{PREFIX}{layer}.{key}"].to(base.device) - base.detach()
            for key, base in module.named_parameters()
        }
        narrow = moved["weight"].shape[0] <= moved["weight"].shape[1]
        factors = places["lora_A.weight"], places["lora_B.weight"]
        factors[0 if narrow else 1].copy_(moved["weight"])
        nn.init.eye_(factors[1 if narrow else 0])
        if "bias" in moved:
            places["lora_B.bias"].copy_(moved["bias"])


def _scales(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, float]:
    """``s`` in ``W0 + s * B A`` of each layer, as PEFT reads its settings."""
    told, alphas = (_by_pattern(config.get(name), ranks) for name in ("rank_pattern", "alpha_pattern"))
    scales = {}
    for layer, rank in ranks.items():
        if (said := told.get(layer, config.get("r", rank))) != rank:
            raise _UnfitError(f"rank {rank} in {layer} where the settings say {said}")
        alpha = alphas.get(layer, config.get("lora_alpha", rank))
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise _UnfitError(f"lora_alpha {alpha!r} for {layer}")
        scales[layer] = float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    return scales


def _by_pattern(patterns: Any, layers: Iterable[str]) -> dict[str, Any]:
    """The value of the first pattern that fits, for each layer that one fits."""
    patterns = patterns or {}
    if not isinstance(patterns, dict) or may_hang(patterns):
        raise _UnfitError("patterns that are not simple regular expressions, or very many")
    found: dict[str, Any] = {}
    left = dict.fromkeys(layers)
    for pattern, value in patterns.items():
        exact = re.sub(r"\\(.)", r"\1", pattern.removeprefix("^"))
        if pattern == f"^{re.escape(exact)}":  # as petm writes them
            fit = [exact] if exact in left else []
        else:
            try:
                compiled = re.compile(rf"(.*\.)?({pattern})$")
            except re.error as error:
                raise _UnfitError(f"a pattern that is no regular expression ({error})") from error
            fit = [layer for layer in left if compiled.match(layer)]
        for layer in fit:
            del left[layer]
            found[layer] = value
    return found


def adopt_adapter(model: nn.Module, folder: str | Path) -> AdaptedModel:
    """Returns the base model with a LoRA adapter that PEFT has trained, as its second opinion; nothing is trained.

    At ``alpha = 1`` it answers as PEFT does in eval mode, ``W0 + s * B A`` in each adapted layer, where PEFT's scale
    ``s`` is ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with ``use_rslora``; dropout acts in training only. Linear
    layers of the folder's own (``modules_to_save``) are adapters too, ``W' - W0`` of full rank. Pass the model
    to `petm.grading.grader.fit_grader` for a threshold. Shapes and names of layers tell whether the adapter fits the
    model; whether it was trained on these very weights a PEFT folder does not say. Where the folder and the model both
    name a base model and the names differ, a warning says so.

    Args:
        model: The base model, with the weights that the adapter was trained on. Neither its modules nor its weights
            are changed.
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT's ``save_pretrained`` writes.

    Raises:
        BundleError: The folder holds no LoRA adapter, one that changes more than ``W0 + alpha * B A`` in layers of the
            model, one for other layers, or weights in a pickle.
    """
    folder = Path(folder)
    config = _read_config(folder)
    _check_config(folder, config)
    if not (folder / WEIGHTS).is_file():
        found = f"{PICKLE}, a pickle" if (folder / PICKLE).is_file() else "no such file"
        raise BundleError(
            f"{folder}: expected {WEIGHTS}, got {found}. Save the adapter again with safe_serialization=True."
        )
    adapted = load_adapter(model, folder, heads=True)
    for layer in adapted.ranks:
        module = innermost(model.get_submodule(layer))
        if set(getattr(module, "dilation", (1,))) != {1} or getattr(module, "padding_mode", "zeros") != "zeros":
            adapted.detach()
            raise BundleError(
                f"{folder}: expected an adapter on layers to which PEFT adds a low-rank product, got {layer}, a "
                f"dilated convolution or one with another padding than zeros. Leave it out."
            )
    compare_names(folder, config.get("base_model_name_or_path"), getattr(model, "name_or_path", None))
    return adapted


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        path = folder / CONFIG
        if path.exists() and (not path.is_file() or path.stat().st_size > LONGEST_FILE):
            raise ValueError(f"expected a file of at most {LONGEST_FILE:,} bytes")
        config = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{folder}: expected an adapter that PEFT has saved, got no {CONFIG} in it.") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder}: expected a readable {CONFIG}, got a damaged one ({error}).") from error
    if not isinstance(config, dict):
        raise BundleError(f"{folder}: expected an object in {CONFIG}, got {type(config).__name__}.")
    return config


def _check_config(folder: Path, config: dict[str, Any]) -> None:
    """Checks that the adapter is LoRA, and that no setting makes more of it."""
    if config.get("peft_type") != "LORA":
        raise BundleError(
            f"{folder}: expected an adapter of type LORA, got {config.get('peft_type')!s:.60}. Train LoRA."
        )
    if (strange := strange_setting(config, TAKEN | {"lora_bias", "modules_to_save"})) is not None:
        raise BundleError(
            f"{folder}: expected an adapter that adds to weights in layers of the model and nothing else, "
            f"got one with {strange}. Train it without."
        )
