"""Words of formulas, and of the code's history, that no user of the command line should read."""

import re

FORBIDDEN = re.compile(
    r"\bA'|\bA\b(?! \w| $)|\bA (?:is|and|at|says|answers)\b|α|(?i:\b(?:alphas?|twins?|parting|promis(?:e[sd]?|ing))\b)"
)
"""``A`` where it is no article, that is the base model, and ``A'``, the teacher; alpha and others."""


def forbidden(text: str) -> list[str]:
    """The words of `FORBIDDEN` that stand in a text."""
    return FORBIDDEN.findall(text)
