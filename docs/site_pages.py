"""Pages of the site that are made when it is built: the command line, from the commands themselves, and root files.

MkDocs calls `on_files` and `on_post_page`; the tests of the links call `made_pages`, without MkDocs.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from petm.cli import petm

ROOT = Path(__file__).parent.parent
_ELSEWHERE = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
"""A script, style, font or picture from another server."""
INTRODUCTION = """# Command line

`petm VERB --help` prints the same. Progress and prose go to standard error, results to standard output or to `-o`.
`--config run.toml` reads options from a file, in a table for each verb.

| exit code | |
|---|---|
| 0 | done |
| 1 | an error, told in one line: see [troubleshooting](../troubleshooting.md) |
| 2 | a wrong option or argument |
| 3 | a guarantee is violated (`petm monitor`) |
| 130 | interrupted; the same command with `--resume`, where there is one, goes on |
"""


def _cell(text: str) -> str:
    """Text as it stands in a cell of a table."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")


def _command(name: str, command: click.Command) -> Iterator[str]:
    """The lines of one verb: usage, what it does, options, example."""
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"\n## petm {name}\n\n```text\npetm {name} {usage}\n```\n"
    yield "\n\n".join(_cell(part) for part in (command.help or "").split("\n\n"))
    yield "\n| option | |\n|---|---|"
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield f"| `{record[0]}` | {_cell(record[1])} |"
    example = (command.epilog or "").removeprefix("Example: ")
    if example:
        yield f"\n```sh\n{' '.join(example.split())}\n```"


def command_line() -> str:
    """Returns the page of all verbs, in Markdown."""
    verbs = [line for name, command in petm.commands.items() for line in _command(name, command)]
    return "\n".join([INTRODUCTION, *verbs, ""])


def made_pages() -> dict[str, str]:
    """Returns the text of each page by its path in the site."""
    pages = {"reference/command-line.md": command_line()}
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        pages[name.lower()] = text.replace("](docs/", "](").replace("](CHANGELOG.md)", "](changelog.md)")
    return pages


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages to those that MkDocs has found."""
    from mkdocs.structure.files import File

    for path, text in made_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Raises an error where a page would load something from the network."""
    from mkdocs.exceptions import PluginError

    if found := _ELSEWHERE.search(output):
        raise PluginError(f"{page.file.src_uri}: expected nothing from the network, got {found[0]}. Keep it here.")
    return output
