"""The network of a Hugging Face folder, and the names of its classes."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from petm.errors import ModelError
from petm.models.hf_folder import read_classifier_config, transformers_reading
from petm.models.hf_tokenizer import has_vocabulary, padding_id, read_tokenizer


def load_classifier(folder: str | Path, *, trust_remote_code: bool = False) -> nn.Module:
    """Returns the image or sequence classifier of a folder, in eval mode, in the precision of its weights file.

    A text model without a padding token gets one in memory: the tokenizer's, else the one that ends a text.

    Args:
        folder: With ``config.json`` and weights as safetensors, as ``save_pretrained`` writes them.
        trust_remote_code: Whether to run the folder's own code, if its model needs any.

    Raises:
        ModelError: There is no such folder, config or weights; it is not a classifier with one of at least two classes
            as its answer; weights are missing or do not fit; or it has code of its own that is not trusted.
    """
    folder = Path(folder)
    config, task = read_classifier_config(folder, trust_remote_code=trust_remote_code)
    if not list(folder.glob("*.safetensors")):
        others = ", ".join(sorted(file.name for pattern in ("*.bin", "*.h5", "*.pt") for file in folder.glob(pattern)))
        raise ModelError(
            f"model: expected weights as *.safetensors in {folder}, got {others or 'none'}. "
            f"Write them with model.save_pretrained; nothing is loaded through pickle."
        )
    with transformers_reading(folder) as transformers:
        model, found = getattr(transformers, f"AutoModelFor{task}").from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            dtype="auto",
            ignore_mismatched_sizes=True,  # named below, where transformers would point to its log
            output_loading_info=True,
        )
    faults = [
        f"{key} is {tuple(got)} in the file and {tuple(wanted)} in the model"
        for key, got, wanted in sorted(found["mismatched_keys"])
    ]
    faults += [f"{key} is missing in the file" for key in sorted(found["missing_keys"])]
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise ModelError(
            f"model: expected the weights of the whole classifier in {folder}, got others: "
            f"{'; '.join(faults[:3])}{more}. Save the trained classifier with its last layer."
        )
    if task == "SequenceClassification" and getattr(config, "pad_token_id", None) is None:
        vocabulary = has_vocabulary(folder)
        tokenizer = read_tokenizer(folder, trust_remote_code=trust_remote_code) if vocabulary else None
        model.config.pad_token_id = padding_id(config, tokenizer)
    network: nn.Module = model.eval()
    return network


def read_classes(folder: str | Path, *, trust_remote_code: bool = False) -> tuple[int, tuple[str, ...]]:
    """Returns ``K`` and the names of the classes in the order of the outputs; none for ``LABEL_0``, ``LABEL_1``, ...

    Raises:
        ModelError: As `load_classifier`, as far as ``config.json`` tells.
    """
    config, _ = read_classifier_config(Path(folder), trust_remote_code=trust_remote_code)
    return int(config.num_labels), _names(config.id2label)


def names_of(model: nn.Module) -> tuple[str, ...]:
    """Returns the class names in a Hugging Face model's configuration; none for ``LABEL_0`` or for other models."""
    found = getattr(getattr(model, "config", None), "id2label", None)
    return _names(found) if isinstance(found, Mapping) else ()


def _names(id2label: Mapping[int, str]) -> tuple[str, ...]:
    names = tuple(str(id2label[number]) for number in sorted(id2label))
    return () if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names
