"""Optional packages."""

from importlib import import_module
from typing import Any

from petm.errors import ExtraError


def install_line(extra: str) -> str:
    """Returns the commands that install an extra, from an index and from a checkout."""
    return f"pip install 'petm[{extra}]', or in a checkout pip install '.[{extra}]'"


def import_extra(extra: str, *names: str) -> list[Any]:
    """Returns modules by name; raises `ExtraError` where one is missing, which ``petm[extra]`` would install."""
    try:
        return [import_module(name) for name in names]
    except ImportError as error:
        raise ExtraError(
            f"{extra}: expected {', '.join(names)}, got: {error}. Install it: {install_line(extra)}."
        ) from error
