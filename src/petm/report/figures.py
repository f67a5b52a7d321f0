"""The figures: alpha sweep, weight drift, reliability, risk-coverage curves."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from petm._internal.files import write_atomically, write_text
from petm.selective.curves import Bin, Judgement, RiskCurve

if TYPE_CHECKING:
    from petm.adapter.weight_drift import LayerDrift

BASE_COLOUR, TEACHER_COLOUR = "#0072B2", "#D55E00"
"""Blue and red as in the paper, in the shades of Okabe and Ito (2008) that colour-blind readers tell apart."""

STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
    "font.size": 11,
    "text.parse_math": False,  # names may hold dollar signs
    "grid.color": "#E6E6E6",
    "legend.frameon": False,
}
"""Matplotlib's settings for every figure."""

WIDTH = 6.4
"""Inches. On a phone, 11 pt text on this width is still 7 pt."""

_ROOT_TICKS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
"""Labels of a square-root axis."""

_POINTS: dict[str, Any] = {"linestyle": "none", "clip_on": False, "zorder": 3}


def alpha_figure(alphas: ArrayLike, fidelity_to_base: ArrayLike, fidelity_to_teacher: ArrayLike) -> Figure:
    """Returns the fidelity of the adapted model to the base model and to the teacher over alpha.

    Args:
        alphas: Float ``(n,)``, ascending.
        fidelity_to_base: Float ``(n,)`` in [0, 1].
        fidelity_to_teacher: Float ``(n,)`` in [0, 1].

    Reference:
        Ko et al. 2025 (LoRA-PETM), section 3.2 and Table 1.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4))
        axes = figure.subplots()
        axes.plot(alphas, fidelity_to_base, marker="o", color=BASE_COLOUR, label="to the model")
        axes.plot(alphas, fidelity_to_teacher, marker="^", color=TEACHER_COLOUR, label="to the teacher", linestyle="--")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set(title="Fidelity of W₀ + α BA", xlabel="α")
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def drift_figure(drift: "Sequence[LayerDrift]") -> Figure:
    """Returns a bar for each layer's relative weight drift, with the rank that holds 90 % of its energy."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.4 + 0.42 * len(drift)))
        axes = figure.subplots()
        # An infinite drift (of a zero weight) has no bar; its label says so.
        lengths = [entry.relative_norm if math.isfinite(entry.relative_norm) else 0.0 for entry in drift]
        bars = axes.barh([entry.layer for entry in drift], lengths, color=BASE_COLOUR, height=0.65)
        axes.bar_label(bars, [_drift_label(entry) for entry in drift], padding=5, fontsize=10)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlim(0, 1.5 * max(lengths, default=0.0) or 1.0)  # leaves room for the labels
        axes.set_xlabel("‖W' − W₀‖ / ‖W₀‖")
        head(axes, "Weight drift from the model to the teacher", "beside each bar the rank\nfor 90% of its energy")
    return figure


def reliability_figure(bins: Sequence[Bin]) -> Figure:
    """Returns the observed share of errors over the predicted probability of error, with 95 % intervals.

    Both axes have a square-root scale, which gives room to small probabilities and keeps the diagonal straight.

    Args:
        bins: From `petm.selective.curves.reliability`, at least one.

    Reference:
        Niculescu-Mizil and Caruana (2005), Predicting Good Probabilities with Supervised Learning.
    """
    predicted, observed = [part.predicted for part in bins], [part.observed for part in bins]
    ends = [part.low for part in observed], [part.high for part in observed]
    top = min(1.0, 1.08 * max(*predicted, *ends[1]))
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 5))
        axes = figure.subplots()
        axes.set_xscale("function", functions=(_root, np.square))
        axes.set_yscale("function", functions=(_root, np.square))
        axes.plot([0, top], [0, top], color="#888888", linestyle="--", linewidth=1, label="as predicted")
        axes.vlines(predicted, *ends, color=TEACHER_COLOUR, alpha=0.45, linewidth=3, label="95% interval")
        shares = [part.value for part in observed]
        axes.plot(predicted, shares, color=TEACHER_COLOUR, marker="o", label="observed", **_POINTS)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator([place for place in _ROOT_TICKS if place <= top]))
            axis.set_major_formatter(PercentFormatter(1))
        axes.set(xlim=(0, top), ylim=(0, top))
        axes.set(xlabel="predicted probability of error", ylabel="observed share of errors", title="Reliability")
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def risk_coverage_figure(
    lines: Mapping[str, RiskCurve], judgement: Judgement | None = None, chosen: str = ""
) -> Figure:
    """Returns the risk over coverage of a suspicion and of its rivals, with the chosen point marked.

    The risk axis is cut to the values from a coverage of a tenth on; below, the risk depends on a few samples.

    Args:
        lines: One to three curves by name, the suspicion's first.
        judgement: Coverage and risk of the chosen threshold; not marked if absent, or if nothing is trusted.
        chosen: Name of the chosen point.

    Reference:
        El-Yaniv and Wiener (2010), On the Foundations of Noise-free Selective Classification.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.4))
        axes = figure.subplots()
        looks = ((TEACHER_COLOUR, "-"), (BASE_COLOUR, "--"), ("#595959", ":"))
        for (name, line), (colour, style) in zip(lines.items(), looks, strict=False):
            axes.plot(line.coverage, line.risk, color=colour, linestyle=style, linewidth=1.6, label=name)
        tops = [line.risk[line.coverage >= 0.1].max() for line in lines.values()]
        if judgement is not None and judgement.risk.of:
            tops.append(judgement.risk.value)
            point = judgement.coverage, judgement.risk.value
            axes.plot(*point, color="#1C2127", marker="D", markersize=7, label=chosen, **_POINTS)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
        axes.set(xlim=(0, 1), ylim=(0, 1.1 * max(tops) or 1))
        axes.set(xlabel="coverage: share that is trusted", ylabel="risk: errors among the trusted", title="Risk")
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def save_figure(figure: Figure, folder: Path, stem: str) -> tuple[Path, Path]:
    """Writes a figure as PNG (150 dpi) and as SVG, each whole or not at all, clears it, and returns both paths.

    Args:
        figure: The figure.
        folder: The folder, made if absent.
        stem: File name without suffix.

    Raises:
        RunError: A file could not be written.
    """
    png, svg = folder / f"{stem}.png", folder / f"{stem}.svg"
    write_atomically(png, lambda path: figure.savefig(path, format="png", dpi=150))
    write_text(svg, svg_of(figure, stem))
    figure.clear()
    return png, svg


def svg_of(figure: Figure, salt: str) -> str:
    """Returns a figure as the text of an SVG file, without a date; the same figure and salt give the same text."""
    held = io.StringIO()
    with rc_context({"svg.hashsalt": salt}):
        figure.savefig(held, format="svg", metadata={"Date": None})
    return held.getvalue()


def _root(values: ArrayLike) -> NDArray[np.float64]:
    return np.sqrt(np.maximum(values, 0.0))


def head(axes: Axes, title: str, note: str) -> None:
    """Sets the title of a panel, and a note below it."""
    axes.set_title(title, pad=12 + 13 * (1 + note.count("\n")))
    axes.annotate(note, (0, 1), (0, 7), xycoords="axes fraction", textcoords="offset points", color="#444444")


def _drift_label(entry: "LayerDrift") -> str:
    if entry.rank_90 == 0:
        return "no drift"
    note = f"rank {entry.rank_90} of {entry.full_rank}"
    return note if math.isfinite(entry.relative_norm) else f"{note}, W₀ = 0"
