"""The detectors that a user would try instead, behind one protocol.

    train, calibration, test = (Seen(model, data) for data in splits)
    fitted = Odin().fit(train, calibration)
    suspicion = fitted.suspicion(test)

`Seen` holds what A says of a data set, so that a whole table of baselines runs A once over each.
"""

from petm.baselines.averages import Ensemble, TwoModels, Views, mean_suspicion
from petm.baselines.catalogue import MIRRORED, SHIFTED, all_baselines
from petm.baselines.confidence_head import ConfidNet
from petm.baselines.dropout import McDropout
from petm.baselines.logit_scores import Energy, Entropy, Margin, Softmax, TemperatureScaling
from petm.baselines.mahalanobis import Mahalanobis, RelativeMahalanobis
from petm.baselines.neighbours import NeighbourDistance, NeighbourLabels, TrustScore
from petm.baselines.odin import Odin
from petm.baselines.protocol import Baseline, Fitted, Learned
from petm.baselines.seen import Seen

__all__ = [
    "MIRRORED",
    "SHIFTED",
    "Baseline",
    "ConfidNet",
    "Energy",
    "Ensemble",
    "Entropy",
    "Fitted",
    "Learned",
    "Mahalanobis",
    "Margin",
    "McDropout",
    "NeighbourDistance",
    "NeighbourLabels",
    "Odin",
    "RelativeMahalanobis",
    "Seen",
    "Softmax",
    "TemperatureScaling",
    "TrustScore",
    "TwoModels",
    "Views",
    "all_baselines",
    "mean_suspicion",
]
