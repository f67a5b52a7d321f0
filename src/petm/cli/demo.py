"""``petm demo``: the paper's experiment on the embedded digits."""

from pathlib import Path
from typing import Any

import click

from petm.cli import options


@click.command(epilog="Example: petm demo -o runs/demo", short_help="The paper's experiment on embedded digits.")
@options.output("runs/demo")
@options.seed
@options.precision
@options.device
@options.resume
@options.overwrite
@options.as_json
@options.config
def demo(output: Path, **settings: Any) -> None:
    """Run the whole experiment on scikit-learn's 1,797 digits: about a minute on two cores, no download.

    Writes result.json, report.html, figures/ and grader.petm into the output folder.
    """
    from petm.cli.reproduce import run
    from petm.data.digits import load_digits

    train, _, test = load_digits()
    run("digits", train, test, output, **settings)
