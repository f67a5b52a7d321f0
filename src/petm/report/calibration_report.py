"""The report of ``petm calibrate`` as one HTML file: what the scores find, and how far to trust them. Without torch."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from petm._internal.files import plain
from petm.report.judged import judged_parts
from petm.report.pages import write_page
from petm.report.tables import Table
from petm.selective.calibration import Calibration
from petm.selective.guarantee import guarantee
from petm.selective.plain import Predictions
from petm.selective.sets import candidates_in_words
from petm.selective.tables import choice_table, group_table, trade_off_table

MOST = 100_000
"""Most rows that are drawn and resampled."""


def write_calibration_report(
    made: Calibration, found: Predictions, labels: ArrayLike, path: str | Path, *, source: str
) -> None:
    """Writes a page about a calibration on labelled rows: figures with intervals, curves, groups.

    Args:
        made: The calibration.
        found: ``N`` predictions.
        labels: int ``(N,)``, their true classes.
        path: The file to write or replace; its folder is made if absent.
        source: What the rows were read from, in words.

    Raises:
        RunError: The file could not be written.
    """
    true = np.asarray(labels)
    if len(true) > MOST:
        rows = np.sort(np.random.default_rng(0).choice(len(true), MOST, replace=False))
        found, true, source = found.rows(rows), true[rows], f"{source} ({MOST:,} of {len(true):,}, drawn at random)"
    suspicions = found.suspicions(made.columns)
    first = made.outcome.against
    graded, choice, used = made.judge(found), made.choice, made.measured["calibration_samples"]
    parts = judged_parts(
        graded.suspicion, suspicions[first], found.predicted != true, graded.trusted, other=f"the {first}"
    )
    judged = "The threshold was set on these rows, so it suits them a little better than later ones."
    if used < made.measured["samples"]:
        judged = (
            f"The threshold was set on {used:,} of the {made.measured['samples']:,} labelled rows, and suspicion was "
            f"chosen on the others, so both suit these rows a little better than later ones."
        )
    write_page(
        Path(path),
        "fit_report.html.jinja",
        version=version("petm"),
        model=made.columns.told,
        source=source,
        title="Grader",
        judged=judged,
        guarantee=guarantee(made.threshold),
        tables=parts.pop("tables")
        | {"settings": _settings_table(made), "trade_off": trade_off_table(made.outcome)}
        | ({"compared": choice_table(choice)} if choice.compared else {})
        | ({"groups": group_table(plain(made.measured["groups"]))} if made.threshold.groups else {}),
        lead=choice.name,
        reason=choice.reason,
        sentences=made.outcome.sentences,
        disagreed="",
        found_out=[],
        suspects=[],
        wrong=0,
        **parts,
    )


def _settings_table(made: Calibration) -> Table:
    rows = {
        "Reads": made.columns.told,
        "Classes": f"{len(made.classes)}",
        "Suspicion": made.score,
        "Target": str(made.target),
        "Threshold": made.threshold.rule,
        "Candidates": candidates_in_words(made.sets),
        "Probability of error": made.probability.method,
        "petm": version("petm"),
    }
    return Table("Settings", "", ("What", "Value"), tuple(rows.items()), words=frozenset({0, 1}))
