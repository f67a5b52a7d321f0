"""``petm fit``: a grader for one's own model."""

import shutil
from pathlib import Path
from typing import Any

import click

from petm.cli import options


@click.command(
    epilog="Example: petm fit --model petm.models:PaperCNN --weights runs/demo/base.safetensors "
    "--data images/ --size 28 --channels 1 -o my.petm",
    short_help="Fit a grader to a trained model.",
)
@click.option("--model", "reference", required=True, help="module:factory, or file.py:factory, that builds A.")
@click.option("--weights", type=click.Path(path_type=Path), help="A's weights: .safetensors, or a state_dict file.")
@click.option(
    "--model-arg", "arguments", type=options.Pairs(options.literal, "name=value,..."), help="For the factory."
)
@click.option(
    "--data", "source", required=True, type=click.Path(path_type=Path), help="Labelled data A was trained on."
)
@click.option(
    "--calibration", type=click.Path(path_type=Path), help="Labelled data A has not seen. Absent: a fifth of --data."
)
@click.option("--classes", help="Class names in the order of A's outputs, separated by commas.")
@click.option("--size", type=options.ImageSize(), help="Resize images.")
@click.option("--channels", type=click.Choice(["1", "3"]), help="Read images as grey or colour.")
@options.skip_bad
@click.option(
    "--recipe",
    type=click.Choice(["fast", "balanced", "thorough", "paper"]),
    default="fast",
    show_default=True,
    help="How the second opinion is made: within 1.25, 2.1 or 5 times A's time, or as published.",
)
@click.option(
    "--errors",
    type=click.Choice(["plain", "hardest", "augmented", "out-of-fold"]),
    help="Where the recipe paper takes errors from, if A makes too few.",
)
@click.option(
    "--layers", type=options.Pairs(int, "layer=rank,..."), help="Layers to adapt. Absent: chosen by the recipe."
)
@click.option("--max-extra-parameters", type=float, help="The adapters' size over A's. Absent: the recipe's.")
@click.option("--max-risk", type=float, help="Promise: at most this share of errors among the trusted.")
@click.option("--coverage", type=float, help="Or trust this share of the predictions.")
@click.option("--recall", type=float, help="Or flag this share of the errors. [default: 0.9]")
@click.option("--confidence", default=0.95, show_default=True, help="Of the promise.")
@click.option("--per-class", is_flag=True, help="Promise it in each class that A predicts.")
@click.option(
    "--cache-budget",
    default=4 << 30,
    show_default="4 GiB",
    help="Bytes of memory for features computed once; more goes into a temporary file. 0: none.",
)
@click.option("--include-base", is_flag=True, help="Put A's weights into the bundle.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page about the grader: figures with intervals, curves, the most suspect samples.",
)
@options.output(text="The bundle to write.")
@options.seed
@options.precision
@options.device
@options.resume
@options.overwrite
@options.as_json
@options.config
def fit(
    reference: str,
    weights: Path | None,
    arguments: dict[str, Any] | None,
    source: Path,
    calibration: Path | None,
    classes: str | None,
    size: tuple[int, int] | None,
    channels: str | None,
    skip_bad: bool,
    include_base: bool,
    report: Path | None,
    output: Path,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Fit a grader: train the adapters, calibrate the probability of error, set the threshold, write the bundle.

    A is left as it is. Interrupted, the command goes on with --resume.
    """
    from petm.bundle import check_target
    from petm.cli.inputs import form_of, open_inputs
    from petm.cli.inspect import print_manifest
    from petm.fitting import CALIBRATION_SHARE
    from petm.fitting import fit as fit_model
    from petm.models import load_model, weights_fingerprint
    from petm.provenance import InputOrigin, ModelOrigin, Origin
    from petm.run_folder import open_run

    check_target(output, overwrite=overwrite)
    model = load_model(reference, weights, arguments=arguments)
    wanted, names = InputOrigin(size, int(channels) if channels else None), classes.split(",") if classes else []
    data = open_inputs(source, wanted, classes=tuple(names) or None, skip_bad=skip_bad)
    form = form_of(data)
    settings["calibration"] = CALIBRATION_SHARE
    if calibration is not None:
        settings["calibration"] = open_inputs(calibration, form, classes=data.classes or None, skip_bad=skip_bad)
    origin = Origin(ModelOrigin(reference, arguments or {}, str(weights) if weights else None, data.classes), form)
    told = {
        "model": weights_fingerprint(model),
        "data": data.content,
        **{name: getattr(value, "content", value) for name, value in settings.items() if name != "device"},
    }
    folder = output.with_name(f"{output.name}.run")
    data = data.in_memory()
    if calibration is None:
        data, settings["calibration"] = data.split((1 - CALIBRATION_SHARE, CALIBRATION_SHARE), seed=settings["seed"])
    with open_run(folder, told, resume=resume, overwrite=overwrite) as run:
        grader = fit_model(model, data, origin=origin, run=run, **settings)
        grader.save(output, include_base=include_base, overwrite=overwrite)
    shutil.rmtree(folder, ignore_errors=True)
    if report is not None:
        from petm.fit_report import write_fit_report

        write_fit_report(grader, settings["calibration"], report)
        click.echo(f"Report: {report}", err=True)
    print_manifest(output, as_json=as_json)
