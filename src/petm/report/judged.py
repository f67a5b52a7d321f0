"""What suspicion does on labelled samples, as the parts of a page: summary, tables, curves. Without torch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from petm._internal.files import plain
from petm.report.figures import reliability_figure, risk_coverage_figure, svg_of
from petm.report.pages import SOFTMAX, curve_captions, curve_tables, data_uri, share_with_interval
from petm.report.tables import Table, between, judged, percent, points
from petm.selective.bootstrap import bootstrap
from petm.selective.curves import judge, risk_coverage
from petm.selective.metrics import Detection, aurc, auroc, detection, share

GRADER, CHOSEN = "Grader", "the chosen threshold"


def judged_parts(
    suspicion: NDArray[np.float64],
    first: NDArray[np.float64],
    wrong: NDArray[np.bool_],
    trusted: NDArray[np.bool_],
    *,
    other: str = SOFTMAX,
) -> dict[str, Any]:
    """Returns ``samples``, ``summary``, ``tables`` and ``figures`` of a page; all arrays are ``(N,)``.

    As the probability of error was fitted on these samples, the reliability diagram is cross-validated.

    Args:
        suspicion: Suspicion of the samples.
        first: What it is compared with.
        wrong: Where the base model is wrong.
        trusted: The grades.
        other: The name of ``first``.
    """
    judgement, flags, samples = judge(suspicion, first, wrong, trusted), detection(~trusted, wrong), len(wrong)
    told = plain(judgement)
    lines = {GRADER: risk_coverage(suspicion, wrong), other: risk_coverage(first, wrong)}
    drawn = {"risk_coverage": risk_coverage_figure(lines, judgement, CHOSEN)}
    if judgement.bins:
        drawn["reliability"] = reliability_figure(judgement.bins)
    captions = curve_captions(told, "the grader", CHOSEN, other)
    return {
        "samples": samples,
        "summary": _summary(flags, samples),
        "tables": {
            "flag": _flag_table(flags, samples),
            "order": _order_table(suspicion, first, wrong, other),
            **curve_tables(told, GRADER, other),
        },
        "figures": {
            name: (data_uri(svg_of(figure, name).encode(), "svg+xml"), *captions[name])
            for name, figure in drawn.items()
        },
    }


def _summary(flags: Detection, samples: int) -> str:
    risk, right = flags.risk, share(samples - flags.errors, samples)
    return (
        f"The model answers {percent(right.value)} of {samples:,} calibration samples right and is wrong on "
        f"{flags.errors:,}. The grader flags {flags.flagged:,} of the answers and finds {flags.caught:,} of the "
        f"{flags.errors:,} errors. It trusts the other {risk.of:,}, of which {risk.count:,} "
        f"{'is' if risk.count == 1 else 'are'} wrong."
    )


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


def _order_table(
    suspicion: NDArray[np.float64], first: NDArray[np.float64], wrong: NDArray[np.bool_], other: str
) -> Table:
    """The areas of both suspicions, and their paired difference."""
    rows = []
    for metric in (auroc, aurc):
        found = plain(bootstrap(metric, suspicion, wrong, minus=first))
        ends = found["low"], found["high"]
        low, high = ends if metric.higher_is_better or None in ends else (-ends[1], -ends[0])
        rows.append(
            (
                metric.title,
                *(percent(metric(scores, wrong), 2) for scores in (suspicion, first)),
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
        ("Measure", GRADER, other, "Difference", "95% interval", "The grader is"),
        tuple(rows),
        words=frozenset({0, 5}),
    )
