"""``petm recalibrate``: another target, or fresh labels, for a grader, without training."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from petm.cli import options
from petm.errors import ArgumentError

if TYPE_CHECKING:
    from petm.data.base import Data
    from petm.data.reader import Reader
    from petm.data.reviewed import Reviewed
    from petm.data.sources import Columns
    from petm.grading.grader import Grader

_TARGET = ("max_risk", "coverage", "recall", "confidence", "per_class")
_READ = 256
"""Rows that are looked through at a time."""


@click.command(
    epilog="Example: petm recalibrate my.petm --calibration fresh/ --max-risk 0.01 -o strict.petm",
    short_help="Set the threshold anew, for another target or on fresh labels.",
)
@options.grader
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
@click.option("--max-risk", type=float, help="Guarantee at most this share of errors among the trusted.")
@click.option("--coverage", type=float, help="Or trust this share of the predictions.")
@click.option("--recall", type=float, help="Or flag this share of the errors. Without a target: that of the bundle.")
@click.option("--confidence", type=float, help="Confidence of the guarantee; with --recall, guarantee it.")
@click.option("--per-class", is_flag=True, help="Guarantee --max-risk in each class that the model predicts.")
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
    calibration: tuple[Path, ...],
    label_files: tuple[Path, ...],
    grades: tuple[Path, ...],
    label_column: str,
    skip_bad: bool,
    force: bool,
    report: Path | None,
    output: Path | None,
    device: str,
    overwrite: bool,
    as_json: bool,
    **target_options: Any,
) -> None:
    """Set threshold and probability of error anew, for another target or on fresh labels. Nothing is trained.

    All else of the bundle is kept. It prints the coverage that these labels can guarantee at several risks, and what
    more labels would bring.
    """
    from petm.grading.manifest import BASE, check_target, read_manifest
    from petm.selective.targets import target_of

    try:
        target = target_of(**target_options)
    except ArgumentError as error:
        raise click.UsageError(str(error)) from error
    if bool(calibration) == bool(label_files) or bool(label_files) != bool(grades):
        raise click.UsageError("--calibration: expected it, or --labels with --grades in its place. Name one of both.")
    if report is not None and label_files:
        raise click.UsageError("--report: expected --calibration beside it, got labels that were not drawn alike.")
    for name, paths in {"calibration": calibration, "labels": label_files, "grades": grades}.items():
        for path in paths:
            options.check_readable(name, path)
    if output is not None:
        check_target(output, overwrite=overwrite)
        options.check_writable("output", output)
    options.check_writable("report", report)
    manifest = read_manifest(place.bundle)
    classes, reviewed, chance = manifest.origin.model.classes, None, None
    if label_files:
        from petm.data.reviewed import read_reviewed

        reviewed = read_reviewed(label_files, grades, classes)
        reviewed.check_drawn()

    from petm.cli.graders import inputs_at, open_bundle, reader_of
    from petm.cli.inputs import labelled, open_inputs
    from petm.cli.inspect import print_manifest
    from petm.recalibration import recalibrated

    grader = open_bundle(place, device)
    form = inputs_at(grader.origin.inputs, place)
    if reviewed is not None:
        data, chance = reviewed_data(reviewed, reader_of(form, place.trust_remote_code), form.columns, classes)
    else:
        trust: Any = {"trust_remote_code": place.trust_remote_code}
        data = open_inputs(
            calibration, form, skip_bad=skip_bad, label_column=label_column, classes=classes or None, **trust
        )
        data = labelled(data, skip_bad=skip_bad)
    found = recalibrated(grader, data, target=target, chance=chance, force=force)
    if report is not None:
        from petm.report.fit_report import write_fit_report

        write_fit_report(found.grader, found.calibration, report)
        click.echo(f"Report: {report}", err=True)
    if output is None:
        _print(found.grader, as_json=as_json)
        return
    found.grader.save(output, include_base=BASE in manifest.files, overwrite=overwrite)
    print_manifest(output, as_json=as_json)
    click.echo(f"Written: {output}. Next: petm grade {output} INPUTS -o grades.parquet", err=True)


def reviewed_data(
    reviewed: "Reviewed", reader: "Reader", text_column: "Columns | None", classes: Sequence[str]
) -> "tuple[Data, Any]":
    """Returns the inputs that a person could label, in memory, and the chance with which each was drawn.

    Raises:
        DataError: One of them is no longer there, or cannot be read.
    """
    import torch

    from petm.data.base import TensorData
    from petm.data.fields import as_batch
    from petm.data.labels import UNLABELLED, refuse_faults
    from petm.data.sources import Row, open_sources

    wanted = [at for at, label in zip(reviewed.places, reviewed.labels, strict=True) if label != UNLABELLED]
    rows = dict.fromkeys(wanted, Row("", None, fault="expected the input that was graded, got nothing there"))
    paths = list(dict.fromkeys(path for path, _ in wanted))
    for source in open_sources(paths, text_column=text_column, keep_faults=True):
        for some in source.rows(0, sys.maxsize, _READ):
            rows |= {(row.path, row.number): row for row in some if (row.path, row.number) in rows}
    found = reader.read(list(rows.values()))
    names = [path if row is None else f"{path} row {row}" for path, row in wanted]
    refuse_faults(
        {name: reason for name, reason in zip(names, found.reasons, strict=True) if reason is not None},
        "Grade it again.",
    )
    known = reviewed.labels != UNLABELLED
    labels = torch.from_numpy(reviewed.labels[known])
    data = TensorData(as_batch(found.inputs), labels, classes=classes, source="reviewed inputs")
    data.names = tuple(names)
    return data, reviewed.chance[known]


def _print(grader: "Grader", *, as_json: bool) -> None:
    """Prints the threshold and what it brings, where no bundle is written."""
    from petm._internal.files import plain
    from petm.cli.inspect import print_results
    from petm.selective.guarantee import guarantee
    from petm.selective.targets import target_to_json

    if as_json:
        told = {"threshold": grader.threshold.as_json(), "target": grader.target and target_to_json(grader.target)}
        options.print_json(told | {"measured": plain(grader.measured), "outcome": plain(grader.outcome)})
        return
    print_results(None, grader.outcome)
    click.echo(f"Target: {grader.target}. {guarantee(grader.threshold)}")
    click.echo("Nothing was written. To keep this threshold, name a bundle with -o.", err=True)
