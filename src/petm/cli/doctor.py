"""``petm doctor``: what is installed, on which devices petm computes, and what installs the rest."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import click

from petm.cli import options

_DEVELOPMENT = ("dev", "docs")
"""Extras that only a checkout needs."""


@click.command(epilog="Example: petm doctor", short_help="Show what is installed and what is missing.")
@options.as_json
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Show versions, devices and optional packages, and the line that installs what is missing.

    The exit code is 1 where a package that petm always needs is missing or too old.
    """
    from petm._internal.extras import install_line

    found = _packages()
    told: dict[str, Any] = {
        "petm": version("petm"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "devices": _devices(),
        "packages": found.pop(""),
        "extras": {
            extra: {"packages": packages, "install": install_line(extra) if _missing(packages) else None}
            for extra, packages in found.items()
        },
    }
    broken = _missing(told["packages"])
    if as_json:
        options.print_json(told)
    else:
        click.echo(f"petm {told['petm']}, Python {told['python']}, {told['platform']}, {sys.executable}")
        click.echo(f"devices: {', '.join(told['devices'])}")
        click.echo(f"packages: {_listed(told['packages'])}")
        for extra, each in told["extras"].items():
            step = f". Install: {each['install']}" if each["install"] else ""
            click.echo(f"extra {extra}: {_listed(each['packages'])}{step}")
        if broken:
            click.echo(
                f"Error: missing or too old: {', '.join(broken)}. Install petm again: pip install petm", err=True
            )
    context.exit(1 if broken else 0)


def _packages() -> dict[str, dict[str, dict[str, str | None]]]:
    """The packages by extra, the empty one for those always needed: version, needed version, and whether it is that."""
    from packaging.requirements import Requirement

    found: dict[str, dict[str, dict[str, str | None]]] = {"": {}}
    for line in requires("petm") or ():
        one = Requirement(line)
        extra = str(one.marker).partition("extra == ")[2].strip("\"'") if one.marker else ""
        if extra in _DEVELOPMENT or one.name == "petm":
            continue
        try:
            there: str | None = version(one.name)
        except PackageNotFoundError:
            there = None
        fits = there is not None and one.specifier.contains(there, prereleases=True)
        needs = None if fits else str(one.specifier)
        found.setdefault(extra, {})[one.name] = {"version": there, "needs": needs}
    return found


def _missing(packages: dict[str, dict[str, str | None]]) -> list[str]:
    return [name for name, each in packages.items() if each["needs"] is not None]


def _listed(packages: dict[str, dict[str, str | None]]) -> str:
    def shown(name: str, each: dict[str, str | None]) -> str:
        needs = f" (needs {each['needs']})" if each["needs"] else ""
        return f"{name} {each['version'] or 'missing'}{needs}"

    return ", ".join(shown(name, each) for name, each in packages.items())


def _devices() -> list[str]:
    """The devices that ``--device`` can name, with what they are."""
    try:
        import torch
    except ImportError:
        return ["none, as PyTorch is missing"]
    names = [f"cuda:{each} {torch.cuda.get_device_name(each)}" for each in range(torch.cuda.device_count())]
    names += ["mps"] if torch.backends.mps.is_available() else []
    return [*names, f"cpu ({os.cpu_count()} cores, {torch.get_num_threads()} threads)"]
