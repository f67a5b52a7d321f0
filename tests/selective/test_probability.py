import io
import json
import math
from dataclasses import asdict
from functools import cache

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from petm.errors import ArgumentError
from petm.selective.probability import KNOTS, ErrorProbability, fit_probability


def logistic(scores: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    return 1 / (1 + np.exp(-(slope * scores + intercept)))


def drawn(random: np.random.Generator, probability: np.ndarray) -> np.ndarray:
    return random.random(len(probability)) < probability


NAMES = ("logistic", "log-odds", "isotonic", "constant", "one knot")


@cache
def curves() -> dict[str, ErrorProbability]:
    random = np.random.default_rng(0)
    scores = random.normal(-5, 3, 2000)
    steps = random.random(2000)
    wild = random.normal(0, 1e3, 2000)
    return {
        "logistic": fit_probability(scores, drawn(random, logistic(scores, 1, 2))),
        "log-odds": fit_probability(1 / (1 + np.exp(-scores)), drawn(random, logistic(scores, 1, 2))),
        "isotonic": fit_probability(wild, drawn(random, np.where(wild > 0, 0.7, 0.02))),
        "constant": fit_probability(steps, np.zeros(2000, bool)),
        "one knot": fit_probability(np.ones(50), np.zeros(50, bool)),
    }


# The choice


def test_a_logistic_truth_is_found() -> None:
    random = np.random.default_rng(1)
    scores = random.normal(-6, 4, 20_000)
    found = fit_probability(scores, drawn(random, logistic(scores, 0.8, 1)))
    assert found.method == "logistic"
    assert (found.slope, found.intercept) == pytest.approx((0.8, 1), abs=0.06)
    assert set(found.log_losses) == {"logistic", "isotonic"}
    assert found.log_losses["logistic"] < found.log_losses["isotonic"]


def test_a_step_takes_the_isotonic_curve() -> None:
    random = np.random.default_rng(2)
    scores = random.normal(0, 1, 4000)
    truth = np.where(scores > 1, 0.6, 0.01)
    found = fit_probability(scores, drawn(random, truth))
    assert found.method == "isotonic"
    assert abs(found.probability(scores) - truth).mean() < 0.01


def test_a_probability_is_taken_by_its_log_odds() -> None:
    # An overconfident model: what it calls odds of error o has odds sqrt(o).
    random = np.random.default_rng(3)
    odds = np.exp(random.normal(-8, 4, 20_000))
    found = fit_probability(odds / (1 + odds), drawn(random, np.sqrt(odds) / (1 + np.sqrt(odds))))
    assert found.method == "log-odds"
    assert (found.slope, found.intercept) == pytest.approx((0.5, 0), abs=0.06)
    assert set(found.log_losses) == {"logistic", "isotonic", "log-odds"}


def test_the_loss_is_that_of_samples_left_out() -> None:
    random = np.random.default_rng(4)
    scores = random.normal(0, 2, 5000)
    truth = logistic(scores, 1, -1)
    entropy = -(truth * np.log(truth) + (1 - truth) * np.log(1 - truth)).mean()
    found = fit_probability(scores, drawn(random, truth))
    assert found.log_losses["logistic"] == pytest.approx(entropy, abs=0.02)


def test_the_folds_follow_the_seed() -> None:
    random = np.random.default_rng(5)
    scores = random.normal(0, 2, 300)
    wrong = drawn(random, logistic(scores, 1, -2))
    assert fit_probability(scores, wrong, seed=1) == fit_probability(scores, wrong, seed=1)
    assert fit_probability(scores, wrong, seed=1).log_losses != fit_probability(scores, wrong, seed=2).log_losses


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_is_that_of_a_perfect_probability(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.normal(-4, 3, 40_000)
    wrong = drawn(random, logistic(scores, 0.9, 0.5))
    found = fit_probability(scores[:5000], wrong[:5000]).probability(scores[5000:])
    bins = (found * 15).astype(int)
    error = sum(abs((wrong[5000:] - found)[bins == b].sum()) for b in range(15)) / 35_000
    assert error < 0.01
    assert abs((wrong[5000:] - scores[5000:].clip(0, 1)).mean()) > 0.01, "or else this test shows nothing"


# The two fits, against references


def test_logistic_is_platts_maximum() -> None:
    random = np.random.default_rng(6)
    scores = random.normal(-3, 2, 400)
    wrong = drawn(random, logistic(scores, 1, 0))
    bad, good = wrong.sum(), (~wrong).sum()
    target = np.where(wrong, (bad + 1) / (bad + 2), 1 / (good + 2))

    def loss(parameters: np.ndarray) -> float:
        p = logistic(scores, *parameters)
        return float(-(target * np.log(p) + (1 - target) * np.log(1 - p)).sum())

    expected = minimize(loss, [0.5, 0.0], tol=1e-10).x
    found = fit_probability(scores, wrong)
    assert found.method == "logistic"
    assert (found.slope, found.intercept) == pytest.approx(expected, abs=1e-3)


def pool(groups: list[list[float]]) -> list[list[float]]:
    """Adjacent violators, merged until the shares rise: groups of (errors, samples)."""
    done: list[list[float]] = []
    for group in groups:
        done.append(list(group))
        while len(done) > 1 and done[-2][0] * done[-1][1] >= done[-1][0] * done[-2][1]:
            errors, samples = done.pop()
            done[-1] = [done[-1][0] + errors, done[-1][1] + samples]
    return done


@pytest.mark.parametrize("seed", range(5))
def test_isotonic_is_what_pooling_gives(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = np.round(random.normal(0, 1e4, 300))
    wrong = drawn(random, np.where(scores > 0, 0.7, 0.02))
    found = fit_probability(scores, wrong)
    assert found.method == "isotonic"
    levels = np.unique(scores)
    groups = [[float(wrong[scores == level].sum()), float((scores == level).sum())] for level in levels]
    groups[0] = [groups[0][0] + 0.5, groups[0][1] + 0.5]
    groups[-1][1] += 0.5
    shares, sizes = [], []
    for errors, samples in pool(groups):
        shares.append(errors / samples)
        sizes.append(samples)
    expected, position, left = [], 0, sizes[0]
    for _, samples in groups:
        expected.append(shares[position])
        left -= samples
        if left < 0.25 and position + 1 < len(sizes):
            position += 1
            left = sizes[position]
    assert found.probability(levels) == pytest.approx(np.array(expected), abs=1e-12)


def test_isotonic_by_hand() -> None:
    # 100 wrong of 500 below, 300 wrong of 300 above; half an error more in front, half a right one behind.
    scores = np.repeat([-1e6, 1.0], [500, 300])
    wrong = np.concatenate([np.arange(500) % 5 == 0, np.ones(300, bool)])
    found = fit_probability(scores, wrong)
    low, high = 100.5 / 500.5, 300 / 300.5
    expected = ErrorProbability("isotonic", 0.5 / 801, knots=(-1e6, 1.0), values=(low, high))
    assert (found.method, found.knots, found.least) == ("isotonic", expected.knots, expected.least)
    assert found.values == pytest.approx(expected.values)
    middle = (-1e6 + 1) / 2
    assert found.probability([-1e9, middle, 1e9]) == pytest.approx([low, (low + high) / 2, high])


# Few errors


@pytest.mark.parametrize("samples", [1, 2, 500])
def test_without_an_error_it_is_a_constant(samples: int) -> None:
    scores = np.linspace(-1, 1, samples)
    for wrong, expected in ((False, 0.5 / (samples + 1)), (True, (samples + 0.5) / (samples + 1))):
        found = fit_probability(scores, np.full(samples, wrong))
        assert found.probability([-1e9, 0, 1e9]) == pytest.approx([expected] * 3, abs=1e-12)
        assert found.log_losses == {}


def test_a_single_error_is_no_proof() -> None:
    # Platt's targets: one error of 2/3, and 1/1001 for each right prediction, that is one more error among all.
    scores = np.linspace(-10, 5, 1000)
    found = fit_probability(scores, np.arange(1000) == 999)
    assert (found.method, found.log_losses) == ("logistic", {})
    assert 0.5 / 1001 <= found.probability([-10])[0] < 0.001 < found.probability([5])[0] < 0.01
    assert found.probability(scores).mean() == pytest.approx((2 / 3 + 999 / 1001) / 1000, abs=1e-4)


def test_a_single_right_prediction_is_no_proof() -> None:
    found = fit_probability(np.arange(100.0), np.arange(100) > 0)
    assert (found.method, found.log_losses) == ("logistic", {})
    assert 0.9 < found.probability([0])[0] < found.probability([99])[0] < 1


@pytest.mark.parametrize("errors", [2, 3])
def test_few_errors(errors: int) -> None:
    scores = np.linspace(-10, 5, 1000)
    found = fit_probability(scores, np.arange(1000) >= 1000 - errors)
    assert found.probability([-10])[0] == pytest.approx(0.0005, abs=1e-4)
    assert found.probability([5])[0] == pytest.approx(errors / (errors + 0.5))
    assert found.probability(scores).mean() == pytest.approx(errors / 1000, abs=2e-4)


def test_a_suspicion_that_points_the_wrong_way_gives_the_base_rate() -> None:
    scores = np.arange(200.0)
    found = fit_probability(scores, scores < 20)
    assert found.probability(scores) == pytest.approx(np.full(200, 0.1), abs=0.004)
    single = fit_probability(scores, scores == 0)
    assert (single.method, single.slope) == ("logistic", 0)
    assert single.probability([7.0])[0] == pytest.approx(1.5 / 201, abs=1e-4)


# What holds for every curve


@pytest.mark.parametrize("name", NAMES)
def test_it_never_falls_and_is_never_certain(name: str) -> None:
    curve = curves()[name]
    line = np.concatenate(
        [[-1e300, -1e30], np.linspace(-5e3, 5e3, 10_001), np.linspace(-20, 20, 10_001), [1e30, 1e300]]
    )
    found = curve.probability(np.sort(line))
    assert (np.diff(found) >= -1e-15).all()
    assert 0 < found.min() <= found.max() < 1
    assert found.min() >= curve.least
    assert found.max() <= 1 - curve.least
    assert found.dtype == np.float64
    assert name in ("constant", "one knot") or found.max() > 10 * found.min()


def test_the_least_is_what_the_samples_can_tell() -> None:
    for curve, samples in zip(curves().values(), (2000, 2000, 2000, 2000, 50), strict=True):
        assert curve.least == 0.5 / (samples + 1)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_nan_pass_through(name: str) -> None:
    curve = curves()[name]
    assert curve.probability(0.3).shape == ()
    assert curve.probability(np.zeros((2, 3))).shape == (2, 3)
    assert curve.probability([]).shape == (0,)
    assert math.isnan(curve.probability([math.nan])[0])
    assert math.isnan(curve.as_tensor(torch.tensor([math.nan]))[0])


@pytest.mark.parametrize("name", NAMES)
def test_json_gives_the_same_probability_back(name: str) -> None:
    curve = curves()[name]
    again = ErrorProbability(**json.loads(json.dumps(asdict(curve), allow_nan=False)))
    assert again == curve
    scores = np.random.default_rng(0).normal(0, 10, 1000)
    assert (again.probability(scores) == curve.probability(scores)).all()


def test_the_methods_are_those_that_the_tests_mean() -> None:
    assert [curve.method for curve in curves().values()] == ["logistic", "log-odds", "isotonic", "isotonic", "isotonic"]


@pytest.mark.parametrize("name", NAMES)
def test_tensors_get_the_same(name: str) -> None:
    curve = curves()[name]
    scores = np.concatenate([np.random.default_rng(0).normal(0, 800, 500), np.linspace(0, 1, 500), curve.knots])
    found = curve.as_tensor(torch.from_numpy(scores))
    assert found.dtype == torch.float64
    assert found.numpy() == pytest.approx(curve.probability(scores), abs=1e-12)
    assert curve.as_tensor(torch.zeros(3)).shape == (3,)


class Curve(nn.Module):
    def __init__(self, curve: ErrorProbability) -> None:
        super().__init__()
        self.curve = curve

    def forward(self, suspicion: Tensor) -> Tensor:
        return self.curve.as_tensor(suspicion)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.onnx warns of its own future
@pytest.mark.parametrize("name", NAMES)
def test_a_graph_gets_the_same(name: str) -> None:
    pytest.importorskip("onnxscript", reason="needs petm[onnx]")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs petm[onnx]")
    curve = curves()[name]
    example = torch.linspace(-1, 1, 5, dtype=torch.float64)
    graph = torch.export.export(Curve(curve).eval(), (example,), dynamic_shapes=({0: torch.export.Dim("N", min=1)},))
    program = torch.onnx.export(graph, input_names=["s"], output_names=["p"], dynamo=True, verbose=False)
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for scores in (np.random.default_rng(0).normal(0, 800, 257), np.linspace(0, 1, 100), np.array([0.3])):
        (found,) = session.run(["p"], {"s": scores})
        assert found.dtype == np.float64
        assert found == pytest.approx(curve.probability(scores), abs=1e-12)


@pytest.mark.slow
def test_knots_are_few() -> None:
    random = np.random.default_rng(7)
    scores = random.uniform(0, 1e6, 200_000) ** 2
    wrong = drawn(random, np.floor(np.sqrt(scores) / 1e4) / 100)
    found = fit_probability(scores, wrong)
    if found.method == "isotonic":
        assert 2 <= len(found.knots) == len(found.values) <= KNOTS
    assert abs(found.probability(scores) - np.sqrt(scores) / 1e6).mean() < 0.02


def test_closer_than_scikit_learn_can_see() -> None:
    # Suspicions of 1e-18 and 1e-30 are both 0 to an isotonic regression that merges what lies within 1e-15.
    random = np.random.default_rng(8)
    scores = np.where(random.random(2000) < 0.5, 1e-18, 1e-30) * random.uniform(1, 2, 2000) * -1
    found = fit_probability(scores, drawn(random, np.where(scores > -1e-25, 0.4, 0.02)))
    assert found.method == "isotonic"
    assert found.probability([-1.5e-30])[0] == pytest.approx(0.4, abs=0.05)
    assert found.probability([-1.5e-18])[0] == pytest.approx(0.02, abs=0.02)


def test_tensors_will_do_for_fitting() -> None:
    scores, wrong = torch.linspace(-3, 3, 100), torch.arange(100) > 60
    assert fit_probability(scores, wrong) == fit_probability(scores.numpy(), wrong.numpy())


# What is refused


@pytest.mark.parametrize(("suspicion", "wrong"), [([], []), ([0.1], [True, False]), ([[0.1]], [[True]])])
def test_shapes_outside_their_rule(suspicion: list[float], wrong: list[bool]) -> None:
    with pytest.raises(ArgumentError, match=r"^suspicion:"):
        fit_probability(suspicion, wrong)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_suspicion_must_be_finite(value: float) -> None:
    with pytest.raises(ArgumentError, match=r"^suspicion:"):
        fit_probability([0.0, 1.0, value], [False, True, False])
