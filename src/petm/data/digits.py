"""The handwritten digits that come with scikit-learn: real data without a download."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from petm.data.base import Data, TensorData


def load_digits(*, splits: Sequence[float] = (0.4, 0.1, 0.5), seed: int = 0) -> tuple[Data, ...]:
    """Returns stratified parts of scikit-learn's 1,797 handwritten digits, enlarged to the shape of MNIST.

    The 8×8 images with values 0 to 16 are divided by 16 and resized bilinearly, so that the paper's CNN, which expects
    28×28, takes them as they are.

    Args:
        splits: The share of the samples of each class in each part; by default train, calibration and test. Half is
            for the test because misclassifications are rare, and few of them make every measure noisy.
        seed: The same seed gives the same parts.

    Returns:
        One `Data` for each share; inputs float32 ``(n, 1, 28, 28)`` in [0, 1], classes "0" to "9".

    Raises:
        ArgumentError: ``splits`` are not positive numbers with a sum of at most 1.

    Example:
        >>> train, calibration, test = load_digits()
        >>> len(train), len(calibration), len(test)
        (719, 179, 899)
    """
    from sklearn.datasets import load_digits as load_small_digits

    pixels, labels = load_small_digits(return_X_y=True)
    small = torch.from_numpy(pixels).float().div_(16).reshape(-1, 1, 8, 8)
    images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    digits = TensorData(
        images,
        torch.from_numpy(labels),
        classes=[str(digit) for digit in range(10)],
        source="digits",
        value_range=(0.0, 1.0),
    )
    return digits.split(splits, seed=seed)
