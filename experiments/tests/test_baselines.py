import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.baselines.averages import Ensemble, McDropout, TwoModels, Views
from experiments.baselines.confidnet import ConfidNet
from experiments.baselines.odin import Odin
from experiments.baselines.protocol import Baseline, OfEvidence, Seen
from experiments.baselines.trust_score import TrustScore
from experiments.detection.methods import VIEWS, all_baselines
from networks import ResidualNet, TinyCNN, images, seeded, snapshot
from petm.data.base import Data, TensorData
from petm.errors import ArgumentError, DataError, ModelError, NothingToLearnError
from petm.evidence.features import Mahalanobis, NeighbourDistance, NeighbourLabels, RelativeMahalanobis
from petm.evidence.formulas import ENERGY, ENTROPY, MARGIN, SOFTMAX, TemperatureScaling
from petm.models.prediction import predict_logits
from petm.selective.metrics import auroc
from petm.training.error_set import find_errors

QUICK: tuple[Baseline, ...] = (
    *map(OfEvidence, (SOFTMAX, ENTROPY, MARGIN, ENERGY, TemperatureScaling())),
    Odin(temperatures=(1.0, 10.0), epsilons=(0.002,)),
    McDropout(samples=5),
    OfEvidence(NeighbourLabels(k=5)),
    OfEvidence(NeighbourDistance(k=5)),
    OfEvidence(Mahalanobis()),
    OfEvidence(RelativeMahalanobis()),
    TrustScore(),
    ConfidNet(hidden=(16,), epochs=30, learning_rate=1e-2),
    TwoModels(epochs=1),
    TwoModels(epsilon=0.0, epochs=1),
)
ON_IMAGES = (*QUICK, Views(VIEWS["shift"][0]), Views(("same", "mirror", "shift 2 0", "shift 0 2")))


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
        assert fitted.learned.extra_parameters >= 0
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
    assert baseline.definition
    assert baseline.fitted_on in (None, "training", "calibration")


# Costs

BODY, HEAD = 6 * 8 * 8 * 25 + 8 * 3 * 3 * 6 * 9 + 72 * 16, 16 * 10
"""Multiplications of a pass of TinyCNN before and in its last layer."""


@pytest.mark.parametrize(
    ("baseline", "beside"),
    [
        (OfEvidence(SOFTMAX), 0),
        (OfEvidence(TemperatureScaling()), 0),
        (Views(("same", "mirror")), BODY + HEAD),
        (Views(("same", "mirror", "shift 2 0", "shift 0 2")), 3 * (BODY + HEAD)),
        (McDropout(), 20 * HEAD),
        (OfEvidence(NeighbourLabels()), 60 * 16),
        (OfEvidence(NeighbourDistance(at_most=20)), 20 * 16),
        (TrustScore(alpha=0), 60 * 16),
        (TrustScore(alpha=0.5), 30 * 16),
        (OfEvidence(Mahalanobis()), 16 * 16),
        (OfEvidence(RelativeMahalanobis()), 2 * 16 * 16),
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
    assert np.isnan(OfEvidence(SOFTMAX).fit(seen, seen).passes(data(5)))


@pytest.mark.parametrize(
    ("baseline", "numbers"),
    [
        (OfEvidence(SOFTMAX), 0),
        (OfEvidence(TemperatureScaling()), 1),
        (OfEvidence(NeighbourLabels()), 60 * 17),
        (OfEvidence(NeighbourDistance(at_most=20)), 20 * 16),
        (TrustScore(alpha=0.5), 30 * 16),
        (OfEvidence(Mahalanobis()), 16 * 16 + 10 * 16),
        (OfEvidence(RelativeMahalanobis()), 2 * 16 * 16 + 11 * 16),
        (ConfidNet(hidden=(8, 4), epochs=1), 17 * 8 + 9 * 4 + 5 * 2),
        (TwoModels(epochs=1), 1934),
        (Ensemble((seeded(TinyCNN, 1), seeded(TinyCNN, 2))), 2 * 1934),
    ],
)
def test_numbers_kept_beside_a(baseline: Baseline, numbers: int) -> None:
    seen = Seen(seeded(TinyCNN), data())
    assert baseline.fit(seen, seen, device="cpu").learned.extra_parameters == numbers


def test_seconds_hold_the_pass_that_others_share(model: nn.Module) -> None:
    train, calibration = Seen(model, data()), Seen(model, data())
    assert OfEvidence(Mahalanobis()).fit(train, calibration).seconds >= train.seconds
    assert "answers" not in vars(calibration), "nothing asked for it"
    assert OfEvidence(NeighbourLabels()).fit(train, calibration).seconds >= train.seconds
    assert OfEvidence(TemperatureScaling()).fit(train, calibration).seconds >= calibration.seconds


# What the base model says


def test_what_a_gets_wrong() -> None:
    model = seeded(TinyCNN).eval()
    seen, errors = Seen(model, data(50), batch_size=20), find_errors(model, data(50))
    assert torch.equal(seen.wrong, predict_logits(model, data(50)).argmax(1) != torch.arange(50) % 10)
    assert torch.equal(seen.errors.indices, errors.indices)
    assert torch.equal(seen.errors.predictions, errors.predictions)
    assert seen.errors.total == 50


def test_a_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def forward(self: TinyCNN, x: Tensor) -> Tensor:
        sizes.append(len(x))
        return plain(self, x)

    plain = TinyCNN.forward
    monkeypatch.setattr(TinyCNN, "forward", forward)
    seen = Seen(seeded(TinyCNN), data(30), batch_size=16)
    for baseline in (
        OfEvidence(SOFTMAX),
        OfEvidence(TemperatureScaling()),
        OfEvidence(NeighbourLabels()),
        OfEvidence(Mahalanobis()),
        TrustScore(),
    ):
        baseline.fit(seen, seen).suspicion(seen)
    assert sizes == [16, 14]


class NoLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 10, 28)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1)


@named(ON_IMAGES)
def test_a_model_without_features(baseline: Baseline) -> None:
    seen = Seen(seeded(NoLinear), data())
    needs = {"knn", "knn_distance", "mahalanobis", "relative_mahalanobis", "trust_score", "confidnet", "mc_dropout"}
    if baseline.name in needs:
        with pytest.raises(ModelError, match="expected a linear layer"):
            baseline.fit(seen, seen, device="cpu")
    elif not isinstance(baseline, TwoModels):
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
        OfEvidence(SOFTMAX).fit(seen, other)
    message = r"seen: expected what the model says that softmax was fitted to, got another model\. Fit the baseline"
    with pytest.raises(ArgumentError, match=message):
        OfEvidence(SOFTMAX).fit(seen, seen).suspicion(other)


# All of them


def test_the_catalogue_has_each_once(digits: tuple[Data, ...]) -> None:
    members = (seeded(TinyCNN, 1), seeded(TinyCNN, 2), seeded(TinyCNN, 3), seeded(TinyCNN, 4))
    names = [baseline.name for baseline in all_baselines(views="shift", members=members)]
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


# Trust Score


NETWORKS = [TinyCNN, ResidualNet]


def sides(network: type[nn.Module], classes: int = 10) -> tuple[Seen, Seen]:
    """What an untrained network says of training and of test samples: its features are as good as any for a formula."""
    model = seeded(network).eval()
    train = TensorData(images(70), torch.arange(70) % classes, source="training")
    return Seen(model, train, batch_size=32), Seen(model, TensorData(images(25, seed=5)), batch_size=32)


def as_lists(seen: Seen) -> NDArray[np.float64]:
    return seen.features.double().numpy()


class Points(nn.Module):
    """Its features are the input itself, and it answers the class in the last column."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x[:, :3]) + nn.functional.one_hot(x[:, 3].long(), 3)


def points(rows: list[list[float]], labels: list[int] | None = None) -> TensorData:
    return TensorData(
        torch.tensor(rows, dtype=torch.float32), None if labels is None else torch.tensor(labels), source="points"
    )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("alpha", "k"), [(0.0, 10), (0.3, 3), (0.6, 10)])
def test_trust_score_by_brute_force(network: type[nn.Module], alpha: float, k: int) -> None:
    train, test = sides(network)
    found = TrustScore(alpha=alpha, k=k).fit(train, train).suspicion(test)
    known, labels = as_lists(train), train.labels.numpy()
    dense: dict[int, list[NDArray[np.float64]]] = {}
    for label in range(10):
        members = list(known[labels == label])
        radii = [np.float32(sorted(math.dist(a, b) for b in members)[min(k, len(members)) - 1] ** 2) for a in members]
        order = sorted(range(len(members)), key=lambda i, radii=radii: radii[i])  # type: ignore[misc]
        dense[label] = [members[i] for i in order[: len(members) - int(alpha * len(members))]]
    for row, query in enumerate(as_lists(test)):
        distance = {label: min(math.dist(query, member) for member in dense[label]) for label in dense}
        own = distance.pop(int(test.predicted[row]))
        trust = min(distance.values()) / own
        assert found[row].item() == pytest.approx(1 / (1 + trust), abs=1e-7)


def test_trust_at_its_limits() -> None:
    model = Points()
    train = Seen(model, points([[0, 0, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]], [0, 1, 0]))
    test = Seen(model, points([[0, 0, 0, 0], [0, 0, 0, 2], [2, 0, 0, 0], [2, 0, 0, 1], [1, 0, 0, 0]]))
    # Both at hand; a class without any sample; the base model's class at hand; only another at hand; both equally far.
    assert TrustScore().fit(train, train).suspicion(test).tolist() == [0.5, 1, 0, 1, 0.5]


def test_trust_drops_a_share_of_the_loneliest() -> None:
    with pytest.raises(ArgumentError, match=r"alpha: expected a share of at least 0 and below 1, got 1\.0\."):
        TrustScore(alpha=1.0)


@pytest.mark.parametrize("name", ["k", "at_most"])
def test_trust_score_takes_numbers_of_at_least_1(name: str) -> None:
    values: Any = {name: 0}
    with pytest.raises(ArgumentError, match=rf"^{name}: "):
        TrustScore(**values)


# ConfidNet


def test_the_head_learns_the_true_class_probability() -> None:
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(600, 1, 1, 4, generator=generator), torch.arange(600) % 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        # Labels that the base model likes in half of the space, so that the target can be told from the features.
        logits = model(x)
        labels = torch.where(x[:, 0, 0, 0] > 0, logits.argmax(1), logits.argmin(1))
    seen = Seen(model, TensorData(x, labels))
    fitted = ConfidNet(hidden=(32, 32), epochs=40, learning_rate=1e-2, patience=10).fit(seen, seen, device="cpu")
    confidence = 1 / (1 + fitted.suspicion(seen).exp())
    p = torch.softmax(logits.double(), 1)
    target = torch.stack([p[row, label] for row, label in enumerate(labels)])
    assert (confidence - target).square().mean() < 0.2 * target.var()


# ODIN


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def flat(classes: int = 5, scale: float = 1.0) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, classes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model[1].weight.copy_(scale * torch.randn(classes, 784, generator=generator))
    return model


def by_hand(model: nn.Module, data: TensorData, temperature: float, epsilon: float) -> NDArray[np.float64]:
    """ODIN of a linear softmax in closed form: grad log p_T(c) = (W_c - sum_k p_T(k) W_k) / T."""
    W, b = (value.detach().double().numpy() for value in (model[1].weight, model[1].bias))
    x = data.images.flatten(1).double().numpy()
    logits = x @ W.T + b
    chosen = logits.argmax(1)
    gradient = (W[chosen] - softmax(logits / temperature) @ W) / temperature
    low, high = data.value_range
    moved = x + epsilon * (high - low) * np.sign(gradient)
    return 1 - softmax((moved @ W.T + b) / temperature)[np.arange(len(x)), chosen]


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 3.0)])
@pytest.mark.parametrize("temperature", [1.0, 10.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.002, 0.01])
def test_odin_of_a_linear_softmax(temperature: float, epsilon: float, value_range: tuple[float, float]) -> None:
    model = flat(scale=0.05)
    data = TensorData(images(60), torch.arange(60) % 5, value_range=value_range)
    seen = Seen(model, data, batch_size=25)
    fitted = Odin(temperatures=(temperature,), epsilons=(epsilon,)).fit(seen, seen)
    assert fitted.learned.chosen == {"temperature": temperature, "epsilon": epsilon}
    np.testing.assert_allclose(fitted.suspicion(seen).numpy(), by_hand(model, data, temperature, epsilon), atol=1e-6)


@pytest.mark.parametrize("network", [TinyCNN, ResidualNet])
def test_odin_of_a_network_sample_by_sample(network: type[nn.Module]) -> None:
    model = seeded(network).eval()
    data = TensorData(images(12), torch.arange(12) % 10, value_range=(0, 1))
    seen = Seen(model, data, batch_size=5)
    found = Odin(temperatures=(2.0,), epsilons=(0.01,)).fit(seen, seen).suspicion(seen)
    exact = network().double().eval()
    exact.load_state_dict(model.state_dict())
    for index in range(12):
        x: Tensor = data.images[index : index + 1].double().requires_grad_()
        p = torch.softmax(exact(x) / 2, 1)
        chosen = int(p.argmax())
        p[0, chosen].log().backward()
        moved = x.detach() + 0.01 * torch.sign(x.grad)
        expected = 1 - torch.softmax(exact(moved) / 2, 1)[0, chosen].item()
        assert found[index].item() == pytest.approx(expected, abs=1e-5)


def test_odin_chooses_the_best_of_its_grid() -> None:
    linear = flat(scale=0.05)
    noise = torch.randn(300, 5, generator=torch.Generator().manual_seed(1))
    data = TensorData(images(300), (linear(images(300)) + noise).argmax(1), value_range=(0, 1))
    seen = Seen(linear, data)
    temperatures, epsilons = (1.0, 5.0, 50.0), (0.0, 0.01, 0.05)
    aurocs = {
        (t, e): roc_auc_score(seen.wrong.numpy(), by_hand(linear, data, t, e)) for t in temperatures for e in epsilons
    }
    chosen = Odin(temperatures, epsilons).fit(seen, seen).learned.chosen
    assert aurocs[chosen["temperature"], chosen["epsilon"]] == pytest.approx(max(aurocs.values()), abs=1e-3)


def test_odin_prefers_no_step_where_none_helps() -> None:
    seen = Seen(flat(), TensorData(images(20), torch.arange(20) % 5, value_range=(0.5, 0.5)))
    assert Odin(temperatures=(3.0,)).fit(seen, seen).learned.chosen["epsilon"] == 0


def test_odin_learns_from_errors() -> None:
    model = flat()
    right = Seen(model, TensorData(images(30), model(images(30)).argmax(1)))
    message = r"calibration: expected samples that the model gets wrong and .*, got 0 wrong of 30\. Use"
    with pytest.raises(NothingToLearnError, match=message):
        Odin().fit(right, right)
