"""What a decoder costs with a second opinion: one pass over a plain one, and a fit on texts of mixed lengths.

A Llama with random weights classifies texts of random tokens. One pass, with an adapter on the last 2 of 12 blocks, is
timed in turn with a plain forward pass. The fit takes texts of 13 tokens on average and 63 at most, by their lengths,
and in turn the same texts as plain arrays, padded to the longest. Times are those of the processor, on one thread, as
other processes may run beside.

    python -m experiments.decoder_cost -o docs/measured
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor

from experiments.machine import describe_machine, interleave, ratio_spread, warm_up
from petm._internal.files import write_json
from petm._internal.progress import console
from petm.adapter.model import ONE, attach_adapter
from petm.adapter.one_pass import answers_of
from petm.data.base import TensorData
from petm.data.fields import Fields
from petm.fitting import fit
from petm.models.loading import call_model
from petm.training.recipes import Recipe

RECIPE = Recipe("cost", ONE, epsilon=0.0, max_ratio=1.22, max_extra_parameters=0.02, epochs=2)
TOKENS, LONGEST, WORDS = 128, 63, 1000


def decoder(hidden: int, layers: int) -> Any:
    """Returns a sequence classifier of three classes with random weights."""
    import transformers

    torch.manual_seed(0)
    library: Any = transformers
    config = library.LlamaConfig(
        vocab_size=WORDS, hidden_size=hidden, intermediate_size=8 * hidden // 3, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    return library.LlamaForSequenceClassification(config).eval()


class Padded(TensorData):
    """Texts that do not say how long they are."""

    def __init__(self, inputs: Fields, labels: Tensor) -> None:
        super().__init__(inputs, labels)
        self.lengths = None


def texts(samples: int, model: Any, kind: type[TensorData]) -> TensorData:
    """Returns texts of random tokens, padded at the end to `LONGEST`, with labels that the model is mostly right on."""
    random = torch.Generator().manual_seed(1)
    lengths = (1 + torch.empty(samples).exponential_(1 / 12.0, generator=random)).long().clamp(1, LONGEST)
    lengths[0] = LONGEST
    mask = (torch.arange(LONGEST) < lengths[:, None]).long()
    ids = torch.randint(1, WORDS, (samples, LONGEST), generator=random) * mask
    inputs = Fields({"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        labels = torch.cat([call_model(model, inputs[rows]).argmax(1) for rows in torch.arange(samples).split(100)])
    labels[::5] = torch.randint(3, labels[::5].shape, generator=random)
    return kind(inputs, labels)


def one_pass(hidden: int, batch: int, seconds: float) -> dict[str, Any]:
    """Returns the time of one pass over that of a plain forward pass."""
    model = decoder(hidden, 12)
    ids = torch.randint(1, WORDS, (batch, TOKENS), generator=torch.Generator().manual_seed(0))
    x = Fields({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    last = [name for name, _ in model.named_modules() if name.endswith(("_proj",)) and ".layers.1" in name]
    ranks = {name: 8 for name in last if name.split(".")[2] in ("10", "11")}
    adapted = attach_adapter(model, ranks)
    calls = {"plain": lambda: call_model(model, x), "one pass": lambda: answers_of(adapted, x)}
    with torch.no_grad():
        times = interleave(
            calls, seconds, expected={name: warm_up(call) for name, call in calls.items()}, clock=process_time
        )
    assert adapted.split_point is not None
    return {
        "hidden": hidden,
        "batch": batch,
        "rounds": len(times["plain"]),
        "ratio": asdict(ratio_spread(times["one pass"], times["plain"])),
        "counted": adapted.split_point.counted_ratio,
    }


def mixed_lengths(hidden: int, samples: int, rounds: int) -> dict[str, Any]:
    """Returns the time of a fit by lengths over that of one on texts that are padded to the longest."""
    model = decoder(hidden, 12)
    spent: dict[str, list[float]] = {"by length": [], "padded": []}
    for turn in range(rounds):
        kinds: dict[str, type[TensorData]] = {"by length": TensorData, "padded": Padded}
        for name in sorted(kinds, reverse=bool(turn % 2)):
            data, fresh = (texts(count, model, kinds[name]) for count in (samples, samples // 4))
            start = process_time()
            fit(model, data, recipe=RECIPE, calibration=fresh, force=True)
            spent[name].append(process_time() - start)
    return {"hidden": hidden, "samples": samples, **spent, "ratio": asdict(ratio_spread(*spent.values()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=20.0, help="Of the rounds at each batch size.")
    parser.add_argument("--rounds", type=int, default=2, help="Fits of each kind.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="Folder of decoder_cost.json.")
    told = parser.parse_args()
    torch.set_num_threads(1)
    made: dict[str, Any] = {"machine": describe_machine(torch.device("cpu"))}
    made["one_pass"] = [one_pass(told.hidden, batch, told.seconds) for batch in (1, 8)]
    made["mixed_lengths"] = mixed_lengths(told.hidden, told.samples, told.rounds)
    told.output.mkdir(parents=True, exist_ok=True)
    write_json(told.output / "decoder_cost.json", made)
    console.print(str(made), highlight=False, markup=False)


if __name__ == "__main__":
    main()
