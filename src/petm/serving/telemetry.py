"""Figures of the service, in Prometheus' format."""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from petm.data.decisions import CANNOT_TELL
from petm.errors import ArgumentError
from petm.selective.drift import SuspicionProfile, drift_of, log_drift
from petm.selective.monitoring import LabelledCounts
from petm.selective.thresholds import Threshold
from petm.serving.engine import Verdict

WINDOW = 2000
"""Number of latest grades in the running figures."""
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


WATCHED = {
    "petm_suspicion_drift_evidence": "E-value against no drift of all grades since the start; from 100 on drift at "
    "the significance 0.01, for all looks together.",
    "petm_trusted_estimated_error": "Mean probability of error of the trusted since the start, by the calibration.",
    "petm_labelled_trusted": "Labelled trusted inputs that were drawn at random, by the labels file.",
    "petm_labelled_trusted_wrong": "Wrong ones among them.",
    "petm_risk": "The share that is guaranteed, as seen on the labelled.",
    "petm_risk_low": "Lower end of its interval, valid at any time.",
    "petm_risk_high": "Upper end of its interval, valid at any time.",
    "petm_risk_limit": "The greatest share that is guaranteed.",
    "petm_risk_evidence": "E-value against the guarantee; violated from 2 / (1 - confidence) on.",
}
"""Names and descriptions of what is watched; NaN where it is unknown."""


class Telemetry:
    """Counts and times, the running share of suspects and drift of suspicion, and the guarantee on labelled inputs.

    Attributes:
        profile: Suspicion of the calibration samples; None where the bundle has none.
        sizes: Histogram of the sizes of batches.
        queue: Length of the queue.
        window: Suspicion of the latest grades, and whether each was suspect.
        threshold: The threshold whose guarantee is watched; None before the grader is loaded.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.profile: SuspicionProfile | None = None
        self.threshold: Threshold | None = None
        self._suspicion: NDArray[np.int64] | None = None
        self._errors = self._trusted = 0.0
        self.window: deque[tuple[float, bool]] = deque(maxlen=WINDOW)
        grades = Counter("petm_grades", "Graded inputs.", ["grade"], registry=registry)
        self._grades = {name: grades.labels(name) for name in ("trusted", "suspect", "unreadable")}
        self._requests = Counter("petm_requests", "Answered requests.", ["path", "status"], registry=registry)
        self._seconds = Histogram(
            "petm_request_seconds",
            "Time from a request's head to its answer.",
            ["path"],
            registry=registry,
            buckets=SECONDS,
        )
        self.sizes = Histogram("petm_batch_inputs", "Inputs of one batch.", buckets=SIZES, registry=registry)
        self.queue = Gauge("petm_queue_inputs", "Inputs accepted and not yet answered.", registry=registry)
        about = f"the latest {WINDOW} grades"
        self._share = Gauge("petm_suspect_share", f"Share of suspects among {about}.", registry=registry)
        self._drift = Gauge(
            "petm_suspicion_drift",
            f"Kolmogorov-Smirnov distance of suspicion between {about} and the calibration data, from 0 to 1.",
            registry=registry,
        )
        self._p_value = Gauge(
            "petm_suspicion_drift_p_value", "Probability of this distance or more without drift.", registry=registry
        )
        self._watched = {name: Gauge(name, about, registry=registry) for name, about in WATCHED.items()}

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answered request; ``path`` is one of few."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def graded(self, verdicts: Sequence[Verdict | str]) -> None:
        """Counts grades; a text stands for an unreadable input."""
        for verdict in verdicts:
            if isinstance(verdict, str):
                self._grades["unreadable"].inc()
            else:
                self._grades["trusted" if verdict.trusted else "suspect"].inc()
                self.window.append((verdict.suspicion, not verdict.trusted))
                if verdict.trusted and verdict.probability_of_error is not None:
                    self._errors, self._trusted = self._errors + verdict.probability_of_error, self._trusted + 1
        read = [verdict.suspicion for verdict in verdicts if not isinstance(verdict, str)]
        if self.profile is not None and read:
            counts = self.profile.counts(read)
            self._suspicion = counts if self._suspicion is None else self._suspicion + counts

    def page(self, latest: Sequence[tuple[float, bool]], labels: Iterable[Mapping[str, Any]] = ()) -> bytes:
        """Returns all figures in Prometheus' text format.

        Args:
            latest: A copy of ``window``, as this takes a while.
            labels: The last line of each input in the labels file.
        """
        share = distance = p_value = math.nan
        if latest:
            suspicion, suspect = zip(*latest, strict=True)
            share = float(np.mean(suspect))
            if self.profile is not None:
                drift = drift_of(self.profile, self.profile.counts(suspicion))
                distance, p_value = drift.distance, drift.p_value
        self._share.set(share)
        self._drift.set(distance)
        self._p_value.set(p_value)
        for name, value in (self._of_grades() | self._of_labels(labels)).items():
            self._watched[name].set(value)
        return generate_latest(self.registry)

    def _of_grades(self) -> dict[str, float]:
        evidence = math.nan
        if self.profile is not None and self._suspicion is not None:
            evidence = math.exp(min(log_drift(self.profile, [self._suspicion])[0], 600))  # within a float
        error = self._errors / self._trusted if self._trusted else math.nan
        return {"petm_suspicion_drift_evidence": evidence, "petm_trusted_estimated_error": error}

    def _of_labels(self, labels: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """The guarantee, on labels that say how their input was graded and, of the trusted, with which chance drawn."""
        found = dict.fromkeys(list(WATCHED)[2:], math.nan)
        if self.threshold is None:
            return found
        of_recall = self.threshold.recall is not None
        rows = [row for line in labels if (row := _judged(line, of_recall)) is not None]
        counts = LabelledCounts(self.threshold)
        if rows:
            trusted, wrong, predicted, chance = zip(*rows, strict=True)
            try:
                counts.add(trusted, wrong, predicted, chance=chance)
            except ArgumentError:  # lines of another grader
                return found
        check = counts.check(at_any_time=True)
        figures = (
            check.labelled_trusted,
            int(counts.wrong.sum()),
            *(check.found.value, check.found.low, check.found.high),
            math.nan if check.limit is None else check.limit,
            math.nan if check.evidence is None else check.evidence,
        )
        return dict(zip(found, figures, strict=True))


def _judged(line: Mapping[str, Any], of_recall: bool) -> tuple[bool, bool, int, float] | None:
    """Grade, whether it is wrong, prediction and chance of a line of the labels file; None where it does not count.

    Only the trusted that an audit drew count. Among these all have one chance, which matters beside suspects alone.
    """
    trusted, label, predicted = line.get("grade") == "trusted", line["label"], line.get("predicted")
    told = label is not None or line.get("decision") == CANNOT_TELL
    drawn = line.get("audit") is True if trusted else line.get("grade") == "suspect"
    chance = line.get("chance", 0.0) if trusted and of_recall else 1.0
    if not (told and drawn and chance) or predicted is None:
        return None
    return trusted, trusted if label is None else label != predicted, predicted, chance
