"""What else learns from the same confirmed labels, with logits and features alone: the controls of `learn`."""

import copy
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegressionCV
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from petm.data.base import Data
from petm.training.loop import CROSS_ENTROPY, Settings, train

STRENGTHS = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""Inverse regularisation of the logistic regressions, chosen by cross-validated log loss."""

Floats = NDArray[np.float64]


def probability_of(logits: Tensor, classes: Tensor) -> Tensor:
    """Returns the softmax of one class each, float64 ``(N,)``."""
    return logits.double().softmax(1).gather(1, classes.unsqueeze(1)).squeeze(1)


def mean_of_both(base: Tensor, second: Tensor, share: float = 0.5) -> Floats:
    """Returns ``1 - (1 - share) p(c) - share p'(c)``, where ``c`` is the base model's class.

    Args:
        base: Logits ``(N, K)`` of the base model.
        second: Logits ``(N, K)`` of whatever gives the second opinion.
        share: Its weight.
    """
    chosen = base.argmax(1)
    mean = (1 - share) * probability_of(base, chosen) + share * probability_of(second, chosen)
    return np.asarray(1 - mean, dtype=np.float64)


def error_columns(logits: Tensor, features: Tensor | None = None) -> Floats:
    """Returns what an error regression sees: logits, the three greatest in order, the predicted class, features."""
    classes = logits.shape[1]
    predicted = nn.functional.one_hot(logits.argmax(1), classes)
    parts = [logits, logits.topk(min(3, classes), dim=1).values, predicted]
    parts += [] if features is None else [features]
    return np.asarray(torch.cat([part.double() for part in parts], 1), dtype=np.float64)


def error_regression(
    logits: Tensor, labels: Tensor, judged: Tensor, features: tuple[Tensor, Tensor] | None = None
) -> Floats:
    """Returns suspicion ``(M,)`` of a regularised logistic regression for "the base model is wrong".

    Args:
        logits: Of labelled samples, ``(N, K)``.
        labels: Their confirmed classes.
        judged: Logits of the samples to judge, ``(M, K)``.
        features: Of both, where the regression sees them too.
    """
    wrong = logits.argmax(1) != labels
    seen, other = features or (None, None)
    fitted = _logistic(error_columns(logits, seen), np.asarray(wrong), error_columns(judged, other))
    return np.asarray(fitted[:, 1])


def linear_probe(features: Tensor, labels: Tensor, judged: Tensor, classes: int) -> Tensor:
    """Returns logits ``(M, K)`` of a regularised logistic regression for the class on features.

    Args:
        features: Of labelled samples, ``(N, D)``.
        labels: Their confirmed classes.
        judged: Features of the samples to judge, ``(M, D)``.
        classes: ``K``; a class without a label has probability 0.
    """
    found = _logistic(features.double().numpy(), labels.numpy(), judged.double().numpy())
    probabilities = torch.zeros(len(judged), classes, dtype=torch.float64)
    probabilities[:, labels.unique()] = torch.from_numpy(found)
    return probabilities.clamp_min(1e-12).log()


def _logistic(x: Floats, y: Any, judged: Floats) -> Floats:
    scaler = StandardScaler().fit(x)
    folds = int(min(5, np.unique(y, return_counts=True)[1].min()))
    if folds < 2:
        from sklearn.linear_model import LogisticRegression

        model: Any = LogisticRegression(C=STRENGTHS[1], max_iter=500)
    else:
        model = LogisticRegressionCV(Cs=list(STRENGTHS), cv=folds, scoring="neg_log_loss", max_iter=500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", FutureWarning)
        model.fit(scaler.transform(x), y)
    return np.asarray(model.predict_proba(scaler.transform(judged)), dtype=np.float64)


def fine_tuned(
    model: nn.Module, data: Data, layers: tuple[str, ...], *, epochs: int = 10, rate: float = 1e-4, seed: int = 0
) -> nn.Module:
    """Returns a copy of the base model in which all weights of some layers have learned from the labels.

    BatchNorm keeps its statistics, as with the adapter.

    Args:
        model: The base model.
        data: Labelled samples.
        layers: Names of the layers that learn.
        epochs: Passes over the data.
        rate: Learning rate of Adam at the start; it falls along half a cosine.
        seed: Of the order of samples.
    """
    other = copy.deepcopy(model).eval()
    other.requires_grad_(False)
    for layer in layers:
        other.get_submodule(layer).requires_grad_(True)
    settings = Settings(epochs, rate, batch_size=64, seed=seed, schedule="cosine")
    train(_InEvalMode(other), data, CROSS_ENTROPY, settings, title="fine-tune")
    return other


class _InEvalMode(nn.Module):
    """A network that stays in eval mode while it learns."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def train(self, mode: bool = True) -> "_InEvalMode":
        """Changes nothing."""
        return self

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Returns what the network returns."""
        return self.network(*inputs, **named)
