"""``petm grade``: label, suspicion and grade for each input."""

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from petm.cli import options

if TYPE_CHECKING:
    from petm.data import Data
    from petm.grader import Grader
    from petm.grades import Grades
    from petm.onnx_grader import OnnxGrader


@click.command(
    epilog="Example: petm grade my.petm more_images/ -o grades.csv",
    short_help="Grade images or texts, one row an input.",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File: .csv or .jsonl. Absent: CSV on standard output."
)
@click.option("--model", "reference", help="module:factory or hf:DIR of A, if it is no longer where the bundle says.")
@click.option("--weights", type=click.Path(path_type=Path), help="A's weights, if they are no longer there.")
@click.option("--batch-size", default=256, show_default=True, help="Samples in one pass.")
@options.processor
@options.trust_remote_code
@options.skip_bad
@options.device
@options.as_json
@options.config
def grade(
    bundle: Path,
    inputs: tuple[Path, ...],
    output: Path | None,
    reference: str | None,
    weights: Path | None,
    batch_size: int,
    processor: Path | None,
    trust_remote_code: bool,
    skip_bad: bool,
    device: str,
    as_json: bool,
) -> None:
    """Grade images or texts: label, probability of error, suspicion and grade of each.

    Images come as folders, files, Parquet or .npz; texts as Parquet, CSV or JSON Lines. The label is A's, beside it
    stands the second opinion's.

    The grader is a bundle, or the .onnx file that petm export makes of one.
    """
    from petm.cli.inputs import inputs_at, open_inputs
    from petm.files import write_text

    if output is not None and output.suffix not in (".csv", ".jsonl"):
        raise click.UsageError(f"-o: expected a name that ends in .csv or .jsonl, got {output}.")
    grader: Grader | OnnxGrader
    if bundle.suffix == ".onnx":
        if reference or weights:
            raise click.UsageError(f"--model, --weights: expected neither beside {bundle}, which holds A.")
        grader = _open_graph(bundle, device)
    else:
        grader = _open_bundle(bundle, device, reference, weights, trust_remote_code)
    read_as = inputs_at(grader.origin.inputs, reference, processor)
    rows: list[dict[str, Any]] = []
    for path in inputs:
        data = open_inputs(path, read_as, skip_bad=skip_bad, trust_remote_code=trust_remote_code)
        rows += _rows(data, grader.grade(data, batch_size=batch_size), grader.origin.model.classes)
    if output is not None:
        write_text(output, _lines(rows) if output.suffix == ".jsonl" else _table(rows))
    elif not as_json:
        click.echo(_table(rows), nl=False)
    trusted = sum(row["grade"] == "trusted" for row in rows)
    summary = {"inputs": len(rows), "trusted": trusted, "suspect": len(rows) - trusted}
    if as_json:
        options.print_json(summary | ({"output": output} if output else {"grades": rows}))
    click.echo(f"{len(rows)} inputs: {trusted} trusted, {len(rows) - trusted} suspect.", err=True)


def _open_bundle(bundle: Path, device: str, reference: str | None, weights: Path | None, trust: bool) -> "Grader":
    from petm.grader import load
    from petm.inference import choose_device
    from petm.models import load_model

    model = load_model(reference, weights, trust_remote_code=trust) if reference else None
    grader = load(bundle, model, weights=weights, trust_remote_code=trust)
    grader.adapted.to(choose_device(device))
    return grader


def _open_graph(graph: Path, device: str) -> "OnnxGrader":
    from petm.onnx_grader import OnnxGrader

    accelerators = {"auto": (), "cpu": (), "cuda": ("CUDAExecutionProvider",)}
    if device not in accelerators:
        raise click.UsageError(f"--device: expected {', '.join(accelerators)} for an .onnx file, got {device}.")
    return OnnxGrader(graph, providers=(*accelerators[device], "CPUExecutionProvider"))


def _rows(data: "Data", grades: "Grades", classes: tuple[str, ...]) -> list[dict[str, Any]]:
    def named(label: int) -> str:
        return classes[label] if label < len(classes) else str(label)

    return [
        {
            "input": data.name(index),
            "label": named(int(grades.labels[index])),
            "second": named(int(grades.second[index])),
            "probability": float(grades.probability[index]),
            "suspicion": float(grades.suspicion[index]),
            "grade": "trusted" if grades.trusted[index] else "suspect",
        }
        for index in range(len(grades))
    ]


def _table(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
