"""``petm monitor``: whether the guaranteed risk still holds in production."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from petm._internal.texts import visible
from petm.cli import options

if TYPE_CHECKING:
    from petm.grading.provenance import Origin
    from petm.report.monitor_report import Monitoring
    from petm.selective.thresholds import Threshold

VIOLATED = 3
"""Exit code where the guarantee is violated; with --fail-on-drift also where suspicion has drifted."""


@click.command(
    epilog="Example: petm monitor my.petm monday.parquet tuesday.parquet --labels checked.csv -o watch",
    short_help="Tell whether the guaranteed risk still holds on graded data.",
)
@click.argument("bundle", type=options.PATH)
@click.argument("grades", nargs=-1, required=True)
@click.option(
    "--labels",
    "label_files",
    multiple=True,
    type=options.PATH,
    help="CSV, JSON Lines or Parquet with input[,row] or sha256, and label; or what petm serve writes; repeatable.",
)
@click.option("--window", type=int, help="Rows of one point in the figure. Absent: one point a file.")
@click.option("--confidence", type=float, help="Confidence of the intervals. Absent: that of the guarantee, or 0.95.")
@click.option("--significance", default=0.01, show_default=True, help="Probability of a false alarm of drift.")
@click.option(
    "--state",
    type=options.PATH,
    help="File that keeps all runs, so that a row counts once and verdicts hold for all looks; made where absent.",
)
@click.option("--since", help="Window from which on the risk is compared with that before.")
@click.option("--fail-on-drift", is_flag=True, help="Exit 3 also where suspicion has drifted.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for monitor.json, monitor.md, monitor.png and monitor.svg.",
)
@options.as_json
@options.config
def monitor(
    bundle: Path,
    grades: tuple[str, ...],
    label_files: tuple[Path, ...],
    window: int | None,
    confidence: float | None,
    significance: float,
    state: Path | None,
    since: str | None,
    fail_on_drift: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Tell whether the guaranteed risk still holds, from files that petm grade wrote in production.

    Where true labels are known, in the column true_label or from --labels, the error rate among the trusted and its
    exact interval are compared with the guarantee. The labelled must be a random sample of the trusted, or the
    suspects and those that petm grade --audit has drawn, which count by their chance; "cannot tell" counts as wrong.
    Without labels, suspicion in production is tested against that of the calibration samples. Verdicts may be looked
    at any day: --confidence and --significance are for all looks together, at files that grow or with --state.

    Exit codes: 3 where the guarantee is violated (with --fail-on-drift also where suspicion has drifted), 0 where it
    is not or cannot be decided, 1 where a file could not be read, 2 for a wrong option.
    """
    from petm.data.reviewed import read_reviewed
    from petm.report.monitor_report import monitor as compare

    threshold, measured, origin = _graded_by(bundle)
    classes, columns = origin.model.classes, origin.inputs.columns
    reviewed = read_reviewed(label_files, grades, classes, fewest=1, text_column=columns) if label_files else None
    found = compare(
        threshold,
        measured,
        grades,
        reviewed=reviewed,
        classes=classes,
        window=window,
        confidence=confidence,
        significance=significance,
        state=state,
        since=since,
    )
    code = VIOLATED if found.guarantee.verdict == "violated" or (found.drifted and fail_on_drift) else 0
    result = {**found.as_json(), "exit_code": code}
    if output is not None:
        _write(found, result, output)
    for warning in found.warnings:
        click.echo(f"Warning: {visible(warning)}", err=True)
    if as_json:
        options.print_json(result)
    else:
        _print(found, output)
    if code:
        sys.exit(code)


def _graded_by(bundle: Path) -> tuple["Threshold", Mapping[str, Any], "Origin"]:
    """Threshold, figures of the fit and origin of a bundle or exported graph."""
    if options.kind_of(bundle) == "calibration":
        from petm.grading.calibration_file import ScoresGrader, read_calibration

        made = ScoresGrader(read_calibration(bundle))
        return made.threshold, made.measured, made.origin
    if options.kind_of(bundle) == "graph":
        from petm.grading.onnx_grader import OnnxGrader

        graph = OnnxGrader(bundle)
        return graph.threshold, graph.measured, graph.origin
    from petm.grading.manifest import read_manifest

    manifest = read_manifest(bundle)
    return manifest.threshold, manifest.measured, manifest.origin


def _print(found: "Monitoring", output: Path | None) -> None:
    from rich.console import Console

    from petm.report.monitor_report import windows_table
    from petm.report.tables import terminal_table

    for sentence in found.findings:
        click.echo(visible(sentence))
    click.echo()
    Console().print(terminal_table(windows_table(found)))
    if output is not None:
        click.echo(f"Written: {output / 'monitor.png'} and, beside it, .svg, .md and .json", err=True)


def _write(found: "Monitoring", result: dict[str, Any], output: Path) -> None:
    from petm._internal.files import write_json, write_text, written_alone
    from petm._internal.texts import markdown
    from petm.report.figures import save_figure
    from petm.report.monitor_report import monitor_figure, windows_table
    from petm.report.tables import markdown_table

    table = windows_table(found)
    told = map(markdown, (*found.findings, *(f"Warning: {text}" for text in found.warnings)))
    words = [f"# {found.guarantee.verdict}", *told]
    with written_alone(output):  # as the files belong together
        write_text(output / "monitor.md", "\n\n".join([*words, markdown_table(table), table.caption]) + "\n")
        save_figure(monitor_figure(found), output, "monitor")
        write_json(output / "monitor.json", result)
