"""What is compared for a model: the evidence that its outputs, its features and a budget of time allow."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from petm._internal.operations import count_operations
from petm.adapter.model import AdaptedModel, Member, views_alone
from petm.adapter.one_pass import Answers, find_feature_layer, predict_answers
from petm.adapter.split_point import split_point_of
from petm.data.base import Data
from petm.data.fields import Inputs
from petm.data.views import MIRROR
from petm.errors import PetmWarning
from petm.evidence.choice import Candidate, Choosing, Chosen, Labelled, choose_suspicion
from petm.evidence.features import (
    Mahalanobis,
    NeighbourDistance,
    NeighbourLabels,
    RelativeMahalanobis,
    stratified_sample,
)
from petm.evidence.formulas import ENTROPY, LARGEST_LOGIT, MARGIN, MEAN_OPINION, SECOND_OPINION, SOFTMAX
from petm.evidence.protocol import Evidence
from petm.evidence.suspicion import EVIDENCE, Suspicion
from petm.models.loading import call_model
from petm.models.prediction import device_of, evaluating
from petm.models.scores import maximum_softmax, mean_of_both

BUDGET = 0.25
"""Default budget: operations that suspicion may add to those of a plain forward pass."""
_TRAINING = 10_000
"""Most training samples whose features are computed."""
_LEAST_SHARE = 0.1
"""Least share of the predictions for which members are worth a candidate."""
_SOME, _ALIKE = 200, 0.8
"""Samples on which a view is tried, and least share of them that keep their class, if it is to be compared."""

VIEWS: tuple[tuple[Member, ...], ...] = (
    (Member("", MIRROR),),
    (Member("", MIRROR), Member("", "shift 2 0"), Member("", "mirror, shift 0 2"), Member("", "shift 0 -2")),
    tuple(Member("", shift) for shift in ("shift 1 0", "shift -1 0", "shift 0 1", "shift 0 -1")),
)
"""Sets of views of an image: for pictures whose mirror image shows the same, and for what a mirror changes."""

_LOGITS: tuple[Evidence, ...] = (MARGIN, ENTROPY, LARGEST_LOGIT)
_FEATURES: tuple[Evidence, ...] = (
    Mahalanobis(),
    RelativeMahalanobis(),
    *(EVIDENCE[each.name] for each in (NeighbourLabels, NeighbourDistance)),
)
_REGRESSED: tuple[Evidence, ...] = (SOFTMAX, MARGIN, ENTROPY)


@dataclass(frozen=True)
class Budget:
    """What suspicion may cost, and what its parts do; all in operations over those of a plain forward pass.

    Attributes:
        most: Limit.
        adapters: All adapters in one pass.
        features: Each kind of evidence on features, if the model has any, and of the user's own, by name.
    """

    most: float
    adapters: float = 0.0
    features: dict[str, float] | None = None

    def of(self, columns: Sequence[Evidence], members: Sequence[Member] = (), share: float = 1.0) -> float:
        """Returns the cost of evidence with its members, which are computed for a share of the predictions."""
        found = sum((self.features or {}).get(each.name, 0.0) for each in columns)
        own = [member for member in members if member.adapter]
        if share < 1:  # the members run in passes of their own
            return found + share * len(members)
        return found + (self.adapters if own else 0.0) + len(members) - len(own)


def candidates(
    adapters: tuple[Member, ...],
    views: Sequence[tuple[Member, ...]],
    budget: Budget,
    *,
    targeted: bool = False,
    alone: bool = False,
) -> list[Candidate]:
    """Returns the candidates within a budget.

    Args:
        adapters: Members with a trained adapter.
        views: Sets of members that are the base model at views of the input.
        budget: Limit and costs.
        targeted: Whether a risk is the target, so that members may be computed around it alone.
        alone: Whether to offer the adapters without the model's own opinion. Where they learned what the model did not,
            such as errors under a shift, they are better alone; on the model's own data the mean with it is.
    """
    features = tuple(each for each in _FEATURES if each.name in (budget.features or {}))
    found = [Candidate(each.name, (each,), cost=budget.of((each,))) for each in (*_LOGITS, *features)]
    together = [(adapters, "the adapter" if len(adapters) == 1 else "the adapters")] if adapters else []
    for which in views:
        words = f"{len(which)} views" if len(which) > 1 else "the flipped image"
        words = words if MIRROR in which[0].view else f"{len(which)} shifts"
        together += [(which, words)] + [((*adapters, *which), f"{name} and {words}") for _, name in together[:1]]
    for members, words in together:
        whole = budget.of((), members)
        share = 1.0 if whole <= budget.most else budget.most / len(members)
        if share >= _LEAST_SHARE:
            found += _of_members(members, share, words, budget, features[:2])
            if alone and all(member.adapter for member in members):
                found.append(_candidate(f"{words} alone", (SECOND_OPINION,), members, share, budget))
        if _LEAST_SHARE <= share < 1 and targeted:
            where = f"mean with {words} on {share:.0%} around the target's risk"
            cost = budget.of((MEAN_OPINION,), members, share)
            found.append(Candidate(where, (MEAN_OPINION,), members, share, True, cost))
    found.append(Candidate("regression", _REGRESSED))
    if features:
        found.append(_candidate("regression with features", (*_REGRESSED, *features[:2]), (), 1.0, budget))
    return [each for each in found if each.cost <= budget.most * (1 + 1e-9)]


def _of_members(
    members: tuple[Member, ...], share: float, words: str, budget: Budget, features: tuple[Evidence, ...]
) -> Iterator[Candidate]:
    where = "" if share == 1 else f" on the least certain {share:.0%}"
    yield _candidate(f"mean with {words}{where}", (MEAN_OPINION,), members, share, budget)
    columns = (*_REGRESSED, MEAN_OPINION, SECOND_OPINION)
    yield _candidate(f"regression with {words}{where}", columns, members, share, budget)
    if features and share == 1:
        yield _candidate(f"regression with {words} and features", (*columns, *features), members, share, budget)


def _candidate(
    name: str, columns: tuple[Evidence, ...], members: tuple[Member, ...], share: float, budget: Budget
) -> Candidate:
    return Candidate(name, columns, members, share, cost=budget.of(columns, members, share))


def choose_for(
    adapted: AdaptedModel,
    training: Data,
    held_out: Data,
    *,
    budget: float = BUDGET,
    max_risk: float | None = None,
    only: Sequence[str] = (),
    own: Sequence[Evidence] = (),
    tried: Sequence[Tensor] = (),
    seed: int = 0,
) -> tuple[AdaptedModel, Chosen]:
    """Returns the model with the members of the chosen suspicion, and the choice.

    Args:
        adapted: The base model with its trained adapters, if any.
        training: Labelled samples that the base model was trained on, for evidence on features.
        held_out: Labelled samples that neither the base model nor an adapter has seen. A guarantee must not be computed
            on them.
        budget: Operations that suspicion may add, over those of a plain forward pass.
        max_risk: Risk at which the coverage is compared; absent compares AURC.
        only: Names of built-in evidence to compare with the softmax; absent compares all.
        own: Evidence of the user's own to compare as well.
        tried: Logits of second opinions, float32 ``(N, K)``, that the held-out samples have already left out.
        seed: Seed of everything random.
    """
    x = held_out.inputs(torch.arange(min(4, len(held_out)))).to(device_of(adapted))
    adapted.take_features(find_feature_layer(adapted, x))
    answers = predict_answers(adapted, held_out, title="adapters")
    images = isinstance(x, Tensor) and x.ndim == 4
    views = _that_keep_the_class(adapted.base, held_out, answers) if images and budget >= _LEAST_SHARE else ()
    known = _training_answers(adapted, training, seed) if adapted.feature_layer else None
    adapters = tuple(member for member in adapted.members if member.adapter)
    ratio = split_point_of(adapted, x).counted_ratio - 1 if adapters else 0.0
    costs = Budget(budget, ratio, feature_costs(adapted.base, answers, x, own))
    compared = candidates(adapters, views, costs, targeted=max_risk is not None, alone=SECOND_OPINION.name in only)
    if only:
        compared = [each for each in compared if all(column.name in only for column in each.evidence)]
    for each in own:
        compared.append(_candidate(each.name, (each,), adapters if each.needs == "opinions" else (), 1.0, costs))
    needed = dict.fromkeys(member for each in compared for member in each.members if not member.adapter)
    answers = _with_views(adapted.base, held_out, answers, tuple(needed))
    left = tuple(mean_of_both(answers.base, each) for each in tried)
    alone = {each.name: left if each.members == adapters else () for each in compared if _is_first(each, adapters)}
    choosing = Choosing(Labelled(answers, held_out.labels), known, max_risk, alone, seed)
    chosen = choose_suspicion(choosing, compared)
    _say_absent(only, compared, chosen)
    return narrowed(adapted, chosen), chosen


def _say_absent(only: Sequence[str], compared: Sequence[Candidate], chosen: Chosen) -> None:
    """Warns of evidence that was named and is in nothing that was compared."""
    rows = {row.name for row in chosen.choice.compared}
    held = {column.name for each in compared if each.name in rows for column in each.evidence}
    if absent := [name for name in only if name not in held and name != SOFTMAX.name]:
        warnings.warn(
            f"recipe: expected evidence that this model and its data allow within the extra time, got "
            f"{', '.join(absent)}, which was not compared. It may need features, training samples of each class, or "
            f"more max_extra_time.",
            PetmWarning,
            stacklevel=2,
        )


def _is_first(candidate: Candidate, adapters: tuple[Member, ...]) -> bool:
    """Whether one would try a candidate first: the mean with the adapters, or with one set of views; a distance."""
    if candidate.evidence == (MEAN_OPINION,) and not candidate.around:
        return candidate.members == adapters or candidate.members in VIEWS
    return candidate.evidence == (_FEATURES[0],)


def narrowed(adapted: AdaptedModel, chosen: Chosen) -> AdaptedModel:
    """Returns the base model with the members that a chosen suspicion needs."""
    layer = adapted.feature_layer if chosen.suspicion.needs_features else ""
    if chosen.members == adapted.members:
        made = adapted
    elif any(member.adapter for member in chosen.members):
        made = AdaptedModel(adapted.base, adapted.adapter, chosen.members)
    else:
        made = views_alone(adapted.base, chosen.members)
    if made is not adapted:
        adapted.detach()
    made.take_features(layer)
    made.cascade = chosen.cascade
    return made


def _with_views(base: nn.Module, data: Data, answers: Answers, views: tuple[Member, ...]) -> Answers:
    """The answers with those of further members: views run by themselves, as adapters share a prefix."""
    if not views:
        return answers
    alone = views_alone(base, views)
    seen = predict_answers(alone, data, title="views")
    alone.detach()
    opinions = torch.cat((answers.opinions, seen.opinions), 1)
    return replace(answers, opinions=opinions, members=(*answers.members, *views))


def _that_keep_the_class(base: nn.Module, data: Data, answers: Answers) -> list[tuple[Member, ...]]:
    """The sets of views under which the base model gives most of some samples the same class."""
    few = torch.arange(min(_SOME, len(data)))
    every = tuple(dict.fromkeys(member for which in VIEWS for member in which))
    seen = _with_views(base, data.subset(few), replace(answers.rows(few), members=()), every)
    same = (seen.opinions.argmax(2) == seen.predicted[:, None]).double().mean(0).tolist()
    kept = {member for member, share in zip(every, same, strict=True) if share >= _ALIKE}
    return [which for which in VIEWS if kept.issuperset(which)]


def _training_answers(adapted: AdaptedModel, data: Data, seed: int) -> Labelled:
    rows = stratified_sample(data.labels, _TRAINING, seed)
    some = data.subset(rows)
    plain = views_alone(adapted.base, ())
    plain.take_features(adapted.feature_layer)
    answers = predict_answers(plain, some, title="features")
    plain.detach()
    return Labelled(answers, some.labels)


def extra_operations(adapted: AdaptedModel, suspicion: Suspicion, answers: Answers, data: Data) -> float:
    """Returns the operations that grading adds for each of some samples, over those of a plain forward pass.

    Members are counted for the share of the samples for which a cascade asks for them, or else in the one pass.

    Args:
        adapted: The base model with the members that are computed.
        suspicion: What is computed from the answers.
        answers: The answers to the samples.
        data: The samples.
    """
    x = data.inputs(torch.arange(min(4, len(data)))).to(device_of(adapted))
    if adapted.cascade is not None:
        members = len(adapted.members) * float(adapted.cascade.asks(maximum_softmax(answers.base)).double().mean())
    else:
        members = split_point_of(adapted, x).counted_ratio - 1 if adapted.members else 0.0
    features = 0 if answers.layer_input is None else answers.layer_input.shape[1]
    return members + 2 * suspicion.operations(answers.base.shape[1], features) / _operations(adapted.base, x)


def feature_costs(base: nn.Module, answers: Answers, x: Inputs, own: Sequence[Evidence] = ()) -> dict[str, float]:
    """Returns what evidence on features, if there are any, and the user's own add to a plain pass, by name."""
    priced = (*(_FEATURES if answers.layer_input is not None else ()), *own)
    if not priced:
        return {}
    sizes = (answers.base.shape[1], 0 if answers.layer_input is None else answers.layer_input.shape[1])
    each = _operations(base, x)
    return {evidence.name: 2 * evidence.operations(*sizes) / each for evidence in priced}


def _operations(base: nn.Module, x: Inputs) -> float:
    """Operations of a plain forward pass, for one sample."""
    with evaluating(base):
        return max(count_operations(lambda: call_model(base, x), base) / len(x), 1.0)
