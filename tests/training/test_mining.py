"""Where errors come from: the check before the flight, every source, and FGSM on features."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

from networks import images, snapshot
from petm.data.base import Data, TensorData
from petm.errors import ArgumentError, DataError, ModelError
from petm.training.augmentation import MILD, Augmentation, Augmented, choose_augmentation
from petm.training.error_set import Mined, find_errors
from petm.training.mining import (
    SOURCES,
    augmented_errors,
    hardest_samples,
    mine_errors,
    out_of_fold_errors,
)
from petm.training.preflight import preflight
from petm.training.replacement import replace_errors


class Given(nn.Module):
    """The logits are the samples."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def answers(labels: list[int], wrong: int, classes: int = 4) -> Data:
    """Samples that `Given` gets right, but for the first ``wrong``."""
    labelled = torch.tensor(labels)
    said = labelled.clone()
    said[:wrong] = (said[:wrong] + 1) % classes
    return TensorData(9.0 * F.one_hot(said, classes), labelled)


@pytest.fixture(scope="module")
def part(digits: tuple[Data, ...]) -> Data:
    return digits[0].subset(range(200)).in_memory()


# preflight


def wilson(count: int, of: int) -> tuple[float, float]:
    """The roots ``r`` of ``(count / of - r)² = z² r (1 - r) / of``, which is how the interval is defined."""
    z, p = 1.959963984540054, count / of
    roots = np.roots([1 + z * z / of, -2 * p - z * z / of, p * p]).real
    return float(roots.min()), float(roots.max())


@pytest.mark.parametrize(
    ("samples", "wrong", "verdict"),
    [
        (2000, 0, "none"), (2000, 1, "too few"), (2000, 99, "too few"), (2000, 100, "enough"), (30000, 149, "too few"),
        (30000, 150, "enough"), (2000, 1440, "enough"), (2000, 1480, "too many"), (2000, 2000, "too many"),
    ],
)  # fmt: skip
def test_the_count_of_errors_and_what_it_means(samples: int, wrong: int, verdict: str) -> None:
    data = answers([index % 4 for index in range(samples)], wrong)
    found = preflight(Given(), data)
    assert (found.samples, found.errors, found.verdict) == (samples, wrong, verdict)
    low, high = wilson(wrong, samples)
    assert found.error_rate.value == wrong / samples
    assert (found.error_rate.low, found.error_rate.high) == pytest.approx((low, high), abs=1e-9)
    assert found.advice.endswith(".")


def test_a_preflight_reads_as_a_sentence() -> None:
    found = preflight(Given(), answers([index % 4 for index in range(2000)], 1))
    assert str(found) == f"1 error of 2,000 samples (0.05 %, 95 % interval 0.0088 to 0.28 %). {found.advice}"
    assert str(preflight(Given(), answers([0, 1, 2] * 10, 2))).startswith("2 errors of 30 samples (6.67 %, ")


def test_a_preflight_wants_two_classes() -> None:
    with pytest.raises(DataError, match="expected samples of at least two classes"):
        preflight(Given(), answers([0, 0, 0, 0], 1))


# the hardest samples


def test_the_hardest_samples_are_those_of_least_margin(model: nn.Module, part: Data) -> None:
    with torch.no_grad():
        logits = model(part.inputs(range(200))).tolist()
    margins = []
    for row, label in zip(logits, part.labels.tolist(), strict=True):
        margins.append(row[label] - max(value for k, value in enumerate(row) if k != label))
    order = sorted(range(200), key=lambda index: (margins[index], index))
    before = snapshot(model)
    for share, count in ((0.02, 4), (0.1, 20), (0.0001, 1), (1, 200)):
        data, errors = hardest_samples(model, part, share=share)
        assert data is part
        assert errors.indices.tolist() == sorted(order[:count])
        assert errors.predictions.tolist() == [int(np.argmax(logits[index])) for index in sorted(order[:count])]
        assert (errors.total, errors.source) == (200, "hardest")
    assert snapshot(model) == before


def test_errors_are_the_hardest(model: nn.Module, part: Data) -> None:
    wrong = find_errors(model, part).indices.tolist()
    assert len(wrong) > 3
    hardest = hardest_samples(model, part, share=len(wrong) / len(part)).errors
    assert hardest.indices.tolist() == wrong


def test_of_equal_margins_the_earlier_sample_is_taken() -> None:
    data = answers([0, 1, 2, 3] * 25, 0)
    assert hardest_samples(Given(), data, share=0.05).errors.indices.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("share", [0, -0.1, 1.1, math.nan])
def test_a_share_of_the_data(share: float) -> None:
    with pytest.raises(ArgumentError, match="share:"):
        hardest_samples(Given(), answers([0, 1], 0), share=share)


# augmented errors


def test_errors_among_changed_copies(model: nn.Module, part: Data) -> None:
    data, errors = augmented_errors(model, part, MILD, copies=2, seed=5)
    assert len(data) == 600
    expected = []
    with torch.no_grad():
        for block in (part, Augmented(part, MILD, seed=10), Augmented(part, MILD, seed=11)):
            expected += (model(block.inputs(range(200))).argmax(1) != part.labels).tolist()
    assert errors.indices.tolist() == [index for index, wrong in enumerate(expected) if wrong]
    assert (errors.total, errors.source) == (600, "augmented")
    assert len(errors) > 3 * len(find_errors(model, part)) > 0
    replaced = replace_errors(model, data, errors, epsilon=0.1)
    changed = (replaced.inputs(range(600)) != data.inputs(range(600))).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == errors.indices.tolist()


def test_without_an_augmentation_one_is_chosen(model: nn.Module, part: Data) -> None:
    chosen = choose_augmentation(model, part, seed=2)
    assert chosen != Augmentation()
    expected = augmented_errors(model, part, chosen, seed=2)
    found = augmented_errors(model, part, seed=2)
    assert found.data.content == expected.data.content
    assert torch.equal(found.errors.indices, expected.errors.indices)


def test_what_cannot_be_augmented() -> None:
    with pytest.raises(ArgumentError, match="data:"):
        augmented_errors(Given(), answers([0, 1, 2, 3], 0))
    with pytest.raises(ArgumentError, match="copies:"):
        augmented_errors(Given(), answers([0, 1, 2, 3], 0), MILD, copies=0)


# out-of-fold errors


class Headed(nn.Module):
    """Features are the samples; a linear layer that is called before the last, and by name, is not the head."""

    def __init__(self, width: int = 3, classes: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes)
        self.first = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        self.first(x)
        return self.head(input=x)


def clouds(per_class: int = 30, classes: int = 3, seed: int = 0) -> TensorData:
    """Overlapping normal clouds, one around each unit vector."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes * per_class) % classes
    return TensorData(torch.eye(classes)[labels] + 0.5 * torch.randn(len(labels), classes, generator=generator), labels)


def regression(features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Minimises the summed cross-entropy plus ||w||² / 2 from its definition."""
    count, width = features.shape

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        W, b = flat[: width * classes].reshape(width, classes), flat[width * classes :]
        logits = features @ W + b
        logits = logits - logits.max(1, keepdims=True)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        rest = p - np.eye(classes)[labels]
        value = -np.log(p[np.arange(count), labels]).sum() + 0.5 * (W**2).sum()
        return float(value), np.concatenate([(features.T @ rest + W).ravel(), rest.sum(0)])

    flat = minimize(loss, np.zeros(width * classes + classes), jac=True, method="BFGS", options={"gtol": 1e-6}).x
    return flat[: width * classes].reshape(width, classes), flat[width * classes :]


def test_heads_are_fitted_without_the_sample() -> None:
    """Against a regression written out, fold by fold; every class is dealt round, where the one before it stopped."""
    data, folds = clouds(), 3
    features, labels = data.images.double().numpy(), data.labels.numpy()
    _, errors = out_of_fold_errors(Headed(), data, folds=folds, seed=1)
    generator, order = torch.Generator().manual_seed(1), []
    for label in range(3):
        members = np.flatnonzero(labels == label)
        order += members[torch.randperm(len(members), generator=generator).numpy()].tolist()
    expected, predictions = [], {}
    for fold in range(folds):
        out = [index for place, index in enumerate(order) if place % folds == fold]
        seen = [index for index in range(len(labels)) if index not in out]
        middle, spread = features[seen].mean(0), features[seen].std(0)
        W, b = regression((features[seen] - middle) / spread, labels[seen], 3)
        for index in out:
            said = int(((features[index] - middle) / spread @ W + b).argmax())
            if said != labels[index]:
                expected.append(index)
                predictions[index] = said
    assert len(expected) > 5
    assert errors.indices.tolist() == sorted(expected)
    assert errors.predictions.tolist() == [predictions[index] for index in sorted(expected)]
    assert (errors.total, errors.source) == (90, "out-of-fold")


def test_a_sample_with_a_wrong_label_is_an_out_of_fold_error() -> None:
    data = clouds(40)
    data.images[:] = 3 * torch.eye(3)[data.labels] + 0.1 * images(120, 3)
    data.labels[0] = 1  # against its features, which the base model may have learnt by heart
    assert out_of_fold_errors(Headed(), data).errors.indices.tolist() == [0]


def test_out_of_fold_leaves_the_model_alone_and_follows_the_seed(model: nn.Module, part: Data) -> None:
    before = snapshot(model)
    one, again, other = (out_of_fold_errors(model, part, seed=seed).errors for seed in (0, 0, 1))
    assert torch.equal(one.indices, again.indices)
    assert one.indices.tolist() != other.indices.tolist()
    assert len(one) > 0
    assert snapshot(model) == before


def test_two_classes_and_features_that_do_not_vary() -> None:
    data = clouds(20, 2)
    held = torch.cat((data.images, torch.ones(40, 1)), 1)
    found = out_of_fold_errors(Headed(3, 2), TensorData(held, data.labels), folds=40)
    assert 0 < len(found.errors) < 20


def test_the_only_sample_of_a_class_is_an_error() -> None:
    data = clouds(40)
    labels = torch.where(torch.arange(120) == 7, 3, data.labels)
    assert 7 in out_of_fold_errors(Headed(3, 4), TensorData(data.images, labels)).errors.indices


def test_what_out_of_fold_errors_need() -> None:
    data = clouds(2)
    for folds in (1, 7):
        with pytest.raises(ArgumentError, match="folds:"):
            out_of_fold_errors(Headed(), data, folds=folds)
    with pytest.raises(DataError, match="expected samples of at least two classes, got only class 0"):
        out_of_fold_errors(Headed(), TensorData(data.images, torch.zeros(6)))
    with pytest.raises(DataError, match="expected at least two classes of two samples or more"):
        out_of_fold_errors(Headed(), TensorData(data.images, torch.tensor([0, 0, 0, 0, 0, 1])))
    with pytest.raises(
        ModelError, match=r"expected a linear layer, .* got a model that calls none. Mine the hardest samples"
    ):
        out_of_fold_errors(Given(), answers([0, 1, 2, 3], 0), folds=2)

    class Pixelwise(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean(1)

    with pytest.raises(ModelError, match=r"one row of features a sample, got \(8, 5, 2\) for 8 samples"):
        model = nn.Sequential(nn.Linear(3, 2), Pixelwise(2, 2))
        out_of_fold_errors(model, TensorData(images(8, 5, 3), torch.arange(8) % 2), folds=2)


# sources by name


def test_every_source_by_its_name(model: nn.Module, part: Data) -> None:
    assert list(SOURCES) == ["plain", "hardest", "augmented", "out-of-fold"]
    wanted = {
        "plain": Mined(part, find_errors(model, part)),
        "hardest": hardest_samples(model, part),
        "augmented": augmented_errors(model, part, seed=3),
        "out-of-fold": out_of_fold_errors(model, part, seed=3),
    }
    for name, expected in wanted.items():
        data, errors = mine_errors(model, part, name, seed=3)
        assert errors.source == name
        assert data.content == expected.data.content
        assert torch.equal(errors.indices, expected.errors.indices)
        assert errors.total == len(data)


def test_a_pair_of_tensors_is_data_too() -> None:
    pair = (clouds().images, clouds().labels)
    for name in ("plain", "hardest", "out-of-fold"):
        data, errors = mine_errors(Headed(), pair, name)  # type: ignore[arg-type]
        assert isinstance(data, Data)
        assert errors.total == 90


def test_a_source_that_there_is_not(part: Data) -> None:
    with pytest.raises(ArgumentError, match="source:"):
        mine_errors(Given(), part, "all")
