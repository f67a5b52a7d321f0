"""The grader: grades batches and data sets, is saved as a bundle, loaded, and fitted on calibration samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from petm._internal.distributed import group
from petm._internal.files import plain, sha256_of_file
from petm._internal.progress import note
from petm._internal.records import Record
from petm.adapter.cascade import Allowance
from petm.adapter.model import AdaptedModel
from petm.adapter.one_pass import Answers, answers_of, predict_answers
from petm.data.base import Data, as_data
from petm.data.fields import Inputs, as_batch, as_floats
from petm.data.images import ImageProcessor
from petm.data.labels import UNLABELLED, enumerated
from petm.data.reader import Tokenizer
from petm.errors import ArgumentError
from petm.evidence.candidates import extra_operations
from petm.evidence.protocol import Evidence
from petm.evidence.suspicion import Suspicion, suspicion_from_json, suspicion_named
from petm.grading.bundle import read_bundle, write_bundle
from petm.grading.card import model_card
from petm.grading.gradable import Batches, Gradable, graded
from petm.grading.grades import NO_SECOND, Batch, Grades, as_inputs, check_inputs
from petm.grading.input_profile import InputCheck, describe_inputs
from petm.grading.manifest import MANIFEST, Manifest, MemberRecord
from petm.grading.provenance import Origin, library_versions
from petm.models.answers import reading_of
from petm.models.hf_processors import as_processor
from petm.models.loading import count_parameters, weights_fingerprint
from petm.models.placing import check_copied, writes
from petm.models.prediction import BATCH_SIZE, check_labels, device_of
from petm.models.scores import maximum_softmax
from petm.selective.calibration import COVERAGE as COVERAGE
from petm.selective.calibration import RECALL as RECALL
from petm.selective.calibration import settle, target_or_default
from petm.selective.choice import Choice
from petm.selective.outcome import Outcome
from petm.selective.probability import ErrorProbability
from petm.selective.sets import COVERAGE as SET_COVERAGE
from petm.selective.sets import PredictionSets, class_probabilities, fit_grade_sets
from petm.selective.targets import Disagreement, Recall, Target
from petm.selective.thresholds import Threshold

PAPER_TARGET = Disagreement()
"""The paper's flag."""


@dataclass(frozen=True, eq=False)
class Grader:
    """Grades predictions of the base model: trusted below a threshold on suspicion, suspect from it on.

    Attributes:
        adapted: The base model with its fitted adapter.
        threshold: The threshold on suspicion, with its guarantee.
        suspicion: How suspicion is computed.
        probability: The probability of error as a function of suspicion; absent if not calibrated.
        origin: Where the base model, the inputs and the data come from.
        measured: Figures of the fit, by name.
        target: The target of the threshold; absent if it was set by hand.
        choice: What the suspicion was compared with, and why it was taken; absent if it was named.
        outcome: What it brings beside the softmax, on the calibration samples; absent if it was not calibrated.
        sets: The candidates of a prediction, in each grade; absent if too few suspects were labelled.
        bundle: SHA-256 of the manifest of the bundle that it was loaded from; empty if it was not.
        processor: The tokenizer or image processor of texts and images, where it is in memory. A bundle only remembers
            its folder.
    """

    adapted: AdaptedModel
    threshold: Threshold
    suspicion: Suspicion = field(default_factory=lambda: suspicion_named("opposition"))
    probability: ErrorProbability | None = None
    origin: Origin = field(default_factory=Origin)
    measured: Mapping[str, Any] = field(default_factory=dict)
    target: Target | None = None
    choice: Choice | None = None
    outcome: Outcome | None = None
    sets: PredictionSets | None = None
    bundle: str = ""
    processor: Tokenizer | ImageProcessor | None = None

    @property
    def score(self) -> str:
        """The name of what suspicion is computed from."""
        return self.suspicion.name

    @property
    def has_second(self) -> bool:
        """Whether there is a second opinion."""
        return bool(self.adapted.members)

    @property
    def second_share(self) -> float:
        """Weight of the second opinion in the probabilities that candidates come from."""
        return self.suspicion.second_share(len(self.adapted.members))

    def grade(self, x: Any, *, batch_size: int = BATCH_SIZE) -> Grades:
        """Returns labels, suspicion, probability of error and grades.

        Where a cascade's cap leaves second opinions out, their predictions are suspect, and a warning says so.

        Args:
            x: float32 ``(N, C, H, W)`` (uint8 is divided by 255) as a tensor or NumPy array; tensors by name, as from a
                tokenizer; one sample of these without ``N``; the path of an image, a folder, a table or an archive; an
                image of Pillow; a text for a text model, whose files are named by `pathlib.Path`; a list of any of
                these; a ``torch`` or ``datasets`` data set, whose labels are not looked at; or a ``DataLoader`` in a
                fixed order.
            batch_size: Samples in one pass.

        Raises:
            ArgumentError: ``x`` is nothing that can be graded.
            DataError: There is no sample, one holds NaN or infinity or cannot be read, or they cannot be like those of
                the fit.
            ModelError: The model cannot take the inputs.
        """
        found, allowance = Gradable(self.origin.inputs, self.processor).opened(x, batch_size), self.allow()
        if isinstance(found, Batches):
            grades = graded(found, self.grade_batch, allowance)
        else:
            data = as_inputs(found)
            check_inputs(data, self.origin.inputs)
            how: Any = {"batch_size": batch_size, "title": "grade", "allowance": allowance}
            grades = self.judge(predict_answers(self.adapted, data, **how))
        allowance.tell()
        return grades

    def allow(self, state: int | None = None) -> Allowance:
        """Returns the second opinions that a run over many batches may compute, from a state of its on."""
        return Allowance(self.adapted.cascade, state)

    @cached_property
    def allowance(self) -> Allowance:
        """The second opinions that batches outside a run may still compute."""
        return self.allow()

    @cached_property
    def _check(self) -> InputCheck:
        return InputCheck(self.origin.inputs.profile)

    def grade_batch(self, x: Batch, *, allowance: Allowance | None = None) -> Grades:
        """Returns the grades of one batch, in one pass.

        Args:
            x: float32 ``(N, C, H, W)``, or other inputs of the model, on any device or as NumPy arrays.
            allowance: That of a run (`allow`), which warns at its end; absent takes the one for all other batches.

        Raises:
            DataError: The inputs are neither float nor uint8, or cannot be like those of the fit.
            ModelError: The model cannot take the inputs.
        """
        inputs = as_batch(x)
        if isinstance(inputs, Tensor):
            inputs = as_floats(inputs, "inputs")
        self._check(inputs)
        return self.judge(self.answers(inputs, allowance))

    def answers(self, x: Inputs, allowance: Allowance | None = None) -> Answers:
        """Returns what the networks answer to one batch, on the CPU; otherwise as `grade_batch`."""
        found = answers_of(self.adapted, x.to(device_of(self.adapted)), allowance or self.allowance).on_cpu()
        if allowance is None:
            self.allowance.tell()
        return found

    def judge(self, answers: Answers) -> Grades:
        """Returns the grades of samples from the networks' answers, on the CPU.

        Suspicion is at least the greatest threshold where a cascade's cap left second opinions out.
        """
        labels, asked = answers.predicted.numpy(), answers.asked(self.adapted.cascade).numpy()
        highest = torch.tensor(max(self.threshold.values), dtype=torch.float64)
        suspicion = answers.raised(self.suspicion.of(answers), highest).numpy()
        unknown, trusted = np.full(len(labels), np.nan), self.threshold.trusts(suspicion, labels)
        candidates = None
        if self.sets is not None:
            believed = class_probabilities(answers.base, answers.second, self.second_share)
            candidates = self.sets.candidates(believed, labels, ~trusted)
        return Grades(
            labels=labels,
            second=np.where(asked, answers.second.argmax(1).numpy(), NO_SECOND),
            suspicion=suspicion,
            probability_of_error=self.probability.probability(suspicion) if self.probability else unknown,
            trusted=trusted,
            classes=self.origin.model.classes,
            candidates=candidates,
        )

    def __repr__(self) -> str:
        measured, names = self.measured, self.origin.model.classes
        base, extra = self.adapted.base, measured.get("extra_operations")
        classes = f"{len(names)} classes ({enumerated(names, 6)}), " if names else ""
        cost = "" if extra is None else f", {1 + extra:.2f} × the operations of the model alone"
        shares = {name: plain(measured.get(name) or {}).get("value") for name in ("coverage", "risk")}
        told = {name: "not known" if value is None else f"{value:.2%}" for name, value in shares.items()}
        samples = (f"{measured.get(name, 0):,} {name[12:]}" for name in ("calibration_samples", "calibration_errors"))
        return "\n".join(
            (
                f"Grader of {type(base).__name__}: {classes}{count_parameters(base):,} parameters",
                f"  evidence: {self.score.replace('_', ' ')}{cost}",
                f"  target: {self.target or self.threshold.rule}",
                f"  coverage: {told['coverage']} of the calibration samples trusted",
                f"  risk: {told['risk']} of these wrong",
                f"  calibration: {', '.join(samples)}",
            )
        )

    def save(self, path: str | Path, *, include_base: bool = False, overwrite: bool = False) -> None:
        """Writes the grader as a bundle with a model card, whole or not at all.

        Every process must call it where the base model is sharded among them; the first one writes.

        Args:
            path: The folder to make.
            include_base: Whether to add the base model's weights; loading then needs only the network's code.
            overwrite: Whether to replace an existing bundle.

        Raises:
            ModelError: The weights cannot be added, as those of a quantised model.
            RunError: ``path`` exists, or the disk is full.
        """
        base, adapted = self.adapted.base, self.adapted
        if include_base:
            check_copied(base)
        manifest = Manifest(
            origin=replace(self.origin, model=replace(self.origin.model, reading=reading_of(base))),
            fingerprint=weights_fingerprint(base),
            parameters=count_parameters(base),
            layers=adapted.ranks if adapted.adapters else {},
            adapter_parameters=adapted.adapter_parameters(),
            split_point=plain(adapted.split_point),
            members=tuple(MemberRecord(member.adapter, member.view) for member in adapted.members),
            cascade=adapted.cascade,
            feature_layer=adapted.feature_layer,
            suspicion=self.suspicion.as_json(),
            threshold=self.threshold,
            target=self.target,
            probability=self.probability,
            measured=self.measured,
            choice=self.choice,
            outcome=self.outcome,
            sets=self.sets,
            versions=library_versions(),
        )
        if not writes(base):
            return
        card = model_card(manifest, adapted, include_base=include_base)
        how: Any = {"card": card, "include_base": include_base, "overwrite": overwrite}
        write_bundle(path, adapted, manifest, self.suspicion.tensors, **how)
        if not self.origin.inputs.reads_files and group().is_main:
            why = "were prepared before the fit. Pass arrays that are prepared alike (.npz) there"
            if self.processor is not None:
                why = "are prepared in memory. Fit with a tokenizer or image processor that is read from its folder"
            note(f"{path}: the command line will not be able to read images or texts, as those of the fit {why}.")


def fit_grader(
    adapted: AdaptedModel,
    calibration: Data,
    *,
    target: Target | None = PAPER_TARGET,
    score: str | Suspicion = "mean_opinion",
    origin: Origin | None = None,
    choice: Choice | None = None,
    at_most: Threshold | None = None,
    chance: ArrayLike | None = None,
    chosen_here: bool = False,
    answers: Answers | None = None,
    values: NDArray[np.float64] | None = None,
    cannot_tell: bool = False,
    set_coverage: float = SET_COVERAGE,
) -> Grader:
    """Returns a grader whose threshold and probability of error are set on calibration samples.

    Where the target cannot be guaranteed, the grader trusts nothing, and a warning says what is needed. Of samples that
    were drawn with unequal chances, the measured figures are those of a part that is thinned to equal chances.

    Args:
        adapted: The base model with its fitted adapter.
        calibration: Labelled samples that neither the base model nor the adapter has seen.
        target: The target of the threshold (`petm.selective.targets`). `None` flags nine of ten errors of the
            calibration samples, or trusts nine of ten samples if there is no error.
        score: How suspicion is computed, or the name of evidence that needs no fit; ``opposition`` with `Disagreement`.
        origin: Where model, inputs and data come from, for the bundle.
        choice: What the suspicion was compared with, for the bundle.
        at_most: A threshold of the same target, taken (class by class) where it is lower.
        chance: float ``(N,)``, the chance with which each sample was drawn to be labelled, in (0, 1]; None for equal
            chances.
        chosen_here: Whether suspicion was chosen on these samples.
        answers: The answers to the samples, where they are known; such as those of adapters that have not seen them.
        values: Suspicion of the samples, float64 ``(N,)``, where it is not that of the answers.
        cannot_tell: Whether samples may lack a label, of which nobody can tell the class: these count as errors, under
            a recall as the last that are flagged, so that a guarantee holds whatever they are.
        set_coverage: Probability with which the candidates of a prediction hold its true class, in each grade.

    Raises:
        ArgumentError: An argument breaks its rule, or the target is disagreement without a second opinion.
        DataError: The calibration samples have missing, outlying or only one kind of labels.
    """
    calibration = as_data(calibration)
    known = suspicion_named(score) if isinstance(score, str) else score
    if isinstance(target, Disagreement) and not adapted.members:
        raise ArgumentError(
            "target: expected a share or a risk, got disagreement without a second opinion to disagree. Pass "
            "petm.Recall(0.9), or fit with recipe='paper'."
        )
    both = answers or predict_answers(adapted, calibration, title="calibrate")
    classes = both.base.shape[1]
    told = (calibration.labels != UNLABELLED).numpy() | (not cannot_tell)
    check_labels(calibration.labels[torch.from_numpy(told)], classes, calibration.source)
    predicted = both.predicted.numpy()
    wrong = predicted != calibration.labels.numpy()
    target = target_or_default(target, wrong)
    known = suspicion_named("opposition") if isinstance(target, Disagreement) else known
    suspicion = known.of(both).numpy() if values is None else values
    placed = np.where(told, suspicion, suspicion.min()) if isinstance(target, Recall) else suspicion
    softmax = maximum_softmax(both.base).numpy()
    how: Any = {"target": target, "classes": classes, "chance": chance, "at_most": at_most, "placed": placed}
    found = settle(suspicion, softmax, wrong, predicted, **how, chosen_here=chosen_here)
    measured = {**found.measured}
    sets = fit_grade_sets(
        class_probabilities(both.base, both.second, known.second_share(len(both.members))),
        np.where(told, calibration.labels.numpy(), UNLABELLED),
        predicted,
        suspicion,
        found.threshold,
        coverage=set_coverage,
        chance=chance,
    )
    if adapted.cascade is not None:
        measured["second_opinion_asked"] = float(adapted.cascade.asks(maximum_softmax(both.base)).double().mean())
    measured["extra_operations"] = extra_operations(adapted, known, both, calibration)
    origin = origin or Origin()
    origin = replace(origin, inputs=replace(origin.inputs, profile=describe_inputs(calibration)))
    held = (found.threshold, known, found.probability, origin, plain(measured), target, choice, found.outcome, sets)
    return Grader(adapted, *held, processor=calibration.processor)


def load(
    path: str | Path,
    model: nn.Module | str | None = None,
    *,
    weights: str | Path | None = None,
    base: str | Path | None = None,
    trust_bundle_code: bool = False,
    trust_remote_code: bool = False,
    evidence: Sequence[Evidence] = (),
    processor: Any = None,
) -> Grader:
    """Returns a saved grader, after checking that its files are unchanged and that it was fitted to this model.

    Args:
        path: The bundle.
        model: The base model, or how it is built, as `petm.models.loading.load_model` takes it. Absent, it is the one
            that the bundle names, if that is a network of petm's own or a Hugging Face folder without code.
        weights: The base model's weights file, if it has moved.
        base: Where ``model`` or the bundle names a LoRA adapter of PEFT, the folder of its base model, if it has moved.
        trust_bundle_code: Whether to import and call any other code that the bundle names, outside the bundle.
        trust_remote_code: Whether to run the code in the Hugging Face folder that the bundle names; needs both.
        evidence: Evidence of the user's own, as it was fitted with.
        processor: The tokenizer or image processor that prepares texts or images, as of `petm.fit`; absent, it is read
            where the bundle says.

    Raises:
        ArgumentError: ``trust_remote_code`` is alone.
        BundleError: The bundle is damaged, too new, or fitted to another model, or the user's evidence is absent.
        ModelError: The base model cannot be built.
    """
    trust = {"trust_bundle_code": trust_bundle_code, "trust_remote_code": trust_remote_code}
    adapted, told, tensors = read_bundle(path, model, weights=weights, base=base, **trust)
    place = Record(told.suspicion, f"{path}: {MANIFEST}, suspicion")
    layer = adapted.base.get_submodule(adapted.feature_layer) if adapted.feature_layer else None
    features = int(getattr(layer, "in_features", 0))
    suspicion = suspicion_from_json(place, tensors, features=features, own=evidence)
    held = (told.probability, told.origin, told.measured, told.target, told.choice, told.outcome, told.sets)
    prepared_by = None if processor is None else as_processor(processor, adapted.base)
    bundle = sha256_of_file(Path(path) / MANIFEST)
    return Grader(adapted, told.threshold, suspicion, *held, bundle=bundle, processor=prepared_by)
