"""A plan as tables of finished text, and as one JSON object."""

from typing import Any

from petm.costs import Expected
from petm.files import plain
from petm.growth import SIZES, Transformer
from petm.parting import APART
from petm.planning import Plan
from petm.tables import Table, percent, size

SAMPLES = (10**4, 10**6, 10**8, 10**9)
"""Numbers of samples in the table of growth, beside the one that was asked for."""

_SI = ("", "k", "M", "G", "T", "P", "E", "Z")


def plan_tables(plan: Plan) -> dict[str, Table]:
    """Returns every table of a plan by name, in reading order."""
    return {
        "layers": layers_table(plan),
        "cost": cost_table(plan),
        "samples": samples_table(plan),
        "sizes": sizes_table(),
    }


def plan_json(plan: Plan) -> dict[str, Any]:
    """Returns all of a plan in JSON's types, with what follows from it, and how both grow."""
    return {
        **plain(plan),
        "share": plan.share,
        "counted_ratio": plan.counted_ratio,
        "expected": plain(plan.expected),
        "growth": {
            "samples": [plain(plan.fitting.at(samples)) for samples in SAMPLES],
            "sizes": {name: _size_json(transformer) for name, transformer in SIZES.items()},
        },
    }


def layers_table(plan: Plan) -> Table:
    """Returns rank by layer."""
    return Table(
        "Layers",
        "",
        ("Layer", "Rank" if plan.adapters == 1 else f"Rank, in each of {plan.adapters} adapters"),
        tuple((layer, str(rank)) for layer, rank in plan.layers.items()),
    )


def cost_table(plan: Plan) -> Table:
    """Returns what the second opinion adds to A, and what fitting takes for the samples that were asked for."""
    fitting, found = plan.fitting, plan.expected
    rows = [
        ("Recipe", plan.title),
        ("A", f"{plan.model_parameters:,} parameters, {size(plan.model_bytes)}"),
        (
            "Adapters",
            f"{plan.adapter_parameters:,} parameters, {size(plan.adapter_bytes)}, {percent(plan.share, 2)} of A's",
        ),
        ("Operations of A, one sample", amount(plan.operations)),
        ("One pass, both opinions", f"{amount(plan.one_pass_operations)}, {plan.counted_ratio:.2f} times A's"),
        ("The opinions part", _parting(plan)),
    ]
    if plan.mirrored_ratio is not None:
        rows.append(("If the mirror image keeps the class", f"{plan.mirrored}; {plan.mirrored_ratio:.2f} times A's"))
    features = "not cached: every step runs all of A"
    if fitting.feature_bytes:
        where = "in memory" if found.cache_in_memory else "in a temporary file"
        features = f"{size(fitting.feature_bytes)} a sample, {size(found.cache_bytes)} {where}"
    rows += [
        ("Samples in fitting", f"{found.samples:,}, {fitting.parts} times with copies; {fitting.epochs} epochs"),
        ("Features", features),
        ("Operations of fitting", amount(found.operations)),
        ("Rate here", f"{amount(fitting.rates.passes)}/s in passes, {amount(fitting.rates.steps)}/s in steps"),
        ("Time of fitting", duration(found.seconds)),
        ("Peak memory of fitting", size(round(found.memory_bytes))),
    ]
    caption = "Operations are those of matrix products, convolutions and attention; memory is without the libraries."
    return Table("Cost", caption, ("What", "How much"), tuple(rows), words=frozenset({0, 1}))


def samples_table(plan: Plan) -> Table:
    """Returns how fitting grows with the number of samples."""
    numbers = sorted({*SAMPLES, plan.samples})
    return Table(
        "Growth with the samples",
        f"On one machine of that rate, A as it is. Features beyond {size(plan.fitting.cache_budget)} lie on disk.",
        ("Samples", "Operations", "Time", "Features", "Peak memory"),
        tuple(_samples_row(plan.fitting.at(number)) for number in numbers),
    )


def sizes_table() -> Table:
    """Returns how a second opinion grows with the size of A, for transformers with the last two blocks adapted."""
    return Table(
        "Growth with the size of A",
        "Transformers in bfloat16, rank 8 on all layers of the last 2 blocks, by formula (petm.growth). Training: what "
        "the adapter holds while it learns. Fitting: operations for a sample with its FGSM example, 6 epochs.",
        ("A", "Weights", "Adapter", "Share", "Training", "Operations", "One pass", "Fitting"),
        tuple(_sizes_row(name, transformer) for name, transformer in SIZES.items()),
    )


def amount(value: float) -> str:
    """Returns a number with three digits and the SI prefix of its thousands."""
    power = 0
    while value >= 999.5 and power < len(_SI) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {_SI[power]}".rstrip()


def duration(seconds: float) -> str:
    """Returns a time in the unit that suits it."""
    for unit, length in (("years", 365 * 86_400), ("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.3g} {unit}"
    return f"{seconds:.3g} s"


def _parting(plan: Plan) -> str:
    if plan.parting.kind == APART:
        return "nowhere: this model mixes the samples of a batch, so each opinion takes a pass of its own"
    where = f"{plan.parting.kind} {plan.parting.module}" if plan.parting.module else "at the input"
    return f"{where}, behind {percent(plan.parting.share_before)} of the operations"


def _samples_row(found: Expected) -> tuple[str, ...]:
    cache, memory = size(found.cache_bytes), size(round(found.memory_bytes))
    return f"{found.samples:,}", amount(found.operations), duration(found.seconds), cache, memory


def _sizes_row(name: str, one: Transformer) -> tuple[str, ...]:
    return (
        name,
        size(one.model_bytes),
        amount(one.adapter_parameters),
        percent(one.adapter_parameters / one.parameters, 3),
        size(one.training_bytes),
        amount(one.operations),
        f"{one.counted_ratio:.3f}",
        amount(one.fitting_operations(1, parts=2, epochs=6)),
    )


def _size_json(one: Transformer) -> dict[str, Any]:
    names = ("parameters", "model_bytes", "adapter_parameters", "training_bytes", "operations", "counted_ratio")
    derived = {name: getattr(one, name) for name in (*names, "feature_bytes")}
    return {**plain(one), **derived, "fitting_operations": one.fitting_operations(1, parts=2, epochs=6)}
