"""scikit-learn's digits in the shape of MNIST."""

import pytest
import torch
from sklearn.datasets import load_digits as load_small_digits
from torch import Tensor

from petm.data.digits import load_digits
from petm.errors import ArgumentError


def enlarge(small: Tensor) -> Tensor:
    """Slow reference: bilinear interpolation 8×8 to 28×28, pixel centres aligned, edges repeated."""
    places = ((torch.arange(28) + 0.5) * 8 / 28 - 0.5).clamp(0, 7)
    low = places.floor().long().clamp(max=6)
    weights = torch.zeros(28, 8)
    weights[torch.arange(28), low] = 1 - (places - low)
    weights[torch.arange(28), low + 1] = places - low
    return weights @ small @ weights.T


def test_the_parts_hold_all_digits_in_order_of_their_shares() -> None:
    parts = load_digits()
    assert sum(len(part) for part in parts) == 1797
    counts = torch.bincount(torch.from_numpy(load_small_digits().target))
    for part, share in zip(parts, (0.4, 0.1, 0.5), strict=True):
        assert part.classes == tuple("0123456789")
        assert (torch.bincount(part.labels) - share * counts).abs().max() <= 1
        assert part.value_range == (0.0, 1.0)
        assert part.inputs(range(len(part))).aminmax() == (0.0, 1.0)


def test_images_are_enlarged_bilinearly() -> None:
    (whole,) = load_digits(splits=(1.0,))
    small = load_small_digits()
    images = whole.inputs([0, 1000])
    assert images.shape == (2, 1, 28, 28)
    for image, index in zip(images, (0, 1000), strict=True):
        expected = enlarge(torch.from_numpy(small.images[index]).float() / 16)
        torch.testing.assert_close(image[0], expected, atol=1e-6, rtol=0)
    assert whole.labels.tolist() == small.target.tolist()


def test_the_seed_decides_the_parts() -> None:
    first, second, third = (load_digits(splits=(0.5, 0.5), seed=seed)[0].content for seed in (0, 0, 1))
    assert first == second != third


def test_shares_follow_their_rule() -> None:
    with pytest.raises(ArgumentError, match="shares: expected positive numbers with a sum of at most 1"):
        load_digits(splits=(0.9, 0.2))
