"""From a trained model and labelled data to a grader, in one call; and an estimate of what that will take."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from petm._internal.distributed import group
from petm._internal.files import check_room, plain
from petm._internal.progress import note
from petm._internal.records import Json
from petm.adapter.model import AdaptedModel, check_ranks, views_alone
from petm.adapter.peft_folder import adopt_adapter
from petm.data.base import Data, Joined, as_data
from petm.data.fields import Fields, tensors_of
from petm.data.unseen import Separated, distinct, hold_out, refuse_review_queue, sample_hashes, separate
from petm.errors import ArgumentError, DataError, ModelError, PetmWarning
from petm.evidence.candidates import BUDGET, choose_for
from petm.evidence.formulas import SOFTMAX
from petm.evidence.suspicion import EVIDENCE, Suspicion, suspicion_named
from petm.grading.grader import PAPER_TARGET, Grader, fit_grader
from petm.grading.grades import check_inputs
from petm.grading.input_profile import describe_inputs
from petm.grading.provenance import DataOrigin, InputOrigin, Origin, describe_data
from petm.models.hf_classifier import names_of
from petm.models.loading import call_model
from petm.models.prediction import check_labels, choose_device, device_of, evaluating, predict_logits
from petm.models.probe import check_module, probe
from petm.selective.audit import inverse_chances, thinned
from petm.selective.choice import Choice
from petm.selective.targets import MaxRisk, Target
from petm.training.config import FitConfig, FitSettings
from petm.training.estimate import Estimate, estimate_fit
from petm.training.loop import Storage
from petm.training.preflight import CHECKED, Answers, compare_answers, preflight
from petm.training.recipes import Making, Recipe, adapt, focus, made_by, recipe_named, within
from petm.training.run_folder import RunFolder

_COPIES_IN_CHECKPOINT = 4
"""Copies of the trained weights: the weights, two moments of Adam, and the best so far."""
_MOST_ANSWERS = 2000
"""Most samples of a set on which the base model's accuracy is measured before the training."""
FEWEST_TO_CHOOSE = 500
"""Held-out samples below which a guarantee needs them all, and nothing is chosen."""
_MOST_BYTES = 1 << 30
"""Most bytes of decoded data in which an estimate looks for samples of the calibration set."""
_NOTHING_KEPT = (
    "No adapter is kept. Next: pass more labels, allow more time (max_extra_time), or learn from confirmed labels "
    "after a shift."
)
CHOICE_SHARE = 0.4
"""Share of the held-out samples to choose the suspicion on, where the others are for a guarantee."""


class Fitted(NamedTuple):
    """A grader, and the samples that its threshold was set on."""

    grader: Grader
    calibration: Data


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

    Settings, layers, labels, classes and shapes are checked before the first pass. Then the base model's accuracy says
    whether the labels are its own: the fit is refused where it is not better than guessing, or where another order of
    the classes suits the labels better.

    Args:
        model: The base model; unchanged, but moved to the device.
        data: Labelled samples, best those that the base model was trained on.
        calibration: Labelled samples that the base model has *not* seen, for the threshold; or the share of ``data`` to
            hold out for it. A model makes fewer errors on its own training data, so a share of them gives no guarantee,
            unless `FitConfig.calibration_from_data` says that they are unseen. Samples equal to a training sample are
            left out, and repetitions count once.
        config: All other settings; absent takes the defaults.
        origin: How the base model is built again, for the bundle.
        run: Folder of the checkpoints.
        **settings: Fields of `petm.training.config.FitConfig`, in place of those of ``config``.

    Raises:
        NothingToLearnError: The recipe is the paper's, and the base model makes no errors on ``data``.
        ArgumentError: An argument is out of range, or a guarantee has no samples that the base model has not seen.
        DataError: Labels are missing or outside 0..K-1, only one class is present, or the calibration set has other
            classes or shapes; it was chosen by suspicion, or more than half of it are training samples; or the labels
            are not those of the base model.
        RunError: The disk has no room for the cached features.

    Example:
        >>> grader = fit(model, train, calibration=fresh, target=petm.MaxRisk(0.02))  # doctest: +SKIP
    """
    return fitted(model, data, calibration=calibration, config=config, origin=origin, run=run, **settings).grader


def fitted(
    model: nn.Module,
    data: Data,
    *,
    calibration: Data | float | None = None,
    config: FitConfig | None = None,
    origin: Origin | None = None,
    run: RunFolder | None = None,
    **settings: Unpack[FitSettings],
) -> Fitted:
    """Returns the grader of `fit` and the samples it was calibrated on; arguments and errors are those of `fit`."""
    data, fresh, config = _prepare(model, data, calibration, config, settings)
    recipe, seed = within(recipe_named(config.recipe), config), config.seed
    apart = hold_out(data, config.calibration, seed=seed) if fresh is None else separate(data, fresh)
    data, samples = apart.data, apart.calibration
    seen = preflight(model, data if recipe.teacher else _some(data, CHECKED, seed))
    accuracies = _check_accuracy(seen.answers, _answers(model, samples, seed), force=config.force)
    storage = run.storage if run else None
    if recipe.teacher or not isinstance(config.recipe, str):
        adapted = adapt(model, data, config=config, storage=storage)
        suspicion, choice, chosen_here = suspicion_named(recipe.score), None, False
        samples = _focused(adapted, recipe, samples, seed)
    else:
        to_choose, samples = _divided(samples, config)
        chosen_here = to_choose is samples
        adapted, suspicion, choice = _chosen(model, data, to_choose, config, storage)
    used = _origins(apart, samples, held_out=fresh is None)
    if choice is not None and choice.compared:
        used["choice"] = describe_data(to_choose)
    title = _title(adapted, recipe)
    told = config.told() | {"recipe": title, "training_errors": seen.errors, "training_samples": seen.samples}
    told |= {"preflight": str(seen)} if recipe.teacher else {}  # only the paper's recipe learns from errors
    found = _calibrated(
        adapted,
        samples,
        apart.left_out,
        target=config.target or (PAPER_TARGET if recipe.teacher else None),
        score=suspicion,
        choice=choice,
        chosen_here=chosen_here,
        origin=replace(origin or Origin(), data=used, settings=told),
    )
    return Fitted(_completed(found.grader, accuracies, stated=fresh is None), found.calibration)


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
    elif len(data) and sum(map(_size, (data, fresh))) <= _MOST_BYTES:
        apart = separate(data, fresh)
        fresh = apart.calibration
        if (apart.seen or apart.repeated) and group().is_main:
            note(f"The calibration set: {_origins(apart, fresh, held_out=False)['calibration']}.")
    heard = (_answers(model, samples, config.seed) for samples in (data, fresh))
    _check_accuracy(*heard, force=config.force)
    return estimate_fit(model, data, fresh, config, decoded=decoded)


def fit_adopted(
    model: nn.Module,
    folder: str | Path,
    calibration: Data,
    *,
    target: Target | None = None,
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
        calibration_from_data: Whether neither has seen them by the user's word alone, which the bundle then says.
        force: As in `FitConfig`.
        device: ``auto``, ``cpu``, ``cuda``, ...
        origin: How the base model is built again, for the bundle.

    Raises:
        BundleError: The folder holds no LoRA adapter for the base model.
        DataError: Labels are missing or outside 0..K-1, only one class is present, the samples were chosen by
            suspicion, or the labels are not those of the base model.
    """
    check_module(model)
    calibration = as_data(calibration, source="calibration")
    model.to(choose_device(device))
    _check_data(model, calibration, "data", force=force, probing=True)
    refuse_review_queue(calibration)
    apart = distinct(calibration)
    accuracies = _check_accuracy(None, _answers(model, apart.calibration, 0), force=force)
    adapted = adopt_adapter(model, folder)
    used = {"calibration": _origins(apart, apart.calibration, held_out=False)["calibration"]}
    origin = replace(origin or Origin(), data=used, settings={"adapter": "trained elsewhere by PEFT"})
    found = _calibrated(adapted, apart.calibration, apart.left_out, target=target, origin=origin)
    return Fitted(_completed(found.grader, accuracies, stated=calibration_from_data), found.calibration)


def recalibrate(
    grader: Grader, fresh: Data, *, target: Target | None = None, chance: ArrayLike | None = None, force: bool = False
) -> Grader:
    """Returns a grader with threshold and probability of error set anew on fresh labels; nothing is trained.

    All else is kept: base model, adapters, cascade, suspicion, the form of inputs. Of equal samples one is kept. Where
    ``grader`` was loaded, its settings name that bundle as the parent.

    Args:
        grader: A fitted grader; unchanged.
        fresh: ``N`` labelled samples like later inputs, which neither the base model nor the adapters have seen. If
            they are exactly the calibration set of the fit, a guarantee leaves out those that suspicion was chosen on;
            other samples of the fit are not known any more, so those that equal them cannot be found.
        target: Target of the threshold; absent takes the grader's.
        chance: float ``(N,)``, the chance with which each sample was drawn to be labelled, in (0, 1], as for a review
            queue with an audit (`petm.data.reviewed.Reviewed.chance`); None for equal chances.
        force: As in `FitConfig`.

    Raises:
        ArgumentError: A chance is out of range.
        DataError: Labels are missing or outside 0..K-1, only one class is present, the classes or inputs are others
            than those of the grader, the samples were chosen by suspicion, the target is a guarantee and they are those
            that suspicion was chosen on, or the labels are not the base model's.

    Example:
        >>> grader = recalibrate(grader, fresh, target=petm.MaxRisk(0.01))  # doctest: +SKIP
    """
    return recalibrated(grader, fresh, target=target, chance=chance, force=force).grader


def recalibrated(
    grader: Grader, fresh: Data, *, target: Target | None = None, chance: ArrayLike | None = None, force: bool = False
) -> Fitted:
    """Returns the grader of `recalibrate` and its calibration samples; arguments and errors are those of that."""
    adapted, origin = grader.adapted, grader.origin
    fresh = as_data(fresh, source="calibration")
    inverse_chances(chance, len(fresh))  # checks them
    _check_data(adapted.base, fresh, "calibration", force=force)
    _check_classes(fresh, origin.model.classes, "the grader")
    check_inputs(fresh, origin.inputs, f"calibration ({fresh.source})")
    if chance is None:
        refuse_review_queue(fresh)
    fresh = _not_learned_from(fresh, origin, drawn=chance is None)
    apart, target = distinct(fresh), target or grader.target
    samples, all_chances = apart.calibration, None if chance is None else np.asarray(chance, np.float64)
    if chance is None and target is not None and target.guarantees:
        samples = _not_chosen_on(samples, origin, target)
    chances = None if all_chances is None else (all_chances[apart.kept], all_chances[~apart.kept])
    alike = thinned(inverse_chances(chances and chances[0], len(samples)))  # the model is as right on later inputs
    accuracies = _check_accuracy(None, _answers(adapted.base, samples.subset(torch.from_numpy(alike)), 0), force=force)
    data = {**origin.data, "calibration": describe_data(samples, repeated=apart.repeated)}
    parent = {"parent": grader.bundle} if grader.bundle else {}
    found = _calibrated(
        adapted,
        samples,
        apart.left_out,
        target=target,
        origin=replace(origin, data=data, settings={**origin.settings, **parent}),
        chances=chances,
        score=grader.suspicion,
        choice=grader.choice,
    )
    made = _completed(found.grader, accuracies, stated=False)
    inputs = origin.inputs if origin.inputs.profile else made.origin.inputs
    measured = {**grader.measured, **made.measured}
    return Fitted(replace(made, origin=replace(made.origin, inputs=inputs), measured=measured), found.calibration)


def _not_learned_from(fresh: Data, origin: Origin, *, drawn: bool) -> Data:
    """The samples that the grader has not learned from; those of a queue must be none of these."""
    known = (
        np.isin(sample_hashes(fresh), origin.learned_from) if len(origin.learned_from) else np.zeros(len(fresh), bool)
    )
    if not known.any():
        return fresh
    told = f"calibration: expected samples that the grader has not learned from, got {known.sum():,} of {len(fresh):,}"
    if not drawn or known.all():
        raise DataError(f"{told} that it has. Label other inputs.")
    warnings.warn(f"{told} that it has. These are left out.", PetmWarning, stacklevel=4)
    return fresh.subset(torch.from_numpy(~known))


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
) -> tuple[Data, Data | None, FitConfig]:
    """Returns data, calibration set if any, and settings, checked as far as possible before a pass over the data."""
    config = replace(config or FitConfig(), **settings)
    if isinstance(calibration, int | float):
        config, calibration = replace(config, calibration=calibration), None
    config.check_calibration(separate=calibration is not None)
    check_module(model)
    data = as_data(data)
    model.to(choose_device(config.device))
    if config.layers:
        check_ranks(config.layers, model)
    _check_data(model, data, "data", force=config.force, probing=True)
    if calibration is None:
        if config.calibration_from_data:
            refuse_review_queue(data)
        return data, None, config
    fresh = as_data(calibration, source="calibration")
    _check_alike(data, fresh)
    _check_data(model, fresh, "calibration", force=config.force)
    refuse_review_queue(fresh)
    return data, fresh, config


def _answers(model: nn.Module, data: Data, seed: int) -> Answers:
    some = _some(data, _MOST_ANSWERS, seed)
    logits = predict_logits(model, some, title="check the labels")
    return Answers(logits.argmax(1), some.labels, logits.shape[1], data.classes, data.source)


def _check_accuracy(data: Answers | None, calibration: Answers, *, force: bool) -> dict[str, Json]:
    """Returns the base model's accuracies by name, after saying them and checking that the labels are the model's."""
    found = ({"data": data} if data else {}) | {"calibration": calibration}
    rights = {argument: answers.accuracy for argument, answers in found.items()}
    if group().is_main:
        parts = (f"{right.value:.1%} of {right.of:,} samples of {argument}" for argument, right in rights.items())
        note(f"The model is right on {' and '.join(parts)}.")
    for argument, answers in found.items() if not force else ():
        answers.check(argument, like=data if answers is not data else None)
    if data:
        compare_answers(data, calibration)
    told: dict[str, Json] = plain({f"accuracy_on_{argument}": right for argument, right in rights.items()})
    return told


def _calibrated(
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


def _divided(samples: Data, config: FitConfig) -> tuple[Data, Data]:
    """The samples to choose on, and those to set the threshold on: under a guarantee they are different ones."""
    if config.target is None or not config.target.guarantees:
        return samples, samples
    if len(samples) < FEWEST_TO_CHOOSE:
        return samples.subset([]), samples
    return _parts(samples, config.seed)


def _parts(samples: Data, seed: int) -> tuple[Data, Data]:
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    first = int(CHOICE_SHARE * len(order))
    return samples.subset(order[:first].sort().values), samples.subset(order[first:].sort().values)


def _not_chosen_on(samples: Data, origin: Origin, target: Target) -> Data:
    """The samples; where they are those of the fit, the part on which suspicion was not chosen, for a guarantee."""
    chosen_on, seed = origin.data.get("choice"), origin.settings.get("seed")
    if chosen_on is None or not isinstance(seed, int):
        return samples
    if samples.content == chosen_on.content:
        raise DataError(
            f"calibration: expected fresh samples, to guarantee {target}, got the {len(samples):,} of the fit, on "
            f"which suspicion was chosen. Pass others, or fit with this target."
        )
    to_choose, rest = _parts(samples, seed)
    if to_choose.content != chosen_on.content:
        return samples
    if group().is_main:
        note(f"Suspicion was chosen on {len(to_choose):,} of these samples; the guarantee is computed on the others.")
    return rest


def _chosen(
    model: nn.Module, data: Data, to_choose: Data, config: FitConfig, storage: Callable[[str], Storage | None] | None
) -> tuple[AdaptedModel, Suspicion, Choice]:
    """The model with trained adapters if the suspicion that is chosen needs them, and the choice."""
    if not len(to_choose):
        reason = f"A guarantee needs all samples where they are fewer than {FEWEST_TO_CHOOSE}, so nothing was compared."
        softmax = suspicion_named(SOFTMAX.name)
        return views_alone(model, ()), softmax, Choice(softmax.name, "aurc", (), reason)
    making = Making(model, data, config, storage)
    try:
        trained = making.candidates(to_choose, adversarial=not making.images) if _learns(config) else ()
    except (ArgumentError, ModelError) as error:
        if config.layers or config.max_extra_parameters or config.max_extra_time:
            raise  # as the user asked for more than is possible, or for less than rank 1
        trained = ()
        if group().is_main:
            note(f"No adapter is trained. {error}")
    adapted = trained[0].adapted if trained else views_alone(model, ())
    tried = [logits for trajectory in trained for logits in trajectory.logits]
    how = _budget(config) | {"only": config.compared, "tried": tried, "seed": config.seed}
    adapted, chosen = choose_for(adapted, data, to_choose, **how)
    choice = chosen.choice
    if choice.name == SOFTMAX.name and len(choice.compared) > 1:
        choice = replace(choice, reason=f"{choice.reason} {_NOTHING_KEPT}")
    if group().is_main:
        note(choice.reason)
    return adapted, chosen.suspicion, choice


def _learns(config: FitConfig) -> bool:
    """Whether evidence of adapters is compared."""
    return not config.compared or any(EVIDENCE[name].needs == "opinions" for name in config.compared)


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


def _completed(grader: Grader, accuracies: dict[str, Json], *, stated: bool) -> Grader:
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


def _check_data(model: nn.Module, data: Data, argument: str, *, force: bool, probing: bool = False) -> None:
    """Checks labels and class names against the outputs of the model, found with one sample, and their names.

    ``probing`` first finds out how the model is called and its answer read.
    """
    source = f"{argument} ({data.source})"
    if not len(data):
        raise DataError(f"{source}: expected at least one sample, got none.")
    if probing:
        probe(model, data)
    with evaluating(model):
        classes = call_model(model, data.inputs([0]).to(device_of(model))).shape[1]
    check_labels(data.labels, classes, source)
    if len(data.classes) not in (0, classes):
        raise DataError(
            f"{source}: expected {classes} class names, one for each output of the model, got "
            f"{len(data.classes)}: {', '.join(data.classes[:12])}. Name those of the model in their order."
        )
    own = names_of(model)
    places = {name.strip().casefold(): place for place, name in enumerate(own)}
    moved = [name for place, name in enumerate(data.classes) if places.get(name.strip().casefold(), place) != place]
    if moved and not force:
        raise DataError(
            f"{source}: expected the classes in the order of the model's outputs, {', '.join(own[:12])}, got "
            f"{', '.join(data.classes[:12])}. Name them in that order, or go on with force."
        )


def _check_alike(data: Data, calibration: Data) -> None:
    """Checks that the calibration set has the same classes and shapes as the data."""
    _check_classes(calibration, data.classes, data.source)
    if len(calibration) and (one := _form(data)) != (other := _form(calibration)):
        raise DataError(
            f"calibration ({calibration.source}): expected inputs like those of {data.source}, {one}, got {other}."
        )
    check_inputs(calibration, InputOrigin(profile=describe_inputs(data)), f"calibration ({calibration.source})")


def _check_classes(calibration: Data, classes: tuple[str, ...], owner: str) -> None:
    if classes and calibration.classes and classes != calibration.classes:
        raise DataError(
            f"calibration ({calibration.source}): expected the classes of {owner}, {', '.join(classes[:12])}, got "
            f"{', '.join(calibration.classes[:12])}. Name those of the model in their order."
        )


def _size(data: Data) -> int:
    """Bytes of the decoded samples, all like the first."""
    return len(data) * sum(tensor.nbytes for tensor in tensors_of(data.inputs([0])))


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
