"""The recipes of the detection benchmark: fixed second opinions for 1.25, 2.1 and 5 times a plain forward pass."""

from petm.adapter.model import Member
from petm.data.views import MIRROR
from petm.training.recipes import RECIPES as BUILT_IN
from petm.training.recipes import Recipe

COMMITTEE = (Member(), Member("second"), Member("third"))
_VIEWS = (MIRROR, "shift 2 0", "mirror, shift 0 2", "shift 0 -2")

RECIPES: dict[str, Recipe] = {
    "paper": BUILT_IN["paper"],
    "fast": Recipe(
        "An adapter on late layers",
        epsilon=None,
        max_ratio=1.25,
        mirrored=Recipe(
            "The model on flipped images, for its least certain predictions", (Member("", MIRROR),), look=0.22
        ),
    ),
    "balanced": Recipe(
        "Three such adapters",
        COMMITTEE,
        epsilon=None,
        max_ratio=1.25,
        max_extra_parameters=0.3,
        mirrored=Recipe("The model on flipped images", (Member("", MIRROR),)),
    ),
    "thorough": Recipe(
        "Five such adapters",
        (*COMMITTEE, Member("fourth"), Member("fifth")),
        epsilon=None,
        max_ratio=1.25,
        max_extra_parameters=0.5,
        mirrored=Recipe("The model on four views", tuple(Member("", name) for name in _VIEWS)),
    ),
}
"""The recipes by name (docs/benchmark/detection.md)."""
