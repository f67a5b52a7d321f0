"""``petm benchmark``: measurements on the machine at hand."""

from pathlib import Path
from typing import Any

import click

from petm.cli import options

CASES = ("paper-fc", "paper-all", "vit-base", "bert-base")


@click.group(short_help="Measure, on this machine.")
def benchmark() -> None:
    """Measure, on this machine."""


@benchmark.command(
    epilog="Example: petm benchmark speed --case paper-fc --batch 1,32 --seconds 5 --no-fit -o runs/speed",
    short_help="Time one pass beside what else gives a second opinion.",
)
@click.option(
    "--case",
    "names",
    type=click.Choice(CASES),
    multiple=True,
    help="A network of petm's, any number of times. Absent: the two of the paper, or only --model where that is given.",
)
@click.option("--model", "reference", help="module:factory, or file.py:factory, of your own network.")
@click.option(
    "--model-arg", "arguments", type=options.Pairs(options.literal, "name=value,..."), help="For the factory."
)
@click.option(
    "--layers",
    type=options.Pairs(int, "layer=rank,..."),
    help="Its layers to adapt, or modules whose layers are all adapted.",
)
@click.option("--input-shape", "shape", type=options.Sizes("C,H,W"), help="Of one of its inputs, without the batch.")
@click.option(
    "--batch", "batches", type=options.Sizes("SIZE,..."), default="1,32,256", show_default=True, help="Batch sizes."
)
@click.option("--seconds", default=20.0, show_default=True, help="For each network at each batch size.")
@click.option(
    "--at-most", default=600.0, show_default=True, help="Leave out a batch size that would take more seconds than this."
)
@click.option("--memory/--no-memory", default=True, show_default=True, help="Measure peak memory too.")
@click.option("--threads", type=int, help="Of PyTorch and onnxruntime. Absent: PyTorch's own choice.")
@click.option("--fit/--no-fit", default=True, show_default=True, help="Time the distillation too.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="MNIST for that [env: PETM_DATA_DIR]. Absent: random images.",
)
@click.option("--samples", default=6000, show_default=True, help="Images to distill on, at most; MNIST has 60000.")
@click.option("--epochs", default=5, show_default=True, help="Epochs that every way to distill runs.")
@click.option("--epochs-long", "long", type=int, help="Epochs that petm runs besides, the naive way extrapolated.")
@click.option("--repeats", default=3, show_default=True, help="Runs of each way to distill.")
@options.output("runs/speed", "Output folder, for speed.json, speed.md, speed.png and speed.svg.")
@options.seed
@options.device
@options.as_json
@options.config
def speed(
    names: tuple[str, ...],
    reference: str | None,
    arguments: dict[str, Any] | None,
    layers: dict[str, int] | None,
    shape: tuple[int, ...] | None,
    fit: bool,
    data_dir: Path | None,
    samples: int,
    epochs: int,
    long: int | None,
    repeats: int,
    output: Path,
    as_json: bool,
    **settings: Any,
) -> None:
    """Time a plain forward, two models, one pass, PEFT's mixed batch, onnxruntime, an ensemble and MC dropout.

    In one process and in turn, with peak memory and counted operations beside; then the ways to distill. As it
    stands it takes about five minutes on two idle cores; --case vit-base and bert-base take half an hour each.
    """
    if (reference is None) != (layers is None) or (reference is None) != (shape is None):
        raise click.UsageError("--model, --layers and --input-shape: expected all three or none.")
    from experiments.fit_speed import FitSettings
    from experiments.networks import CASES as NETWORKS
    from experiments.networks import own_case
    from experiments.results import print_results, write_results
    from experiments.speed import SpeedSettings, measure_speed

    cases = [NETWORKS[name] for name in dict.fromkeys(names)]
    if reference is not None and layers is not None and shape is not None:
        cases.append(own_case(reference, layers, shape, arguments or {}))
    result = measure_speed(
        cases or [NETWORKS["paper-fc"], NETWORKS["paper-all"]],
        SpeedSettings(**settings),
        fit=FitSettings(data_dir, samples, epochs, long, repeats) if fit else None,
        on_result=lambda so_far: write_results(so_far, output),
    )
    if as_json:
        options.print_json(result)
    else:
        print_results(result)
        click.echo(f"Written: {output / 'speed.md'}", err=True)


@benchmark.command(
    epilog="Example: petm benchmark detection --model petm.models:paper_cnn --weights base.safetensors --data-dir data "
    "--seeds 2 --method fast --method views_2 -o runs/detection",
    short_help="Compare what finds A's errors.",
)
@click.option("--model", "reference", help="module:factory, or file.py:factory, that builds A.")
@click.option("--weights", type=click.Path(path_type=Path), help="A's weights: .safetensors, or a state_dict file.")
@click.option(
    "--model-arg", "arguments", type=options.Pairs(options.literal, "name=value,..."), help="For the factory."
)
@click.option(
    "--member",
    "members",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Weights of another network for the ensemble, any number of times.",
)
@click.option("--train", type=click.Path(path_type=Path), help="Labelled data A was trained on.")
@click.option("--test", type=click.Path(path_type=Path), help="Labelled data A has not seen.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Without --train and --test: MNIST from this folder [env: PETM_DATA_DIR].",
)
@click.option("--size", type=options.ImageSize(), help="Resize images.")
@click.option("--channels", type=click.Choice(["1", "3"]), help="Read images as grey or colour.")
@click.option("--train-samples", type=int, help="So many random ones of the training data.")
@click.option("--test-samples", type=int, help="So many random ones of the test data.")
@click.option("--title", default="A", show_default=True, help="What this A on these data is called.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME[:SEEDS]",
    help="A method to compare, with fewer seeds if they are named. Absent: all. The softmax is always there.",
)
@click.option(
    "--views",
    type=click.Choice(["mirror", "shift"]),
    default="shift",
    show_default=True,
    help="Test-time views: mirror where an image's mirror image shows the same.",
)
@click.option("--seeds", default=5, show_default=True, help="Fits of each method that depends on the seed.")
@click.option("--shift", is_flag=True, help="Judge under noise, blur, rotation and less contrast too.")
@click.option("--attack", is_flag=True, help="Judge on FGSM and PGD inputs too.")
@click.option("--resamples", default=1000, show_default=True, help="Of the bootstrap intervals.")
@click.option(
    "--merge",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="DIR",
    help="Nothing is measured: write one page of the results in these folders.",
)
@options.output("runs/detection", "Output folder, for the scores, result.json, detection.md and the figures.")
@options.precision
@options.device
@options.resume
@options.overwrite
@options.as_json
@options.config
def detection(merge: tuple[Path, ...], output: Path, as_json: bool, reference: str | None, **told: Any) -> None:
    """Compare second opinions, their controls and other detectors of errors on the same A.

    With intervals, paired differences to the plain softmax, and costs. Every score is kept under what it depends on:
    --resume computes only what is not there yet, also after another --method, more --seeds or --shift.
    """
    if bool(merge) == (reference is not None):
        raise click.UsageError("--model or --merge: expected one of them.")
    from experiments.detection_results import merge_folders, print_results, write_results

    if merge:
        results = merge_folders(merge, output)
        if as_json:
            options.print_json({"results": results})
    else:
        assert reference is not None
        result = _measure_detection(reference, output, **told)
        write_results(result, output)
        if as_json:
            options.print_json(result)
        else:
            print_results(result)
    click.echo(f"Written: {output / 'detection.md'}", err=True)


def _measure_detection(
    reference: str,
    output: Path,
    weights: Path | None,
    arguments: dict[str, Any] | None,
    members: tuple[Path, ...],
    train: Path | None,
    test: Path | None,
    data_dir: Path | None,
    size: tuple[int, int] | None,
    channels: str | None,
    train_samples: int | None,
    test_samples: int | None,
    resume: bool,
    overwrite: bool,
    **settings: Any,
) -> dict[str, Any]:
    """Opens what the options name, and measures."""
    if (train is None) != (test is None):
        raise click.UsageError("--train and --test: expected both or none.")
    from experiments.detection import DetectionSettings, measure_detection, random_part
    from petm.cli.inputs import (
        form_of,
        inputs_of,
        open_inputs,
        open_labelled,
    )
    from petm.data.base import Data
    from petm.data.digits import load_mnist
    from petm.models.loading import load_model

    model = load_model(reference, weights, arguments=arguments)
    others = [load_model(reference, member, arguments=arguments) for member in members]
    parts: tuple[Data, Data]
    if train is None or test is None:
        parts = load_mnist(data_dir)
    else:
        wanted, label_column = inputs_of(reference, size=size, channels=channels)
        how: dict[str, Any] = {"label_column": label_column, "skip_bad": False, "trust_remote_code": False}
        learned = open_labelled([train], wanted, reference, None, **how)
        parts = learned, open_inputs([test], form_of(learned, wanted), classes=learned.classes or None, **how)
    return measure_detection(
        model,
        random_part(parts[0], train_samples).in_memory(),
        random_part(parts[1], test_samples).in_memory(),
        output,
        DetectionSettings(members=others, **settings),
        resume=resume,
        overwrite=overwrite,
    )
