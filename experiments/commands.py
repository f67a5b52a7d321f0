"""The two experiments with many options: ``python -m experiments detection`` and ``speed``."""

import sys
from pathlib import Path
from typing import Any

import click

from experiments.detection.measure import DetectionSettings, measure_detection, random_part
from experiments.detection.methods import VIEWS
from experiments.detection.results import merge_folders, print_results, write_results
from experiments.speed import results as speed_results
from experiments.speed.fitting import FitSettings
from experiments.speed.measure import SpeedSettings, measure_speed
from experiments.speed.networks import CASES, own_case
from petm.cli import options
from petm.cli.inputs import form_of, inputs_of, open_inputs, open_labelled
from petm.data.base import Data
from petm.data.digits import load_mnist
from petm.errors import PetmError
from petm.models.loading import load_model


class Sizes(click.ParamType[tuple[int, ...]]):
    """``1,32,256`` or ``1x28x28``: whole numbers of at least 1.

    Args:
        name: Name of the type in the help.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Returns the numbers."""
        if isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        try:
            sizes = tuple(int(part) for part in str(value).replace("x", ",").split(","))
        except ValueError:
            sizes = ()
        if min(sizes, default=0) < 1:
            self.fail(f"expected numbers of at least 1 such as 1,32,256, got {value!r}.", param, ctx)
        return sizes


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def experiments() -> None:
    """Measurements behind docs/, on the machine at hand."""


@experiments.command(epilog="Example: python -m experiments speed --case paper-fc --batch 1,32 --no-fit -o runs/speed")
@click.option(
    "--case",
    "names",
    type=click.Choice(list(CASES)),
    multiple=True,
    help="A network of the experiment's, any number of times. Absent: the paper's two, or only --model if given.",
)
@click.option("--model", "reference", help="module:factory, or file.py:factory, of your own network.")
@click.option(
    "--layers",
    type=options.Pairs(int, "layer=rank,..."),
    help="Its layers to adapt, or modules whose layers are all adapted.",
)
@click.option("--input-shape", "shape", type=Sizes("C,H,W"), help="Shape of one of its inputs.")
@click.option("--batch", "batches", type=Sizes("SIZE,..."), default="1,32,256", show_default=True, help="Batch sizes.")
@click.option("--seconds", default=20.0, show_default=True, help="Time for each network at each batch size.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Measure peak memory too.")
@click.option("--fit/--no-fit", default=True, show_default=True, help="Time the distillation too.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Folder of MNIST [env: PETM_DATA_DIR]. Absent: random images.",
)
@click.option("--samples", default=6000, show_default=True, help="Images to distill on, at most; MNIST has 60000.")
@click.option("--epochs-long", "long", type=int, help="Epochs that petm runs besides, the naive way extrapolated.")
@click.option("--repeats", default=3, show_default=True, help="Runs of each way to distill.")
@options.output("runs/speed", "Output folder, for speed.json, speed.md, speed.png and speed.svg.")
@options.device
def speed(
    names: tuple[str, ...],
    reference: str | None,
    layers: dict[str, int] | None,
    shape: tuple[int, ...] | None,
    fit: bool,
    data_dir: Path | None,
    samples: int,
    long: int | None,
    repeats: int,
    output: Path,
    **settings: Any,
) -> None:
    """Time a plain forward, two models, one pass, PEFT's mixed batch, onnxruntime, an ensemble and MC dropout.

    In one process and in turn, with peak memory and counted operations beside; then the ways to distill. As it
    stands it takes about five minutes on two idle cores; --case vit-base and bert-base take half an hour each.
    """
    cases = [CASES[name] for name in dict.fromkeys(names)]
    if reference is not None and layers is not None and shape is not None:
        cases.append(own_case(reference, layers, shape))
    elif reference is not None or layers is not None or shape is not None:
        raise click.UsageError("--model, --layers and --input-shape: expected all three or none.")
    result = measure_speed(
        cases or [CASES["paper-fc"], CASES["paper-all"]],
        SpeedSettings(**settings),
        fit=FitSettings(data_dir, samples, long=long, repeats=repeats) if fit else None,
        on_result=lambda so_far: speed_results.write_results(so_far, output),
    )
    speed_results.print_results(result)
    click.echo(f"Written: {output / 'speed.md'}", err=True)


@experiments.command(
    epilog="Example: python -m experiments detection --model petm.models:paper_cnn --weights base.safetensors "
    "--data-dir data --seeds 2 --method fast --method views_2 -o runs/detection",
)
@click.option("--model", "reference", help="hf:DIR, module:factory, or file.py:factory, that builds the model.")
@click.option(
    "--weights", type=click.Path(path_type=Path), help="the model's weights: .safetensors, or a state_dict file."
)
@click.option(
    "--member",
    "members",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Weights of another network for the ensemble, any number of times.",
)
@click.option("--train", type=click.Path(path_type=Path), help="Labelled data the model was trained on.")
@click.option("--test", type=click.Path(path_type=Path), help="Labelled data the model has not seen.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Without --train and --test: MNIST from this folder [env: PETM_DATA_DIR].",
)
@click.option("--train-samples", type=int, help="Number of training samples to draw. Absent: all.")
@click.option("--title", default="A", show_default=True, help="What this the model on these data is called.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME[:SEEDS]",
    help="A method to compare, with fewer seeds if they are named. Absent: all. The softmax is always there.",
)
@click.option(
    "--views",
    type=click.Choice(list(VIEWS)),
    default="shift",
    show_default=True,
    help="Test-time views: mirror where an image's mirror image shows the same.",
)
@click.option("--seeds", default=5, show_default=True, help="Fits of each method that depends on the seed.")
@click.option("--shift", is_flag=True, help="Judge under noise, blur, rotation and less contrast too.")
@click.option("--attack", is_flag=True, help="Judge on FGSM and PGD inputs too.")
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
def detection(
    merge: tuple[Path, ...],
    output: Path,
    reference: str | None,
    weights: Path | None,
    members: tuple[Path, ...],
    train: Path | None,
    test: Path | None,
    data_dir: Path | None,
    train_samples: int | None,
    **settings: Any,
) -> None:
    """Compare second opinions, their controls and other detectors of errors on the same base model.

    With intervals, paired differences to the plain softmax, and costs. Every score is kept in the output folder under
    what it depends on: the same command computes only what is not there yet, also after another --method or --shift.
    """
    if bool(merge) == (reference is not None):
        raise click.UsageError("--model or --merge: expected one of them.")
    if (train is None) != (test is None):
        raise click.UsageError("--train and --test: expected both or none.")
    if reference is None:
        merge_folders(merge, output)
    else:
        model = load_model(reference, weights)
        others = [load_model(reference, member) for member in members]
        learned, unseen = _open(reference, train, test) if train and test else load_mnist(data_dir)
        result = measure_detection(
            model,
            random_part(learned, train_samples).in_memory(),
            unseen.in_memory(),
            output,
            DetectionSettings(members=others, **settings),
        )
        write_results([result], output)
        print_results(result)
    click.echo(f"Written: {output / 'detection.md'}", err=True)


def _open(reference: str, train: Path, test: Path) -> tuple[Data, Data]:
    """Training and test data, read as the model takes them."""
    wanted, label_column = inputs_of(reference)
    how: dict[str, Any] = {"label_column": label_column, "skip_bad": False, "trust_remote_code": False}
    learned = open_labelled([train], wanted, reference, None, **how)
    return learned, open_inputs([test], form_of(learned, wanted), classes=learned.classes or None, **how)


def main() -> None:
    """Runs the command line; a `PetmError` is one line and exit 1."""
    options.show_own_warnings()
    try:
        experiments(prog_name="python -m experiments", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except PetmError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
