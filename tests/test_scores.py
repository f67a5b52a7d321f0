import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from petm.scores import disagreement, maximum_softmax, opposition, second_opinion


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
