"""A reproduction as one HTML file without scripts, with figures and images inside."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from petm.errors import RunError
from petm.paper.reproduction import Reproduction
from petm.report.gallery import shown
from petm.report.pages import curve_captions, curve_tables, data_uri, write_page
from petm.report.tables import BETTER, LEAD, MEASURES, METHODS, MISSING, UNCLEAR, WORSE, judged, percent, result_tables

_SEPARATE = 0.25
"""A mean silhouette below this is no substantial structure (Kaufman and Rousseeuw 1990, chapter 2)."""


def write_report(reproduction: Reproduction, path: Path) -> None:
    """Writes the reproduction as one HTML file, atomically.

    Args:
        reproduction: The result, the most suspect images, and the folder with ``figures/*.svg``.
        path: The file to write; its folder is made when absent.

    Raises:
        RunError: A figure of the run is missing or damaged, or the file could not be written.
    """
    result, suspects = reproduction.result, reproduction.suspects
    classes, judgement = reproduction.grader.origin.model.classes, result["judgement"]
    gallery = [shown(suspect, classes, f"Suspicion {suspect.suspicion:.2f}") for suspect in suspects]
    captions = _captions(result) | curve_captions(judgement, METHODS[LEAD], "the paper's flag")
    write_page(
        path,
        "report.html.jinja",
        result=result,
        version=result["versions"]["petm"],
        summary=summary(result),
        tables=result_tables(result) | curve_tables(judgement, METHODS[LEAD]),
        lead=METHODS[LEAD],
        found=_found(result),
        figures={
            name: (_figure(reproduction.folder / "figures" / f"{name}.svg"), *words) for name, words in captions.items()
        },
        suspects=gallery,
        wrong=sum(suspect["wrong"] for suspect in gallery),
    )


def summary(result: Mapping[str, Any]) -> str:
    """Returns the content of ``result.json`` as one paragraph of prose, the control included."""
    base, cost, found = result["base"], result["cost"], result["detection"]
    lead, small = found[LEAD], found["lora_petm_small"]
    errors, samples = base["test_errors"], result["data"]["test"]["samples"]
    told = [
        f"The model answers {percent(base['test_accuracy'])} of {samples:,} test images right and is wrong on "
        f"{errors:,}; {_count(base['train_errors'], 'error')} on its training data made the error set of the teacher.",
        f"LoRA-PETM, an adapter of {cost['adapter_parameters']:,} parameters ({percent(cost['adapter_over_teacher'])} "
        f"of the teacher), flags {_count(lead['flagged'], 'answer')} and finds {lead['caught']:,} of the "
        f"{_count(errors, 'error')}: recall {percent(lead['recall'])}, precision {percent(lead['precision'])}.",
        f"A small adapter ({percent(cost['small_over_teacher'])} of the teacher) finds {small['caught']:,} with "
        f"{_count(small['flagged'], 'flag')}.",
    ]
    if not errors:
        return " ".join([*told, "The model makes no error on the test data, so there is nothing to find."])
    for key, introduced, judges in (
        ("softmax", "the model's own softmax", False),
        ("control", "the control, the same adapter distilled from the model trained further on unchanged data", True),
        ("petm_control", "the whole model trained further on unchanged data (PETM control)", False),
    ):
        other = found[key]
        words = {measure: judged(result["differences"][key][name]) for name, measure in MEASURES.items()}
        told.append(
            f"Against {introduced}, which finds {other['caught']:,} with {_count(other['flagged'], 'flag')}, "
            f"{_compared(words)}{_control_verdict(words, errors) if judges else ''}."
        )
    return " ".join(told)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _compared(words: Mapping[str, str]) -> str:
    """The measures in which LoRA-PETM is better, worse, or neither."""
    better, worse, unclear = (
        [measure for measure, word in words.items() if word == wanted] for wanted in (BETTER, WORSE, UNCLEAR)
    )
    sides = [f"{word} in {_listed(group)}" for word, group in ((BETTER, better), (WORSE, worse)) if group]
    if sides:
        open_end = f", with no clear difference in {_listed(unclear)}" if unclear else ""
        return f"LoRA-PETM is {' and '.join(sides)}{open_end}"
    return f"there is no clear difference in {_listed(unclear, 'or')}" if unclear else "there is nothing to compare"


def _control_verdict(words: Mapping[str, str], errors: int) -> str:
    """What a comparison with a control shows about the adversarial examples."""
    said = set(words.values())
    if {BETTER, WORSE} <= said:
        return ": neither is better in everything"
    if BETTER in said:
        return ": the adversarial examples add what further training alone does not"
    if WORSE in said:
        return ": further training alone does more"
    return f": as far as {_count(errors, 'error')} can tell, further training alone does as much" * (UNCLEAR in said)


def _listed(names: Sequence[str], conjunction: str = "and") -> str:
    return f" {conjunction} ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _found(result: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, float | None, float, float]]]]:
    """Recall and precision of each method with their intervals, in percent, for the drawing above Table 2."""

    def bar(found: Mapping[str, Any], measure: str) -> tuple[str, float | None, float, float]:
        low, high = found[f"{measure}_interval"]
        return measure, found[measure] and 100 * found[measure], 100 * low, 100 * high

    known = [(name, result["detection"][key]) for key, name in METHODS.items() if result["detection"].get(key)]
    return [(name, [bar(found, measure) for measure in ("recall", "precision")]) for name, found in known]


def _captions(result: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The alternative text and the caption of each figure."""
    sweep, drift, measures = result["sweep"], result["drift"], result["figure_1"]
    to_base, to_teacher = (
        dict(zip(sweep["alpha"], sweep[f"fidelity_to_{of}"], strict=True)) for of in ("base", "teacher")
    )
    nearest = max(to_teacher, key=lambda alpha: to_teacher[alpha])
    moved = max(drift, key=lambda entry: entry["relative_norm"] or 0.0)["layer"]
    own = {of: percent(sum(measures["conv1_explained"][of][:2])) for of in ("base", "teacher")}
    apart = measures["silhouette_map"]
    verb = "does not separate" if apart is not None and apart < _SEPARATE else "separates"
    separated = f"{verb} the model from the teacher"
    silhouette = MISSING if apart is None else f"{apart:z.2f}"
    return {
        "alpha": (
            f"Line chart over alpha: the fidelity to the model falls from {percent(to_base[0.0])} at 0 to "
            f"{percent(to_base[1.0])} at 1; the fidelity to the teacher goes from {percent(to_teacher[0.0])} to "
            f"{percent(to_teacher[1.0])}.",
            f"The alpha sweep, from the model to the teacher. At α = 0 the adapted model agrees with the model on "
            f"{percent(to_base[0.0])} of the images, at α = 1 with the teacher on {percent(to_teacher[1.0])}; it is "
            f"nearest to the teacher at α = {nearest:g}.",
        ),
        "drift": (
            "Bar chart of the relative weight drift by layer: "
            + ", ".join(f"{entry['layer']} {percent(entry['relative_norm'])}" for entry in drift)
            + ".",
            f"The weights change most in {moved}. The paper finds the greatest changes in conv1, fc1 and fc2, most of "
            "all in conv1, and adapts these three.",
        ),
        "figure1": (
            "Scatter plots of the filters of conv1 and conv2 of the model and the teacher on two principal axes, and a "
            "t-SNE map of the conv1 features of both.",
            "The paper's Figure 1. In the paper the teacher's conv1 filters lie on few axes and the features form two "
            f"clusters. Here the first two axes hold {own['base']} of the variance of the model's conv1 filters and "
            f"{own['teacher']} of the teacher's, and the map of {measures['images']:,} images {separated} (silhouette "
            f"{silhouette}); a linear probe tells the model from the teacher in {percent(measures['probe_accuracy'])} "
            "of cases, for which a shift in a single channel is enough.",
        ),
    }


def _figure(path: Path) -> str:
    """A figure of the run as the source of an image element."""
    try:
        content = path.read_bytes()
        ElementTree.fromstring(content)
    except (OSError, ElementTree.ParseError) as error:
        raise RunError(f"{path}: expected a figure of the run, got {error}. Run the reproduction again.") from error
    return data_uri(content, "svg+xml")
