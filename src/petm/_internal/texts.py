"""Texts of strangers: names are shown as they are, and control no terminal."""

import re
import unicodedata
from collections.abc import Collection
from difflib import get_close_matches

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of what follows, so that it reads as something else."""

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|])")


def visible(text: str) -> str:
    r"""Returns a text of one line for a terminal: control and direction characters, and lone surrogates, are escaped.

    >>> print(visible("cat" + chr(27) + "[2J"))
    cat\x1b[2J
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode() if _is_control(character) else character for character in text
    )


def visible_json(text: str) -> str:
    """Returns JSON of any number of lines with the same content, in which `visible` would escape nothing."""
    return text if text.isascii() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}" if not character.isascii() and _is_control(character) else character


def markdown(text: str) -> str:
    """Returns a text as one line of Markdown in which nothing is markup, also within a table."""
    return visible(_MARKUP.sub(r"\\\1", " ".join(text.split())))


def near(name: object, known: Collection[str]) -> str:
    """Returns a question after a known name that looks like a wrong one, to stand behind it; empty without one.

    >>> near("labl", ["text", "label"])
    " (did you mean 'label'?)"
    """
    found = get_close_matches(str(name), known, n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def is_name(text: str) -> bool:
    """Returns whether a text can be a name: without control characters, breaks of lines and lone surrogates."""
    return not any(_is_control(character) for character in text if character not in _BIDI)


def _is_control(character: str) -> bool:
    return character in _BIDI or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
