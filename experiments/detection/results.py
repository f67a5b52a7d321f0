"""What the detection benchmark found, as tables and pictures: of one base model, or of several on one page."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich.console import Console

from experiments.detection.measure import RESULT
from experiments.detection.methods import CONTROL
from petm._internal.files import write_text
from petm.errors import RunError
from petm.report.figures import STYLE, WIDTH, save_figure
from petm.report.tables import (
    BETTER,
    MISSING,
    UNCLEAR,
    WORSE,
    Table,
    markdown_table,
    percent,
    points,
    terminal_table,
)

PAGE = "detection.md"
FIGURES = ("risk_coverage", "precision_recall")
AXES = {
    "coverage": "coverage: share of answers that is accepted",
    "risk": "risk: errors among the accepted",
    "recall": "recall: share of the model's errors that is flagged",
    "precision": "precision: errors among the flagged",
}
SHADES = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#8C564B", "#7F7F7F", "#BCBD22")
OTHERS = 4
_READ = (
    "All methods grade the same answers of the same model. Values are means over the seeds; in brackets 95% bootstrap "
    "intervals over the test samples, and behind ± the standard deviation over the seeds. Differences are to the plain "
    "softmax on the same resamples. Lower is better for AURC, FPR95, E-AURC, AUGRC and the calibration error, higher "
    "for AUROC, AUPR-Error and recall."
)


def write_results(results: Sequence[Mapping[str, Any]], output: Path, prefixes: Sequence[str] = ("",)) -> None:
    """Writes ``detection.md`` of one or several results, and their figures as PNG and SVG.

    Args:
        results: From `experiments.detection.measure.measure_detection`, at least one.
        output: Made when absent.
        prefixes: Of the figures' names, one for each result.

    Raises:
        RunError: A file could not be written.
    """
    for result, prefix in zip(results, prefixes, strict=True):
        for name in FIGURES:
            save_figure(curve_figure(result, name), output, f"{prefix}{name}")
    write_text(output / PAGE, markdown(results, prefixes))


def merge_folders(folders: Sequence[Path], output: Path) -> None:
    """Writes one page of the results of several folders, with figures named after the folders.

    Args:
        folders: Each with a ``result.json``.
        output: Where the page and the figures go.

    Raises:
        RunError: A folder holds no result, or a file could not be written.
    """
    write_results([read_result(folder) for folder in folders], output, [f"{one.resolve().name}-" for one in folders])


def read_result(folder: Path) -> dict[str, Any]:
    """Returns the result that a folder holds.

    Raises:
        RunError: It holds none.
    """
    path = folder / RESULT
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if result["format"] != "petm detection result":
            raise KeyError("format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder}: expected the {RESULT} of a detection benchmark, got none. Measure it first."
        ) from error
    return result


def markdown(results: Sequence[Mapping[str, Any]], prefixes: Sequence[str]) -> str:
    """Returns the page.

    Args:
        results: At least one.
        prefixes: Of the figures' names, one for each result.
    """
    parts = ["# Detection of the model's errors", _READ]
    if len(results) > 1:
        parts.append(_section(summary_table(results), 2))
    for result, prefix in zip(results, prefixes, strict=True):
        parts += [f"## {result['title']}", about(result)]
        parts += [f"![{name.replace('_', ' ')}]({prefix}{name}.svg)" for name in FIGURES]
        parts += [_section(table, 3) for table in detection_tables(result)]
        if result["left_out"]:
            parts.append("\n".join(f"- Left out, {name}: {why}" for name, why in result["left_out"].items()))
    known = {row["title"]: row["definition"] for result in results for row in result["methods"]}
    parts += ["## What the methods are", "\n".join(f"- **{title}**: {text}." for title, text in known.items())]
    return "\n\n".join(parts) + "\n"


def print_results(result: Mapping[str, Any]) -> None:
    """Prints the most important columns on standard output."""
    console = Console()
    console.print(f"{result['title']}: {about(result)}", highlight=False, markup=False)
    console.print()
    console.print(terminal_table(short_table(result)), end="\n\n")
    for name, why in result["left_out"].items():
        console.print(f"Left out, {name}: {why}", highlight=False, markup=False)


def about(result: Mapping[str, Any]) -> str:
    """Returns what was graded, in a few sentences."""
    test, train, errors = result["data"]["test"], result["data"]["train"], result["errors"]
    return (
        f"A has {result['model']['parameters']:,} parameters. It is wrong on {errors['test']:,} of {test['samples']:,} "
        f"test samples ({percent(errors['test'] / test['samples'], 2)}) and on {errors['train']:,} of "
        f"{train['samples']:,} training samples."
    )


def detection_tables(result: Mapping[str, Any]) -> list[Table]:
    """Returns the tables of one result: detection, further metrics, cost, and the conditions where there are any."""
    tables = [detection_table(result), rivals_table(result), further_table(result), cost_table(result)]
    tables = [table for table in tables if table.rows]
    if result["conditions"]:
        tables += [conditions_table(result, name) for name in ("auroc", "aurc")]
    return tables


def summary_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Returns the AURC of each method on each the base model, with what it differs from the softmax by."""
    titles = {row["name"]: row["title"] for result in results for row in result["methods"]}
    held = [{row["name"]: row for row in result["methods"]} for result in results]

    def cell(row: Mapping[str, Any] | None) -> str:
        if row is None:
            return MISSING
        value = _thousandths(row["metrics"]["aurc"]["value"])
        return value if row["name"] == "softmax" else f"{value} ({_verdict(row['difference']['aurc'])})"

    return Table(
        "AURC ×10³ on every A",
        f"In brackets whether it is {BETTER} or {WORSE} than the softmax: only where the paired interval excludes 0.",
        ("Method", *(result["title"] for result in results)),
        tuple((title, *(cell(rows.get(name)) for rows in held)) for name, title in titles.items()),
    )


def short_table(result: Mapping[str, Any]) -> Table:
    """Returns what fits a terminal: AURC and AUROC without intervals, the verdict, and the passes."""
    return Table(
        "Detection",
        f"{BETTER.capitalize()} or {WORSE} than the softmax in AURC: only where the 95% paired interval excludes 0.",
        ("Method", "AURC ×10³", "AUROC %", "In AURC", "Passes"),
        tuple(
            (
                row["title"],
                _thousandths(row["metrics"]["aurc"]["value"]),
                _hundredths(row["metrics"]["auroc"]["value"]),
                MISSING if row["name"] == "softmax" else _verdict(row["difference"]["aurc"]),
                MISSING if row["cost"]["passes"] is None else f"{row['cost']['passes']:.2f}",
            )
            for row in result["methods"]
        ),
        words=frozenset({0, 3}),
    )


def detection_table(result: Mapping[str, Any]) -> Table:
    """Returns AURC and AUROC of every method, and what they differ from the softmax by."""
    rows = []
    for row in result["methods"]:
        aurc, auroc = row["metrics"]["aurc"], row["metrics"]["auroc"]
        softmax = row["name"] == "softmax"
        rows.append(
            (
                row["title"],
                f"{len(row['seeds'])}",
                _estimate(aurc, _thousandths),
                MISSING if softmax else _estimate(row["difference"]["aurc"], _signed_thousandths),
                _estimate(auroc, _hundredths),
                MISSING if softmax else _estimate(row["difference"]["auroc"], lambda value: points(value, 2)),
                MISSING if softmax else _verdict(row["difference"]["aurc"]),
            )
        )
    header = ("Method", "Seeds", "AURC ×10³", "minus softmax", "AUROC %", "minus softmax", "In AURC")
    return Table("Detection", "", header, tuple(rows), words=frozenset({0, 6}))


def rivals_table(result: Mapping[str, Any]) -> Table:
    """Returns what each second opinion differs by from the controls, and from more networks or views; maybe no row."""
    titles = {row["name"]: row["title"] for row in result["methods"]}
    rows = [
        (
            row["title"],
            titles[rival],
            _estimate(found["aurc"], _signed_thousandths),
            _estimate(found["auroc"], lambda value: points(value, 2)),
            _estimate(found["aupr_error"], lambda value: points(value, 1)),
            _verdict(found["aurc"]),
        )
        for row in result["methods"]
        for rival, found in row["against"].items()
    ]
    return Table(
        "Against controls, networks and views",
        "Second opinion minus rival, both as means over their seeds, on the same resamples.",
        ("Second opinion", "Rival", "AURC ×10³", "AUROC", "AUPR-Error", "In AURC"),
        tuple(rows),
        words=frozenset({0, 1, 5}),
    )


def further_table(result: Mapping[str, Any]) -> Table:
    """Returns the other metrics, the recall at the paper's precision, and the calibration error."""
    settings = result["settings"]
    rows = [
        (
            row["title"],
            _estimate(row["metrics"]["aupr_error"], _hundredths),
            _estimate(row["metrics"]["fpr95"], _hundredths),
            _estimate(row["metrics"]["eaurc"], _thousandths),
            _estimate(row["metrics"]["augrc"], _thousandths),
            _hundredths(row["recall_at_precision"]),
            _estimate(row["calibration_error"], _hundredths),
        )
        for row in result["methods"]
    ]
    precision = percent(settings["precision"], 2)
    return Table(
        "Further metrics",
        f"Recall: of the model's errors, at a precision of {precision}, the paper's; a dash where it is not reached. "
        f"Calibration error: of the probability of error, fitted on a random half of the test data and judged on the "
        f"other, over {settings['splits']} splits, with the standard deviation over these.",
        ("Method", "AUPR-Error %", "FPR95 %", "E-AURC ×10³", "AUGRC ×10³", f"Recall at {precision}", "Calibration %"),
        tuple(rows),
    )


def cost_table(result: Mapping[str, Any]) -> Table:
    """Returns what each method costs beside the base model."""
    parameters = result["model"]["parameters"]
    rows = []
    for row in result["methods"]:
        extra, passes, seconds = (row["cost"][name] for name in ("extra_parameters", "passes", "seconds"))
        rows.append(
            (
                row["title"],
                row["source"],
                f"{extra:,.0f}",
                percent(extra / parameters),
                MISSING if passes is None else f"{passes:.2f}",
                MISSING if seconds is None else f"{seconds:,.1f}",
            )
        )
    return Table(
        "Cost",
        "Extra parameters: numbers kept beside the model's weights, and their share of the model's. Passes: "
        "counted operations of a "
        "graded prediction over those of the model alone. Seconds: to fit once, the model's pass over the data "
        "for it included.",
        ("Method", "Source", "Extra parameters", "Share", "Passes", "Seconds"),
        tuple(rows),
        words=frozenset({0, 1}),
    )


def conditions_table(result: Mapping[str, Any], metric: str) -> Table:
    """Returns by how much each method differs from the softmax under each shift and attack.

    Args:
        result: With conditions.
        metric: ``auroc`` or ``aurc``.
    """
    names = list(result["conditions"])
    as_text = (lambda value: points(value, 1)) if metric == "auroc" else _signed_thousandths
    own = _tenths if metric == "auroc" else _thousandths
    softmax = next(row for row in result["methods"] if row["name"] == "softmax")
    rows = [
        ("the model's errors", *(percent(one["errors"] / one["samples"]) for one in result["conditions"].values())),
        ("Softmax itself", *(own(softmax["conditions"][name]["metrics"][metric]["value"]) for name in names)),
    ]
    for row in result["methods"]:
        if row["name"] != "softmax":
            found = [row["conditions"][name]["difference"][metric] for name in names]
            rows.append((row["title"], *(as_text(one["value"]) + _mark(one) for one in found)))
    title = "AUROC under shift and attack" if metric == "auroc" else "AURC ×10³ under shift and attack"
    samples = max(one["samples"] for one in result["conditions"].values())
    epsilon = result["settings"]["epsilon"]
    attack = f" The attacks change a value by at most {255 * epsilon:g}/255 of the range." if epsilon else ""
    unit = "percentage points" if metric == "auroc" else "thousandths"
    return Table(
        title,
        f"Minus the softmax, in {unit}, on {samples:,} test samples and for the first seed; * where the 95% paired "
        f"interval excludes 0. Methods are fitted as before, to data without any of this.{attack}",
        ("Method", *names),
        tuple(rows),
    )


def drawn(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the rows that are drawn: the softmax, the second opinions, their best control, and the four best others.

    The best are those of least AURC.

    Args:
        result: From `experiments.detection.measure.measure_detection`.
    """
    rows = result["methods"]
    softmax = [row for row in rows if row["name"] == "softmax"]
    ours = [row for row in rows if row["ours"]]
    rest = [row for row in rows if not row["ours"] and row["name"] != "softmax"]
    rest.sort(key=lambda row: float(row["metrics"]["aurc"]["value"]))
    controls = [row for row in rest if row["name"].endswith(CONTROL)]
    others = [row for row in rest if not row["name"].endswith(CONTROL)]
    return [*softmax, *ours, *controls[:1], *others[:OTHERS]]


def curve_figure(result: Mapping[str, Any], name: str) -> Figure:
    """Returns one of the `FIGURES`.

    ``risk_coverage`` is the base model's risk among the accepted over the share that is accepted, from half of the
    samples on; ``precision_recall`` the precision of the flag over its recall of the base model's errors.

    Args:
        result: From `experiments.detection.measure.measure_detection`.
        name: Which one.

    Reference:
        El-Yaniv and Wiener (2010), On the Foundations of Noise-free Selective Classification.
    """
    rows, (y, x) = drawn(result), name.split("_")
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
        axes.set(title=result["title"], xlabel=AXES[x], ylabel=AXES[y])
        axes.set_xlim(0.5 if x == "coverage" else 0, 1)
        axes.set_ylim(0, 1 if y == "precision" else None)
        figure.legend(loc="outside lower left", ncols=1, fontsize=9)
    return figure


def _section(table: Table, level: int) -> str:
    return f"{'#' * level} {table.title}\n\n{markdown_table(table)}\n\n{table.caption}".rstrip()


def _verdict(found: Mapping[str, Any]) -> str:
    """What a difference in AURC says, of which less is better."""
    if not _excludes_0(found):
        return UNCLEAR
    return BETTER if found["value"] < 0 else WORSE


def _excludes_0(found: Mapping[str, Any]) -> bool:
    low, high = found["low"], found["high"]
    return low is not None and high is not None and (low > 0 or high < 0)


def _mark(found: Mapping[str, Any]) -> str:
    return "*" if _excludes_0(found) else ""


def _estimate(found: Mapping[str, Any], as_text: Any) -> str:
    """A value with its interval, and the spread over seeds, as far as there are any."""
    text = str(as_text(found["value"]))
    if found["value"] is None:
        return text
    if found.get("low") is not None:
        text += f" ({as_text(found['low'])} to {as_text(found['high'])})"
    if found.get("spread") is not None:
        text += f" ±{as_text(found['spread'])}"
    return text


def _thousandths(value: float | None) -> str:
    """With three digits: an AURC of the base model on MNIST is below 0.001, on harder data a hundred times that."""
    if value is None:
        return MISSING
    return f"{1000 * value:.{_digits(1000 * value)}f}".replace("-", "−")


def _signed_thousandths(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{1000 * value:+z.{3 if abs(value) < 0.01 else 2}f}".replace("-", "−")


def _hundredths(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.2f}"


def _tenths(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def _digits(value: float) -> int:
    return 3 if value == 0 else max(1, min(3, 2 - math.floor(math.log10(abs(value)))))
