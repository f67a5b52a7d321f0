"""The benchmark of speed, without a clock: what it times, counts, writes and refuses. No test asserts a time."""

import itertools
import json
import sys
from typing import Any

import pytest
import torch
from torch import nn

from experiments.commands import main
from experiments.machine import (
    LEAST_ROUNDS,
    Spread,
    can_measure,
    interleave,
    order,
    ratio_spread,
    spread,
    warm_up,
)
from experiments.speed.contenders import CONTENDERS, LeftOutError, Setup, dropping, shaken
from experiments.speed.fitting import FITS, FitSettings, measure_fit
from experiments.speed.measure import SpeedSettings, measure_case
from experiments.speed.memory import Memory, measure_memory
from experiments.speed.networks import CASES, Case, bert_base, own_case, vit_base
from experiments.speed.results import (
    duration,
    markdown,
    print_results,
    ratio_figure,
    speed_tables,
    write_results,
)
from networks import ResidualNet, TinyCNN
from petm._internal.operations import count_operations
from petm.errors import ArgumentError, RunError

CPU = torch.device("cpu")
TINY = own_case("networks:TinyCNN", {"fc1": 4, "fc2": 2}, (1, 28, 28))


class Clock:
    """Stands still until a contender moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, *seconds: float) -> Any:
        """A call that takes the given seconds in turn, the last of them for ever."""
        left = list(seconds)

        def call() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_ratios_are_taken_round_by_round() -> None:
    clock = Clock()
    # The machine is three times as slow in the second round: the ratio does not see it.
    calls = {"plain": clock.taking(1, 3, 1), "double": clock.taking(2, 6, 2)}
    times = interleave(calls, 5.0, expected={"plain": 1.0, "double": 2.0}, clock=clock)
    assert times == {"plain": [1, 3, 1], "double": [2, 6, 2]}
    assert ratio_spread(times["double"], times["plain"]) == Spread(2, 2, 2)
    assert spread(times["double"]) == Spread(median=2, low=2, high=4)


def test_rounds_go_on_until_the_time_is_spent_and_three_at_least() -> None:
    for seconds, rounds in ((0.5, LEAST_ROUNDS), (40.0, 10)):
        clock, told = Clock(), []
        calls = {"a": clock.taking(1.0), "b": clock.taking(3.0)}
        times = interleave(
            calls,
            seconds,
            expected={"a": 1.0, "b": 3.0},
            clock=clock,
            on_round=lambda *seen, told=told: told.append(seen),
        )
        assert [len(values) for values in times.values()] == [rounds, rounds]
        assert told == [(number, 4.0 * number) for number in range(1, rounds + 1)]


def test_a_short_call_is_repeated_and_its_first_does_not_count() -> None:
    clock = Clock()
    times = interleave({"short": clock.taking(1.0, 0.004)}, 0.2, expected={"short": 0.004}, clock=clock)
    assert times["short"] == pytest.approx([0.004] * LEAST_ROUNDS)
    assert clock.now == pytest.approx(1.0 + (5 * LEAST_ROUNDS + LEAST_ROUNDS - 1) * 0.004)


def test_the_garbage_collector_runs_again_after_a_failure() -> None:
    import gc

    with pytest.raises(ZeroDivisionError):
        interleave({"bad": lambda: 1 / 0}, 1.0, expected={"bad": 1.0})
    assert gc.isenabled()


def test_everyone_follows_everyone_else() -> None:
    orders = [order("abc", round_) for round_ in range(6)]
    assert all(sorted(names) == ["a", "b", "c"] for names in orders)
    assert {names[0] for names in orders} == {"a", "b", "c"}
    followers = {pair for names in orders for pair in itertools.pairwise(names)}
    assert followers == {(one, other) for one in "abc" for other in "abc" if one != other}


def test_the_first_call_is_not_timed() -> None:
    clock = Clock()
    assert warm_up(clock.taking(60.0, 0.5), clock) == 0.5


def test_operations_of_a_network_that_can_be_counted_by_hand() -> None:
    # A multiplication and an addition for each weight and sample.
    net, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), torch.rand(5, 6)
    assert count_operations(lambda: net(x)) == 2 * 5 * (6 * 4 + 4 * 3)


def test_attention_is_counted() -> None:
    q = torch.rand(2, 3, 7, 8)
    with torch.no_grad():
        found = count_operations(lambda: nn.functional.scaled_dot_product_attention(q, q, q))
    assert found == 2 * (2 * 2 * 3 * 7 * 7 * 8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Setup, dict[str, Any]]:
    """The small network with all contenders, made once."""
    setup = Setup(TINY, CPU, tmp_path_factory.mktemp("tiny"))
    return setup, {name: contender.make(setup) for name, contender in CONTENDERS.items()}


def test_the_ways_to_a_second_opinion_agree(tiny: tuple[Setup, dict[str, Any]]) -> None:
    setup, forwards = tiny
    x = setup.inputs(4)
    with torch.no_grad():
        base, second = forwards["one_pass"](x, 1)
        torch.testing.assert_close(base, forwards["plain"](x, 1))
        torch.testing.assert_close(second, setup.adapted(x))
        assert (base - second).abs().max() > 1e-4, "the adapter must have an opinion of its own"
        torch.testing.assert_close(forwards["mixed_batch"](x, 1), torch.cat((base, second)))
        of_onnx = forwards["onnxruntime"](x, 1)[-2:]
        torch.testing.assert_close(torch.from_numpy(of_onnx[0]), base, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(of_onnx[1]), second, rtol=1e-4, atol=1e-5)
        first, other = forwards["two_models"](x, 1)
        assert torch.equal(first, forwards["plain"](x, 1))
        assert not torch.equal(first, other)


def test_an_ensemble_and_dropout_run_as_many_forwards_as_told(tiny: tuple[Setup, dict[str, Any]]) -> None:
    setup, forwards = tiny
    x = setup.inputs(4)
    with torch.no_grad():
        plain = count_operations(lambda: forwards["plain"](x, 1))
        for name, parts in (("ensemble", 5), ("mc_dropout", 20)):
            assert CONTENDERS[name].parts == parts
            for run in (1, parts):
                assert count_operations(lambda name=name, run=run: forwards[name](x, run)) == run * plain
            torch.testing.assert_close(forwards[name](x, parts).sum(1), torch.ones(4))
        assert not torch.equal(forwards["ensemble"](x, 1), forwards["ensemble"](x, 2))
        assert not torch.equal(forwards["mc_dropout"](x, 1), forwards["mc_dropout"](x, 1))


def test_dropout_is_the_networks_own_where_it_has_some() -> None:
    model = ResidualNet().eval()
    with_dropout = dropping(model)
    assert [module.training for module in with_dropout.modules() if isinstance(module, nn.Dropout)] == [True]
    assert [module.training for module in with_dropout.modules() if isinstance(module, nn.BatchNorm2d)] == [False] * 2
    assert not any(module.training for module in model.modules())
    assert with_dropout.fc.weight.data_ptr() == model.fc.weight.data_ptr(), "no weight is held twice"


def test_a_shaken_copy_leaves_the_model_alone() -> None:
    model = TinyCNN()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = shaken(model, 1)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert 0 < ((other.state_dict()[name] - tensor) / tensor).abs().mean() < 0.02


def test_onnxruntime_is_left_out_with_a_reason(tiny: tuple[Setup, dict[str, Any]]) -> None:
    setup, _ = tiny
    make = CONTENDERS["onnxruntime"].make
    with pytest.raises(LeftOutError, match="float inputs, and these are tokens"):
        make(Setup(CASES["bert-base"], CPU, setup.folder))
    with pytest.raises(LeftOutError, match="on the CPU alone, not on meta"):
        make(Setup(TINY, torch.device("meta"), setup.folder))


def test_the_networks_that_come_along() -> None:
    case = CASES["paper-all"]
    assert case.ranks(case.build()) == {"conv1": 4, "fc1": 64, "fc2": 5}
    assert case.inputs(2).shape == (2, 1, 28, 28)
    assert torch.equal(case.build().fc1.weight, case.build().fc1.weight)
    tokens = CASES["bert-base"].inputs(2)
    assert (tokens.shape, tokens.dtype) == ((2, 128), torch.int64)


@pytest.mark.parametrize(("name", "make", "blocks", "others"), [
    ("vit-base", vit_base, 12, {"classifier": 8}),
    ("bert-base", bert_base, 12, {"bert.pooler.dense": 8, "classifier": 2}),
])  # fmt: skip
def test_transformers_adapt_their_last_two_blocks_and_head(
    name: str, make: Any, blocks: int, others: dict[str, int]
) -> None:
    with torch.device("meta"):
        model = make()
    ranks = CASES[name].ranks(model)
    assert {layer: rank for layer, rank in ranks.items() if ".10." not in layer and ".11." not in layer} == others
    assert len(ranks) == 2 * 6 + len(others)
    assert model.config.num_hidden_layers == blocks


def test_a_module_stands_for_its_layers_and_a_rank_is_at_most_what_fits() -> None:
    case = own_case("networks:ResidualNet", {"block": 100, "fc": 3}, (1, 28, 28))
    assert case.ranks(ResidualNet()) == {"block.conv1": 6, "fc": 3}


def test_layers_that_are_not_there() -> None:
    with pytest.raises(ArgumentError, match=r"layers: expected linear .* got 'fc9'. Available: conv1, conv2, fc1, fc2"):
        own_case("networks:TinyCNN", {"fc9": 2}, (1, 28, 28)).ranks(TinyCNN())
    with pytest.raises(ArgumentError, match="layers: expected names, as the model has no list of blocks"):
        Case("x", "x", "networks:TinyCNN", (1, 28, 28), None).ranks(TinyCNN())


def test_a_batch_that_would_take_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.speed.measure.AT_MOST", 1e-6)
    settings = SpeedSettings(batches=(2,), seconds=1e-6, memory=False)
    (entry,) = measure_case(TINY, settings, CPU)["batches"]
    assert entry["rows"] == []
    assert "3 rounds would take about" in entry["left_out"]


@pytest.mark.skipif(not can_measure(CPU), reason="peak memory cannot be read here")
def test_peak_memory_from_a_process_of_its_own(tiny: tuple[Setup, dict[str, Any]]) -> None:
    setup, _ = tiny
    found = measure_memory(setup, "plain", {2: 1, 2000: 1}, threads=1)
    assert all(isinstance(memory, Memory) for memory in found.values())
    # The first layer's output alone: 2,000 times 6 channels of 8 by 8 floats.
    assert found[2000].peak - found[2].peak > 2000 * 6 * 8 * 8 * 4


@pytest.mark.skipif(not can_measure(CPU), reason="peak memory cannot be read here")
def test_a_process_that_fails_says_why(tmp_path: Any) -> None:
    wrong = Setup(own_case("networks:TinyCNN", {"fc9": 1}, (1, 28, 28)), CPU, tmp_path)
    with pytest.raises(RunError, match="memory: could not be measured, layers: "):
        measure_memory(wrong, "one_pass", {2: 1}, threads=1)


@pytest.mark.parametrize(("settings", "message"), [
    ({"batches": ()}, "batches: expected sizes of at least 1"),
    ({"batches": (0,)}, "batches: expected sizes of at least 1"),
    ({"seconds": 0.0}, "seconds: expected a finite number above 0, got 0.0"),
    ({"seconds": float("inf")}, "seconds: expected a finite number above 0, got inf"),
])  # fmt: skip
def test_settings_outside_their_rules(settings: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        SpeedSettings(**settings)


@pytest.mark.parametrize("name", ["samples", "epochs", "long", "repeats", "batch_size"])
def test_fit_settings_outside_their_rules(name: str) -> None:
    values: Any = {name: 0}
    with pytest.raises(ArgumentError, match=f"{name}: expected at least 1, got 0"):
        FitSettings(**values)


def test_all_ways_to_fit_reach_the_teacher_and_the_cache_saves_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PETM_DATA_DIR", raising=False)
    fit = measure_fit(FitSettings(samples=64, epochs=2, long=4, repeats=2, batch_size=32), CPU)
    assert fit["data"] == "random images of MNIST's shape"
    rows = {row["way"]: row for row in fit["rows"]}
    assert list(rows) == list(FITS)
    assert rows["naive"]["speedup"] == {"median": 1, "low": 1, "high": 1}
    assert rows["naive"]["counted_speedup"] == 1
    assert rows["cached"]["counted_speedup"] > rows["uncached"]["counted_speedup"]
    # Equal orders, equal steps: the cache changes nothing but the last bits.
    assert rows["cached"]["loss"] == pytest.approx(rows["uncached"]["loss"], rel=0.01)
    assert fit["long"]["naive_from_epochs"] == 2
    assert fit["long"]["speedup"] == fit["long"]["naive_seconds"] / fit["long"]["cached_seconds"]


def example() -> dict[str, Any]:
    """A result with round numbers."""

    def row(contender: str, seconds: float, counted: float, parts: int = 1) -> dict[str, Any]:
        return {
            "contender": contender,
            "title": CONTENDERS[contender].title,
            "seconds": {"median": seconds, "low": 0.9 * seconds, "high": 1.1 * seconds},
            "ratio": {"median": seconds / 0.002, "low": 0.9 * seconds / 0.002, "high": 1.1 * seconds / 0.002},
            "ratio_to_two_models": {"median": seconds / 0.004, "low": 0.125, "high": 0.75},
            "operations": 100,
            "counted_ratio": counted,
            "parts": parts,
            "parts_timed": 1,
            "memory": {"peak": 380_000_000, "resident": 1, "ratio": 1.25} if contender != "mc_dropout" else None,
        }

    rows = [
        row("plain", 0.002, 1),
        row("two_models", 0.004, 2),
        row("one_pass", 0.0022, 1.05),
        row("mc_dropout", 1.5, 20, 20),
    ]
    fitted = {"median": 3.0, "low": 2.5, "high": 3.5}
    return {
        "benchmark": "speed",
        "date": "2025-01-02T03:04:05+00:00",
        "machine": {
            "device": "cpu", "device_name": "Some Processor", "threads": 2, "cores": 4, "load": 0.25,
            "system": "Linux x86_64", "versions": {"torch": "2.9"},
        },
        "settings": {},
        "contenders": {name: {"title": one.title, "definition": one.definition} for name, one in CONTENDERS.items()},
        "cases": [{
            "name": "own", "title": "Net | own", "parameters": 1000, "adapter_parameters": 50,
            "left_out": {"onnxruntime": "it is not installed."}, "memory_left_out": {"mc_dropout": "too large."},
            "batches": [
                {"batch": 32, "rounds": 9, "rows": rows, "left_out": None},
                {"batch": 256, "rounds": 0, "rows": [], "left_out": "3 rounds would take about 900 s."},
            ],
        }],
        "fit": {
            "data": "MNIST", "samples": 6000, "ranks": {}, "settings": {"epochs": 5, "batch_size": 128, "repeats": 3},
            "rows": [
                {"way": way, "title": title, "definition": text, "seconds": fitted, "speedup": fitted,
                 "counted_speedup": 2.5, "loss": 1e-7} for way, (title, text) in FITS.items()
            ],
            "long": {"epochs": 200, "naive_seconds": 1200.0, "naive_from_epochs": 5, "cached_seconds": 60.0,
                     "speedup": 20.0, "loss": 1e-8},
        },
    }  # fmt: skip


def test_tables_hold_the_measured_and_the_counted() -> None:
    timed, left_out, fit, machine = speed_tables(example())
    assert timed.title == "Net | own, batch 32"
    assert timed.rows[2] == ("One pass", "2.20 ms", "1.98–2.42", "1.10", "0.99–1.21", "1.05", "380 MB", "1.25")
    assert timed.rows[3][:2] == ("MC dropout, 20 *", "1.50 s")
    assert timed.rows[3][-2:] == ("–", "–")
    for part in (
        "9 rounds.", "One pass over two models: 0.55 (0.12–0.75).", "* One of the equal forwards was timed",
        "onnxruntime: it is not installed.", "Memory, MC dropout, 20: too large.",
    ):  # fmt: skip
        assert part in timed.caption
    assert (left_out.rows, left_out.caption) == ((), "Left out: 3 rounds would take about 900 s.")
    assert fit.rows[len(FITS)] == ("Naive, PEFT *", "200", "1,200 s", "–", "1.00", "–", "–", "–")
    assert fit.rows[len(FITS) + 1][:5] == ("petm, cache", "200", "60.0 s", "–", "20.00")
    assert "* Not run: extrapolated from 5 epochs." in fit.caption
    assert ("torch", "2.9") in machine.rows
    assert ("Threads", "2 of 4 cores") in machine.rows


def test_a_result_is_written_and_printed(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    result = example()
    write_results(result, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speed.json", "speed.md", "speed.png", "speed.svg"]
    assert json.loads((tmp_path / "speed.json").read_text()) == result
    page = (tmp_path / "speed.md").read_text()
    assert page == markdown(result, "speed.svg")
    for part in (
        "![Ratios of time](speed.svg)", "## Net | own, batch 32\n", "| One pass | 2.20 ms |",
        "- **One pass**: petm.dual_logits", "- **petm, no cache**: petm.distill",
    ):  # fmt: skip
        assert part in page
    print_results(result)
    shown = capsys.readouterr().out
    assert "Net | own, batch 32" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_result_without_any_row_has_no_picture(tmp_path: Any) -> None:
    result = example() | {"fit": None}
    result["cases"][0]["batches"].pop(0)
    write_results(result, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speed.json", "speed.md"]
    assert "![" not in (tmp_path / "speed.md").read_text()


def test_the_picture_shows_ratio_spread_and_counted_ratio() -> None:
    (case,) = example()["cases"]
    case["batches"][0]["rows"] = [
        row | {"ratio": {"median": 1.5, "low": 1.4, "high": 1.75}, "counted_ratio": 1.1}
        for row in case["batches"][0]["rows"]
        if row["contender"] in ("plain", "one_pass")
    ]
    figure = ratio_figure([case])
    (axes,) = figure.axes
    (bar,) = axes.patches
    assert (bar.get_x(), bar.get_width()) == (1, 0.5)
    (line,) = axes.collections
    assert line.get_segments()[0][:, 0].tolist() == [1.4, 1.75]
    assert next(list(line.get_xdata()) for line in axes.lines) == [1.1]
    assert [label.get_text() for label in figure.legends[0].get_texts()] == ["batch 32", "counted"]


@pytest.mark.parametrize(("seconds", "shown"), [
    (0.0000123, "12.3 µs"), (0.00075, "750 µs"), (0.0123, "12.3 ms"), (0.9996, "1.00 s"), (12.3, "12.3 s"),
    (1234.5, "1,234 s"),
])  # fmt: skip
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs ``python -m experiments speed ...`` and returns exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["experiments", "speed", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code
        return code, *capfd.readouterr()

    return run


OWN = (
    "--model",
    "networks:TinyCNN",
    "--layers",
    "fc1=4,fc2=2",
    "--input-shape",
    "1,28,28",
    "--batch",
    2,
    "--seconds",
    0.2,
)


def test_the_command_times_ones_own_network(command: Any, tmp_path: Any) -> None:
    code, out, err = command(*OWN, "--no-fit", "--no-memory", "-o", tmp_path)
    assert (code, str(tmp_path / "speed.md") in err.replace("\n", "")) == (0, True), err
    assert "One pass over two models" in out.replace("\n", " ")
    result = json.loads((tmp_path / "speed.json").read_text())
    (case,) = result["cases"]
    assert case["title"] == "networks:TinyCNN, adapter on fc1, fc2"
    assert case["ranks"] == {"fc1": 4, "fc2": 2}
    (entry,) = case["batches"]
    rows = {row["contender"]: row for row in entry["rows"]}
    assert list(rows) == list(CONTENDERS)
    assert entry["rounds"] >= LEAST_ROUNDS
    counted = {name: row["counted_ratio"] for name, row in rows.items()}
    assert (counted["plain"], counted["two_models"], counted["ensemble"], counted["mc_dropout"]) == (1, 2, 5, 20)
    assert 1 < counted["one_pass"] < 1.5
    assert counted["onnxruntime"] == counted["one_pass"]
    assert counted["mixed_batch"] > 2
    assert rows["plain"]["ratio"] == {"median": 1, "low": 1, "high": 1}
    for row in rows.values():
        assert row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (("--model", "networks:TinyCNN"), 2, "--model, --layers and --input-shape: expected all three or none"),
    (("--case", "resnet"), 2, "'resnet' is not one of"),
    (("--batch", "0"), 2, "expected numbers of at least 1 such as 1,32,256, got '0'"),
    (("--batch", "1,x"), 2, "expected numbers of at least 1 such as 1,32,256, got '1,x'"),
    (("--seconds", "0"), 1, "seconds: expected a finite number above 0, got 0.0"),
    (("--samples", "0"), 1, "samples: expected at least 1, got 0"),
    (("--model", "networks:TinyCNN", "--layers", "fc9=1", "--input-shape", "1,28,28"), 1, "got 'fc9'. Available:"),
])  # fmt: skip
def test_bad_options(command: Any, tmp_path: Any, arguments: Any, code: int, message: str) -> None:
    found, out, err = command(*arguments, "-o", tmp_path / "speed")
    assert (found, out) == (code, "")
    assert message in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "speed").exists()
