"""``petm grade``: label, suspicion and grade for each input."""

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from petm.cli import options
from petm.errors import DataError, RunError

if TYPE_CHECKING:
    from petm._internal.storage import Located
    from petm.data.reader import Reader
    from petm.data.sources import Source
    from petm.grading.grader import Grader
    from petm.grading.onnx_grader import OnnxGrader
    from petm.grading.summary import Summary
    from petm.selective.thresholds import Threshold


@click.command(
    epilog="Example: petm grade my.petm more_images/ -o grades.csv",
    short_help="Grade images or texts, one row an input.",
)
@options.grader
@click.argument("inputs", nargs=-1, required=True)
@click.option("-o", "--output", "where", help="File: .parquet, .csv or .jsonl. Absent: CSV on standard output.")
@click.option("--labels", "labelled", is_flag=True, help="Read true labels too, and judge the grades by them.")
@click.option("--label-column", default="label", show_default=True, help="Column of true labels in tables.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Inputs in one pass.")
@click.option(
    "--audit",
    type=float,
    help="Share of the trusted to draw for review, such as 0.05: each by its own coin, so that labels of suspects and "
    "drawn ones tell about all. A share, as a fixed number would give each a chance that depends on the others.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the draw for --audit.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file, or parts of it from another run.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Where to run.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Workers of --engine ray.")
@click.option("--address", help="Address of a running Ray cluster, or auto. Absent: a cluster is started here.")
@options.device
@options.as_json
@options.config
def grade(
    place: options.GraderPlace,
    inputs: tuple[str, ...],
    where: str | None,
    labelled: bool,
    label_column: str,
    batch_size: int,
    audit: float | None,
    seed: int,
    overwrite: bool,
    engine: str,
    workers: int,
    address: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Grade images or texts: label, probability of error, suspicion and grade of each.

    Images come as files, folders, globs, Parquet or .npz; texts as Parquet, CSV or JSON Lines. With -, paths of files
    are read from standard input, one a line. The label is the model's; the second opinion's is in a column of its own.
    An input that cannot be read is a row with the reason.

    With -o a run may be ended at any moment, and the same command continues it. With --engine ray many machines
    share the work (extra petm[ray]), and -o names a folder of Parquet files.

    Inputs, and -o with --engine ray, may also be addresses in a store: s3://bucket/folder, gs://bucket/*.parquet.

    The grader is a bundle, or an .onnx file from petm export.
    """
    from petm._internal.storage import locate
    from petm.cli.graders import inputs_at, open_both, open_grader, reader_of
    from petm.data.sources import open_sources
    from petm.grading.grade_files import check_apart, check_output, grade_files
    from petm.selective.audit import check_audit

    check_audit(audit)
    bundle = place.bundle
    output = locate(where) if where is not None else None
    file = check_output(output, overwrite=overwrite) if output is not None and engine == "local" else None
    paths = [line for path in inputs for line in (_listed() if path == "-" else [path])]
    if output is not None:
        check_apart(output, [bundle, *paths])
    if bundle.suffix.lower() != ".onnx":  # a graph is opened quickly
        for path in (path for path in inputs if path != "-"):
            options.check_readable("inputs", Path(path))
    place.check()
    grader = open_grader(place, device)
    read_as = inputs_at(grader.origin.inputs, place)
    reader = reader_of(read_as, place.trust_remote_code)
    columns: Any = {"text_column": read_as.columns, "label_column": label_column if labelled else None}
    sources = open_sources(paths, keep_faults="-" in inputs, **columns)
    how: Any = {"batch_size": batch_size, "labelled": labelled, "audit": audit, "seed": seed}
    if engine == "ray":
        from petm.grading.ray_engine import grade_on_ray

        if output is None or output.suffix.lower() != ".parquet":
            raise click.UsageError(f"-o: expected a name that ends in .parquet beside --engine ray, got {output}.")
        opened = partial(open_both, replace(place, bundle=bundle.absolute()), device)
        grade_on_ray(opened, sources, output, workers=workers, address=address, overwrite=overwrite, **how)
        summary = _summary_of(output, labelled)
    elif file is None:
        summary = _print(grader, sources, reader, as_json=as_json, **how)
    else:
        told = {"grader": _identity(grader, bundle), "form": str(read_as), "batch_size": batch_size}
        told["label_column"] = label_column
        summary = grade_files(grader, sources, reader, file, told=told, overwrite=overwrite, **how)
    _report(summary, grader.threshold, output, as_json=as_json)
    if audit is not None:
        click.echo(f"{summary.drawn} of the trusted are drawn for an audit, each with a chance of {audit:g}.", err=True)
    if audit is not None and output is not None:
        click.echo(f"Next: petm serve {bundle} --queue {output} --labels-file labels.jsonl", err=True)


def _listed() -> list[str]:
    """Paths on standard input, in whatever bytes the file system has."""
    return [os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer if line.strip()]


def _identity(grader: "Grader | OnnxGrader", bundle: Path) -> str:
    """A fingerprint of the grader."""
    from petm._internal.files import fingerprint, sha256_of_file

    files = [bundle] if bundle.is_file() else sorted(path for path in bundle.rglob("*") if path.is_file())
    return fingerprint([*map(sha256_of_file, files), str(grader.threshold)])


def _summary_of(output: "Located", labelled: bool) -> "Summary":
    """The summary of the grades in a folder."""
    import pyarrow as pa

    from petm.grading.grade_table import read_grades
    from petm.grading.summary import Summary

    summary = Summary(labelled=labelled)
    for batch in read_grades(output, None if labelled else ["grade", "reason", "audit"]):
        summary.add(pa.Table.from_batches([batch]))
    return summary


def _print(
    grader: "Grader | OnnxGrader", sources: "list[Source]", reader: "Reader", *, as_json: bool, **how: Any
) -> "Summary":
    """Writes rows to standard output as they come, or none where it is to have one JSON object only."""
    from petm.grading.grade_files import write_csv
    from petm.grading.stream import grade_stream
    from petm.grading.summary import Summary

    summary = Summary(labelled=how["labelled"])

    def tables() -> Any:
        for graded in grade_stream(grader, sources, reader, **how):
            summary.add(graded.table)
            yield graded.table

    if as_json:
        for _ in tables():
            pass
    else:
        try:
            write_csv(sys.stdout, tables())
        except BrokenPipeError:  # the reader has closed it
            raise
        except OSError as error:
            raise RunError(f"standard output: could not be written ({error.strerror}). Free space.") from error
    if not sum(summary.counts.values()):
        raise DataError("inputs: expected at least one, got none. Name files, folders or globs that hold some.")
    return summary


def _report(summary: "Summary", threshold: "Threshold", output: "Located | None", *, as_json: bool) -> None:
    """Prints a summary of the grades."""
    from petm.report.tables import percent, with_interval
    from petm.selective.guarantee import guarantee

    counts = summary.counts
    total = sum(counts.values())
    judged = summary.judged(threshold) if summary.labelled else None
    if summary.labelled and judged is None:
        click.echo(
            "Warning: labels: expected true labels in the inputs, got none of the model's classes. Put images into "
            "class folders, or name the column of labels.",
            err=True,
        )
    if as_json:
        drawn = {"audit": summary.drawn} if summary.drawn else {}
        told: dict[str, object] = {"inputs": total, **counts, **drawn} | ({"output": str(output)} if output else {})
        options.print_json(told | ({"judged": judged} if judged else {}))
    unreadable = f", {counts['unreadable']} unreadable" if counts["unreadable"] else ""
    click.echo(f"{total} inputs: {counts['trusted']} trusted, {counts['suspect']} suspect{unreadable}.", err=True)
    if judged:
        recall, precision = judged.flags.recall.value, judged.flags.precision.value
        ranked = f", AUROC {percent(judged.auroc)}" if judged.auroc is not None else ""
        click.echo(
            f"{judged.known} with true labels, {judged.flags.errors} of them wrong: recall {percent(recall)}, "
            f"precision {percent(precision)}{ranked}.",
            err=True,
        )
        if judged.guarantee.verdict != "nothing guaranteed":
            found, verdict = judged.guarantee.found, judged.guarantee.verdict
            interval = with_interval(found.value, (found.low, found.high), 2)
            click.echo(guarantee(threshold), err=True)
            click.echo(f"Here {interval} are {judged.guarantee.of}, of {found.of} labelled: {verdict}.", err=True)
    summary.refuse_unread()
