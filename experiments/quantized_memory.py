"""What memory does a fit take on a 4-bit base model, over plain inference, the adapter and the cached features?

A decoder with random weights is quantised by bitsandbytes, on the CPU, in a process of its own. Everything beside the
libraries and the weights before they were quantised counts. With ``--fgsm`` the adapters learn from FGSM examples, too,
whose backward pass holds what the layers of the whole model have put out. The samples suffice for full batches at each
stage, the last fifth being held out.

    python -m experiments.quantized_memory --fgsm -o docs/measured
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiments.machine import describe_machine, in_a_process, process_peak, process_reset
from petm._internal.files import write_json
from petm._internal.progress import console
from petm.adapter.model import ONE
from petm.adapter.prefix_features import prepare_student
from petm.data.base import TensorData
from petm.data.fields import Fields
from petm.fitting import fit
from petm.models.prediction import BATCH_SIZE, predict_logits
from petm.models.probe import check_module
from petm.training.recipes import Recipe

STATE = 4
"""Tensors of an adapter in training: weights, gradient and two moments."""
RECIPE = Recipe("memory", ONE, epsilon=0.0, max_ratio=1.22, max_extra_parameters=0.01, epochs=2)


def decoder(hidden: int, layers: int) -> Any:
    """Returns a decoder whose linear layers are quantised."""
    import transformers

    library: Any = transformers
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": 8 * hidden // 3, "num_hidden_layers": layers}
    config = library.LlamaConfig(
        **sizes, vocab_size=1000, num_attention_heads=hidden // 64, num_labels=3, pad_token_id=0
    )
    with tempfile.TemporaryDirectory() as folder:
        library.LlamaForSequenceClassification(config).to(torch.bfloat16).save_pretrained(folder)
        how = library.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
        return library.AutoModelForSequenceClassification.from_pretrained(
            folder, quantization_config=how, device_map={"": "cpu"}
        ).eval()


def measured(hidden: int, layers: int, samples: int, tokens: int, fgsm: bool, infers: bool) -> dict[str, float]:
    """Returns the peak above what the libraries take, in bytes; of inference, or of a fit and its parts."""
    torch.set_num_threads(1)
    decoder(64, 1)  # imports what any use imports
    process_reset()
    libraries = process_peak()[1]
    model = decoder(hidden, layers)
    check_module(model)
    ids = torch.randint(1, 1000, (samples, tokens), generator=torch.Generator().manual_seed(0))
    data = TensorData(Fields({"input_ids": ids, "attention_mask": torch.ones_like(ids)}), torch.arange(samples) % 3)
    process_reset()
    if infers:
        predict_logits(model, data)
        return {"peak": process_peak()[0] - libraries}
    recipe = replace(RECIPE, epsilon=None) if fgsm else RECIPE
    grader = fit(model, data, recipe=recipe, device="cpu", force=True)
    peak = process_peak()[0] - libraries
    student = prepare_student(grader.adapted, data.inputs(range(4)), 1 << 32)[1]
    return {
        "peak": peak,
        "adapter": 4 * STATE * grader.adapted.adapter_parameters(),
        "cache": 4 * student.numbers(data) if student else 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"hidden": 512, "layers": 6, "samples": BATCH_SIZE * 5 // 2, "tokens": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--fgsm", action="store_true")
    parser.add_argument("-o", "--output", type=Path, required=True, help="Folder of quantized_memory.json.")
    told = parser.parse_args()
    sizes = (told.hidden, told.layers, told.samples, told.tokens, told.fgsm)
    plain, fitted = (in_a_process(measured, *sizes, infers) for infers in (True, False))
    bound = plain["peak"] + fitted["adapter"] + fitted["cache"]
    asked = {name: value for name, value in vars(told).items() if name != "output"}
    found: dict[str, Any] = {"sizes": asked, "inference": plain["peak"], "fit": fitted, "ratio": fitted["peak"] / bound}
    found["machine"] = describe_machine(torch.device("cpu"))
    told.output.mkdir(parents=True, exist_ok=True)
    write_json(told.output / "quantized_memory.json", found)
    console.print(str(found), highlight=False, markup=False)


if __name__ == "__main__":
    main()
