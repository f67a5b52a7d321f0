"""From a trained model and labelled data to a grader, in one call; and an estimate of what that will take."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from petm._internal.distributed import group
from petm._internal.files import check_room
from petm._internal.progress import note
from petm._internal.records import Json
from petm.adapter.model import AdaptedModel, check_ranks, views_alone
from petm.adapter.peft_folder import adopt_adapter
from petm.data.base import Data, Joined, as_data
from petm.data.unseen import Separated, distinct, hold_out, refuse_review_queue, separate
from petm.errors import ArgumentError, ModelError, PetmWarning
from petm.evidence.candidates import BUDGET, choose_for
from petm.evidence.formulas import SOFTMAX
from petm.evidence.protocol import Evidence
from petm.evidence.suspicion import EVIDENCE, Suspicion, suspicion_named
from petm.grading.bundle import check_made_for
from petm.grading.grader import PAPER_TARGET, Grader, fit_grader
from petm.grading.label_checks import answers_to_some, bytes_of, check_accuracy, check_alike, check_data, some_of
from petm.grading.manifest import MANIFEST, read_manifest
from petm.grading.provenance import DataOrigin, InputOrigin, ModelOrigin, Origin, describe_data
from petm.models.hf_classifier import names_of
from petm.models.hf_processors import as_processor
from petm.models.placing import check_copied, check_teachable
from petm.models.prediction import move
from petm.models.probe import check_module
from petm.selective.choice import CHOICE_SHARE as CHOICE_SHARE
from petm.selective.choice import FEWEST_TO_CHOOSE as FEWEST_TO_CHOOSE
from petm.selective.choice import Choice
from petm.selective.sets import COVERAGE as SET_COVERAGE
from petm.selective.targets import MaxRisk, Target
from petm.training.config import FitConfig, FitSettings
from petm.training.estimate import Estimate, estimate_fit
from petm.training.loop import Storage
from petm.training.preflight import CHECKED, preflight
from petm.training.recipes import Making, Recipe, adapt, focus, made_by, recipe_named, within
from petm.training.run_folder import RunFolder

_COPIES_IN_CHECKPOINT = 4
"""Copies of the trained weights: the weights, two moments of Adam, and the best so far."""
_MOST_BYTES = 1 << 30
"""Most bytes of decoded data in which an estimate looks for samples of the calibration set."""
_NOTHING_KEPT = (
    "No adapter is kept. Next: pass more labels, allow more time (max_extra_time), or learn from confirmed labels "
    "after a shift."
)


class Fitted(NamedTuple):
    """A grader, and the samples that its threshold was set on."""

    grader: Grader
    calibration: Data


def fit(
    model: nn.Module,
    data: Any,
    *,
    calibration: Any = None,
    config: FitConfig | None = None,
    origin: Origin | None = None,
    run: RunFolder | None = None,
    evidence: Sequence[Evidence] = (),
    processor: Any = None,
    **settings: Unpack[FitSettings],
) -> Grader:
    """Returns a grader for a trained model: adapters by a recipe, probability of error and threshold by calibration.

    Settings, layers, labels, classes and shapes are checked before the first pass. Then the base model's accuracy says
    whether the labels are its own: the fit is refused where it is not better than guessing, or where another order of
    the classes suits the labels better.

    Args:
        model: The base model; unchanged, but moved to the device.
        data: Labelled samples, best those that the base model was trained on: a ``torch`` data set of items
            ``(input, label)`` with its transforms, a ``datasets.Dataset``, a pair of arrays or of texts and labels, or
            a `Data` (`petm.data.base.as_data`).
        calibration: Labelled samples of any such kind that the base model has *not* seen, for the threshold; or the
            share of ``data`` to hold out for it. A model makes fewer errors on its own training data, so a share of
            them gives no guarantee, unless `FitConfig.calibration_from_data` says that they are unseen. Samples equal
            to a training sample are left out, and repetitions count once.
        config: All other settings; absent takes the defaults.
        origin: How the base model is built again, for the bundle; absent, what the data say of classes and inputs.
        run: Folder of the checkpoints.
        evidence: Evidence of your own to compare as well (`petm.evidence.protocol.Evidence`).
        processor: The model's tokenizer or image processor, of transformers or from
            `petm.models.hf_processors.load_processor`: for texts, and for images of Pillow.
        **settings: Fields of `petm.training.config.FitConfig`, in place of those of ``config``.

    Raises:
        NothingToLearnError: The recipe is the paper's, and the base model makes no errors on ``data``.
        ArgumentError: An argument is out of range, or a guarantee has no samples that the base model has not seen.
        DataError: Labels are missing or outside 0..K-1, only one class is present, or the calibration set has other
            classes or shapes; it was chosen by suspicion, or more than half of it are training samples; or the labels
            are not those of the base model.
        RunError: The disk has no room for the cached features.

    Example:
        Any data set of torch will do:

        >>> points = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        >>> class Sides(torch.utils.data.Dataset):
        ...     def __len__(self):
        ...         return len(points)
        ...     def __getitem__(self, index):
        ...         return points[index], int(points[index, 0] > 0)
        >>> model = nn.Linear(2, 2)
        >>> _ = model.load_state_dict({"weight": torch.tensor([[-1.0, 0.5], [1.0, 0.0]]), "bias": torch.zeros(2)})
        >>> grader = fit(model, Sides(), recipe="softmax")
        >>> len(grader.grade(Sides()))
        400
    """
    how: Any = {"config": config, "origin": origin, "run": run, "evidence": evidence, **settings}
    how["processor"] = processor
    return fitted(model, data, calibration=calibration, **how).grader


def fitted(
    model: nn.Module,
    data: Data,
    *,
    calibration: Data | float | None = None,
    config: FitConfig | None = None,
    origin: Origin | None = None,
    run: RunFolder | None = None,
    evidence: Sequence[Evidence] = (),
    processor: Any = None,
    **settings: Unpack[FitSettings],
) -> Fitted:
    """Returns the grader of `fit` and the samples it was calibrated on; arguments and errors are those of `fit`."""
    data, fresh, config = _prepare(model, data, calibration, config, settings, processor)
    origin = origin or Origin(ModelOrigin(classes=data.classes or names_of(model)), InputOrigin.of_data(data))
    _check_own(evidence, config)
    recipe, seed = within(recipe_named(config.recipe), config), config.seed
    apart = hold_out(data, config.calibration, seed=seed) if fresh is None else separate(data, fresh)
    data, samples = apart.data, apart.calibration
    seen = preflight(model, data if recipe.teacher else some_of(data, CHECKED, seed))
    accuracies = check_accuracy(seen.answers, answers_to_some(model, samples, seed), force=config.force)
    storage = run.storage if run else None
    if recipe.teacher or not isinstance(config.recipe, str):
        adapted = adapt(model, data, config=config, storage=storage)
        suspicion, choice, chosen_here = suspicion_named(recipe.score), None, False
        samples = _focused(adapted, recipe, samples, seed)
    else:
        to_choose, samples = _divided(samples, config, alone=not evidence)
        chosen_here = to_choose is samples
        adapted, suspicion, choice = _chosen(model, data, to_choose, config, storage, evidence)
    used = _origins(apart, samples, held_out=fresh is None)
    if choice is not None and choice.compared:
        used["choice"] = describe_data(to_choose)
    title = _title(adapted, recipe)
    told = config.told() | {"recipe": title, "training_errors": seen.errors, "training_samples": seen.samples}
    told |= {"preflight": str(seen)} if recipe.teacher else {}  # only the paper's recipe learns from errors
    found = calibrated(
        adapted,
        samples,
        apart.left_out,
        target=config.target or (PAPER_TARGET if recipe.teacher else None),
        score=suspicion,
        choice=choice,
        chosen_here=chosen_here,
        set_coverage=config.set_coverage,
        origin=replace(origin, data=used, settings=told),
    )
    return Fitted(completed(found.grader, accuracies, stated=fresh is None), found.calibration)


def estimate(
    model: nn.Module,
    data: Data,
    *,
    calibration: Data | float | None = None,
    config: FitConfig | None = None,
    decoded: bool = False,
    **settings: Unpack[FitSettings],
) -> Estimate:
    """Returns what `fit` will take, after timing a few batches of each stage; trains nothing.

    Checks as `fit` does, the labels by at most 2,000 samples. Samples that are in both sets are sought, and said, up to
    1 GiB of decoded data, as that reads all of them.

    Args:
        model: The base model.
        data: Labelled samples.
        calibration: Labelled samples, or a share of ``data``.
        config: All other settings.
        decoded: Whether the fit gets the data decoded beforehand, as from the command line.
        **settings: Fields of `petm.training.config.FitConfig`.
    """
    data, fresh, config = _prepare(model, data, calibration, config, settings)
    if fresh is None:
        data, fresh = data.split((1 - config.calibration, config.calibration), seed=config.seed)
    elif len(data) and sum(map(bytes_of, (data, fresh))) <= _MOST_BYTES:
        apart = separate(data, fresh)
        fresh = apart.calibration
        if (apart.seen or apart.repeated) and group().is_main:
            note(f"The calibration set: {_origins(apart, fresh, held_out=False)['calibration']}.")
    heard = (answers_to_some(model, samples, config.seed) for samples in (data, fresh))
    check_accuracy(*heard, force=config.force)
    return estimate_fit(model, data, fresh, config, decoded=decoded)


def fit_adopted(
    model: nn.Module,
    folder: str | Path,
    calibration: Data,
    *,
    target: Target | None = None,
    set_coverage: float = SET_COVERAGE,
    calibration_from_data: bool = False,
    force: bool = False,
    device: str = "auto",
    origin: Origin | None = None,
) -> Fitted:
    """Returns a grader whose second opinion is an adapter that PEFT has trained, and the samples it is calibrated on.

    Nothing is trained. Of equal samples one is kept.

    Args:
        model: The base model; unchanged, but moved to ``device``.
        folder: Folder of the adapter, as in `petm.adapter.peft_folder.adopt_adapter`.
        calibration: Labelled samples that neither the base model nor the adapter has seen.
        target: Target of the threshold; absent flags nine of ten errors.
        set_coverage: As in `FitConfig`.
        calibration_from_data: Whether neither has seen them by the user's word alone, which the bundle then says.
        force: As in `FitConfig`.
        device: ``auto``, ``cpu``, ``cuda``, ...
        origin: How the base model is built again, for the bundle.

    Raises:
        BundleError: The folder holds no LoRA adapter for the base model, or is a bundle that was made for another.
        DataError: Labels are missing or outside 0..K-1, only one class is present, the samples were chosen by
            suspicion, or the labels are not those of the base model.
    """
    check_module(model)
    calibration = as_data(calibration, source="calibration")
    move(model, device)
    check_data(model, calibration, "data", force=force, probing=True)
    refuse_review_queue(calibration)
    apart = distinct(calibration)
    accuracies = check_accuracy(None, answers_to_some(model, apart.calibration, 0), force=force)
    if (Path(folder) / MANIFEST).is_file():  # a bundle, which knows its model
        check_made_for(Path(folder), read_manifest(Path(folder)), model)
    adapted = adopt_adapter(model, folder)
    used = {"calibration": _origins(apart, apart.calibration, held_out=False)["calibration"]}
    origin = replace(origin or Origin(), data=used, settings={"adapter": "trained elsewhere by PEFT"})
    how: Any = {"target": target, "set_coverage": set_coverage, "origin": origin}
    found = calibrated(adapted, apart.calibration, apart.left_out, **how)
    return Fitted(completed(found.grader, accuracies, stated=calibration_from_data), found.calibration)


def check_disk(output: Path, model: nn.Module, config: FitConfig, *, include_base: bool) -> None:
    """Checks that the disk has room for a bundle and its checkpoints; ``include_base`` adds the base model's weights.

    Raises:
        ModelError: These cannot be copied.
        RunError: It has not.
    """
    if include_base:
        check_copied(model)
    recipe = within(recipe_named(config.recipe), config)
    base = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    adapters = int(recipe.max_extra_parameters * base)
    checkpoints = _COPIES_IN_CHECKPOINT * (adapters + (base if recipe.teacher else 0))
    check_room(output, checkpoints + adapters + (base if include_base else 0), "the bundle and its checkpoints")


def _prepare(
    model: nn.Module,
    data: Data,
    calibration: Data | float | None,
    config: FitConfig | None,
    settings: FitSettings,
    processor: Any = None,
) -> tuple[Data, Data | None, FitConfig]:
    """Returns data, calibration set if any, and settings, checked as far as possible before a pass over the data."""
    config = replace(config or FitConfig(), **settings)
    if isinstance(calibration, int | float):
        config, calibration = replace(config, calibration=calibration), None
    config.check_calibration(separate=calibration is not None)
    check_module(model)
    prepared_by = None if processor is None else as_processor(processor, model)
    data = as_data(data, processor=prepared_by)
    move(model, config.device)
    if recipe_named(config.recipe).teacher:
        check_teachable(model)
    if config.layers:
        check_ranks(config.layers, model)
    check_data(model, data, "data", force=config.force, probing=True)
    if calibration is None:
        if config.calibration_from_data:
            refuse_review_queue(data)
        return data, None, config
    fresh = as_data(calibration, source="calibration", processor=prepared_by)
    check_alike(data, fresh)
    check_data(model, fresh, "calibration", force=config.force)
    refuse_review_queue(fresh)
    return data, fresh, config


def calibrated(
    adapted: AdaptedModel,
    samples: Data,
    left_out: Data | None,
    *,
    target: Target | None,
    origin: Origin,
    chances: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    **how: Any,
) -> Fitted:
    """The grader on calibration samples; under a guarantee also on all of them, where it then trusts less (by class).

    Repeated samples may be copies by mistake, or be as frequent later, such as short texts: a guarantee without them
    would then be false if the model is wrong on them. The lower threshold is right in both cases. ``chances`` are those
    of being labelled, of both parts.
    """
    of_samples, of_all = (chances[0], np.concatenate(chances)) if chances else (None, None)
    grader = fit_grader(adapted, samples, target=target, origin=origin, chance=of_samples, **how)
    if left_out is None or target is None or not target.guarantees or not grader.threshold.coverage:
        return Fitted(grader, samples)
    every = Joined(samples, left_out)
    data = dict(origin.data) | {"calibration": describe_data(every)}
    limit, origin = grader.threshold, replace(origin, data=data)
    other = fit_grader(adapted, every, target=target, origin=origin, at_most=limit, chance=of_all, **how)
    if other.threshold.values == limit.values:
        return Fitted(grader, samples)
    warnings.warn(
        f"calibration: expected each sample once and unseen, got {len(left_out):,} of {len(every):,} that are "
        f"repetitions or training samples, on which suspicion is worse. They are counted all the same, as later "
        f"inputs may repeat too; if they are copies by mistake, leave them out.",
        PetmWarning,
        stacklevel=3,
    )
    return Fitted(other, every)


def _check_own(evidence: Sequence[Evidence], config: FitConfig) -> None:
    """Checks that evidence of the user's own can be compared, and told by its name."""
    if evidence and config.recipe != "auto" and not config.compared:
        raise ArgumentError("evidence: expected none beside a recipe that compares nothing. Leave one of them out.")
    names = [each.name for each in evidence]
    if taken := [name for name in names if name in EVIDENCE or names.count(name) > 1]:
        raise ArgumentError(f"evidence: expected names of their own, got {taken[0]!r:.80}. Rename it.")


def _divided(samples: Data, config: FitConfig, *, alone: bool) -> tuple[Data, Data]:
    """The samples to choose on, and those to set the threshold on: under a guarantee they are different ones."""
    if alone and config.compared == (SOFTMAX.name,):
        return samples.subset([]), samples
    if config.target is None or not config.target.guarantees:
        return samples, samples
    if len(samples) < FEWEST_TO_CHOOSE:
        return samples.subset([]), samples
    return parts_to_choose(samples, config.seed)


def parts_to_choose(samples: Data, seed: int) -> tuple[Data, Data]:
    """Returns the samples to choose on and the others, which a guarantee is computed on."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    first = int(CHOICE_SHARE * len(order))
    return samples.subset(order[:first].sort().values), samples.subset(order[first:].sort().values)


def _chosen(
    model: nn.Module,
    data: Data,
    to_choose: Data,
    config: FitConfig,
    storage: Callable[[str], Storage | None] | None,
    own: Sequence[Evidence],
) -> tuple[AdaptedModel, Suspicion, Choice]:
    """The model with trained adapters if the suspicion that is chosen needs them, and the choice."""
    if not len(to_choose):
        few = f"A guarantee needs all samples where they are fewer than {FEWEST_TO_CHOOSE}, so nothing was compared."
        reason = "The softmax was named, so nothing was compared." if config.compared == (SOFTMAX.name,) else few
        softmax = suspicion_named(SOFTMAX.name)
        return views_alone(model, ()), softmax, Choice(softmax.name, "aurc", (), reason)
    making = Making(model, data, config, storage)
    try:
        trained = making.candidates(to_choose, adversarial=not making.images) if config.trains else ()
    except (ArgumentError, ModelError) as error:
        if config.layers or config.max_extra_parameters or config.max_extra_time:
            raise  # as the user asked for more than is possible, or for less than rank 1
        trained = ()
        if group().is_main:
            note(f"No adapter is trained. {error}")
    adapted = trained[0].adapted if trained else views_alone(model, ())
    tried = [logits for trajectory in trained for logits in trajectory.logits]
    how = _budget(config) | {"only": config.compared, "own": own, "tried": tried, "seed": config.seed}
    adapted, chosen = choose_for(adapted, data, to_choose, **how)
    choice = chosen.choice
    if choice.name == SOFTMAX.name and len(choice.compared) > 1:
        choice = replace(choice, reason=f"{choice.reason} {_NOTHING_KEPT}")
    if group().is_main:
        note(choice.reason)
    return adapted, chosen.suspicion, choice


def _budget(config: FitConfig) -> dict[str, Any]:
    risk = config.target.max_risk if isinstance(config.target, MaxRisk) else None
    return {"budget": BUDGET if config.max_extra_time is None else config.max_extra_time, "max_risk": risk}


def _focused(adapted: AdaptedModel, recipe: Recipe, samples: Data, seed: int) -> Data:
    """The samples for the threshold: all, or nine of ten where the others, without their labels, set a cascade."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    tenth = -(-len(order) // 10)
    return samples.subset(order[tenth:]) if focus(adapted, recipe, samples.subset(order[:tenth])) else samples


def _title(adapted: AdaptedModel, recipe: Recipe) -> str:
    """What was made, in words."""
    if adapted.adapters or made_by(adapted, recipe) is not recipe:
        return made_by(adapted, recipe).title
    return "The model at views of the input" if adapted.members else "The model alone"


def completed(grader: Grader, accuracies: dict[str, Json], *, stated: bool) -> Grader:
    """The grader with the accuracies, its guarantee marked where calibration samples are unseen by statement alone."""
    threshold = replace(grader.threshold, stated=stated and grader.threshold.confidence is not None)
    return replace(grader, threshold=threshold, measured={**grader.measured, **accuracies})


def _origins(apart: Separated, samples: Data, *, held_out: bool) -> dict[str, DataOrigin]:
    """The origins of both sets; ``samples`` are those of the calibration set that the threshold is set on."""
    left_out = {"seen": apart.seen, "repeated": apart.repeated}
    return {
        "train": describe_data(apart.data),
        "calibration": describe_data(samples, part_of_data=held_out, **left_out),
    }
