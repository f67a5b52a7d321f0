"""A stranger's JSON: every value of any type is read as what it is, or refused with its place."""

import json
import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petm._internal.records import DEEPEST, Record, parse_json
from petm._internal.texts import is_name
from petm.errors import BundleError

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
anything = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner), max_leaves=9
)
READ = {
    "text": lambda value: isinstance(value, str),
    "whole": lambda value: type(value) is int and 0 <= value < 2**63,
    "number": lambda value: type(value) in (int, float) and abs(value) < 1e308,
    "flag": lambda value: value is None or type(value) is bool,
    "sequence": lambda value: isinstance(value, list),
    "texts": lambda value: isinstance(value, list) and all(isinstance(entry, str) for entry in value),
    "numbers": lambda value: isinstance(value, list) and all(READ["number"](entry) for entry in value),
    "record": lambda value: isinstance(value, dict),
    "records": lambda value: isinstance(value, list) and all(isinstance(entry, dict) for entry in value),
    "free": lambda value: value is None or isinstance(value, dict),
}
ABSENT = {"flag": False, "free": {}}


def in_bounds(content: object) -> bool:
    """Whether JSON of a stranger may hold this."""
    if isinstance(content, dict):
        return all(map(in_bounds, [*content, *content.values()]))
    if isinstance(content, list):
        return all(map(in_bounds, content))
    if isinstance(content, str):
        return is_name(content)
    if isinstance(content, float):
        return math.isfinite(content)
    return not isinstance(content, int) or -(2**63) <= content < 2**63


@pytest.mark.parametrize("kind", READ)
@given(value=anything)
def test_an_entry_is_of_its_type_or_refused(kind: str, value: object) -> None:
    read = getattr(Record({"entry": value}, "file"), kind)
    if READ[kind](value):
        found = read("entry")
        if kind == "records":
            found = [part.content for part in found]
        plain = found.content if kind == "record" else list(found) if isinstance(found, tuple) else found
        assert plain == (ABSENT[kind] if value is None else value)
    else:
        with pytest.raises(BundleError, match=r"^file, entry"):
            read("entry")


@given(anything)
def test_json_is_parsed_as_it_was_written_or_refused(content: object) -> None:
    text = json.dumps(content)
    if in_bounds(content):
        assert parse_json(text) == content
    else:
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)


@given(st.text() | st.text('[]{}",:0e-.nNul\\').map(str))
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    with suppress(ValueError):
        parse_json(text)


def test_depth_and_names_have_bounds() -> None:
    assert parse_json("[" * DEEPEST + "]" * DEEPEST) is not None
    for text in ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "[" * 100_000, '{"a": 1, "a": 1}', "[NaN]", "[1e999]"):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)
