import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from networks import ResidualNet, TinyCNN, images, seeded, snapshot
from petm.adapter.model import ONE, Member
from petm.adapter.one_pass import dual_logits, predict_answers
from petm.data.base import Data, TensorData
from petm.errors import ArgumentError, ModelError
from petm.models.prediction import predict_logits
from petm.training.config import FitConfig
from petm.training.recipes import FGSM_STEP, RECIPES, Making, Recipe, adapt, choose_layers, variants
from short_recipe import COMMITTEE, SHORT


def test_the_last_layers_within_the_budget_are_chosen() -> None:
    model, x = seeded(TinyCNN).eval(), images(4)
    parameters = sum(weight.numel() for weight in model.parameters())
    everything = choose_layers(model, x, ONE, max_ratio=None, max_extra_parameters=0.3).ranks
    assert list(everything) == ["conv1", "conv2", "fc1", "fc2"]
    cost = {"conv1": 25 + 6, "conv2": 54 + 8, "fc1": 72 + 16, "fc2": 16 + 10}
    rank = int(0.3 * parameters) // sum(cost.values())
    assert rank == 2
    assert everything == {"conv1": 1, "conv2": 2, "fc1": 2, "fc2": 2}, "a quarter of 6, 8, 8 and 10 at most"
    late = choose_layers(model, x, COMMITTEE, max_ratio=1.3, max_extra_parameters=0.3).ranks
    assert list(late) == ["fc1", "fc2"]
    assert late["fc1"] == int(0.3 * parameters) // 3 // (cost["fc1"] + cost["fc2"])


def test_budgets_that_allow_nothing() -> None:
    model, x = seeded(TinyCNN).eval(), images(4)
    for ratio, share, named in ((1.0, 0.3, "max_extra_time"), (None, 1e-6, "max_extra_parameters")):
        with pytest.raises(ArgumentError, match=rf"^{named}: .* fc2 ") as caught:
            choose_layers(model, x, ONE, max_ratio=ratio, max_extra_parameters=share)
        found = re.search(r"at least ([\d.]+)", str(caught.value))
        assert found is not None
        least = float(found[1])
        enough = {"max_ratio": 1 + least} if named == "max_extra_time" else {"max_extra_parameters": least}
        budgets = {"max_ratio": ratio, "max_extra_parameters": share} | enough
        assert list(choose_layers(model, x, ONE, **budgets).ranks) == ["fc2"], "what is said to suffice does"


class Bag(nn.Module):
    """Words, of which most parameters are, and two layers of width 16."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.head = nn.Embedding(5000, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.words(x).mean(1)).relu())


def test_embeddings_are_no_budget_and_ranks_stay_below_a_quarter() -> None:
    model, x = seeded(Bag).eval(), torch.randint(0, 5000, (4, 6))
    budgets: dict[str, float | None] = {"max_ratio": None, "max_extra_parameters": 0.5}
    everything = choose_layers(model, x, ONE, **budgets).ranks  # type: ignore[arg-type]
    own = 16 * 16 + 16 + 16 * 2 + 2
    rank = int(0.5 * own) // (16 + 16 + 16 + 2)
    assert rank == 3
    assert everything == {"hidden": 3, "head": 1}
    budgets["max_extra_parameters"] = 1.5
    assert choose_layers(model, x, ONE, **budgets).ranks["hidden"] == 4  # type: ignore[arg-type]
    budgets["max_extra_parameters"] = 0.01  # 3 parameters without the embedding, 803 with it
    assert choose_layers(model, x, ONE, **budgets).ranks == {"head": 1}  # type: ignore[arg-type]


class Grouped(nn.Module):
    """Nothing but a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 7, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.reshape(len(x), 4, 14, 14)).mean((2, 3))


class TwoNames(nn.Module):
    """One layer under two names, which is all it has."""

    def __init__(self) -> None:
        super().__init__()
        self.one = self.other = nn.Linear(784, 784)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(x.flatten(1)))


class Mixes(TinyCNN):
    """A sample's logits depend on the other samples."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits - logits.mean(0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (nn.Flatten, ModelError, "^model: expected linear or convolution layers as modules, got none"),
        (Grouped, ModelError, "^model: .* got only embeddings and groups: conv"),
        (TwoNames, ModelError, "^model: .* such as one: its weight is used without a call of the layer, or it has sev"),
        (Mixes, ArgumentError, "^max_extra_time: .* as the model gives other logits where both opinions share a batch"),
    ],
)
def test_each_cause_of_no_layers_has_its_own_message(
    make: type[nn.Module], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        choose_layers(seeded(make).eval(), images(4), ONE, max_ratio=1.25, max_extra_parameters=0.3)


def test_adapters_learn_and_the_base_model_stays(model: nn.Module, digits: tuple[Data, ...]) -> None:
    before = snapshot(model)
    adapted = adapt(model, digits[0], recipe=SHORT, seed=1)
    assert snapshot(model) == before
    assert adapted.adapters == ("default", "second", "third")
    assert adapted.adapter_parameters() <= 0.3 * sum(weight.numel() for weight in model.parameters())
    both = predict_answers(adapted, digits[2])
    assert torch.allclose(both.base, predict_logits(model, digits[2]), atol=1e-5)
    assert not torch.allclose(both.second, both.base.log_softmax(1), atol=0.01)
    again = predict_answers(adapt(model, digits[0], recipe=SHORT, seed=1), digits[2])
    assert torch.equal(both.second, again.second)
    assert not torch.equal(
        both.second, predict_answers(adapt(model, digits[0], recipe=SHORT, seed=2), digits[2]).second
    )


@pytest.mark.parametrize("recipe", [SHORT, replace(RECIPES["paper"], epochs=1, max_extra_parameters=0.2)])
def test_the_cache_budget_changes_no_result(recipe: Recipe, model: nn.Module, digits: tuple[Data, ...]) -> None:
    data = digits[0].subset(range(300))
    found = []
    for budget in (0, 1, 1 << 30):  # nothing is held, features in a file, everything in memory
        made = adapt(model, data, recipe=recipe, cache_budget=budget, device="cpu")
        found.append(predict_answers(made, digits[2]).second)
    for each in found[:2]:
        torch.testing.assert_close(each, found[2], rtol=1e-3, atol=1e-3)


def test_images_learn_without_adversarial_copies_and_texts_with(model: nn.Module, digits: tuple[Data, ...]) -> None:
    making = Making(model, digits[0], FitConfig(recipe="auto", device="cpu"))
    assert making.branch(model)[0].epsilon == 0
    rows = TensorData(torch.rand(50, 8), torch.arange(50) % 2)
    net = nn.Sequential(nn.Linear(8, 2)).eval()
    assert Making(net, rows, FitConfig(recipe="auto", device="cpu")).branch(net)[0].epsilon == FGSM_STEP
    assert [each.epsilon for each in variants(RECIPES["auto"])] == [0, FGSM_STEP]
    assert [each.epsilon for each in variants(SHORT)] == [0, SHORT.epsilon]
    assert variants(RECIPES["paper"]) == (RECIPES["paper"],)


def test_few_samples_are_read_more_often(model: nn.Module, digits: tuple[Data, ...]) -> None:
    making = Making(model, digits[0], FitConfig(recipe=SHORT, device="cpu"))
    assert [making.most_epochs(SHORT, samples) for samples in (300, 38_400, 400_000)] == [20, 10, 1]


def test_candidates_with_and_without_adversarial_copies_share_features(
    model: nn.Module, digits: tuple[Data, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petm.training.recipes._STEPS", 0)
    config = FitConfig(recipe=replace(SHORT, epsilon=0.1), device="cpu")
    data, held_out = digits[0].subset(range(300)), digits[2]
    clean, both = Making(model, data, config).candidates(held_out)
    assert (clean.samples, both.samples) == (600, 900)
    for found, epsilon in ((clean, 0.0), (both, 0.1)):
        plain = adapt(model, data, recipe=replace(SHORT, epsilon=epsilon), device="cpu")
        expected = predict_answers(plain, held_out).second.softmax(1)
        torch.testing.assert_close(found.logits[-1].softmax(1), expected, rtol=1e-3, atol=1e-4)


def test_members_differ_from_each_other(model: nn.Module, digits: tuple[Data, ...]) -> None:
    adapted = adapt(model, digits[0], recipe=SHORT)
    x = digits[2].inputs(range(20))
    with torch.no_grad():
        first, second = (adapted.alone(name)(x) for name in ("default", "second"))
    assert not torch.allclose(first, second, atol=0.01)


def test_flipped_images_take_the_place_of_adapters_where_a_flip_keeps_the_class() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 2)).eval()
    at_mirror = replace(SHORT, members=(Member("", "mirror"),), max_ratio=None, max_extra_parameters=3.0)
    mirrored = replace(SHORT, mirrored=at_mirror, max_ratio=None, max_extra_parameters=3.0)
    rows = torch.rand(200, 1, 1, 32)
    symmetric = torch.rand(32)
    symmetric = symmetric + symmetric.flip(0)
    symmetric = symmetric - symmetric.mean()
    lopsided = torch.linspace(-1, 1, 32)
    for weight, members in ((symmetric, at_mirror.members), (lopsided, mirrored.members)):
        with torch.no_grad():
            model[1].weight.copy_(torch.stack((-weight, weight)))
            model[1].bias.zero_()
            labels = model(rows).argmax(1)
        adapted = adapt(model, TensorData(rows, labels), recipe=mirrored)
        assert adapted.members == members
    x = images(3, 1, 1, 32)
    adapted.members = at_mirror.members
    adapted.split_point = None
    assert torch.allclose(dual_logits(adapted, x).second, model(x.flip(3)), atol=1e-5)


def test_what_is_no_image_is_not_augmented() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    data = TensorData(torch.rand(60, 6), torch.arange(60) % 3)
    adapted = adapt(model, data, recipe=replace(SHORT, max_ratio=None, max_extra_parameters=2.0))
    both = predict_answers(adapted, data)
    assert not torch.equal(both.base, both.second)


def test_the_papers_recipe_needs_errors(digits: tuple[Data, ...], model: nn.Module) -> None:
    adapted = adapt(model, digits[0], recipe=replace(RECIPES["paper"], epochs=1, max_extra_parameters=0.2))
    assert adapted.members == ONE


def test_an_unknown_recipe() -> None:
    with pytest.raises(ArgumentError, match="recipe:"):
        adapt(seeded(ResidualNet), TensorData(images(4)), recipe="gut")
