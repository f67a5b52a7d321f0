"""What a user of fit, grade, serve and monitor reads, without letters of formulas."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from html_page import Page
from petm.cli.fit import fit
from petm.cli.grade import grade
from petm.cli.monitor import monitor
from petm.cli.serve import serve
from words import forbidden

SRC = Path(__file__).parents[1] / "src" / "petm"
PAPER = {"paper", "reproduce.py"}
"""The paper's own experiment, in the paper's words."""
PAPERS_FIGURES = {SRC / "report" / "tables.py", SRC / "report" / "figures.py"}
"""Hold the paper's tables and figures beside others; there it is α, and nowhere else."""


def literals(path: Path) -> Iterator[str]:
    """The string literals of a module that hold several words, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and id(node) not in docstrings else None
        if isinstance(text, str) and " " in text.strip():
            yield text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A second opinion of A ", []),
        ("The base model A, and A' at alpha 1", ["A", "A'", "alpha"]),
        ("A is wrong; it Promises", ["A is", "Promises"]),
    ],
)
def test_an_article_is_no_letter(text: str, found: list[str]) -> None:
    assert forbidden(text) == found


def test_messages_and_output() -> None:
    paths = [path for path in SRC.rglob("*.py") if not PAPER & set(path.parts)]
    assert len(paths) > 100
    texts = [(path, text) for path in paths for text in literals(path)]
    assert [each for each in texts if set(forbidden(each[1])) - ({"α"} if each[0] in PAPERS_FIGURES else set())] == []


@pytest.mark.parametrize("command", [fit, grade, serve, monitor], ids=lambda command: command.name)
def test_help(command: click.Command) -> None:
    assert forbidden(command.get_help(click.Context(command, info_name=command.name))) == []


def test_the_page_and_the_reports() -> None:
    folder = SRC / "serving" / "page"
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    shown = [page.text, *(value for _, attributes in page.tags for value in attributes.values() if " " in value)]
    for script in folder.glob("*.js"):
        code = re.sub(r"/\*[\s\S]*?\*/|(?<!:)//.*", "", script.read_text(encoding="utf-8"))
        shown += [text for text in re.findall(r"\"[^\"\n]*\"|`[^`]*`", code) if " " in text]
    for name in ("fit_report.html.jinja", "page.html.jinja", "parts.jinja"):
        template = (SRC / "report" / "templates" / name).read_text(encoding="utf-8")
        shown.append(re.sub(r"{%.*?%}|{{.*?}}|{#.*?#}", "", template, flags=re.DOTALL))
    assert len(shown) > 100
    assert [text for text in shown if forbidden(text)] == []
