"""Where errors come from when A makes none: a check before the flight, and other sources of an error set.

Every source returns `Mined`, data with an `ErrorSet` in them, which goes on as A's own errors would:
``replace_errors(model, *hardest_samples(model, data), epsilon=0.1)``. A held-out part needs no source of its own: it is
`petm.error_set.find_errors` on data that A was not trained on.
"""

from petm.mining.feature_space import feature_spread, fgsm_features, replace_features
from petm.mining.mined import Mined
from petm.mining.out_of_fold import out_of_fold_errors
from petm.mining.sources import SOURCES, augmented_errors, hardest_samples, mine_errors, plain_errors
from petm.mining.verdict import Preflight, preflight

__all__ = [
    "SOURCES",
    "Mined",
    "Preflight",
    "augmented_errors",
    "feature_spread",
    "fgsm_features",
    "hardest_samples",
    "mine_errors",
    "out_of_fold_errors",
    "plain_errors",
    "preflight",
    "replace_features",
]
