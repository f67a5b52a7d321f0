"""``petm export``: a bundle as one ONNX graph."""

from pathlib import Path

import click

from petm.cli import options


@click.command(
    epilog="Example: petm export runs/demo/grader.petm -o model.onnx", short_help="Write a bundle as one ONNX graph."
)
@click.argument("bundle", type=click.Path(path_type=Path))
@options.output(text="The .onnx file to write.")
@click.option(
    "--model", "reference", help="module:factory or hf:DIR of the model, if it is no longer where the bundle says."
)
@click.option("--weights", type=click.Path(path_type=Path), help="the model's weights, if they are no longer there.")
@click.option(
    "--example",
    type=click.Path(path_type=Path),
    help="Data with some inputs, where the bundle does not say their form.",
)
@options.processor
@options.trust_remote_code
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@options.as_json
@options.config
def export(
    bundle: Path,
    output: Path,
    reference: str | None,
    weights: Path | None,
    example: Path | None,
    processor: Path | None,
    trust_remote_code: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a bundle as one ONNX graph, which takes inputs and gives label, suspicion, grade and both logits.

    onnxruntime runs it before the file is there, and answers as the bundle does. petm grade takes it like a bundle.
    """
    from petm.cli.graders import image_processor_of, inputs_at
    from petm.cli.inputs import open_inputs
    from petm.cli.process import import_from_here
    from petm.data.fields import one_tensor
    from petm.grading.grader import load
    from petm.grading.onnx_export import export_onnx
    from petm.models.loading import load_model

    import_from_here()
    model = load_model(reference, weights, trust_remote_code=trust_remote_code) if reference else None
    grader = load(bundle, model, weights=weights, trust_remote_code=trust_remote_code)
    inputs, read_as = None, inputs_at(grader.origin.inputs, reference, processor)
    prepares = image_processor_of(read_as, trust_remote_code=trust_remote_code)
    if example is not None:
        data = open_inputs([example], read_as, skip_bad=False, trust_remote_code=trust_remote_code)
        inputs = one_tensor(data.inputs(range(min(8, len(data)))), "to export")
    made = export_onnx(grader, output, inputs, processor=prepares, overwrite=overwrite)
    if as_json:
        options.print_json({"files": made.files, "bytes": made.size, "difference": made.difference})
        return
    files = " and ".join(map(str, made.files)) + (", which must stay together" if len(made.files) > 1 else "")
    click.echo(f"{files}: {made.size:,} bytes, logits within {made.difference:.1e} of the bundle's in onnxruntime.")
