"""From a trained model and labelled data to a grader, in one call; and an estimate of what that will take."""

from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch
from torch import nn

from petm._internal.files import check_room
from petm.adapter.model import check_ranks
from petm.adapter.peft_folder import adopt_adapter
from petm.data.base import Data, as_data
from petm.data.fields import Fields
from petm.errors import DataError
from petm.grading.grader import PAPER_TARGET, Grader, fit_grader
from petm.grading.grades import check_inputs
from petm.grading.input_profile import describe_inputs
from petm.grading.provenance import InputOrigin, Origin, describe_data
from petm.models.loading import call_model
from petm.models.prediction import check_labels, choose_device, device_of, evaluating
from petm.selective.targets import Target
from petm.training.config import FitConfig, FitSettings
from petm.training.estimate import Estimate, estimate_fit
from petm.training.preflight import CHECKED, preflight
from petm.training.recipes import adapt, focus, recipe_named, within
from petm.training.run_folder import RunFolder

_COPIES_IN_CHECKPOINT = 4
"""Copies of the trained weights: the weights, two moments of Adam, and the best so far."""


def fit(
    model: nn.Module,
    data: Data,
    *,
    calibration: Data | float | None = None,
    config: FitConfig | None = None,
    origin: Origin | None = None,
    run: RunFolder | None = None,
    **settings: Unpack[FitSettings],
) -> Grader:
    """Returns a grader for a trained model: adapters by a recipe, probability of error and threshold by calibration.

    Settings, layers, labels, classes and shapes are checked before the first pass.

    Args:
        model: The base model; unchanged, but moved to the device.
        data: Labelled samples, best those that the base model was trained on.
        calibration: Labelled samples that the base model has *not* seen, for the threshold; or the share of ``data`` to
            hold out for it. A model makes fewer errors on its own training data, so a threshold set on a share of them
            guarantees too much: pass fresh samples where there are any.
        config: All other settings; absent takes the defaults.
        origin: How the base model is built again, for the bundle.
        run: Folder of the checkpoints.
        **settings: Fields of `petm.training.config.FitConfig`, in place of those of ``config``.

    Raises:
        NothingToLearnError: The recipe is the paper's, and the base model makes no errors on ``data``.
        ArgumentError: An argument is out of range.
        DataError: Labels are missing or outside 0..K-1, only one class is present, or the calibration set has other
            classes or shapes.
        RunError: The disk has no room for the cached features.

    Example:
        >>> grader = fit(model, train, calibration=fresh, target=petm.MaxRisk(0.02))  # doctest: +SKIP
    """
    data, calibration, config = _prepare(model, data, calibration, config, settings)
    recipe, seed = within(recipe_named(config.recipe), config), config.seed
    seen = preflight(model, data if recipe.teacher else _some(data, CHECKED, seed))
    adapted = adapt(model, data, config=config, storage=run.storage if run else None)
    order = torch.randperm(len(calibration), generator=torch.Generator().manual_seed(seed))
    tenth = -(-len(order) // 10)
    if focus(adapted, recipe, calibration.subset(order[:tenth])):
        calibration = calibration.subset(order[tenth:])
    told = config.told() | {"recipe": recipe.title, "training_errors": seen.errors, "training_samples": seen.samples}
    told |= {"preflight": str(seen)} if recipe.teacher else {}  # only the paper's recipe learns from errors
    used = {"train": describe_data(data), "calibration": describe_data(calibration)}
    return fit_grader(
        adapted,
        calibration,
        target=config.target or (PAPER_TARGET if recipe.teacher else None),
        score=recipe.score,
        origin=replace(origin or Origin(), data=used, settings=told),
    )


def estimate(
    model: nn.Module,
    data: Data,
    *,
    calibration: Data | float | None = None,
    config: FitConfig | None = None,
    decoded: bool = False,
    **settings: Unpack[FitSettings],
) -> Estimate:
    """Returns what `fit` will take, after timing a few batches of each stage; checks as `fit` does, trains nothing.

    Args:
        model: The base model.
        data: Labelled samples.
        calibration: Labelled samples, or a share of ``data``.
        config: All other settings.
        decoded: Whether the fit gets the data decoded beforehand, as from the command line.
        **settings: Fields of `petm.training.config.FitConfig`.
    """
    data, calibration, config = _prepare(model, data, calibration, config, settings)
    return estimate_fit(model, data, calibration, config, decoded=decoded)


def fit_adopted(
    model: nn.Module,
    folder: str | Path,
    calibration: Data,
    *,
    target: Target | None = None,
    device: str = "auto",
    origin: Origin | None = None,
) -> Grader:
    """Returns a grader whose second opinion is an adapter that PEFT has trained; it is only calibrated.

    Args:
        model: The base model; unchanged, but moved to ``device``.
        folder: Folder of the adapter, as in `petm.adapter.peft_folder.adopt_adapter`.
        calibration: Labelled samples that neither the base model nor the adapter has seen.
        target: Target of the threshold; absent flags nine of ten errors.
        device: ``auto``, ``cpu``, ``cuda``, ...
        origin: How the base model is built again, for the bundle.

    Raises:
        BundleError: The folder holds no LoRA adapter for the base model.
        DataError: Labels are missing or outside 0..K-1, or only one class is present.
    """
    calibration = as_data(calibration)
    model.to(choose_device(device))
    _check_data(model, calibration)
    adapted = adopt_adapter(model, folder)
    used = {"calibration": describe_data(calibration)}
    origin = replace(origin or Origin(), data=used, settings={"adapter": "trained elsewhere by PEFT"})
    return fit_grader(adapted, calibration, target=target, origin=origin)


def check_disk(output: Path, model: nn.Module, config: FitConfig, *, include_base: bool) -> None:
    """Checks that the disk has room for a bundle and its checkpoints; ``include_base`` adds the base model's weights.

    Raises:
        RunError: It has not.
    """
    recipe = within(recipe_named(config.recipe), config)
    base = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    adapters = int(recipe.max_extra_parameters * base)
    checkpoints = _COPIES_IN_CHECKPOINT * (adapters + (base if recipe.teacher else 0))
    check_room(output, checkpoints + adapters + (base if include_base else 0), "the bundle and its checkpoints")


def _prepare(
    model: nn.Module, data: Data, calibration: Data | float | None, config: FitConfig | None, settings: FitSettings
) -> tuple[Data, Data, FitConfig]:
    """Returns data, calibration set and settings, checked as far as possible before a pass over the data."""
    config = replace(config or FitConfig(), **settings)
    if isinstance(calibration, int | float):
        config, calibration = replace(config, calibration=calibration), None
    data = as_data(data)
    model.to(choose_device(config.device))
    if config.layers:
        check_ranks(config.layers, model)
    _check_data(model, data)
    if calibration is None:
        data, calibration = data.split((1 - config.calibration, config.calibration), seed=config.seed)
    else:
        calibration = as_data(calibration, source="calibration")
        _check_alike(data, calibration)
    _check_data(model, calibration)
    return data, calibration, config


def _check_data(model: nn.Module, data: Data) -> None:
    """Checks labels and class names against the number of outputs of the model, found with one sample."""
    if not len(data):
        raise DataError(f"{data.source}: expected at least one sample, got none.")
    with evaluating(model):
        classes = call_model(model, data.inputs([0]).to(device_of(model))).shape[1]
    check_labels(data.labels, classes, data.source)
    if len(data.classes) not in (0, classes):
        raise DataError(
            f"{data.source}: expected {classes} class names, one for each output of the model, got "
            f"{len(data.classes)}: {', '.join(data.classes[:12])}. Name those of the model in their order."
        )


def _check_alike(data: Data, calibration: Data) -> None:
    """Checks that the calibration set has the same classes and shapes as the data."""
    if data.classes and calibration.classes and data.classes != calibration.classes:
        raise DataError(
            f"{calibration.source}: expected the classes of {data.source}, {', '.join(data.classes[:12])}, got "
            f"{', '.join(calibration.classes[:12])}. Name those of the model in their order."
        )
    if len(calibration) and (one := _form(data)) != (other := _form(calibration)):
        raise DataError(f"{calibration.source}: expected inputs like those of {data.source}, {one}, got {other}.")
    check_inputs(calibration, InputOrigin(profile=describe_inputs(data)))


def _form(data: Data) -> tuple[int, ...] | tuple[str, ...]:
    """The shape of a sample; for fields their names, since texts differ in length."""
    x = data.inputs([0])
    return tuple(sorted(x.keys())) if isinstance(x, Fields) else tuple(x.shape[1:])


def _some(data: Data, most: int, seed: int) -> Data:
    """At most so many samples of the data, drawn at random."""
    if len(data) <= most:
        return data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.subset(order[:most])
