"""From confirmed labels to a better grader: the second opinion learns, the base model stays as it is."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from petm._internal.files import plain
from petm._internal.progress import note
from petm._internal.records import Json
from petm.adapter.model import ONE, AdaptedModel, views_alone
from petm.adapter.one_pass import Answers, predict_answers
from petm.adapter.split_point import split_point_of
from petm.data.base import Data, Joined, as_data
from petm.data.decisions import FEWEST, check_known
from petm.data.fields import Fields
from petm.data.labels import UNLABELLED, enumerated
from petm.data.unseen import Separated, one_of_each, refuse_review_queue, sample_hashes, separate
from petm.errors import ArgumentError, DataError, PetmWarning
from petm.evidence.candidates import BUDGET, Budget, candidates, feature_costs, narrowed
from petm.evidence.choice import FOLDS, Candidate, Choosing, Chosen, Labelled, regression
from petm.evidence.formulas import SOFTMAX
from petm.evidence.suspicion import Suspicion
from petm.grading.grader import Grader, fit_grader
from petm.grading.grades import check_inputs
from petm.grading.provenance import describe_data
from petm.models.prediction import Precision, check_labels, device_of, evaluating, move, predict_logits
from petm.selective.audit import inverse_chances, thinned
from petm.selective.before_after import Change, Judged, changes
from petm.selective.choice import FEWEST_ERRORS, Choice, choose
from petm.selective.sets import COVERAGE as SET_COVERAGE
from petm.selective.targets import Disagreement, MaxRisk, Target
from petm.training.config import CACHE_BUDGET
from petm.training.from_labels import LearnedAdapter, label_weights, learn_from_labels
from petm.training.loop import Storage
from petm.training.preflight import Answers as Predictions

PRESENT = "present grader"
FEWEST_TO_TRAIN = 50
"""Labels below which no adapter learns: it would be judged on a handful of errors."""
FEWEST_FOR_FIVE_FOLDS = 100
GUARANTEE_SHARE = 0.5
"""Share of the labels that is set apart for a guarantee, where no calibration set is given."""


@dataclass(frozen=True, eq=False)
class Learned:
    """A grader that has learned from labels, beside the one before.

    Attributes:
        grader: The new grader.
        changes: Its figures and those of the grader before, on labels that its adapter has not seen.
        judged: Number of these labels.
        errors: Number of the base model's errors among them.
        labels: Number of labels that were learned from, besides those that the grader before had learned from.
        notes: What could not be done, a sentence each.
    """

    grader: Grader
    changes: tuple[Change, ...]
    judged: int
    errors: int
    labels: int
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Json]:
        """Returns all but the grader in JSON's types, with what was compared and chosen."""
        names = ("changes", "judged", "errors", "labels", "notes")
        return {name: plain(getattr(self, name)) for name in names} | {"choice": plain(self.grader.choice)}


def learn(grader: Grader, reviewed: Any, **settings: Any) -> Grader:
    """Returns a grader whose second opinion has learned from confirmed labels; see `learned` for the arguments.

    Example:
        >>> better = learn(grader, reviewed, calibration=fresh)  # doctest: +SKIP
    """
    return learned(grader, reviewed, **settings).grader


def learned(
    grader: Grader,
    reviewed: Any,
    *,
    chance: ArrayLike | None = None,
    drawn: bool = True,
    data: Data | None = None,
    calibration: Data | None = None,
    target: Target | None = None,
    max_extra_time: float = BUDGET,
    max_extra_parameters: float = 0.02,
    force: bool = False,
    seed: int = 0,
    precision: Precision = "float32",
    cache_budget: int = CACHE_BUDGET,
    storage: Callable[[str], Storage | None] | None = None,
    device: str = "auto",
) -> Learned:
    """Returns a grader whose second opinion has learned from confirmed labels, beside the one before.

    An adapter learns from all labels; adapters that learn from those of the other folds say what it is worth, so that
    no label judges what has learned from it. Among the present grader, the softmax, the adapter and regressions, the
    present grader stays unless another is better by more than chance. Threshold and probability of error are set on
    these labels; a guarantee is set on labels apart from them, a calibration set or a share of the labels.

    Args:
        grader: The present grader; it stays as it is.
        reviewed: Inputs with their true labels, as data; 20 at least, and 50 for an adapter to learn.
        chance: float ``(N,)``, with which each input was drawn to be labelled; NaN where unknown. None for equal ones.
            With chances, a label of -1 says that nobody can tell: a guarantee counts the prediction as wrong.
        drawn: Whether every input of production had a chance to be labelled; else nothing is guaranteed.
        data: Labelled data that the base model was trained on, to be mixed in.
        calibration: Labelled inputs drawn at random for the guarantee; all others then learn.
        target: Target of the threshold; absent keeps the present one.
        max_extra_time: Operations that suspicion may add, over those of a plain forward pass.
        max_extra_parameters: Size of the adapter over that of the base model.
        force: Whether to go on where the base model's accuracy says that the labels are not its own.
        seed: Seed of everything random.
        precision: Precision of the matrix products in training.
        cache_budget: Bytes of memory for features; larger ones go into a temporary file.
        storage: Place of the checkpoint of each adapter, by its name.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        ArgumentError: A setting breaks its rule, or no layers fit the budgets.
        DataError: There are too few labels, or all are of one class; an input has two labels; classes or inputs are
            not those of the grader; or the calibration set was chosen by suspicion, or learned from.
    """
    move(grader.adapted, device)
    data = None if data is None else as_data(data, processor=grader.processor)
    labelled, known = _checked(grader, reviewed, chance)
    labelled, earlier = _unseen(grader, labelled)
    drawn = drawn and known and not (chance is None and _of_queue(labelled.data))
    notes, lacking = list[str](), None
    wanted = target or grader.target
    risk = wanted.max_risk if isinstance(wanted, MaxRisk) else None
    fresh = None if calibration is None else _fresh(grader, calibration, labelled.data, data)
    apart = None if fresh is None else _Part(fresh.calibration, None)
    if apart is None and wanted is not None and wanted.guarantees:
        labelled, apart = _divided(grader, labelled, wanted, seed) if drawn else (labelled, None)
        if apart is None:
            lacking, wanted = wanted, None
    labelled = labelled.told()
    present = predict_answers(grader.adapted, labelled.data, title="present grader")
    if drawn and not force:  # of suspects alone, another order of the classes may well be better
        _check_order(present, labelled, grader.origin.model.classes)
    wrong = (present.predicted != labelled.data.labels).numpy()
    made, errors, whole = None, int(wrong.sum()), labelled.and_those(earlier)
    if len(wrong) < FEWEST_TO_TRAIN or min(errors, len(wrong) - errors) < FEWEST_ERRORS:
        notes.append(
            f"labels: expected {FEWEST_TO_TRAIN} for an adapter to learn, with {FEWEST_ERRORS} errors of the model and "
            f"as many right predictions among them, got {len(wrong)} with {errors} errors, so none has learned. Label "
            f"some more."
        )
    else:
        made = learn_from_labels(
            grader.adapted.base,
            whole.data,
            np.pad(_folds(wrong, seed), (0, len(whole.data) - len(wrong)), constant_values=-1),
            weights=label_weights(whole.chance, len(whole.data)),
            training=data,
            max_extra_time=max_extra_time,
            max_extra_parameters=max_extra_parameters,
            seed=seed,
            precision=precision,
            cache_budget=cache_budget,
            storage=storage,
            device=device,
        )
    found = _chosen(grader, present, labelled, made, max_extra_time, risk, seed)
    note(found.choice.reason)
    if isinstance(wanted, Disagreement) and found.adapted is not grader.adapted:
        wanted = None  # the paper's flag is that of its own suspicion
    judged, hashes = apart or labelled, grader.origin.learned_from
    if found.choice.name != PRESENT:
        hashes = np.union1d(hashes, sample_hashes(whole.data))
    used = {"labels": replace(describe_data(labelled.data), hashes=tuple(f"{each:016x}" for each in hashes.tolist()))}
    used |= {"calibration": describe_data(judged.data)} | ({} if data is None else {"mixed in": describe_data(data)})
    told: dict[str, Json] = {"recipe": "learned from labels", "labels": len(wrong), "errors": errors, "seed": seed}
    told |= {"parent": grader.bundle} if grader.bundle else {}
    how: Any = {
        "target": wanted,
        "score": found.suspicion,
        "origin": replace(grader.origin, data=dict(grader.origin.data) | used, settings=told),
        "choice": found.choice,
        "set_coverage": grader.sets.coverage if grader.sets else SET_COVERAGE,
    }
    known_answers: Any = {} if apart else {"answers": found.answers, "values": found.values}
    new = fit_grader(found.adapted, judged.data, chance=judged.chance, cannot_tell=True, **known_answers, **how)
    if fresh and fresh.left_out and wanted and wanted.guarantees and new.threshold.coverage:
        # As in a fit: later inputs may repeat as these do, and the lower threshold is right in both cases.
        new = fit_grader(found.adapted, Joined(judged.data, fresh.left_out), at_most=new.threshold, **how)
    if not drawn and apart is None:  # suspects alone tell nothing about all inputs
        measured = {key: value for key, value in new.measured.items() if not key.startswith("suspicion_")}
        new = replace(new, measured=measured)
        stays = found.choice.name == PRESENT
        if stays:
            new = replace(grader, origin=replace(grader.origin, settings=told), choice=found.choice, bundle="")
        elif labelled.chance is None:
            new = replace(new, probability=None, outcome=None, sets=None)
        if stays or (labelled.chance is None and not lacking):
            notes.append(
                f"labels: expected each graded input to have a chance to be labelled, got others, so "
                f"{'the threshold stays as it is' if stays else 'the probability of error is not known'}. Label a "
                f"random part of the trusted as well (petm grade --audit)."
            )
            lacking = None if stays else lacking
    new = replace(new, processor=grader.processor or new.processor)
    if lacking:
        notes.append(_missing(lacking, len(labelled.data), drawn=drawn))
    for text in notes:
        warnings.warn(text, PetmWarning, stacklevel=2)
    before = predict_answers(grader.adapted, judged.data) if apart else present
    after = predict_answers(new.adapted, judged.data) if apart else found.answers
    truth, mistaken = judged.data.labels, (before.predicted != judged.data.labels).numpy()
    compared = changes(
        _judged(grader, before, truth),
        _judged(new, after, truth, None if apart else found.values),
        mistaken,
        max_risk=risk,
        chance=judged.chance,
        seed=seed,
    )
    return Learned(new, compared, len(truth), int(mistaken.sum()), len(wrong), tuple(notes))


class _Part(NamedTuple):
    """Labelled samples, and the chance with which each was drawn to be labelled; None where all are equal."""

    data: Data
    chance: NDArray[np.float64] | None

    def rows(self, rows: NDArray[np.bool_]) -> "_Part":
        """Returns some of them."""
        return _Part(self.data.subset(torch.from_numpy(rows)), None if self.chance is None else self.chance[rows])

    def told(self) -> "_Part":
        """Returns those whose class is known."""
        return self.rows((self.data.labels != UNLABELLED).numpy())

    def and_those(self, other: "_Part") -> "_Part":
        """Returns these and others of the same labels."""
        if not len(other.data):
            return self
        chance = None if self.chance is None or other.chance is None else np.append(self.chance, other.chance)
        return _Part(Joined(self.data, other.data), chance)


@dataclass(frozen=True, eq=False)
class _Found:
    """What was chosen, with the answers and the suspicion ``(N,)`` of models that have not seen the labels."""

    adapted: AdaptedModel
    suspicion: Suspicion
    choice: Choice
    answers: Answers
    values: NDArray[np.float64]


def _checked(grader: Grader, reviewed: Any, chance: ArrayLike | None) -> tuple[_Part, bool]:
    """The labelled inputs, each once, and whether the chance of each is known."""
    data = as_data(reviewed, source="labels", processor=grader.processor)
    chances = np.ones(len(data)) if chance is None else np.asarray(chance, np.float64)
    if chances.shape != (len(data),):
        raise ArgumentError(f"chance: expected one for each of {len(data)} inputs, got shape {chances.shape}.")
    kept = (data.labels != UNLABELLED).numpy() | (chance is not None)
    data, chances = data.subset(torch.from_numpy(kept)).in_memory(), chances[kept]
    check_known(data.labels.numpy())
    classes = grader.origin.model.classes
    if classes and data.classes and data.classes != classes:
        raise DataError(
            f"labels: expected the classes of the grader, {enumerated(classes)}, got {enumerated(data.classes)}. Name "
            f"the bundle that these labels are for."
        )
    with evaluating(grader.adapted):
        outputs = grader.adapted(data.inputs([0]).to(device_of(grader.adapted)), alpha=0.0).shape[1]
    check_labels(data.labels[data.labels != UNLABELLED], outputs, f"labels ({data.source})")
    check_inputs(data, grader.origin.inputs)
    hashes = sample_hashes(data)
    _, first, each = np.unique(hashes, return_index=True, return_inverse=True)
    other = np.flatnonzero(data.labels.numpy() != data.labels.numpy()[first][each])
    if len(other) and not isinstance(data.inputs([0]), Fields):  # different texts may have the same tokens
        one = int(other[0])
        raise DataError(
            f"labels: expected one label for each input, got {int(data.labels[first[each[one]]])} and "
            f"{int(data.labels[one])} for {data.name(one)}. Correct one of them."
        )
    kept = one_of_each(hashes, data, "labels")
    known = bool(np.isfinite(chances).all())
    if known:
        inverse_chances(chances, len(chances))
    equal = not known or bool((chances == chances[0]).all())
    return _Part(data, None if equal else chances).rows(kept), known


def _unseen(grader: Grader, labelled: _Part) -> tuple[_Part, _Part]:
    """The labels that judge the present grader, and those that it has learned from already."""
    seen = np.isin(sample_hashes(labelled.data), grader.origin.learned_from)
    part = labelled.rows(~seen)
    try:
        check_known(part.data.labels.numpy())
    except DataError as error:
        others = f" The grader has learned from the {int(seen.sum()):,} others." if seen.any() else ""
        raise DataError(f"{error}{others}") from error
    return part, labelled.rows(seen).told()


def _of_queue(data: Data) -> bool:
    """Whether the samples come from a review queue, as those of the folder that the page keeps."""
    try:
        refuse_review_queue(data)
    except DataError:
        return True
    return False


def _fresh(grader: Grader, calibration: Data, labelled: Data, data: Data | None) -> Separated:
    """The calibration samples without those that were learned from."""
    fresh = as_data(calibration, source="calibration", processor=grader.processor)
    check_inputs(fresh, grader.origin.inputs)
    refuse_review_queue(fresh)
    seen = np.isin(sample_hashes(fresh), grader.origin.learned_from)
    if 2 * seen.sum() > len(seen):
        raise DataError(
            f"calibration: expected samples that the grader has not learned from, got {fresh.source}, in which "
            f"{int(seen.sum()):,} of {len(seen):,} are labels of an earlier petm learn. Name fresh samples."
        )
    if seen.any():
        fresh = fresh.subset(torch.from_numpy(~seen))
    return separate(labelled if data is None else Joined(labelled, data), fresh)


def _check_order(present: Answers, labelled: _Part, names: tuple[str, ...]) -> None:
    """Checks that the labels are numbered as the model's outputs, on those that are random ones."""
    some = torch.from_numpy(thinned(inverse_chances(labelled.chance, len(labelled.data))))
    if int(some.sum()) >= FEWEST:
        told = (present.predicted[some], labelled.data.labels[some], present.base.shape[1])
        Predictions(*told, names, labelled.data.source).check("labels")


def _divided(grader: Grader, labelled: _Part, target: Target, seed: int) -> tuple[_Part, _Part | None]:
    """The labels to learn from, and those for the guarantee where it is possible at all with so many."""
    order = np.random.default_rng(seed).permutation(len(labelled.data))
    apart = np.isin(np.arange(len(order)), order[: int(GUARANTEE_SHARE * len(order))])
    held = labelled.rows(apart)
    base = predict_logits(grader.adapted, held.data, title="labels apart", alpha=0.0)
    predicted = base.argmax(1)
    wrong = (predicted != held.data.labels).numpy()
    try:  # suspicion that knows every error
        best = target.threshold(
            wrong.astype(float), wrong, predicted.numpy(), classes=base.shape[1], chance=held.chance
        )
    except ArgumentError:
        return labelled, None
    return (labelled.rows(~apart), held) if best.holds else (labelled, None)


def _missing(target: Target, labels: int, *, drawn: bool) -> str:
    why = (
        f"{GUARANTEE_SHARE:.0%} of {labels:,} labels are too few. Label some more, or name a calibration set"
        if drawn
        else "some inputs had no chance to be labelled. Label a random part of the trusted as well (petm grade --audit)"
    )
    return f"target: {target} cannot be guaranteed, so nothing is guaranteed: {why}."


def _folds(wrong: NDArray[np.bool_], seed: int) -> NDArray[np.int64]:
    """The fold of each label, with as many errors in each."""
    folds = np.empty(len(wrong), np.int64)
    count = FOLDS if len(wrong) >= FEWEST_FOR_FIVE_FOLDS else 3
    split = StratifiedKFold(count, shuffle=True, random_state=seed % 2**32).split(wrong, wrong)
    for fold, (_, held) in enumerate(split):
        folds[held] = fold
    return folds


def _chosen(
    grader: Grader,
    present: Answers,
    labelled: _Part,
    made: LearnedAdapter | None,
    most: float,
    risk: float | None,
    seed: int,
) -> _Found:
    """The present grader's suspicion, or the cheapest that is as good as the best of those that are better."""
    x = labelled.data.inputs(range(min(4, len(labelled.data)))).to(device_of(grader.adapted))
    members = ONE if made else ()
    opinions = made.opinions[:, None] if made else present.base[:, None][:, :0]
    # Evidence on features as the present grader has fitted it: production's own labels would fit the shift.
    held = {each.evidence.name: each for each in grader.suspicion.columns if each.evidence.needs == "features"}
    answers = Answers(present.base, opinions, members, layer_input=present.layer_input)
    ratio = split_point_of(made.adapted, x).counted_ratio - 1 if made else 0.0
    costs = feature_costs(grader.adapted.base, present, x)
    budget = Budget(most, ratio, {name: costs[name] for name in held if name in costs})
    offered = {
        each.name: each for each in (Candidate(SOFTMAX.name, (SOFTMAX,)), *candidates(members, (), budget, alone=True))
    }
    choosing = Choosing(Labelled(answers, labelled.data.labels), max_risk=risk, seed=seed, known=dict(held))
    values = {PRESENT: grader.suspicion.of(present).numpy()}
    values |= {name: found for name, each in offered.items() if (found := choosing.out_of_fold(each)) is not None}
    # A cascade counts as if it asked for all.
    own = split_point_of(grader.adapted, x).counted_ratio - 1 if grader.adapted.members else 0.0
    costs = {name: offered[name].cost if name in offered else own for name in values}
    first = {
        name: () for name in values if name in offered and offered[name].members and len(offered[name].evidence) == 1
    }
    choice = choose(values, costs, choosing.wrong, alone=first, max_risk=risk, chance=labelled.chance, seed=seed)
    if choice.name == PRESENT:
        return _Found(grader.adapted, grader.suspicion, choice, present, values[PRESENT])
    taken = offered[choice.name]
    seen, cascade = choosing.seen(taken)
    chosen = Chosen(choosing.whole(taken), taken.members, cascade, choice)
    found = values[choice.name]
    if chosen.suspicion.weighting is not None:  # which has no intercept
        columns = [each.score(seen) for each in chosen.suspicion.columns]
        found = found - regression(columns, choosing.wrong, chosen.suspicion.weighting.log_odds)[1]
    adapted = made.adapted if made else views_alone(grader.adapted.base, ())
    adapted.take_features(grader.adapted.feature_layer)
    adapted = narrowed(adapted, chosen)
    return _Found(adapted, chosen.suspicion, choice, seen, found)


def _judged(grader: Grader, answers: Answers, labels: Tensor, values: NDArray[np.float64] | None = None) -> Judged:
    suspicion = grader.suspicion.of(answers).numpy() if values is None else values
    trusted = grader.threshold.trusts(suspicion, answers.predicted.numpy())
    return Judged(suspicion, trusted, (answers.second.argmax(1) == labels).numpy())
