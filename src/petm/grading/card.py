"""The model card of a bundle, as Hugging Face shows it beside an adapter: what it is, and its measured quality."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from petm._internal.files import plain
from petm._internal.texts import markdown
from petm.adapter.lora import ADAPTER
from petm.adapter.model import AdaptedModel
from petm.data.views import SAME
from petm.grading.manifest import Manifest
from petm.selective.guarantee import guarantee
from petm.selective.tables import choice_table, markdown_table, trade_off_table
from petm.selective.worth import cost_of

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FIGURES = {
    "coverage": "Coverage: of all samples, trusted",
    "risk": "Risk: of the trusted, the model's errors",
    "recall": "Recall: of the model's errors, flagged",
    "precision": "Precision: of the flagged, the model's errors",
    "auroc": "AUROC, higher is better",
    "aurc": "AURC, lower is better",
}


def model_card(manifest: Manifest, adapted: AdaptedModel, *, include_base: bool) -> str:
    """Returns ``README.md`` of a bundle: a YAML header, then Markdown; it holds no local path."""
    environment = Environment(
        loader=PackageLoader("petm.grading"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["text"] = lambda value: markdown(str(value))
    reference = manifest.origin.model.reference
    measured: Mapping[str, Any] = plain(manifest.measured)
    outcome, compared = manifest.outcome, manifest.choice
    tables = [choice_table(compared)] if compared and compared.compared else []
    tables += [trade_off_table(outcome)] if outcome else []
    return environment.get_template("card.md.jinja").render(
        manifest.to_json(),
        base_model=_hub_name(adapted),
        name=Path(reference).name if reference else "a classifier",
        folders=["." if name == ADAPTER else name for name in adapted.adapters],
        views=[
            (f"the adapter {member.adapter}" if member.adapter else "the base model", member.view)
            for member in adapted.members
            if member.view != SAME
        ],
        include_base=include_base,
        figures=[
            (title, _figure(measured[name]), _figure(measured.get(f"{name}_of_softmax", "")))
            for name, title in _FIGURES.items()
            if name in measured
        ],
        calibration_samples=measured.get("calibration_samples"),
        calibration_errors=measured.get("calibration_errors"),
        asks=adapted.cascade,
        guarantee=guarantee(manifest.threshold),
        sentences=(*cost_of(measured), *(outcome.sentences if outcome else ())),
        tables=[(table.title, table.caption, markdown_table(table)) for table in tables],
    )


def _hub_name(adapted: AdaptedModel) -> str | None:
    """The base model's name on the Hugging Face Hub, unless it is a local folder."""
    name = getattr(adapted.base, "name_or_path", None)
    return name if name and _NAME.fullmatch(name) and not Path(name).exists() else None


def _figure(found: Any) -> str:
    """A number, or a share (`petm.selective.metrics.Share` in JSON's types) with its interval."""
    if isinstance(found, str):
        return found
    if isinstance(found, Mapping) and found["value"] is not None:
        spread = f"{found['low']:.1%} to {found['high']:.1%}"
        return f"{found['value']:.1%} ({found['count']:,} of {found['of']:,}; 95% interval {spread})"
    return f"{found:.4f}" if isinstance(found, float | int) else "not defined"
