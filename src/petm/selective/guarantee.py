"""What a threshold guarantees, in words."""

from petm.selective.thresholds import Threshold


def guarantee(threshold: Threshold) -> str:
    """Returns what a threshold guarantees of later predictions, in words, or that it guarantees nothing.

    Args:
        threshold: From `petm.selective.thresholds`.
    """
    each = " in each class that the model predicts" if threshold.classes else ""
    alike = "as long as they come from where these samples do, independently"
    if threshold.max_risk is not None and threshold.confidence is not None:
        asked = f"at most {_short(threshold.max_risk)} of the trusted are wrong{each}"
        if threshold.holds:
            return (
                f"The guarantee: of later predictions {asked}, with {_short(threshold.confidence)} confidence, {alike}."
            )
        lost = sum(not part.holds for part in threshold.classes)
        where = f"in {lost} of {len(threshold.classes)} classes nothing is" if lost else "nothing is"
        return f"It cannot be guaranteed that {asked}, and so {where} trusted. {threshold.remedy}"
    if threshold.recall is not None and threshold.confidence is not None:
        asked = f"at least {_short(threshold.recall)} of the model's errors are flagged"
        if threshold.holds:
            return (
                f"The guarantee: of later predictions {asked}, with {_short(threshold.confidence)} confidence, {alike}."
            )
        return f"It cannot be guaranteed that {asked}, and so nothing is trusted. {threshold.remedy}"
    if threshold.recall is not None:
        return (
            f"Nothing is guaranteed: the threshold flags at least {_short(threshold.recall)} of the errors seen here; "
            "of later errors it flags less than that about as often as not."
        )
    if threshold.rule == "coverage":
        return "Nothing is guaranteed of errors: the threshold was set by the share to trust, which varies later."
    return f"Nothing is guaranteed. The threshold: {threshold.rule}."


def _short(value: float) -> str:
    """A share that was asked for, in percent, with the digits that it has."""
    return f"{100 * value:.4g}%"
