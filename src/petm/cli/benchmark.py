"""``petm benchmark``: measurements on the machine at hand."""

from pathlib import Path
from typing import Any

import click

from petm.cli import options

CASES = ("paper-fc", "paper-all", "vit-base", "bert-base")


class Sizes(click.ParamType[tuple[int, ...]]):
    """``1,32,256``: whole numbers of at least 1.

    Args:
        name: Of the type, in the help.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Returns the numbers."""
        if isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        try:
            sizes = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            sizes = ()
        if min(sizes, default=0) < 1:
            self.fail(f"expected numbers of at least 1 such as 1,32,256, got {value!r}.", param, ctx)
        return sizes


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
@click.option("--input-shape", "shape", type=Sizes("C,H,W"), help="Of one of its inputs, without the batch.")
@click.option("--batch", "batches", type=Sizes("SIZE,..."), default="1,32,256", show_default=True, help="Batch sizes.")
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

    In one process and in turn, with peak memory and counted operations beside; then three ways to distill. As it
    stands it takes about five minutes on two idle cores; --case vit-base and bert-base take half an hour each.
    """
    if (reference is None) != (layers is None) or (reference is None) != (shape is None):
        raise click.UsageError("--model, --layers and --input-shape: expected all three or none.")
    from petm.benchmark.fit_speed import FitSettings
    from petm.benchmark.networks import CASES as NETWORKS
    from petm.benchmark.networks import own_case
    from petm.benchmark.results import print_results, write_results
    from petm.benchmark.speed import SpeedSettings, measure_speed

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
