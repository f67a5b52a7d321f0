"""What a user holds in the end: a grader."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from petm._internal.files import plain
from petm.adapter.model import AdaptedModel
from petm.adapter.one_pass import DualLogits, dual_logits, predict_dual
from petm.data.base import Data, as_data
from petm.data.fields import as_batch
from petm.errors import ArgumentError, PetmWarning
from petm.grading.bundle import read_bundle, write_bundle
from petm.grading.card import model_card
from petm.grading.grades import Batch, Grades, as_inputs
from petm.grading.provenance import Origin, library_versions
from petm.models.loading import count_parameters, weights_fingerprint
from petm.models.prediction import BATCH_SIZE, check_labels, device_of
from petm.models.scores import SCORES, maximum_softmax
from petm.selective.drift import suspicion_profile
from petm.selective.metrics import aurc, auroc, detection
from petm.selective.probability import ErrorProbability, fit_probability
from petm.selective.thresholds import (
    DISAGREEMENT,
    Threshold,
    class_thresholds,
    coverage_threshold,
    recall_threshold,
    risk_threshold,
)

PAPER_SCORE = "opposition"
"""The score whose zero is the paper's flag."""


@dataclass(frozen=True, eq=False)
class Grader:
    """Grades predictions of A: trusted below a threshold on suspicion, suspect from it on.

    Attributes:
        adapted: A with its fitted adapter.
        threshold: Where suspicion turns from trusted to suspect, and what that promises.
        score: What suspicion is, a name of `petm.models.scores.SCORES`.
        probability: The probability of error as a function of suspicion; absent where none was calibrated.
        origin: Where A, the adapter and the data come from, for whoever opens the bundle.
        measured: Figures of the fit, by name.
    """

    adapted: AdaptedModel
    threshold: Threshold
    score: str = PAPER_SCORE
    probability: ErrorProbability | None = None
    origin: Origin = field(default_factory=Origin)
    measured: Mapping[str, Any] = field(default_factory=dict)

    def grade(self, x: Any, *, batch_size: int = BATCH_SIZE) -> Grades:
        """Returns labels, suspicion, probability of error and grades.

        Args:
            x: float32 ``(N, C, H, W)`` (uint8 is divided by 255) as a tensor or NumPy array; a mapping of such by name,
                as a tokenizer gives it; or a data set.
            batch_size: Samples in one pass.

        Raises:
            DataError: There is no sample, or one holds NaN or infinity.
            ModelError: The model cannot take the inputs.
        """
        return self.judge(predict_dual(self.adapted, as_inputs(x), batch_size=batch_size, title="grade"))

    def grade_batch(self, x: Batch) -> Grades:
        """Returns the grades of one batch, in one pass and without a look at its values.

        Args:
            x: float32 ``(N, C, H, W)``, or what the model takes, on any device or as NumPy arrays.

        Raises:
            ModelError: The model cannot take the inputs.
        """
        both = dual_logits(self.adapted, as_batch(x).to(device_of(self.adapted)))
        return self.judge(DualLogits(both.base.float().cpu(), both.second.float().cpu()))

    def judge(self, both: DualLogits) -> Grades:
        """Returns the grades of samples whose two opinions are known.

        Args:
            both: Logits ``(N, K)`` each, on the CPU.
        """
        labels = both.base.argmax(1).numpy()
        suspicion = SCORES[self.score](both.base, both.second).numpy()
        return Grades(
            labels=labels,
            second=both.second.argmax(1).numpy(),
            suspicion=suspicion,
            probability=self.probability.probability(suspicion) if self.probability else np.full(len(labels), np.nan),
            trusted=self.threshold.trusts(suspicion, labels),
        )

    def save(self, path: str | Path, *, include_base: bool = False, overwrite: bool = False) -> None:
        """Writes the grader as a bundle with a model card, whole or not at all.

        Args:
            path: The folder to make.
            include_base: Put A's weights beside the adapter, so that nothing else is needed but the network's code.
            overwrite: Replace a bundle that is there.

        Raises:
            RunError: Something is there already, or the disk is full.
        """
        base = self.adapted.base
        manifest = {
            "model": {
                **asdict(self.origin.model),
                "fingerprint": weights_fingerprint(base),
                "parameters": count_parameters(base),
            },
            "adapter": {
                "layers": self.adapted.ranks if self.adapted.adapters else {},
                "parameters": self.adapted.adapter_parameters(),
                "parting": self.adapted.parting,
            },
            "inputs": asdict(self.origin.inputs),
            "score": self.score,
            "threshold": self.threshold.as_json(),
            "probability": asdict(self.probability) if self.probability else None,
            "data": self.origin.data,
            "settings": self.origin.settings,
            "measured": self.measured,
            "versions": library_versions(),
        }
        card = model_card(plain(manifest), self.adapted, include_base=include_base)
        write_bundle(path, self.adapted, manifest, card=card, include_base=include_base, overwrite=overwrite)


def fit_grader(
    adapted: AdaptedModel,
    calibration: Data,
    *,
    max_risk: float | None = None,
    coverage: float | None = None,
    recall: float | None = None,
    confidence: float = 0.95,
    per_class: bool = False,
    score: str = "mean_of_both",
    origin: Origin | None = None,
) -> Grader:
    """Returns a grader whose threshold and probability of error are set on calibration samples.

    One of these says where trust ends (`thresholds`): ``max_risk``, a guaranteed largest share of errors among the
    trusted; ``coverage``, the share to trust; ``recall``, the share of the errors to flag. With none of them it is the
    paper's: suspect is what the second opinion answers otherwise, and suspicion is the opposition, whose zero that is.
    Where the asked cannot be guaranteed, the grader trusts nothing and a warning says what it would take.

    Args:
        adapted: A with its fitted adapter.
        calibration: Labelled samples that neither A nor the adapter has seen.
        max_risk: Between 0 and 1.
        coverage: Above 0, at most 1.
        recall: Above 0, at most 1.
        confidence: With which ``max_risk`` is to hold.
        per_class: Whether it is to hold in each class that A predicts, rather than over all.
        score: What suspicion is, a name of `petm.models.scores.SCORES`.
        origin: Where things come from, for the bundle.

    Raises:
        ArgumentError: An argument breaks its rule, or more than one says where trust ends.
        DataError: The calibration samples have missing, outlying or only one kind of labels.
    """
    calibration = as_data(calibration)
    asked = {"max_risk": max_risk, "coverage": coverage, "recall": recall}
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) > 1:
        raise ArgumentError(f"{', '.join(given)}: expected one of these, got {len(given)}. Choose.")
    if score not in SCORES:
        raise ArgumentError(f"score: expected the name of a score, got {score!r}. Available: {', '.join(SCORES)}.")
    for name, value in (*given.items(), ("confidence", confidence)):
        if not 0 < value < 1 and not (name in ("coverage", "recall") and value == 1):
            raise ArgumentError(f"{name}: expected a number between 0 and 1, got {value}.")
    both = predict_dual(adapted, calibration, title="calibrate")
    check_labels(calibration.labels, both.base.shape[1], calibration.source)
    predicted, score = both.base.argmax(1), score if given else PAPER_SCORE
    suspicion, wrong = SCORES[score](both.base, both.second).numpy(), (predicted != calibration.labels).numpy()
    if max_risk is not None and per_class:
        threshold = class_thresholds(
            suspicion, wrong, predicted, classes=both.base.shape[1], max_risk=max_risk, confidence=confidence
        )
    elif max_risk is not None:
        threshold = risk_threshold(suspicion, wrong, max_risk=max_risk, confidence=confidence)
    elif coverage is not None:
        threshold = coverage_threshold(suspicion, coverage)
    elif recall is not None:
        threshold = recall_threshold(suspicion, wrong, recall=recall)
    else:
        threshold = replace(DISAGREEMENT, coverage=float(DISAGREEMENT.trusts(suspicion).mean()))
    if not threshold.holds:
        where = "in each class" if per_class else "among the trusted"
        warnings.warn(
            f"max_risk: no threshold can promise {max_risk:.3g} {where} at {confidence:.3g} confidence from "
            f"{len(wrong)} calibration samples with {int(wrong.sum())} errors, so nothing is trusted"
            f"{' where it cannot' if per_class else ''}. {threshold.remedy}",
            PetmWarning,
            stacklevel=2,
        )
    flags = detection(~threshold.trusts(suspicion, predicted), wrong)
    softmax = maximum_softmax(both.base).numpy()
    measured = {
        "calibration_samples": len(wrong),
        "calibration_errors": flags.errors,
        "recall": flags.recall,
        "precision": flags.precision,
        "auroc": auroc(suspicion, wrong),
        "auroc_of_softmax": auroc(softmax, wrong),
        "aurc": aurc(suspicion, wrong),
        "aurc_of_softmax": aurc(softmax, wrong),
        **suspicion_profile(suspicion),
    }
    return Grader(
        adapted,
        threshold,
        score,
        fit_probability(suspicion, wrong),
        origin=origin or Origin(),
        measured=plain(measured),
    )


def load(
    path: str | Path,
    model: nn.Module | None = None,
    *,
    weights: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Grader:
    """Returns a saved grader, after checking that nothing of it has changed and that it was made for this model.

    Args:
        path: The bundle.
        model: A. Absent, it is built as the bundle says, which runs the code that the bundle names: leave it out only
            for a bundle that you trust.
        weights: Where A's weights are now, if not where they were.
        trust_remote_code: Run the code of A's Hugging Face folder, if A is made of such.

    Raises:
        BundleError: The bundle is damaged, too new, or made for another model.
        ModelError: A cannot be built.
    """
    adapted, manifest = read_bundle(path, model, weights=weights, trust_remote_code=trust_remote_code)
    probability = manifest["probability"]
    return Grader(
        adapted,
        Threshold.from_json(manifest["threshold"]),
        manifest["score"],
        ErrorProbability(**probability) if probability else None,
        Origin.from_manifest(manifest),
        manifest["measured"],
    )
