"""How a model is called and its answer becomes logits, as a bundle remembers it: without torch."""

from dataclasses import dataclass
from typing import Literal, get_args

from petm._internal.records import Record
from petm.errors import BundleError

Kind = Literal["logits", "probabilities", "logit", "probability"]
"""Of ``K`` classes ``(N, K)``; or of the second of two classes, ``(N, 1)`` or ``(N,)``."""


@dataclass(frozen=True)
class Reading:
    """How a model is called and its answer read, as `petm.models.probe.probe` has found it.

    Attributes:
        kind: What the model answers with.
        place: Name or number of that tensor among several answers; empty where it is to be found by its shape.
        copied: Whether the model writes into its input, and so is given a copy.
        by_length: Whether padding changes the answer, and so texts run one length at a time.
    """

    kind: Kind = "logits"
    place: str = ""
    copied: bool = False
    by_length: bool = False

    @classmethod
    def from_json(cls, record: Record) -> "Reading":
        """Returns the reading from a manifest; raises BundleError where an entry breaks its rule."""
        kind = next((kind for kind in get_args(Kind) if kind == record.text("kind")), None)
        if kind is None:
            raise BundleError(f"{record.place}, kind: expected one of {', '.join(get_args(Kind))}, got another.")
        flags = (record.content.get(name) is True for name in ("copied", "by_length"))
        return cls(kind, record.text("place"), *flags)
