"""From a trained model and labelled data to a grader, in one call."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from petm.adapter.peft_folder import adopt_adapter
from petm.data.base import Data, as_data
from petm.errors import ArgumentError
from petm.grading.grader import Grader, fit_grader
from petm.grading.provenance import Origin, describe_data
from petm.models.prediction import Precision, choose_device
from petm.training.error_set import find_errors
from petm.training.preflight import CHECKED, preflight
from petm.training.recipes import (
    Recipe,
    adapt,
    focus,
    recipe_named,
    within,
)
from petm.training.run_folder import RunFolder

CALIBRATION_SHARE = 0.2
"""Of the data, the share on which the threshold is set where no others are given."""
RECALL = 0.9
"""Of A's errors on the calibration samples, the share that is flagged where nothing else is asked for."""


def fit(
    model: nn.Module,
    data: Data,
    *,
    calibration: Data | float = CALIBRATION_SHARE,
    recipe: str | Recipe = "fast",
    errors: str | None = None,
    layers: Mapping[str, int] | None = None,
    max_extra_parameters: float | None = None,
    max_extra_time: float | None = None,
    max_risk: float | None = None,
    coverage: float | None = None,
    recall: float | None = None,
    confidence: float = 0.95,
    per_class: bool = False,
    seed: int = 0,
    precision: Precision = "float32",
    cache_budget: int = 4 << 30,
    device: str = "auto",
    origin: Origin | None = None,
    run: RunFolder | None = None,
) -> Grader:
    """Returns a grader for a trained model: adapters by a recipe, probability of error and threshold by calibration.

    Where trust ends follows from one of ``max_risk``, ``coverage`` and ``recall``, as in `fit_grader`. With
    none of them, nine of ten errors of the calibration samples are flagged. Where there is none, and with the recipe
    ``paper``, what the second opinion answers otherwise is flagged, as the paper does.

    Args:
        model: A; it stays as it is, but is moved to ``device``.
        data: Labelled samples, best those that A was trained on.
        calibration: Labelled samples that A has *not* seen, on which the threshold is set; or the share of ``data`` to
            hold out for that. A looks better on its own training data than it is, so a threshold set on a share of
            them promises too much: pass fresh samples where there are any.
        recipe: A name of `petm.training.recipes.RECIPES`, or a recipe of your own.
        errors: Where the recipe ``paper`` takes errors from, a name of `SOURCES`; absent takes A's own.
        layers: The rank of each layer to adapt; absent follows the recipe.
        max_extra_parameters: The adapters' budget as a share of A's parameters; absent follows the recipe.
        max_extra_time: By which share one pass may exceed a plain forward, in counted operations; absent follows the
            recipe. The recipe ``paper`` adapts every layer all the same.
        max_risk: Largest share of errors among the trusted, guaranteed.
        coverage: Share of the predictions to trust.
        recall: Share of the errors to flag.
        confidence: With which ``max_risk`` is to hold.
        per_class: Whether ``max_risk`` is to hold in each class that A predicts.
        seed: Of everything.
        precision: Of the matrix products in training.
        cache_budget: Bytes of memory for what is computed once, as in `petm.training.recipes.adapt`.
        device: ``auto``, ``cpu``, ``cuda``, ...
        origin: How A is built again, for the bundle.
        run: Where the trainings leave their checkpoints.

    Raises:
        NothingToLearnError: The recipe is the paper's, and A makes no errors on ``data``.
        ArgumentError: An argument breaks its rule.
        DataError: Labels are missing or outside 0..K-1, or only one class is present.
    """
    data = as_data(data)
    if isinstance(calibration, float):
        if not 0 < calibration < 1:
            raise ArgumentError(f"calibration: expected data or a share between 0 and 1, got {calibration}.")
        data, calibration = data.split((1 - calibration, calibration), seed=seed)
    calibration = as_data(calibration)
    recipe = within(recipe_named(recipe), max_extra_parameters=max_extra_parameters, max_extra_time=max_extra_time)
    model.to(choose_device(device))
    if errors is not None:
        recipe = replace(recipe, errors=errors)
    seen = preflight(model, data if recipe.teacher else _some(data, CHECKED, seed))
    adapted = adapt(
        model,
        data,
        recipe=recipe,
        layers=layers,
        seed=seed,
        precision=precision,
        cache_budget=cache_budget,
        device=device,
        storage=run.storage if run else None,
    )
    order = torch.randperm(len(calibration), generator=torch.Generator().manual_seed(seed))
    tenth = -(-len(order) // 10)
    if focus(adapted, recipe, calibration.subset(order[:tenth])):
        calibration = calibration.subset(order[tenth:])
    told = {"recipe": recipe.title, "seed": seed, "training_errors": seen.errors, "training_samples": seen.samples}
    told |= {"preflight": str(seen)} if recipe.teacher else {}  # the others do not learn from A's errors
    used = {"train": describe_data(data), "calibration": describe_data(calibration)}
    origin = replace(origin or Origin(), data=used, settings=told)
    if max_risk is None and coverage is None and recall is None and not recipe.teacher:
        recall = _default_recall(model, calibration)
    return fit_grader(
        adapted,
        calibration,
        max_risk=max_risk,
        coverage=coverage,
        recall=recall,
        confidence=confidence,
        per_class=per_class,
        score=recipe.score,
        origin=origin,
    )


def fit_adopted(
    model: nn.Module,
    folder: str | Path,
    calibration: Data,
    *,
    max_risk: float | None = None,
    coverage: float | None = None,
    recall: float | None = None,
    confidence: float = 0.95,
    per_class: bool = False,
    device: str = "auto",
    origin: Origin | None = None,
) -> Grader:
    """Returns a grader whose second opinion is an adapter that PEFT has trained; nothing is trained, only calibrated.

    Args:
        model: A; it stays as it is, but is moved to ``device``.
        folder: The adapter, as in `petm.adapter.peft_folder.adopt_adapter`.
        calibration: Labelled samples that neither A nor the adapter has seen; all of them set the threshold.
        max_risk: As in `fit`, and so are the others.
        coverage: Share of the predictions to trust.
        recall: Share of the errors to flag.
        confidence: With which ``max_risk`` is to hold.
        per_class: Whether ``max_risk`` is to hold in each class that A predicts.
        device: ``auto``, ``cpu``, ``cuda``, ...
        origin: How A is built again, for the bundle.

    Raises:
        BundleError: The folder holds no LoRA adapter for A.
        ArgumentError: An argument breaks its rule.
        DataError: Labels are missing or outside 0..K-1, or only one class is present.
    """
    calibration = as_data(calibration)
    model.to(choose_device(device))
    adapted = adopt_adapter(model, folder)
    used = {"calibration": describe_data(calibration)}
    origin = replace(origin or Origin(), data=used, settings={"adapter": "trained elsewhere by PEFT"})
    if max_risk is None and coverage is None and recall is None:
        recall = _default_recall(model, calibration)
    return fit_grader(
        adapted,
        calibration,
        max_risk=max_risk,
        coverage=coverage,
        recall=recall,
        confidence=confidence,
        per_class=per_class,
        origin=origin,
    )


def _some(data: Data, most: int, seed: int) -> Data:
    """The data, or so many of them at random where there are more."""
    if len(data) <= most:
        return data
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.subset(order[:most])


def _default_recall(model: nn.Module, calibration: Data) -> float | None:
    """Which recall is asked for where nothing is; none without errors, of which no share could be flagged."""
    return RECALL if len(find_errors(model, calibration)) else None
