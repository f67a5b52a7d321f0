"""What the detection benchmark found, as tables and pictures: of one A, or of several on one page."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.detection import RESULT
from experiments.detection_figures import precision_recall_figure, risk_coverage_figure
from petm._internal.files import write_text
from petm.errors import RunError
from petm.report.figures import save_figure
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
_FIGURES = {"risk_coverage": risk_coverage_figure, "precision_recall": precision_recall_figure}
_READ = (
    "All methods grade the same answers of the same A. Values are means over the seeds; in brackets 95% bootstrap "
    "intervals over the test samples, and behind ± the standard deviation over the seeds. Differences are to the plain "
    "softmax on the same resamples. Lower is better for AURC, FPR95, E-AURC, AUGRC and the calibration error, higher "
    "for AUROC, AUPR-Error and recall."
)


def write_results(result: Mapping[str, Any], folder: Path) -> None:
    """Writes ``detection.md`` and the two figures, as PNG and SVG, beside ``result.json``.

    Args:
        result: From `experiments.detection.measure_detection`.
        folder: Of the benchmark.

    Raises:
        RunError: A file could not be written.
    """
    merge([result], [""], folder)


def merge_folders(folders: Sequence[Path], output: Path) -> list[dict[str, Any]]:
    """Writes one page of the results of several folders, with figures named after the folders; returns the results.

    Args:
        folders: Each with a ``result.json``.
        output: Where the page and the figures go.

    Raises:
        RunError: A folder holds no result, or a file could not be written.
    """
    results = [read_result(folder) for folder in folders]
    merge(results, [f"{folder.resolve().name}-" for folder in folders], output)
    return results


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
            f"{folder}: expected the {RESULT} of a detection benchmark, got none. Run petm benchmark detection there."
        ) from error
    return result


def merge(results: Sequence[Mapping[str, Any]], prefixes: Sequence[str], output: Path) -> None:
    """Writes the page of several results and their figures.

    Args:
        results: At least one.
        prefixes: Of the figures' names, one for each result.
        output: Made when absent.
    """
    for result, prefix in zip(results, prefixes, strict=True):
        for name, draw in _FIGURES.items():
            save_figure(draw(result), output, f"{prefix}{name}")
    write_text(output / PAGE, markdown(results, prefixes))


def markdown(results: Sequence[Mapping[str, Any]], prefixes: Sequence[str]) -> str:
    """Returns the page.

    Args:
        results: At least one.
        prefixes: Of the figures' names, one for each result.
    """
    parts = ["# Detection of A's errors", _READ]
    if len(results) > 1:
        parts.append(_section(summary_table(results), 2))
    for result, prefix in zip(results, prefixes, strict=True):
        parts += [f"## {result['title']}", about(result)]
        parts += [f"![{name.replace('_', ' ')}]({prefix}{name}.svg)" for name in _FIGURES]
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
    """Returns the AURC of each method on each A, with what it differs from the softmax by."""
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
        f"Recall: of A's errors, at a precision of {precision}, the paper's; a dash where it is not reached. "
        f"Calibration error: of the probability of error, fitted on a random half of the test data and judged on the "
        f"other, over {settings['splits']} splits, with the standard deviation over these.",
        ("Method", "AUPR-Error %", "FPR95 %", "E-AURC ×10³", "AUGRC ×10³", f"Recall at {precision}", "Calibration %"),
        tuple(rows),
    )


def cost_table(result: Mapping[str, Any]) -> Table:
    """Returns what each method costs beside A."""
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
        "Extra parameters: numbers kept beside A's weights, and their share of A's. Passes: counted operations of a "
        "graded prediction over those of A alone. Seconds: to fit once, A's pass over the data for it included.",
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
        ("A's errors", *(percent(one["errors"] / one["samples"]) for one in result["conditions"].values())),
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
    """With three digits: an AURC of A on MNIST is below 0.001, on harder data a hundred times that."""
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
