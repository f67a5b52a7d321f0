"""The paper's Figure 1: filters in their principal plane, features on a t-SNE map."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from petm.data.base import TensorData
from petm.errors import ArgumentError
from petm.models.prediction import predict_logits
from petm.report.figures import BASE_COLOUR, STYLE, TEACHER_COLOUR, WIDTH, head

COMPONENTS = 50
"""Principal components kept before t-SNE and the probe; van der Maaten and Hinton (2008, section 4.2) keep 30."""

PERPLEXITY = 30.0
"""Effective number of neighbours, lowered to a third of few images; the authors of t-SNE recommend 5 to 50."""

LEAST_SAMPLES = 10
"""Fewest images for a map and five folds."""


@dataclass(frozen=True, eq=False)
class FilterPCA:
    """The filters of both models in the plane of their two greatest common principal axes.

    Attributes:
        base: float64 ``(F, 2)``, the base model's ``F`` filters.
        teacher: float64 ``(F, 2)``, the teacher's.
        explained: float64 ``(2,)``, the share of the variance of all ``2 F`` filters on each common axis, in [0, 1].
        base_explained: float64 ``(min(F, D),)``, the shares on the base model's own axes, descending, sum 1.
        teacher_explained: float64 ``(min(F, D),)``, the same for the teacher's own axes.
    """

    base: NDArray[np.float64]
    teacher: NDArray[np.float64]
    explained: NDArray[np.float64]
    base_explained: NDArray[np.float64]
    teacher_explained: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """One layer's features in both models on the same ``n`` images: a t-SNE map, and measures of their distance.

    Attributes:
        layer: The layer's name in the model.
        base: float64 ``(n, 2)``, the base model's features on the map.
        teacher: float64 ``(n, 2)``, the teacher's; row ``i`` is the same image.
        silhouette_features: Mean silhouette of the two clouds in at most 50 principal components, in [-1, 1];
            0 where they overlap, 1 where each is tight and far from the other.
        silhouette_map: The same on the map, which shows neighbourhoods and not distances.
        probe_accuracy: Share of unseen images of which a linear probe tells the model from the features, in [0, 1];
            0.5 is chance.
    """

    layer: str
    base: NDArray[np.float64]
    teacher: NDArray[np.float64]
    silhouette_features: float
    silhouette_map: float
    probe_accuracy: float


def filter_pca(base_weight: Tensor, teacher_weight: Tensor) -> FilterPCA:
    """Returns the filters of both models in the plane of their two greatest common principal axes.

    Each filter is flattened to a row of ``X``, ``(F, D)`` with ``D = in * kh * kw``, for the paper's conv1
    ``(32, 9)``. The axes are the eigenvectors of the covariance ``(X - mean)^T (X - mean) / (2 F - 1)`` of both
    models' rows together. Each model's own explained variance comes from a PCA of its own filters.

    Args:
        base_weight: Float ``(F, ...)``, a layer's weight in the base model; ``F`` and ``D`` at least 2.
        teacher_weight: The same layer's weight in the teacher, of the same shape.

    Reference:
        Ko et al. 2025 (LoRA-PETM), section 3.1 and Figure 1, left.
    """
    base, teacher = (weight.detach().cpu().double().flatten(1).numpy() for weight in (base_weight, teacher_weight))
    common = PCA(2, svd_solver="full").fit(np.concatenate((base, teacher)))
    return FilterPCA(
        base=common.transform(base),
        teacher=common.transform(teacher),
        explained=common.explained_variance_ratio_,
        base_explained=PCA(svd_solver="full").fit(base).explained_variance_ratio_,
        teacher_explained=PCA(svd_solver="full").fit(teacher).explained_variance_ratio_,
    )


def feature_tsne(base: nn.Module, teacher: nn.Module, layer: str, inputs: Tensor) -> FeatureMap:
    """Returns a t-SNE map of one layer's features in both models, with measures of how far apart they lie.

    The features of both models on the same images are flattened, reduced together to at most 50 principal components,
    and mapped together. The silhouette compares each point's distance to its own cloud with that to the other. The
    linear probe (standardised, as many components, logistic regression; all fitted inside the fold) is cross-validated
    by image. Neither shows that the models *decide* differently: another bias in one channel makes a probe perfect.

    Args:
        base: The base model.
        teacher: The teacher, of the same architecture.
        layer: Name of the module whose output is compared; one tensor ``(n, ...)``.
        inputs: Float ``(n, C, H, W)``, at least 10 images. Memory: the features of both models, ``2 n * D`` floats.

    Raises:
        ArgumentError: There are fewer than 10 images, or the layer's features do not vary.
        DataError: ``inputs`` hold NaN or infinity.
        ModelError: A model cannot take the inputs.

    Reference:
        van der Maaten and Hinton 2008 (t-SNE); Rousseeuw 1987 (silhouette); Alain and Bengio 2016 (linear probes);
        Ko et al. 2025 (LoRA-PETM), Figure 1, right.
    """
    n = len(inputs)
    if n < LEAST_SAMPLES:
        raise ArgumentError(f"inputs: expected at least {LEAST_SAMPLES} samples, got {n}.")
    features = np.concatenate([_features(model, layer, inputs) for model in (base, teacher)])
    if not np.isfinite(features).all() or features.shape[1] < 2 or not np.ptp(features, axis=0).any():
        raise ArgumentError(f"layer: expected at least 2 finite features that vary, got none such in {layer!r}.")

    components = min(COMPONENTS, n, features.shape[1])
    reduced = PCA(components, random_state=0).fit_transform(features)
    perplexity = min(PERPLEXITY, n / 3)
    # One thread: a thousand short parallel loops take minutes where other processes share the cores.
    with threadpool_limits(1, user_api="openmp"):
        points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced).astype(np.float64)
    model = np.repeat((0, 1), n)
    return FeatureMap(
        layer=layer,
        base=points[:n],
        teacher=points[n:],
        silhouette_features=float(silhouette_score(reduced, model)),
        silhouette_map=float(silhouette_score(points, model)),
        probe_accuracy=_probe_accuracy(features, model, np.tile(np.arange(n), 2), components),
    )


def paper_figure(conv1: FilterPCA, conv2: FilterPCA, features: FeatureMap) -> Figure:
    """Returns the paper's Figure 1: both models' filters in common axes above, one layer's features on a map below.

    Reference:
        Ko et al. 2025 (LoRA-PETM), Figure 1.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 8.4))
        panels = figure.subplot_mosaic([["conv1", "conv2"], ["map", "map"]], height_ratios=[1, 1.4])
        for name, filters in (("conv1", conv1), ("conv2", conv2)):
            axes = panels[name]
            _clouds(axes, filters.base, filters.teacher, size=30)
            own = [shares[:2].sum() for shares in (filters.base_explained, filters.teacher_explained)]
            head(axes, f"{name} filters", f"variance on own two axes:\nmodel {own[0]:.0%}, teacher {own[1]:.0%}")
            first, second = filters.explained
            axes.set(xlabel=f"PC1 ({first:.0%})", ylabel=f"PC2 ({second:.0%})")
            axes.set_aspect("equal", adjustable="datalim")
            axes.xaxis.set_major_locator(MaxNLocator(4))

        axes = panels["map"]
        _clouds(axes, features.base, features.teacher, size=float(np.clip(8000 / len(features.base), 6, 30)))
        head(
            axes,
            f"{features.layer} features, t-SNE",
            f"silhouette {features.silhouette_map:z.2f} (before t-SNE {features.silhouette_features:z.2f})\n"
            f"linear probe, the model or the teacher: {features.probe_accuracy:.1%} right (chance 50%)",
        )
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        figure.legend(*panels["conv1"].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def _clouds(axes: Axes, base: NDArray[np.float64], teacher: NDArray[np.float64], *, size: float) -> None:
    """Two clouds ``(n, 2)`` that differ in colour and in marker."""
    for cloud, colour, marker, label in (
        (base, BASE_COLOUR, "o", "base model"),
        (teacher, TEACHER_COLOUR, "^", "teacher"),
    ):
        axes.scatter(
            cloud[:, 0], cloud[:, 1], s=size, color=colour, marker=marker, alpha=0.7, linewidths=0, label=label
        )


def _probe_accuracy(
    features: NDArray[np.float32], model: NDArray[np.int64], image: NDArray[np.int64], components: int
) -> float:
    """Mean accuracy over five folds of images; ``features`` is ``(2 n, D)``, ``model`` and ``image`` ``(2 n,)``."""
    probe = make_pipeline(StandardScaler(), PCA(components, random_state=0), LogisticRegression(max_iter=1000))
    return float(cross_val_score(probe, features, model, groups=image, cv=GroupKFold(5)).mean())


def _features(model: nn.Module, layer: str, inputs: Tensor) -> NDArray[np.float32]:
    """The flattened output of a named layer, float32 ``(n, D)``; the model is left as it was found."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        outputs.append(output.detach().float().cpu().clone())  # a copy, because the next layer may work in place

    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        predict_logits(model, TensorData(inputs), title=f"features of {layer}")
    finally:
        handle.remove()
    features: NDArray[np.float32] = torch.cat(outputs).flatten(1).numpy()
    return features
