"""Statistics of selective prediction on arrays: metrics, thresholds, probability of error, monitoring.

Nothing here needs PyTorch or reads files. A name is imported from its file when it is first used. All functions raise
`petm.errors.ArgumentError` for arrays of different shapes and for an argument outside its range.
"""

from typing import TYPE_CHECKING

from petm._internal.lazy import lazy_names

if TYPE_CHECKING:
    from petm.selective.calibration import Calibration as Calibration
    from petm.selective.calibration import GradedScores as GradedScores
    from petm.selective.calibration import calibrate as calibrate
    from petm.selective.choice import choose as choose
    from petm.selective.group_thresholds import group_thresholds as group_thresholds
    from petm.selective.monitoring import LabelledCounts as LabelledCounts
    from petm.selective.probability import ErrorProbability as ErrorProbability
    from petm.selective.probability import fit_probability as fit_probability
    from petm.selective.targets import Coverage as Coverage
    from petm.selective.targets import MaxRisk as MaxRisk
    from petm.selective.targets import Recall as Recall
    from petm.selective.thresholds import Threshold as Threshold
    from petm.selective.thresholds import class_thresholds as class_thresholds
    from petm.selective.thresholds import coverage_threshold as coverage_threshold
    from petm.selective.thresholds import recall_threshold as recall_threshold
    from petm.selective.thresholds import risk_threshold as risk_threshold

_HOME = {
    "calibration": ("Calibration", "GradedScores", "calibrate"),
    "choice": ("choose",),
    "monitoring": ("LabelledCounts",),
    "probability": ("ErrorProbability", "fit_probability"),
    "targets": ("Coverage", "MaxRisk", "Recall"),
    "group_thresholds": ("group_thresholds",),
    "thresholds": ("Threshold", "class_thresholds", "coverage_threshold", "recall_threshold", "risk_threshold"),
}
__all__, __getattr__, __dir__ = lazy_names(__name__, _HOME)
