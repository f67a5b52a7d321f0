"""``petm learn``: a better grader from labels that people have confirmed."""

import shutil
import warnings
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from petm._internal.texts import visible
from petm.cli import options
from petm.data.tables import TABLE_SUFFIXES
from petm.errors import ArgumentError, DataError, PetmWarning

if TYPE_CHECKING:
    from petm.cli.options import GraderPlace
    from petm.data.labelled_inputs import LabelledInputs
    from petm.grading.grader import Grader
    from petm.grading.provenance import InputOrigin
    from petm.learning import Learned

_UNNAMED = 10_000
"""Classes of a bundle without names whose labels can be numbers."""


@click.command(
    epilog="Example: petm learn my.petm --labels labels.jsonl --grades grades.parquet -o better.petm",
    short_help="Learn from labels that people have confirmed.",
)
@options.grader
@click.option(
    "--labels",
    "label_files",
    required=True,
    multiple=True,
    type=options.PATH,
    help="Labels: a file of petm serve; a table with input[,row],label; or labelled data. Repeatable.",
)
@click.option(
    "--grades",
    "grade_files",
    multiple=True,
    type=options.PATH,
    help="Grades that --labels belong to, from petm grade, with each row's chance to be labelled; repeatable.",
)
@click.option("--data", "sources", multiple=True, type=options.PATH, help="Data the model was trained on, to mix in.")
@click.option(
    "--calibration",
    multiple=True,
    type=options.PATH,
    help="Labelled inputs drawn at random, for the guarantee; repeatable. Absent: half of the labels.",
)
@click.option("--max-risk", type=float, help="Guarantee at most this share of errors. Absent: the bundle's target.")
@click.option("--confidence", type=float, help="Confidence of --max-risk.  [default: 0.95]")
@click.option(
    "--max-extra-time", type=float, default=0.25, show_default=True, help="One pass over a plain one, less 1."
)
@click.option("--max-extra-parameters", type=float, default=0.02, show_default=True, help="Adapter over the model.")
@click.option("--force", is_flag=True, help="Go on where the model's accuracy says that the labels are not its own.")
@options.skip_bad
@options.output(text="Bundle to write.")
@options.run
def learn(
    place: "GraderPlace",
    label_files: tuple[Path, ...],
    grade_files: tuple[Path, ...],
    sources: tuple[Path, ...],
    calibration: tuple[Path, ...],
    max_risk: float | None,
    confidence: float | None,
    skip_bad: bool,
    output: Path,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    device: str,
    **settings: Any,
) -> None:
    """Learn from labels that people have confirmed: an adapter learns the model's errors in production.

    The model is not changed. Adapters that have not seen a label judge what learning from it is worth, and the present
    suspicion stays unless another is better by more than chance. 50 labels at least, of which 10 are errors.

    After an interrupt, --resume continues.
    """
    from petm.grading.manifest import check_target
    from petm.selective.targets import target_of

    try:
        target = target_of(max_risk=max_risk, confidence=confidence)
        for name in ("max_extra_time", "max_extra_parameters"):
            if not 0 < settings[name] < float("inf"):
                raise ArgumentError(f"{name}: expected a share above 0, got {settings[name]}. Try 0.1.")
    except ArgumentError as error:
        raise click.UsageError(str(error)) from error
    paths = {
        "labels": label_files,
        "grades": grade_files,
        "data": sources,
        "calibration": calibration,
    }
    for name, each in paths.items():
        for path in each:
            options.check_readable(name, path)
    place.check()
    check_target(output, overwrite=overwrite)
    options.check_writable("output", output)

    from petm._internal.files import sha256_of_file
    from petm.cli.graders import inputs_at, open_bundle
    from petm.cli.inputs import labelled, of_one_length, open_inputs
    from petm.grading.manifest import BASE, MANIFEST
    from petm.learning import learned
    from petm.training.run_folder import open_run

    grader = open_bundle(place, device)
    trust: Any = {"trust_remote_code": place.trust_remote_code}
    inputs = of_one_length(inputs_at(grader.origin.inputs, place), **trust)
    found, drawn = _labelled(grader, inputs, label_files, grade_files, skip_bad=skip_bad, **trust)
    others: dict[str, Any] = {}
    for name, each in (("data", sources), ("calibration", calibration)):
        if each:
            how: Any = {"skip_bad": skip_bad, "label_column": "label", **trust}
            some = open_inputs(each, inputs, classes=grader.origin.model.classes or None, **how)
            others[name] = labelled(some, skip_bad=skip_bad)
    told = {"grader": sha256_of_file(place.bundle / MANIFEST), "labels": found.data.content, **settings}
    told |= {name: data.content for name, data in others.items()} | {"target": str(target)}
    folder = output.with_name(f"{output.name}.run")
    with open_run(folder, told, resume=resume, overwrite=overwrite) as run:
        how = {"chance": found.chance, "drawn": drawn, "target": target, "device": device, "storage": run.storage}
        result = learned(grader, found.data, **others, **how, **settings)
        result.grader.save(output, include_base=(place.bundle / BASE).is_file(), overwrite=overwrite)
    shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        options.print_json(
            {"bundle": str(output), "parent": result.grader.origin.settings["parent"], **result.as_json()}
        )
    else:
        _print(result, output)


def _labelled(
    grader: "Grader",
    inputs: "InputOrigin",
    labels: tuple[Path, ...],
    grades: tuple[Path, ...],
    *,
    skip_bad: bool,
    **trust: bool,
) -> "tuple[LabelledInputs, bool]":
    """The labelled inputs, and whether every graded input had a chance to be labelled."""
    from petm.cli.inputs import labelled, open_decided, open_inputs
    from petm.data.decisions import read_decided
    from petm.data.labelled_inputs import LabelledInputs
    from petm.data.reviewed import read_reviewed

    classes = grader.origin.model.classes
    tables = [path for path in labels if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES]
    if not grades and not tables:
        data = open_inputs(labels, inputs, classes=classes or None, skip_bad=skip_bad, label_column="label", **trust)
        data = labelled(data, skip_bad=skip_bad)
        return LabelledInputs(data, None, {}), True
    known, drawn = classes or tuple(map(str, range(_UNNAMED))), True
    if grades:
        reviewed = read_reviewed(labels, grades, known, text_column=inputs.columns)
        decided = reviewed.decided
        try:
            reviewed.check_drawn()
        except DataError as error:
            warnings.warn(str(error), PetmWarning, stacklevel=2)
            drawn = False
        if reviewed.unmatched:
            click.echo(f"labels: {reviewed.unmatched:,} name no graded row, and are left out.", err=True)
    else:
        decided = read_decided(labels, known, text_column=inputs.columns)
    found = open_decided(decided, labels, inputs, classes, skip_bad=skip_bad, **trust)
    # What cannot be read was never graded, unless it has a grade or is gone: then a draw is missing.
    return found, drawn and not (found.skipped if grades else found.gone)


def _print(result: "Learned", output: Path) -> None:
    """Prints the figures before and after, and what was compared."""
    from rich.console import Console

    from petm.report.tables import MISSING, Table, between, percent, points, terminal_table

    rows = []
    for each in result.changes:
        name, digits = ("AURC, lower is better", 3) if each.name == "aurc" else (each.name, 1)
        gain, low, high = (points(value, digits) for value in astuple(each.difference))
        told = MISSING if MISSING in (gain, between(low, high)) else f"{gain} ({between(low, high)})"
        rows.append((name, percent(each.before, digits), percent(each.after, digits), told))
    caption = (
        f"On {result.judged:,} labels that the adapter has not seen, {result.errors:,} errors of the model among them. "
        "The difference is in percentage points, with its paired 95% interval."
    )
    Console().print(
        terminal_table(Table("Before and after", caption, ("", "before", "after", "difference"), tuple(rows)))
    )
    click.echo(visible(f"Written: {output}. Next: petm grade {output} INPUTS -o grades.csv"), err=True)
