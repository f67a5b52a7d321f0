"""Opening the data that a command names, and saying what was left out of it."""

from pathlib import Path
from typing import Any

import click

from petm.data import Data, open_data
from petm.provenance import InputOrigin


def open_inputs(path: Path, inputs: InputOrigin, *, skip_bad: bool, classes: tuple[str, ...] | None = None) -> Data:
    """Returns the data at ``path``, read as ``inputs`` says; names and counts the images left out on standard error."""
    channels: Any = inputs.channels
    data = open_data(path, size=inputs.size, channels=channels, classes=classes, skip_bad=skip_bad)
    skipped: tuple[str, ...] = getattr(data, "skipped", ())
    for name in skipped:
        click.echo(f"skipped: {name}", err=True)
    if skipped:
        click.echo(f"{path}: {len(skipped)} unreadable images left out, {len(data)} remain.", err=True)
    return data


def form_of(data: Data) -> InputOrigin:
    """Returns how grading has to read images so that they have the form of these."""
    return InputOrigin.of(data.inputs([0]).shape)
