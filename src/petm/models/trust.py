"""What a bundle may have built without its user's word: petm's own networks, and Hugging Face folders without code."""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from petm._internal.progress import console
from petm._internal.texts import visible
from petm.errors import ArgumentError, BundleError, ModelError
from petm.models.hf_adapter import base_of, is_adapter
from petm.models.hf_folder import folder_of
from petm.models.loading import arguments_of, build, count_parameters, import_module, load_model
from petm.models.reference import split_reference

_OWN = "petm"


def build_named(
    bundle: Path,
    reference: str,
    arguments: Mapping[str, Any],
    weights: Path | None,
    *,
    parameters: int,
    trust_bundle_code: bool,
    trust_remote_code: bool,
) -> nn.Module:
    """Returns the network that a bundle names, in eval mode, and runs no code that its user has not trusted.

    Without trust these are classes of networks that petm itself defines, and ``hf:`` folders without custom code. With
    trust it is any class of a network, or function, that the named module itself defines. It is announced on standard
    error before it is imported, and never taken from within the bundle.

    Args:
        bundle: The bundle's folder.
        reference: As in `petm.models.loading.load_model`.
        arguments: Keyword arguments of the factory, or ``base`` of an adapter.
        weights: The file of weights that is loaded later.
        parameters: Number of parameters that the bundle names; a network of petm is built only if it has as many.
        trust_bundle_code: Whether to import and call what the bundle names.
        trust_remote_code: Whether to run the code in the Hugging Face folder that the bundle names; needs both.

    Raises:
        ArgumentError: ``trust_remote_code`` is alone.
        BundleError: The reference is refused, or the network has another size.
        ModelError: The network cannot be built.
    """
    folder = folder_of(reference)
    if folder is not None:
        if trust_remote_code:
            if not trust_bundle_code:
                raise ArgumentError(
                    "trust_remote_code: expected trust_bundle_code as well, as it is the bundle that names the folder "
                    f"{str(folder)!r}, got it alone. Name the folder yourself (--model hf:DIR), or trust both."
                )
            source = base_of(folder, arguments.get("base")) if is_adapter(folder) else folder
            _refuse_inside(bundle, folder, source)
            _announce(f"{bundle}: runs the code in {source.resolve()}.")
        return load_model(reference, trust_remote_code=trust_remote_code, **arguments_of(reference, arguments))
    place, name = split_reference(reference)
    if place.split(".")[0] == _OWN and not place.endswith(".py"):
        factory = _own_network(place, name, reference)
        _expect_size(bundle, factory, reference, arguments, weights, parameters)
    elif trust_bundle_code:
        factory = _trusted_factory(bundle, place, name, reference, arguments)
    else:
        raise BundleError(
            f"{bundle}: expected a network of petm's own or an hf: folder, which run no code of strangers, got "
            f"{reference!r}. Pass your own model (--model), or read that code and allow it with trust_bundle_code=True "
            f"(--trust-bundle-code)."
        )
    return build(factory, reference, arguments).eval()


def _own_network(place: str, name: str, reference: str) -> Callable[..., nn.Module]:
    """A class of a network that petm defines."""
    found = getattr(import_module(place), name, None)
    if not (inspect.isclass(found) and issubclass(found, nn.Module) and found.__module__.startswith(f"{_OWN}.")):
        raise BundleError(f"model: expected a network of petm's own, got {reference!r}. Pass the model.")
    return found


def _expect_size(
    bundle: Path,
    factory: Callable[..., nn.Module],
    reference: str,
    arguments: Mapping[str, Any],
    weights: Path | None,
    parameters: int,
) -> None:
    """Builds the network without memory first, as the arguments may ask for any size."""
    with torch.device("meta"):
        size = count_parameters(build(factory, reference, arguments))
    held = weights.stat().st_size if weights is not None and weights.is_file() else 0
    if size != parameters or size > held:
        raise BundleError(
            f"{bundle}: expected {reference} with the {parameters:,} parameters of the manifest and a file of their "
            f"weights, got {size:,} parameters and {held:,} bytes. Pass the model and its weights (--weights)."
        )


def _trusted_factory(
    bundle: Path, place: str, name: str, reference: str, arguments: Mapping[str, Any]
) -> Callable[..., Any]:
    """A class of a network, or a function, that a module defines which lies outside the bundle."""
    told = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    if place.endswith(".py"):
        _refuse_inside(bundle, Path(place))
        _announce(f"{bundle}: imports {Path(place).resolve()} and calls {name}({told}).")
    else:
        if place.split(".")[0] in sys.stdlib_module_names:
            raise BundleError(f"{bundle}: expected a module with a network, got {reference!r}. Pass the model.")
        for end in range(1, place.count(".") + 2):  # finding a module imports the packages around it
            _refuse_inside(bundle, *_places_of(".".join(place.split(".")[:end])))
        _announce(f"{bundle}: imports {place} ({', '.join(map(str, _places_of(place)))}) and calls {name}({told}).")
    module = import_module(place)
    found: Any = getattr(module, name, None)
    network = inspect.isclass(found) and issubclass(found, nn.Module)
    if not (network or inspect.isfunction(found)) or getattr(found, "__module__", None) != module.__name__:
        raise BundleError(
            f"{bundle}: expected a class of a network, or a function, that {place} itself defines, got {name!r}. "
            f"Pass the model."
        )
    factory: Callable[..., Any] = found
    return factory


def _places_of(module: str) -> list[Path]:
    """Where a module's file, and its package's folders, are."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception as error:  # the packages around it are imported
        raise ModelError(f"model: {module} cannot be imported ({type(error).__name__}: {error}).") from error
    if spec is None:
        raise ModelError(
            f"model: expected a module that can be imported, got {module!r}. Start from the folder that it is in, or "
            f"name its file (--model path/to/file.py:factory)."
        )
    origin = [spec.origin] if spec.has_location and spec.origin else []
    return [Path(place) for place in (*origin, *(spec.submodule_search_locations or ()))]


def _refuse_inside(bundle: Path, *places: Path) -> None:
    for place in places:
        if place.resolve().is_relative_to(bundle.resolve()):
            raise BundleError(
                f"{bundle}: expected code outside the bundle, which holds data only, got {place}. Pass the model."
            )


def _announce(sentence: str) -> None:
    console.print(visible(sentence), markup=False, highlight=False, soft_wrap=True)
