"""The user's network: loading it, its weights, calling it."""

import copy
import importlib
import importlib.util
import inspect
import sys
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from petm._internal.files import fingerprint, write_atomically
from petm._internal.tensor_files import tensors_in
from petm._internal.texts import near
from petm.data.fields import Fields, Inputs, describe
from petm.errors import ModelError, PetmError
from petm.models.answers import as_logits, find_answer, joined, of_one_length, reading_of
from petm.models.hf_adapter import is_adapter
from petm.models.hf_classifier import load_classifier
from petm.models.hf_folder import folder_of
from petm.models.placing import check_copied, held_beside, plain_parts
from petm.models.reading import Reading
from petm.models.reference import check_reference, split_reference

LABEL_WORDS = "label_words"
"""Argument of a causal language model: the token of each label word, by the word."""


def load_model(
    reference: str,
    weights: str | Path | None = None,
    *,
    arguments: Mapping[str, Any] | None = None,
    base: str | Path | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Returns the user's network, in eval mode, built by the factory or read from the folder that ``reference`` names.

    Args:
        reference: ``module:factory`` that can be imported, ``path/to/file.py:factory``, or ``hf:DIR`` for a Hugging
            Face folder with an image or sequence classifier, or with a LoRA adapter of one that PEFT has saved. The
            factory is the user's own code and is run.
        weights: A ``.safetensors`` file, or a ``state_dict`` file that ``torch.load`` can read with
            ``weights_only=True``; nothing is unpickled. None keeps the weights of the factory.
        arguments: Keyword arguments for the factory; of a causal language model in a Hugging Face folder
            ``label_words``, the token of each (`petm.models.hf_tokenizer.ask`).
        base: The folder of the model that such an adapter was trained on, if not the one that its settings name.
        device_map: How accelerate spreads the folder's model over devices, as transformers takes it; absent does not.
        trust_remote_code: Whether to run the Hugging Face folder's own code, if its model needs any.

    Raises:
        ModelError: The factory cannot be found, fails, returns no module, or the weights do not fit; or the Hugging
            Face folder cannot be used, as in `petm.models.hf_classifier.load_classifier`.
    """
    folder = folder_of(reference)
    check_reference(reference, base=base, device_map=device_map)
    if folder is None:
        model = build(_find_factory(reference), reference, arguments or {})
    else:
        words = (arguments or {}).get(LABEL_WORDS)
        if arguments and not (set(arguments) == {LABEL_WORDS} and isinstance(words, Mapping)):
            raise ModelError(
                f"arguments: expected none but label_words, the token of each, for {reference}, got {arguments!r:.100}."
            )
        model = load_classifier(
            folder, base=base, device_map=device_map, trust_remote_code=trust_remote_code, label_tokens=words
        )
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def arguments_of(reference: str, held: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a bundle remembers of a model, as arguments of `load_model`: of an adapter its ``base``."""
    folder = folder_of(reference)
    if folder is None:
        return {"arguments": held}
    spread = {"device_map": held["device_map"]} if held.get("device_map") == "auto" else {}
    if is_adapter(folder):
        return {"base": held.get("base"), **spread}
    return {"arguments": {name: value for name, value in held.items() if name == LABEL_WORDS}, **spread}


def build(factory: Callable[..., Any], reference: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Returns the network that a factory makes; raises ModelError where it fails, or returns something else."""
    try:
        model = factory(**arguments)
    except Exception as error:
        raise ModelError(f"model: {reference} failed with {type(error).__name__}: {error}.") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"model: expected {reference} to return a torch.nn.Module, got {type(model).__name__}.")
    return model


def import_module(place: str) -> ModuleType:
    """Returns a module by its name, or by its file ``path/to/file.py``; raises ModelError where it cannot be."""
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(f"_petm_file_{Path(place).stem}", place)
        if spec is None or spec.loader is None:
            raise ImportError(f"no loader for {place}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # data classes look up their own module meanwhile
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[spec.name]
            raise
        return module
    except Exception as error:
        step = (
            "Check the path (--model), or correct the file"
            if place.endswith(".py")
            else "Check the name, or install it"
        )
        raise ModelError(f"model: {place} cannot be imported ({type(error).__name__}: {error}). {step}.") from error


def _find_factory(reference: str) -> Callable[..., Any]:
    place, name = split_reference(reference)
    module = import_module(place)
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        got, names = f"{name!r}{near(name, known)}", ", ".join(known) or "none"
        raise ModelError(f"model: expected a factory in {place}, got {got}. Available: {names}.")
    return factory  # type: ignore[no-any-return]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a ``.safetensors`` or ``weights_only`` file by name; raises ModelError for others."""
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"weights: expected a file, got {path}, which does not exist. Name it (--weights).")
    try:
        if path.suffix == ".safetensors":
            tensors_in(path)
            return load_file(path)
        _check_packed(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load fails in many ways on a foreign file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if path.suffix == ".safetensors":
            raise ModelError(f"weights: {path} is not a whole safetensors file ({reason}).") from error
        raise ModelError(
            f"weights: {path} cannot be read as a state_dict with weights_only=True ({reason}). "
            f"Save it with safetensors.torch.save_file(model.state_dict(), ...)."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"weights: expected a state_dict of tensors in {path}, got {type(state).__name__}.")
    return dict(state)


def _check_packed(path: Path) -> None:
    """Raises ValueError where an archive holds more than its own bytes; torch.save does not compress."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size, held = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
        if size > held:
            raise ValueError(f"{size:,} bytes packed into {held:,}")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copies the weights of a file into ``model``, all or none.

    Raises:
        ModelError: The file cannot be read, or a name, a shape or the kind of numbers differs; the first differences
            are named.
    """
    check_copied(model, "weights")
    found, wanted = read_weights(path), model.state_dict()
    faults = [
        f"{key} is {tuple(found[key].shape)} in the file and {tuple(wanted[key].shape)} in the model"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    faults += [
        f"{key} is of {_form(found[key])} in the file and of {_form(wanted[key])} in the model"
        for key in wanted
        if key in found and _form(found[key]) != _form(wanted[key])
    ]
    faults += [f"{key} is missing in the file" for key in wanted if key not in found]
    faults += [f"{key} is not in the model" for key in found if key not in wanted]
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise ModelError(f"weights: {path} does not fit the model: {'; '.join(faults[:3])}{more}.")
    model.load_state_dict(found)


def _form(tensor: Tensor) -> str:
    """What a copy would not convert, or only silently: the weights of a quantised model are no weights in floats."""
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        return f"{tensor.dtype} ({'meta' if tensor.is_meta else tensor.layout})"
    return "complex numbers" if tensor.is_complex() else "floats" if tensor.is_floating_point() else "whole numbers"


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes the model's ``state_dict`` as safetensors, atomically.

    Raises:
        ModelError: A file cannot hold them.
        RunError: The file could not be written.
    """
    check_copied(model)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))


def weights_fingerprint(model: nn.Module) -> str:
    """Returns a SHA-256 over names, dtypes, shapes and bits of the model's ``state_dict``, and over PEFT's scales."""
    held = (entry for named in sorted(model.state_dict().items()) for entry in plain_parts(*named))
    parts: list[str | Tensor] = [part for entry in held for part in entry]
    scales = ((name, getattr(module, "scaling", None)) for name, module in model.named_modules())
    return fingerprint([*parts, *(f"{name}: {each}" for name, each in scales if isinstance(each, dict))])


def count_parameters(model: nn.Module) -> int:
    """Returns the number of parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def share_weights(model: nn.Module) -> nn.Module:
    """Returns a copy of the modules, in eval mode, over the *same* weights and buffers, frozen.

    Changes of the copy's structure (an adapter, a mode, ``requires_grad``) do not reach the caller's model. Tied
    parameters stay tied.

    Raises:
        ModelError: The model cannot be copied.
    """
    shared: dict[int, Any] = {id(buffer): buffer.detach() for buffer in model.buffers()}
    shared |= {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in model.parameters()}
    shared |= held_beside(model)
    try:
        # deepcopy also keeps alive what it has copied; the tensors above outlive it in any case.
        return copy.deepcopy(model, shared).eval()
    except Exception as error:
        raise ModelError(f"model: cannot be copied ({type(error).__name__}: {error}). Remove what holds it.") from error


def call_model(model: nn.Module, inputs: Inputs, *, rows: int | None = None, **arguments: Any) -> Tensor:
    """Returns the logits ``(N, K)`` of a model: its only answer, or the one among several (`petm.models.answers`).

    Args:
        model: Any network.
        inputs: ``(N, ...)``; or tensors by name, which the model takes by these names. A field named ``+MODULE`` is
            added to the output of that module, such as a perturbation of text (`petm.training.replacement`).
        rows: Number of rows of logits, where it is not ``N``.
        **arguments: Further arguments of the model's forward.

    Raises:
        ModelError: The model fails on these inputs, or returns something else.
    """
    reading = reading_of(model)
    if rows is None and (parts := of_one_length(model, inputs)):
        return joined(parts, [call_model(model, part.inputs, **arguments) for part in parts])
    # Sizes are read from shapes, not by len(), which would fix them in an exported graph.
    answer = answer_of(model, inputs, inputs.shape[0] if rows is None else rows, reading, **arguments)[1]
    if reading.kind == "logits" and (answer.ndim != 2 or answer.shape[1] < 2):
        raise ModelError(
            f"model: expected logits of shape ({answer.shape[0]}, K) with K of at least 2, got {tuple(answer.shape)}. "
            f"petm.fit finds out what they are; before other functions, call petm.models.probe.probe."
        )
    return as_logits(answer, reading.kind)


def answer_of(model: nn.Module, inputs: Inputs, rows: int, reading: Reading, **arguments: Any) -> tuple[str, Tensor]:
    """Returns what stands for the classes in a model's answer, and its place; otherwise as `call_model`."""
    given: Inputs = inputs
    if reading.copied:
        given = inputs.map(Tensor.clone) if isinstance(inputs, Fields) else inputs.clone()
    try:
        output = _call(model, given, arguments)
    except (torch.OutOfMemoryError, PetmError):
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        step = (
            "Check size and channels of the data against what the model was trained on."
            if isinstance(inputs, Tensor)
            else "Check their names, and that no text has more tokens than the model takes."
        )
        raise ModelError(
            f"model: cannot take inputs of shape {describe(inputs)}: {reason.rstrip('.')}. {step}"
        ) from error
    return find_answer(output, rows, reading.place)


ADDED = "+"
"""Prefix of a field that is added to a module's output; the module's name follows."""


def _call(model: nn.Module, inputs: Inputs, arguments: Mapping[str, Any]) -> Any:
    if getattr(type(model), "takes_batches", False):
        return model(inputs, **arguments) if isinstance(inputs, Tensor) else model(**inputs, **arguments)
    if not isinstance(inputs, Fields):
        return model(_in_precision_of(model, inputs), **arguments)
    added = {name: tensor for name, tensor in inputs.items() if name.startswith(ADDED)}
    left_out = _OPTIONAL - _accepted(type(model).forward)
    taken = {
        name: _in_precision_of(model, tensor)
        for name, tensor in inputs.items()
        if name not in added and name not in left_out
    }
    with ExitStack() as stack:
        for name, step in added.items():
            handle = model.get_submodule(name.removeprefix(ADDED)).register_forward_hook(
                lambda _, __, output, step=step: output + step.to(output.dtype)
            )
            stack.callback(handle.remove)
        return model(**taken, **arguments)


_OPTIONAL = frozenset({"attention_mask", "token_type_ids"})
"""What tokenizers give and not every model takes."""


@lru_cache(maxsize=64)
def _accepted(forward: Callable[..., Any]) -> frozenset[str]:
    """Which of the optional fields a model's ``forward`` takes."""
    parameters = inspect.signature(forward).parameters
    every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return _OPTIONAL if every else _OPTIONAL & parameters.keys()


def _in_precision_of(model: nn.Module, x: Tensor) -> Tensor:
    """A float32 tensor in the precision of the model."""
    if x.dtype != torch.float32 or (first := _first_parameter(model)) is None:
        return x
    return x.to(first.dtype) if first.dtype in (torch.float16, torch.bfloat16, torch.float64) else x


def _first_parameter(module: nn.Module) -> Tensor | None:
    """What ``next(module.parameters(), None)`` finds, in a tenth of its time."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    found = (_first_parameter(child) for child in module._modules.values() if child is not None)
    return next((parameter for parameter in found if parameter is not None), None)
