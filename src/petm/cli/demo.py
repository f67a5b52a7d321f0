"""``petm demo``: fit, grade, and learn after a shift, on embedded digits, by the commands that a user would type."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from petm.cli import options
from petm.cli.fit import fit
from petm.cli.grade import grade
from petm.cli.learn import learn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from petm.data.base import Data
    from petm.grading.grader import Grader

SPLITS = {"train": 0.3, "calibration": 0.2, "checked": 0.14, "new": 0.36}
"""Shares of the 1,797 digits: two parts to fit with, and two that are dimmed, of which the first has labels."""
EPOCHS = 8
COVERAGES = (0.9, 0.8)


@click.command(
    epilog="Example: petm demo -o runs/demo", short_help="Fit, grade, and learn after a shift, on embedded digits."
)
@options.output("runs/demo")
@options.overwrite
def demo(output: Path, overwrite: bool) -> None:
    """Show the whole use on scikit-learn's 1,797 digits, in less than a minute on two cores, without a download.

    A small network stands for your model. petm fits a grader to it, grades digits that have become darker, and learns
    the model's new errors from digits whose labels people have confirmed. Each step prints the command that it runs.
    """
    from petm.models.loading import save_weights
    from petm.report.figures import risk_coverage_figure, save_figure
    from petm.training.run_folder import open_run

    with open_run(output, {"splits": SPLITS, "epochs": EPOCHS}, resume=True, overwrite=overwrite):
        parts = _parts()
        weights, before, after = (output / name for name in ("base.safetensors", "grader.petm", "better.petm"))
        click.echo("1. A network learns digits. It stands for your model, and does not change from here on.\n")
        model = _model(parts["train"])
        save_weights(model, weights)
        for name, data in parts.items():
            _write_images(data, output / name)
        click.echo("\n2. A grader is fitted to it, with digits that the network has not seen.\n")
        how = ["--model", "petm.models:PaperCNN", "--weights", weights, "--size", "28", "--channels", "1"]
        fitted = ["--calibration", output / "calibration", "--report", output / "report.html", "-o", before]
        _run(fit, *how, "--data", output / "train", *fitted, "--overwrite")
        click.echo("\n3. The digits get darker, unlike those of the fit. The grader warns, and flags more.\n")
        _run(grade, before, output / "new", "-o", output / "grades.csv", "--overwrite")
        click.echo(f"\n4. People confirm the labels of {len(parts['checked'])} dark digits, and the grader learns.\n")
        _run(learn, before, "--labels", output / "checked", "--max-extra-time", "0.05", "-o", after, "--overwrite")
        lines = _compare(parts["new"], before, after)
        save_figure(risk_coverage_figure(lines), output, "risk_coverage")
    click.echo(f"\nLook at {output / 'report.html'} and {output / 'risk_coverage.png'}. Next, try:\n")
    for command in (
        f"petm inspect {after}",
        f"petm grade {after} {output / 'new'} -o more.csv",
        "petm fit --model mypkg.nets:build --weights w.safetensors --data images/ -o my.petm",
    ):
        click.echo(f"  {command}")


def _run(command: click.Command, *arguments: Any) -> None:
    """Prints a command, and runs it."""
    words = [str(argument) for argument in arguments]
    shown = [word for word in words if word != "--overwrite"]
    click.secho(f"$ petm {command.name} {shlex.join(shown)}", bold=True)
    command.main(words, prog_name=f"petm {command.name}", standalone_mode=False)


def _parts() -> "dict[str, Data]":
    """The digits by the folder that they are written to."""
    import torch

    from petm.data.base import TensorData
    from petm.data.digits import load_digits
    from petm.data.fields import one_tensor

    parts = dict(zip(SPLITS, load_digits(splits=tuple(SPLITS.values())), strict=True))
    random = torch.Generator().manual_seed(0)
    for name, part in parts.items():
        x = one_tensor(part.inputs(range(len(part))), "of the demo")
        if name in ("checked", "new"):
            x = (0.55 * x + 0.2 + 0.04 * torch.randn(x.shape, generator=random)).clamp(0, 1)
        x = (255 * x).round() / 255  # as the files will hold it
        parts[name] = TensorData(x, part.labels, classes=part.classes, source=name, value_range=(0.0, 1.0))
    return parts


def _model(data: "Data") -> Any:
    from petm.models.paper import paper_cnn
    from petm.training.loop import CROSS_ENTROPY, Settings, train

    model = paper_cnn()
    train(model, data, CROSS_ENTROPY, Settings(EPOCHS, 1e-3, batch_size=64), title="network")
    return model.eval()


def _write_images(data: "Data", folder: Path) -> None:
    """Writes images as PNG files, in one folder for each class."""
    import numpy as np
    from PIL import Image

    from petm.data.fields import one_tensor

    images = one_tensor(data.inputs(range(len(data))), "of the demo")[:, 0].numpy()
    for row, (pixels, label) in enumerate(zip(images, data.labels.tolist(), strict=True)):
        place = folder / data.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(255 * pixels).astype(np.uint8)).save(place / f"{row:04d}.png")


def _compare(data: "Data", before: Path, after: Path) -> "dict[str, Any]":
    """Prints how many errors stay among the trusted, and returns the curves of risk over coverage."""
    import numpy as np
    from rich.console import Console

    from petm.grading.grader import load
    from petm.report.tables import Table, terminal_table
    from petm.selective.curves import risk_coverage

    fitted, labels = load(before), data.labels.numpy()
    softmax, wrong = _softmax(fitted, data, labels)
    suspicions = {"petm, after learning": _suspicion(load(after), data), "petm, as fitted": _suspicion(fitted, data)}
    if np.array_equal(suspicions["petm, as fitted"], softmax):  # nothing was better
        del suspicions["petm, as fitted"]
    suspicions["softmax alone"] = softmax
    rows = []
    for name, suspicion in reversed(suspicions.items()):
        order = suspicion.argsort(kind="stable")
        rows.append((name, *(str(wrong[order[: round(share * len(wrong))]].sum()) for share in COVERAGES)))
    head = ("suspicion", *(f"{share:.0%} trusted" for share in COVERAGES))
    caption = f"{wrong.sum()} of {len(wrong)} predictions are wrong. No label of these digits was used."
    click.echo()
    Console().print(terminal_table(Table("Errors left among the trusted, dark digits", caption, head, tuple(rows))))
    return {name: risk_coverage(suspicion, wrong) for name, suspicion in suspicions.items()}


def _suspicion(grader: "Grader", data: "Data") -> "NDArray[np.float64]":
    return grader.grade(data.inputs(range(len(data)))).suspicion


def _softmax(grader: "Grader", data: "Data", labels: Any) -> "tuple[NDArray[np.float64], NDArray[np.bool_]]":
    """The softmax's suspicion, and where the model is wrong."""
    from petm.models.prediction import predict_logits
    from petm.models.scores import maximum_softmax

    logits = predict_logits(grader.adapted.base, data, title="softmax")
    return maximum_softmax(logits).numpy(), logits.argmax(1).numpy() != labels
