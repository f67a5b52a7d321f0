"""What a user holds in the end: a grader."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor, nn

from petm.adapter import AdaptedModel
from petm.bundle import finite_or_text, read_bundle, write_bundle
from petm.data import Data, as_data
from petm.dual import predict_dual
from petm.errors import ArgumentError, PetmWarning
from petm.files import plain
from petm.grades import Grades, as_inputs
from petm.inference import BATCH_SIZE, check_labels
from petm.metrics import auroc, detection
from petm.models import count_parameters, weights_fingerprint
from petm.provenance import Origin, library_versions
from petm.risk import DISAGREEMENT, Threshold, risk_threshold
from petm.scores import maximum_softmax, opposition


@dataclass(frozen=True, eq=False)
class Grader:
    """Grades predictions of A: trusted below a threshold on suspicion, suspect from it on.

    Attributes:
        adapted: A with its fitted adapter.
        threshold: Where suspicion turns from trusted to suspect, and what that promises.
        origin: Where A, the adapter and the data come from, for whoever opens the bundle.
        measured: Figures of the fit, by name.
    """

    adapted: AdaptedModel
    threshold: Threshold
    origin: Origin = field(default_factory=Origin)
    measured: Mapping[str, Any] = field(default_factory=dict)

    def grade(self, x: Tensor | NDArray[Any] | Data, *, batch_size: int = BATCH_SIZE) -> Grades:
        """Returns labels, suspicion and grades.

        Args:
            x: float32 ``(N, C, H, W)`` (uint8 is divided by 255) as a tensor or NumPy array, or a data set.
            batch_size: Samples in one pass.

        Raises:
            DataError: There is no sample, or one holds NaN or infinity.
            ModelError: The model cannot take the inputs.
        """
        both = predict_dual(self.adapted, as_inputs(x), batch_size=batch_size, title="grade")
        suspicion = opposition(both.base, both.second).numpy()
        return Grades(
            labels=both.base.argmax(1).numpy(),
            second=both.second.argmax(1).numpy(),
            suspicion=suspicion,
            trusted=suspicion < self.threshold.value,
        )

    def save(self, path: str | Path, *, include_base: bool = False, overwrite: bool = False) -> None:
        """Writes the grader as a bundle, whole or not at all.

        Args:
            path: The folder to make.
            include_base: Put A's weights beside the adapter, so that nothing else is needed but the network's code.
            overwrite: Replace a bundle that is there.

        Raises:
            RunError: Something is there already, or the disk is full.
        """
        base, threshold = self.adapted.base, asdict(self.threshold)
        manifest = {
            "model": {
                **asdict(self.origin.model),
                "fingerprint": weights_fingerprint(base),
                "parameters": count_parameters(base),
            },
            "adapter": {
                "layers": self.adapted.ranks,
                "parameters": self.adapted.adapter_parameters(),
                "parting": self.adapted.parting,
            },
            "inputs": asdict(self.origin.inputs),
            "threshold": threshold | {"value": finite_or_text(self.threshold.value)},
            "data": self.origin.data,
            "settings": self.origin.settings,
            "measured": self.measured,
            "versions": library_versions(),
        }
        write_bundle(path, self.adapted, manifest, include_base=include_base, overwrite=overwrite)


def fit_grader(
    adapted: AdaptedModel,
    calibration: Data,
    *,
    max_risk: float | None = None,
    confidence: float = 0.95,
    origin: Origin | None = None,
) -> Grader:
    """Returns a grader whose threshold is set on calibration samples.

    Without ``max_risk`` the threshold is the paper's: suspect is what the second opinion answers otherwise. With it,
    it is the one of greatest coverage that `petm.risk.risk_threshold` guarantees; where none can be, the grader
    trusts nothing and a warning says how many calibration samples it would take.

    Args:
        adapted: A with its fitted adapter.
        calibration: Labelled samples that neither A nor the adapter has seen.
        max_risk: Largest share of errors among the trusted, between 0 and 1.
        confidence: With which that is to hold.
        origin: Where things come from, for the bundle.

    Raises:
        ArgumentError: ``max_risk`` or ``confidence`` breaks its rule.
        DataError: The calibration samples have missing, outlying or only one kind of labels.
    """
    calibration = as_data(calibration)
    for name, value in (("max_risk", max_risk), ("confidence", confidence)):
        if value is not None and not 0 < value < 1:
            raise ArgumentError(f"{name}: expected a number between 0 and 1, got {value}.")
    both = predict_dual(adapted, calibration, title="calibrate")
    check_labels(calibration.labels, both.base.shape[1], calibration.source)
    suspicion = opposition(both.base, both.second).numpy()
    wrong = (both.base.argmax(1) != calibration.labels).numpy()
    if max_risk is None:
        threshold = replace(DISAGREEMENT, coverage=float((suspicion < DISAGREEMENT.value).mean()))
    else:
        threshold = risk_threshold(suspicion, wrong, max_risk=max_risk, confidence=confidence)
    if not threshold.holds:
        warnings.warn(
            f"max_risk: no threshold can promise {max_risk:.3g} at {confidence:.3g} confidence from {len(wrong)} "
            f"calibration samples with {int(wrong.sum())} errors, so nothing is trusted. It takes at least "
            f"{threshold.samples_needed} trusted samples without an error: add calibration samples or allow more risk.",
            PetmWarning,
            stacklevel=2,
        )
    flags = detection(suspicion >= threshold.value, wrong)
    softmax = maximum_softmax(both.base).numpy()
    measured = {
        "calibration_samples": len(wrong),
        "calibration_errors": flags.errors,
        "recall": flags.recall,
        "precision": flags.precision,
        "auroc": auroc(suspicion, wrong),
        "auroc_of_softmax": auroc(softmax, wrong),
    }
    return Grader(adapted, threshold, origin or Origin(), plain(measured))


def load(path: str | Path, model: nn.Module | None = None, *, weights: str | Path | None = None) -> Grader:
    """Returns a saved grader, after checking that nothing of it has changed and that it was made for this model.

    Args:
        path: The bundle.
        model: A. Absent, it is built as the bundle says, which runs the code that the bundle names: leave it out only
            for a bundle that you trust.
        weights: Where A's weights are now, if not where they were.

    Raises:
        BundleError: The bundle is damaged, too new, or made for another model.
        ModelError: A cannot be built.
    """
    adapted, manifest = read_bundle(path, model, weights=weights)
    threshold = Threshold(**manifest["threshold"] | {"value": float(manifest["threshold"]["value"])})
    return Grader(adapted, threshold, Origin.from_manifest(manifest), manifest["measured"])
