"""Untrusted JSON: its size, depth and texts are checked when it is parsed, every entry when it is read."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn, TypeAlias, TypeGuard

from petm._internal.texts import is_name
from petm.errors import BundleError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

LONGEST_FILE, LONGEST_TEXT, MOST_ENTRIES, DEEPEST = 8 << 20, 1 << 16, 1 << 20, 16
"""Limits on bytes of a file, characters of a text, entries of a list and depth, far above those that petm writes."""


def parse_json(text: str) -> object:
    """Returns the content of JSON of a stranger.

    Raises:
        ValueError: It is no JSON; names an entry twice; is too long or too deep; or holds NaN, infinity, a whole number
            of more than 64 bits, or a text with control characters.
    """
    if len(text) > LONGEST_FILE:
        raise ValueError(f"more than {LONGEST_FILE:,} bytes")
    try:
        content = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("too deep") from error
    _check(content, DEEPEST)
    return content


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an entry is named twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _check(content: object, depth: int) -> None:
    if isinstance(content, str) and not (len(content) <= LONGEST_TEXT and is_name(content)):
        raise ValueError(f"a text is too long or has control characters: {content[:40]!a}")
    if isinstance(content, int) and not -(2**63) <= content < 2**63:
        raise ValueError("a whole number of more than 64 bits")
    if isinstance(content, float) and not math.isfinite(content):
        raise ValueError("a number beyond all bounds")
    if isinstance(content, dict | list):
        if not depth:
            raise ValueError("too deep")
        for entry in (*content, *content.values()) if isinstance(content, dict) else content:
            _check(entry, depth - 1)


class Record:
    """A JSON object whose entries are read by name and checked by type, size and range.

    Args:
        content: Parsed JSON of any type.
        place: Name in messages: the file, and the path within it.

    Raises:
        BundleError: ``content`` is no JSON object. All methods raise it for an entry of another type or range.
    """

    def __init__(self, content: object, place: str) -> None:
        if not isinstance(content, Mapping) or len(content) > MOST_ENTRIES:
            raise BundleError(f"{place}: expected a JSON object, got {_shown(content)}.")
        self.content, self.place = content, place

    @classmethod
    def from_file(cls, path: Path) -> "Record":
        """Returns the object in a file; raises BundleError where there is none, or it is too long."""
        place = f"{path.parent}: {path.name}" if path.parent.name else str(path)
        try:
            if path.stat().st_size > LONGEST_FILE or not path.is_file():
                raise BundleError(f"{place}: expected a file of at most {LONGEST_FILE:,} bytes. Restore it.")
            return cls(parse_json(path.read_text(encoding="utf-8")), place)
        except FileNotFoundError as error:
            got = f"no {path.name} in it" if path.parent.exists() else "a path that does not exist"
            raise BundleError(f"{path.parent}: expected a petm bundle, got {got}.") from error
        except (OSError, ValueError) as error:
            raise BundleError(f"{place}: expected readable JSON, got a damaged file ({error}). Restore it.") from error

    def has(self, name: str) -> bool:
        """Returns whether an entry is there and not null."""
        return self.content.get(name) is not None

    def text(self, name: str) -> str:
        """Returns a text."""
        value = self.content.get(name)
        if not isinstance(value, str) or len(value) > LONGEST_TEXT:
            self._refuse(name, "a text", value)
        return value

    def text_or_none(self, name: str) -> str | None:
        """Returns a text, or None where the entry is absent or null."""
        return self.text(name) if self.has(name) else None

    def whole(self, name: str, *, least: int = 0, most: int = 2**63 - 1) -> int:
        """Returns a whole number within a range."""
        value = self.content.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self._refuse(name, f"a whole number from {least} to {most}", value)
        return value

    def number(self, name: str, *, least: float = -math.inf, most: float = math.inf) -> float:
        """Returns a finite number within a range."""
        value = self.content.get(name)
        if not _is_number(value) or not least <= value <= most:
            self._refuse(name, f"a finite number from {least} to {most}", value)
        return float(value)

    def flag(self, name: str) -> bool:
        """Returns true or false; false where the entry is absent or null."""
        value = self.content.get(name)
        if not isinstance(value, bool | None):
            self._refuse(name, "true or false", value)
        return value is True

    def sequence(self, name: str) -> list[object]:
        """Returns a list, entries unchecked."""
        value = self.content.get(name)
        if not isinstance(value, list) or len(value) > MOST_ENTRIES:
            self._refuse(name, "a list", value)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Returns a list of texts."""
        values = self.sequence(name)
        found = tuple(value for value in values if isinstance(value, str) and len(value) <= LONGEST_TEXT)
        if len(found) != len(values):
            self._refuse(name, "a list of texts", values)
        return found

    def numbers(self, name: str) -> tuple[float, ...]:
        """Returns a list of finite numbers."""
        values = self.sequence(name)
        found = tuple(float(value) for value in values if _is_number(value))
        if len(found) != len(values):
            self._refuse(name, "a list of finite numbers", values)
        return found

    def record(self, name: str) -> "Record":
        """Returns the object in an entry."""
        return Record(self.content.get(name), f"{self.place}, {name}")

    def records(self, name: str) -> list["Record"]:
        """Returns a list of objects."""
        return [Record(entry, f"{self.place}, {name}[{at}]") for at, entry in enumerate(self.sequence(name))]

    def free(self, name: str) -> dict[str, Json]:
        """Returns an object with unchecked entries; absent is empty."""
        return dict(self.record(name).content) if self.has(name) else {}

    def _refuse(self, name: str, rule: str, value: object) -> NoReturn:
        raise BundleError(f"{self.place}, {name}: expected {rule}, got {_shown(value)}.")


def _is_number(value: object) -> TypeGuard[int | float]:
    # The comparison comes first: a whole number may be too large for a float.
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e308 and math.isfinite(value)
    )


def _shown(value: object) -> str:
    """A value in a message, cut to a readable length."""
    text = "nothing" if value is None else json.dumps(value, default=lambda other: type(other).__name__)
    return text if len(text) <= 60 else f"{text[:57]}..."
