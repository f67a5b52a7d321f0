"""``petm reproduce``: the paper's experiment."""

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from petm.cli import options

if TYPE_CHECKING:
    from petm.paper.reproduction import Reproduction


@click.command(
    epilog="Example: petm reproduce --dataset digits -o runs/digits",
    short_help="Run the paper's experiment and write its tables, figures and report.",
)
@click.option("--dataset", type=click.Choice(["digits", "mnist"]), default="digits", show_default=True)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where MNIST's four files are [env: PETM_DATA_DIR].")
@click.option("--download", is_flag=True, help="Fetch MNIST (11 MB) into the data folder where it is missing.")
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="Weights of the model, for the paper's network. Absent: train the model.",
)
@options.output()
@click.option("--base-epochs", type=int, help="Epochs of the model, where it is trained here.")
@click.option("--teacher-epochs", type=int, help="Epochs of the teacher.")
@click.option("--epochs", type=int, help="Epochs of the distillation, at most; the paper runs 200.")
@click.option("--patience", type=int, help="Epochs without a better held-out loss before the distillation stops.")
@click.option("--batch-size", type=int, help="Samples in one step.")
@click.option("--epsilon", type=float, help="FGSM step, in a range of 1.  [default: 0.1]")
@click.option("--start", type=click.Choice(["base", "scratch"]), help="What the teacher starts from.  [default: base]")
@click.option(
    "--samples", type=click.Choice(["replaced", "errors"]), help="What the teacher is trained on.  [default: replaced]"
)
@click.option("--temperature", type=float, help="Of the distillation.  [default: 1]")
@options.seed
@options.precision
@options.device
@options.resume
@options.overwrite
@options.as_json
@options.config
def reproduce(dataset: str, data_dir: Path | None, download: bool, output: Path, **settings: Any) -> None:
    """Run the paper's experiment: The model, its teacher, the adapter, the controls, and all of it judged on test data.

    Writes result.json, report.html, figures/ and grader.petm into the output folder. What is not given takes the
    defaults of the data set, which docs/reproduction.md explains.
    """
    from petm.data.digits import load_digits, load_mnist

    if dataset == "digits":
        train, _, test = load_digits()
    else:
        train, test = load_mnist(data_dir, download=download)
    run(dataset, train, test, output, **settings)


def run(
    dataset: str,
    train: Any,
    test: Any,
    output: Path,
    *,
    base: Path | None = None,
    device: str,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> "Reproduction":
    """Runs the experiment on data at hand, writes the report and prints the tables."""
    from petm.paper.report import summary, write_report
    from petm.paper.reproduction import PROTOCOLS
    from petm.paper.reproduction import reproduce as run_protocol
    from petm.report.tables import print_result

    given = {name: value for name, value in settings.items() if value is not None}
    done = run_protocol(
        train,
        test,
        output,
        protocol=replace(PROTOCOLS[dataset], **given),
        base_weights=base,
        device=device,
        resume=resume,
        overwrite=overwrite,
    )
    write_report(done, output / "report.html")
    if as_json:
        options.print_json(done.result)
    else:
        print_result(done.result)
        click.echo(f"\n{textwrap.fill(summary(done.result), 79)}\n")
        click.echo(f"Report: {output / 'report.html'}", err=True)
    return done
