"""A recipe that takes a second."""

from petm.training.recipes import (
    COMMITTEE,
    Recipe,
)

SHORT = Recipe("short", COMMITTEE, epsilon=0.1, max_ratio=1.5, max_extra_parameters=0.3, epochs=1)
