"""Public names of a package that are imported from their files when they are first used."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, home: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Returns ``__all__``, ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: Its name.
        home: The public names of each of its files.
    """
    file_of = {name: file for file, names in home.items() for name in names}
    known = sorted(file_of)

    def find(name: str) -> Any:
        if name not in file_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{file_of[name]}"), name)
        setattr(sys.modules[package], name, value)  # also where a file has the name of its function, as distill does
        return value

    return known, find, lambda: known
