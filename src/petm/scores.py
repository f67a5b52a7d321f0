"""Suspicion scores: logits in, one float for each prediction of A out; higher is more likely wrong.

``p`` is the softmax of A's logits, ``p'`` that of the second opinion, ``c = argmax p`` the class that A predicts.
All are computed in float64: a float32 softmax of a confident network is exactly 1 for most samples.
"""

from torch import Tensor


def maximum_softmax(base: Tensor) -> Tensor:
    """Returns ``1 - max p``, float64 ``(N,)`` in [0, 1 - 1/K]: what A itself offers, the score to beat.

    Args:
        base: A's logits ``(N, K)``.

    Reference:
        Hendrycks and Gimpel (2017), A Baseline for Detecting Misclassified and Out-of-Distribution Examples.
    """
    return _probability_of_others(base, base.argmax(1))


def second_opinion(base: Tensor, second: Tensor) -> Tensor:
    """Returns ``1 - p'(c)``, float64 ``(N,)`` in [0, 1]: how little the second opinion thinks of A's answer.

    Args:
        base: A's logits ``(N, K)``.
        second: The second opinion's logits ``(N, K)``.
    """
    return _probability_of_others(second, base.argmax(1))


def disagreement(base: Tensor, second: Tensor) -> Tensor:
    """Returns 1 where the second opinion predicts another class than A, else 0, float64 ``(N,)``: the paper's flag.

    Args:
        base: A's logits ``(N, K)``.
        second: The second opinion's logits ``(N, K)``.

    Reference:
        Lee et al. (2025), Knowledge-Based Systems 310.
    """
    return (base.argmax(1) != second.argmax(1)).double()


def opposition(base: Tensor, second: Tensor) -> Tensor:
    """Returns ``max_{k != c} z'(k) - z'(c)``, float64 ``(N,)``: by how much the second opinion prefers another class.

    A difference of logits, any real number: above 0 exactly where the second opinion disagrees with A (at 0 there is a
    tie). So the threshold 0 is the paper's yes-or-no flag, and other thresholds are stricter or milder forms of it.
    Unlike a difference of probabilities it keeps apart even the surest predictions.

    Args:
        base: A's logits ``(N, K)``.
        second: The second opinion's logits ``z'``, ``(N, K)``.
    """
    chosen = base.argmax(1, keepdim=True)
    logits = second.double()
    others = logits.scatter(1, chosen, -float("inf")).amax(1)
    return others - logits.gather(1, chosen).squeeze(1)


def _probability_of_others(logits: Tensor, chosen: Tensor) -> Tensor:
    """The probability of all classes but ``chosen``, summed rather than subtracted from 1, which would cancel."""
    return logits.double().softmax(1).scatter(1, chosen.unsqueeze(1), 0.0).sum(1)
