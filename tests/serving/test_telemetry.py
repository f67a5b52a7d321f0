"""Figures for Prometheus: the guarantee on labels that arrive, drift of all grades, and the dashboard."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from petm.selective.drift import SuspicionProfile, log_drift, suspicion_profile
from petm.selective.monitoring import LabelledCounts
from petm.selective.thresholds import Threshold
from petm.serving.engine import Verdict
from petm.serving.telemetry import Telemetry

THRESHOLD = Threshold(0.5, "guaranteed risk", 0.5, max_risk=0.1, confidence=0.95)
DASHBOARD = Path(__file__).parents[2] / "docs" / "how-to" / "grafana.json"


def figures(telemetry, labels=()):
    lines = telemetry.page(list(telemetry.window), labels).decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def line(label, *, grade="trusted", predicted=1, **more):
    return {"label": label, "grade": grade, "predicted": predicted, "sha256": "0"} | more


def watched(threshold=THRESHOLD):
    telemetry = Telemetry()
    telemetry.threshold = threshold
    return telemetry


def test_labels_of_an_audit_become_the_risk_at_any_time():
    labels = [line(1, audit=True, chance=0.1)] * 60 + [line(2, audit=True, chance=0.2)] * 30
    labels += [line(1), line(1, audit=False, chance=0.1), line(None, audit=True)] * 50  # not drawn, or taken back
    labels += [line(2, grade="suspect")] * 20
    found = figures(watched(), [*labels, line(None, audit=True, decision="cannot tell")])
    check = LabelledCounts(THRESHOLD).add(np.ones(91, bool), np.arange(91) < 31).check(at_any_time=True)
    assert (found["petm_labelled_trusted"], found["petm_labelled_trusted_wrong"]) == (91, 31)
    assert found["petm_risk"] == pytest.approx(31 / 91)
    assert (found["petm_risk_low"], found["petm_risk_high"]) == pytest.approx((check.found.low, check.found.high))
    assert found["petm_risk_limit"] == 0.1
    assert found["petm_risk_evidence"] == pytest.approx(check.evidence)
    assert check.verdict == "violated"


def test_without_labels_or_a_grader_nothing_is_claimed():
    assert all(math.isnan(figures(Telemetry())[name]) for name in ("petm_risk", "petm_risk_limit", "petm_risk_low"))
    found = figures(watched())
    assert math.isnan(found["petm_risk"])
    assert (found["petm_labelled_trusted"], found["petm_risk_low"], found["petm_risk_high"]) == (0, 0, 1)


def test_a_recall_counts_the_trusted_by_their_chance():
    threshold = Threshold(0.5, "guaranteed recall", 0.5, confidence=0.9, recall=0.8)
    labels = [line(2, audit=True, chance=0.5)] * 10 + [line(2, grade="suspect")] * 400 + [line(2, audit=True)] * 50
    found = figures(watched(threshold), labels)
    assert found["petm_risk"] == pytest.approx(10 / 210, abs=0.01), "half of the suspects are kept"


def test_drift_evidence_and_estimated_error_are_those_of_all_grades():
    random, telemetry = np.random.default_rng(0), watched()
    telemetry.profile = SuspicionProfile.from_measured(suspicion_profile(random.random(500)))
    assert math.isnan(figures(telemetry)["petm_suspicion_drift_evidence"])
    suspicion = random.random(3000) ** 0.5  # more than the window holds
    none = np.zeros(2, np.float32)
    for value in suspicion.tolist():
        telemetry.graded([Verdict(0, 0, value / 4, value, value < 0.5, none, none), "unreadable"])
    found = figures(telemetry)
    wanted = log_drift(telemetry.profile, [telemetry.profile.counts(suspicion)])[0]
    assert found["petm_suspicion_drift_evidence"] == pytest.approx(math.exp(wanted))
    assert wanted > math.log(100)
    assert found["petm_trusted_estimated_error"] == pytest.approx(suspicion[suspicion < 0.5].mean() / 4)


def test_the_dashboard_asks_for_what_the_service_has():
    telemetry = watched()
    telemetry.request("/grade", 200, 0.1)
    told = {name.split("{")[0] for name in figures(telemetry)}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    names = {name for expression in asked for name in re.findall(r"\bpetm_\w+", expression)}
    assert names <= told
    assert {"petm_risk", "petm_risk_limit", "petm_suspicion_drift_evidence", "petm_grades_total"} <= names
    assert len({panel["id"] for panel in panels}) == len(panels)
