"""A LoRA adapter that PEFT has saved as a classifier: the folder of its base, its settings, its own last layer."""

import copy
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petm._internal.extras import import_extra
from petm._internal.tensor_files import tensors_in
from petm.errors import ModelError, PetmWarning
from petm.models.hf_folder import Task, check_files, read_config, read_json, transformers_reading

if TYPE_CHECKING:
    from torch import nn

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
"""What PEFT puts before the names of the base model's modules."""
TAKEN = frozenset((
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "peft_type", "peft_version", "r",
    "rank_pattern", "revision", "target_modules", "task_type", "use_rslora",
))  # fmt: skip
"""Settings that say which layers are adapted, how strongly, and where the adapter comes from: any value will do."""
_BY_PEFT = TAKEN | {"bias", "lora_bias", "modules_to_save", "trainable_token_indices", "use_dora"}
"""Further settings, with which PEFT computes more than ``W0 + alpha * B A`` and leaves the base weights as they are."""
HARMLESS: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    # Others, such as pissa, change the base weights as the adapter is loaded.
    "init_lora_weights": (True, "gaussian", "orthogonal"),
    "megatron_core": ("megatron.core",),
    "qalora_group_size": (16,),
}
"""Beside empty ones, the values of further settings that leave an adapted layer ``W0 + alpha * B A``."""
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")
_MOST_PATTERNS, _MOST_REPETITIONS = 4096, 3
"""Beyond them, patterns of a stranger would take minutes."""
_MARK = 9973
"""A number of classes that no other size of a model has."""


def is_adapter(folder: Path | None) -> bool:
    """Returns whether a folder holds an adapter of PEFT and no model."""
    return folder is not None and (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path, base: str | Path | None = None) -> Path:
    """Returns the folder of the model that an adapter was trained on; nothing is downloaded.

    Args:
        folder: The adapter's.
        base: Where it is, if not where the adapter says. A relative one may also lie beside the adapter.

    Raises:
        ModelError: There is no such folder.
    """
    name = base or read_json(folder / CONFIG).get("base_model_name_or_path") or ""
    places = (Path(str(name)), folder.parent / str(name)) if name else ()
    found = next((place for place in places if os.path.isdir(place)), None)
    if found is None:
        raise ModelError(
            f"base: expected the folder of the model that the adapter in {folder} was trained on, got "
            f"{str(name)!r:.200}, which is none. Name it with base=DIR (--base DIR); nothing is downloaded."
        )
    return found


def compare_names(folder: Path, trained_on: object, *names: object) -> None:
    """Warns where a model has names, and none is that of what an adapter was trained on; a folder may have moved."""
    own = [name for name in names if isinstance(name, str) and name]
    told = Path(trained_on).name if isinstance(trained_on, str) else ""
    if own and told and not any(told in Path(name).parts for name in own):
        warnings.warn(
            f"{folder}: was trained on {trained_on!r}, but the model is {own[0]!r}. Pass the model it was trained on, "
            f"unless this is the same.",
            PetmWarning,
            stacklevel=3,
        )


def warn_of_another_base(folder: Path, base: Path) -> None:
    """Warns where the base of an adapter is named otherwise than what that was trained on.

    Nothing else tells bases of the same shapes apart, until a bundle knows the fingerprint of the weights.
    """
    told = read_json(folder / CONFIG).get("base_model_name_or_path")
    compare_names(folder, told, str(base), read_json(base / "config.json").get("_name_or_path"))


def strange_setting(settings: Mapping[str, Any], taken: frozenset[str]) -> str | None:
    """Returns the first setting that makes another thing of an adapter than those of the names ``taken`` do."""
    return next(
        (
            f"{name[:60]} = {value!r:.100}"
            for name, value in settings.items()
            if name not in taken and value and value not in HARMLESS.get(name, ())
        ),
        None,
    )


def may_hang(patterns: Any) -> bool:
    """Returns whether settings of a stranger are too many patterns, or such as match for ever."""
    every = [patterns] if isinstance(patterns, str) else patterns
    return len(every) > _MOST_PATTERNS or any(
        # Repeated repetitions, or many.
        re.search(r"\)[*+?{]", pattern) or len(re.findall(r"(?<!\\)[*+?{]", pattern)) > _MOST_REPETITIONS
        for pattern in map(str, every)
    )


@dataclass(frozen=True)
class PeftClassifier:
    """A folder with an adapter, and what is known of the classifier before it is built.

    Attributes:
        folder: The adapter's.
        base: The folder of the model that it was trained on.
        config: The configuration of that model, with as many classes as the adapter has.
        task: What kind of classifier it is.
        shapes: The shapes of the adapter's tensors, by their names in the file.
        bytes: The size of that file.
    """

    folder: Path
    base: Path
    config: Any
    task: Task
    shapes: Mapping[str, tuple[int, ...]]
    bytes: int

    @property
    def own(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the weights that replace those of the base model, by their names there."""
        return {key.removeprefix(PREFIX): shape for key, shape in self.shapes.items() if ".lora_" not in key}

    def attached(self, model: "nn.Module") -> "nn.Module":
        """Returns the base model with the adapter beside its layers, as PEFT does it, unmerged and in eval mode.

        What replaces a module of the base model, such as its last layer, stands in its place.

        Raises:
            ModelError: The adapter does not fit the model, or PEFT cannot read it.
        """
        modules = dict(model.named_modules())
        layers = {key: key.removeprefix(PREFIX).partition(".lora_")[0] for key in self.shapes if ".lora_" in key}
        absent = [key for key, layer in layers.items() if layer not in modules]
        self._refuse([f"{key} is not in the model" for key in absent])
        (peft,) = import_extra("hf", "peft")
        with transformers_reading(self.folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = peft.LoraConfig.from_pretrained(str(self.folder))
            config.inference_mode = True
            kind = peft.PeftModelForSequenceClassification if config.task_type == "SEQ_CLS" else peft.PeftModel
            wrapped = kind(model, config)
            state = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
            self._compare({key: tuple(tensor.shape) for key, tensor in state.items()}, model)
            wrapped.load_adapter(str(self.folder), "default", torch_device="cpu")
        network: nn.Module = wrapped.get_base_model()
        for name, module in list(network.named_modules()):
            if isinstance(module, peft.utils.ModulesToSaveWrapper):
                network.set_submodule(name, module.modules_to_save["default"])
        network.name_or_path = str(self.folder)  # type: ignore[assignment]  # an attribute of transformers
        return network.eval()

    def _compare(self, wanted: Mapping[str, tuple[int, ...]], model: "nn.Module") -> None:
        there = {f"{PREFIX}{name}": tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        faults = [f"{key} is missing in the file" for key in wanted if key not in self.shapes]
        for key, shape in self.shapes.items():
            place = wanted.get(key, there.get(key))
            if place is None:
                faults.append(f"{key} is not in the model")
            elif place != shape:
                faults.append(f"{key} is {shape} in the file and {place} in the model")
        self._refuse(faults)

    def _refuse(self, faults: Sequence[str]) -> None:
        if faults:
            more = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
            raise ModelError(
                f"model: expected an adapter for the model in {self.base}, got {self.folder}, whose tensors differ: "
                f"{'; '.join(faults[:2])}{more}. Name the model that it was trained on (--base DIR)."
            )


def read_adapter(folder: Path, base: str | Path | None, *, trust_remote_code: bool) -> PeftClassifier:
    """Returns what a folder with an adapter says of its classifier.

    The adapter's own last layer says how many classes there are; else the configuration of the base model.

    Raises:
        ModelError: It is no LoRA adapter of a classifier, or one with settings that are not read; its base is absent or
            cannot be read; its weights are absent or a pickle.
    """
    check_files(folder)
    settings = read_json(folder / CONFIG)
    _check_settings(folder, settings)
    path = folder / WEIGHTS
    if not path.is_file():
        other = f"{PICKLE}, a pickle" if (folder / PICKLE).is_file() else "no such file"
        raise ModelError(
            f"model: expected {WEIGHTS} in {folder}, got {other}. "
            f"Save the adapter with safe_serialization=True; nothing is loaded through pickle."
        )
    place = base_of(folder, base)
    config, task = read_config(place, trust_remote_code=trust_remote_code)
    with transformers_reading(folder) as transformers:
        tensors = tensors_in(path)
        kinds: dict[Task, Any] = {
            "ImageClassification": transformers.AutoModelForImageClassification,
            "SequenceClassification": transformers.AutoModelForSequenceClassification,
        }
        known = [kind for kind, auto in kinds.items() if type(config) in auto._model_mapping]
    told = settings.get("task_type")
    task = "SequenceClassification" if told == "SEQ_CLS" else task or next(iter(known), None)
    strange = [key for key, (kind, _) in tensors.items() if kind not in ("F16", "BF16", "F32", "F64")]
    widest = max((side for key, (_, shape) in tensors.items() if ".lora_" in key for side in shape), default=0)
    ranks = [settings.get("r"), *(settings.get("rank_pattern") or {}).values()]
    if task is None or strange or not all(type(rank) is int and 1 <= rank <= widest for rank in ranks):
        what = f"{strange[0]!r:.100} of whole numbers" if strange else f"ranks {ranks!r:.60} for sides up to {widest}"
        raise ModelError(
            f"model: expected a LoRA adapter of an image or sequence classifier in {folder}, got "
            f"{what if task else f'one on a model of type {config.model_type}'}. Save it again."
        )
    found = PeftClassifier(
        folder, place, config, task, {key: shape for key, (_, shape) in tensors.items()}, path.stat().st_size
    )
    classes = _classes(found, kinds[task], trust_remote_code=trust_remote_code)
    if classes != config.num_labels:
        config.num_labels = classes
    if config.problem_type not in (None, "single_label_classification") or classes < 2:
        raise ModelError(
            f"model: expected a classifier that answers with one of at least two classes in {folder}, "
            f"got {config.problem_type or 'a single output'}. petm grades classes only."
        )
    return found


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises ModelError where settings make another thing of an adapter than PEFT's LoRA of a classifier."""
    strange = strange_setting(settings, _BY_PEFT)
    for name, allowed in {"peft_type": ("LORA",), "task_type": (None, "SEQ_CLS", "FEATURE_EXTRACTION")}.items():
        if settings.get(name) not in allowed:
            strange = f"{name} = {settings.get(name)!r:.60}"
    shapes: dict[str, tuple[type, ...]] = {name: (str, list, type(None)) for name in _PATTERNS[:3]}
    shapes |= dict.fromkeys(_PATTERNS[3:], (dict, type(None)))
    for name, kinds in shapes.items():
        value = settings.get(name)
        if not isinstance(value, kinds) or may_hang(value or ()):
            strange = f"{name} = {value!r:.60}"
    if strange:
        raise ModelError(
            f"model: expected a LoRA adapter of a classifier, whose settings petm knows, in {folder}, got {strange}. "
            f"Train it without, or merge it into its base model."
        )


def _classes(found: PeftClassifier, auto: Any, *, trust_remote_code: bool) -> int:
    """``K``, by the adapter's own last layer, if it has one."""
    import torch  # grading with a tokenizer alone needs none

    marked = copy.deepcopy(found.config)
    marked.num_labels = _MARK
    with transformers_reading(found.base), torch.device("meta"):
        sketch = auto.from_config(marked, **({"trust_remote_code": True} if trust_remote_code else {}))
    own = found.own
    for name, weight in sketch.named_parameters():
        shape = own.get(name, ())
        if _MARK in weight.shape and len(shape) == weight.ndim:
            return int(shape[weight.shape.index(_MARK)])
    return int(found.config.num_labels)
