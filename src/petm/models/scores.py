"""Suspicion scores: logits in, one float for each prediction of the base model out; higher is more likely wrong.

``z`` are the base model's logits and ``p`` their softmax, ``z'`` and ``p'`` those of the second opinion, ``c = argmax
p`` the class that the base model predicts. Scores of the base model alone take ``base``, the others ``base`` and
``second``, both ``(N, K)`` with ``K >= 2``; `SCORES` has them all as functions of the two. All are computed in float64
and without differences of nearly equal numbers: a float32 softmax of a confident network is exactly 1 for most samples,
which would then all be alike.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]
"""``(base, second)``, logits ``(N, K)`` each, to suspicion, float64 ``(N,)``."""


def maximum_softmax(base: Tensor) -> Tensor:
    """Returns ``1 - max p``, float64 ``(N,)`` in [0, 1 - 1/K]: what the base model itself offers, the score to beat.

    Args:
        base: the base model's logits ``(N, K)``.

    Reference:
        Hendrycks and Gimpel (2017), A Baseline for Detecting Misclassified and Out-of-Distribution Examples.
    """
    return _probability_of_others(base, base.argmax(1))


def entropy(base: Tensor) -> Tensor:
    """Returns ``-sum_k p(k) ln p(k)`` in nats, float64 ``(N,)`` in [0, ln K]: how spread the base model's opinion is.

    Args:
        base: the base model's logits ``(N, K)``.

    Reference:
        Shannon (1948), the base model Mathematical Theory of Communication.
    """
    chosen = base.argmax(1, keepdim=True)
    p = base.double().softmax(1)
    others = p.scatter(1, chosen, 0.0)
    of_others: Tensor = torch.special.entr(others).sum(1)
    return of_others - p.gather(1, chosen).squeeze(1) * torch.log1p(-others.sum(1))


def margin(base: Tensor) -> Tensor:
    """Returns ``max_{k != c} z(k) - z(c)``, float64 ``(N,)``, at most 0: minus its lead over its runner-up, in logits.

    It is `opposition` with the base model as its own second opinion. In logits even the surest predictions keep apart.

    Args:
        base: the base model's logits ``(N, K)``.
    """
    return opposition(base, base)


def energy(base: Tensor) -> Tensor:
    """Returns ``-ln sum_k exp z(k)``, float64 ``(N,)``, any real number: low where the model sees much of any class.

    Unlike the scores of the softmax it changes when a constant is added to all logits of a sample.

    Args:
        base: the base model's logits ``(N, K)``.

    Reference:
        Liu et al. (2020), Energy-based Out-of-distribution Detection, at temperature 1.
    """
    return -base.double().logsumexp(1)


def second_opinion(base: Tensor, second: Tensor) -> Tensor:
    """Returns ``1 - p'(c)``, float64 ``(N,)`` in [0, 1]: how little the second opinion thinks of the model's answer.

    Args:
        base: the base model's logits ``(N, K)``.
        second: The second opinion's logits ``(N, K)``.
    """
    return _probability_of_others(second, base.argmax(1))


def mean_of_both(base: Tensor, second: Tensor) -> Tensor:
    """Returns ``1 - (p(c) + p'(c)) / 2``, float64 ``(N,)`` in [0, 1): how little both together think of its answer.

    Args:
        base: the base model's logits ``(N, K)``.
        second: The second opinion's logits ``(N, K)``.

    Reference:
        Lakshminarayanan et al. (2017), Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles:
        the mean of two members, judged at the base model's class.
    """
    return (maximum_softmax(base) + second_opinion(base, second)) / 2


def disagreement(base: Tensor, second: Tensor) -> Tensor:
    """Returns 1 where the second opinion predicts another class than the model, else 0: the paper's flag.

    Args:
        base: the base model's logits ``(N, K)``.
        second: The second opinion's logits ``(N, K)``.

    Reference:
        Lee et al. (2025), Knowledge-Based Systems 310.
    """
    return (base.argmax(1) != second.argmax(1)).double()


def opposition(base: Tensor, second: Tensor) -> Tensor:
    """Returns ``max_{k != c} z'(k) - z'(c)``, float64 ``(N,)``: by how much the second opinion prefers another class.

    A difference of logits, any real number: above 0 exactly where the second opinion disagrees with the base model (at
    0 there is a tie). So the threshold 0 is the paper's yes-or-no flag, and other thresholds are stricter or milder
    forms of it. Unlike a difference of probabilities it keeps apart even the surest predictions.

    Args:
        base: the base model's logits ``(N, K)``.
        second: The second opinion's logits ``z'``, ``(N, K)``.
    """
    chosen = base.argmax(1, keepdim=True)
    logits = second.double()
    others = logits.scatter(1, chosen, -float("inf")).amax(1)
    return others - logits.gather(1, chosen).squeeze(1)


def jensen_shannon(base: Tensor, second: Tensor) -> Tensor:
    """Returns ``(KL(p, m) + KL(p', m)) / 2`` with ``m = (p + p') / 2``, float64 ``(N,)`` in [0, ln 2], in nats.

    How far the two opinions lie apart as distributions, whatever the base model's answer is. With ``t = (p - p') / (p +
    p')`` it is the sum of ``m (ln(1 - t²) + 2 t artanh t) / 2`` over the classes, of which each is at least 0, so
    nothing cancels.

    Args:
        base: the base model's logits ``(N, K)``.
        second: The second opinion's logits ``(N, K)``.

    Reference:
        Lin (1991), Divergence Measures Based on the Shannon Entropy.
    """
    chosen = base.argmax(1, keepdim=True)
    p, q = base.double().softmax(1), second.double().softmax(1)
    # For the base model's class, whose two probabilities are often both nearly 1, from those of the other classes.
    of_chosen = q.scatter(1, chosen, 0.0).sum(1, keepdim=True) - p.scatter(1, chosen, 0.0).sum(1, keepdim=True)
    total = p + q
    t = (p - q).scatter(1, chosen, of_chosen) / total.clamp_min(torch.finfo(torch.float64).tiny)
    t = t.clamp(-1, 1)
    near = t.clamp(-0.5, 0.5)
    small = torch.log1p(-near.square()) + 2 * near * near.atanh()
    large = torch.special.xlogy(1 + t, 1 + t) + torch.special.xlogy(1 - t, 1 - t)
    return (total * torch.where(t.abs() < 0.5, small, large)).sum(1) / 4


def _of_base(score: Callable[[Tensor], Tensor]) -> Score:
    """A score of the base model alone, as one that is given both."""
    return lambda base, second: score(base)


SCORES: dict[str, Score] = {
    "maximum_softmax": _of_base(maximum_softmax),
    "entropy": _of_base(entropy),
    "margin": _of_base(margin),
    "energy": _of_base(energy),
    "second_opinion": second_opinion,
    "mean_of_both": mean_of_both,
    "disagreement": disagreement,
    "opposition": opposition,
    "jensen_shannon": jensen_shannon,
}
"""Every score of the two opinions by name."""


def _probability_of_others(logits: Tensor, chosen: Tensor) -> Tensor:
    """The probability of all classes but ``chosen``, summed rather than subtracted from 1, which would cancel."""
    return logits.double().softmax(1).scatter(1, chosen.unsqueeze(1), 0.0).sum(1)
