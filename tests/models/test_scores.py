from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from petm.models.scores import (
    disagreement,
    energy,
    entropy,
    largest_logit,
    margin,
    maximum_softmax,
    mean_of_both,
    opposition,
    second_opinion,
)

SCORES = {
    **{
        each.__name__: lambda base, second, each=each: each(base)
        for each in (maximum_softmax, entropy, margin, energy, largest_logit)
    },
    **{each.__name__: each for each in (second_opinion, mean_of_both, disagreement, opposition)},
}


def pair(samples: int = 500, classes: int = 7, *, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = scale * torch.randn(samples, classes, generator=generator)
    return base, base + scale / 3 * torch.randn(samples, classes, generator=generator)


def probabilities(logits: Tensor) -> np.ndarray:
    return softmax(logits.numpy().astype(np.float64), axis=1)


def test_scores_against_their_formulas() -> None:
    base, second = pair()
    p, q = probabilities(base), probabilities(second)
    chosen = p.argmax(1)
    rows = np.arange(len(p))
    logits = second.numpy().astype(np.float64)
    others = logits.copy()
    others[rows, chosen] = -np.inf
    np.testing.assert_allclose(maximum_softmax(base), 1 - p.max(1), atol=1e-14)
    np.testing.assert_allclose(second_opinion(base, second), 1 - q[rows, chosen], atol=1e-14)
    np.testing.assert_allclose(opposition(base, second), others.max(1) - logits[rows, chosen])
    np.testing.assert_array_equal(disagreement(base, second), (q.argmax(1) != chosen).astype(float))


def test_a_hand_computed_sample() -> None:
    base, second = torch.tensor([[0.6, 0.3, 0.1]]).log(), torch.tensor([[0.2, 0.5, 0.3]]).log()
    assert maximum_softmax(base).item() == pytest.approx(0.4, rel=1e-6)
    assert second_opinion(base, second).item() == pytest.approx(0.8, rel=1e-6)
    assert opposition(base, second).item() == pytest.approx(np.log(0.5 / 0.2), rel=1e-6)
    assert disagreement(base, second).item() == 1


def test_confident_samples_keep_their_order() -> None:
    # In float32 the softmax of all of these is exactly 1, and in float64 1 - p of the last two is exactly 0.
    margins = torch.tensor([20.0, 30.0, 40.0, 50.0, 80.0])
    logits = torch.stack((margins, torch.zeros(5)), dim=1)
    expected = 1 / (1 + np.exp(margins.double().numpy()))
    np.testing.assert_allclose(maximum_softmax(logits), expected, rtol=1e-12)
    np.testing.assert_allclose(second_opinion(logits, logits), expected, rtol=1e-12)
    np.testing.assert_array_equal(opposition(logits, logits), -margins)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("classes", [2, 10])
def test_opposition_is_positive_exactly_where_the_opinions_differ(scale: float, classes: int) -> None:
    base, second = pair(5000, classes, scale=scale)
    differ = base.argmax(1) != second.argmax(1)
    assert 0 < differ.sum() < len(differ)
    assert torch.equal(opposition(base, second) > 0, differ)
    assert torch.equal(disagreement(base, second) == 1, differ)


def test_a_tie_of_the_second_opinion_is_no_opposition() -> None:
    assert opposition(torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0, 5.0]])).item() == 0


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_ranges_and_dtype(scale: float) -> None:
    base, second = pair(2000, 4, scale=scale)
    for scores, low, high in (
        (maximum_softmax(base), 0, 3 / 4),
        (second_opinion(base, second), 0, 1),
        (opposition(base, second), -np.inf, np.inf),
        (disagreement(base, second), 0, 1),
    ):
        assert scores.dtype == torch.float64
        assert scores.shape == (2000,)
        assert scores.min() >= low
        assert scores.max() <= high + 1e-12


def test_no_logits_no_scores() -> None:
    empty = torch.empty(0, 3)
    assert len(maximum_softmax(empty)) == len(opposition(empty, empty)) == len(second_opinion(empty, empty)) == 0


# The further scores against 150 decimal digits


def exact(logits: Tensor) -> list[Decimal]:
    """The softmax of one sample, of its logits as they are stored."""
    with localcontext(prec=150):
        powers = [Decimal(value).exp() for value in logits.tolist()]
        return [power / sum(powers) for power in powers]


def exact_entropy(base: Tensor, second: Tensor) -> Decimal:
    del second
    return -sum((p * p.ln() for p in exact(base)), Decimal(0))


def exact_energy(base: Tensor, second: Tensor) -> Decimal:
    del second
    return -sum((Decimal(value).exp() for value in base.tolist()), Decimal(0)).ln()


def exact_margin(base: Tensor, second: Tensor) -> Decimal:
    del second
    first, runner_up = sorted((Decimal(value) for value in base.tolist()), reverse=True)[:2]
    return runner_up - first


def exact_maximum_softmax(base: Tensor, second: Tensor) -> Decimal:
    del second
    return 1 - max(exact(base))


def exact_second_opinion(base: Tensor, second: Tensor) -> Decimal:
    return 1 - exact(second)[int(base.argmax())]


def exact_mean_of_both(base: Tensor, second: Tensor) -> Decimal:
    chosen = int(base.argmax())
    return 1 - (exact(base)[chosen] + exact(second)[chosen]) / 2


EXACT = {
    "maximum_softmax": exact_maximum_softmax,
    "entropy": exact_entropy,
    "margin": exact_margin,
    "energy": exact_energy,
    "second_opinion": exact_second_opinion,
    "mean_of_both": exact_mean_of_both,
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("apart", [1.0, 1e-3])
def test_score_to_its_last_digits(name: str, scale: float, apart: float) -> None:
    base, second = pair(40, 5, scale=scale)
    second = base + apart * (second - base)
    with localcontext(prec=150):
        expected = [float(EXACT[name](*rows)) for rows in zip(base, second, strict=True)]
    np.testing.assert_allclose(SCORES[name](base, second), expected, rtol=1e-10)


@pytest.mark.parametrize("name", [name for name in SCORES if name != "disagreement"])
def test_the_surest_predictions_keep_apart_and_in_order(name: str) -> None:
    # A leads by 20 to 100 logits: in float32 the softmax of all of these is exactly 1, in float64 that of nearly all.
    lead = torch.linspace(20, 100, 300)
    base = torch.stack((lead, torch.zeros(300), -torch.ones(300)), dim=1)
    second = torch.stack((lead - 1, torch.zeros(300), torch.ones(300)), dim=1)
    score = SCORES[name](base, second)
    assert bool((score.diff() < 0).all())


def test_equal_opinions_do_not_diverge() -> None:
    base, _ = pair()
    assert torch.equal(mean_of_both(base, base), maximum_softmax(base))
    assert torch.equal(opposition(base, base), margin(base))


def test_no_preference_at_all() -> None:
    flat = torch.zeros(1, 4)
    assert maximum_softmax(flat).item() == mean_of_both(flat, flat).item() == 3 / 4
    assert entropy(flat).item() == pytest.approx(np.log(4), rel=1e-15)
    assert energy(flat).item() == pytest.approx(-np.log(4), rel=1e-15)
    assert margin(flat).item() == disagreement(flat, flat).item() == 0


def test_only_energy_and_the_largest_logit_see_a_constant_added_to_all_logits() -> None:
    base, second = pair(50)
    base, second = base.double(), second.double()
    for name, score in SCORES.items():
        shift = -8 if name in ("energy", "largest_logit") else 0
        np.testing.assert_allclose(
            score(base + 8, second + 8), score(base, second) + shift, rtol=1e-9, atol=1e-12, err_msg=name
        )


@pytest.mark.parametrize("name", SCORES)
def test_dtype_and_shape(name: str) -> None:
    base, second = pair(30)
    score = SCORES[name](base, second)
    assert score.dtype == torch.float64
    assert score.shape == (30,)
    assert len(SCORES[name](torch.empty(0, 3), torch.empty(0, 3))) == 0
