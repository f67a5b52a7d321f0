"""Parts of every page: the HTML file, pictures inside it, and the curves as captions and tables."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from petm._internal.files import write_text
from petm.report.tables import BETTER, WORSE, Table, percent, with_interval

SOFTMAX = "the model's softmax"
_TONES = {BETTER: "better", WORSE: "worse"}


def write_page(path: Path, template: str, **context: Any) -> None:
    """Writes a template of ``report/templates`` as one HTML file; nothing in the context is read as markup.

    Raises:
        RunError: The file could not be written.
    """
    environment = Environment(
        loader=PackageLoader("petm.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    write_text(path, environment.get_template(template).render(tones=_TONES, **context))


def curve_tables(judgement: Mapping[str, Any], name: str, other: str = SOFTMAX) -> dict[str, Table]:
    """Returns the reliability diagram and the risk at coverage as tables.

    Args:
        judgement: `petm.selective.curves.Judgement` in JSON's types.
        name: The heading of the suspicion.
        other: The heading of what it is compared with.
    """
    told = {
        "risk_coverage": Table(
            "Risk at coverage",
            "Share of errors among the least suspect answers, in the order of each suspicion.",
            ("Coverage", name, other),
            tuple(
                (percent(step["coverage"], 0), percent(step["risk"], 2), percent(step["softmax"], 2))
                for step in judgement["steps"]
            ),
        )
    }
    if judgement["bins"]:
        told["reliability"] = Table(
            "Reliability",
            "Samples in the order of their predicted probability of error, in bins of about equally many. In brackets "
            "95% Wilson intervals.",
            ("Predicted", "Observed", "Errors", "Samples"),
            tuple(
                (
                    percent(part["predicted"], 2),
                    share_with_interval(part["observed"]),
                    f"{part['observed']['count']:,}",
                    f"{part['observed']['of']:,}",
                )
                for part in judgement["bins"]
            ),
        )
    return told


def curve_captions(
    judgement: Mapping[str, Any], name: str, chosen: str, other: str = SOFTMAX
) -> dict[str, tuple[str, str]]:
    """Returns the alternative text and the caption of each figure of the curves.

    Args:
        judgement: `petm.selective.curves.Judgement` in JSON's types.
        name: The name of the suspicion.
        chosen: The name of the chosen point.
        other: The name of what it is compared with.
    """
    risk, half = judgement["risk"], judgement["steps"][0]
    point = f"The diamond is {chosen}: it trusts {percent(judgement['coverage'])}, and of these "
    point += f"{share_with_interval(risk)} are wrong."
    if not risk["of"]:
        point = f"There is no diamond, because {chosen} trusts nothing."
    told = {
        "risk_coverage": (
            f"Line chart of risk over coverage, from {percent(half['risk'])} for {name} and "
            f"{percent(half['softmax'])} for {other} at a coverage of {percent(half['coverage'], 0)} "
            f"to the model's error rate of {percent(judgement['steps'][-1]['risk'])} at 100%. {point}",
            f"Risk over coverage: the share of errors among the trusted as more are trusted, the least suspect first. "
            f"Lower is better. {point}",
        )
    }
    if judgement["bins"]:
        first, last = judgement["bins"][0], judgement["bins"][-1]
        told["reliability"] = (
            f"Scatter plot of the observed share of errors over the predicted probability of error in "
            f"{len(judgement['bins'])} bins, beside the diagonal: predicted {percent(first['predicted'], 2)} and "
            f"observed {percent(first['observed']['value'], 2)} in the lowest bin, {percent(last['predicted'])} and "
            f"{percent(last['observed']['value'])} in the highest.",
            f"Predicted probability of error and observed share of errors, with 95% Wilson intervals; on the diagonal "
            f"both are equal. Calibration error {percent(judgement['calibration_error'], 2)}: the mean distance over "
            f"the bins, which chance alone keeps above 0. Both axes have a square-root scale; each probability is "
            f"that of a curve fitted on the other folds of a cross-validation.",
        )
    return told


def share_with_interval(share: Mapping[str, Any]) -> str:
    """Returns a share in percent with its interval in brackets, or a dash where it is not defined.

    Args:
        share: `petm.selective.metrics.Share` in JSON's types.
    """
    return with_interval(share["value"], (share["low"], share["high"]))


def data_uri(content: bytes, kind: str) -> str:
    """Returns an image file of the media type ``image/KIND`` as the source of an image element.

    As an image, an SVG file can neither run scripts nor style the page around it.
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
