"""Options that several verbs have, each defined once."""

import json
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from petm.errors import PetmWarning

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _read_config(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Makes a TOML file's entries the defaults of this verb; what stands on the command line wins."""
    if path is None:
        return None
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{path} is not readable TOML ({error})", context, parameter) from error
    entries = {key.replace("-", "_"): value for key, value in entries.get(context.info_name or "", entries).items()}
    known = {option.name for option in context.command.params}
    unknown = [key for key in entries if key not in known]
    if unknown:
        raise click.BadParameter(f"{path} names no option of this verb: {', '.join(unknown)}", context, parameter)
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
    help="Of the matrix products in training; bfloat16 takes about half the time where the processor has it.",
)
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, ...")
as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on standard output, and only that."
)
resume = click.option("--resume", is_flag=True, help="Go on with the interrupted run in the output folder.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace what an earlier run left in the output folder.")
config = click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    callback=_read_config,
    is_eager=True,
    expose_value=False,
    help="TOML file with any of these options; the command line wins.",
)
skip_bad = click.option(
    "--skip-bad", is_flag=True, help="Leave out unreadable images and blank texts; they are named and counted."
)
processor = click.option(
    "--processor",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Hugging Face folder whose tokenizer or image processor prepares the inputs. Absent: that of --model hf:DIR.",
)
trust_remote_code = click.option(
    "--trust-remote-code", is_flag=True, help="Run the code that a Hugging Face folder brings along."
)


def output(default: str | None = None, text: str = "Output folder.") -> Decorator:
    """Returns the option ``-o``."""
    return click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        default=default,
        required=default is None,
        show_default=default is not None,
        help=text,
    )


def show_own_warnings() -> None:
    """Shows petm's own warnings as one line; those of libraries are for developers, who see them in the tests."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, PetmWarning):
            click.echo(f"Warning: {message}", err=True)

    warnings.showwarning = show


def print_json(content: Any) -> None:
    """Prints one JSON object on standard output."""
    from petm._internal.files import plain

    click.echo(json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False))


class Pairs(click.ParamType[dict[str, Any]]):
    """``name=value,name=value`` with values of one type, as a dictionary; a TOML table serves too.

    Args:
        value: What makes a value of its text.
        name: Of the type, in the help.
    """

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


class Sizes(click.ParamType[tuple[int, ...]]):
    """``1,32,256`` or ``1x28x28``: whole numbers of at least 1.

    Args:
        name: Of the type, in the help.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Returns the numbers."""
        if isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        try:
            sizes = tuple(int(part) for part in str(value).replace("x", ",").split(","))
        except ValueError:
            sizes = ()
        if min(sizes, default=0) < 1:
            self.fail(f"expected numbers of at least 1 such as 1,32,256, got {value!r}.", param, ctx)
        return sizes


def literal(text: str) -> Any:
    """Returns ``text`` as the JSON value it spells, or else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
