"""Targets of a threshold: one object from the command line to the calibration, checked when it is made.

``guarantees`` says whether the target holds for later predictions with a confidence, and so needs calibration samples
that the base model has not seen. The method ``threshold`` takes calibration samples: suspicion, float ``(N,)``, finite;
wrong, bool ``(N,)``, where the base model is wrong; predicted, int ``(N,)``, the classes that it predicts; the number
of classes ``K``; chance, float ``(N,)``, with which each was drawn to be labelled, None where all are equal; and the
values of group columns, ``(N,)`` each by name, where there are some. It raises `ArgumentError` where the samples do not
suffice for the target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from petm._internal.records import Json, Record
from petm.errors import ArgumentError, BundleError
from petm.selective.audit import inverse_chances
from petm.selective.group_thresholds import group_thresholds
from petm.selective.groups import Values, coded
from petm.selective.thresholds import (
    DISAGREEMENT,
    Threshold,
    check_share,
    class_thresholds,
    coverage_threshold,
    recall_threshold,
    risk_threshold,
)

Per = Literal["class"] | tuple[str, ...]


@dataclass(frozen=True)
class MaxRisk:
    """Guarantee at most this share of errors among the trusted (`risk_threshold`, `class_thresholds`).

    Attributes:
        max_risk: Share of errors among the trusted, between 0 and 1, both excluded.
        confidence: Probability with which the guarantee holds, between 0 and 1, both excluded.
        per: ``class`` for a guarantee in each class that the base model predicts; names of columns for one in each
            group of inputs (`group_thresholds`), for `petm.selective.calibrate` alone; None for one over all.

    Example:
        >>> MaxRisk(0.02)
        MaxRisk(max_risk=0.02, confidence=0.95, per=None)
    """

    kind: ClassVar[str] = "max_risk"
    max_risk: float
    confidence: float = field(default=0.95, kw_only=True)
    per: Per | None = field(default=None, kw_only=True)
    guarantees: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share("max_risk", self.max_risk, below_1=True)
        check_share("confidence", self.confidence, below_1=True)
        if isinstance(self.per, list):  # JSON gives lists back
            object.__setattr__(self, "per", tuple(self.per))
        named = isinstance(self.per, tuple) and all(isinstance(each, str) and each for each in self.per)
        if self.per not in (None, "class") and not (named and len(set(self.per or ())) == len(self.per or ())):
            raise ArgumentError(f"per: expected 'class', names of columns, or None, got {self.per!r}.")

    def __str__(self) -> str:
        each = " in each class" if self.per == "class" else f" in each {' and '.join(self.per)}" if self.per else ""
        return f"an error rate of at most {self.max_risk:.3g} among the trusted{each}, {self.confidence:.3g} confidence"

    def threshold(
        self,
        suspicion: ArrayLike,
        wrong: ArrayLike,
        predicted: ArrayLike,
        *,
        classes: int,
        chance: ArrayLike | None = None,
        groups: Mapping[str, Values] | None = None,
    ) -> Threshold:
        """Returns the threshold, or one for each class or group."""
        how: Any = {"max_risk": self.max_risk, "confidence": self.confidence, "chance": chance}
        if self.per is None:
            return risk_threshold(suspicion, wrong, **how)
        if self.per == "class":
            return class_thresholds(suspicion, wrong, predicted, classes=classes, **how)
        if groups is None:
            raise ArgumentError(
                f"per: expected 'class' or None for a network's grader, got {self.per}. Grade labelled inputs, and "
                f"calibrate on their grades (petm calibrate --group-column)."
            )
        return group_thresholds(suspicion, wrong, {column: coded(groups, column) for column in self.per}, **how)


@dataclass(frozen=True)
class Coverage:
    """Trust this share of the predictions (`coverage_threshold`).

    Attributes:
        coverage: Share of predictions to trust, above 0, at most 1.
    """

    kind: ClassVar[str] = "coverage"
    coverage: float
    guarantees: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("coverage", self.coverage)

    def __str__(self) -> str:
        return f"a coverage of {self.coverage:.3g}"

    def threshold(
        self,
        suspicion: ArrayLike,
        wrong: ArrayLike,
        predicted: ArrayLike,
        *,
        classes: int,
        chance: ArrayLike | None = None,
        groups: Mapping[str, Values] | None = None,
    ) -> Threshold:
        """Returns the threshold."""
        return coverage_threshold(suspicion, self.coverage, chance=chance)


@dataclass(frozen=True)
class Recall:
    """Flag this share of the errors (`recall_threshold`).

    Attributes:
        recall: Share of errors to flag, above 0, at most 1; below 1 with a confidence.
        confidence: Probability with which the guarantee holds for later errors, between 0 and 1, both excluded; None
            for no guarantee.
    """

    kind: ClassVar[str] = "recall"
    recall: float
    confidence: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_share("recall", self.recall, below_1=self.confidence is not None)
        if self.confidence is not None:
            check_share("confidence", self.confidence, below_1=True)

    @property
    def guarantees(self) -> bool:
        """Whether later errors are flagged with a confidence."""
        return self.confidence is not None

    def __str__(self) -> str:
        guaranteed = "" if self.confidence is None else f", {self.confidence:.3g} confidence"
        return f"a recall of {self.recall:.3g}{guaranteed}"

    def threshold(
        self,
        suspicion: ArrayLike,
        wrong: ArrayLike,
        predicted: ArrayLike,
        *,
        classes: int,
        chance: ArrayLike | None = None,
        groups: Mapping[str, Values] | None = None,
    ) -> Threshold:
        """Returns the threshold."""
        return recall_threshold(suspicion, wrong, recall=self.recall, confidence=self.confidence, chance=chance)


@dataclass(frozen=True)
class Disagreement:
    """Flag where the second opinion predicts another class, as the paper does. Suspicion is then the opposition."""

    kind: ClassVar[str] = "disagreement"
    guarantees: ClassVar[bool] = False

    def __str__(self) -> str:
        return "disagreement of both opinions"

    def threshold(
        self,
        suspicion: ArrayLike,
        wrong: ArrayLike,
        predicted: ArrayLike,
        *,
        classes: int,
        chance: ArrayLike | None = None,
        groups: Mapping[str, Values] | None = None,
    ) -> Threshold:
        """Returns the threshold, which depends on no sample."""
        trusted = DISAGREEMENT.trusts(suspicion)
        return replace(DISAGREEMENT, coverage=float(np.average(trusted, weights=inverse_chances(chance, len(trusted)))))


Target: TypeAlias = MaxRisk | Coverage | Recall | Disagreement
"""What a threshold must reach."""


def target_of(
    *,
    max_risk: float | None = None,
    coverage: float | None = None,
    recall: float | None = None,
    confidence: float | None = None,
    per_class: bool = False,
    group_columns: Sequence[str] = (),
) -> Target | None:
    """Returns the target that options such as those of the command line name, or None where they name none.

    Args:
        max_risk: Share of errors, as in `MaxRisk`.
        coverage: Share to trust, as in `Coverage`.
        recall: Share of errors to flag, as in `Recall`.
        confidence: Confidence of ``max_risk`` (0.95 where absent) or of ``recall`` (no guarantee where absent).
        per_class: Whether ``max_risk`` is guaranteed in each class.
        group_columns: Names of columns, in each of whose groups ``max_risk`` is guaranteed.

    Raises:
        ArgumentError: A value is out of range, several targets are named, or an option lacks its target.
    """
    named = {"max_risk": max_risk, "coverage": coverage, "recall": recall}
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        raise ArgumentError(f"{', '.join(given)}: expected one of these, got {len(given)}. Choose.")
    if confidence is not None:
        check_share("confidence", confidence, below_1=True)
        if max_risk is None and recall is None:
            raise ArgumentError(f"confidence: expected max_risk or recall beside it, got {given or 'neither'}.")
    if per_class and max_risk is None:
        raise ArgumentError(f"per_class: expected max_risk beside it, got {given or 'none'}.")
    if group_columns and (max_risk is None or per_class):
        raise ArgumentError("group_columns: expected max_risk beside it and no per_class. Name the risk to guarantee.")
    if max_risk is not None:
        per: Per | None = tuple(group_columns) or ("class" if per_class else None)
        return MaxRisk(max_risk, confidence=confidence or MaxRisk.confidence, per=per)
    if coverage is not None:
        return Coverage(coverage)
    return None if recall is None else Recall(recall, confidence=confidence)


def target_to_json(target: Target) -> dict[str, Json]:
    """Returns a target in JSON's types."""
    return {"kind": target.kind, **asdict(target)}


def target_from_json(record: Record) -> Target:
    """Returns the target that `target_to_json` wrote.

    Raises:
        BundleError: There is no such target, or an entry is absent, unknown or breaks its rule.
    """
    kinds: dict[str, type[Target]] = {known.kind: known for known in get_args(Target)}
    kind = kinds.get(record.text("kind"))
    if kind is None:
        raise BundleError(f"{record.place}, kind: expected {', '.join(kinds)}, got {record.text('kind')!r}.")
    try:
        entries: dict[str, Any] = {name: value for name, value in record.content.items() if name != "kind"}
        return kind(**entries)
    except (ArgumentError, TypeError) as error:
        raise BundleError(f"{record.place}: {str(error)[:300]}") from error
