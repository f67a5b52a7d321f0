from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.metrics import accuracy_score, average_precision_score, log_loss, roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor, nn
from torch.nn import functional as F

from networks import images, seeded, snapshot
from petm.data.base import Data
from petm.errors import ArgumentError, DataError
from petm.grading.grader import load
from petm.selective.metrics import aurc
from petm.selective.targets import Coverage, Recall
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
    "check_classifiers_train": "A has three outputs, whatever the number of classes in the data",
    "check_decision_proba_consistency": "the same; these data have two classes",
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


def log_odds(logits: Tensor) -> NDArray[Any]:
    """Of each class against all others, one after the other."""
    rest = [logits[:, [other for other in range(10) if other != each]].logsumexp(1) for each in range(10)]
    return (logits - torch.stack(rest, 1)).numpy()


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
    np.testing.assert_allclose(estimator.decision_function(later), log_odds(expected), atol=1e-4)
    assert 0 < grades.trusted.sum() < 300
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
    plain = GradedClassifier(model, recipe=SHORT, target=Coverage(0.7), set_coverage=0.8).fit(x, y)
    named = GradedClassifier(model, recipe=SHORT, target=Coverage(0.7), set_coverage=0.8, classes=NAMES)
    named.fit(x, names[y])
    assert named.classes_.tolist() == sorted(NAMES)
    np.testing.assert_array_equal(named.predict(later), names[plain.predict(later)])
    np.testing.assert_array_equal(named.classes_[named.predict_proba(later).argmax(1)], named.predict(later))
    np.testing.assert_array_equal(named.grade(later).second, names[plain.grade(later).second.astype(int)])
    candidates: Any = (named.grade(later).candidates, plain.grade(later).candidates)
    assert [list(each) for each in candidates[0]] == [names[list(each)].tolist() for each in candidates[1]]
    assert max(map(len, candidates[0])) > 1
    np.testing.assert_array_equal(named.classes_[named.decision_function(later).argmax(1)], named.predict(later))
    assert named.score(later, names[labels]) == plain.score(later, labels)
    shifted = GradedClassifier(model, recipe=SHORT, target=Coverage(0.7)).fit(x, y + 5)
    np.testing.assert_array_equal(shifted.predict(later), plain.predict(later) + 5)


def test_a_clone_shares_a_and_copies_the_rest(model: nn.Module) -> None:
    layers = {"fc1": 2}
    estimator = GradedClassifier(model, layers=layers, target=Recall(0.8))
    teacher = clone(estimator)
    assert teacher.model is model
    assert teacher.layers == layers
    assert teacher.layers is not layers
    assert teacher.get_params() == estimator.get_params()
    assert teacher.set_params(recipe="paper").recipe == "paper"
    assert estimator.recipe == "auto"


def test_in_a_pipeline_and_in_cross_validation(model: nn.Module, arrays: tuple[NDArray[Any], ...]) -> None:
    x, y, later, labels = arrays
    pipeline = make_pipeline(
        FunctionTransformer(lambda flat: flat.reshape(-1, 1, 28, 28)),
        GradedClassifier(model, recipe=SHORT, target=Coverage(0.7)),
    )
    pipeline.fit(x.reshape(len(x), -1), y)
    np.testing.assert_array_equal(pipeline.predict(later.reshape(300, -1)), logits(model, later).argmax(1))
    flat = later.reshape(300, -1)
    np.testing.assert_allclose(pipeline.decision_function(flat), log_odds(logits(model, later)), atol=1e-4)
    assert negative_aurc(pipeline, flat, labels) == negative_aurc(pipeline[-1], later, labels)
    assert negative_aurc(make_pipeline(pipeline[-1]), later, labels) == negative_aurc(pipeline[-1], later, labels)
    estimator = GradedClassifier(model, recipe=SHORT, target=Coverage(0.7))
    answers = cross_val_predict(estimator, x, y, cv=2, method="predict_proba")
    np.testing.assert_allclose(answers, logits(model, x).softmax(1), atol=1e-5)


class Above(nn.Module):
    """Two classes: whether the digit is 5 or more, by a network for ten."""

    def __init__(self, digits: nn.Module) -> None:
        super().__init__()
        self.digits = digits

    def forward(self, x: Tensor) -> Tensor:
        return self.digits(x).unflatten(1, (2, 5)).logsumexp(2)


BOTH = {"numbers": np.array([0, 1]), "names": np.array(["low", "high"]), "truth": np.array([False, True])}


@pytest.mark.parametrize("kind", BOTH)
def test_two_classes_are_scored_by_the_probability_of_the_second(
    model: nn.Module, arrays: tuple[NDArray[Any], ...], kind: str
) -> None:
    x, digit, _, _ = arrays
    names = BOTH[kind]
    y = names[(digit >= 5).astype(int)]
    estimator = GradedClassifier(Above(model), classes=names.tolist(), recipe=SHORT, target=Coverage(0.7))
    odds = logits(model, x).unflatten(1, (2, 5)).logsumexp(2).diff(dim=1)[:, 0].numpy()
    positive = max(names)  # scikit-learn's second class
    odds = odds if positive == names[1] else -odds
    parts = [rows for _, rows in StratifiedKFold(2).split(x, y)]
    for scoring, metric in (("roc_auc", roc_auc_score), ("average_precision", average_precision_score)):
        if kind == "names" and scoring == "average_precision":
            continue  # scikit-learn's scorer by name takes 1 for the positive class
        found = cross_val_score(estimator, x, y, cv=2, scoring=scoring, error_score="raise")
        expected = [metric(y[rows] == positive, odds[rows]) for rows in parts]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert min(found) > 0.95, "A is right"
    found = cross_val_score(estimator, x, y, cv=2, scoring="neg_log_loss", error_score="raise")
    loss = np.logaddexp(0, np.where(y == positive, -odds, odds))
    np.testing.assert_allclose(found, [-loss[rows].mean() for rows in parts], rtol=1e-4)
    estimator.fit(x, y)
    np.testing.assert_array_equal(
        estimator.classes_[(estimator.decision_function(x) > 0).astype(int)], estimator.predict(x)
    )


def test_ten_classes_are_scored_by_their_probabilities(model: nn.Module, arrays: tuple[NDArray[Any], ...]) -> None:
    x, y, _, _ = arrays
    estimator = GradedClassifier(model, recipe=SHORT, target=Coverage(0.7))
    probabilities = logits(model, x).softmax(1).numpy()
    parts = [rows for _, rows in StratifiedKFold(2).split(x, y)]
    for scoring, expected in (
        ("roc_auc_ovr", [roc_auc_score(y[rows], probabilities[rows], multi_class="ovr") for rows in parts]),
        ("average_precision", [average_precision_score(y[rows], probabilities[rows]) for rows in parts]),
        ("neg_log_loss", [np.log(probabilities[rows, y[rows]]).mean() for rows in parts]),
    ):
        found = cross_val_score(estimator, x, y, cv=2, scoring=scoring, error_score="raise")
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("two", [True, False])
def test_it_is_calibrated_like_any_classifier(model: nn.Module, arrays: tuple[NDArray[Any], ...], two: bool) -> None:
    x, y, later, labels = arrays
    if two:
        model, y, labels = Above(model), np.where(y >= 5, "high", "low"), np.where(labels >= 5, "high", "low")
    classes = ["low", "high"] if two else None
    calibrated = CalibratedClassifierCV(
        GradedClassifier(model, classes=classes, recipe=SHORT, target=Coverage(0.7)), cv=2
    ).fit(x, y)
    probabilities = calibrated.predict_proba(later)
    known = GradedClassifier(model, classes=classes, recipe=SHORT, target=Coverage(0.7)).fit(x, y)
    assert calibrated.classes_.tolist() == known.classes_.tolist()
    assert accuracy_score(labels, calibrated.classes_[probabilities.argmax(1)]) > known.score(later, labels) - 0.03
    assert log_loss(labels, probabilities, labels=known.classes_) < 1.5 * log_loss(
        labels, known.predict_proba(later), labels=known.classes_
    )


def test_a_table_of_numbers_with_named_columns(arrays: tuple[NDArray[Any], ...]) -> None:
    x, y, later, _ = arrays
    small = [F.avg_pool2d(torch.as_tensor(each), 7).flatten(1).numpy() for each in (x, later)]
    frame, table = (pd.DataFrame(each, columns=[f"c{number}" for number in range(16)]) for each in small)
    net = seeded(lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 10)))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(net(torch.as_tensor(small[0])), torch.as_tensor(y)).backward()
        optimizer.step()
    names = pd.Series(np.array(NAMES)[y], dtype="category")
    estimator = GradedClassifier(net, classes=NAMES, recipe=SHORT, target=Coverage(0.7)).fit(frame, names)
    assert estimator.feature_names_in_.tolist() == list(frame.columns)
    expected = logits(net, small[1])
    np.testing.assert_array_equal(estimator.predict(table), np.array(NAMES)[expected.argmax(1)])
    np.testing.assert_allclose(
        estimator.predict_proba(table)[:, np.argsort(np.argsort(NAMES))], expected.softmax(1), atol=1e-6
    )
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(table[table.columns[::-1]])


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


def test_calibration_is_a_pair(model: nn.Module, arrays: tuple[NDArray[Any], ...]) -> None:
    with pytest.raises(ArgumentError, match=r"^calibration: "):
        GradedClassifier(model).fit(arrays[0], arrays[1], calibration=arrays[0])  # type: ignore[arg-type]


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


def test_images_of_whole_numbers_other_than_bytes_are_refused(model: nn.Module, digits: tuple[Data, ...]) -> None:
    x = (digits[0].inputs(range(200)) * 255).byte().numpy()  # type: ignore[operator]
    y = digits[0].labels[:200].numpy()
    with pytest.raises(DataError, match=r"^X: expected float or uint8, got int64"):
        GradedClassifier(model).fit(x.astype(np.int64), y)
