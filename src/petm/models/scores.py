"""Suspicion scores: from logits to one float for each prediction of the base model; higher is more likely wrong.

``base`` are the base model's logits ``z``, ``p`` their softmax; ``second`` are the second opinion's logits ``z'``,
``p'`` their softmax; ``c = argmax p`` is the predicted class. Both are ``(N, K)`` with ``K >= 2``. All scores are
float64 ``(N,)`` and avoid differences of nearly equal numbers: a float32 softmax of a confident network is exactly 1
for most samples, which would all have the same score.
"""

import torch
from torch import Tensor


def maximum_softmax(base: Tensor) -> Tensor:
    """Returns ``1 - max p``, in [0, 1 - 1/K]: the base model's own uncertainty, the score to beat.

    Reference:
        Hendrycks and Gimpel (2017), A Baseline for Detecting Misclassified and Out-of-Distribution Examples.
    """
    return _probability_of_others(base, base.argmax(1))


def entropy(base: Tensor) -> Tensor:
    """Returns ``-sum_k p(k) ln p(k)`` in nats, in [0, ln K].

    Reference:
        Shannon (1948), A Mathematical Theory of Communication.
    """
    chosen = base.argmax(1, keepdim=True)
    p = base.double().softmax(1)
    others = p.scatter(1, chosen, 0.0)
    of_others: Tensor = torch.special.entr(others).sum(1)
    return of_others - p.gather(1, chosen).squeeze(1) * torch.log1p(-others.sum(1))


def margin(base: Tensor) -> Tensor:
    """Returns ``max_{k != c} z(k) - z(c)``, at most 0: `opposition` with the base model as its own second opinion."""
    return opposition(base, base)


def largest_logit(base: Tensor) -> Tensor:
    """Returns ``-max z``, any real number; a constant added to all logits of a sample changes it.

    Reference:
        Hendrycks et al. (2022), Scaling Out-of-Distribution Detection for Real-World Settings.
    """
    return -base.double().amax(1)


def energy(base: Tensor) -> Tensor:
    """Returns ``-ln sum_k exp z(k)``, any real number; a constant added to all logits of a sample changes it.

    Reference:
        Liu et al. (2020), Energy-based Out-of-distribution Detection, at temperature 1.
    """
    return -base.double().logsumexp(1)


def second_opinion(base: Tensor, second: Tensor) -> Tensor:
    """Returns ``1 - p'(c)``, in [0, 1]."""
    return _probability_of_others(second, base.argmax(1))


def mean_of_both(base: Tensor, second: Tensor) -> Tensor:
    """Returns ``1 - (p(c) + p'(c)) / 2``, in [0, 1).

    Reference:
        Lakshminarayanan et al. (2017), Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles:
        the mean of two members, at the base model's class.
    """
    return (maximum_softmax(base) + second_opinion(base, second)) / 2


def disagreement(base: Tensor, second: Tensor) -> Tensor:
    """Returns 1 where the second opinion predicts another class than the base model, else 0: the paper's flag.

    Reference:
        Lee et al. (2025), Knowledge-Based Systems 310.
    """
    return (base.argmax(1) != second.argmax(1)).double()


def opposition(base: Tensor, second: Tensor) -> Tensor:
    """Returns ``max_{k != c} z'(k) - z'(c)``, any real number: how much the second opinion prefers another class.

    It is above 0 exactly where the second opinion disagrees with the base model (at 0 there is a tie), so the threshold
    0 is the paper's flag. Unlike a difference of probabilities it tells even the surest predictions apart.
    """
    chosen = base.argmax(1, keepdim=True)
    logits = second.double()
    others = logits.scatter(1, chosen, -float("inf")).amax(1)
    return others - logits.gather(1, chosen).squeeze(1)


def _probability_of_others(logits: Tensor, chosen: Tensor) -> Tensor:
    """The probability of all classes but ``chosen``, summed rather than subtracted from 1, which would cancel."""
    return logits.double().softmax(1).scatter(1, chosen.unsqueeze(1), 0.0).sum(1)
