"""The state of monitoring between two runs: one JSON file, of about 14 bytes a row and 60 more a labelled one."""

import base64
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petm._internal.files import fingerprint, to_json, write_json
from petm.data.labels import UNLABELLED
from petm.errors import DataError
from petm.grading.production import LABELLED, MOST_WINDOWS, Production, Window

FORMAT = "petm monitor 1"
_SEEN = np.dtype([("id", "<u8"), ("window", "<u2")])


def save_state(found: Production, path: Path, settings: Mapping[str, Any]) -> None:
    """Writes counts that remember their rows, atomically, with the settings that a later run must have.

    Raises:
        RunError: The file could not be written.
    """
    seen = np.fromiter((found.seen or {}).items(), _SEEN)
    content = {
        "format": FORMAT,
        "settings": _prints(settings),
        "windows": [vars(each) | {"suspicion": each.suspicion.tolist()} for each in found.windows],
        "trusted": found.trusted.tolist(),
        "predicted": found.predicted.tolist(),
        "seen": base64.b64encode(seen.tobytes()).decode(),
        "labelled": base64.b64encode(found.labelled.tobytes()).decode(),
    }
    write_json(path, content)


def load_state(path: Path, settings: Mapping[str, Any], empty: Production) -> Production:
    """Returns the counts that `save_state` wrote; ``empty`` where there is no file yet.

    Args:
        path: The file.
        settings: What must be as it was: of each name, a value in JSON's types.
        empty: Counts of nothing, of the right shapes.

    Raises:
        DataError: The file is damaged or another, or has other settings.
    """
    if not path.exists():
        return empty
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"the format {str(content['format'])[:40]!r}")
        held = dict(content["settings"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error
    for name, print_ in _prints(settings).items():
        if held.get(name) != print_:
            raise DataError(
                f"state: expected one of the same {name}, got another in {path}. Choose another file for it."
            )
    try:
        return _production(content, empty)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise _damaged(path, error) from error


def _production(content: Mapping[str, Any], empty: Production) -> Production:
    """The counts, after checking that every number can be one."""
    bins, classes = len(empty.trusted), empty.predicted.shape[1]
    windows = []
    for each in content["windows"]:
        kinds = {field.name: field.type for field in fields(Window)}
        if not isinstance(each, dict) or set(each) != set(kinds):
            raise ValueError("a window of other fields")
        figures = {name: value for name, value in each.items() if name not in ("name", "suspicion")}
        if not all(isinstance(value, kinds[name]) and 0 <= value < 2**53 for name, value in figures.items()):  # type: ignore[arg-type]
            raise ValueError("a window without counts")
        windows.append(Window(str(each["name"]), **figures, suspicion=_counts(each["suspicion"], bins)))
        if max(windows[-1].suspects + windows[-1].unreadable, sum(each["suspicion"])) > windows[-1].rows:
            raise ValueError("a window with more suspects than rows")
    predicted = np.array(content["predicted"], np.float64).reshape(2, classes)
    seen, rows = _records(content["seen"], _SEEN), _records(content["labelled"], LABELLED)
    last = max(seen["window"].max(initial=0), rows["window"].max(initial=0), 0)
    trusted = _counts(content["trusted"], bins)
    sound = (
        len(windows) <= MOST_WINDOWS
        and max(sum(trusted.tolist()), predicted.max(initial=0)) <= len(seen)
        and len(np.unique(seen["id"])) == len(seen)
        and len(np.unique(rows["id"])) == len(rows)
        and (not len(seen) or last < len(windows))
        and len(seen) == sum(each.rows for each in windows)
        and bool(np.isin(rows["id"], seen["id"]).all())
        and bool(((rows["chance"] > 0) & (rows["chance"] <= 1) & (rows["bin"] < max(bins, 1))).all())
        and bool(
            (
                (rows["trusted"] <= 1) & (rows["predicted"] >= 0) & (rows["part"] >= 0) & (rows["truth"] >= UNLABELLED)
            ).all()
        )
        and not bool(((rows["probability"] < 0) | (rows["probability"] > 1)).any())
        and bool((np.isfinite(predicted) & (predicted >= 0)).all())
    )
    if not sound:
        raise ValueError("numbers that contradict each other")
    places = dict(zip(seen["id"].tolist(), seen["window"].tolist(), strict=True))
    return Production(windows, trusted, predicted, rows, places)


def _counts(values: Any, bins: int) -> NDArray[np.int64]:
    counts = np.array(values, np.int64)
    if counts.shape != (bins,) or (counts < 0).any():
        raise ValueError("a histogram of other bins")
    return counts


def _records(text: str, kind: np.dtype[np.void]) -> NDArray[np.void]:
    return np.frombuffer(base64.b64decode(text, validate=True), kind).copy()


def _prints(settings: Mapping[str, Any]) -> dict[str, str]:
    """A short hash of each setting."""
    return {name: fingerprint([to_json(value)])[:16] for name, value in settings.items()}


def _damaged(path: Path, error: Exception) -> DataError:
    reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
    return DataError(
        f"state: expected what petm monitor wrote, got {path} with {reason}. Choose another file, or begin anew."
    )
