"""The configuration of a Hugging Face folder, and transformers to read it: quiet, and with errors of one line."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from petm._internal.extras import import_extra, install_line
from petm.errors import ExtraError, ModelError, PetmError

PREFIX = "hf:"
"""Prefix of a reference to such a folder, where others are ``module:factory``."""

_LIMITS = {
    "layers": (1000, re.compile("(.*layer.*)|(.*(depth|block|stage|expert)s?)")),
    "classes": (1 << 20, re.compile("num_labels")),
}
"""Far more than a model has, and the entries that say it: transformers makes any number before it reads a weight."""

_LONGEST_CONFIG = 64 << 20
"""Bytes of a text beside the weights; the longest are vocabularies of some 30 million."""
_TEXTS = re.compile(r".*config\.json|.*token.*|vocab.*|merges\.txt|.*\.(model|tiktoken|index\.json)")

Task = Literal["ImageClassification", "SequenceClassification", "AudioClassification", "CausalLM"]


def folder_of(reference: str | None) -> Path | None:
    """Returns the folder that ``hf:DIR`` names; None for another kind of reference."""
    return Path(reference.removeprefix(PREFIX)) if reference and reference.startswith(PREFIX) else None


def read_classifier_config(folder: Path, *, trust_remote_code: bool, label_words: bool = False) -> tuple[Any, Task]:
    """Returns the configuration of a folder's model, and what kind of classifier it is.

    Raises:
        ModelError: There is no such folder or config, or it is not a classifier with one of at least two classes as
            its answer, or, with ``label_words``, no causal language model; or it has code of its own that is not
            trusted.
    """
    config, task = read_config(folder, trust_remote_code=trust_remote_code)
    if task is None or label_words != (task == "CausalLM"):
        classifier = "an image, sequence or audio classifier"
        wanted = "a causal language model, which label words are for," if label_words else classifier
        step = "Ask it with --label-words and --template" if task == "CausalLM" else "Name a trained classifier"
        step = "Name one, or leave out the label words" if label_words else step
        raise ModelError(
            f"model: expected {wanted} in {folder}, "
            f"got {', '.join(map(str, config.architectures or ())) or 'no architecture'} in its config.json. "
            f"{step}."
        )
    if label_words:
        return config, task
    if config.problem_type not in (None, "single_label_classification") or config.num_labels < 2:
        raise ModelError(
            f"model: expected a classifier that answers with one of at least two classes in {folder}, "
            f"got {config.problem_type or 'a single output'}. petm grades classes only."
        )
    return config, task


def read_config(folder: Path, *, trust_remote_code: bool) -> tuple[Any, Task | None]:
    """Returns the configuration of a folder's model, and its kind of classifier, None for others.

    Raises:
        ModelError: There is no such folder or config, or it has code of its own that is not trusted.
    """
    check_folder(folder)
    content = read_json(folder / "config.json")
    refuse_custom_code(folder, content, trust_remote_code=trust_remote_code)
    for rule, (most, names) in _LIMITS.items():
        check_numbers(folder, content, rule, most, names)
    named = content.get("architectures")
    named = [] if named is None else named
    if not isinstance(named, list):
        raise ModelError(f"model: expected a list of architectures in {folder}, got {named!r:.60}. Fetch it again.")
    architectures = [str(name).replace("LMHeadModel", "ForCausalLM") for name in named]  # as GPT-2 calls it
    tasks: tuple[Task, ...] = ("ImageClassification", "SequenceClassification", "CausalLM")
    with transformers_reading(folder) as transformers:
        how = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        config = transformers.AutoConfig.from_pretrained(folder, **how)
        own = content.get("auto_map") or {}
        architectures += [auto for auto, place in own.items() if str(place).rpartition(".")[2] in architectures]
        architectures = architectures or _classifiers_of(config.model_type)
    found = next((task for task in tasks if any(f"For{task}" in name for name in architectures)), None)
    audio = found == "SequenceClassification" and _takes_sound(config.model_type)  # as Wav2Vec2 calls it
    return config, "AudioClassification" if audio or "ForAudioClassification" in "".join(architectures) else found


def _takes_sound(kind: str) -> bool:
    from transformers.models.auto import modeling_auto as auto

    return kind in auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES


def takes_sound(folder: Path, *, trust_remote_code: bool) -> bool:
    """Returns whether a folder's model takes sound, as its feature extractor prepares it."""
    return read_config(folder, trust_remote_code=trust_remote_code)[1] == "AudioClassification"


def _classifiers_of(kind: str) -> list[str]:
    """The classifier that transformers has for a kind of model; none where it has several, or none."""
    from transformers.models.auto import modeling_auto as auto

    tables = (auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
    found = [str(table[kind]) for table in tables if kind in table]
    return found if len(found) == 1 else []


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file of the folder; raises ModelError where there is none."""
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > _LONGEST_CONFIG):
            raise ValueError(f"no file of at most {_LONGEST_CONFIG:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"model: expected {path.name} in {path.parent}, got none. Name a folder that save_pretrained wrote."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"model: expected a JSON object in {path}, got: {error}. Fetch it again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"model: expected a JSON object in {path}, got {type(content).__name__}. Fetch it again.")
    return content


def check_folder(folder: Path) -> None:
    """Raises ModelError where there is no such folder, or as `check_files`."""
    if not folder.is_dir():
        why = "which is a file" if folder.exists() else "which does not exist"
        raise ModelError(
            f"model: expected the folder of a Hugging Face model, got {folder}, {why}. Name it (--model hf:DIR)."
        )
    check_files(folder)


def check_files(folder: Path) -> None:
    """Raises ModelError where opening a file of the folder could wait for ever or never end, or a text is too long."""
    for path in folder.iterdir():
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ModelError(f"model: expected files in {folder}, got {path.name}, a device or pipe. Fetch it again.")
        if _TEXTS.fullmatch(path.name) and path.is_file() and (size := path.stat().st_size) > _LONGEST_CONFIG:
            raise ModelError(
                f"model: expected at most {_LONGEST_CONFIG:,} bytes of {path.name} in {folder}, got {size:,}. "
                f"Fetch it again."
            )


def check_numbers(folder: Path, content: object, what: str, most: int, names: re.Pattern[str]) -> None:
    """Raises ModelError where a number under entries with such names is above ``most``."""
    number = next((number for number in _numbers(content, names) if number > most), None)
    if number is not None:
        raise ModelError(
            f"model: expected at most {most:,} {what} in {folder}, got {str(number)[:20]}. Fetch it again."
        )


def _numbers(content: object, names: re.Pattern[str]) -> Iterator[int | float]:
    """Numbers, in lists too, under entries of a configuration, and of the ones in it, with such names."""
    if isinstance(content, Mapping):
        for name, entry in content.items():
            if names.fullmatch(str(name)):
                found = entry if isinstance(entry, list) else (entry,)
                yield from (value for value in found if isinstance(value, int | float))
            if isinstance(entry, Mapping):
                yield from _numbers(entry, names)


def refuse_custom_code(folder: Path, content: Mapping[str, Any], *, trust_remote_code: bool) -> None:
    """Raises ModelError where one of the folder's JSON files names code that is not trusted."""
    kernels = any(isinstance(entry, str) and "/" in entry for entry in _implementations(content))
    if (content.get("auto_map") or kernels) and not trust_remote_code:
        raise ModelError(
            f"model: expected a model of transformers' own in {folder}, got one with code of its own. "
            f"Read that code, then allow it with trust_remote_code=True (--trust-remote-code)."
        )


def _implementations(content: object) -> Iterator[object]:
    """Names of implementations in a configuration and the ones in it; ``owner/name`` is code of the Hub."""
    if isinstance(content, Mapping):
        for name, entry in content.items():
            if str(name).endswith("_implementation"):
                yield from entry.values() if isinstance(entry, Mapping) else (entry,)
            else:
                yield from _implementations(entry)


@contextmanager
def transformers_reading(folder: Path) -> Iterator[Any]:
    """Lends transformers to the block, quiet; an exception in it becomes a ModelError of one line."""
    (transformers,) = import_extra("hf", "transformers")
    try:
        with quiet():
            yield transformers
    except PetmError:
        raise
    except ImportError as error:  # a kind of quantisation
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ExtraError(
            f"model: expected the packages that {folder} needs, got: {reason}. "
            f"Install what it names; bitsandbytes and torchao: {install_line('quantized')}."
        ) from error
    except BaseException as error:  # transformers, tokenizers and safetensors raise what they like
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust's is no Exception
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
        raise ModelError(
            f"model: expected a model that transformers can read in {folder}, got: {reason}. "
            f"Fetch it again, or see whether it needs another version of transformers."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Turns off the library's progress bars and its log for the block."""
    from transformers.utils import logging

    library: Any = logging  # half of it has no annotations
    verbosity, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(library.CRITICAL)
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bar()
