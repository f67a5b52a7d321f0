"""Names are text, wherever they are shown."""

import html
import json
import sys
import warnings
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.console import Console

from networks import TinyCNN, images, randomise, seeded
from petm._internal import progress
from petm._internal.texts import is_name, markdown, visible, visible_json
from petm.adapter.model import attach_adapter
from petm.cli import main
from petm.cli.inspect import print_manifest
from petm.errors import BundleError, DataError, PetmWarning
from petm.grading.grader import Grader, load
from petm.grading.provenance import ModelOrigin, Origin
from petm.report.figures import STYLE
from petm.report.tables import Table, terminal_table
from petm.selective.thresholds import DISAGREEMENT

NAMES = (
    "[/bold]",
    "[cat]",
    "$x$",
    "<b>",
    "a|b",
    "*_`#",
    "=1+1",
    "\\d",
    "日本",
    "é",
    "\u200fשלום",
    "a b",
    "{x}",
    "%s",
    "'\"",
    "$",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_stay_as_they_are(name: str) -> None:
    assert is_name(name)
    assert visible(name) == name.replace("\u200f", "\\u200f")
    drawn = Console(file=StringIO(), width=200)
    drawn.print(terminal_table(Table(name, name, (name,), ((name,),))))
    assert drawn.file.getvalue().count(visible(name)) == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "a\rb", "\x00", "\x9b31m", "\u2028", "\ud800", "\x7f", "a\tb"])
def test_what_is_no_name(name: str) -> None:
    assert not is_name(name)
    assert visible(name).isprintable()
    with pytest.raises(DataError, match="classes"):
        ModelOrigin(classes=("a", name))


def test_directions_are_shown() -> None:
    assert visible("gpj\u202eexe") == "gpj\\u202eexe"
    assert visible("\u2066a") == "\\u2066a"


AWKWARD = st.text(st.characters() | st.sampled_from("\x1b\n\u202e\u2028\ud800\\*_`#|<>[]()!&;~-.1"), max_size=30)
"""Any text, rich in what is markup or controls a terminal."""


@given(AWKWARD)
def test_any_text_is_shown_on_one_line_without_control(text: str) -> None:
    shown = visible(text)
    assert visible(shown) == shown
    assert is_name(shown)
    assert len(shown.splitlines()) <= 1
    if not any(character in text for character in "\u061c\u200e\u200f\u202e\u2066\\"):
        assert is_name(text) == (shown == text)


@given(AWKWARD.filter(lambda text: "&" not in text))
def test_any_text_stays_itself_in_markdown(text: str) -> None:
    rendered = MarkdownIt("commonmark").enable("strikethrough").renderInline(markdown(text))
    assert html.unescape(rendered) == visible(" ".join(text.split()))


def test_json_is_shown_with_the_same_content() -> None:
    content = {"gpj\u202eexe": "\x9b2J\ud800\u2028 Müller 猫"}
    told = visible_json(json.dumps(content, indent=2, ensure_ascii=False))
    assert json.loads(told) == content
    assert all(visible(line) == line for line in told.split("\n"))
    assert "Müller 猫" in told


def test_markdown_has_no_markup() -> None:
    assert markdown("[a](b)|<i>\n# x\x1b") == "\\[a\\](b)\\|\\<i\\> \\# x\\x1b"


def test_a_dollar_is_a_dollar_in_figures() -> None:
    with rc_context(STYLE):
        text = Figure().text(0, 0, "$\\nonsense{ a_$")
        assert not text.get_parse_math()
        text.figure.savefig(StringIO(), format="svg")  # type: ignore[union-attr]


def test_a_bundle_of_strange_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = seeded(TinyCNN)
    adapted = randomise(attach_adapter(network, {"fc1": 2}))
    path = tmp_path / "[/bold][cat].petm"
    Grader(adapted, DISAGREEMENT, origin=Origin(ModelOrigin(classes=NAMES))).save(path)
    adapted.detach()
    print_manifest(path, as_json=False)
    out = "".join(line.removeprefix("classes").strip() for line in capsys.readouterr().out.splitlines())
    for name in ("[/bold]", "[cat]", "<b>", "{x}"):
        assert name in out
    assert "[/bold][cat].petm" in out
    found = load(path, network)
    assert found.origin.model.classes == NAMES
    np.testing.assert_array_equal(found.grade(images(3)).labels, Grader(adapted, DISAGREEMENT).grade(images(3)).labels)


def test_errors_and_warnings_control_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["petm", "inspect", str(tmp_path / "a\x1b[2J\nb\u202e")])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(SystemExit):
        main()
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "a\\x1b[2J\\nb\\u202e" in err
    warnings.showwarning(PetmWarning("\x1b[31m"), PetmWarning, "", 0)
    assert capsys.readouterr().err == "Warning: \\x1b[31m\n"


def test_a_bar_reads_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Console(file=StringIO(), force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(progress, "console", shown)
    with progress.track("[/bold]", 1) as bar:
        bar.advance()
        next(iter(progress._shown))[0].refresh()
    assert "[/bold]" in shown.file.getvalue()  # type: ignore[attr-defined]


def test_a_forged_name_is_refused_before_it_is_shown(tmp_path: Path) -> None:
    (tmp_path / "petm.json").write_text('{"model": "\\u001b[2J"}')
    with pytest.raises(BundleError) as raised:
        load(tmp_path)
    assert str(raised.value).isprintable()
