"""``petm plan``: what a second opinion will cost, before anything is fitted."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from petm.cli import options

if TYPE_CHECKING:
    from torch import nn

    from petm.fields import Inputs


@click.command(
    epilog="Example: petm plan --model petm.models:PaperCNN --input-shape 1x28x28 --samples 60000",
    short_help="Say what a second opinion will cost.",
)
@click.option("--model", "reference", required=True, help="module:factory or file.py:factory that builds A, or hf:DIR.")
@click.option("--weights", type=click.Path(path_type=Path), help="A's weights; the plan does not depend on them.")
@click.option(
    "--model-arg", "arguments", type=options.Pairs(options.literal, "name=value,..."), help="For the factory."
)
@click.option("--input-shape", "shape", type=options.Sizes("CxHxW"), help="Of one input, without the batch.")
@click.option("--vocabulary", type=click.IntRange(1), help="Such inputs are tokens: input_ids below this number.")
@click.option("--data", "source", type=click.Path(path_type=Path), help="Or data, of which some samples are read.")
@click.option("--size", type=options.ImageSize(), help="Resize their images.")
@click.option("--channels", type=click.Choice(["1", "3"]), help="Read them as grey or colour.")
@click.option("--text-column", help="Of their texts. [default: text]")
@click.option(
    "--length", type=click.IntRange(1), help="Pad or cut their texts to so many tokens. Absent: the longest's."
)
@options.processor
@options.trust_remote_code
@click.option(
    "--recipe",
    type=click.Choice(["fast", "balanced", "thorough"]),
    default="fast",
    show_default=True,
    help="As in fit.",
)
@click.option("--samples", type=int, help="To learn from. [default: those of --data, or 60000]")
@click.option(
    "--layers", type=options.Pairs(int, "layer=rank,..."), help="Layers to adapt. Absent: chosen by the recipe."
)
@click.option("--max-extra-parameters", type=float, help="The adapters' size over A's. Absent: the recipe's.")
@click.option("--max-extra-time", type=float, help="One pass over a plain forward, less 1. Absent: the recipe's.")
@click.option("--rate", type=float, help="Operations per second. Absent: measured here, in some seconds.")
@click.option(
    "--cache-budget",
    default=4 << 30,
    show_default="4 GiB",
    help="Bytes of memory for decoded data, adversarial examples and features, as in fit.",
)
@options.device
@options.as_json
@options.config
def plan(
    reference: str,
    weights: Path | None,
    arguments: dict[str, Any] | None,
    shape: tuple[int, ...] | None,
    vocabulary: int | None,
    source: Path | None,
    samples: int | None,
    size: tuple[int, int] | None,
    channels: str | None,
    text_column: str | None,
    length: int | None,
    processor: Path | None,
    trust_remote_code: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Say what a second opinion will cost: layers, ranks, one pass, time and memory of fitting, and how they grow.

    Nothing is fitted. Operations are counted on a few samples and multiplied out.
    """
    if (shape is None) == (source is None):
        raise click.UsageError("--input-shape or --data: expected one of them, got both or none.")
    from rich.console import Console

    from petm.cli.inputs import inputs_of, open_inputs
    from petm.models import load_model
    from petm.plan_tables import plan_json, plan_tables
    from petm.planning import SAMPLES
    from petm.planning import plan as make_plan
    from petm.tables import terminal_table

    model = load_model(reference, weights, arguments=arguments, trust_remote_code=trust_remote_code)
    if source is not None:
        told: dict[str, Any] = {"size": size, "channels": channels, "text_column": text_column, "length": length}
        wanted, _ = inputs_of(reference, processor=processor, trust_remote_code=trust_remote_code, **told)
        data = open_inputs(source, wanted, skip_bad=True, trust_remote_code=trust_remote_code)
        x, known = data.inputs(range(min(4, len(data)))), len(data)
    else:
        assert shape is not None
        x, known = _random(model, shape, vocabulary), SAMPLES
    made = make_plan(model, x, samples=known if samples is None else samples, **settings)
    if as_json:
        options.print_json(plan_json(made))
        return
    console = Console()
    for table in plan_tables(made).values():
        console.print(terminal_table(table), end="\n\n")


def _random(model: "nn.Module", shape: tuple[int, ...], vocabulary: int | None) -> "Inputs":
    """Some samples of a shape, of the model's precision; tokens where there is a vocabulary."""
    import torch

    from petm.fields import Fields

    if vocabulary is not None:
        return Fields({"input_ids": torch.randint(vocabulary, (4, *shape))})
    floats = (weight.dtype for weight in model.parameters() if weight.is_floating_point())
    return torch.rand(4, *shape).to(next(floats, torch.float32))
