"""Figures of the service, in Prometheus' format."""

import math
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from petm.selective.drift import SuspicionProfile, drift_of
from petm.serving.engine import Verdict

WINDOW = 2000
"""Number of latest grades in the running figures."""
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Telemetry:
    """Counts and times, and the running share of suspects and drift of suspicion.

    Attributes:
        profile: Suspicion of the calibration samples; None where the bundle has none.
        sizes: Histogram of the sizes of batches.
        queue: Length of the queue.
        window: Suspicion of the latest grades, and whether each was suspect.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.profile: SuspicionProfile | None = None
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

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts an answered request; ``path`` is one of few."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def graded(self, verdicts: Iterable[Verdict | str]) -> None:
        """Counts grades; a text stands for an unreadable input."""
        for verdict in verdicts:
            if isinstance(verdict, str):
                self._grades["unreadable"].inc()
            else:
                self._grades["trusted" if verdict.trusted else "suspect"].inc()
                self.window.append((verdict.suspicion, not verdict.trusted))

    def page(self, latest: Sequence[tuple[float, bool]]) -> bytes:
        """Returns all figures in Prometheus' text format; ``latest`` is a copy of ``window``, as this takes a while."""
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
        return generate_latest(self.registry)
