"""One page of all that the suite measured.

python -m experiments.suite.page runs/fit.json runs/learn.json runs/controls.json -o docs/measured/suite/suite.md
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from petm._internal.files import write_atomically

_FITS = ("model", "what", "seed", "taken", "errors", "softmax", "AURC", "change")
_CONTROLS = ("model, shift, labels", "suspicion", "AURC", "change, mean of the draws")


def page(files: Sequence[Any]) -> str:
    """Returns Markdown of what `python -m experiments.suite` wrote.

    Args:
        files: The parsed JSON of each file.
    """
    fits = [row for file in files if isinstance(file, Mapping) for row in file["fits"]]
    tables = [table for file in files if not isinstance(file, Mapping) for table in file]
    parts = [
        "# Fits and learning on the base models of the suite",
        "AURC in thousandths; lower is better. The change is relative to the softmax of the same base model, with the "
        "95 % interval of a paired bootstrap over the judged samples.",
        *_table("What was chosen or learned, judged on the untouched half", _FITS, map(_fit, fits)),
        *_table("Rivals with the same labels", _CONTROLS, (row for table in tables for row in _controls(table))),
    ]
    return "\n\n".join(parts) + "\n"


def _table(title: str, head: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if lines:
        yield f"## {title}"
        yield "\n".join((f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines))


def _fit(row: Mapping[str, Any]) -> tuple[str, ...]:
    softmax, found, difference = row["softmax"], row["aurc"]["value"], row["difference"]
    change = _change(*(difference[name] / softmax for name in ("value", "low", "high")))
    errors = f"{row['errors']:,} of {row['samples']:,}"
    return row["model"], row["what"], str(row["seed"]), row["taken"], errors, _aurc(softmax), _aurc(found), change


def _controls(table: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    where = f"{table['model']}, {table['shift']}, {table['labels']}"
    for row in sorted(table["rows"], key=lambda each: each["aurc"]):
        yield where, row["name"], _aurc(row["aurc"]), _change(row["ratio"], row["low"], row["high"])


def _aurc(value: float) -> str:
    return f"{1000 * value:.3f}" if value < 0.01 else f"{1000 * value:.1f}"


def _change(value: float, low: float, high: float) -> str:
    if value == low == high:
        return f"{100 * value:+.1f} %"
    return f"{100 * value:+.1f} % ({100 * low:+.1f} to {100 * high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.suite.page", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    told = parser.parse_args()
    text = page([json.loads(path.read_text(encoding="utf-8")) for path in told.files])
    write_atomically(told.output, lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
