"""``petm reproduce``: the paper's experiment."""

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from petm.cli import options


@click.command(
    epilog="Example: petm reproduce --dataset digits -o runs/digits",
    short_help="Run the paper's experiment and write its tables, figures and report.",
)
@click.option("--dataset", type=click.Choice(["digits", "mnist"]), default="digits", show_default=True)
@click.option("--data-dir", type=options.PATH, help="Where MNIST's four files are [env: PETM_DATA_DIR].")
@click.option("--download", is_flag=True, help="Fetch MNIST (11 MB) into the data folder if missing.")
@click.option("--base", type=options.PATH, help="Weights of the paper's network as the model. Absent: train the model.")
@options.output()
@click.option("--base-epochs", type=int, help="Epochs of the model, if it is trained here.")
@click.option("--teacher-epochs", type=int, help="Epochs of the teacher.")
@click.option("--epochs", type=int, help="Largest number of epochs of the distillation; 200 in the paper.")
@click.option("--patience", type=int, help="Epochs without a better held-out loss before the distillation stops.")
@click.option("--batch-size", type=int, help="Samples in one step.")
@click.option("--epsilon", type=float, help="FGSM step, in a range of 1.  [default: 0.1]")
@click.option("--start", type=click.Choice(["base", "scratch"]), help="Start of the teacher.  [default: base]")
@click.option(
    "--samples", type=click.Choice(["replaced", "errors"]), help="Training data of the teacher.  [default: replaced]"
)
@click.option("--temperature", type=float, help="Temperature of the distillation.  [default: 1]")
@options.run
def reproduce(**settings: Any) -> None:
    """Run the paper's experiment: model, teacher, adapter and controls, judged on test data.

    Writes result.json, report.html, figures/ and grader.petm into the output folder. Defaults are those of the data
    set; docs/benchmark/reproduction.md explains them.
    """
    run(**settings)


def run(
    dataset: str,
    output: Path,
    *,
    data_dir: Path | None = None,
    download: bool = False,
    base: Path | None = None,
    device: str,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Runs the experiment, writes the report and prints the tables."""
    from petm.data.digits import load_digits, load_mnist
    from petm.paper.report import summary, write_report
    from petm.paper.reproduction import PROTOCOLS
    from petm.paper.reproduction import reproduce as run_protocol
    from petm.report.tables import print_result

    if dataset == "digits":
        train, _, test = load_digits()
    else:
        train, test = load_mnist(data_dir, download=download)
    protocol = replace(PROTOCOLS[dataset], **{name: value for name, value in settings.items() if value is not None})
    how: Any = {"device": device, "resume": resume, "overwrite": overwrite}
    done = run_protocol(train, test, output, protocol=protocol, base_weights=base, **how)
    write_report(done, output / "report.html")
    if as_json:
        options.print_json(done.result)
        return
    print_result(done.result)
    click.echo(f"\n{textwrap.fill(summary(done.result), 79)}\n")
    click.echo(f"Report: {output / 'report.html'}", err=True)
