"""`petm.planning`, its tables and its command."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from networks import TinyCNN, images, seeded, snapshot
from petm.adapter import ONE, Member, attach_adapter
from petm.cli import main
from petm.data import TensorData
from petm.dual import dual_logits
from petm.errors import ArgumentError, ModelError
from petm.fields import Fields
from petm.layer_choice import choose_layers
from petm.mining import preflight
from petm.models import PaperCNN, count_parameters, paper_cnn
from petm.operations import count_operations
from petm.plan_tables import amount, duration, plan_json, plan_tables
from petm.planning import plan
from petm.recipes import RECIPES, Recipe, adapt, within

CONV1, CONV2, FC1, FC2 = 2 * 26 * 26 * 32 * 9, 2 * 24 * 24 * 64 * 32 * 9, 2 * 9216 * 128, 2 * 128 * 10
PAPER = CONV1 + CONV2 + FC1 + FC2
"""Operations of the paper's CNN on one image, by hand."""


class Mlp(nn.Sequential):
    """6 → 8 → 5 → 3."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))


class Texts(nn.Module):
    """Mean of embeddings, for input_ids (N, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.first, self.head = nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids):
        return self.head(torch.relu(self.first(self.words(input_ids).mean(1))))


def test_the_papers_cnn_by_hand() -> None:
    model = paper_cnn().eval()
    before = snapshot(model)
    made = plan(model, images(1), samples=6000, layers={"fc1": 64, "fc2": 5}, rate=1e9)
    adapter = 64 * (9216 + 128) + 5 * (128 + 10)
    assert made.adapter_parameters == adapter
    assert (made.adapter_bytes, made.model_bytes) == (4 * adapter, 4 * 1_199_882)
    assert made.share == pytest.approx(adapter / 1_199_882)
    assert made.operations == PAPER
    assert made.one_pass_operations == PAPER + FC2 + 2 * adapter
    assert made.counted_ratio == pytest.approx(made.parting.counted_ratio)
    fitting = made.fitting
    assert fitting.feature_bytes == 4 * (9216 + 128)
    assert fitting.features is not None
    assert fitting.gradient is not None
    assert fitting.features.operations == CONV1 + CONV2 + FC1
    assert fitting.gradient.operations == 2 * PAPER
    # Forward and backward of fc2 and of both adapters; nothing is asked of the rows themselves.
    fc1, fc2 = 64 * (9216 + 128), 5 * (128 + 10)
    assert fitting.step.operations == 2 * FC2 + 2 * 3 * fc2 + 2 * (3 * fc1 - 64 * 9216)
    assert (fitting.parts, fitting.copies, fitting.epochs, fitting.trials) == (3, 1, RECIPES["fast"].epochs, 3)
    assert fitting.sample_bytes == fitting.example_bytes == 4 * 784
    assert made.expected == fitting.at(6000)
    assert snapshot(model) == before


def test_an_mlp_by_hand() -> None:
    model, x = seeded(Mlp).eval(), torch.rand(3, 6)
    made = plan(model, x, samples=100, layers={"2": 2, "4": 1}, rate=1e6, cache_budget=0)
    assert made.operations == 2 * (48 + 40 + 15)
    assert made.adapter_parameters == 2 * (8 + 5) + (5 + 3)
    assert made.one_pass_operations == 2 * (48 + 40 + 2 * 15) + 2 * made.adapter_parameters
    assert made.mirrored_ratio is None, "no image, no mirror"
    assert (made.fitting.parts, made.fitting.copies, made.fitting.trials) == (2, 0, 0), "FGSM, but no augmentation"
    assert (made.fitting.feature_bytes, made.fitting.features) == (0, None)
    assert made.expected.seconds == pytest.approx(made.expected.operations / 1e6)


def test_what_is_planned_is_what_is_fitted() -> None:
    recipe = replace(RECIPES["balanced"], mirrored=None, epochs=2, max_extra_parameters=0.3)
    model, few, more = seeded(TinyCNN).eval(), 48, 96
    made = plan(model, images(2), recipe=recipe, rate=1e9)
    adapted = {}

    def fit(samples: int) -> None:
        data = TensorData(images(samples), torch.arange(samples) % 2)
        preflight(model, data)
        adapted[samples] = adapt(model, data, recipe=recipe)

    counted = [count_operations(lambda n=n: fit(n)) for n in (few, more)]
    assert made.fitting.at(more).operations - made.fitting.at(few).operations == counted[1] - counted[0]
    assert dict(made.layers) == adapted[more].ranks
    assert made.adapter_parameters == adapted[more].adapter_parameters()
    assert made.adapters == len(adapted[more].adapters) == 3
    x = images(4)
    dual_logits(adapted[more], x)  # finds the parting
    assert 4 * made.one_pass_operations == count_operations(lambda: dual_logits(adapted[more], x))


@pytest.mark.parametrize("ratio", [1.02, 1.1, 1.3, 1.9, 3.0, None])
@pytest.mark.parametrize("members", [ONE, RECIPES["balanced"].members], ids=["one", "three"])
def test_the_rule_takes_every_late_layer_that_fits(ratio: float | None, members: tuple[Member, ...]) -> None:
    """Against trying each first layer in turn."""
    model, x, share = seeded(TinyCNN).eval(), images(4), 0.3
    budget = int(share * count_parameters(model)) // len(members)
    cost = {"conv1": 25 + 6, "conv2": 54 + 8, "fc1": 72 + 16, "fc2": 16 + 10}
    fitting = []
    for first in range(4):
        names = list(cost)[first:]
        rank = budget // sum(cost[name] for name in names)
        if not rank:
            continue
        ranks = {name: min(rank, {"conv1": 6, "conv2": 8, "fc1": 16, "fc2": 10}[name]) for name in names}
        made = plan(model, x, recipe=Recipe("any", members), layers=ranks, rate=1.0)
        if ratio is None or made.counted_ratio <= ratio:
            fitting.append(ranks)
    if fitting:
        assert choose_layers(model, x, members, max_ratio=ratio, max_extra_parameters=share) == fitting[0]
    else:
        with pytest.raises(ArgumentError, match="expected larger budgets"):
            choose_layers(model, x, members, max_ratio=ratio, max_extra_parameters=share)


def test_texts_are_planned_too() -> None:
    model, x = seeded(Texts).eval(), Fields({"input_ids": torch.arange(10).view(2, 5)})
    made = plan(model, x, samples=30, layers={"head": 2}, rate=1e9)
    assert made.operations == 2 * (64 + 24)
    assert (made.fitting.sample_bytes, made.fitting.example_bytes) == (8 * 5, 2 * 5 * 8)  # int64; float16 steps
    assert made.fitting.copies == 0
    assert made.mirrored == ""


def test_weights_of_half_precision_are_held_as_they_are() -> None:
    model = seeded(Mlp).eval().to(torch.bfloat16)
    made = plan(model, torch.rand(2, 6).to(torch.bfloat16), samples=10, layers={"4": 1}, rate=1e9)
    assert made.model_bytes == 2 * made.model_parameters


def test_a_machine_that_is_measured() -> None:
    made = plan(seeded(TinyCNN).eval(), images(2), samples=100)
    assert 1e6 < made.fitting.rates.passes < 1e16
    assert 0 < made.expected.seconds < 60


def test_budgets_reach_the_recipe() -> None:
    fast = RECIPES["fast"]
    told = within(fast, max_extra_parameters=0.02, max_extra_time=0.1)
    assert (told.max_extra_parameters, told.max_ratio) == (0.02, 1.1)
    assert told.mirrored is not None
    assert (told.mirrored.max_extra_parameters, told.mirrored.look) == (0.02, 0.1), "a view costs a pass of A"
    assert within(fast) == fast
    generous = within(fast, max_extra_time=3.0)
    assert generous.mirrored is not None
    assert generous.mirrored.look == 0.22, "the recipe's own share stays"
    four = within(RECIPES["thorough"], max_extra_time=2.0).mirrored
    assert four is not None
    assert four.look == 0.5, "half of the predictions, four views each"


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"samples": 0}, r"samples: expected at least 1, got 0\."),
        ({"rate": 0.0}, r"rate: expected operations per second above 0, got 0\.0\. Leave it out to measure it\."),
        ({"recipe": "gut"}, r"recipe: expected one of paper, fast, .*, got 'gut'\."),
        (
            {"recipe": "paper"},
            r"recipe: expected one with adapters and without a teacher, .* got 'LoRA-PETM, as published",
        ),
        ({"layers": {"fc2": 99}}, r"layers: expected a rank from 1 to 10 for 'fc2', got 99\."),
        ({"layers": {"fc9": 1}}, r"layers: expected linear, .* modules, got 'fc9'\. Available: conv1,"),
        ({"max_extra_parameters": 1e-6}, r"max_extra_parameters, max_ratio: expected larger budgets, got 1e-06"),
        ({"max_extra_time": 1e-9}, r"max_ratio: expected larger budgets, .* not even rank 1 on fc2 fits"),
        (
            {"max_extra_time": -0.1},
            r"max_extra_time: expected a share above 0, got -0\.1\. Try 0\.1, or leave it out\.",
        ),
        ({"max_extra_parameters": 0.0}, r"max_extra_parameters: expected a share above 0, got 0\.0\."),
    ],
)
def test_bad_arguments(told: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        plan(seeded(TinyCNN).eval(), images(2), **{"rate": 1e9, **told})  # type: ignore[arg-type]


def test_no_sample_and_the_wrong_form() -> None:
    with pytest.raises(ArgumentError, match=r"inputs: expected at least one sample, got none\."):
        plan(seeded(TinyCNN).eval(), images(0), rate=1e9)
    with pytest.raises(ModelError, match=r"model: cannot take inputs of shape \(., 3, 28, 28\)"):
        plan(seeded(TinyCNN).eval(), images(2, 3, 28, 28), rate=1e9)


def test_no_weight_is_held_twice() -> None:
    """On a network whose weights are most of what there is."""

    class Wide(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(8, 4000), nn.Linear(4000, 2000), nn.ReLU(), nn.Linear(2000, 2))

    model = seeded(Wide).eval()
    weights = sum(weight.nbytes for weight in model.parameters())
    from petm.operations import count_bytes

    assert count_bytes(lambda: plan(model, torch.rand(1, 8), layers={"3": 1}, rate=1e9)) < weights / 20


def test_tables_and_json_say_what_the_plan_says() -> None:
    made = plan(paper_cnn(), images(1), samples=60_000, max_extra_parameters=0.02, rate=1e10)
    tables = plan_tables(made)
    assert tables["layers"].rows == (("conv2", "2"), ("fc1", "2"), ("fc2", "2"))
    adapter = 2 * (32 * 9 + 64 + 9216 + 128 + 128 + 10)
    cost = dict(tables["cost"].rows)
    assert cost["Adapters"] == f"{adapter:,} parameters, 78.7 kB, 1.64% of A's"
    assert cost["One pass, both opinions"].endswith(f"{made.counted_ratio:.2f} times A's")
    assert "mirror image" in cost["If the mirror image keeps the class"]
    assert cost["Time of fitting"] == duration(made.expected.seconds)
    growing = [int(row[0].replace(",", "")) for row in tables["samples"].rows]
    assert growing == sorted(growing)
    assert {60_000, 10**9} <= set(growing)
    told = json.loads(json.dumps(plan_json(made)))
    assert told["adapter_parameters"] == adapter
    assert told["expected"]["samples"] == 60_000
    assert told["growth"]["samples"][-1]["samples"] == 10**9
    assert told["growth"]["sizes"]["70 B"]["parameters"] > 69e9


def test_numbers_and_times_in_words() -> None:
    assert [amount(value) for value in (0.5, 999, 999.6, 24e6, 1.5e21)] == ["0.5", "999", "1 k", "24 M", "1.5 Z"]
    assert [duration(s) for s in (0.25, 119, 120, 7200, 172_800, 6.4e7)] == [
        "0.25 s", "119 s", "2 min", "2 h", "2 days", "2.03 years",
    ]  # fmt: skip


@pytest.fixture
def petm(monkeypatch, capfd):
    """Runs ``petm ...`` and returns exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["petm", *map(str, arguments)])
        try:
            main()
        except SystemExit as ended:
            return ended.code, *capfd.readouterr()
        return 0, *capfd.readouterr()

    return run


def test_the_command_and_its_example(petm, tmp_path) -> None:
    from petm.cli.plan import plan as command

    example = command.epilog.removeprefix("Example: petm ").split()
    code, out, _ = petm(*example, "--rate", 1e9)
    assert code == 0
    assert "fc1" in out
    assert "Growth with the samples" in out
    code, out, err = petm("plan", "--model", "networks:TinyCNN", "--input-shape", "1x28x28", "--rate", 1e9, "--json",
                          "--max-extra-parameters", 0.3, "--max-extra-time", 0.5, "--samples", 500)  # fmt: skip
    assert code == 0, err
    told = json.loads(out)
    assert 1 < told["counted_ratio"] <= 1.5
    assert told["share"] <= 0.3
    assert told["samples"] == 500


def test_the_command_reads_data(petm, tmp_path, digits) -> None:
    import numpy as np

    x = digits[0].inputs(range(30)).numpy()
    np.savez(tmp_path / "d.npz", images=x, labels=digits[0].labels[:30].numpy())
    code, out, err = petm("plan", "--model", "networks:TinyCNN", "--data", tmp_path / "d.npz", "--rate", 1e9, "--json")
    assert code == 0, err
    assert json.loads(out)["samples"] == 30


def test_the_command_takes_tokens(petm) -> None:
    told = ("--input-shape", 5, "--vocabulary", 50, "--rate", 1e9, "--layers", "head=2", "--json")
    code, out, err = petm("plan", "--model", "test_planning:Texts", *told)
    assert code == 0, err
    assert json.loads(out)["operations"] == 2 * (64 + 24)


@pytest.mark.parametrize("told", [(), ("--input-shape", "1x28x28", "--data", "d.npz")])
def test_shape_or_data(petm, told) -> None:
    code, _, err = petm("plan", "--model", "networks:TinyCNN", *told)
    assert code == 2
    assert "--input-shape or --data: expected one of them, got both or none." in err


def test_one_line_for_a_budget_too_small(petm) -> None:
    code, out, err = petm("plan", "--model", "networks:TinyCNN", "--input-shape", "1x28x28", "--max-extra-time", 1e-9)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert err.startswith("Error: max_extra_parameters, max_ratio: expected larger budgets")
    code, _, err = petm("plan", "--model", "networks:TinyCNN", "--input-shape", "1xbig")
    assert code == 2
    assert "expected numbers of at least 1" in err


def test_adapters_of_the_paper_are_counted_as_attached() -> None:
    ranks = {"conv1": 4, "fc1": 64, "fc2": 5}
    made = plan(PaperCNN(), images(1), layers=ranks, rate=1e9)
    assert made.adapter_parameters == attach_adapter(PaperCNN(), ranks).adapter_parameters() == 598_870
