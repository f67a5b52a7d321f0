"""Messages of the library as a user of the command line reads them."""

import ast
import math
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np
import pytest

from petm._internal.files import REPLACE
from petm._internal.texts import near
from petm.adapter.model import attach_adapter
from petm.cli import main, options
from petm.cli import petm as group
from petm.cli.fit import fit
from petm.cli.grade import grade
from petm.cli.inspect import _threshold
from petm.data.labels import match_classes
from petm.data.tables import open_table
from petm.errors import DataError, PetmError, PetmWarning
from petm.evidence.suspicion import evidence_named
from petm.selective.thresholds import DISAGREEMENT, Threshold
from petm.training.config import FitConfig
from tests.helpers.networks import TinyCNN

SOURCE = Path(options.__file__).parent.parent


@pytest.mark.parametrize(
    ("message", "command", "expected"),
    [
        ("model: expected a file", fit, "--model: expected a file"),
        ("data: expected more", fit, "--data: expected more"),
        ("inputs: expected one, got none", grade, "INPUTS: expected one, got none"),
        ("labels: expected others, got none", fit, "labels: expected others, got none"),
        ("x.csv: no text. Pass skip_bad=True (--skip-bad).", fit, "x.csv: no text. Pass --skip-bad."),
        ("Name it with base=DIR (--base DIR).", fit, "Name it with --base DIR."),
        (f"x: a finished run. Choose another, or {REPLACE}.", fit,
         "x: a finished run. Choose another, or replace it with --overwrite."),
        ("Allow more max_extra_time.", fit, "Allow more --max-extra-time."),
        ("a/text_column/x.csv: no 'text_column'", fit, "a/text_column/x.csv: no 'text_column'"),
    ],
)  # fmt: skip
def test_an_argument_is_its_option(message: str, command: click.Command, expected: str) -> None:
    assert options.as_options(message, command) == expected


def test_hints_name_flags_in_the_words_of_python_and_of_the_command_line() -> None:
    """As ``force=True (--force)``, of which `as_options` leaves the option: wherever a flag is an argument, too."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py") if path.parent.name != "cli"]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    arguments = {node.arg for node in nodes if isinstance(node, ast.arg)}
    options_of = [each for verb in group.commands.values() for each in verb.params if getattr(each, "is_flag", False)]
    names = arguments & {
        str(each.name) for each in options_of if each.opts == [f"--{str(each.name).replace('_', '-')}"]
    }
    assert names >= {"force", "overwrite", "resume", "skip_bad", "trust_bundle_code"}
    told = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    for name in names:
        flag = f"--{name.replace('_', '-')}"
        hint, loose = f"{name}=True ({flag})", re.compile(rf"{flag}\b|\b(?:with|pass|or) {name}\b", re.IGNORECASE)
        assert [text for text in told if loose.search(text.replace(hint, "")) and "``" not in text] == [], name


def test_a_file_of_that_name_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").touch()
    assert options.as_options("data: expected images", fit) == "data: expected images"


@pytest.mark.parametrize("fails", [True, False])
def test_errors_and_warnings_of_a_verb_name_its_options(
    fails: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    @click.option("--skip-bad", is_flag=True)
    def verb(skip_bad: bool) -> None:
        if fails:
            raise DataError("skip_bad: expected more.")
        warnings.warn("skip_bad: expected more.", PetmWarning, stacklevel=1)

    monkeypatch.setitem(group.commands, "verb", verb)
    monkeypatch.setattr(sys, "argv", ["petm", "verb"])
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        if fails:
            with pytest.raises(SystemExit, match="1"):
                main()
        else:
            main()
    assert capsys.readouterr().err == f"{'Error' if fails else 'Warning'}: --skip-bad: expected more.\n"


def test_the_nearest_known_name() -> None:
    assert near("labl", ["text", "label", "labels"]) == " (did you mean 'label'?)"
    assert near("x", ["text"]) == near(3, []) == ""


def _no_column(place: Path) -> None:
    (place / "x.csv").write_text("txt,label\na,1\n")
    open_table(place / "x.csv", ["text"], required=["text"], hint="")


@pytest.mark.parametrize(
    ("fails", "name"),
    [
        (_no_column, "txt"),
        (lambda _: evidence_named("softmx"), "softmax"),
        (lambda _: attach_adapter(TinyCNN(), {"fc2": 1, "fcl1": 1}), "fc1"),
        (lambda _: FitConfig(precision="bfloat"), "bfloat16"),
        (lambda _: match_classes(np.array([0, 1]), ["cat", "dgo"], ["cat", "dog"], "x"), "dog"),
    ],
)
def test_what_is_unknown_has_a_suggestion(fails: Callable[[Path], object], name: str, tmp_path: Path) -> None:
    with pytest.raises(PetmError) as caught:
        fails(tmp_path)
    assert f"did you mean '{name}'?" in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "nowhere"),
        ("fit", "--model", "a:b", "--data", "nowhere", "-o", "o"),
        ("fit", "--model", "hf:nowhere", "--data", ".", "-o", "o"),
        ("monitor", ".", "nowhere"),
    ],
)
def test_a_path_that_does_not_exist(
    arguments: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["petm", *arguments])
    with pytest.raises(SystemExit, match="1"):
        main()
    if arguments[0] != "monitor":  # the bundle is looked at first
        assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (Threshold(0.25, "r"), "suspect from 0.25 on (r)"),
        (DISAGREEMENT, "suspect above 0 (disagreement, as in the paper)"),
        (Threshold(-math.inf, "r"), "nothing is trusted (r)"),
        (Threshold(math.inf, "r"), "everything is trusted (r)"),
        (
            Threshold(
                math.inf, "r", classes=tuple(Threshold(value, "") for value in (-math.inf, 0.5, 0.25, -math.inf))
            ),
            "suspect from 0.25 to 0.5 on, by class; nothing is trusted in 2 of 4 classes (r)",
        ),
    ],
)
def test_a_threshold_is_told_in_words(threshold: Threshold, expected: str) -> None:
    assert _threshold(threshold) == expected


def test_the_shell_completes_verbs_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def completed(mode: str, words: str) -> str:
        monkeypatch.setenv("_PETM_COMPLETE", mode)
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        with pytest.raises(SystemExit, match="0"):
            main()
        return capsys.readouterr().out

    assert completed("bash_complete", "petm gr") == "plain,grade\n"
    assert "plain,--skip-bad" in completed("bash_complete", "petm fit --skip").splitlines()
    assert completed("zsh_source", "petm").startswith("#compdef petm")
