"""Packages that only some users need."""

from importlib import import_module
from typing import Any

from petm.errors import ExtraError


def import_extra(extra: str, *names: str) -> list[Any]:
    """Returns modules of the packages that an extra of petm installs.

    Args:
        extra: Its name, as in ``petm[onnx]``.
        names: Of the modules.

    Raises:
        ExtraError: One cannot be imported.
    """
    try:
        return [import_module(name) for name in names]
    except ImportError as error:
        raise ExtraError(
            f"{extra}: expected {', '.join(names)}, got: {error}. Install it: pip install 'petm[{extra}]'."
        ) from error
