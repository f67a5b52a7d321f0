"""``petm export``: a bundle as an ONNX graph."""

from pathlib import Path

import click

from petm.cli import options


@click.command(
    epilog="Example: petm export runs/demo/grader.petm -o model.onnx", short_help="Write a bundle as an ONNX graph."
)
@options.grader
@options.output(text="The .onnx file to write.")
@click.option("--example", type=options.PATH, help="Data with some inputs, where the bundle does not say their form.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@options.as_json
@options.config
def export(place: options.GraderPlace, output: Path, example: Path | None, overwrite: bool, as_json: bool) -> None:
    """Write a bundle as an ONNX graph from inputs to label, suspicion, grade and both logits.

    A cascade, which asks for a second opinion on some inputs alone, is written as two graphs.

    The graph is run in onnxruntime and compared with the bundle before the file is written. petm grade, monitor and
    serve accept it in place of the bundle.
    """
    from petm._internal.files import check_new_file

    place.check()
    check_new_file(output, ".onnx", overwrite=overwrite)
    options.check_readable("example", example)

    from petm.cli.graders import inputs_at, open_bundle, processor_of
    from petm.cli.inputs import open_inputs
    from petm.data.fields import one_tensor
    from petm.grading.onnx_export import export_onnx
    from petm.models.hf_processors import ImageProcessor

    trust = place.trust_remote_code
    grader = open_bundle(place, "cpu")
    inputs, read_as = None, inputs_at(grader.origin.inputs, place)
    processor = None if read_as.text_column is not None else processor_of(read_as, trust)
    if example is not None:
        data = open_inputs([example], read_as, skip_bad=False, trust_remote_code=trust)
        inputs = one_tensor(data.inputs(range(min(8, len(data)))), "to export")
    prepares = processor if isinstance(processor, ImageProcessor) else None
    made = export_onnx(grader, output, inputs, processor=prepares, overwrite=overwrite)
    if as_json:
        options.print_json({"files": made.files, "bytes": made.size, "difference": made.difference})
        return
    files = " and ".join(map(str, made.files)) + (", which must stay together" if len(made.files) > 1 else "")
    click.echo(f"{files}: {made.size:,} bytes, logits within {made.difference:.1e} of the bundle's in onnxruntime.")
