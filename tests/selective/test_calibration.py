import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import petm.selective
from petm.errors import ArgumentError, DataError
from petm.selective import Coverage, MaxRisk, calibrate, risk_threshold
from petm.selective.plain import Predictions


def predictions(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    p = random.dirichlet((0.2,) * 4, count)
    return (p.cumsum(1) > random.random((count, 1))).argmax(1).clip(0, 3), p


def test_suspicions_of_probabilities_are_their_formulas() -> None:
    labels, p = predictions(300)
    made = Predictions.of(p, None, None)
    found = made.suspicions(made.columns)
    ordered = np.sort(p, 1)
    np.testing.assert_allclose(found["softmax"], 1 - ordered[:, -1], atol=1e-12)
    np.testing.assert_allclose(found["margin"], np.log(ordered[:, -2] / ordered[:, -1]))
    np.testing.assert_allclose(found["entropy"], scipy.stats.entropy(p, axis=1), atol=1e-9)
    assert len(labels) == len(made.predicted)


@pytest.mark.filterwarnings("ignore::petm.errors.PetmWarning")  # few labels
def test_a_better_score_is_taken_and_no_row_that_chose_it_sets_the_threshold() -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 2, 4000)
    predicted = np.where(random.random(4000) < 0.2, 1 - labels, labels)
    good = (predicted == labels) + random.normal(scale=0.5, size=4000)
    scores = {"first": random.normal(size=4000), "good": good}
    made = calibrate(labels, predicted=predicted, scores=scores, target=MaxRisk(0.1))
    assert "good" in made.suspicion
    assert made.measured["calibration_samples"] == 2400
    assert made.threshold.coverage > 0.3
    alone = calibrate(labels, predicted=predicted, scores=good, target=MaxRisk(0.1))
    assert alone.measured["calibration_samples"] == 4000
    assert alone.threshold == risk_threshold(-good, predicted != labels, max_risk=0.1)
    few = calibrate(labels[:400], predicted=predicted[:400], scores={n: s[:400] for n, s in scores.items()}, target=MaxRisk(0.1))  # fmt: skip # noqa: E501
    assert (few.suspicion, few.measured["calibration_samples"]) == (("first",), 400)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_the_sign_of_a_score_changes_nothing_else(seed: int, several: bool) -> None:
    random = np.random.default_rng(seed)
    labels, predicted = random.integers(0, 3, (2, 80))
    scores = random.normal(size=(80, 2))[:, : 2 if several else 1]
    one = calibrate(labels, predicted=predicted, scores=scores, target=Coverage(0.5))
    other = calibrate(labels, predicted=predicted, scores=-scores, higher_is_suspect=True, target=Coverage(0.5))
    assert one.threshold == other.threshold
    mine = one.grade(predicted=predicted, scores=scores)
    assert (mine.trusted == other.grade(predicted=predicted, scores=-scores).trusted).all()
    assert (mine.trusted == one.threshold.trusts(mine.suspicion)).all()
    assert ((mine.probability_of_error > 0) & (mine.probability_of_error < 1)).all()


@pytest.mark.filterwarnings("ignore::petm.errors.PetmWarning")  # few labels
def test_the_guarantee_holds_over_draws_with_a_choice_among_scores() -> None:
    """20 draws, confidence 0.8: so many violations have a probability of 1 % at most where the guarantee holds."""
    everything, p = predictions(40_000, seed=5)
    violated = 0
    for draw in range(20):
        rows = np.random.default_rng(draw).integers(0, len(p), 600)
        made = calibrate(everything[rows], probabilities=p[rows], target=MaxRisk(0.1, confidence=0.8))
        graded = made.grade(probabilities=p[:20_000])
        wrong = (graded.predicted != everything[:20_000])[graded.trusted]
        violated += bool(len(wrong)) and wrong.mean() > 0.1
    assert scipy.stats.binom.sf(violated - 1, 20, 0.2) > 0.01


def test_no_error_and_repeated_rows() -> None:
    labels = np.arange(40) % 2
    made = calibrate(labels, predicted=labels, scores=np.arange(40.0), target=MaxRisk(0.3))
    assert made.threshold.coverage == 1.0
    with pytest.warns(match="none in 40"):
        assert calibrate(labels, predicted=labels, scores=np.arange(40.0)).target == Coverage(0.9)
    with pytest.raises(DataError, match="3 times"):
        calibrate(np.tile(labels, 3), predicted=np.tile(labels, 3), scores=np.tile(np.arange(40.0), 3))


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"scores": np.ones(40)}, "scores"),
        ({"scores": np.full(40, np.nan)}, "scores"),
        ({"scores": np.ones(39)}, "predicted"),
        ({"scores": np.ones((40, 2, 2))}, "scores"),
        ({"scores": None}, "probabilities"),
        ({"predicted": None}, "probabilities"),
        ({"predicted": np.ones(40)}, "predicted"),
        ({"labels": np.zeros(40, int)}, "labels"),
        ({"labels": np.arange(39) % 2}, "labels"),
        ({"classes": ("a", "b"), "labels": np.arange(40) % 3}, "labels"),
        ({"predicted": None, "scores": None, "probabilities": np.full((40, 2), 0.6)}, "probabilities"),
        ({"predicted": None, "scores": None, "probabilities": np.full((40, 2), 0.5)}, "probabilities"),
        ({"predicted": None, "scores": None, "probabilities": np.ones((40, 1))}, "probabilities"),
    ],
)
def test_arguments_are_checked(change: dict[str, object], argument: str) -> None:
    labels = np.arange(40) % 2
    given: dict[str, object] = {"labels": labels, "predicted": 1 - labels, "scores": np.arange(40.0)}
    with pytest.raises(ArgumentError, match=f"^{argument}: "):
        calibrate(**given | change)  # type: ignore[arg-type]


def test_grading_needs_what_the_calibration_had() -> None:
    labels, p = predictions(60)
    made = calibrate(labels, probabilities=p, target=Coverage(0.5))
    with pytest.raises(ArgumentError, match="scores"):
        made.grade(predicted=labels, scores=p[:, 0])


def test_public_names_are_imported_on_first_use() -> None:
    assert all(getattr(petm.selective, name) is not None for name in petm.selective.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        petm.selective.nothing  # noqa: B018
