"""``petm grade``: label, suspicion and grade for each input."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from petm.cli import options

if TYPE_CHECKING:
    from petm._internal.storage import Located
    from petm.data.reader import Reader
    from petm.data.sources import Source
    from petm.grading.grader import Grader
    from petm.grading.onnx_grader import OnnxGrader
    from petm.grading.ray_engine import Open
    from petm.grading.summary import Summary
    from petm.selective.thresholds import Threshold


@click.command(
    epilog="Example: petm grade my.petm more_images/ -o grades.csv",
    short_help="Grade images or texts, one row an input.",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True)
@click.option("-o", "--output", "where", help="File: .parquet, .csv or .jsonl. Absent: CSV on standard output.")
@click.option("--labels", "labelled", is_flag=True, help="Read true labels too, and say how good the grades are.")
@click.option("--label-column", default="label", show_default=True, help="Of these, in tables.")
@click.option(
    "--model", "reference", help="module:factory or hf:DIR of the model, if it is no longer where the bundle says."
)
@click.option("--weights", type=click.Path(path_type=Path), help="the model's weights, if they are no longer there.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True, help="Inputs in one pass.")
@options.processor
@options.trust_remote_code
@click.option("--overwrite", is_flag=True, help="Replace the file that is there, or what another run has left of it.")
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="Where it is computed."
)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Of --engine ray.")
@click.option("--address", help="Of a running Ray cluster, or auto. Absent: one is started here.")
@options.device
@options.as_json
@options.config
def grade(
    bundle: Path,
    inputs: tuple[str, ...],
    where: str | None,
    labelled: bool,
    label_column: str,
    reference: str | None,
    weights: Path | None,
    batch_size: int,
    processor: Path | None,
    trust_remote_code: bool,
    overwrite: bool,
    engine: str,
    workers: int,
    address: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Grade images or texts: label, probability of error, suspicion and grade of each.

    Images come as files, folders, globs, Parquet or .npz; texts as Parquet, CSV or JSON Lines. With - the paths of
    files are read from standard input, one a line. The label is the base model's, beside it stands the second
    opinion's. An input that cannot be read is a row with the reason.

    With -o the run may end at any moment, and the same command goes on where it was. With --engine ray many machines
    share the work (extra petm[ray]), and -o names a folder of Parquet files.

    Inputs, and -o with --engine ray, may also be addresses in a store: s3://bucket/folder, gs://bucket/*.parquet.

    The grader is a bundle, or the .onnx file that petm export makes of one.
    """
    from petm._internal.storage import locate
    from petm.cli.graders import inputs_at, open_both, open_grader, reader_of
    from petm.data.sources import open_sources
    from petm.grading.grade_files import check_output, grade_files

    output = locate(where) if where is not None else None
    file = check_output(output, overwrite=overwrite) if output is not None and engine == "local" else None
    paths = [line for path in inputs for line in (_listed() if path == "-" else [path])]
    if bundle.suffix != ".onnx":  # which is opened as fast
        _expect_inputs(paths)
    grader = open_grader(bundle, device, reference, weights, trust_remote_code=trust_remote_code)
    read_as = inputs_at(grader.origin.inputs, reference, processor)
    reader = reader_of(read_as, trust_remote_code=trust_remote_code)
    sources = open_sources(paths, text_column=read_as.text_column, label_column=label_column if labelled else None)
    if engine == "ray":
        if output is None or output.suffix.lower() != ".parquet":
            raise click.UsageError(f"-o: expected a name that ends in .parquet beside --engine ray, got {output}.")
        opened = partial(
            open_both, bundle.absolute(), device, reference, weights, processor, trust_remote_code=trust_remote_code
        )
        summary = _on_ray(opened, sources, output, workers, address, batch_size, labelled, overwrite)
    elif file is None:
        summary = _print(grader, sources, reader, batch_size, labelled, as_json)
    else:
        told = {"grader": _identity(grader, bundle), "form": str(read_as), "batch_size": batch_size}
        told["label_column"] = label_column
        how: Any = {"batch_size": batch_size, "labelled": labelled, "overwrite": overwrite}
        summary = grade_files(grader, sources, reader, file, told=told, **how)
    _report(summary, grader.threshold, output, as_json=as_json)


def _listed() -> list[str]:
    return [line.rstrip("\n") for line in sys.stdin if line.strip()]


def _expect_inputs(paths: list[str]) -> None:
    """Refuses a path where there is nothing before the grader is loaded; addresses and globs are looked up later."""
    from petm.errors import DataError

    for path in paths:
        if not set("*?[:") & set(path) and not Path(path).exists():
            raise DataError(f"{path}: expected a file, a folder or a glob, got nothing there. Check the path.")


def _identity(grader: "Grader | OnnxGrader", bundle: Path) -> str:
    """What changes when the grader does."""
    from petm._internal.files import fingerprint, sha256_of_file

    files = [bundle] if bundle.is_file() else sorted(path for path in bundle.rglob("*") if path.is_file())
    return fingerprint([*map(sha256_of_file, files), str(grader.threshold)])


def _on_ray(
    opened: "Open",
    sources: "list[Source]",
    output: "Located",
    workers: int,
    address: str | None,
    batch_size: int,
    labelled: bool,
    overwrite: bool,
) -> "Summary":
    import pyarrow as pa

    from petm.grading.grade_table import read_grades
    from petm.grading.ray_engine import grade_on_ray
    from petm.grading.summary import Summary

    how: Any = {"batch_size": batch_size, "labelled": labelled, "overwrite": overwrite}
    grade_on_ray(opened, sources, output, workers=workers, address=address, **how)
    summary = Summary(labelled=labelled)
    for batch in read_grades(output, None if labelled else ["grade"]):
        summary.add(pa.Table.from_batches([batch]))
    return summary


def _print(
    grader: "Grader | OnnxGrader",
    sources: "list[Source]",
    reader: "Reader",
    batch_size: int,
    labelled: bool,
    as_json: bool,
) -> "Summary":
    """Writes the rows to standard output as they come; nothing where there is to be one JSON object only."""
    from petm.errors import DataError, RunError
    from petm.grading.grade_files import write_csv
    from petm.grading.stream import grade_stream
    from petm.grading.summary import Summary

    summary = Summary(labelled=labelled)

    def tables() -> Any:
        for graded in grade_stream(grader, sources, reader, batch_size=batch_size, labelled=labelled):
            summary.add(graded.table)
            yield graded.table

    if as_json:
        for _ in tables():
            pass
    else:
        try:
            write_csv(sys.stdout, tables())
        except BrokenPipeError:  # who reads has seen enough
            raise
        except OSError as error:
            raise RunError(f"standard output: could not be written ({error.strerror}). Free space.") from error
    if not sum(summary.counts.values()):
        raise DataError("inputs: expected at least one, got none. Name files, folders or globs that hold some.")
    return summary


def _report(summary: "Summary", threshold: "Threshold", output: "Located | None", *, as_json: bool) -> None:
    """Says what the grades come to."""
    from petm.selective.guarantee import guarantee

    total = sum(summary.counts.values())
    judged = summary.judged(threshold) if summary.labelled else None
    if summary.labelled and judged is None:
        click.echo(
            "Warning: labels: expected true labels in the inputs, got none that the classifier knows. Put images into "
            "class folders, or name the column of labels.",
            err=True,
        )
    if as_json:
        told: dict[str, object] = {"inputs": total, **summary.counts} | ({"output": str(output)} if output else {})
        options.print_json(told | ({"judged": judged} if judged else {}))
    unreadable = f", {summary.counts['unreadable']} unreadable" if summary.counts["unreadable"] else ""
    click.echo(
        f"{total} inputs: {summary.counts['trusted']} trusted, {summary.counts['suspect']} suspect{unreadable}.",
        err=True,
    )
    if judged:
        recall, precision = judged.flags.recall.value, judged.flags.precision.value
        ranked = f", AUROC {100 * judged.auroc:.1f} %" if judged.auroc is not None else ""
        click.echo(
            f"{judged.known} with true labels, {judged.flags.errors} of them wrong: recall {100 * recall:.1f} %, "
            f"precision {100 * precision:.1f} %{ranked}.",
            err=True,
        )
        if judged.guarantee.verdict != "nothing guaranteed":
            found, verdict = judged.guarantee.found, judged.guarantee.verdict
            interval = f"{100 * found.value:.2f} % ({100 * found.low:.2f} to {100 * found.high:.2f} %)"
            click.echo(guarantee(threshold), err=True)
            click.echo(f"Here {interval} are {judged.guarantee.of}, of {found.of} labelled: {verdict}.", err=True)
