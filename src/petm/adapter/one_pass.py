"""All opinions on a batch, in one pass where that is possible."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from petm._internal.distributed import gathered
from petm._internal.progress import track
from petm.adapter.cascade import Allowance
from petm.adapter.model import AdaptedModel, Cascade, Member, pool
from petm.adapter.passes import Pass
from petm.adapter.split_point import APART, OnePass, SplitPoint, joint_members, split_point_of
from petm.data.base import Data
from petm.data.fields import Inputs, as_batch, filled_up, in_parts
from petm.errors import ArgumentError, DataError, ModelError
from petm.models.answers import joined, of_one_length
from petm.models.loading import call_model
from petm.models.penultimate import LastLinear
from petm.models.prediction import (
    BATCH_SIZE,
    Collected,
    batches_by_length,
    device_of,
    evaluating,
    own_share,
    predict_logits,
)
from petm.models.scores import maximum_softmax

MOST_FEATURES = 4096
"""Most numbers in a sample's features: with more, a covariance takes gigabytes, and its inverse hours."""
_LARGE = 4_000_000_000
"""Operations of the base model on a batch above which a CPU takes it in parts: far more time than a call costs."""
_NONE = torch.empty(0)


class DualLogits(NamedTuple):
    """Both opinions, logits ``(N, K)`` each."""

    base: Tensor
    """Of the base model."""
    second: Tensor
    """Of the second opinion, at alpha 1."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Everything that the networks answer to ``N`` samples.

    Attributes:
        base: Logits of the base model, ``(N, K)``.
        opinions: Logits of the ensemble members, ``(N, M, K)``; where a cascade does not ask, those of the base model.
        members: The ``M`` members.
        layer_input: The features, ``(N, D)``; absent where none were asked for, or the model has none.
        left_out: Where a cascade asks for opinions that its cap left out, bool ``(N,)``; such predictions are suspect.
    """

    base: Tensor
    opinions: Tensor = _NONE
    members: tuple[Member, ...] = ()
    layer_input: Tensor | None = None
    left_out: Tensor = _NONE

    def __post_init__(self) -> None:
        if not self.members:
            object.__setattr__(self, "opinions", self.base[:, None][:, :0])
        if self.left_out is _NONE:
            object.__setattr__(self, "left_out", self.base.new_zeros(self.base.shape[0], dtype=torch.bool))

    def __len__(self) -> int:
        return len(self.base)

    @cached_property
    def predicted(self) -> Tensor:
        """The class ``c`` that the base model predicts, int64 ``(N,)``."""
        return self.base.argmax(1)

    @cached_property
    def second(self) -> Tensor:
        """The second opinion: the mean of the members' probabilities, as logits ``(N, K)``; without one, the base's."""
        if len(self.members) < 2:
            return self.opinions[:, 0] if self.members else self.base
        return torch.where(self._differs[:, None], pool(self.opinions.unbind(1)), self.base)

    @property
    def _differs(self) -> Tensor:
        """Where an opinion is not the base model's to the bit, bool ``(N,)``."""
        return (self.opinions != self.base[:, None]).flatten(1).any(1)

    def asked(self, cascade: Cascade | None) -> Tensor:
        """Returns where a second opinion was computed under a cascade, bool ``(N,)``; absent asks for all samples."""
        return self._differs if cascade else torch.full((len(self),), bool(self.members))

    @property
    def features(self) -> Tensor:
        """The input of the base model's last linear layer, ``(N, D)``; raises `ModelError` without one."""
        if self.layer_input is None:
            raise ModelError("model: expected features, the input of a last linear layer, got none. Leave them out.")
        return self.layer_input

    def only(self, members: tuple[Member, ...]) -> "Answers":
        """Returns the answers with some of the members."""
        places = [self.members.index(member) for member in members]
        return replace(self, opinions=self.opinions[:, places], members=members)

    def rows(self, rows: Tensor) -> "Answers":
        """Returns the answers for some samples, by index or by a mask."""
        held = None if self.layer_input is None else self.layer_input[rows]
        return Answers(self.base[rows], self.opinions[rows], self.members, held, self.left_out[rows])

    def on_cpu(self) -> "Answers":
        """Returns the answers as float32 on the CPU."""
        held = None if self.layer_input is None else self.layer_input.float().cpu()
        return Answers(self.base.float().cpu(), self.opinions.float().cpu(), self.members, held, self.left_out.cpu())

    def raised(self, suspicion: Tensor, threshold: Tensor) -> Tensor:
        """Returns suspicion, float64 ``(N,)``, where opinions were left out at least the threshold, a float64."""
        return torch.where(self.left_out, torch.maximum(suspicion, threshold), suspicion)

    def under(self, cascade: Cascade | None) -> "Answers":
        """Returns the answers as they are under a cascade."""
        if cascade is None:
            return self
        asked = cascade.asks(maximum_softmax(self.base))[:, None, None]
        return replace(self, opinions=torch.where(asked, self.opinions, self.base[:, None]))


def answers_of(adapted: AdaptedModel, x: Inputs | Mapping[str, Tensor], allowance: Allowance | None = None) -> Answers:
    """Returns the answers to a batch in one pass, without gradients; with features if the model has a feature layer.

    What lies before the first adapted layer runs once on ``N`` samples; from the split point on, all streams run as
    one batch of ``(1 + M) N`` through the base weights (`split_point`). The first call for a model finds the split
    point, which takes a few passes over a handful of samples. Members at a view of the input run in passes of their
    own; with a cascade all do, on the samples for which it asks.

    Args:
        adapted: The base model with its adapter.
        x: float32 ``(N, C, H, W)``, or whatever the model takes, tensors by name too, on the model's device.
        allowance: The second opinions that the cascade may still compute; absent computes all that it asks for.

    Raises:
        ModelError: The model cannot take the batch, or does not return ``(N, K)``.
    """
    x = as_batch(x)
    if adapted.cascade is None:
        return _by_length(adapted, x, partial(_whole, adapted))
    found = unasked(adapted, x)
    if len(granted := _grant(found, allowance)):
        found.opinions[granted] = _of_some(adapted, x[granted]).to(found.base.dtype)
    return found


def unasked(adapted: AdaptedModel, x: Inputs) -> Answers:
    """Returns the answers to a batch before any second opinion is computed: all that the cascade asks for is left out.

    Args:
        adapted: The base model with its adapter and a cascade.
        x: The batch, as `answers_of` takes it.
    """
    return _before(adapted, base_of(adapted, x))


def base_of(adapted: AdaptedModel, x: Inputs) -> Answers:
    """Returns the base model's answers to a batch, as `answers_of` does, without members."""
    return _by_length(adapted, x, partial(_plain, adapted))


def opinions_of(adapted: AdaptedModel, x: Inputs, known: Mapping[Member, Tensor] = MappingProxyType({})) -> Tensor:
    """Returns the logits of the members for a batch, ``(N, M, K)``, without gradients, each by a pass of its own.

    Args:
        adapted: The base model with its adapters.
        x: The batch, as `answers_of` takes it.
        known: Logits ``(N, K)`` of members that need no pass.
    """

    def opinion(member: Member) -> Tensor:
        return adapted.run(Pass(1.0, member.adapter), member.view_of(x))

    with torch.no_grad():
        return torch.stack([known[each] if each in known else opinion(each) for each in adapted.members], 1)


def _by_length(adapted: AdaptedModel, x: Inputs, answer: Callable[[Inputs], Answers]) -> Answers:
    """The answers to a batch, texts one length at a time where the model needs that."""
    with torch.no_grad():
        if not (parts := of_one_length(adapted.base, x)):
            return answer(x)
        every = [answer(part.inputs) for part in parts]
        features = joined(parts, [part.features for part in every]) if adapted.feature_layer else None
        base, opinions = (joined(parts, [getattr(part, name) for part in every]) for name in ("base", "opinions"))
        return Answers(base, opinions, every[0].members, features)


def _plain(adapted: AdaptedModel, x: Inputs) -> Answers:
    plain = Pass(0.0, "")
    plain.watched = adapted.feature_layer
    return Answers(adapted.run(plain, x), layer_input=plain.seen)


def _whole(adapted: AdaptedModel, x: Inputs) -> Answers:
    """All answers to all samples, in one pass where the model allows it."""
    n = x.shape[0]
    if not adapted.members:
        return _plain(adapted, x)
    if n == 0 or (split_point := split_point_of(adapted, x)).kind == APART:
        return replace(_plain(adapted, x), opinions=opinions_of(adapted, x), members=adapted.members)
    every = [_at_once(adapted, part, split_point) for part in _parts(adapted, x, split_point)]
    if len(every) == 1:
        return every[0]
    held = [part.layer_input for part in every if part.layer_input is not None]
    base, opinions = torch.cat([part.base for part in every]), torch.cat([part.opinions for part in every])
    return Answers(base, opinions, adapted.members, torch.cat(held) if held else None)


def _parts(adapted: AdaptedModel, x: Inputs, split_point: SplitPoint) -> list[Inputs]:
    """The samples of each pass over a batch.

    Behind the split point a batch is several times as large. On a CPU, parts whose opinions together have as many rows
    as the batch stay as well in the processor's cache, and in no more memory, than a plain pass.
    """
    n, streams = x.shape[0], 1 + len(joint_members(adapted))
    if torch.compiler.is_exporting() or device_of(adapted).type != "cpu" or n * split_point.operations < _LARGE:
        return [x]
    return in_parts(x, -(-n // streams))


def _at_once(adapted: AdaptedModel, x: Inputs, split_point: SplitPoint) -> Answers:
    """All answers in one pass."""
    n, joint = x.shape[0], joint_members(adapted)
    running = OnePass(n, split_point, joint)
    running.watched = adapted.feature_layer
    logits = adapted.run(running, x, rows=(1 + len(joint)) * n)
    # Sliced by numbers that are known beforehand: a graph that is traced keeps a batch of any size.
    streams = [logits[place * n : (place + 1) * n] for place in range(1 + len(joint))]
    features = None if running.seen is None else running.seen[:n]
    opinions = opinions_of(adapted, x, dict(zip(joint, streams[1:], strict=True)))
    return Answers(streams[0], opinions, adapted.members, features)


def _before(adapted: AdaptedModel, found: Answers) -> Answers:
    """The base model's answers with room for the opinions of the members, all of them left out."""
    assert adapted.cascade is not None
    opinions = found.base[:, None].repeat(1, len(adapted.members), 1)
    asked = adapted.cascade.asks(maximum_softmax(found.base))
    return replace(found, opinions=opinions, members=adapted.members, left_out=asked)


def _grant(found: Answers, allowance: Allowance | None) -> Tensor:
    """The places of the samples whose opinions are computed, int64, which are then left out no more."""
    asked = found.left_out.cpu()
    granted = asked if allowance is None else torch.from_numpy(allowance.grants(asked.numpy()))
    places = granted.nonzero().flatten()
    found.left_out[places] = False
    return places


def _of_some(adapted: AdaptedModel, x: Inputs) -> Tensor:
    """What `opinions_of` returns, for as many samples as a cascade happens to ask for."""
    return opinions_of(adapted, filled_up(x))[: len(x)]


def dual_logits(adapted: AdaptedModel, x: Inputs | Mapping[str, Tensor]) -> DualLogits:
    """Returns both opinions of a batch in one pass, without gradients; see `answers_of`.

    Args:
        adapted: The base model with its adapter.
        x: float32 ``(N, C, H, W)``, or whatever the model takes, tensors by name too, on the model's device.

    Raises:
        ModelError: The model cannot take the batch, or does not return ``(N, K)``.
    """
    answers = answers_of(adapted, x)
    return DualLogits(answers.base, answers.second)


def find_feature_layer(adapted: AdaptedModel, x: Inputs) -> str:
    """Returns the name of the linear layer that the base model calls last with one row a sample.

    It is empty without one, or where the rows have more than `MOST_FEATURES` numbers.
    """
    with LastLinear(adapted.base) as last, evaluating(adapted.base):
        call_model(adapted.base, x)
    return "" if last.fault(len(x)) or last.input.shape[1] > MOST_FEATURES else last.name


def set_cascade(adapted: AdaptedModel, data: Data, share: float) -> None:
    """Sets ``adapted.cascade`` so that the second opinion is asked for on this share of the samples, the least certain.

    In use it is computed for twice that share at most.

    Args:
        adapted: The base model with its adapters.
        data: Samples that the base model has not seen, such as the calibration samples; labels are not used.
        share: Above 0, at most 1, which asks always.

    Raises:
        ArgumentError: ``share`` breaks its rule.
    """
    if not 0 < share <= 1:
        raise ArgumentError(f"share: expected a number above 0 and at most 1, got {share}.")
    suspicion = maximum_softmax(predict_logits(adapted, data, title="cascade", alpha=0.0))
    adapted.cascade = Cascade(float(suspicion.quantile(1 - share))).capped(suspicion) if share < 1 else None


def predict_answers(
    adapted: AdaptedModel,
    data: Data,
    *,
    batch_size: int = BATCH_SIZE,
    title: str = "opinions",
    allowance: Allowance | None = None,
) -> Answers:
    """Returns the answers to a data set, float32, on the CPU.

    Args:
        adapted: The base model with its adapter.
        data: ``N`` samples.
        batch_size: Samples in one pass.
        title: Title of the progress bar.
        allowance: The second opinions that the cascade may still compute, in the order of the samples; absent computes
            all that it asks for.

    Raises:
        DataError: There is no sample, or one holds NaN or infinity.
        ModelError: The model cannot take the inputs, or does not return ``(N, K)``.
    """
    if not len(data):
        raise DataError(f"{data.source}: expected at least one sample, got none.")
    if allowance is None or adapted.cascade is None:
        return _collected(adapted, data, partial(answers_of, adapted), adapted.members, batch_size, title)
    found = _before(adapted, _collected(adapted, data, partial(base_of, adapted), (), batch_size, title))
    if len(granted := _grant(found, allowance)):
        some = data.subset(granted)
        looks = _collected(adapted, some, partial(_members_alone, adapted), adapted.members, batch_size, title)
        found.opinions[granted] = looks.opinions
    return found


def _members_alone(adapted: AdaptedModel, x: Inputs) -> Answers:
    opinions = _of_some(adapted, x)
    return Answers(opinions[:, 0], opinions, adapted.members)


def _collected(
    adapted: AdaptedModel,
    data: Data,
    answer: Callable[[Inputs], Answers],
    members: tuple[Member, ...],
    batch_size: int,
    title: str,
) -> Answers:
    own = own_share(data)
    logits, features = Collected(len(own)), Collected(len(own))
    with track(title, len(own)) as progress:
        for rows, (inputs, _) in batches_by_length(own, device_of(adapted), batch_size):
            found = answer(inputs)
            logits.add(rows, torch.cat((found.base[:, None], found.opinions), 1).float())
            if found.layer_input is not None:
                features.add(rows, found.layer_input.float())
            progress.advance(len(inputs))
    every = gathered(logits.whole, len(data))
    held = gathered(features.whole, len(data)) if len(features.whole) else None
    return Answers(every[:, 0], every[:, 1:], members, held)
