"""A grader on fresh labels, or for another target, without training."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from petm._internal.distributed import group
from petm._internal.progress import note
from petm.data.base import Data, as_data
from petm.data.labels import UNLABELLED
from petm.data.unseen import distinct, refuse_review_queue, sample_hashes
from petm.errors import DataError, PetmWarning
from petm.fitting import Fitted, calibrated, completed, parts_to_choose
from petm.grading.grader import Grader
from petm.grading.grades import check_inputs
from petm.grading.label_checks import answers_to_some, check_accuracy, check_classes, check_data
from petm.grading.provenance import Origin, describe_data
from petm.selective.audit import inverse_chances, thinned
from petm.selective.sets import COVERAGE as SET_COVERAGE
from petm.selective.sets import check_coverage
from petm.selective.targets import Target


def recalibrate(
    grader: Grader,
    fresh: Data,
    *,
    target: Target | None = None,
    chance: ArrayLike | None = None,
    force: bool = False,
    set_coverage: float | None = None,
) -> Grader:
    """Returns a grader with threshold and probability of error set anew on fresh labels; nothing is trained.

    All else is kept: base model, adapters, cascade, suspicion, the form of inputs. Of equal samples one is kept. Where
    ``grader`` was loaded, its settings name that bundle as the parent.

    Args:
        grader: A fitted grader; unchanged.
        fresh: ``N`` labelled samples like later inputs, which neither the base model nor the adapters have seen. If
            they are exactly the calibration set of the fit, a guarantee leaves out those that suspicion was chosen on;
            other samples of the fit are not known any more, so those that equal them cannot be found. With chances, a
            label of -1 says that nobody can tell: the prediction counts as wrong.
        target: Target of the threshold; absent takes the grader's.
        chance: float ``(N,)``, the chance with which each sample was drawn to be labelled, in (0, 1], as for a review
            queue with an audit (`petm.data.reviewed.Reviewed.chance`); None for equal chances.
        force: As in `FitConfig`.
        set_coverage: As in `FitConfig`; absent takes the grader's.

    Raises:
        ArgumentError: A chance is out of range.
        DataError: Labels are missing or outside 0..K-1, only one class is present, the classes or inputs are others
            than those of the grader, the samples were chosen by suspicion, the target is a guarantee and they are those
            that suspicion was chosen on, or the labels are not the base model's.

    Example:
        >>> grader = recalibrate(grader, fresh, target=petm.MaxRisk(0.01))  # doctest: +SKIP
    """
    how: Any = {"target": target, "chance": chance, "force": force, "set_coverage": set_coverage}
    return recalibrated(grader, fresh, **how).grader


def recalibrated(
    grader: Grader,
    fresh: Data,
    *,
    target: Target | None = None,
    chance: ArrayLike | None = None,
    force: bool = False,
    set_coverage: float | None = None,
) -> Fitted:
    """Returns the grader of `recalibrate` and its calibration samples; arguments and errors are those of that."""
    adapted, origin = grader.adapted, grader.origin
    if set_coverage is not None:
        check_coverage(set_coverage, "set_coverage")
    fresh = as_data(fresh, source="calibration", processor=grader.processor)
    inverse_chances(chance, len(fresh))  # checks them
    told = (fresh.labels != UNLABELLED) | torch.tensor(chance is None)
    check_data(adapted.base, fresh.subset(told), "calibration", force=force)
    check_classes(fresh, origin.model.classes, "the grader")
    check_inputs(fresh, origin.inputs, f"calibration ({fresh.source})")
    if chance is None:
        refuse_review_queue(fresh)
    fresh = _not_learned_from(fresh, origin, drawn=chance is None)
    apart, target = distinct(fresh), target or grader.target
    samples, all_chances = apart.calibration, None if chance is None else np.asarray(chance, np.float64)
    if chance is None and target is not None and target.guarantees:
        samples = _not_chosen_on(samples, origin, target)
    chances = None if all_chances is None else (all_chances[apart.kept], all_chances[~apart.kept])
    # The model is as right on later inputs.
    alike = torch.from_numpy(thinned(inverse_chances(chances and chances[0], len(samples))))
    alike &= samples.labels != UNLABELLED
    accuracies = check_accuracy(None, answers_to_some(adapted.base, samples.subset(alike), 0), force=force)
    data = {**origin.data, "calibration": describe_data(samples, repeated=apart.repeated)}
    parent = {"parent": grader.bundle} if grader.bundle else {}
    found = calibrated(
        adapted,
        samples,
        apart.left_out,
        target=target,
        origin=replace(origin, data=data, settings={**origin.settings, **parent}),
        chances=chances,
        score=grader.suspicion,
        choice=grader.choice,
        cannot_tell=chance is not None,
        set_coverage=set_coverage or (grader.sets.coverage if grader.sets else SET_COVERAGE),
    )
    made = completed(found.grader, accuracies, stated=False)
    inputs = origin.inputs if origin.inputs.profile else made.origin.inputs
    measured = {**grader.measured, **made.measured}
    origin, processor = replace(made.origin, inputs=inputs), grader.processor or made.processor
    return Fitted(replace(made, origin=origin, measured=measured, processor=processor), found.calibration)


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
    to_choose, rest = parts_to_choose(samples, seed)
    if to_choose.content != chosen_on.content:
        return samples
    if group().is_main:
        note(f"Suspicion was chosen on {len(to_choose):,} of these samples; the guarantee is computed on the others.")
    return rest
