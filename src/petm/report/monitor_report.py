"""The findings of monitoring in words, as a table and as a figure over time."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from petm._internal.files import plain
from petm._internal.storage import Located
from petm.data.reviewed import Reviewed
from petm.errors import ArgumentError
from petm.grading.production import Window, read_production
from petm.report.figures import BASE_COLOUR, STYLE, TEACHER_COLOUR, WIDTH
from petm.report.pages import share_with_interval
from petm.report.tables import MISSING, Table, percent
from petm.selective.drift import DRAWS, Drift, SuspicionProfile, alike, differences_of, drift_of
from petm.selective.guarantee import guarantee, short_percent
from petm.selective.metrics import Share
from petm.selective.monitoring import GuaranteeCheck, exact_share
from petm.selective.thresholds import Threshold, check_share

SIGNIFICANCE = 0.01
"""Significance level of the test for drift."""
UNLIKE = 0.001
"""Significance level of the test that the labelled are a random part of the trusted."""
_NAMED = 8
"""Largest number of windows whose files are named in the figure; more are numbered."""


@dataclass(frozen=True)
class WindowFigures:
    """One row of the table.

    Attributes:
        name: The file, or the number of the first row.
        rows: Number of rows.
        unreadable: Number of unreadable inputs among them.
        suspects: Share of suspects among the readable, with its Clopper-Pearson interval.
        probability: Mean probability of error; NaN if not calibrated.
        wrong: Share of errors among the labelled trusted, with its Clopper-Pearson interval.
        distance: Kolmogorov-Smirnov distance of suspicion from that in calibration; absent if unknown.
    """

    name: str
    rows: int
    unreadable: int
    suspects: Share
    probability: float
    wrong: Share
    distance: float | None


@dataclass(frozen=True)
class Monitoring:
    """The state of a grader on graded production data.

    Attributes:
        guarantee: Whether the guarantee holds.
        guaranteed: The guarantee in words.
        drift: Drift of suspicion; absent if the suspicion in calibration is unknown.
        drifted: Whether drift is detected.
        labelled_unlike: p-value of the test that the labelled trusted are as suspect as the other trusted; absent if
            there are too few.
        labels: Numbers of inputs in the labels files, of those whose row counts, of rows that hold an input again, of
            labelled rows that no audit drew, and of trusted rows on which nobody can tell.
        coverage: Share of the calibration samples that the threshold trusts; absent if unknown.
        windows: Figures by window, in the order of the rows.
        whole: Figures of all windows together.
        findings: The findings as sentences.
        warnings: Faults of the labels as sentences.
    """

    guarantee: GuaranteeCheck
    guaranteed: str
    drift: Drift | None
    drifted: bool
    labelled_unlike: float | None
    labels: Mapping[str, int]
    coverage: float | None
    windows: tuple[WindowFigures, ...]
    whole: WindowFigures
    findings: tuple[str, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Returns everything in JSON's types."""
        told: dict[str, Any] = plain(self)
        told["guarantee"]["classes"] = {str(label): plain(part) for label, part in self.guarantee.classes}
        return {"verdict": self.guarantee.verdict} | told


def monitor(
    threshold: Threshold,
    measured: Mapping[str, Any],
    grades: Sequence[str | Located],
    *,
    reviewed: Reviewed | None = None,
    classes: Sequence[str] = (),
    window: int | None = None,
    confidence: float | None = None,
    significance: float = SIGNIFICANCE,
) -> Monitoring:
    """Returns whether a grader's guarantee still holds on graded production data, and whether suspicion has drifted.

    The files are read once, in constant memory.

    Args:
        threshold: The grader's threshold.
        measured: The figures of its fit, with the suspicion of its calibration samples.
        grades: Files that ``petm grade`` has written, in the order of time.
        reviewed: What people decided (`petm.data.reviewed.read_reviewed`); it overrides true labels in the files.
        classes: Class names.
        window: Rows in a window; absent makes each file a window.
        confidence: Confidence of the intervals; absent takes that of the guarantee, or 0.95.
        significance: Significance level of the test for drift, at least 0.001.

    Raises:
        ArgumentError: An argument breaks its rule.
        DataError: A file cannot be read, holds no row, or was graded by another grader; or the labels say nothing about
            the trusted.
    """
    if not 10 / (1 + DRAWS) <= significance < 1:
        raise ArgumentError(f"significance: expected a number from {10 / (1 + DRAWS)} to 1, got {significance}.")
    if confidence is not None:
        check_share("confidence", confidence, below_1=True)
    profile = SuspicionProfile.from_measured(measured)
    found = read_production(grades, threshold, profile, reviewed=reviewed, window=window)
    check = found.labelled.check(confidence=confidence)
    whole = _together(found.windows)
    drift = drift_of(profile, whole.suspicion) if profile and whole.graded else None
    unlike = alike(*found.among_trusted) if profile else None
    counts = _counts_of(reviewed) | {"cannot_tell": found.untold}
    drawn = reviewed is not None and bool((reviewed.chance < 1).any())
    return Monitoring(
        check,
        guarantee(threshold),
        drift,
        drift is not None and drift.p_value <= significance,
        unlike,
        counts,
        threshold.coverage,
        tuple(_figures_of(each, profile, check.confidence) for each in found.windows),
        _figures_of(whole, profile, check.confidence),
        (*_of_guarantee(check, guarantee(threshold), classes, drawn=drawn), _of_drift(drift, significance)),
        tuple(_warnings(unlike, counts)),
    )


def _counts_of(reviewed: Reviewed | None) -> dict[str, int]:
    if reviewed is None:
        return dict.fromkeys(("entries", "matched", "of_several_rows", "undrawn"), 0)
    matched, undrawn = len(reviewed.places), reviewed.undrawn
    entries = matched + reviewed.unmatched + undrawn
    return {"entries": entries, "matched": matched, "of_several_rows": reviewed.repeated, "undrawn": undrawn}


def windows_table(found: Monitoring) -> Table:
    """Returns the windows as a table, with all of them together as the last row."""
    rows = (*found.windows, found.whole) if len(found.windows) > 1 else found.windows
    unread = found.whole.unreadable > 0
    level = short_percent(found.guarantee.confidence)
    return Table(
        "Over time",
        f"P(error): mean probability of error as graded. Wrong: among the labelled trusted, with {level} intervals. "
        f"Distance: of suspicion from calibration, 0 to 1.",
        ("Window", "Rows", *(("Unread",) if unread else ()), "Suspect", "P(error)", "Labelled", "Wrong", "Distance"),
        tuple(
            (
                Path(row.name).name,
                f"{row.rows:,}",
                *((f"{row.unreadable:,}",) if unread else ()),
                percent(row.suspects.value),
                percent(row.probability, 2),
                f"{row.wrong.of:,}",
                share_with_interval(plain(row.wrong)),
                MISSING if row.distance is None else f"{row.distance:.3f}",
            )
            for row in rows
        ),
    )


def monitor_figure(found: Monitoring) -> Figure:
    """Returns suspects, probability of error and errors among the labelled trusted, window by window."""
    places, windows, limit = range(len(found.windows)), found.windows, found.guarantee.limit
    expected = None if found.coverage is None else 1 - found.coverage
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 7.2))
        suspects, probability, wrong = figure.subplots(3, 1, sharex=True)
        _line(suspects, places, [row.suspects.value for row in windows], "Suspects", expected, "in calibration")
        _line(probability, places, [row.probability for row in windows], "Mean probability of error", None, "")
        if not found.guarantee.of.startswith("wrong"):
            limit = None  # it limits another share
        values = [row.wrong.value for row in windows]
        known = [place for place in places if windows[place].wrong.of]
        ends = [windows[place].wrong.low for place in known], [windows[place].wrong.high for place in known]
        _line(wrong, places, values, "Wrong among the labelled trusted", limit, "guaranteed at most", ends[1])
        wrong.vlines(known, *ends, color=TEACHER_COLOUR, alpha=0.45, linewidth=3)
        if not known:
            wrong.text(0.5, 0.5, "no label", transform=wrong.transAxes, ha="center", color="#444444")
        wrong.set_xlim(-0.5, len(windows) - 0.5)
        if len(windows) <= _NAMED:
            names = [Path(row.name).stem[-14:] for row in windows]
            wrong.set_xticks(places, names, rotation=30 if len(windows) > 3 else 0)
        else:
            wrong.xaxis.set_major_locator(MaxNLocator(integer=True))
            wrong.set_xlabel("window")
    return figure


def _line(
    axes: Axes,
    places: Sequence[int],
    values: Sequence[float],
    title: str,
    line: float | None,
    label: str,
    ends: Sequence[float] = (),
) -> None:
    axes.plot(places, values, color=TEACHER_COLOUR, marker="o", markersize=4, linewidth=1.2, clip_on=False, zorder=3)
    if line is not None:
        axes.axhline(line, color=BASE_COLOUR, linestyle="--", linewidth=1.2, label=f"{label} {short_percent(line)}")
        axes.legend(loc="upper right")
    highest = max([value for value in (*values, *ends, line or 0.0) if not math.isnan(value)], default=0.0)
    axes.set(title=title, ylim=(0, min(1.05, 1.35 * highest) or 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _together(windows: Sequence[Window]) -> Window:
    names = [field.name for field in fields(Window) if field.name != "name"]
    return Window("all", **{name: sum(getattr(each, name) for each in windows) for name in names})


def _figures_of(window: Window, profile: SuspicionProfile | None, confidence: float) -> WindowFigures:
    return WindowFigures(
        window.name,
        window.rows,
        window.unreadable,
        exact_share(window.suspects, window.graded, confidence=confidence),
        window.probability / window.with_probability if window.with_probability else math.nan,
        exact_share(window.wrong_trusted, window.labelled_trusted, confidence=confidence),
        float(abs(differences_of(profile, window.suspicion)).max()) if profile and window.graded else None,
    )


def _of_guarantee(check: GuaranteeCheck, guaranteed: str, classes: Sequence[str], *, drawn: bool) -> list[str]:
    seen = f"{check.found.count:,} of {check.found.of:,} labelled are {check.of}"
    if check.of.startswith("wrong"):
        seen = f"of {check.found.of:,} labelled trusted predictions {check.found.count:,} are wrong"
    if check.found.of:
        seen += f", {share_with_interval(plain(check.found))}"
    if check.verdict == "nothing guaranteed":
        return [guaranteed] + ([f"Beside it: {seen}."] if check.found.of else [])
    limit = "" if check.limit is None else f"{short_percent(check.limit)} at most was guaranteed"
    limit += " in each class" if check.classes else ""
    told = {
        "holds": f"The guarantee holds: {seen}; {limit}.",
        "violated": f"The guarantee is VIOLATED: {seen}; {limit}.",
        "cannot tell": f"It cannot be told whether the guarantee holds: {seen}; {limit}.",
    }[check.verdict]
    if not check.labelled_trusted:
        why = "no trusted prediction is labelled"
        if check.labelled_suspects:
            why = f"only suspects are labelled ({check.labelled_suspects:,}), which says nothing of the trusted"
        told = f"It cannot be told whether the guarantee holds: {why}; {limit}."
    sentences = [told]
    for label, part in check.classes:
        if part.verdict != "holds":
            name = classes[label] if label < len(classes) else str(label)
            sentences.append(
                f"Class {name}: {part.verdict}, {part.found.count:,} of {part.found.of:,} wrong"
                + (f", {share_with_interval(plain(part.found))}." if part.found.of else ".")
            )
    if check.verdict == "cannot tell":
        sentences.append(_remedy(check))
    if check.labelled_trusted and drawn:
        sentences.append("The labels are those of an audit: each counts by the chance with which its row was drawn.")
    elif check.labelled_trusted:
        sentences.append("This assumes that the labelled are a random part, not chosen by their inputs or grades.")
    return sentences


def _remedy(check: GuaranteeCheck) -> str:
    whose = "trusted predictions" if check.of.startswith("wrong") else "errors"
    if check.samples_needed is None:
        if check.classes:
            return "Label more, drawn at random, in every class."
        return "The share seen is the guaranteed one, so no number of labels would tell."
    seen = "at the error rate seen" if check.found.of else "at the error rate of the calibration samples"
    return f"About {check.samples_needed:,} labelled {whose}, drawn at random, would tell {seen}."


def _of_drift(drift: Drift | None, significance: float) -> str:
    if drift is None:
        return (
            "Whether suspicion has drifted cannot be told: the bundle does not hold the suspicion of its calibration "
            "samples, or nothing could be read. Fit again with this version."
        )
    figures = (
        f"Kolmogorov-Smirnov distance {drift.distance:.3f}, p = {drift.p_value:.4g}; {drift.samples:,} predictions "
        f"against {drift.calibration_samples:,} calibration samples"
    )
    if drift.p_value > significance:
        return f"No drift of suspicion is seen ({figures})."
    way = "higher" if drift.more_suspect else "lower"
    return f"Suspicion has DRIFTED, it is {way} than in calibration ({figures}; the most at {drift.at:.4g})."


def _warnings(unlike: float | None, counts: Mapping[str, int]) -> list[str]:
    told = []
    if unmatched := counts["entries"] - counts["matched"] - counts["undrawn"]:
        told.append(
            f"labels: expected inputs and rows as in the grades, got {unmatched:,} of "
            f"{counts['entries']:,} entries that name none of them. Compare the columns input and row."
        )
    if counts["undrawn"]:
        told.append(
            f"labels: expected labels of rows that were drawn, got {counts['undrawn']:,} of trusted rows that were "
            f"not, which somebody chose. These are left out."
        )
    if counts["cannot_tell"]:
        told.append(
            f"labels: expected an answer on each trusted row, got 'cannot tell' on {counts['cannot_tell']:,}. These "
            f"count as wrong, so that a guarantee holds for either answer."
        )
    if counts["of_several_rows"]:
        told.append(
            f"labels: expected one graded row for each, got {counts['of_several_rows']:,} rows with the input "
            f"of an earlier one. These are left out."
        )
    if unlike is not None and unlike < UNLIKE:
        told.append(
            f"labels: expected a random part of the trusted, got one whose suspicion differs from that of the other "
            f"trusted (chi-square, p = {unlike:.2g}), so its interval does not hold for them. Label a random sample."
        )
    return told
