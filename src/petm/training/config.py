"""The settings of ``fit``, in one place for Python, the command line, the run folder and the manifest.

Nothing here imports PyTorch, so a wrong option is refused before anything else is loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, TypedDict, get_args

from petm._internal.files import plain
from petm._internal.records import Json
from petm._internal.texts import near
from petm.errors import ArgumentError
from petm.selective.sets import COVERAGE as SET_COVERAGE
from petm.selective.sets import check_coverage
from petm.selective.targets import Disagreement, Target

if TYPE_CHECKING:
    from petm.training.recipes import Recipe

RecipeName = Literal["auto", "paper"]
EVIDENCE_NAMES = (
    *("softmax", "margin", "entropy", "largest_logit", "mean_opinion", "second_opinion"),
    *("mahalanobis", "relative_mahalanobis", "knn", "knn_distance"),
)
"""Evidence that a fit compares with the softmax, as `petm.evidence.suspicion.EVIDENCE` has it."""
_OF_ADAPTERS = frozenset({"mean_opinion", "second_opinion"})
ErrorSource = Literal["plain", "hardest", "augmented", "out-of-fold"]
CALIBRATION_SHARE = 0.2
"""Share of the data held out for the threshold where no calibration set is passed."""
CACHE_BUDGET = 4 << 30
_PRECISIONS = ("float32", "bfloat16")
_NOT_TOLD = frozenset({"target", "device"})
"""Settings that a bundle records elsewhere, or not at all."""
_NOT_TRAINING = _NOT_TOLD | {"calibration_from_data", "force", "set_coverage"}
"""Settings that do not affect the training, so that they may differ when a run is resumed."""


class FitSettings(TypedDict, total=False):
    """The fields of `FitConfig` as keyword arguments."""

    recipe: "str | Recipe"
    errors: str | None
    layers: Mapping[str, int] | None
    max_extra_parameters: float | None
    max_extra_time: float | None
    target: Target | None
    set_coverage: float
    calibration_from_data: bool
    force: bool
    seed: int
    precision: Literal["float32", "bfloat16"]
    cache_budget: int
    device: str


@dataclass(frozen=True)
class FitConfig:
    """The settings of one fit, checked when they are made.

    Attributes:
        recipe: ``auto`` compares everything within the budgets with the softmax and takes the best; names of evidence
            (`EVIDENCE_NAMES`, with commas between them) compare these alone; ``paper`` is as published; a recipe of
            your own is taken as it is.
        errors: Source of errors for a recipe with a teacher, a name in `petm.training.mining.SOURCES`; absent follows
            the recipe.
        layers: The rank of each layer to adapt, by its name in the base model; absent follows the recipe.
        max_extra_parameters: Size of all adapters over that of the base model without embeddings; absent follows the
            recipe.
        max_extra_time: Operations of one pass over those of a plain forward pass, less 1; absent is 0.25, or follows
            a recipe of your own. The recipe ``paper`` ignores it.
        target: Target of the threshold; absent flags nine of ten errors, or disagreement with a teacher, which a recipe
            that chooses the suspicion refuses.
        set_coverage: Probability with which the candidates of a prediction hold its true class, in each grade
            (`petm.selective.sets.fit_grade_sets`).
        calibration: Share of the data held out for the threshold where no calibration set is passed.
        calibration_from_data: The statement that the base model has not seen the data; a guarantee then needs no
            calibration set.
        force: Whether to go on where the base model's accuracy says that the labels are not its own.
        seed: Seed of all random numbers.
        precision: Precision of the matrix products in training, ``float32`` or ``bfloat16``.
        cache_budget: Bytes of memory for decoded data, adversarial examples and prefix features.
        device: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        ArgumentError: An argument breaks its rule.
    """

    recipe: "str | Recipe" = "auto"
    errors: str | None = None
    layers: Mapping[str, int] | None = None
    max_extra_parameters: float | None = None
    max_extra_time: float | None = None
    target: Target | None = None
    set_coverage: float = SET_COVERAGE
    calibration: float = CALIBRATION_SHARE
    calibration_from_data: bool = False
    force: bool = False
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    cache_budget: int = CACHE_BUDGET
    device: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.recipe, str):
            for name in self.compared or (self.recipe,):
                _check_name(
                    "recipe", name, EVIDENCE_NAMES if self.compared else (*get_args(RecipeName), *EVIDENCE_NAMES)
                )
        if self.errors is not None:
            _check_name("errors", self.errors, get_args(ErrorSource))
        _check_name("precision", self.precision, _PRECISIONS)
        for name in ("max_extra_parameters", "max_extra_time"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ArgumentError(f"{name}: expected a share above 0, got {value}. Try 0.1, or leave it out.")
        if self.layers is not None and not self.layers:
            raise ArgumentError("layers: expected at least one layer, got none. Leave it out to follow the recipe.")
        for layer, rank in (self.layers or {}).items():
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise ArgumentError(f"layers: expected a rank of at least 1 for {layer!r}, got {rank!r}.")
        if self.target is not None and not callable(getattr(self.target, "threshold", None)):
            raise ArgumentError(
                f"target: expected a target such as petm.MaxRisk(0.02) or petm.Coverage(0.9), got {self.target!r}."
            )
        if isinstance(self.target, Disagreement) and isinstance(self.recipe, str) and self.recipe != "paper":
            raise ArgumentError(
                f"target: expected another one than disagreement where suspicion is chosen, got it with the recipe "
                f"{self.recipe!r}. Pass recipe='paper', or petm.Recall(0.9)."
            )
        check_coverage(self.set_coverage, "set_coverage")
        if isinstance(self.calibration, bool) or not 0 < self.calibration < 1:
            raise ArgumentError(f"calibration: expected data or a share between 0 and 1, got {self.calibration}.")
        for name, least in (("seed", -(2**63)), ("cache_budget", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
                raise ArgumentError(f"{name}: expected a whole number of at least {least}, got {value!r}.")

    @property
    def compared(self) -> tuple[str, ...]:
        """The names of evidence that are compared alone; empty for all."""
        if not isinstance(self.recipe, str) or self.recipe in get_args(RecipeName):
            return ()
        return tuple(name.strip() for name in self.recipe.split(","))

    @property
    def trains(self) -> bool:
        """Whether adapters are trained: not where all evidence that is compared goes without."""
        return not self.compared or not _OF_ADAPTERS.isdisjoint(self.compared)

    def check_calibration(self, *, separate: bool) -> None:
        """Checks that a guarantee has calibration samples which the base model has not seen.

        Args:
            separate: Whether there is a calibration set of its own.

        Raises:
            ArgumentError: There is none, and nothing says that the base model has not seen the data; or there is one,
                and the data are to be held out as well.
        """
        if separate and self.calibration_from_data:
            raise ArgumentError(
                "calibration_from_data: expected no calibration set beside it, got one. Leave out one of them."
            )
        if not separate and not self.calibration_from_data and self.target is not None and self.target.guarantees:
            raise ArgumentError(
                f"calibration: expected labelled samples that the model has not seen, to guarantee {self.target}, got "
                f"none: a model makes fewer errors on its own training data. Pass such samples as calibration, or "
                f"state with calibration_from_data=True (--calibration-from-data) that it has not seen the data either."
            )

    def identity(self) -> dict[str, Json]:
        """Returns the settings that affect the training, in JSON's types; they identify a run."""
        return {
            entry.name: plain(getattr(self, entry.name)) for entry in fields(self) if entry.name not in _NOT_TRAINING
        }

    def told(self) -> dict[str, Json]:
        """Returns the recipe, the seed and all settings that differ from the defaults, in JSON's types."""
        title = self.recipe if isinstance(self.recipe, str) else self.recipe.title
        changed = {
            entry.name: plain(getattr(self, entry.name))
            for entry in fields(self)
            if entry.name not in _NOT_TOLD and getattr(self, entry.name) != entry.default
        }
        return changed | {"recipe": title, "seed": self.seed}


def _check_name(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ArgumentError(f"{name}: expected one of {', '.join(known)}, got {value!r}{near(value, known)}.")
