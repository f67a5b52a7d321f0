"""The report of a fitted grader as one HTML file: what it finds on its calibration samples, and its reliability."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petm._internal.files import plain
from petm.adapter.one_pass import predict_answers
from petm.data.base import Data, as_data
from petm.grading.grader import Grader
from petm.grading.provenance import library_versions
from petm.models.prediction import check_labels
from petm.models.scores import maximum_softmax
from petm.report.figures import reliability_figure, risk_coverage_figure, svg_of
from petm.report.gallery import Suspect, gather_suspects, shown
from petm.report.pages import curve_captions, curve_tables, data_uri, share_with_interval, write_page
from petm.report.tables import Table, between, judged, percent, points
from petm.selective.bootstrap import bootstrap
from petm.selective.curves import judge, risk_coverage
from petm.selective.guarantee import guarantee
from petm.selective.metrics import Detection, aurc, auroc, detection, share
from petm.selective.sets import candidates_in_words
from petm.selective.tables import choice_table, trade_off_table
from petm.selective.thresholds import DISAGREEMENT
from petm.selective.worth import cost_of

GRADER, SOFTMAX, CHOSEN = "Grader", "the model's softmax", "the chosen threshold"


def write_fit_report(grader: Grader, calibration: Data, path: str | Path) -> None:
    """Writes a page about a grader on its calibration samples: figures with intervals, curves, most suspect samples.

    It is one file without script and network. As the probability of error was fitted on these samples, the reliability
    diagram is cross-validated.

    Args:
        grader: The grader.
        calibration: The labelled samples that it was calibrated on.
        path: The file to write or replace; its folder is made if absent.

    Raises:
        DataError: There is no sample, or a label is missing or outside 0..K-1.
        RunError: The file could not be written.
    """
    data = as_data(calibration)
    both = predict_answers(grader.adapted, data, title="report")
    check_labels(data.labels, both.base.shape[1], data.source)
    predicted = both.base.argmax(1)
    suspected, softmax = grader.suspicion.of(both), maximum_softmax(both.base).numpy()
    suspicion, wrong = suspected.numpy(), (predicted != data.labels).numpy()
    trusted = grader.threshold.trusts(suspicion, predicted.numpy())
    judgement, flags = judge(suspicion, softmax, wrong, trusted), detection(~trusted, wrong)
    told = plain(judgement)
    lines = {GRADER: risk_coverage(suspicion, wrong), SOFTMAX: risk_coverage(softmax, wrong)}
    drawn = {"risk_coverage": risk_coverage_figure(lines, judgement, CHOSEN)}
    if judgement.bins:
        drawn["reliability"] = reliability_figure(judgement.bins)
    captions = curve_captions(told, "the grader", CHOSEN)

    def gallery(**some: Any) -> list[dict[str, Any]]:
        names = grader.origin.model.classes or data.classes
        second, asked = both.second if both.members else None, both.asked(grader.adapted.cascade)
        suspects = gather_suspects(both.base, second, suspected, data, asked=asked, **some)
        return [shown(suspect, names, _measure(grader, suspect)) for suspect in suspects]

    suspects, second, choice, outcome = gallery(), both.second.argmax(1), grader.choice, grader.outcome
    found_out, spoilt = ((second != predicted) & (opinion == data.labels) for opinion in (second, predicted))
    write_page(
        Path(path),
        "fit_report.html.jinja",
        version=library_versions()["petm"],
        model=grader.origin.model.reference or "a model passed in Python",
        source=data.source,
        samples=len(data),
        title="Second opinion" if both.members else "Grader",
        judged=_judged(grader, len(data)),
        summary=_summary(flags, len(data)),
        guarantee=guarantee(grader.threshold),
        tables={
            "flag": _flag_table(flags, len(data)),
            "order": _order_table(suspicion, softmax, wrong),
            "settings": _settings_table(grader),
        }
        | ({"compared": choice_table(choice)} if choice and choice.compared else {})
        | ({"trade_off": trade_off_table(outcome)} if outcome else {})
        | curve_tables(told, GRADER),
        lead=choice.name if choice else None,
        reason=choice.reason if choice else "",
        sentences=(*(outcome.sentences if outcome else ()), *cost_of(grader.measured)),
        disagreed=_disagreed(*(int(where.sum()) for where in (second != predicted, found_out, spoilt))),
        found_out=gallery(count=6, among=found_out),
        figures={
            name: (data_uri(svg_of(figure, name).encode(), "svg+xml"), *captions[name])
            for name, figure in drawn.items()
        },
        suspects=suspects,
        wrong=sum(suspect["wrong"] for suspect in suspects),
    )


def _summary(flags: Detection, samples: int) -> str:
    risk, right = flags.risk, share(samples - flags.errors, samples)
    return (
        f"The model answers {percent(right.value)} of {samples:,} calibration samples right and is wrong on "
        f"{flags.errors:,}. The grader flags {flags.flagged:,} of the answers and finds {flags.caught:,} of the "
        f"{flags.errors:,} errors. It trusts the other {risk.of:,}, of which {risk.count:,} "
        f"{'is' if risk.count == 1 else 'are'} wrong."
    )


def _disagreed(differ: int, right: int, spoilt: int) -> str:
    return (
        f"The second opinion predicts another class than the model for {differ:,} of these samples. There it is right "
        f"{right:,} times, the model {spoilt:,} times, and neither {differ - right - spoilt:,} times."
    )


def _judged(grader: Grader, samples: int) -> str:
    """How the threshold depends on these samples."""
    if grader.threshold.value == DISAGREEMENT.value:
        return "The threshold is the paper's flag, which depends on no samples."
    used = grader.origin.data["calibration"].samples if "calibration" in grader.origin.data else samples
    if used < samples and grader.adapted.cascade is not None:
        return (
            f"The threshold was set on {used:,} of these samples, so it suits them a little better than later ones. "
            f"The others, without their labels, set the limit from which on a second opinion is computed."
        )
    return "The threshold was set on these samples, so it suits them a little better than later ones."


def _flag_table(flags: Detection, samples: int) -> Table:
    rows = {
        "Error rate of the model": share(flags.errors, samples),
        "Coverage": flags.coverage,
        "Error rate of the trusted": flags.risk,
        "Recall": flags.recall,
        "Precision": flags.precision,
    }
    return Table(
        "The flag",
        "Coverage: the share that is trusted. Recall: of the model's errors, the share that is flagged. "
        "Precision: of the flagged, the share that are the model's errors. In brackets 95% Wilson intervals.",
        ("Measure", "Share", "Count"),
        tuple(
            (name, share_with_interval(plain(found)), f"{found.count:,} of {found.of:,}")
            for name, found in rows.items()
        ),
    )


def _order_table(suspicion: NDArray[np.float64], softmax: NDArray[np.float64], wrong: NDArray[np.bool_]) -> Table:
    """The areas of both suspicions, and their paired difference."""
    rows = []
    for metric in (auroc, aurc):
        found = plain(bootstrap(metric, suspicion, wrong, minus=softmax))
        ends = found["low"], found["high"]
        low, high = ends if metric.higher_is_better or None in ends else (-ends[1], -ends[0])
        rows.append(
            (
                metric.title,
                *(percent(metric(scores, wrong), 2) for scores in (suspicion, softmax)),
                points(found["value"], 2),
                between(*(points(end, 2) for end in ends)),
                judged({"low": low, "high": high}),
            )
        )
    return Table(
        "Order by suspicion",
        "Without any threshold. AUROC: the probability that an error is more suspect than a right answer; higher is "
        "better. AURC: the area under the risk over the coverage; lower is better. Differences in percentage points, "
        "with 95% paired bootstrap intervals.",
        ("Measure", GRADER, SOFTMAX, "Difference", "95% interval", "The grader is"),
        tuple(rows),
        words=frozenset({0, 5}),
    )


def _settings_table(grader: Grader) -> Table:
    origin, adapted = grader.origin, grader.adapted
    rows = {
        "Model": origin.model.reference or "passed in Python",
        "Weights": origin.model.weights or "not named",
        "Adapter": ", ".join(f"{layer} rank {rank}" for layer, rank in adapted.ranks.items()) or "none",
        "Parameters of the adapter": f"{adapted.adapter_parameters():,}",
        "Suspicion": grader.score.replace("_", " "),
        "Threshold": grader.threshold.rule,
        "Candidates": candidates_in_words(grader.sets),
        "Probability of error": grader.probability.method if grader.probability else "not calibrated",
        **{f"Data, {role}": f"{held}, SHA-256 {held.content[:12]}…" for role, held in origin.data.items()},
        **{name.replace("_", " ").capitalize(): str(value) for name, value in origin.settings.items()},
        **library_versions(),
    }
    return Table("Settings", "", ("What", "Value"), tuple(rows.items()), words=frozenset({0, 1}))


def _measure(grader: Grader, suspect: Suspect) -> str:
    """The probability of error of a sample, or its suspicion if none was calibrated, in words."""
    if grader.probability is None:
        return f"Suspicion {suspect.suspicion:.2f}"
    return f"Probability of error {percent(float(grader.probability.probability(suspect.suspicion)))}"
