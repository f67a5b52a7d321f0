"""The commands of experiments in the documentation: each is parsed by its own script, as a run takes hours."""

import argparse
import re
import shlex
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest

from experiments.commands import experiments

DOCS = Path(__file__).parents[2] / "docs"
COMMAND = re.compile(r"^python -m (experiments[\w.]*) (.*)$", re.MULTILINE)
CALLS = [
    (path.name, module, [word for word in shlex.split(rest) if word != "..."])
    for path in sorted(DOCS.rglob("*.md"))
    for module, rest in COMMAND.findall(path.read_text(encoding="utf-8").replace("\\\n", " "))
]


class ParsedError(Exception):
    """Ends a script behind its parser."""


@pytest.mark.parametrize(("page", "module", "words"), CALLS)
def test_a_command_is_parsed(page: str, module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_and_end(self: argparse.ArgumentParser, *given: Any) -> None:
        parse(self, *given)
        raise ParsedError

    def as_path(self: click.Path, value: Any, *_: Any) -> Path:
        return Path(value)

    if module == "experiments":
        monkeypatch.setattr(click.Path, "convert", as_path)  # no file of the reader's is here
        experiments.commands[words[0]].make_context(words[0], words[1:])
        return
    found = find_spec(module)
    script = import_module(f"{module}.__main__" if found and found.submodule_search_locations else module)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises(ParsedError):
        script.main()


def test_commands_were_found() -> None:
    assert {module for _, module, _ in CALLS} >= {"experiments", "experiments.suite", "experiments.guarantee"}
