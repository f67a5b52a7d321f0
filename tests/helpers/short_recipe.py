"""A recipe that takes a second."""

from petm.adapter.model import Member
from petm.training.recipes import Recipe

COMMITTEE = (Member(), Member("second"), Member("third"))
SHORT = Recipe("short", COMMITTEE, epsilon=0.1, max_ratio=1.5, max_extra_parameters=0.3, epochs=1)
