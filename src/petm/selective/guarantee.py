"""What a threshold guarantees, in words."""

from petm.selective.thresholds import Threshold

STATED = (
    " It rests on a statement: the calibration samples are a share of the fit's data, which the model is said not to "
    "have seen (calibration_from_data)."
)


def guarantee(threshold: Threshold) -> str:
    """Returns what a threshold guarantees about later predictions, in words, or that it guarantees nothing.

    Where the calibration samples are unseen by the user's word alone, that is said as well.
    """
    if threshold.confidence is not None and threshold.max_risk is not None:
        groups = threshold.groups
        each = " in each class that the model predicts" if threshold.classes else ""
        if groups:
            each = f" in each group of {' and '.join(groups.columns)} that has samples enough"
        asked = f"at most {short_percent(threshold.max_risk)} of the trusted are wrong{each}"
    elif threshold.confidence is not None and threshold.recall is not None:
        asked = f"at least {short_percent(threshold.recall)} of the model's errors are flagged"
    elif threshold.recall is not None:
        return (
            f"Nothing is guaranteed: the threshold flags at least {short_percent(threshold.recall)} of the errors seen "
            "here; of later errors it flags less than that about as often as not."
        )
    elif threshold.rule == "coverage":
        return "Nothing is guaranteed about errors: the threshold was set by the share to trust, which varies later."
    else:
        return f"Nothing is guaranteed. The threshold: {threshold.rule}."
    parts = threshold.classes[: len(threshold.groups.cells)] if threshold.groups else threshold.classes
    lost = sum(not part.holds for part in parts)
    if threshold.holds or (threshold.groups and lost < len(parts)):
        rest = f" In {lost} of {len(parts)} combinations of groups nothing can be trusted. {threshold.remedy}"
        return (
            f"The guarantee: of later predictions {asked}, with {short_percent(threshold.confidence)} confidence, "
            f"as long as they come from where these samples do, independently.{STATED if threshold.stated else ''}"
            + (rest if lost else "")
        )
    where = f"in {lost} of {len(parts)} {'combinations of groups' if threshold.groups else 'classes'} nothing is"
    where = where if lost else "nothing is"
    return f"It cannot be guaranteed that {asked}, and so {where} trusted. {threshold.remedy}"


def short_percent(value: float) -> str:
    """Returns a share in percent, with at most four digits."""
    return f"{100 * value:.4g}%"
