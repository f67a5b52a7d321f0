"""What a second opinion on decoders of 1, 8 and 70 billion parameters takes, by counts alone: nothing is run.

The models are sequence classifiers of the sizes of Llama 3 on PyTorch's meta device, with an adapter of rank 8 on every
linear layer of the last 2 blocks.

    python -m experiments.scale_counts --tokens 128 --texts 10000 --tera 100
"""

import argparse
from typing import Any

import torch
from torch import nn

from petm._internal.progress import console
from petm.report.tables import Table, terminal_table

SIZES = {"1 B": (2048, 16, 8192, 32), "8 B": (4096, 32, 14336, 32), "70 B": (8192, 80, 28672, 64)}
"""Width, blocks, inner width and attention heads; 8 heads of keys and values, 128,256 tokens."""
RANK, BLOCKS = 8, 2
STATE = 16
"""Bytes of an adapter's parameter while it learns: value, gradient and two moments, float32."""


def counts(width: int, blocks: int, inner: int, heads: int, tokens: int) -> dict[str, float]:
    """Returns parameters, bytes and operations of one model."""
    import transformers

    library: Any = transformers
    config = library.LlamaConfig(
        vocab_size=128_256, hidden_size=width, intermediate_size=inner, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=8, num_labels=2, pad_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        model = library.LlamaForSequenceClassification(config)
    parameters = sum(each.numel() for each in model.parameters())
    embedding = model.model.embed_tokens.weight.numel()
    late = [module for block in model.model.layers[-BLOCKS:] for module in block.modules()]
    adapter = sum(RANK * (each.in_features + each.out_features) for each in late if isinstance(each, nn.Linear))
    return {
        "parameters": parameters,
        "bfloat16": 2 * parameters,
        # Linear layers in 4 bits with a float32 scale for each 64 weights; embedding and norms in bfloat16.
        "4 bits": (parameters - embedding) * (0.5 + 4 / 64) + 2 * embedding,
        "adapter": adapter,
        "state": STATE * adapter,
        "cache": 4.0 * tokens * width,
        "operations": 2.0 * (parameters - embedding) * tokens,
        "one pass": 1 + BLOCKS / blocks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=128, help="Of each text.")
    parser.add_argument("--texts", type=int, default=10_000, help="That a fit learns from.")
    parser.add_argument("--tera", type=float, default=100.0, help="10¹² operations a second of the device, sustained.")
    told = parser.parse_args()
    rows = []
    for name, sizes in SIZES.items():
        found = counts(*sizes, told.tokens)
        seconds = found["operations"] / (told.tera * 1e12)
        rows.append(
            (
                name,
                f"{found['parameters']:,.0f}",
                f"{found['bfloat16'] / 1e9:.1f} GB",
                f"{found['4 bits'] / 1e9:.1f} GB",
                f"{found['adapter']:,.0f}",
                f"{found['state'] / 1e6:.0f} MB",
                f"{found['cache'] * told.texts / 1e9:.1f} GB",
                f"{1000 * seconds:.1f} ms",
                f"{found['one pass']:.2f}",
            )
        )
    header = ("model", "parameters", "bfloat16", "4 bits", "adapter", "its state", "cache", "a text", "one pass")
    caption = f"{told.tokens} tokens, a cache of {told.texts:,} texts, {told.tera:g} tera-operations a second."
    console.print(terminal_table(Table("Computed from counts", caption, header, tuple(rows))))


if __name__ == "__main__":
    main()
