from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.baselines.averages import Ensemble, TwoModels, Views
from experiments.baselines.catalogue import SHIFTED, all_baselines
from experiments.baselines.confidence_head import ConfidNet
from experiments.baselines.dropout import McDropout
from experiments.baselines.odin import Odin
from networks import ResidualNet, TinyCNN, images, seeded, snapshot
from petm.data.base import Data, TensorData
from petm.errors import ArgumentError, DataError, ModelError
from petm.evidence.logit_scores import (
    Energy,
    Entropy,
    Margin,
    Softmax,
    TemperatureScaling,
)
from petm.evidence.mahalanobis import Mahalanobis, RelativeMahalanobis
from petm.evidence.neighbours import NeighbourDistance, NeighbourLabels, TrustScore
from petm.evidence.protocol import Baseline
from petm.evidence.seen import Seen
from petm.models.prediction import predict_logits
from petm.models.scores import (
    energy,
    entropy,
    margin,
    maximum_softmax,
)
from petm.selective.metrics import auroc
from petm.training.error_set import find_errors

QUICK: tuple[Baseline, ...] = (
    Softmax(),
    Entropy(),
    Margin(),
    Energy(),
    TemperatureScaling(),
    Odin(temperatures=(1.0, 10.0), epsilons=(0.002,)),
    McDropout(samples=5),
    NeighbourLabels(k=5),
    NeighbourDistance(k=5),
    Mahalanobis(),
    RelativeMahalanobis(),
    TrustScore(),
    ConfidNet(hidden=(16,), epochs=30, learning_rate=1e-2),
    TwoModels(epochs=1),
    TwoModels(epsilon=0.0, epochs=1),
)
ON_IMAGES = (*QUICK, Views(SHIFTED[0]), Views(("same", "mirror", "shift 2 0", "shift 0 2")))


def named(baselines: tuple[Baseline, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("baseline", baselines, ids=[baseline.name for baseline in baselines])


def blobs(count: int, seed: int) -> TensorData:
    """Three overlapping Gaussian clouds in 8 dimensions, as images (N, 1, 2, 4)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    points = 2 * F.one_hot(labels, 8) + 0.8 * torch.randn(count, 8, generator=generator)
    return TensorData(points.view(count, 1, 2, 4), labels, source="blobs")


def nearest_mean() -> nn.Module:
    """The best classifier of the clouds: linear, with their means as weights."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        model[1].weight.copy_(3 * torch.eye(3, 8))
        model[1].bias.zero_()
    return model.eval()


def data(count: int = 60) -> TensorData:
    return TensorData(images(count), torch.arange(count) % 10, source="noise")


# Every baseline


@named(ON_IMAGES)
@pytest.mark.parametrize("network", [TinyCNN, ResidualNet])
def test_a_is_not_touched_and_a_seed_has_one_result(baseline: Baseline, network: type[nn.Module]) -> None:
    model = seeded(network).train()
    before, random = snapshot(model), torch.get_rng_state()
    found = []
    for _ in range(2):
        train, calibration, test = (Seen(model, part) for part in (data(), data(40), TensorData(images(20, seed=7))))
        fitted = baseline.fit(train, calibration, seed=3, device="cpu")
        found.append(fitted.suspicion(test))
        assert fitted.seconds > 0
        assert fitted.extra_parameters >= 0
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert found[0].shape == (20,)
    assert found[0].dtype == torch.float64
    assert bool(found[0].isfinite().all())
    assert torch.equal(found[0], found[1])


@named(QUICK)
def test_what_lies_between_the_classes_is_suspect(baseline: Baseline) -> None:
    model = nearest_mean()
    train, calibration, test = (Seen(model, blobs(count, seed)) for seed, count in enumerate((900, 600, 900)))
    assert 30 < int(test.wrong.sum()) < 200
    suspicion = baseline.fit(train, calibration, device="cpu").suspicion(test)
    assert auroc(suspicion, test.wrong) > 0.6


@named(ON_IMAGES)
def test_names_are_said(baseline: Baseline) -> None:
    assert baseline.name.replace("_", "").isalnum()
    assert baseline.title
    assert baseline.source
    assert set(baseline.fitted_on) <= {"training", "calibration"}


@pytest.mark.parametrize(
    ("baseline", "formula"),
    [(Softmax(), maximum_softmax), (Entropy(), entropy), (Margin(), margin), (Energy(), energy)],
)
def test_formulas_of_the_logits(model: nn.Module, baseline: Baseline, formula: Callable[[Tensor], Tensor]) -> None:
    seen = Seen(model, data())
    suspicion = baseline.fit(seen, seen).suspicion(seen)
    assert torch.equal(suspicion, formula(predict_logits(model, data())))


# Costs

BODY, HEAD = 6 * 8 * 8 * 25 + 8 * 3 * 3 * 6 * 9 + 72 * 16, 16 * 10
"""Multiplications of a pass of TinyCNN before and in its last layer."""


@pytest.mark.parametrize(
    ("baseline", "beside"),
    [
        (Softmax(), 0),
        (TemperatureScaling(), 0),
        (Views(("same", "mirror")), BODY + HEAD),
        (Views(("same", "mirror", "shift 2 0", "shift 0 2")), 3 * (BODY + HEAD)),
        (McDropout(), 20 * HEAD),
        (NeighbourLabels(), 60 * 16),
        (NeighbourDistance(at_most=20), 20 * 16),
        (TrustScore(alpha=0), 60 * 16),
        (TrustScore(alpha=0.5), 30 * 16),
        (Mahalanobis(), 16 * 16),
        (RelativeMahalanobis(), 2 * 16 * 16),
        (ConfidNet(hidden=(8, 4), epochs=1), 16 * 8 + 8 * 4 + 4 * 2),
        (TwoModels(epochs=1), BODY + HEAD),
        (Ensemble((seeded(TinyCNN, 1), seeded(TinyCNN, 2))), 2 * (BODY + HEAD)),
        (Ensemble((seeded(TinyCNN, 1),), with_base=False), BODY + HEAD),
        (Odin(epsilons=(0.002,)), 2 * (BODY + HEAD)),
        (Odin(epsilons=(0.0,)), 0),
    ],
)
def test_passes_are_counted(baseline: Baseline, beside: int) -> None:
    seen = Seen(seeded(TinyCNN), data())
    passes = baseline.fit(seen, seen, device="cpu").passes(data(5))
    assert passes == pytest.approx(1 + beside / (BODY + HEAD), rel=1e-12)


def test_what_a_model_without_products_costs_is_undefined() -> None:
    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10]

    seen = Seen(Sums(), data())
    assert np.isnan(Softmax().fit(seen, seen).passes(data(5)))


@pytest.mark.parametrize(
    ("baseline", "numbers"),
    [
        (Softmax(), 0),
        (TemperatureScaling(), 1),
        (NeighbourLabels(), 60 * 17),
        (NeighbourDistance(at_most=20), 20 * 16),
        (TrustScore(alpha=0.5), 30 * 16),
        (Mahalanobis(), 16 * 16 + 10 * 16),
        (RelativeMahalanobis(), 2 * 16 * 16 + 11 * 16),
        (ConfidNet(hidden=(8, 4), epochs=1), 17 * 8 + 9 * 4 + 5 * 2),
        (TwoModels(epochs=1), 1934),
        (Ensemble((seeded(TinyCNN, 1), seeded(TinyCNN, 2))), 2 * 1934),
    ],
)
def test_numbers_kept_beside_a(baseline: Baseline, numbers: int) -> None:
    seen = Seen(seeded(TinyCNN), data())
    assert baseline.fit(seen, seen, device="cpu").extra_parameters == numbers


def test_seconds_hold_the_pass_that_others_share(model: nn.Module) -> None:
    train, calibration = Seen(model, data()), Seen(model, data())
    assert Mahalanobis().fit(train, calibration).seconds >= train.seconds
    assert "_answers" not in vars(calibration), "nothing asked for it"
    assert NeighbourLabels().fit(train, calibration).seconds >= train.seconds
    assert TemperatureScaling().fit(train, calibration).seconds >= calibration.seconds


# What A says


@pytest.mark.parametrize("network", [TinyCNN, ResidualNet])
def test_logits_and_features_of_any_batch_size(network: type[nn.Module]) -> None:
    model = seeded(network).eval()
    seen = Seen(model, data(50), batch_size=20)
    assert torch.equal(seen.logits, predict_logits(model, data(50), batch_size=20))
    head = model.fc2 if network is TinyCNN else model.fc
    torch.testing.assert_close(F.linear(seen.features, head.weight, head.bias), seen.logits)
    assert torch.equal(seen.predicted, seen.logits.argmax(1))
    assert torch.equal(seen.wrong, seen.logits.argmax(1) != torch.arange(50) % 10)
    errors = find_errors(model, data(50))
    assert torch.equal(seen.errors.indices, errors.indices)
    assert torch.equal(seen.errors.predictions, errors.predictions)
    assert seen.errors.total == 50
    assert repr(seen) == "Seen(50 samples of noise)"


def test_a_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def forward(self: TinyCNN, x: Tensor) -> Tensor:
        sizes.append(len(x))
        return plain(self, x)

    plain = TinyCNN.forward
    monkeypatch.setattr(TinyCNN, "forward", forward)
    seen = Seen(seeded(TinyCNN), data(30), batch_size=16)
    for baseline in (Softmax(), TemperatureScaling(), NeighbourLabels(), Mahalanobis(), TrustScore()):
        baseline.fit(seen, seen).suspicion(seen)
    assert sizes == [16, 14]


class CalledInAnotherOrder(nn.Module):
    """The last linear layer that is called is the first that is defined, is called by keyword, and is scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 10)
        self.body = nn.Linear(784, 6)

    def forward(self, x: Tensor) -> Tensor:
        return 0.125 * self.head(input=torch.relu(self.body(x.flatten(1))))


def test_the_last_layer_is_the_one_that_is_called_last() -> None:
    model = seeded(CalledInAnotherOrder)
    seen = Seen(model, data())
    with torch.no_grad():
        assert torch.equal(seen.features, torch.relu(model.body(data().images.flatten(1))))
    assert McDropout(samples=3).fit(seen, seen).suspicion(seen).shape == (60,)


class NoLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 10, 28)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1)


class LinearOnTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(28, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.squeeze(1)).mean(1)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (NoLinear, r"model: expected a linear layer, whose input are the features, got a model that calls none\. Use"),
        (
            LinearOnTokens,
            r"model: expected the linear layer called last, 'head', to take one row of features a sample, "
            r"got \(\d+, 28, 28\) for \d+ samples\. Use",
        ),
    ],
)
def test_a_model_without_features(network: type[nn.Module], message: str) -> None:
    seen = Seen(seeded(network), data())
    for baseline in (NeighbourLabels(), NeighbourDistance(), Mahalanobis(), TrustScore(), ConfidNet(), McDropout()):
        with pytest.raises(ModelError, match=message):
            baseline.fit(seen, seen)
    for baseline in (Softmax(), TemperatureScaling(), Odin(), Views(("same", "mirror"))):
        assert baseline.fit(seen, seen).suspicion(seen).shape == (60,)


@named(ON_IMAGES)
def test_labels_are_needed_for_fitting_alone(baseline: Baseline) -> None:
    model = seeded(TinyCNN)
    unlabelled = Seen(model, TensorData(images(9)))
    fitted = baseline.fit(Seen(model, data()), Seen(model, data()), device="cpu")
    assert fitted.suspicion(unlabelled).shape == (9,)
    if baseline.fitted_on:
        with pytest.raises(DataError, match=r"tensors: expected labels from 0 to 9, got none for sample 0"):
            baseline.fit(unlabelled, unlabelled)


def test_no_sample_no_answer() -> None:
    with pytest.raises(DataError, match=r"noise: expected at least one sample, got none\."):
        Seen(seeded(TinyCNN), data().subset([]))


def test_one_model_at_a_time(model: nn.Module) -> None:
    seen, other = Seen(model, data()), Seen(seeded(TinyCNN), data())
    with pytest.raises(ArgumentError, match=r"calibration: expected what the same model says as in train, got another"):
        Softmax().fit(seen, other)
    message = r"seen: expected what the model says that softmax was fitted to, got another model\. Fit the baseline"
    with pytest.raises(ArgumentError, match=message):
        Softmax().fit(seen, seen).suspicion(other)


# All of them


def test_the_catalogue_has_each_once(digits: tuple[Data, ...]) -> None:
    members = (seeded(TinyCNN, 1), seeded(TinyCNN, 2), seeded(TinyCNN, 3), seeded(TinyCNN, 4))
    names = [baseline.name for baseline in all_baselines(views=SHIFTED, members=members)]
    assert names == [
        "softmax", "entropy", "margin", "energy", "temperature", "odin", "views_2", "views_4", "mc_dropout", "knn",
        "knn_distance", "mahalanobis", "relative_mahalanobis", "trust_score", "confidnet", "ensemble_5",
        "petm", "trained_further",
    ]  # fmt: skip
    assert "ensemble_5" not in [baseline.name for baseline in all_baselines()]
    assert [baseline.title for baseline in all_baselines() if isinstance(baseline, Views)] == [
        "Mean over 2 views: same, mirror",
        "Mean over 4 views: same, mirror, shift 2 0, shift 0 2",
    ]


def test_the_page_names_every_baseline() -> None:
    page = (Path(__file__).parents[2] / "docs" / "baselines.md").read_text()
    for baseline in all_baselines(members=[seeded(TinyCNN)] * 4):
        assert f"| `{baseline.name}` |" in page
        year = baseline.source[-5:-1]
        row = next(line for line in page.splitlines() if line.startswith(f"| `{baseline.name}` |"))
        assert year in row
