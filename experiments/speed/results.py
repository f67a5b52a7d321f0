"""What was measured, as tables and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from rich.console import Console

from petm._internal.files import write_json, write_text
from petm.report.figures import STYLE, TEACHER_COLOUR, WIDTH, save_figure
from petm.report.tables import (
    MISSING,
    Table,
    markdown_table,
    size,
    terminal_table,
)

_COLUMNS = ("Contender", "Time", "Half", "Ratio", "Half", "Counted", "Peak", "×")
_READ = (
    "Time of one batch, and its ratio to the plain forward's, taken round by round: medians, and where the middle half "
    "lies. Counted: the ratio of operations. Peak: memory above the libraries', and its ratio (×)."
)


def write_results(result: Mapping[str, Any], folder: Path) -> None:
    """Writes ``speed.json``, ``speed.md``, ``speed.png`` and ``speed.svg`` into a folder.

    Args:
        result: From `experiments.speed.measure.measure_speed`, whole or as far as it is.
        folder: Made when absent; what an earlier run has left there under these names is replaced.

    Raises:
        RunError: A file could not be written.
    """
    write_json(folder / "speed.json", result)
    if timed := [case for case in result["cases"] if _bars(case)]:
        save_figure(ratio_figure(timed), folder, "speed")
    write_text(folder / "speed.md", markdown(result, figure="speed.svg" if timed else None))


def ratio_figure(cases: Sequence[Mapping[str, Any]]) -> Figure:
    """Returns bars of ratios from 1 on, on a logarithmic axis, each with its spread and with the counted ratio.

    Args:
        cases: From `experiments.speed.measure.measure_case`, each with a batch that was timed; a panel each.
    """
    shades = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7")
    batches = list(dict.fromkeys(entry["batch"] for case in cases for entry in case["batches"] if entry["rows"]))
    names = [list(dict.fromkeys(row["title"] for _, row in _bars(case))) for case in cases]
    thickness = 0.8 / len(batches)
    with rc_context(STYLE):
        height = sum(0.9 + 0.17 * len(batches) * len(titles) for titles in names)
        figure = Figure(figsize=(WIDTH, 1.2 + height))
        drawn = figure.subplots(
            len(cases), squeeze=False, sharex=True, height_ratios=[1 + len(titles) for titles in names]
        )[:, 0]
        for axes, case, titles in zip(drawn, cases, names, strict=True):
            for batch, row in _bars(case):
                place, ratio = batches.index(batch), row["ratio"]
                y = titles.index(row["title"]) + (place - (len(batches) - 1) / 2) * thickness
                axes.barh(y, ratio["median"] - 1, thickness, left=1, color=shades[place % len(shades)])
                axes.hlines(y, ratio["low"], ratio["high"], color="#333333", linewidth=1)
                if row["counted_ratio"] is not None:
                    axes.plot(row["counted_ratio"], y, marker="d", color=TEACHER_COLOUR, markersize=4, linestyle="none")
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.axvline(1, color="#888888", linewidth=1)
            axes.set(yticks=range(len(titles)), yticklabels=titles)
            axes.set_title(case["title"], fontsize=10, wrap=True)
            axes.grid(visible=False, axis="y")
            axes.invert_yaxis()
        drawn[-1].set_xlabel("time over a plain forward of A")
        handles = [
            Patch(color=shades[place % len(shades)], label=f"batch {batch}") for place, batch in enumerate(batches)
        ]
        counted = Line2D([], [], marker="d", color=TEACHER_COLOUR, markersize=4, linestyle="none", label="counted")
        figure.legend(handles=[*handles, counted], loc="outside upper left", ncols=len(handles) + 1)
    return figure


def _bars(case: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """The batch size and the row of everything but the plain forward."""
    rows = [(entry["batch"], row) for entry in case["batches"] for row in entry["rows"]]
    return [(batch, row) for batch, row in rows if row["contender"] != "plain"]


def print_results(result: Mapping[str, Any]) -> None:
    """Prints the tables on standard output."""
    console = Console()
    console.print(_READ, *(f"{case['title']}: {_about(case)}" for case in result["cases"]), sep="\n", highlight=False)
    console.print()
    for table in speed_tables(result):
        console.print(terminal_table(table))
        console.print()


def markdown(result: Mapping[str, Any], figure: str | None = None) -> str:
    """Returns the result as a Markdown page.

    Args:
        result: From `experiments.speed.measure.measure_speed`.
        figure: The picture beside the page.
    """
    parts = ["# Speed", *([f"![Ratios of time]({figure})"] if figure else [])]
    parts += [_READ, "\n".join(f"- {case['title']}: {_about(case)}" for case in result["cases"])]
    parts += [
        f"## {table.title}\n\n{markdown_table(table)}\n\n{table.caption}".rstrip() for table in speed_tables(result)
    ]
    definitions = [(one["title"], one["definition"]) for one in result["contenders"].values()]
    definitions += [(row["title"], row["definition"]) for row in (result["fit"] or {"rows": []})["rows"]]
    parts += ["## What the rows are", "\n".join(f"- **{title}**: {text}" for title, text in definitions)]
    return "\n\n".join(parts) + "\n"


def speed_tables(result: Mapping[str, Any]) -> list[Table]:
    """Returns a table for each network and batch size, one for the fitting if it was timed, and one for the machine."""
    tables = [_batch_table(case, entry) for case in result["cases"] for entry in case["batches"]]
    if result["fit"] is not None:
        tables.append(_fit_table(result["fit"]))
    return [*tables, _machine_table(result)]


def _batch_table(case: Mapping[str, Any], entry: Mapping[str, Any]) -> Table:
    """One network at one batch size."""
    title = f"{case['title']}, batch {entry['batch']}"
    if entry["left_out"]:
        return Table(title, f"Left out: {entry['left_out']}", _COLUMNS, ())
    rows, notes = [], []
    for row in entry["rows"]:
        partly = row["parts_timed"] < row["parts"]
        rows.append(
            (
                row["title"] + (" *" if partly else ""),
                *_times(row["seconds"]),
                *_ratios(row["ratio"]),
                _ratio(row["counted_ratio"]),
                size(row["memory"]["peak"]) if row["memory"] else MISSING,
                _ratio(row["memory"]["ratio"]) if row["memory"] else MISSING,
            )
        )
        if row["contender"] == "one_pass":
            notes.append(f"One pass over two models: {' ('.join(_ratios(row['ratio_to_two_models']))}).")
    if any(row["parts_timed"] < row["parts"] for row in entry["rows"]):
        notes.append("* One of the equal forwards was timed, and multiplied.")
    titles = {row["contender"]: row["title"] for row in entry["rows"]}
    notes += [f"{titles.get(name, name)}: {reason}" for name, reason in case["left_out"].items()]
    notes += [f"Memory, {titles.get(name, name)}: {reason}" for name, reason in case["memory_left_out"].items()]
    return Table(title, " ".join((f"{entry['rounds']} rounds.", *notes)), _COLUMNS, tuple(rows))


def _fit_table(fit: Mapping[str, Any]) -> Table:
    settings, long = fit["settings"], fit["long"]
    rows = [
        (
            row["title"],
            f"{settings['epochs']}",
            *_times(row["seconds"]),
            *_ratios(row["speedup"]),
            _ratio(row["counted_speedup"]),
            f"{row['loss']:.1e}",
        )
        for row in fit["rows"]
    ]
    caption = (
        f"The paper's CNN, adapter on fc1 and fc2; {fit['samples']:,} samples ({fit['data']}), batches of "
        f"{settings['batch_size']}, {settings['repeats']} runs each, in turn. Times of whole fits, with the teacher's "
        "answers and the cache. Faster: how many times as fast as the naive way. Counted: the same of "
        "operations. Loss: KL divergence from the teacher afterwards."
    )
    if long:
        nothing = (MISSING,) * 2
        naive, cached = (next(row for row in fit["rows"] if row["way"] == way) for way in ("naive", "cached"))
        epochs = f"{long['epochs']}"
        rows += [
            (f"{naive['title']} *", epochs, duration(long["naive_seconds"]), MISSING, "1.00", *nothing, MISSING),
            (
                cached["title"], epochs, duration(long["cached_seconds"]), MISSING, _ratio(long["speedup"]), *nothing,
                f"{long['loss']:.1e}",
            ),
        ]  # fmt: skip
        caption += f" * Not run: extrapolated from {long['naive_from_epochs']} epochs."
    header = ("Fit", "Epochs", "Time", "Half", "Faster", "Half", "Counted", "Loss")
    return Table("Fitting", caption, header, tuple(rows))


def _machine_table(result: Mapping[str, Any]) -> Table:
    machine = result["machine"]
    rows = [
        ("Device", f"{machine['device']}: {machine['device_name']}"),
        ("Threads", f"{machine['threads']} of {machine['cores']} cores"),
        ("Load at the start", MISSING if machine["load"] is None else f"{machine['load']:.2f}"),
        ("System", machine["system"]),
        ("Date", result["date"]),
        *machine["versions"].items(),
    ]
    return Table("Machine", "", ("What", "Value"), tuple(rows), words=frozenset({0, 1}))


def _about(case: Mapping[str, Any]) -> str:
    return f"{case['parameters']:,} parameters, {case['adapter_parameters']:,} in the adapter."


def duration(seconds: float) -> str:
    """Returns a time with three digits, in µs, ms or s."""
    unit, factor = _unit(seconds)
    return f"{_digits(seconds * factor)} {unit}"


def _times(spread: Mapping[str, float]) -> tuple[str, str]:
    """The median with its unit, and the middle half in the same."""
    _, factor = _unit(spread["median"])
    return duration(spread["median"]), f"{_digits(spread['low'] * factor)}–{_digits(spread['high'] * factor)}"


def _ratios(spread: Mapping[str, float]) -> tuple[str, str]:
    return _ratio(spread["median"]), f"{_ratio(spread['low'])}–{_ratio(spread['high'])}"


def _unit(seconds: float) -> tuple[str, float]:
    return next(((unit, factor) for unit, factor in (("µs", 1e6), ("ms", 1e3)) if seconds * factor < 999.5), ("s", 1.0))


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def _ratio(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"
