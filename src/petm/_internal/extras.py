"""Optional packages."""

from importlib import import_module
from typing import Any

from petm.errors import ExtraError


def import_extra(extra: str, *names: str) -> list[Any]:
    """Returns modules by name; raises `ExtraError` where one is missing, which ``petm[extra]`` would install."""
    try:
        return [import_module(name) for name in names]
    except ImportError as error:
        raise ExtraError(
            f"{extra}: expected {', '.join(names)}, got: {error}. Install it: pip install 'petm[{extra}]'."
        ) from error
