"""``petm suspects``: labels of a data set that are probably wrong."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from petm._internal.texts import visible
from petm.cli import options
from petm.errors import ModelError

if TYPE_CHECKING:
    from petm.grading.label_errors import FoundLabelErrors

_SUFFIXES = (".csv", ".parquet", ".jsonl")


@click.command(
    epilog="Example: petm suspects my.petm images/ -o suspects.csv",
    short_help="Rank labels by the probability that they are wrong.",
)
@options.grader
@click.argument("sources", nargs=-1, required=True, type=options.PATH)
@options.output(text="File: .csv, .parquet or .jsonl.")
@click.option("--label-column", default="label", show_default=True, help="Column of the labels of texts.")
@click.option("--top", type=click.IntRange(1), help="Write only so many rows. Absent: all.")
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="Parts that judge each other.")
@click.option("--unseen", is_flag=True, help="The model was not trained on these rows: its softmax counts, too.")
@options.skip_bad
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@click.option("--seed", default=0, show_default=True, help="Seed of the parts.")
@options.device
@options.as_json
@options.config
def suspects(
    place: options.GraderPlace,
    sources: tuple[Path, ...],
    output: Path,
    label_column: str,
    top: int | None,
    folds: int,
    unseen: bool,
    skip_bad: bool,
    overwrite: bool,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Rank the labels of a data set by the probability that they are wrong.

    One pass of the bundle's model gives features. Small classifiers on these learn from some parts of the labels and
    judge the others, so that no label judges itself. The model may have been trained on these data, and their classes
    may be others than the model's. Equal inputs with different labels come first.

    The page shows the inputs of the file with both labels (petm serve --queue suspects.csv), the first ones first.
    """
    from petm._internal.files import check_new_file

    check_new_file(output, *_SUFFIXES, overwrite=overwrite)
    options.check_writable("output", output)
    for path in sources:
        options.check_readable("sources", path)

    from petm.cli.graders import inputs_at, open_bundle
    from petm.cli.inputs import labelled, open_inputs
    from petm.grading.label_errors import find_label_errors

    if place.bundle.suffix.lower() == ".onnx":
        raise ModelError(
            "bundle: expected a bundle of petm fit, got a graph, which gives no features. Name the bundle."
        )
    grader = open_bundle(place, device)
    form = inputs_at(grader.origin.inputs, place)
    how: Any = {"skip_bad": skip_bad, "trust_remote_code": place.trust_remote_code}
    column = label_column if form.text_column else None
    data = labelled(open_inputs(sources, form, label_column=column, **how), skip_bad=skip_bad)
    if not data.classes and len(grader.origin.model.classes) > int(data.labels.max()):
        data.classes = grader.origin.model.classes
    found = find_label_errors(grader, data, folds=folds, unseen=unseen, seed=seed)
    found.save(output, top=top)
    _report(found, place.bundle, output, top, as_json=as_json)


def _report(found: "FoundLabelErrors", bundle: Path, output: Path, top: int | None, *, as_json: bool) -> None:
    likely = int((found.probability > 0.5).sum())
    rows = min(len(found.labels), top or len(found.labels))
    if as_json:
        told = {"rows": len(found.labels), "expected": round(found.expected, 1), "likely": likely}
        options.print_json({**told, "output": str(output), "written": rows})
    click.echo(
        f"{len(found.labels):,} labels: about {found.expected:,.0f} are expected to be wrong, {likely:,} more probably "
        f"than not.",
        err=True,
    )
    next_ = f"petm serve {bundle} --queue {output} --labels-file labels.jsonl"
    click.echo(visible(f"Written: {output}, {rows:,} rows. Next: {next_}"), err=True)
