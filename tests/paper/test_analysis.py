import copy

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.text import Text
from torch import Tensor, nn

from petm.errors import ArgumentError, ModelError
from petm.paper.analysis import FeatureMap, FilterPCA, _features, feature_tsne, filter_pca, paper_figure
from petm.report.figures import BASE_COLOUR, TEACHER_COLOUR


def network(seed: int = 0, width: int = 4) -> nn.Sequential:
    """A network whose first layer is followed by one that works in place."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(width * 36, 3))


def images(n: int = 40) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def principal_axes(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances and axes from the covariance matrix, descending: PCA by its definition."""
    variances, axes = np.linalg.eigh(np.cov(rows, rowvar=False))
    return variances[::-1], axes[:, ::-1]


# filter_pca


def test_filter_pca_agrees_with_the_covariance_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(32, 1, 3, 3, generator=generator)
    teacher = base + 0.5 * torch.randn(32, 1, 3, 3, generator=generator)
    result = filter_pca(base, teacher)
    rows = torch.cat((base, teacher)).flatten(1).double().numpy()
    variances, axes = principal_axes(rows)
    expected = (rows - rows.mean(axis=0)) @ axes[:, :2]
    got = np.concatenate((result.base, result.teacher))
    assert got.dtype == np.float64
    assert result.base.shape == result.teacher.shape == (32, 2)
    signs = np.sign((got * expected).sum(axis=0))  # the direction of an axis is free
    np.testing.assert_allclose(got, signs * expected, atol=1e-10)
    np.testing.assert_allclose(result.explained, (variances / variances.sum())[:2], rtol=1e-10)
    for weight, explained in ((base, result.base_explained), (teacher, result.teacher_explained)):
        own, _ = principal_axes(weight.flatten(1).double().numpy())
        np.testing.assert_allclose(explained, own / own.sum(), rtol=1e-8)


def test_filters_on_one_line_need_one_axis() -> None:
    torch.manual_seed(0)
    line = torch.linspace(-1, 1, 16)[:, None] * torch.randn(1, 18)
    result = filter_pca(torch.randn(16, 2, 3, 3), line.reshape(16, 2, 3, 3))
    assert result.teacher_explained[0] == pytest.approx(1)
    assert result.base_explained[0] < 0.5


# feature_tsne


def test_the_same_model_twice_cannot_be_told_apart() -> None:
    model = network()
    result = feature_tsne(model, copy.deepcopy(model), "0", images())
    assert result.layer == "0"
    assert result.base.shape == result.teacher.shape == (40, 2)
    assert result.base.dtype == np.float64
    assert abs(result.probe_accuracy - 0.5) <= 0.1
    assert abs(result.silhouette_features) < 0.05
    assert abs(result.silhouette_map) < 0.1


def test_shifted_features_are_told_apart_and_nothing_else_changes() -> None:
    base, inputs = network(), images()
    teacher = copy.deepcopy(base)
    with torch.no_grad():
        teacher[0].bias += 5
    base.train()
    base[0].eval()
    before = [module.training for module in base.modules()]
    result = feature_tsne(base, teacher, "0", inputs)
    assert result.probe_accuracy == 1
    # The shift is 5 in each of 144 features, and two images differ by less than 1 in each.
    assert result.silhouette_features > 0.8
    assert result.silhouette_map > 0.5
    assert [module.training for module in base.modules()] == before
    assert not base[0]._forward_hooks
    assert not teacher[0]._forward_hooks


def test_the_silhouette_is_that_of_its_definition() -> None:
    """Features of 3 values are only rotated by PCA, so the distances are those of the features themselves."""
    torch.manual_seed(0)
    base, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Linear(3, 2)) for _ in range(2))
    inputs = images(20)
    with torch.no_grad():
        features = torch.cat([model[:2](inputs) for model in (base, teacher)]).double()
    values = []
    for i, distances in enumerate(torch.cdist(features, features)):
        own, other = (distances[:20], distances[20:]) if i < 20 else (distances[20:], distances[:20])
        within, between = float(own.sum() / 19), float(other.mean())
        values.append((between - within) / max(within, between))
    result = feature_tsne(base, teacher, "1", inputs)
    assert result.silhouette_features == pytest.approx(np.mean(values), abs=1e-4)


def test_features_are_taken_before_the_next_layer_works_in_place() -> None:
    """A bias that differs only far below zero is invisible after the ReLU, and plain before it."""
    base, inputs = network(), images()
    with torch.no_grad():
        base[0].bias -= 10
    teacher = copy.deepcopy(base)
    with torch.no_grad():
        teacher[0].bias -= 5
    assert feature_tsne(base, teacher, "0", inputs).probe_accuracy == 1
    with pytest.raises(ArgumentError, match=r"layer: "):
        feature_tsne(base, teacher, "1", inputs)


def test_features_of_several_batches_are_in_the_order_of_the_images() -> None:
    base, inputs = network(), images(260)
    with torch.no_grad():
        np.testing.assert_allclose(_features(base, "3", inputs), base(inputs), atol=1e-5)


@pytest.mark.slow
def test_the_same_images_give_the_same_map() -> None:
    base, teacher, inputs = network(0), network(1), images(90)
    first, second = (feature_tsne(base, teacher, "3", inputs) for _ in range(2))
    np.testing.assert_array_equal(first.base, second.base)
    np.testing.assert_array_equal(first.teacher, second.teacher)
    assert first.probe_accuracy == second.probe_accuracy
    assert first.silhouette_map == second.silhouette_map


def test_perplexity_is_lowered_for_few_images() -> None:
    assert feature_tsne(network(0), network(1), "0", images(12)).base.shape == (12, 2)


def test_the_hook_goes_when_the_model_fails() -> None:
    model = network()
    with pytest.raises(ModelError, match="cannot take inputs"):
        feature_tsne(model, model, "0", images()[:, :, :5])
    assert not model[0]._forward_hooks
    assert model.training


def test_few_images() -> None:
    with pytest.raises(ArgumentError, match="inputs:"):
        feature_tsne(network(), network(), "0", images(9))


# paper_figure


def filters(count: int, dimensions: int) -> FilterPCA:
    random = np.random.default_rng(count)
    shares = np.array([0.5, 0.25, *np.full(dimensions - 2, 0.25 / (dimensions - 2))])
    return FilterPCA(
        random.normal(size=(count, 2)), random.normal(size=(count, 2)), shares[:2], shares, np.array([0.9, 0.06, 0.04])
    )


def layer_map(n: int = 25) -> FeatureMap:
    random = np.random.default_rng(n)
    return FeatureMap("block.0", random.normal(size=(n, 2)), random.normal(size=(n, 2)) + 5, 0.123, -0.001, 0.987)


def test_the_papers_figure_draws_every_point_and_names_the_numbers() -> None:
    conv1, conv2, layer = filters(32, 9), filters(64, 288), layer_map()
    figure = paper_figure(conv1, conv2, layer)
    assert len(figure.axes) == 3
    for axes, held in zip(figure.axes, (conv1, conv2, layer), strict=True):
        base, teacher = axes.collections
        np.testing.assert_array_equal(base.get_offsets(), held.base)
        np.testing.assert_array_equal(teacher.get_offsets(), held.teacher)
        assert to_hex(base.get_facecolor()[0]) == BASE_COLOUR.lower()
        assert to_hex(teacher.get_facecolor()[0]) == TEACHER_COLOUR.lower()
        assert len(base.get_paths()[0].vertices) != len(teacher.get_paths()[0].vertices), "markers differ too"
    figure.draw_without_rendering()
    shown = "\n".join(text.get_text() for text in figure.findobj(Text))
    for part in (
        "conv1 filters", "conv2 filters", "model 75%, teacher 96%", "PC1 (50%)", "PC2 (25%)", "block.0 features, t-SNE",
        "silhouette 0.00 (before t-SNE 0.12)", "98.7% right", "base model", "teacher",
    ):  # fmt: skip
        assert part in shown
