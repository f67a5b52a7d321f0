import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from experiments.suite import networks
from experiments.suite.answers import Viewed
from experiments.suite.controls import (
    STRENGTHS,
    error_columns,
    error_regression,
    fine_tuned,
    linear_probe,
    mean_of_both,
)
from experiments.suite.learn import Learning, Production, draw_labels, suspicions
from experiments.suite.models import Base
from experiments.suite.page import page
from experiments.suite.shifts import blur, dim, mistyped
from experiments.suite.tables import aurc, compare
from petm.models.prediction import predict_logits


def test_dim_is_the_measured_definition_without_its_noise():
    images = torch.rand(64, 1, 28, 28)

    changed = dim(images, torch.Generator().manual_seed(0))

    assert torch.allclose((changed - (0.5 * images + 0.1)).std(), torch.tensor(0.03), atol=2e-3)
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1


def test_blur_is_the_mean_of_nine_pixels_with_the_border_reflected():
    image = torch.rand(1, 1, 5, 5)
    padded = np.pad(image[0, 0].numpy(), 1, mode="reflect")
    expected = [[padded[i : i + 3, j : j + 3].mean() for j in range(5)] for i in range(5)]

    assert np.allclose(blur(image, torch.Generator())[0, 0].numpy(), expected, atol=1e-6)


def test_mistyped_changes_nothing_at_chance_0_and_about_the_share_of_letters_otherwise():
    text = "what is the capital of the country " * 50

    generator = torch.Generator().manual_seed(0)

    assert mistyped(text, 0.0, generator) == text
    changed = mistyped(text, 0.05, generator)
    assert changed != text
    assert abs(len(changed) - len(text)) < 0.05 * len(text)
    same = sum(a == b for a, b in zip(changed.split(), text.split(), strict=False)) / len(text.split())
    assert 0.6 < same < 0.95  # four letters a word


def test_mean_of_both_is_one_less_the_weighted_mean_of_both_probabilities():
    base, second = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    p = [np.exp(2) / (np.exp(2) + 1), np.exp(1) / (np.exp(1) + 1)]
    q = [1 / (1 + np.exp(1)), np.exp(3) / (1 + np.exp(3))]

    expected = [1 - 0.25 * a - 0.75 * b for a, b in zip(p, q, strict=True)]

    assert np.allclose(mean_of_both(base, second, 0.75), expected)


def test_error_regression_equals_one_fitted_by_hand_at_one_of_its_strengths():
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 4), torch.randint(4, (200,))
    wrong = (logits.argmax(1) != labels).numpy()
    found = error_regression(logits[:150], labels[:150], logits[150:])
    x = error_columns(logits)
    assert x.shape == (200, 4 + 3 + 4)

    scaler = StandardScaler().fit(x[:150])
    by_hand = [
        LogisticRegression(C=c, max_iter=500)
        .fit(scaler.transform(x[:150]), wrong[:150])
        .predict_proba(scaler.transform(x[150:]))[:, 1]
        for c in STRENGTHS
    ]

    assert min(np.abs(found - each).max() for each in by_hand) < 1e-3


def test_linear_probe_recognises_separable_features_and_gives_absent_classes_nothing():
    labels = torch.arange(60) % 3
    features = torch.nn.functional.one_hot(labels, 3).float() + 0.05 * torch.randn(60, 3)

    logits = linear_probe(features[:45], labels[:45], features[45:], 5)

    assert torch.equal(logits.argmax(1), labels[45:])
    assert float(logits.softmax(1)[:, 3:].max()) < 1e-9


def test_fine_tuned_changes_the_named_layers_of_a_copy_alone(digits, model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    other = fine_tuned(model, digits[1], ("fc2",), epochs=1)

    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    changed = {name for name, tensor in other.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == {"fc2.weight", "fc2.bias"}


@pytest.mark.parametrize("seed", range(3))
def test_aurc_is_the_mean_risk_over_coverages_and_counts_are_copies(seed):
    generator = np.random.default_rng(seed)
    suspicion, wrong = generator.random(50), generator.random(50) < 0.3
    counts = generator.integers(0, 4, 50)
    order = sorted(range(50), key=lambda row: suspicion[row])
    expected = np.mean([np.mean([wrong[row] for row in order[: n + 1]]) for n in range(50)])

    assert aurc(suspicion, wrong) == pytest.approx(expected)
    # A copy is as sure as its original: the risk is that behind the last copy.
    covered = failed = total = 0.0
    for row in order:
        covered, failed = covered + counts[row], failed + counts[row] * wrong[row]
        total += counts[row] * failed / max(covered, 1)
    assert aurc(suspicion, wrong, counts) == pytest.approx(total / covered)


def test_compare_gives_the_reference_0_and_a_perfect_order_a_ratio_below_0():
    generator = np.random.default_rng(0)
    wrong = generator.random(400) < 0.2
    softmax = generator.random(400) + 0.3 * wrong
    draws = [
        (rows, {"softmax": softmax[rows], "perfect": wrong[rows] + 0.0})
        for rows in (np.arange(300), np.arange(100, 400))
    ]

    reference, perfect = compare(draws, wrong, resamples=50)

    assert (reference.ratio, reference.low, reference.high) == (0, 0, 0)
    assert perfect.low <= perfect.ratio <= perfect.high < -0.5
    assert len(perfect.draws) == 2


def test_draw_labels_never_judges_a_labelled_sample():
    free, bound = draw_labels(100, 30, 1), draw_labels(100, 30, 1, judged=torch.arange(50, 100))

    for draw in (free, bound):
        assert len(draw.labelled) == 30
        assert not torch.isin(draw.labelled, draw.judged).any()
    assert len(free.judged) == 70
    assert bool((bound.labelled < 50).all())


def test_halves_of_a_base_share_no_sample(digits, model):
    base = Base("digits", model, digits[0], digits[2])

    first, second = base.choosing, base.untouched_until_the_end

    assert len(first) + len(second) == len(digits[2])
    assert not torch.isin(first.indices, second.indices).any()


def test_viewed_flips_images_and_is_other_data(digits):
    flipped = Viewed(digits[0], "mirror")

    assert torch.equal(flipped.inputs([3]), digits[0].inputs([3]).flip(-1))
    assert torch.equal(flipped.labels, digits[0].labels)
    assert flipped.content != Viewed(digits[0], "same").content


@pytest.mark.parametrize("build", [networks.lenet, networks.dropout_net, networks.small_resnet])
def test_networks_take_digits(build):
    assert build().eval()(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_second_opinion_learns_from_labels_and_leaves_the_base_model_as_it_is(digits, model):
    production = Production(model, digits[2].subset(range(300)), digits[0])
    draw = draw_labels(300, 150, 0)
    before = predict_logits(model, production.data)

    (second,) = production.second_opinion(draw.labelled, Learning(epochs=3, copies=1))
    found = suspicions(production, draw, Learning(epochs=1, copies=0), full=False)

    assert torch.equal(predict_logits(model, production.data), before)
    right = (second.argmax(1) == production.data.labels)[draw.labelled].float().mean()
    assert float(right) >= float((~production.wrong)[draw.labelled].float().mean())
    assert set(found) == {
        "softmax",
        "adapter, mean of both",
        "adapter alone",
        "error regression",
        "error regression, features",
        "linear probe, mean of both",
        "mirror, 2 x",
    }
    assert all(len(each) == 150 and np.isfinite(each).all() for each in found.values())


def test_the_page_gives_changes_relative_to_the_softmax() -> None:
    fit = {
        "model": "a", "what": "fit", "seed": 1, "taken": "margin", "samples": 2000, "errors": 40, "softmax": 0.05,
        "aurc": {"value": 0.04}, "difference": {"value": -0.01, "low": -0.02, "high": 0.005},
    }  # fmt: skip
    row = {"name": "probe", "aurc": 0.0021, "ratio": 0.0, "low": 0.0, "high": 0.0}
    text = page([{"fits": [fit]}, [{"model": "a", "shift": "dimmed", "labels": 150, "rows": [row]}]])

    assert "| a | fit | 1 | margin | 40 of 2,000 | 50.0 | 40.0 | -20.0 % (-40.0 to +10.0) |" in text
    assert "| a, dimmed, 150 | probe | 2.100 | +0.0 % |" in text
