"""``petm inspect``: what is in a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from petm.cli import options

if TYPE_CHECKING:
    from petm.selective.thresholds import Threshold


@click.command(epilog="Example: petm inspect runs/demo/grader.petm", short_help="Show what is in a bundle.")
@click.argument("bundle", type=click.Path(path_type=Path))
@options.as_json
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what is in a bundle: model, layers and ranks, sizes, threshold, figures, where it comes from.

    Every file is checked against its hash on the way.
    """
    print_manifest(bundle, as_json=as_json)


def print_manifest(bundle: Path, *, as_json: bool) -> None:
    """Prints a bundle's manifest, as a table or as JSON."""
    from petm.grading.bundle import read_manifest

    manifest = read_manifest(bundle)
    if as_json:
        options.print_json({"bundle": str(bundle), **manifest})
        return
    table = Table(title=str(bundle), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _rows(bundle, manifest):
        table.add_row(name, value)
    Console().print(table)


def _rows(bundle: Path, manifest: dict[str, Any]) -> list[tuple[str, str]]:
    from petm.selective.thresholds import Threshold

    model, adapter, threshold = manifest["model"], manifest["adapter"], Threshold.from_json(manifest["threshold"])
    measured, size = manifest["measured"], sum((bundle / name).stat().st_size for name in manifest["files"])
    rows = [
        ("model", f"{model['reference'] or 'passed in Python'}, weights {model['weights'] or 'not named'}"),
        ("", f"{model['parameters']:,} parameters, fingerprint {model['fingerprint'][:12]}"),
        ("classes", ", ".join(model["classes"]) or "not named"),
        ("adapter", ", ".join(f"{layer} rank {rank}" for layer, rank in adapter["layers"].items()) or "none"),
        ("", f"{adapter['parameters']:,} parameters, {adapter['parameters'] / model['parameters']:.2%} of the model"),
        ("", ", ".join(_member(member) for member in manifest["members"])),
        ("one pass", _parting(adapter["parting"], manifest["look_from"])),
        ("suspicion", manifest["score"].replace("_", " ")),
        ("threshold", _threshold(threshold)),
    ]
    if threshold.max_risk is not None and threshold.holds:
        promise = f"at most {threshold.max_risk:.3g} of the trusted are wrong, with {threshold.confidence:.3g}"
        rows.append(("promise", f"{promise} confidence; trusts {threshold.coverage:.1%} of the calibration data"))
    elif threshold.max_risk is not None:
        rows.append(("promise", f"none. {threshold.remedy}"))
    for name, value in measured.items():
        if isinstance(value, dict) and value["value"] is not None:
            spread = f"{value['low']:.1%} to {value['high']:.1%}"
            rows.append((name, f"{value['value']:.1%} ({value['count']} of {value['of']}; 95 % interval {spread})"))
        elif isinstance(value, float | int):
            rows.append((name.replace("_", " "), f"{value:.4g}"))
    for role, data in manifest["data"].items():
        rows.append((role, f"{data['samples']:,} samples from {data['source']}"))
    rows.append(("settings", ", ".join(f"{name} {value}" for name, value in manifest["settings"].items())))
    rows.append(("versions", ", ".join(f"{name} {value}" for name, value in manifest["versions"].items())))
    rows.append(("on disk", f"{size:,} bytes in {len(manifest['files'])} files, all as they were written"))
    return rows


def _threshold(threshold: "Threshold") -> str:
    """Where trust ends, in words."""
    values = threshold.values
    where = f"{values[0]:.4g}" if len(values) == 1 else f"{min(values):.4g} to {max(values):.4g}, by class,"
    return f"suspect from {where} on ({threshold.rule})"


def _member(member: dict[str, str]) -> str:
    return f"{member['adapter'] or 'A itself'} looks at the {'input' if member['view'] == 'same' else member['view']}"


def _parting(parting: dict[str, Any] | None, look_from: float) -> str:
    """Where both opinions part, in words."""
    if look_from > 0:
        return f"A first; the second opinion only where 1 minus A's greatest probability is {look_from:.3g} or more"
    if parting is None:
        return "not tried yet; found at the first use"
    if parting["kind"] == "apart":
        return "no: this model mixes the samples of a batch, so each opinion takes a pass of its own"
    where = f"{parting['kind']} {parting['module']}" if parting["module"] else "at the input"
    if parting["shared"]:
        where = f"before {parting['module']}, behind blocks that run once"
    shared, ratio = parting["share_before"], parting["counted_ratio"]
    return f"the opinions part {where}; {shared:.1%} of the operations are shared, {ratio:.2f} times those of the model"
