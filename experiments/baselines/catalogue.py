"""All baselines with the settings that a comparison starts from."""

from collections.abc import Sequence

from torch import nn

from experiments.baselines.averages import Ensemble, TwoModels, Views
from experiments.baselines.confidence_head import ConfidNet
from experiments.baselines.dropout import McDropout
from experiments.baselines.odin import Odin
from petm.data.views import MIRROR, SAME
from petm.evidence.logit_scores import (
    Energy,
    Entropy,
    Margin,
    Softmax,
    TemperatureScaling,
)
from petm.evidence.mahalanobis import Mahalanobis, RelativeMahalanobis
from petm.evidence.neighbours import NeighbourDistance, NeighbourLabels, TrustScore
from petm.evidence.protocol import Baseline

MIRRORED = ((SAME, MIRROR), (SAME, MIRROR, "shift 2 0", "shift 0 2"))
"""Views of pictures whose mirror image shows the same: 2 passes and 4."""

SHIFTED = ((SAME, "shift 1 0"), (SAME, "shift 1 0", "shift -1 0", "shift 0 1"))
"""Views of what a mirror changes, as digits and letters: 2 passes and 4."""


def all_baselines(
    *, views: Sequence[Sequence[str]] = MIRRORED, members: Sequence[nn.Module] = ()
) -> tuple[Baseline, ...]:
    """Returns every baseline once, the plain softmax first, the controls last.

    Args:
        views: Names of the views of each test-time baseline: `MIRRORED`, `SHIFTED` or others.
        members: Networks of the ensemble, A not among them; it is counted in. Absent leaves the ensemble out.

    Raises:
        ArgumentError: There is no view of such a name.
    """
    return (
        Softmax(),
        Entropy(),
        Margin(),
        Energy(),
        TemperatureScaling(),
        Odin(),
        *(Views(tuple(names)) for names in views),
        McDropout(),
        NeighbourLabels(),
        NeighbourDistance(),
        Mahalanobis(),
        RelativeMahalanobis(),
        TrustScore(),
        ConfidNet(),
        *([Ensemble(tuple(members))] if members else []),
        TwoModels(),
        TwoModels(epsilon=0.0),
    )
