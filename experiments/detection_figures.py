"""The pictures of the detection benchmark: risk over coverage, and precision over recall."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.detection_methods import CONTROL
from petm.report.figures import STYLE, WIDTH

SHADES = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#8C564B", "#7F7F7F", "#BCBD22")
OTHERS = 4


def drawn(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the rows that are drawn: the softmax, the second opinions, their best control, and the four best others.

    The best are those of least AURC.

    Args:
        result: From `experiments.detection.measure_detection`.
    """
    rows = result["methods"]
    softmax = [row for row in rows if row["name"] == "softmax"]
    ours = [row for row in rows if row["ours"]]
    rest = [row for row in rows if not row["ours"] and row["name"] != "softmax"]
    rest.sort(key=lambda row: float(row["metrics"]["aurc"]["value"]))
    controls = [row for row in rest if row["name"].endswith(CONTROL)]
    others = [row for row in rest if not row["name"].endswith(CONTROL)]
    return [*softmax, *ours, *controls[:1], *others[:OTHERS]]


def risk_coverage_figure(result: Mapping[str, Any]) -> Figure:
    """Returns A's risk among the accepted over the share that is accepted, from half of the samples on.

    Args:
        result: From `experiments.detection.measure_detection`.

    Reference:
        El-Yaniv and Wiener (2010), On the Foundations of Noise-free Selective Classification.
    """
    figure = _figure(drawn(result), "coverage", "risk", result["title"])
    (axes,) = figure.axes
    axes.set(xlabel="coverage: share of answers that is accepted", ylabel="risk: errors among the accepted")
    axes.set_xlim(0.5, 1)
    axes.set_ylim(0, None)
    return figure


def precision_recall_figure(result: Mapping[str, Any]) -> Figure:
    """Returns the precision of the flag over its recall of A's errors.

    Args:
        result: From `experiments.detection.measure_detection`.
    """
    figure = _figure(drawn(result), "recall", "precision", result["title"])
    (axes,) = figure.axes
    axes.set(xlabel="recall: share of A's errors that is flagged", ylabel="precision: errors among the flagged")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    return figure


def _figure(rows: Sequence[Mapping[str, Any]], x: str, y: str, title: str) -> Figure:
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.2 + 0.22 * len(rows)))
        axes = figure.subplots()
        for place, row in enumerate(rows):
            style = "solid" if row["ours"] else "dashed" if row["name"] != "softmax" else "dotted"
            colour = "#000000" if row["name"] == "softmax" else SHADES[(place - 1) % len(SHADES)]
            axes.plot(
                row["curves"][x], row["curves"][y], label=row["title"], color=colour, linestyle=style, linewidth=1.4
            )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
        axes.set_title(title)
        figure.legend(loc="outside lower left", ncols=1, fontsize=9)
    return figure
