"""``petm inspect``: what is in a bundle, or an exported graph."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from petm._internal.texts import visible
from petm.cli import options
from petm.cli.options import kind_of

if TYPE_CHECKING:
    from petm.grading.manifest import Manifest, MemberRecord
    from petm.selective.calibration import Calibration
    from petm.selective.choice import Choice
    from petm.selective.outcome import Outcome
    from petm.selective.targets import Target
    from petm.selective.thresholds import Threshold

_MOST_COMPARED = 5
"""Rows that a fit prints of what was compared; `petm inspect` prints all."""
_SHARE = {"value", "low", "high", "count", "of"}  # as in `petm.selective.metrics.Share`


@click.command(epilog="Example: petm inspect runs/demo/grader.petm", short_help="Show what is in a bundle.")
@click.argument("bundle", type=options.PATH)
@options.as_json
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what is in a bundle: model, layers and ranks, sizes, threshold, figures, provenance, and what it brings.

    Every file is checked against its hash. Of an .onnx file from petm export, its metadata are shown.
    """
    if kind_of(bundle) == "graph":
        _print_graph(bundle, as_json=as_json)
    elif kind_of(bundle) == "calibration":
        from petm.grading.calibration_file import read_calibration

        print_calibration(bundle, read_calibration(bundle), as_json=as_json)
    else:
        print_manifest(bundle, as_json=as_json)


def print_manifest(bundle: Path, *, as_json: bool) -> None:
    """Prints a bundle's manifest, as a table or as JSON."""
    from petm.grading.manifest import read_manifest

    manifest = read_manifest(bundle)
    if as_json:
        options.print_json({"bundle": str(bundle), **manifest.to_json()})
    else:
        _print_rows(bundle, _rows(bundle, manifest))
        print_results(manifest.choice, manifest.outcome)


def print_fit(bundle: Path, seconds: float) -> None:
    """Prints what a fit has found: the model, what was chosen, what is trusted, and what to do next."""
    from petm.grading.manifest import read_manifest
    from petm.report.tables import percent
    from petm.selective.sets import candidates_in_words
    from petm.selective.worth import cost_of

    manifest = read_manifest(bundle)
    found: dict[str, Any] = dict(manifest.measured)
    right = [
        f"{percent(told['value'])} of {told['of']:,} samples of {name}"
        for name in ("calibration", "data")
        if (told := found.get(f"accuracy_on_{name}"))
    ]
    if not right:
        wrong, samples = found.get("calibration_errors", 0), found.get("calibration_samples", 0)
        right = [f"all but {wrong:,} of {samples:,} calibration samples"]
    rows = [
        ("model", f"right on {' and '.join(right)}"),
        ("suspicion", _suspicion(bundle, manifest)),
        *(("", sentence) for sentence in cost_of(found)),
        *_trusted(manifest.target, manifest.threshold, found),
        ("candidates", candidates_in_words(manifest.sets)),
    ]
    _print_rows(bundle, rows)
    print_results(manifest.choice, manifest.outcome, most=_MOST_COMPARED)
    written = f"Written: {bundle}, after {seconds:.0f} s. Next: petm grade {bundle} INPUTS -o grades.csv"
    click.echo(visible(written), err=True)
    click.echo(visible(f"All figures and all that was compared: petm inspect {bundle}"), err=True)


def print_calibration(path: Path, made: "Calibration", seconds: float | None = None, *, as_json: bool) -> None:
    """Prints a calibration: what it reads, what was chosen, what is trusted; after a run also what to do next."""
    from petm._internal.files import plain
    from petm.data.labels import enumerated
    from petm.report.tables import percent, terminal_table
    from petm.selective.sets import candidates_in_words
    from petm.selective.tables import group_table

    if as_json:
        from petm.grading.calibration_file import to_json

        options.print_json({"calibration": str(path), **to_json(made)})
        return
    measured, columns = made.measured, made.columns
    errors, samples = measured.get("errors", 0), measured.get("samples", 0)
    rows = [
        ("reads", columns.told + (" (a higher score is less sure)" if columns.higher_is_suspect else "")),
        ("classes", enumerated(made.classes)),
        ("model", f"right on {percent(1 - errors / max(1, samples))} of {samples:,} rows, {errors:,} errors"),
        ("suspicion", made.score),
        ("threshold", _threshold(made.threshold)),
        *_trusted(made.target, made.threshold, measured),
        *([("candidates", candidates_in_words(made.sets))] if made.columns.probabilities else []),
    ]
    if seconds is None:
        rows += _measured(measured)
    _print_rows(path, rows)
    if measured.get("groups"):
        click.echo()
        Console().print(terminal_table(group_table(plain(measured["groups"]))))
    print_results(made.choice, made.outcome)
    if seconds is not None:
        written = f"Written: {path}, after {seconds:.0f} s. Next: petm grade {path} NEW -o grades.csv"
        click.echo(visible(written), err=True)


def _trusted(target: "Target | None", threshold: "Threshold", measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The target, what it trusts of the calibration samples, and the guarantee."""
    from petm._internal.files import plain
    from petm.report.tables import MISSING, with_interval
    from petm.selective.guarantee import guarantee

    def share(name: str) -> str:
        told = plain(measured.get(name))
        return with_interval(told["value"], (told["low"], told["high"])) if told else MISSING

    return [
        ("target", str(target or threshold.rule)),
        ("trusted", f"{share('coverage')} of the calibration samples; {share('risk')} of these are wrong"),
        ("guarantee", guarantee(threshold)),
    ]


def print_results(choice: "Choice | None", outcome: "Outcome | None", *, most: int | None = None) -> None:
    """Prints what suspicion was compared with, the trade-off of risk and coverage, and the result in words.

    Args:
        choice: What was compared.
        outcome: What the grader brings.
        most: Rows of what was compared; None for all, with the reason of the choice, which a fit has printed before.
    """
    from petm.report.tables import terminal_table
    from petm.selective.tables import choice_table, trade_off_table

    tables = [choice_table(choice, most)] if choice and choice.compared else []
    tables += [trade_off_table(outcome)] if outcome else []
    for table in tables:
        click.echo()
        Console().print(terminal_table(table))
    for sentence in (*((choice.reason,) if choice and most is None else ()), *(outcome.sentences if outcome else ())):
        click.echo(visible(sentence))


def _print_graph(path: Path, *, as_json: bool) -> None:
    """Prints the metadata of a graph, as a table or as JSON."""
    from petm._internal.files import plain
    from petm.grading.onnx_grader import OnnxGrader
    from petm.selective.guarantee import guarantee
    from petm.selective.sets import candidates_in_words
    from petm.selective.worth import cost_of

    graph = OnnxGrader(path)
    classes, inputs, threshold = graph.origin.model.classes, graph.origin.inputs, graph.threshold
    if as_json:
        told = {"classes": classes, "shape": graph.shape, "inputs": inputs, "score": graph.score}
        told |= {"threshold": threshold.as_json(), "measured": graph.measured}
        options.print_json(
            {
                "graph": str(path),
                **told,
                "choice": plain(graph.choice),
                "outcome": plain(graph.outcome),
                "sets": plain(graph.sets),
            }
        )
        return
    rows = [
        ("classes", ", ".join(classes) or "not named"),
        ("inputs", f"float32 of shape (N, {', '.join(map(str, graph.shape))})"),
        ("", f"images read as {inputs.channels}×{inputs.size[0]}×{inputs.size[1]}" if inputs.size else "arrays"),
        ("suspicion", graph.score.replace("_", " ")),
        ("threshold", _threshold(threshold)),
        ("guarantee", guarantee(threshold)),
        ("candidates", candidates_in_words(graph.sets)),
        *(("cost", sentence) for sentence in cost_of(graph.measured)),
        *_measured(graph.measured),
        ("on disk", f"{sum(file.stat().st_size for file in graph.files):,} bytes in {len(graph.files)} files"),
    ]
    _print_rows(path, rows)
    print_results(graph.choice, graph.outcome)


def _print_rows(path: Path, rows: list[tuple[str, str]]) -> None:
    table = Table(title=Text(visible(str(path))), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(visible(name)), Text(visible(value)))  # plain text, as names may look like markup
    Console().print(table)


def _rows(bundle: Path, manifest: "Manifest") -> list[tuple[str, str]]:
    from petm.selective.guarantee import guarantee
    from petm.selective.sets import candidates_in_words
    from petm.selective.worth import cost_of

    origin, threshold = manifest.origin, manifest.threshold
    model, size = origin.model, sum((bundle / name).stat().st_size for name in manifest.files)
    adapters = f"{manifest.adapter_parameters:,} parameters"
    if manifest.parameters:
        adapters += f", {manifest.adapter_parameters / manifest.parameters:.2%} of the model"
    reference = model.reference or "passed in Python"
    if reference.startswith("hf:") and "base" in model.arguments:
        reference += f" on {model.arguments['base']}"
    rows = [
        ("model", f"{reference}, weights {model.weights or 'not named'}"),
        ("", f"{manifest.parameters:,} parameters, fingerprint {manifest.fingerprint[:12]}"),
        ("classes", ", ".join(model.classes) or "not named"),
        ("adapter", ", ".join(f"{layer} rank {rank}" for layer, rank in manifest.layers.items()) or "none"),
        *([("", adapters)] if manifest.layers else []),
        ("second opinion", ", ".join(_member(member) for member in manifest.members) or "none"),
        ("one pass", _split_point(bundle, manifest)),
        *(("cost", sentence) for sentence in cost_of(manifest.measured)),
        ("suspicion", _suspicion(bundle, manifest)),
        ("threshold", _threshold(threshold)),
    ]
    if manifest.target is not None:
        rows.append(("target", str(manifest.target)))
    rows.append(("guarantee", guarantee(threshold)))
    rows.append(("candidates", candidates_in_words(manifest.sets)))
    rows += _measured(manifest.measured)
    for role, data in origin.data.items():
        rows.append((role, str(data)))
    rows.append(("settings", ", ".join(f"{name} {value}" for name, value in origin.settings.items())))
    rows.append(("versions", ", ".join(f"{name} {value}" for name, value in manifest.versions.items())))
    rows.append(("on disk", f"{size:,} bytes in {len(manifest.files)} files, all as they were written"))
    return rows


def _measured(measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of a fit: its shares and its numbers, a dash where one is not defined."""
    from petm._internal.files import plain
    from petm.report.tables import MISSING, with_interval

    rows = []
    for name, value in plain(measured).items():
        numbers = value.values() if isinstance(value, dict) and value.keys() == _SHARE else ()
        if numbers and all(isinstance(number, float | int | None) for number in numbers):
            spread = with_interval(value["value"], (value["low"], value["high"]))
            rows.append((name, f"{spread}, {value['count'] or 0:,} of {value['of'] or 0:,}"))
        elif value is None or isinstance(value, float | int):
            rows.append((name, MISSING if value is None else f"{value:.4g}"))
    return [(name.replace("_", " "), value) for name, value in rows]


def _threshold(threshold: "Threshold") -> str:
    """The threshold in words."""
    kind, several, values = "class", "classes", threshold.values
    if threshold.groups:
        kind, several, values = "combination of groups", "combinations", values[: len(threshold.groups.cells)]
    finite = [value for value in values if math.isfinite(value)]
    parts = [f"suspect from {min(finite):.4g} to {max(finite):.4g} on, by {kind}"] if finite else []
    if finite and len(values) == 1:
        parts = ["suspect above 0" if 0 < finite[0] < sys.float_info.min else f"suspect from {finite[0]:.4g} on"]
    for limit, what in ((-math.inf, "nothing"), (math.inf, "everything")):
        if count := values.count(limit):
            parts.append(f"{what} is trusted{f' in {count} of {len(values)} {several}' if len(values) > 1 else ''}")
    return f"{'; '.join(parts)} ({threshold.rule})"


def _suspicion(bundle: Path, manifest: "Manifest") -> str:
    from petm._internal.records import Record

    names = Record(manifest.suspicion, f"{bundle}: suspicion").texts("evidence")
    return " + ".join(names).replace("_", " ")


def _member(member: "MemberRecord") -> str:
    return f"{member.adapter or 'the model'} on the {'input' if member.view == 'same' else member.view}"


def _split_point(bundle: Path, manifest: "Manifest") -> str:
    """The split point in words."""
    from petm._internal.records import Record

    if not manifest.members:
        return "the model alone"
    if (cascade := manifest.cascade) is not None:
        limit = f" and below {cascade.high:.3g}" if cascade.high < 1 else ""
        asked = f"1 minus the model's greatest probability is {cascade.low:.3g} or more{limit}"
        return f"the model first; the second opinion only where {asked}"
    if manifest.split_point is None:
        return "split point not known yet; found at the first use"
    saved = Record(manifest.split_point, f"{bundle}: split_point")
    kind, module = saved.text("kind"), saved.text("module")
    if kind == "apart":
        return "no: this model mixes the samples of a batch, so each opinion needs its own pass"
    where = f"{kind} {module}" if module else "at the input"
    if saved.texts("shared"):
        where = f"before {module}, behind blocks that run once"
    shared, ratio = saved.number("share_before"), saved.number("counted_ratio")
    return f"split point {where}; {shared:.1%} of the operations are shared, {ratio:.2f} times those of the model"
