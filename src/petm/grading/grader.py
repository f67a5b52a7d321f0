"""The grader: grades batches and data sets, is saved as a bundle, loaded, and fitted on calibration samples."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from petm._internal.files import plain
from petm.adapter.model import AdaptedModel
from petm.adapter.one_pass import DualLogits, dual_logits, predict_dual
from petm.data.base import Data, as_data
from petm.data.fields import as_batch, as_floats
from petm.errors import ArgumentError, BundleError, PetmWarning
from petm.grading.bundle import read_bundle, write_bundle
from petm.grading.card import model_card
from petm.grading.grades import Batch, Grades, as_inputs, check_inputs
from petm.grading.input_profile import InputCheck, describe_inputs
from petm.grading.manifest import Manifest, MemberRecord
from petm.grading.provenance import Origin, library_versions
from petm.models.answers import reading_of
from petm.models.loading import count_parameters, weights_fingerprint
from petm.models.prediction import BATCH_SIZE, check_labels, device_of
from petm.models.scores import SCORES, maximum_softmax
from petm.selective.drift import suspicion_profile
from petm.selective.metrics import aurc, auroc, detection
from petm.selective.probability import ErrorProbability, fit_probability
from petm.selective.targets import Disagreement, Recall, Target
from petm.selective.thresholds import Threshold, lower_of

PAPER_SCORE, PAPER_TARGET = "opposition", Disagreement()
"""The score whose zero is the paper's flag, and that flag."""
RECALL = 0.9
"""Default target: the share of the calibration samples' errors that is flagged."""


@dataclass(frozen=True, eq=False)
class Grader:
    """Grades predictions of the base model: trusted below a threshold on suspicion, suspect from it on.

    Attributes:
        adapted: The base model with its fitted adapter.
        threshold: The threshold on suspicion, with its guarantee.
        score: The name of the suspicion score in `petm.models.scores.SCORES`.
        probability: The probability of error as a function of suspicion; absent if not calibrated.
        origin: Where the base model, the inputs and the data come from.
        measured: Figures of the fit, by name.
        target: The target of the threshold; absent if it was set by hand.
    """

    adapted: AdaptedModel
    threshold: Threshold
    score: str = PAPER_SCORE
    probability: ErrorProbability | None = None
    origin: Origin = field(default_factory=Origin)
    measured: Mapping[str, Any] = field(default_factory=dict)
    target: Target | None = None

    def grade(self, x: Any, *, batch_size: int = BATCH_SIZE) -> Grades:
        """Returns labels, suspicion, probability of error and grades.

        Args:
            x: float32 ``(N, C, H, W)`` (uint8 is divided by 255) as a tensor or NumPy array; a mapping of such by name,
                as from a tokenizer; or a data set.
            batch_size: Samples in one pass.

        Raises:
            DataError: There is no sample, one holds NaN or infinity, or they cannot be like those of the fit.
            ModelError: The model cannot take the inputs.
        """
        data = as_inputs(x)
        check_inputs(data, self.origin.inputs)
        return self.judge(predict_dual(self.adapted, data, batch_size=batch_size, title="grade"))

    @cached_property
    def _check(self) -> InputCheck:
        return InputCheck(self.origin.inputs.profile)

    def grade_batch(self, x: Batch) -> Grades:
        """Returns the grades of one batch, in one pass.

        Args:
            x: float32 ``(N, C, H, W)``, or other inputs of the model, on any device or as NumPy arrays.

        Raises:
            DataError: The inputs are neither float nor uint8, or cannot be like those of the fit.
            ModelError: The model cannot take the inputs.
        """
        inputs = as_batch(x)
        if isinstance(inputs, Tensor):
            inputs = as_floats(inputs, "inputs")
        self._check(inputs)
        both = dual_logits(self.adapted, inputs.to(device_of(self.adapted)))
        return self.judge(DualLogits(both.base.float().cpu(), both.second.float().cpu()))

    def judge(self, both: DualLogits) -> Grades:
        """Returns the grades of samples from both opinions' logits, ``(N, K)`` each, on the CPU."""
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
            include_base: Whether to add the base model's weights; loading then needs only the network's code.
            overwrite: Whether to replace an existing bundle.

        Raises:
            RunError: ``path`` exists, or the disk is full.
        """
        base, adapted = self.adapted.base, self.adapted
        manifest = Manifest(
            origin=replace(self.origin, model=replace(self.origin.model, reading=reading_of(base))),
            fingerprint=weights_fingerprint(base),
            parameters=count_parameters(base),
            layers=adapted.ranks if adapted.adapters else {},
            adapter_parameters=adapted.adapter_parameters(),
            split_point=plain(adapted.split_point),
            members=tuple(MemberRecord(member.adapter, member.view) for member in adapted.members),
            cascade_threshold=adapted.cascade_threshold,
            score=self.score,
            threshold=self.threshold,
            target=self.target,
            probability=self.probability,
            measured=self.measured,
            versions=library_versions(),
        )
        card = model_card(manifest, adapted, include_base=include_base)
        write_bundle(path, adapted, manifest, card=card, include_base=include_base, overwrite=overwrite)


def fit_grader(
    adapted: AdaptedModel,
    calibration: Data,
    *,
    target: Target | None = PAPER_TARGET,
    score: str = "mean_of_both",
    origin: Origin | None = None,
    at_most: Threshold | None = None,
) -> Grader:
    """Returns a grader whose threshold and probability of error are set on calibration samples.

    Where the target cannot be guaranteed, the grader trusts nothing, and a warning says what is needed.

    Args:
        adapted: The base model with its fitted adapter.
        calibration: Labelled samples that neither the base model nor the adapter has seen.
        target: The target of the threshold (`petm.selective.targets`). `None` flags nine of ten errors of the
            calibration samples, or disagreement if there is no error.
        score: The name of a suspicion score in `petm.models.scores.SCORES`; ``opposition`` with `Disagreement`.
        origin: Where model, inputs and data come from, for the bundle.
        at_most: A threshold of the same target, taken (class by class) where it is lower.

    Raises:
        ArgumentError: An argument breaks its rule.
        DataError: The calibration samples have missing, outlying or only one kind of labels.
    """
    calibration = as_data(calibration)
    if score not in SCORES:
        raise ArgumentError(f"score: expected the name of a score, got {score!r}. Available: {', '.join(SCORES)}.")
    both = predict_dual(adapted, calibration, title="calibrate")
    classes = both.base.shape[1]
    check_labels(calibration.labels, classes, calibration.source)
    predicted = both.base.argmax(1)
    wrong = (predicted != calibration.labels).numpy()
    target = target or (Recall(RECALL) if wrong.any() else PAPER_TARGET)
    score = PAPER_SCORE if isinstance(target, Disagreement) else score
    suspicion = SCORES[score](both.base, both.second).numpy()
    threshold = target.threshold(suspicion, wrong, predicted.numpy(), classes=classes)
    if at_most is not None:
        threshold = lower_of(threshold, at_most, suspicion, wrong, predicted.numpy())
    if not threshold.holds:
        warnings.warn(
            f"{target.kind}: no threshold can guarantee {target} from {len(wrong)} calibration samples with "
            f"{int(wrong.sum())} errors, so nothing is trusted{' where it cannot' if threshold.classes else ''}. "
            f"{threshold.remedy}",
            PetmWarning,
            stacklevel=2,
        )
    flags = detection(~threshold.trusts(suspicion, predicted), wrong)
    softmax = maximum_softmax(both.base).numpy()
    measured = {
        "calibration_samples": len(wrong),
        "calibration_errors": flags.errors,
        "coverage": flags.coverage,
        "risk": flags.risk,
        "recall": flags.recall,
        "precision": flags.precision,
        "auroc": auroc(suspicion, wrong),
        "auroc_of_softmax": auroc(softmax, wrong),
        "aurc": aurc(suspicion, wrong),
        "aurc_of_softmax": aurc(softmax, wrong),
        **suspicion_profile(suspicion),
    }
    origin = origin or Origin()
    origin = replace(origin, inputs=replace(origin.inputs, profile=describe_inputs(calibration)))
    return Grader(adapted, threshold, score, fit_probability(suspicion, wrong), origin, plain(measured), target)


def load(
    path: str | Path,
    model: nn.Module | str | None = None,
    *,
    weights: str | Path | None = None,
    trust_bundle_code: bool = False,
    trust_remote_code: bool = False,
) -> Grader:
    """Returns a saved grader, after checking that its files are unchanged and that it was fitted to this model.

    Args:
        path: The bundle.
        model: The base model, or how it is built, as `petm.models.loading.load_model` takes it. Absent, it is the one
            that the bundle names, if that is a network of petm's own or a Hugging Face folder without code.
        weights: The base model's weights file, if it has moved.
        trust_bundle_code: Whether to import and call any other code that the bundle names, outside the bundle.
        trust_remote_code: Whether to run the code in the Hugging Face folder that the bundle names; needs both.

    Raises:
        ArgumentError: ``trust_remote_code`` is alone.
        BundleError: The bundle is damaged, too new, or fitted to another model.
        ModelError: The base model cannot be built.
    """
    adapted, told = read_bundle(
        path, model, weights=weights, trust_bundle_code=trust_bundle_code, trust_remote_code=trust_remote_code
    )
    if told.score not in SCORES:
        raise BundleError(f"{path}: score: expected one of {', '.join(SCORES)}, got {told.score[:60]!r}. Upgrade petm.")
    return Grader(adapted, told.threshold, told.score, told.probability, told.origin, told.measured, told.target)
