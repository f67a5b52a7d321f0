"""The findings of monitoring in words, as a table and as a figure over time."""

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from petm._internal.files import plain, written_alone
from petm._internal.storage import Located
from petm.data.labels import UNLABELLED
from petm.data.reviewed import Reviewed
from petm.errors import ArgumentError
from petm.grading.production import Production, Window, no_production, read_production
from petm.grading.watch_state import load_state, save_state
from petm.report.figures import BASE_COLOUR, STYLE, TEACHER_COLOUR, WIDTH
from petm.report.pages import share_with_interval
from petm.report.tables import MISSING, Table, percent
from petm.selective.bootstrap import Estimate
from petm.selective.drift import DRAWS, Drift, SuspicionProfile, alike, differences_of, drift_of, log_drift
from petm.selective.estimated import ClassFigures, class_figures, estimate_gap, estimated_accuracy
from petm.selective.guarantee import guarantee, short_percent
from petm.selective.metrics import Share
from petm.selective.monitoring import GuaranteeCheck, exact_share
from petm.selective.sequential import sequential_difference, sequential_share
from petm.selective.thresholds import Threshold, check_share

SIGNIFICANCE = 0.01
"""Significance level of the test for drift."""
UNLIKE = 0.001
"""Significance level of the test that the labelled are a random part of the trusted."""
ANY_TIME = "The verdict and its interval are valid at any time: look again as labels come, or after each."
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
        estimated_accuracy: 1 - ``probability``, with the interval that it has if the probabilities are right.
        gap: Estimated less true accuracy on the labelled rows, with its interval.
        wrong: Share of errors among the labelled trusted, with its Clopper-Pearson interval, for one look.
        so_far: The share that is guaranteed, up to the end of this window, with its interval for all looks.
        distance: Kolmogorov-Smirnov distance of suspicion from that in calibration; absent if unknown.
    """

    name: str
    rows: int
    unreadable: int
    suspects: Share
    probability: float
    estimated_accuracy: Estimate
    gap: Estimate
    wrong: Share
    so_far: Share
    distance: float | None


@dataclass(frozen=True)
class Monitoring:
    """The state of a grader on graded production data.

    Attributes:
        guarantee: Whether the guarantee holds.
        guaranteed: The guarantee in words.
        drift: Drift of suspicion; absent if the suspicion in calibration is unknown.
        drift_evidence: The e-value against "no drift", for any number of looks; absent as ``drift`` is.
        drifted: Whether drift is detected.
        labelled_unlike: p-value of the test that the labelled trusted are as suspect as the other trusted; absent if
            there are too few.
        labels: Numbers of inputs in the labels files, of those whose row counts, of rows that hold an input again, of
            labelled rows that no audit drew, and of trusted rows on which nobody can tell.
        difference: The guaranteed share from the window ``since`` on less that before; absent where none was asked.
        class_figures: Precision, recall and F1 of each class, where there are names.
        again: Number of rows that were seen before, and count once.
        coverage: Share of the calibration samples that the threshold trusts; absent if unknown.
        windows: Figures by window, in the order of the rows.
        whole: Figures of all windows together.
        findings: The findings as sentences.
        warnings: Faults of the labels as sentences.
    """

    guarantee: GuaranteeCheck
    guaranteed: str
    drift: Drift | None
    drift_evidence: float | None
    drifted: bool
    labelled_unlike: float | None
    labels: Mapping[str, int]
    difference: Share | None
    class_figures: tuple[ClassFigures, ...]
    again: int
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
    state: Path | None = None,
    since: str | None = None,
) -> Monitoring:
    """Returns whether a grader's guarantee still holds on graded production data, and whether suspicion has drifted.

    The files are read once; of unlabelled rows nothing is held but counts. Verdicts are valid at any time: however
    often one looks at labels that grow, one that is false comes with probability ``1 - confidence`` at most, and a
    false alarm of drift with ``significance``. Windows that replace each other need a ``state`` for that.

    Args:
        threshold: The grader's threshold.
        measured: The figures of its fit, with the suspicion of its calibration samples.
        grades: Files that ``petm grade`` has written, in the order of time.
        reviewed: What people decided (`petm.data.reviewed.read_reviewed`); it overrides true labels in the files.
        classes: Class names.
        window: Rows in a window; absent makes each file a window.
        confidence: Confidence of the intervals; absent takes that of the guarantee, or 0.95.
        significance: Significance level of the test for drift, at least 0.001.
        state: File in which the counts of all runs are kept, and which rows they hold; made where it is absent. A row
            that comes again changes nothing but its label.
        since: Name of the window from which on the risk is compared with that before.

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
    begun = no_production(profile, len(classes), remember=state is not None)
    calibrated = [measured.get("suspicion_quantiles"), measured.get("suspicion_ranks")]
    settings = {
        "grader": [threshold.as_json(), *calibrated, [*classes]],
        "confidence": confidence,
        "significance": significance,
        "window": window,
    }
    with nullcontext() if state is None else written_alone(state):
        if state is not None:
            begun = load_state(state, settings, begun)
        found = read_production(
            grades, threshold, profile, reviewed=reviewed, window=window, classes=len(classes), begun=begun
        )
        if state is not None:
            save_state(found, state, settings)
    labelled, names = found.counts(threshold), [Path(each.name).name for each in found.windows]
    check, blocks = labelled.check(confidence=confidence, at_any_time=True), labelled.blocks()
    blocks = np.pad(blocks, ((0, len(names) - len(blocks)), (0, 0)))
    difference = None if since is None else _difference(blocks, names, since, check.confidence)
    whole = _together(found.windows)
    drift = evidence = None
    if profile and whole.graded:
        drift = drift_of(profile, whole.suspicion)
        logarithm, drifted_since = log_drift(profile, [each.suspicion for each in found.windows])
        evidence = math.exp(min(logarithm, 600))  # within a float
    drifted = evidence is not None and evidence >= 1 / significance
    unlike = alike(*found.among_trusted()) if profile else None
    counts = _counts_of(reviewed, state is not None) | {"cannot_tell": found.untold}
    drawn = bool((found.labelled["chance"] < 1).any())
    figures = _figures(found, profile, blocks, check.confidence)
    told = found.labelled[found.labelled["truth"] != UNLABELLED]
    members = tuple(threshold.groups.members) if threshold.groups else ()
    since_name = names[check.since] if check.since and check.verdict == "violated" else None
    return Monitoring(
        check,
        guarantee(threshold),
        drift,
        evidence,
        drifted,
        unlike,
        counts,
        difference,
        class_figures(classes, found.predicted, told["predicted"], told["truth"], told["chance"]),
        found.again,
        threshold.coverage,
        figures[:-1],
        figures[-1],
        (
            *_of_guarantee(check, guarantee(threshold), classes, members, drawn=drawn, since=since_name),
            *_of_difference(difference, since),
            _of_drift(drift, evidence, names[drifted_since] if drifted and drifted_since else None, drifted),
            *_of_accuracy(figures[-1]),
            *([f"{found.again:,} rows were seen before, and count once."] if found.again else []),
        ),
        (*_warnings(unlike, counts), *_of_copies(found.labelled["id"])),
    )


def _difference(blocks: NDArray[np.int64], names: Sequence[str], since: str, confidence: float) -> Share:
    """The share of the windows from ``since`` on less that of those before."""
    if Path(since).name not in names[1:]:
        raise ArgumentError(
            f"since: expected the name of a window after the first, got {since!r}. The last is {names[-1]}."
        )
    place = names.index(Path(since).name, 1)
    before, after = (tuple(part.sum(0).tolist()) for part in (blocks[:place], blocks[place:]))
    return sequential_difference(before, after, confidence=confidence)


def _counts_of(reviewed: Reviewed | None, goes_on: bool) -> dict[str, int]:
    if reviewed is None:
        return dict.fromkeys(("entries", "matched", "of_several_rows", "undrawn"), 0)
    matched, undrawn = len(reviewed.places), reviewed.undrawn
    # A state goes on where labels of earlier files remain in the file of labels.
    entries = matched + undrawn + (0 if goes_on else reviewed.unmatched)
    return {"entries": entries, "matched": matched, "of_several_rows": reviewed.repeated, "undrawn": undrawn}


def windows_table(found: Monitoring) -> Table:
    """Returns the windows as a table, with all of them together as the last row."""
    rows = (*found.windows, found.whole) if len(found.windows) > 1 else found.windows
    unread = found.whole.unreadable > 0
    level = short_percent(found.guarantee.confidence)
    return Table(
        "Over time",
        f"Est. accuracy: by the probabilities of error, as right as these are. Gap: of it to the true accuracy of the "
        f"labelled, in points. Wrong: among the labelled trusted. {level} intervals, each for one look. "
        f"Distance: of suspicion from calibration, 0 to 1.",
        (
            *("Window", "Rows", *(("Unread",) if unread else ()), "Suspect", "Est. accuracy", "Gap"),
            *("Labelled", "Wrong", "Distance"),
        ),
        tuple(
            (
                Path(row.name).name,
                f"{row.rows:,}",
                *((f"{row.unreadable:,}",) if unread else ()),
                percent(row.suspects.value),
                percent(row.estimated_accuracy.value),
                MISSING if math.isnan(row.gap.value) else f"{100 * row.gap.value:+.1f}",
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
        of = found.guarantee.of
        title = f"{of[0].upper()}{of[1:]} so far, {short_percent(found.guarantee.confidence)} band"
        known = [place for place in places if windows[place].so_far.of]
        ends = [windows[place].so_far.low for place in known], [windows[place].so_far.high for place in known]
        seen = [windows[place].so_far.value for place in known]
        _line(wrong, known, seen, title, limit, "guaranteed at most", ends[1][-1:])
        wrong.fill_between(known, *ends, color=TEACHER_COLOUR, alpha=0.2, linewidth=0)
        wrong.vlines(known[-1:], *(each[-1:] for each in ends), color=TEACHER_COLOUR, alpha=0.45, linewidth=3)
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


def _figures(
    found: Production, profile: SuspicionProfile | None, blocks: NDArray[np.int64], confidence: float
) -> tuple[WindowFigures, ...]:
    """Figures by window, and of all together."""
    rows, wrong, so_far = found.labelled, found.wrong, blocks.cumsum(0)
    ends = np.searchsorted(rows["window"], np.arange(len(found.windows) + 1))
    parts = [*(slice(*pair) for pair in itertools.pairwise(ends.tolist())), slice(None)]
    told = []
    for number, (window, part) in enumerate(zip((*found.windows, _together(found.windows)), parts, strict=True)):
        mine, trusted = rows[part], rows["trusted"][part] > 0
        sure = mine["truth"] != UNLABELLED
        told.append(
            WindowFigures(
                window.name,
                window.rows,
                window.unreadable,
                exact_share(window.suspects, window.graded, confidence=confidence),
                window.probability / window.with_probability if window.with_probability else math.nan,
                estimated_accuracy(window.probability, window.variance, window.with_probability, confidence=confidence),
                estimate_gap(mine["probability"][sure], wrong[part][sure], mine["chance"][sure], confidence=confidence),
                exact_share(int((wrong[part] & trusted).sum()), int(trusted.sum()), confidence=confidence),
                sequential_share(*so_far[min(number, len(so_far) - 1)].tolist(), confidence=confidence),
                float(abs(differences_of(profile, window.suspicion)).max()) if profile and window.graded else None,
            )
        )
    return tuple(told)


def _of_guarantee(
    check: GuaranteeCheck,
    guaranteed: str,
    classes: Sequence[str],
    groups: Sequence[str],
    *,
    drawn: bool,
    since: str | None,
) -> list[str]:
    seen = f"{check.found.count:,} of {check.found.of:,} labelled are {check.of}"
    if check.of.startswith("wrong"):
        seen = f"of {check.found.of:,} labelled trusted predictions {check.found.count:,} are wrong"
    if check.found.of:
        seen += f", {share_with_interval(plain(check.found))}"
    if check.verdict == "nothing guaranteed":
        return [guaranteed] + ([f"Beside it: {seen}."] if check.found.of else [])
    limit = "" if check.limit is None else f"{short_percent(check.limit)} at most was guaranteed"
    kind = "group" if groups else "class"
    limit += f" in each {kind}" if check.classes else ""
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
    if since is not None:
        sentences.append(f"The evidence is greatest since {since}.")
    if check.labelled_trusted:
        sentences.append(ANY_TIME)
    for label, part in check.classes:
        if groups or part.verdict != "holds":
            names = groups or classes
            name = names[label] if label < len(names) else str(label)
            sentences.append(
                f"{kind.capitalize()} {name}: {part.verdict}, {part.found.count:,} of {part.found.of:,} wrong"
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
            return "Label more, drawn at random, in each of them."
        return "The share seen is the guaranteed one, so no number of labels would tell."
    seen = "at the error rate seen" if check.found.of else "at the error rate of the calibration samples"
    return f"About {check.samples_needed:,} labelled {whose}, drawn at random, would tell {seen}."


def _of_difference(difference: Share | None, since: str | None) -> list[str]:
    if difference is None:
        return []
    if math.isnan(difference.value):
        return [f"No difference since {since} can be told: labels are missing before it or after."]
    low, value, high = (f"{100 * each:+.1f}" for each in (difference.low, difference.value, difference.high))
    return [f"Since {since} the share differs by {value} percentage points ({low} to {high}, for all looks)."]


def _of_accuracy(whole: WindowFigures) -> list[str]:
    if math.isnan(whole.probability):
        return []
    told = f"Estimated accuracy {share_with_interval(plain(whole.estimated_accuracy))}, if the probabilities are right"
    if math.isnan(whole.gap.value):
        return [f"{told}; without labels nobody knows whether they are."]
    low, value, high = (f"{100 * each:+.1f}" for each in (whole.gap.low, whole.gap.value, whole.gap.high))
    return [f"{told}; on the labelled the estimate is off by {value} percentage points ({low} to {high})."]


def _of_drift(drift: Drift | None, evidence: float | None, since: str | None, drifted: bool) -> str:
    if drift is None or evidence is None:
        return (
            "Whether suspicion has drifted cannot be told: the bundle does not hold the suspicion of its calibration "
            "samples, or nothing could be read. Fit again with this version."
        )
    figures = (
        f"Kolmogorov-Smirnov distance {drift.distance:.3f}, p = {min(1, 1 / evidence):.2g} for all looks; "
        f"{drift.samples:,} predictions against {drift.calibration_samples:,} calibration samples"
    )
    if not drifted:
        return f"No drift of suspicion is seen ({figures})."
    way = "higher" if drift.more_suspect else "lower"
    start = "" if since is None else f" since {since}"
    return f"Suspicion has DRIFTED{start}, it is {way} than in calibration ({figures}; the most at {drift.at:.4g})."


def _of_copies(ids: NDArray[np.uint64]) -> list[str]:
    """That labelled rows are there several times."""
    copies = len(ids) - len(np.unique(ids))
    if not copies:
        return []
    return [
        f"expected each labelled row once, got {copies:,} again (the same input, row and content), which count again, "
        f"so that intervals are too short. Leave the copies out, or use --state, which counts a row once."
    ]


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
