"""The report of a fitted grader as one HTML file: what it finds on its calibration samples, and its reliability."""

from pathlib import Path
from typing import Any

from petm.adapter.one_pass import predict_answers
from petm.data.base import Data, as_data
from petm.grading.grader import Grader
from petm.grading.provenance import library_versions
from petm.models.prediction import check_labels
from petm.models.scores import maximum_softmax
from petm.report.gallery import Suspect, gather_suspects, shown
from petm.report.judged import judged_parts
from petm.report.pages import write_page
from petm.report.tables import Table, percent
from petm.selective.guarantee import guarantee
from petm.selective.sets import candidates_in_words
from petm.selective.tables import choice_table, trade_off_table
from petm.selective.thresholds import DISAGREEMENT
from petm.selective.worth import cost_of

GRADER, SOFTMAX, CHOSEN = "Grader", "the model's softmax", "the chosen threshold"


def write_fit_report(grader: Grader, calibration: Data, path: str | Path) -> None:
    """Writes a page about a grader on its calibration samples: figures with intervals, curves, most suspect samples.

    It is one file without script and network. As the probability of error was fitted on these samples, the reliability
    diagram is cross-validated.

    Args:
        grader: The grader.
        calibration: The labelled samples that it was calibrated on.
        path: The file to write or replace; its folder is made if absent.

    Raises:
        DataError: There is no sample, or a label is missing or outside 0..K-1.
        RunError: The file could not be written.
    """
    data = as_data(calibration)
    both = predict_answers(grader.adapted, data, title="report")
    check_labels(data.labels, both.base.shape[1], data.source)
    predicted = both.base.argmax(1)
    suspected, softmax = grader.suspicion.of(both), maximum_softmax(both.base).numpy()
    suspicion, wrong = suspected.numpy(), (predicted != data.labels).numpy()
    trusted = grader.threshold.trusts(suspicion, predicted.numpy())
    parts = judged_parts(suspicion, softmax, wrong, trusted)

    def gallery(**some: Any) -> list[dict[str, Any]]:
        names = grader.origin.model.classes or data.classes
        second, asked = both.second if both.members else None, both.asked(grader.adapted.cascade)
        suspects = gather_suspects(both.base, second, suspected, data, asked=asked, **some)
        return [shown(suspect, names, _measure(grader, suspect)) for suspect in suspects]

    suspects, second, choice, outcome = gallery(), both.second.argmax(1), grader.choice, grader.outcome
    found_out, spoilt = ((second != predicted) & (opinion == data.labels) for opinion in (second, predicted))
    write_page(
        Path(path),
        "fit_report.html.jinja",
        version=library_versions()["petm"],
        model=grader.origin.model.reference or "a model passed in Python",
        source=data.source,
        title="Second opinion" if both.members else "Grader",
        judged=_judged(grader, len(data)),
        guarantee=guarantee(grader.threshold),
        tables=parts.pop("tables")
        | {"settings": _settings_table(grader)}
        | ({"compared": choice_table(choice)} if choice and choice.compared else {})
        | ({"trade_off": trade_off_table(outcome)} if outcome else {}),
        lead=choice.name if choice else None,
        reason=choice.reason if choice else "",
        sentences=(*(outcome.sentences if outcome else ()), *cost_of(grader.measured)),
        disagreed=_disagreed(*(int(where.sum()) for where in (second != predicted, found_out, spoilt))),
        found_out=gallery(count=6, among=found_out),
        suspects=suspects,
        wrong=sum(suspect["wrong"] for suspect in suspects),
        **parts,
    )


def _disagreed(differ: int, right: int, spoilt: int) -> str:
    return (
        f"The second opinion predicts another class than the model for {differ:,} of these samples. There it is right "
        f"{right:,} times, the model {spoilt:,} times, and neither {differ - right - spoilt:,} times."
    )


def _judged(grader: Grader, samples: int) -> str:
    """How the threshold depends on these samples."""
    if grader.threshold.value == DISAGREEMENT.value:
        return "The threshold is the paper's flag, which depends on no samples."
    used = grader.origin.data["calibration"].samples if "calibration" in grader.origin.data else samples
    if used < samples and grader.adapted.cascade is not None:
        return (
            f"The threshold was set on {used:,} of these samples, so it suits them a little better than later ones. "
            f"The others, without their labels, set the limit from which on a second opinion is computed."
        )
    return "The threshold was set on these samples, so it suits them a little better than later ones."


def _settings_table(grader: Grader) -> Table:
    origin, adapted = grader.origin, grader.adapted
    rows = {
        "Model": origin.model.reference or "passed in Python",
        "Weights": origin.model.weights or "not named",
        "Adapter": ", ".join(f"{layer} rank {rank}" for layer, rank in adapted.ranks.items()) or "none",
        "Parameters of the adapter": f"{adapted.adapter_parameters():,}",
        "Suspicion": grader.score.replace("_", " "),
        "Threshold": grader.threshold.rule,
        "Candidates": candidates_in_words(grader.sets),
        "Probability of error": grader.probability.method if grader.probability else "not calibrated",
        **{f"Data, {role}": f"{held}, SHA-256 {held.content[:12]}…" for role, held in origin.data.items()},
        **{name.replace("_", " ").capitalize(): str(value) for name, value in origin.settings.items()},
        **library_versions(),
    }
    return Table("Settings", "", ("What", "Value"), tuple(rows.items()), words=frozenset({0, 1}))


def _measure(grader: Grader, suspect: Suspect) -> str:
    """The probability of error of a sample, or its suspicion if none was calibrated, in words."""
    if grader.probability is None:
        return f"Suspicion {suspect.suspicion:.2f}"
    return f"Probability of error {percent(float(grader.probability.probability(suspect.suspicion)))}"
