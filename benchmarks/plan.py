"""How far is ``petm plan`` from what is then measured? Predicted beside measured on five networks of random weights.

Each network is planned, fitted in a process of its own, in which peak memory is read, and timed against its own plain
forward in turn. Fitting is `petm.recipes.adapt` after its preflight, of the recipe ``fast`` without its mirror image,
which trains nothing.

    python benchmarks/plan.py --own resnet9.py:build --own-shape 3x32x32 -o docs/measured
"""

import argparse
import gc
import multiprocessing
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from petm.adapter import AdaptedModel, adaptable_layers
from petm.allocator import keep_large_blocks
from petm.benchmark.machine import describe_machine
from petm.benchmark.memory import process_peak, process_reset
from petm.benchmark.networks import vit_base
from petm.benchmark.timing import interleave, ratio_spread, warm_up
from petm.data import Data, FieldsData, TensorData
from petm.drift import rank_cost
from petm.dual import dual_logits
from petm.fields import Fields, Inputs
from petm.files import plain, write_json, write_text
from petm.growth import SIZES, Transformer
from petm.mining import preflight
from petm.models import call_model, load_model
from petm.operations import count_operations
from petm.plan_tables import amount, duration, samples_table, sizes_table
from petm.planning import Plan, plan
from petm.recipes import RECIPES, adapt
from petm.tables import Table, markdown_table, percent, size

RECIPE = replace(RECIPES["fast"], mirrored=None)
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
}
"""What PyTorch's counter does not know."""
COUNTED = 256, 512
"""Samples in the two fits of one epoch that are counted; what a fit does once is not in their difference."""
NEAR = {"parameters": 0.0, "operations": 0.05, "fitting operations": 0.05, "one-pass time": 0.15, "memory": 0.15}
"""How far the measured may lie from the predicted."""


@dataclass(frozen=True)
class Network:
    """What is planned and fitted.

    Attributes:
        title: In words.
        reference: Of `petm.models.load_model`.
        shape: Of one input, without the batch.
        samples: Fitted on.
        batch: Samples in one pass that is timed.
        vocabulary: Inputs are tokens below this; absent feeds floats in [0, 1].
    """

    title: str
    reference: str
    shape: tuple[int, ...]
    samples: int
    batch: int
    vocabulary: int | None = None

    def build(self) -> nn.Module:
        """Returns A, of random weights."""
        torch.manual_seed(0)
        return load_model(self.reference)

    def inputs(self, count: int) -> Inputs:
        """Returns so many samples."""
        torch.manual_seed(1)
        if self.vocabulary is None:
            return torch.rand(count, *self.shape)
        return Fields({"input_ids": torch.randint(self.vocabulary, (count, *self.shape))})

    def data(self, count: int) -> Data:
        """Returns so many samples with labels."""
        x, labels = self.inputs(count), torch.arange(count) % 2
        return FieldsData(x, labels) if isinstance(x, Fields) else TensorData(x, labels, value_range=(0.0, 1.0))


def small_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=192, num_hidden_layers=8, num_attention_heads=3, intermediate_size=768, image_size=64, patch_size=8
    )
    return ViTForImageClassification(config)


def small_bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=8000, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, intermediate_size=1024
    )
    return BertForSequenceClassification(config)


def bottleneck_resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="bottleneck"
    )
    config.num_labels = 10
    return ResNetForImageClassification(config)


HERE = f"{Path(__file__).resolve()}"
NETWORKS = {
    "paper": Network("The paper's CNN", "petm.models:PaperCNN", (1, 28, 28), 4000, 256),
    "vit": Network("ViT, 8 blocks of width 192, 64×64 pixels", f"{HERE}:small_vit", (3, 64, 64), 600, 32),
    "bert": Network("BERT, 6 blocks of width 256, 64 tokens", f"{HERE}:small_bert", (64,), 600, 32, 8000),
    "resnet": Network("ResNet with bottlenecks, 64×64 pixels", f"{HERE}:bottleneck_resnet", (3, 64, 64), 1000, 64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--own", help="module:factory or file.py:factory of a fifth network")
    parser.add_argument("--own-shape", default="3x32x32")
    parser.add_argument("--only", choices=[*NETWORKS, "own"], action="append")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing the one pass of a network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/measured"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_large_blocks()
    networks = dict(NETWORKS)
    if arguments.own:
        shape = tuple(int(side) for side in arguments.own_shape.split("x"))
        networks["own"] = Network(f"{arguments.own.rpartition('/')[2]}", arguments.own, shape, 1000, 64)
    rows = []
    for name in arguments.only or networks:
        rows.append(measure(name, networks[name], arguments.seconds, arguments.threads))
        print(rows[-1], flush=True)
    result = {
        "machine": describe_machine(torch.device("cpu")),
        "recipe": plain(RECIPE),
        "near": NEAR,
        "networks": rows,
        "vit_base": base_of_last_blocks(),
        "growth": {name: plain(one) for name, one in SIZES.items()},
    }
    write_json(arguments.output / "plan.json", result)
    write_text(arguments.output / "plan.md", page(result, networks["paper"]))


def measure(name: str, network: Network, seconds: float, threads: int) -> dict[str, Any]:
    """Plans one network, then measures it."""
    model, x = network.build(), network.inputs(max(network.batch, 4))
    began = time.perf_counter()
    planned = plan(model, x[:4], samples=network.samples, recipe=RECIPE, device="cpu")
    planning = time.perf_counter() - began
    fitted = in_process(_fit, network, dict(planned.layers), threads)
    adapted = adapt(model, network.data(64), recipe=replace(RECIPE, epochs=1), layers=planned.layers, device="cpu")
    dual_logits(adapted, x[: network.batch])  # finds the parting
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        dual_logits(adapted, x[: network.batch])
    counted = counter.get_total_flops() / network.batch
    few, more = (_operations_of_fitting(network, planned, count) for count in COUNTED)
    epoch = replace(planned.fitting, epochs=1)
    few_said, more_said = (epoch.at(count).operations for count in COUNTED)
    between = COUNTED[1] - COUNTED[0]
    found = planned.expected
    pairs = {
        "parameters": (_parameters_by_hand(model, planned), fitted["parameters"]),
        "operations": (planned.one_pass_operations, counted),
        "fitting operations": ((more_said - few_said) / between, (more - few) / between),
        "one-pass time": (planned.counted_ratio, _time_ratio(model, adapted, x[: network.batch], seconds)),
        "memory": (found.memory_bytes, fitted["memory"]),
        "fitting time": (found.seconds, fitted["seconds"]),
    }
    return {
        "name": name,
        "title": network.title,
        "samples": network.samples,
        "batch": network.batch,
        "layers": dict(planned.layers),
        "parting": plain(planned.parting),
        "feature_bytes": planned.fitting.feature_bytes,
        "planning_seconds": planning,
        "pairs": {
            key: {"predicted": said, "measured": seen, "off": said / seen - 1} for key, (said, seen) in pairs.items()
        },
        "plan": plain(planned),
    }


def _parameters_by_hand(model: nn.Module, planned: Plan) -> int:
    """The plan's count, after a look whether ranks and costs multiply out to the same."""
    layers = adaptable_layers(model)
    by_hand = planned.adapters * sum(rank * rank_cost(layers[name]) for name, rank in planned.layers.items())
    assert by_hand == planned.adapter_parameters
    return planned.adapter_parameters


def _operations_of_fitting(network: Network, planned: Plan, samples: int) -> int:
    model, data = network.build(), network.data(samples)

    def fit() -> None:
        preflight(model, data)
        adapt(model, data, recipe=replace(RECIPE, epochs=1), layers=planned.layers, device="cpu")

    return count_operations(fit)


def _time_ratio(model: nn.Module, adapted: AdaptedModel, x: Inputs, seconds: float) -> float:
    """One pass over a plain forward, the median of the rounds in which both took turns."""

    def forward() -> object:
        with torch.no_grad():
            return model(**x) if isinstance(x, Fields) else model(x)

    calls: dict[str, Callable[[], object]] = {"plain": forward, "one": lambda: dual_logits(adapted, x)}
    expected = {name: warm_up(call) for name, call in calls.items()}
    times = interleave(calls, seconds, expected=expected)
    return ratio_spread(times["one"], times["plain"]).median


def in_process(work: Callable[..., None], *arguments: Any) -> dict[str, Any]:
    """Returns what ``work`` sends from a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender, *arguments))
    process.start()
    sender.close()
    answer: dict[str, Any] = receiver.recv()
    process.join()
    return answer


def _fit(sender: Connection, network: Network, layers: dict[str, int], threads: int) -> None:
    """Runs in the child: fits, and sends its peak memory above what the libraries took."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    keep_large_blocks()
    import_module("transformers.modeling_utils")
    small = NETWORKS["paper"]
    adapt(small.build(), small.data(64), recipe=replace(RECIPE, epochs=1), layers={"fc2": 1}, device="cpu")
    call_model(network.build(), network.inputs(2))  # its code counts as a library
    gc.collect()
    process_reset()
    _, libraries = process_peak()
    model, data = network.build(), network.data(network.samples)
    began = time.perf_counter()
    preflight(model, data)
    adapted = adapt(model, data, recipe=RECIPE, layers=layers, device="cpu")
    seconds = time.perf_counter() - began
    peak, _ = process_peak()
    sender.send({"memory": peak - libraries, "seconds": seconds, "parameters": adapted.adapter_parameters()})


def base_of_last_blocks() -> dict[str, Any]:
    """ViT-base with rank 8 on the last two of its blocks, counted, and by the closed form."""
    model = vit_base().eval()
    ranks = {name: 8 for name in adaptable_layers(model) if any(part in ("10", "11") for part in name.split("."))}
    planned = plan(model, torch.rand(1, 3, 224, 224), recipe=RECIPE, layers=ranks, rate=1e11, device="cpu")
    patches, positions, last_norm = 768 * (3 * 16 * 16 + 1), 768 * (1 + 197), 2 * 768
    one = Transformer(
        768,
        12,
        197,
        10,
        embeddings=patches + positions + last_norm,
        embedding_operations=2 * 196 * 768 * (3 * 16 * 16),
        bytes_per_parameter=4,
    )
    closed = {name: getattr(one, name) for name in ("parameters", "adapter_parameters", "operations", "counted_ratio")}
    counted = {
        "parameters": planned.model_parameters,
        "adapter_parameters": planned.adapter_parameters,
        "operations": planned.operations,
        "counted_ratio": planned.counted_ratio,
    }
    return {"layers": ranks, "share": planned.share, "counted": counted, "closed_form": closed | asdict(one)}


def page(result: dict[str, Any], paper: Network) -> str:
    """The result in Markdown."""
    machine = result["machine"]
    show: dict[str, Callable[[float], str]] = {
        "parameters": lambda value: f"{value:,.0f}",
        "operations": amount,
        "fitting operations": amount,
        "one-pass time": lambda value: f"{value:.2f}",
        "memory": lambda value: size(round(value)),
        "fitting time": duration,
    }
    rows = []
    for row in result["networks"]:
        for key, pair in row["pairs"].items():
            near = NEAR.get(key)
            verdict = "–" if near is None else "yes" if abs(pair["off"]) <= near else "**no**"
            rows.append(
                (row["title"], key, show[key](pair["predicted"]), show[key](pair["measured"]),
                 f"{100 * pair['off']:+.1f}%".replace("-", "−"), verdict)
            )  # fmt: skip
    table = Table(
        "",
        "",
        ("Network", "What", "Predicted", "Measured", "Off", "Near enough"),
        tuple(rows),
        words=frozenset({0, 1, 5}),
    )
    vit = result["vit_base"]
    checked = Table(
        "", "", ("ViT-base", "Counted", "Closed form"),
        tuple((key.replace("_", " "), f"{vit['counted'][key]:,.4g}", f"{vit['closed_form'][key]:,.4g}")
              for key in vit["counted"]),
    )  # fmt: skip
    planned = plan(paper.build(), paper.inputs(4), samples=60_000, recipe=RECIPE, rate=1e11, device="cpu")
    told = ", ".join(f"{key} {percent(value, 0)}" for key, value in NEAR.items() if value)
    return (
        "\n\n".join(
            (
                "# Predicted and measured",
                f"{machine['device_name']}, {machine['threads']} thread of PyTorch, beside other work (load "
                f"{machine['load']:.1f}). Recipe fast without the mirror image. Near enough: parameters exact, {told}. "
                "Operations are of one pass and one sample; those of fitting, of one sample more; time is one pass "
                "over a plain forward, taken in turn.",
                markdown_table(table),
                "## ViT-base, rank 8 on the last two blocks",
                f"{percent(vit['share'], 2)} more parameters.",
                markdown_table(checked),
                "## Growth with the samples: the paper's CNN at 1e11 operations a second",
                markdown_table(samples_table(planned)),
                "## Growth with the size of A",
                markdown_table(sizes_table()),
                sizes_table().caption,
            )
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
