"""``petm calibrate``: a threshold and a probability of error for scores, without any network."""

import time
from pathlib import Path
from typing import Any

import click

from petm.cli import options
from petm.errors import ArgumentError
from petm.selective.sets import COVERAGE, check_coverage


@click.command(
    epilog="Example: petm calibrate scores.csv --prediction-column answer --score-column logprob --max-risk 0.05 "
    "-o my.calibration",
    short_help="Set a threshold for scores, without a network.",
)
@click.argument("tables", nargs=-1, required=True)
@click.option("--label-column", default="label", show_default=True, help="Column of true classes.")
@click.option(
    "--probability-columns",
    type=options.Names(),
    default=(),
    help="Columns of class probabilities, separated by commas, or one prefix such as p_: their names are the classes.",
)
@click.option("--prediction-column", help="Or the column of predicted classes, beside --score-column.")
@click.option(
    "--score-column",
    "score_columns",
    multiple=True,
    help="Column of a score, higher is surer; repeatable: what several bring together is compared.",
)
@click.option("--higher-is-suspect", is_flag=True, help="A higher score is less sure.")
@options.skip_rows
@options.target("  [default: 0.9]")
@click.option(
    "--set-coverage",
    type=float,
    default=COVERAGE,
    show_default=True,
    help="With class probabilities: probability with which the candidates of a prediction hold its true class.",
)
@click.option(
    "--group-column",
    "group_columns",
    multiple=True,
    help="Guarantee --max-risk in each group, such as each value of a column site; repeatable, groups may overlap.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="HTML page about the result: figures with intervals, curves, groups.",
)
@options.output(text="The file to write, whose name ends in .calibration.")
@options.seed
@options.overwrite
@options.as_json
@options.config
def calibrate(
    tables: tuple[str, ...],
    label_column: str,
    probability_columns: tuple[str, ...],
    prediction_column: str | None,
    score_columns: tuple[str, ...],
    higher_is_suspect: bool,
    skip_bad: bool,
    set_coverage: float,
    report: Path | None,
    output: Path,
    seed: int,
    overwrite: bool,
    as_json: bool,
    **target_options: Any,
) -> None:
    """Set a threshold and a probability of error for scores that come from elsewhere: no network is needed.

    TABLES are CSV, Parquet or JSON Lines with a true class in each row and with class probabilities, or with a
    prediction and one or more scores. The result is used as a bundle is: by petm grade, monitor, recalibrate and
    inspect. Labels must be ones that the model and the scores were not fitted to.
    """
    from petm.selective.targets import target_of

    started = time.monotonic()
    try:
        target = target_of(**target_options)
        check_coverage(set_coverage, "set_coverage")
    except ArgumentError as error:
        raise click.UsageError(str(error)) from error
    if bool(probability_columns) == (prediction_column is not None) or not (probability_columns or score_columns):
        raise click.UsageError(
            "--probability-columns: expected these, or --prediction-column with --score-column. Name one of both."
        )
    from petm._internal.files import check_new_file
    from petm.grading.grade_files import check_apart

    check_new_file(output, ".calibration", overwrite=overwrite)
    for path in tables:
        options.check_readable("tables", Path(path))
    options.check_writable("output", output)
    options.check_writable("report", report)
    for place in (output, report) if report is not None else (output,):
        check_apart(place, tables)

    from petm.cli.inspect import print_calibration
    from petm.data.scores import columns_of, open_tables, read_labelled_scores
    from petm.grading.calibration_file import write_calibration
    from petm.selective.calibration import calibrated

    places = open_tables(tables)
    columns, classes = columns_of(
        places[0],
        probability_columns=probability_columns,
        prediction_column=prediction_column,
        score_columns=score_columns,
        higher_is_suspect=higher_is_suspect,
        group_columns=target_options["group_columns"],
    )
    found = read_labelled_scores(places, columns, label_column, classes=classes, skip_bad=skip_bad)
    made = calibrated(
        found.predictions, found.labels, classes=found.classes, target=target, set_coverage=set_coverage, seed=seed
    )
    write_calibration(output, made, overwrite=overwrite)
    if report is not None:
        from petm.report.calibration_report import write_calibration_report

        source = ", ".join(map(str, places))
        write_calibration_report(made, found.predictions, found.labels, report, source=source)
        click.echo(f"Report: {report}", err=True)
    print_calibration(output, made, time.monotonic() - started, as_json=as_json)
