"""``petm recalibrate``: another target, or fresh labels, for a grader, without training."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from petm.cli import options
from petm.errors import ArgumentError

if TYPE_CHECKING:
    from petm.grading.grader import Grader
    from petm.selective.targets import Target


@click.command(
    epilog="Example: petm recalibrate my.petm --calibration fresh/ --max-risk 0.01 -o strict.petm",
    short_help="Set the threshold anew, for another target or on fresh labels.",
)
@options.grader
@click.argument("fresh", nargs=-1, type=options.PATH)
@click.option(
    "--calibration",
    multiple=True,
    type=options.PATH,
    help="Labelled data like later inputs, which neither model nor grader has seen; repeatable.",
)
@click.option(
    "--labels",
    "label_files",
    multiple=True,
    type=options.PATH,
    help="Or labels that people gave to graded inputs, with an audit of the trusted among them; repeatable.",
)
@click.option(
    "--grades", multiple=True, type=options.PATH, help="Beside --labels: the grades of these inputs; repeatable."
)
@click.option("--label-column", default="label", show_default=True, help="Column of the labels of texts.")
@options.skip_bad
@click.option("--force", is_flag=True, help="Go on where the model's accuracy says that the labels are not its own.")
@options.target(" Without a target: that of the bundle.")
@click.option(
    "--set-coverage",
    type=float,
    help="Probability with which candidates hold the true class. Absent: that of the bundle.",
)
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="HTML page about the grader on these labels."
)
@click.option("-o", "--output", type=options.PATH, help="The bundle to write. Absent: the result is printed only.")
@options.device
@options.overwrite
@options.as_json
@options.config
def recalibrate(
    place: options.GraderPlace,
    fresh: tuple[Path, ...],
    calibration: tuple[Path, ...],
    label_files: tuple[Path, ...],
    grades: tuple[Path, ...],
    label_column: str,
    skip_bad: bool,
    force: bool,
    set_coverage: float | None,
    report: Path | None,
    output: Path | None,
    device: str,
    overwrite: bool,
    as_json: bool,
    **target_options: Any,
) -> None:
    """Set threshold and probability of error anew, for another target or on fresh labels. Nothing is trained.

    All else of the bundle is kept. It prints the coverage that these labels can guarantee at several risks, and what
    more labels would bring. FRESH is labelled data, as --calibration names it. A file from petm calibrate takes tables
    with its columns.
    """
    from petm.grading.manifest import BASE, check_target, read_manifest
    from petm.selective.sets import check_coverage
    from petm.selective.targets import target_of

    try:
        target = target_of(**target_options)
        if set_coverage is not None:
            check_coverage(set_coverage, "set_coverage")
    except ArgumentError as error:
        raise click.UsageError(str(error)) from error
    calibration = (*calibration, *fresh)
    if bool(calibration) == bool(label_files) or bool(label_files) != bool(grades):
        raise click.UsageError("--calibration: expected it, or --labels with --grades in its place. Name one of both.")
    if report is not None and label_files:
        raise click.UsageError("--report: expected --calibration beside it, got labels that were not drawn alike.")
    for name, paths in {"calibration": calibration, "labels": label_files, "grades": grades}.items():
        for path in paths:
            options.check_readable(name, path)
    if options.kind_of(place.bundle) == "calibration":
        told: Any = {"skip_bad": skip_bad, "overwrite": overwrite, "as_json": as_json, "set_coverage": set_coverage}
        _recalibrate_scores(place, calibration, target, label_column, output, report, **told)
        return
    if output is not None:
        check_target(output, overwrite=overwrite)
        options.check_writable("output", output)
    options.check_writable("report", report)
    place.check()
    manifest = read_manifest(place.bundle)
    classes, reviewed, chance = manifest.origin.model.classes, None, None
    if label_files:
        from petm.data.reviewed import read_reviewed

        reviewed = read_reviewed(label_files, grades, classes, text_column=manifest.origin.inputs.columns)
        reviewed.check_drawn()

    from petm.cli.graders import inputs_at, open_bundle
    from petm.cli.inputs import labelled, open_decided, open_inputs
    from petm.cli.inspect import print_manifest
    from petm.recalibration import recalibrated

    grader = open_bundle(place, device)
    form = inputs_at(grader.origin.inputs, place)
    trust: Any = {"trust_remote_code": place.trust_remote_code}
    if reviewed is not None:
        found = open_decided(reviewed.decided, label_files, form, classes, **trust)
        data, chance = found.data.in_memory(), found.chance
    else:
        data = open_inputs(
            calibration, form, skip_bad=skip_bad, label_column=label_column, classes=classes or None, **trust
        )
        data = labelled(data, skip_bad=skip_bad)
    how: Any = {"target": target, "chance": chance, "set_coverage": set_coverage, "force": force}
    made = recalibrated(grader, data, **how)
    if report is not None:
        from petm.report.fit_report import write_fit_report

        write_fit_report(made.grader, made.calibration, report)
        click.echo(f"Report: {report}", err=True)
    if output is None:
        _print(made.grader, as_json=as_json)
        return
    made.grader.save(output, include_base=BASE in manifest.files, overwrite=overwrite)
    print_manifest(output, as_json=as_json)
    click.echo(f"Written: {output}. Next: petm grade {output} INPUTS -o grades.parquet", err=True)


def _recalibrate_scores(
    place: options.GraderPlace,
    calibration: tuple[Path, ...],
    target: "Target | None",
    label_column: str,
    output: Path | None,
    report: Path | None,
    *,
    skip_bad: bool,
    overwrite: bool,
    as_json: bool,
    set_coverage: float | None,
) -> None:
    """Sets the threshold of a file from ``petm calibrate`` anew."""
    if not calibration:
        raise click.UsageError(f"--labels: expected tables of scores alone beside {place.bundle}. Leave it out.")
    from petm._internal.files import check_new_file
    from petm.cli.graders import open_scores
    from petm.cli.inspect import print_calibration
    from petm.data.scores import open_tables, read_labelled_scores
    from petm.grading.calibration_file import SUFFIX, write_calibration

    started = time.monotonic()
    if output is not None:
        check_new_file(output, SUFFIX, overwrite=overwrite)
    made = open_scores(place).made
    how: Any = {"classes": made.classes, "skip_bad": skip_bad}
    found = read_labelled_scores(open_tables(calibration), made.columns, label_column, **how)
    made = made.recalibrate(found.predictions, found.labels, target=target, set_coverage=set_coverage)
    if output is not None:
        write_calibration(output, made, overwrite=overwrite)
    if report is not None:
        from petm.report.calibration_report import write_calibration_report

        write_calibration_report(made, found.predictions, found.labels, report, source=", ".join(map(str, calibration)))
        click.echo(f"Report: {report}", err=True)
    print_calibration(output or place.bundle, made, time.monotonic() - started if output else None, as_json=as_json)
    if output is None:
        click.echo("Nothing was written. To keep this threshold, name a file with -o.", err=True)


def _print(grader: "Grader", *, as_json: bool) -> None:
    """Prints the threshold and what it brings, where no bundle is written."""
    from petm._internal.files import plain
    from petm.cli.inspect import print_results
    from petm.selective.guarantee import guarantee
    from petm.selective.sets import candidates_in_words
    from petm.selective.targets import target_to_json

    if as_json:
        told = {"threshold": grader.threshold.as_json(), "target": grader.target and target_to_json(grader.target)}
        options.print_json(
            told | {"measured": plain(grader.measured), "outcome": plain(grader.outcome), "sets": plain(grader.sets)}
        )
        return
    print_results(None, grader.outcome)
    click.echo(f"Target: {grader.target}. {guarantee(grader.threshold)}")
    click.echo(candidates_in_words(grader.sets))
    click.echo("Nothing was written. To keep this threshold, name a bundle with -o.", err=True)
