"""Options that several verbs have, and types of options."""

import csv
import json
import os
import re
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, Literal

import click

from petm._internal.texts import near, visible, visible_json
from petm.errors import ArgumentError, BundleError, PetmWarning, RunError

PATH = click.Path(path_type=Path)


def _read_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Makes the entries of a TOML file the defaults of this verb; the command line wins."""
    if path is None:
        return None
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{path} is not readable TOML ({error})", context, parameter) from error
    entries = {key.replace("-", "_"): value for key, value in entries.get(context.info_name or "", entries).items()}
    known = {str(option.name) for option in context.command.params}
    unknown = [key for key in entries if key not in known]
    if unknown:
        told = ", ".join(unknown) + near(unknown[0], known)
        raise click.BadParameter(f"{path} names no option of this verb: {told}", context, parameter)
    several = {option.name for option in context.command.params if getattr(option, "multiple", False)}
    entries = {key: [value] if key in several and isinstance(value, str) else value for key, value in entries.items()}
    context.default_map = {**(context.default_map or {}), **entries}
    return path


seed = click.option("--seed", default=0, show_default=True, help="One seed gives one result on one machine.")
precision = click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Precision of training; bfloat16 takes about half the time on processors that have it.",
)
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, ...")
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output, only that.")
resume = click.option("--resume", is_flag=True, help="Continue the interrupted run in the output folder.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace the results of an earlier run.")
config = click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    callback=_read_config,
    is_eager=True,
    expose_value=False,
    help="TOML file with any of these options; the command line wins.",
)
skip_bad = click.option("--skip-bad", is_flag=True, help="Leave out, name and count unreadable images and blank texts.")
skip_rows = click.option("--skip-bad", is_flag=True, help="Leave out and count rows that cannot be used.")
processor = click.option(
    "--processor",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Hugging Face folder whose tokenizer or image processor prepares the inputs. Absent: that of --model hf:DIR.",
)
base = click.option(
    "--base",
    type=PATH,
    help="Folder of the model that the LoRA adapter of --model hf:DIR was trained on, if not where the adapter says.",
)
device_map = click.option(
    "--device-map",
    type=click.Choice(["auto"]),
    help="Spread the model of --model hf:DIR over the devices present, by accelerate. Absent: all on --device.",
)
trust_remote_code = click.option("--trust-remote-code", is_flag=True, help="Run the code in a Hugging Face folder.")

trust_bundle_code = click.option(
    "--trust-bundle-code", is_flag=True, help="Import and call the code that the bundle names for its model."
)


def kind_of(path: Path) -> Literal["graph", "calibration", "bundle"]:
    """Returns what a command names as its grader, by the name of the file."""
    suffix = path.suffix.lower()
    return "graph" if suffix == ".onnx" else "calibration" if suffix == ".calibration" else "bundle"


@dataclass(frozen=True)
class GraderPlace:
    """A bundle or exported graph, and where its model, weights and processor are, if not where the bundle says."""

    bundle: Path
    reference: str | None = None
    weights: Path | None = None
    processor: Path | None = None
    base: Path | None = None
    trust_remote_code: bool = False
    trust_bundle_code: bool = False

    def __post_init__(self) -> None:
        own = self.processor or (self.reference or "").startswith("hf:")
        if self.trust_remote_code and not own and not self.trust_bundle_code:
            raise click.UsageError(
                "--trust-remote-code: expected the folder whose code it trusts (--model hf:DIR or --processor), or "
                "--trust-bundle-code for the one that the bundle names."
            )

    def check(self) -> None:
        """Raises PetmError where what is named does not exist, before a library is imported to open it."""
        from petm.grading.manifest import recover
        from petm.models.reference import check_reference

        if self.bundle.suffix.lower() != ".onnx":
            recover(self.bundle)
        if not self.bundle.exists():
            raise BundleError(f"bundle: expected a petm bundle or .onnx file, got {self.bundle}, which does not exist.")
        for name in ("weights", "base"):
            check_readable(name, getattr(self, name))
        if self.reference:
            check_reference(self.reference)


def grader(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the argument BUNDLE and the options on its model, which the command gets as one `GraderPlace`."""

    @wraps(command)
    def gathered(**given: Any) -> Any:
        place = GraderPlace(**{field.name: given.pop(field.name) for field in fields(GraderPlace)})
        return command(place, **given)

    model = click.option(
        "--model", "reference", help="module:factory, file.py:factory or hf:DIR of the model, if it has moved."
    )
    weights = click.option("--weights", type=PATH, help="The model's weights, if they have moved.")
    for option in (
        trust_bundle_code, trust_remote_code, base, processor, weights, model, click.argument("bundle", type=PATH)
    ):  # fmt: skip
        gathered = option(gathered)
    return gathered


def run(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of verbs that train: seed, precision, device, resume, overwrite, JSON, configuration file."""
    for option in (config, as_json, overwrite, resume, device, precision, seed):
        command = option(command)
    return command


TARGET = ("max_risk", "coverage", "recall", "confidence", "per_class")
"""What `target` adds, by the names that `petm.selective.targets.target_of` takes."""


def target(absent: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns what adds the options of a threshold's target; ``absent`` says what holds without one."""

    def added(command: Callable[..., Any]) -> Callable[..., Any]:
        confidence = "Confidence of the guarantee; with --recall, guarantee it.  [default: 0.95 with --max-risk]"
        for option in (
            click.option("--per-class", is_flag=True, help="Guarantee --max-risk in each class that is predicted."),
            click.option("--confidence", type=float, help=confidence),
            click.option("--recall", type=float, help=f"Or flag this share of the errors.{absent}"),
            click.option("--coverage", type=float, help="Or trust this share of the predictions."),
            click.option("--max-risk", type=float, help="Guarantee at most this share of errors among the trusted."),
        ):
            command = option(command)
        return command

    return added


def output(
    default: str | None = None, text: str = "Output folder."
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns the option ``-o``."""
    more: Any = {"required": True} if default is None else {"default": default, "show_default": True}
    return click.option("-o", "--output", type=PATH, help=text, **more)


def show_own_warnings() -> None:
    """Shows petm's own warnings as one line each, and no warnings of libraries."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, PetmWarning):
            running = click.get_current_context(silent=True)
            told = as_options(str(message), running.command) if running else str(message)
            click.echo(f"Warning: {visible(told)}", err=True)

    warnings.showwarning = show


_ASSIGNED = re.compile(r"\b[a-z_]+=\S+ \((--[a-z-]+(?: \w+)?)\)")
_NAMED = re.compile(r"^[a-z_]+(?=: )|(?<![\w/.'\"-])[a-z]+(?:_[a-z]+)+(?![\w/'\"=-]|\.\w)")


def as_options(message: str, command: click.Command) -> str:
    """Returns a message of the library as a user of a verb reads it: Python's arguments are the verb's options.

    >>> @click.command()
    ... @click.option("--skip-bad")
    ... def verb(): ...
    >>> as_options("skip_bad: expected a flag, got 3. Pass skip_bad=True (--skip-bad).", verb)
    '--skip-bad: expected a flag, got 3. Pass --skip-bad.'
    """
    flags: dict[str, str] = {}
    for each in command.params:
        flag = max(each.opts, key=len)
        flag = flag if flag.startswith("-") else flag.upper()
        flags |= {str(each.name): flag, flag.lstrip("-").replace("-", "_"): flag}

    def named(found: re.Match[str]) -> str:
        return found[0] if os.path.exists(found[0]) else flags.get(found[0], found[0])

    return _NAMED.sub(named, _ASSIGNED.sub(r"\1", message))


def print_json(content: Any) -> None:
    """Prints one JSON object on standard output, in which names control no terminal."""
    from petm._internal.files import to_json

    click.echo(visible_json(to_json(content, indent=2)))


class Pairs(click.ParamType[dict[str, Any]]):
    """``name=value,name=value`` or a TOML table, as a dictionary; ``value`` parses each value."""

    def __init__(self, value: Callable[[str], Any], name: str) -> None:
        self.value, self.name = value, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """Returns the dictionary."""
        if isinstance(value, dict):
            return value
        pairs = [pair.partition("=") for pair in str(value).split(",")]
        try:
            if not all(name and separator for name, separator, _ in pairs):
                raise ValueError("a pair lacks its name or '='")
            return {name.strip(): self.value(text.strip()) for name, _, text in pairs}
        except ValueError as error:
            self.fail(f"expected {self.name}, got {value!r} ({error}).", param, ctx)


class ImageSize(click.ParamType[tuple[int, int]]):
    """``64`` or ``64x48`` (height × width), as a pair."""

    name = "HEIGHT[xWIDTH]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Returns height and width."""
        if isinstance(value, tuple | list):
            value = "x".join(map(str, value))
        try:
            sides = [int(side) for side in str(value).lower().split("x")]
        except ValueError:
            sides = []
        if len(sides) not in (1, 2) or min(sides, default=0) < 1:
            self.fail(f"expected one or two positive numbers such as 64 or 64x48, got {value!r}.", param, ctx)
        return sides[0], sides[-1]


class Names(click.ParamType[tuple[str, ...]]):
    """``p_cat,p_dog``, as a tuple."""

    name = "NAME,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Returns the names."""
        names = next(csv.reader([value]), []) if isinstance(value, str) else value
        if not all(names) and names:
            self.fail(f"expected names with commas between them, got {value!r}.", param, ctx)
        return tuple(names)


class Numbers(click.ParamType[tuple[float, ...]]):
    """``0.485,0.456,0.406``, as a tuple."""

    name = "NUMBER,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Returns the numbers."""
        try:
            return tuple(map(float, value.split(",") if isinstance(value, str) else value))
        except (TypeError, ValueError):
            self.fail(f"expected numbers such as 0.485,0.456,0.406, got {value!r}.", param, ctx)


def class_names(text: str | None) -> tuple[str, ...] | None:
    """Returns names separated by commas; raises ArgumentError where one comes twice.

    >>> class_names('cat,"big, old dog"')
    ('cat', 'big, old dog')
    """
    names = tuple(next(csv.reader([text]))) if text else None
    if names and len(set(names)) < len(names):
        raise ArgumentError(f"classes: expected different names, got {', '.join(names)[:200]}. Name each class once.")
    return names


def check_readable(name: str, path: Path | None) -> None:
    """Raises RunError where the path of an option does not exist; globs and addresses are not checked here."""
    if path is not None and not os.path.exists(path) and not set("*?[:") & set(str(path)):
        raise RunError(f"{name}: expected a file or folder, got {path}, which does not exist. Check the path.")


def check_writable(name: str, path: Path | None) -> None:
    """Raises RunError where no file or folder can be made at the path of an option."""
    if path is None:
        return
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise RunError(f"{path}: cannot be written, {there} is not a writable folder. Choose another {name}.")
    if path.exists() and not os.access(path, os.W_OK):
        raise RunError(f"{path}: cannot be written, it exists and is protected. Choose another {name}.")


def literal(text: str) -> Any:
    """Returns ``text`` parsed as JSON, or else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
