"""Suspicion: what a threshold is set on, one column of evidence or a logistic regression over several."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from petm._internal.records import Json, Record
from petm._internal.texts import near
from petm.adapter.one_pass import Answers
from petm.errors import ArgumentError, BundleError
from petm.evidence.features import Mahalanobis, NeighbourDistance, NeighbourLabels, RelativeMahalanobis
from petm.evidence.formulas import (
    DISSENT,
    ENERGY,
    ENTROPY,
    LARGEST_LOGIT,
    MARGIN,
    MEAN_OF_BOTH,
    MEAN_OPINION,
    OPPOSITION,
    SECOND_OPINION,
    SOFTMAX,
    TemperatureScaling,
)
from petm.evidence.protocol import Evidence, FittedEvidence
from petm.selective.weighting import Weighting as Weighting

_PROTOTYPES = 2000
"""Most training samples kept for the search of neighbours; more add little and cost as much as a small network."""

EVIDENCE: dict[str, Evidence] = {
    each.name: each
    for each in (
        SOFTMAX,
        MARGIN,
        ENTROPY,
        LARGEST_LOGIT,
        ENERGY,
        TemperatureScaling(),
        MEAN_OPINION,
        MEAN_OF_BOTH,
        SECOND_OPINION,
        DISSENT,
        OPPOSITION,
        Mahalanobis(),
        RelativeMahalanobis(),
        NeighbourLabels(at_most=_PROTOTYPES),
        NeighbourDistance(at_most=_PROTOTYPES),
    )
}
"""The built-in evidence by name."""
PROBABILITIES = frozenset(
    each.name for each in (SOFTMAX, TemperatureScaling, MEAN_OPINION, MEAN_OF_BOTH, SECOND_OPINION, NeighbourLabels)
)
"""Names of the evidence that lies in [0, 1] for every input: a regression takes its log-odds."""


def evidence_named(name: str) -> Evidence:
    """Returns the built-in evidence of that name; raises `ArgumentError` where there is none."""
    if name not in EVIDENCE:
        raise ArgumentError(f"evidence: expected one of {', '.join(EVIDENCE)}, got {name!r:.80}{near(name, EVIDENCE)}.")
    return EVIDENCE[name]


@dataclass(frozen=True, eq=False)
class Suspicion:
    """How suspicion is computed from the answers of the networks.

    Attributes:
        columns: The evidence, one column at least.
        weighting: The regression over several columns; absent for one column.
    """

    columns: tuple[FittedEvidence, ...]
    weighting: Weighting | None = None

    @property
    def name(self) -> str:
        """The name of the evidence, several with ``+`` between them."""
        return " + ".join(column.evidence.name for column in self.columns)

    @property
    def needs_features(self) -> bool:
        """Whether the features of the base model are needed."""
        return any(column.evidence.needs == "features" for column in self.columns)

    @property
    def needs_opinions(self) -> bool:
        """Whether ensemble members are needed."""
        return any(column.evidence.needs == "opinions" for column in self.columns)

    def of(self, answers: Answers) -> Tensor:
        """Returns the suspicion of ``N`` predictions, float64 ``(N,)``; higher is more likely wrong."""
        columns = [column.score(answers) for column in self.columns]
        return self.weighting.as_tensor(columns) if self.weighting else columns[0]

    def second_share(self, members: int) -> float:
        """Returns the weight of the second opinion in the probability of each class: as in the mean of all opinions.

        It is 0 where suspicion needs no opinions, as these were then no better than the softmax.
        """
        return members / (1 + members) if self.needs_opinions else 0.0

    def operations(self, classes: int, features: int) -> int:
        """Returns multiply-adds a sample, besides those of the networks."""
        return sum(column.evidence.operations(classes, features) for column in self.columns)

    def as_json(self) -> dict[str, Json]:
        """Returns names and weights in JSON's types; `tensors` has the rest."""
        return {
            "evidence": [column.evidence.name for column in self.columns],
            "weighting": {name: list(values) for name, values in asdict(self.weighting).items()}
            if self.weighting
            else None,
        }

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The fitted tensors by ``evidence.tensor``."""
        return {
            f"{column.evidence.name}.{name}": tensor.contiguous()
            for column in self.columns
            for name, tensor in column.state.items()
        }


def suspicion_named(name: str) -> Suspicion:
    """Returns suspicion by built-in evidence that needs no fit; raises `ArgumentError` where there is none."""
    evidence = EVIDENCE.get(name)
    if evidence is None or evidence.fitted_on is not None:
        known = ", ".join(name for name, each in EVIDENCE.items() if each.fitted_on is None)
        raise ArgumentError(f"score: expected the name of evidence without a fit, one of {known}, got {name!r:.80}.")
    return Suspicion((FittedEvidence(evidence),))


def suspicion_from_json(
    record: Record, tensors: Mapping[str, Tensor], *, features: int, own: Sequence[Evidence] = ()
) -> Suspicion:
    """Returns the suspicion that `Suspicion.as_json` and `Suspicion.tensors` describe, after a trial on zeros.

    Args:
        record: The entry of a manifest.
        tensors: The tensors of a bundle.
        features: Number of features of the base model; 0 without.
        own: Evidence of the user's own, told by its name.

    Raises:
        BundleError: Evidence is unknown, or its tensors do not fit.
    """
    known = EVIDENCE | {each.name: each for each in own}
    names = record.texts("evidence")
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(names) != len(set(names)):
        raise BundleError(
            f"{record.place}, evidence: expected different ones of {', '.join(known)}, got {', '.join(names)!r:.80}. "
            f"Pass evidence of your own to petm.load (evidence=...), or upgrade petm."
        )
    columns = tuple(
        FittedEvidence(known[name], {key[len(name) + 1 :]: value for key, value in tensors.items() if _of(key, name)})
        for name in names
    )
    weighting = Weighting.from_json(record.record("weighting"), len(names)) if record.has("weighting") else None
    if (weighting is None) != (len(names) == 1):
        raise BundleError(f"{record.place}, weighting: expected one for several columns alone, got {len(names)}.")
    suspicion = Suspicion(columns, weighting)
    if all(EVIDENCE.get(name) is known[name] for name in names):  # the user's own may need inputs that are not zeros
        _try(suspicion, tensors, features, record.place)
    return suspicion


def _of(key: str, name: str) -> bool:
    return key.rpartition(".")[0] == name


def _try(suspicion: Suspicion, tensors: Mapping[str, Tensor], features: int, place: str) -> None:
    classes = max([len(tensor) for key, tensor in tensors.items() if key.endswith(".centres")], default=2)
    zeros = Answers(torch.zeros(1, classes), layer_input=torch.zeros(1, features) if features else None)
    strange = [key for key in tensors if not any(_of(key, column.evidence.name) for column in suspicion.columns)]
    try:
        if strange:
            raise ValueError(strange[0])
        found = suspicion.of(zeros)
        if found.shape != (1,) or found.dtype != torch.float64 or not bool(found.isfinite().all()):
            raise ValueError(f"{tuple(found.shape)} of {found.dtype}")
    except Exception as error:  # whatever tensors of other shapes raise
        raise BundleError(f"{place}: expected tensors that fit the evidence, got others ({error!s:.100}).") from error
