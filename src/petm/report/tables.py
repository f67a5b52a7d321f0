"""The result of a reproduction as tables of text, for the terminal and for the report."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from petm._internal.texts import visible
from petm.selective.tables import BETTER as BETTER
from petm.selective.tables import MISSING as MISSING
from petm.selective.tables import UNCLEAR as UNCLEAR
from petm.selective.tables import WORSE as WORSE
from petm.selective.tables import Table as Table
from petm.selective.tables import between as between
from petm.selective.tables import markdown_table as markdown_table
from petm.selective.tables import percent as percent
from petm.selective.tables import points as points
from petm.selective.tables import with_interval as with_interval

METHODS = {
    "petm": "PETM",
    "lora_petm": "LoRA-PETM",
    "lora_petm_small": "LoRA-PETM small",
    "petm_control": "PETM control",
    "control": "Control",
    "softmax": "Softmax",
}
"""Titles of the methods, in the order of the rows."""

LEAD = "lora_petm"
MEASURES = {"recall": "recall", "precision": "precision", "auroc": "AUROC"}

_STEPS = {
    "base": "Train the base model",
    "errors": "Find and replace the model's errors",
    "teacher": "Train the teacher",
    "teacher_control": "Train the model further (control)",
    "lora_petm": "Distill the adapter",
    "lora_petm_small": "Distill the small adapter",
    "control": "Distill the control's adapter",
    "judge": "Judge on the test data",
    "analysis": "PCA, t-SNE, drift, figures",
}
_SETTINGS = {
    "base_weights": "Weights of the base model",
    "base_epochs": "Epochs of the base model",
    "epsilon": "FGSM epsilon",
    "start": "Initial weights of the teacher",
    "samples": "Training data of the teacher",
    "teacher_epochs": "Epochs of the teacher",
    "epochs": "Epochs of the distillation, at most",
    "patience": "Epochs without gain before it stops",
    "temperature": "Temperature of the distillation",
    "batch_size": "Batch size",
    "seed": "Seed",
}
_IN_WORDS = {
    ("base_weights", None): "trained here",
    ("patience", None): "never stops early",
    ("start", "base"): "base model",
    ("start", "scratch"): "fresh weights",
    ("samples", "replaced"): "all data, the model's errors replaced",
    ("samples", "errors"): "the replaced errors alone",
}


def result_tables(result: Mapping[str, Any]) -> dict[str, Table]:
    """Returns every table of a result (the content of ``result.json``) by name, in reading order."""
    return {
        "detection": detection_table(result),
        "ranking": ranking_table(result),
        "differences": differences_table(result),
        "fidelity": fidelity_table(result),
        "cost": cost_table(result),
        "drift": drift_table(result),
        "settings": settings_table(result),
        "seconds": seconds_table(result),
        "versions": versions_table(result),
    }


def print_result(result: Mapping[str, Any]) -> None:
    """Prints the tables of a result on standard output, without those on how it was run."""
    console = Console()
    for name, table in result_tables(result).items():
        if name not in {"settings", "seconds", "versions"}:
            console.print(terminal_table(table), end="\n\n")


def terminal_table(table: Table) -> RichTable:
    """Returns a table for rich; nothing in its text is read as markup."""
    drawn = RichTable(
        title=Text(visible(table.title), "bold"),
        caption=Text(visible(table.caption), "dim") if table.caption else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column, name in enumerate(table.header):
        drawn.add_column(Text(visible(name)), justify="left" if column in table.words else "right")
    for row in table.rows:
        drawn.add_row(*(Text(visible(text)) for text in row))
    return drawn


def fidelity_table(result: Mapping[str, Any]) -> Table:
    """Returns the paper's Table 1: how often the adapter agrees with the model at alpha 0, with the teacher at 1."""
    test, errors, paper = result["fidelity"], result["fidelity"]["error_set"], result["paper"]["fidelity"]
    pairs = {
        "base_at_alpha_0": "LoRA-PETM at α = 0 and the base model",
        "teacher_at_alpha_1": "LoRA-PETM at α = 1 and the teacher",
        "small_teacher_at_alpha_1": "LoRA-PETM small at α = 1 and the teacher",
    }
    return Table(
        "Table 1: fidelity",
        "Share of samples where the two predict the same class. The error set: training samples that the model "
        "gets wrong.",
        ("Compared", "Test data", "Error set", "Paper"),
        tuple(
            (name, percent(test[key], 2), percent(errors[key], 2), percent(paper.get(key), 0))
            for key, name in pairs.items()
        ),
    )


def detection_table(result: Mapping[str, Any]) -> Table:
    """Returns the paper's Table 2: recall and precision of each method, with the controls and the softmax."""
    rows = []
    for key, found in _by_method(result["detection"]):
        rows.append(
            (
                METHODS.get(key, key),
                with_interval(found["recall"], found["recall_interval"]),
                with_interval(found["precision"], found["precision_interval"]),
                f"{found['flagged']:,}",
                f"{found['caught']:,} of {found['errors']:,}",
            )
        )
        if paper := result["paper"]["detection"].get(key):
            shares = percent(paper["recall"]), percent(paper["precision"])
            rows.append((f"{METHODS.get(key, key)} in the paper", *shares, MISSING, MISSING))
    return Table(
        "Table 2: detection",
        "Recall: of the model's errors, the share that is flagged (caught). Precision: of the flagged, the share that "
        "are errors. In brackets 95% Wilson intervals. PETM control: instead of the teacher, the model trained further "
        "on unchanged data. Control: the adapter distilled from that. Softmax: the model's least confident answers, as "
        "many as LoRA-PETM flags.",
        ("Method", "Recall", "Precision", "Flagged", "Caught"),
        tuple(rows),
    )


def ranking_table(result: Mapping[str, Any]) -> Table:
    """Returns how well each method's suspicion orders the test data."""
    return Table(
        "Ranking by suspicion",
        "Without any threshold. AUROC: the probability that an error is more suspect than a right answer. AUPR-Error: "
        "precision, averaged over all recalls.",
        ("Method", "AUROC", "AUPR-Error"),
        tuple(
            (METHODS.get(key, key), percent(found["auroc"], 2), percent(found["aupr_error"], 2))
            for key, found in _by_method(result["ranking"])
        ),
    )


def differences_table(result: Mapping[str, Any]) -> Table:
    """Returns LoRA-PETM minus each other method, with intervals."""
    return Table(
        "Is it better?",
        "LoRA-PETM minus the other method on the same test data, in percentage points, with 95% paired bootstrap "
        f'intervals. "{BETTER.capitalize()}" or "{WORSE}" only where the interval excludes 0.',
        ("LoRA-PETM against", "In", "Difference", "95% interval", "LoRA-PETM is"),
        tuple(
            (
                METHODS.get(key, key),
                measure[:1].upper() + measure[1:],
                points(found[name]["value"]),
                between(points(found[name]["low"]), points(found[name]["high"])),
                judged(found[name]),
            )
            for key, found in _by_method(result["differences"])
            for name, measure in MEASURES.items()
        ),
        words=frozenset({0, 1, 4}),
    )


def cost_table(result: Mapping[str, Any]) -> Table:
    """Returns the memory of models, adapters and both systems."""
    cost, paper = result["cost"], result["paper"]["cost"]

    def row(name: str, parts: Sequence[str], ratio: str, of: str = "") -> tuple[str, ...]:
        parameters, held = (sum(cost[f"{part}_{unit}"] for part in parts) for unit in ("parameters", "bytes"))
        share = f"{percent(cost[ratio])} {of}" if of else MISSING
        return name, f"{parameters:,}", size(held), share, percent(paper.get(ratio))

    return Table(
        "Cost",
        "Weights in float32. PETM holds two models, LoRA-PETM one model and an adapter.",
        ("Held", "Parameters", "Size", "Share", "Paper"),
        (
            row("Base model", ["base"], MISSING),
            row("Teacher", ["teacher"], MISSING),
            row("Adapter", ["adapter"], "adapter_over_teacher", "of the teacher"),
            row("Small adapter", ["small"], "small_over_teacher", "of the teacher"),
            row("PETM: both models", ["base", "teacher"], MISSING),
            row("LoRA-PETM: model and adapter", ["base", "adapter"], "system_over_petm", "of PETM"),
            row("LoRA-PETM small", ["base", "small"], "small_system_over_petm", "of PETM"),
        ),
    )


def drift_table(result: Mapping[str, Any]) -> Table:
    """Returns how far each layer has moved from the base model to the teacher, and in how many directions."""
    return Table(
        "Drift",
        "From the model to the teacher: the norm of the change of weights over that of the weights, and the least rank "
        "that holds 90% of the energy of the change.",
        ("Layer", "Relative norm", "Rank for 90%", "Full rank"),
        tuple(
            (entry["layer"], percent(entry["relative_norm"]), f"{entry['rank_90']}", f"{entry['full_rank']}")
            for entry in result["drift"]
        ),
    )


def settings_table(result: Mapping[str, Any]) -> Table:
    """Returns the settings and the data of the run."""
    told = result["protocol"]
    parts = {"train": "Training data", "test": "Test data"}
    return Table(
        "Settings",
        "",
        ("Setting", "Value"),
        tuple(
            (parts.get(part, part), f"{data['source']}, {data['samples']:,} samples, SHA-256 {data['content'][:12]}…")
            for part, data in result["data"].items()
        )
        + tuple((name, _in_words(key, told[key])) for key, name in _SETTINGS.items() if key in told),
        words=frozenset({0, 1}),
    )


def seconds_table(result: Mapping[str, Any]) -> Table:
    """Returns the seconds of each step, with the epochs of those that stop early."""
    seconds, training = result["seconds"], result["training"]

    def epochs(step: str, name: str) -> str:
        return f"{training[step][name]}" if step in training else MISSING

    return Table(
        "Seconds",
        "",
        ("Step", "Epochs", "Best epoch", "Seconds"),
        (
            *(
                (_STEPS.get(step, step), epochs(step, "epochs"), epochs(step, "best_epoch"), f"{taken:,.1f}")
                for step, taken in seconds.items()
            ),
            ("Total", MISSING, MISSING, f"{sum(seconds.values()):,.1f}"),
        ),
    )


def versions_table(result: Mapping[str, Any]) -> Table:
    """Returns the versions of the libraries."""
    return Table("Versions", "", ("Library", "Version"), tuple(result["versions"].items()), words=frozenset({0, 1}))


def judged(difference: Mapping[str, float | None]) -> str:
    """Returns better, worse or no clear difference, by whether the interval from ``low`` to ``high`` excludes 0."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return MISSING
    return BETTER if low > 0 else WORSE if high < 0 else UNCLEAR


def size(count: int) -> str:
    """Returns a number of bytes in decimal units, with three digits."""
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{count} bytes" if unit == "bytes" else f"{f'{value:#.3g}'.rstrip('.')} {unit}"


def _by_method(entries: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The entries in the order of `METHODS`, unknown ones last."""
    order = list(METHODS)
    return sorted(entries.items(), key=lambda entry: order.index(entry[0]) if entry[0] in order else len(order))


def _in_words(key: str, value: Any) -> str:
    return _IN_WORDS.get((key, value)) or (f"{value:g}" if isinstance(value, float) else str(value))
