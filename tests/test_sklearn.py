from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor, nn
from torch.nn import functional as F

from networks import images, seeded, snapshot
from petm.data.base import Data
from petm.errors import ArgumentError
from petm.grading.grader import load
from petm.selective.metrics import aurc
from petm.selective.targets import Coverage, Recall
from petm.selective.thresholds import Threshold
from petm.sklearn import GradedClassifier, negative_aurc
from petm.training.recipes import Recipe

SHORT = Recipe("short", max_extra_parameters=0.3, epochs=1, copies=0)
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class AnyWidth(nn.Module):
    """Three classes for as many features as there are, as the checks come with."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(F.adaptive_avg_pool1d(x[:, None], 4)[:, 0])))


CANNOT_HOLD = {
    "check_classifiers_train": "decision_function tells how far to trust the model's answer, not one number a class",
    "check_decision_proba_consistency": "for the same reason it does not rise with a class's probability",
    "check_classifiers_classes": "A has three outputs, whatever the number of classes in the data",
    "check_dtype_object": "the same; these data have four classes",
    "check_estimators_overwrite_params": "the check's hash of a tensor depends on where it lies: a copy has another",
}


@parametrize_with_checks(
    [GradedClassifier(seeded(AnyWidth), recipe=Recipe("short", epochs=1, max_extra_parameters=0.5), force=True)],
    expected_failed_checks=lambda estimator: CANNOT_HOLD,
)
def test_scikit_learns_own_checks(estimator: GradedClassifier, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def arrays(digits: tuple[Data, ...]) -> tuple[NDArray[Any], ...]:
    """X and y to fit on, X and y to judge by."""
    train, _, test = digits
    rows = range(300)
    return (
        train.inputs(range(len(train))).numpy(),
        train.labels.numpy(),
        test.inputs(rows).numpy(),
        test.labels.numpy()[rows],
    )


def logits(model: nn.Module, x: NDArray[Any]) -> Tensor:
    with torch.no_grad():
        return model(torch.as_tensor(x)).double()


def test_a_answers_and_the_second_opinion_grades(model: nn.Module, arrays: tuple[NDArray[Any], ...]) -> None:
    before = snapshot(model)
    x, y, later, labels = arrays
    estimator = GradedClassifier(model, recipe=SHORT, target=Coverage(0.7))
    assert estimator.fit(x, y) is estimator
    assert snapshot(model) == before
    expected = logits(model, later)
    np.testing.assert_array_equal(estimator.classes_, np.arange(10))
    np.testing.assert_array_equal(estimator.predict(later), expected.argmax(1))
    np.testing.assert_allclose(estimator.predict_proba(later), expected.softmax(1), atol=1e-6)
    np.testing.assert_allclose(estimator.predict_proba(later).sum(1), 1)
    assert estimator.score(later, labels) == accuracy_score(labels, expected.argmax(1))
    grades = estimator.grade(later)
    direct = estimator.grader_.grade(torch.as_tensor(later))
    for name in ("labels", "second", "suspicion", "trusted"):
        np.testing.assert_array_equal(getattr(grades, name), getattr(direct, name))
    decision = estimator.decision_function(later)
    assert decision.shape == (300,)
    assert 0 < grades.trusted.sum() < 300
    np.testing.assert_array_equal(decision > 0, grades.trusted)
    np.testing.assert_array_equal(np.argsort(-decision, kind="stable"), np.argsort(grades.suspicion, kind="stable"))
    assert negative_aurc(estimator, later, labels) == -aurc(grades.suspicion, grades.labels != labels)


def test_uint8_is_divided_by_255(model: nn.Module, arrays: tuple[NDArray[Any], ...]) -> None:
    x, y, later, _ = arrays
    estimator = GradedClassifier(model, recipe=SHORT, target=Coverage(0.7)).fit(x, y)
    pixels = (later * 255).round().astype(np.uint8)
    np.testing.assert_allclose(
        estimator.predict_proba(pixels), logits(model, pixels / np.float32(255)).softmax(1), atol=1e-6
    )


def test_labels_by_name_and_in_another_order(model: nn.Module, arrays: tuple[NDArray[Any], ...]) -> None:
    x, y, later, labels = arrays
    names = np.array(NAMES)
    plain = GradedClassifier(model, recipe=SHORT, target=Coverage(0.7)).fit(x, y)
    named = GradedClassifier(model, recipe=SHORT, target=Coverage(0.7), classes=NAMES).fit(x, names[y])
    assert named.classes_.tolist() == sorted(NAMES)
    np.testing.assert_array_equal(named.predict(later), names[plain.predict(later)])
    np.testing.assert_array_equal(named.classes_[named.predict_proba(later).argmax(1)], named.predict(later))
    np.testing.assert_array_equal(named.grade(later).second, names[plain.grade(later).second])
    np.testing.assert_array_equal(named.decision_function(later), plain.decision_function(later))
    assert named.score(later, names[labels]) == plain.score(later, labels)
    shifted = GradedClassifier(model, recipe=SHORT, target=Coverage(0.7)).fit(x, y + 5)
    np.testing.assert_array_equal(shifted.predict(later), plain.predict(later) + 5)


def test_a_threshold_for_each_class(model: nn.Module, arrays: tuple[NDArray[Any], ...]) -> None:
    x, y, later, _ = arrays
    estimator = GradedClassifier(model, recipe=SHORT, target=Coverage(0.7)).fit(x, y)
    parts = tuple(Threshold(0.05 * label if label else -np.inf, "risk") for label in range(10))
    estimator.grader_ = replace(estimator.grader_, threshold=Threshold(0.45, "risk of each", classes=parts))
    grades, decision = estimator.grade(later), estimator.decision_function(later)
    np.testing.assert_array_equal(decision > 0, grades.trusted)
    np.testing.assert_array_equal(np.isneginf(decision), grades.labels == 0)
    others = grades.labels > 0
    np.testing.assert_allclose(decision[others], (0.05 * grades.labels - grades.suspicion)[others])


def test_a_clone_shares_a_and_copies_the_rest(model: nn.Module) -> None:
    layers = {"fc1": 2}
    estimator = GradedClassifier(model, layers=layers, target=Recall(0.8))
    teacher = clone(estimator)
    assert teacher.model is model
    assert teacher.layers == layers
    assert teacher.layers is not layers
    assert teacher.get_params() == estimator.get_params()
    assert teacher.set_params(recipe="paper").recipe == "paper"
    assert estimator.recipe == "fast"


def test_in_a_pipeline_and_in_cross_validation(model: nn.Module, arrays: tuple[NDArray[Any], ...]) -> None:
    x, y, later, _ = arrays
    pipeline = make_pipeline(
        FunctionTransformer(lambda flat: flat.reshape(-1, 1, 28, 28)),
        GradedClassifier(model, recipe=SHORT, target=Coverage(0.7)),
    )
    pipeline.fit(x.reshape(len(x), -1), y)
    np.testing.assert_array_equal(pipeline.predict(later.reshape(300, -1)), logits(model, later).argmax(1))
    assert pipeline.decision_function(later.reshape(300, -1)).shape == (300,)
    estimator = GradedClassifier(model, recipe=SHORT, target=Coverage(0.7))
    answers = cross_val_predict(estimator, x, y, cv=2, method="predict_proba")
    np.testing.assert_allclose(answers, logits(model, x).softmax(1), atol=1e-5)
    decision = cross_val_predict(estimator, x, y, cv=2, method="decision_function")
    assert decision.shape == (len(x),)


def test_a_search_over_recipes(model: nn.Module, arrays: tuple[NDArray[Any], ...]) -> None:
    x, y, later, labels = arrays
    recipes = [SHORT, Recipe("none", max_extra_parameters=0.3, epochs=1, copies=0, learning_rate=1e-9)]
    search = GridSearchCV(
        GradedClassifier(model, target=Coverage(0.7)),
        {"recipe": recipes},
        scoring=negative_aurc,
        cv=2,
        error_score="raise",
    )
    search.fit(x, y)
    scores = search.cv_results_["mean_test_score"]
    assert scores[0] != scores[1]
    assert search.best_params_ == {"recipe": recipes[int(scores[1] > scores[0])]}
    assert negative_aurc(search.best_estimator_, later, labels) == search.score(later, labels)


def test_the_fitted_grader_is_saved(model: nn.Module, arrays: tuple[NDArray[Any], ...], tmp_path: Path) -> None:
    x, y, later, _ = arrays
    estimator = GradedClassifier(model, recipe=SHORT, target=Coverage(0.7)).fit(x, y)
    estimator.grader_.save(tmp_path / "g.petm")
    again = load(tmp_path / "g.petm", model).grade(torch.as_tensor(later))
    np.testing.assert_array_equal(again.suspicion, estimator.grade(later).suspicion)


@pytest.mark.parametrize(
    ("classes", "y", "message"),
    [
        (["a", "b"], ["a", "b"], "^classes:"),
        (["a", "b", "b"], ["a", "b"], "^classes:"),
        (["a", "b", "c"], ["a", "d"], "^y:"),
        (None, ["a", "b"], "^y:"),
        (None, [2, 3], "^y:"),
        (None, [1, 1], "^y:"),
    ],
)
def test_labels_that_are_not_those_of_a(classes: list[str] | None, y: list[Any], message: str) -> None:
    estimator = GradedClassifier(seeded(AnyWidth), classes=classes)
    with pytest.raises(ArgumentError, match=message):
        estimator.fit(images(20, 5).numpy(), np.array(y * 10))
