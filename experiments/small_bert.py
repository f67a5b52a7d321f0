r"""Trains a small BERT with a word tokenizer on texts, as a classifier of one's own, in about half a minute.

    python -m experiments.small_bert --train train.parquet -o runs/small-bert
    petm fit --model hf:runs/small-bert --data train.parquet -o small.petm
    python -m experiments detection --model hf:runs/small-bert --train train.parquet --test test.parquet --seeds 3 \
        --method fast --method unchanged_control --method random_control --method entropy --method knn -o runs/texts

The last command judges it (docs/benchmark/detection.md).
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordLevelTrainer
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from petm.data.texts import Tokenized, read_texts
from petm.models.hf_processors import load_processor
from petm.training.loop import CROSS_ENTROPY, Settings, train

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="Parquet, CSV or JSON Lines with text and label.")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True, help="Folder in the form of Hugging Face.")
    arguments = parser.parse_args()
    train_small_bert(arguments.train, arguments.output, epochs=arguments.epochs, seed=arguments.seed)


def train_small_bert(source: Path, output: Path, *, epochs: int = 4, seed: int = 0) -> None:
    """Trains a small BERT on the texts of a file and writes it into a folder, in the form of Hugging Face."""
    texts = read_texts(source)
    tokenizer = word_tokenizer(texts.texts.to_pylist())
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128,
        "max_position_embeddings": 64, "num_labels": int(texts.labels.max()) + 1,
    }  # fmt: skip
    config = BertConfig(vocab_size=len(tokenizer), **sizes)
    model = BertForSequenceClassification(config)
    tokenizer.save_pretrained(output)
    model.save_pretrained(output)
    encoder: Any = load_processor(output)
    data = Tokenized(texts, encoder)
    settings = Settings(epochs, 1e-3, batch_size=64, seed=seed, schedule="cosine")
    train(model, data, CROSS_ENTROPY, settings, title="small BERT")
    model.save_pretrained(output)


def word_tokenizer(texts: list[str]) -> Any:
    """Every word that occurs is a token, up to 4,000."""
    tokenizer = Tokenizer(WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), Whitespace()
    tokenizer.train_from_iterator(texts, WordLevelTrainer(vocab_size=4000, special_tokens=list(SPECIAL)))
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    made: Any = PreTrainedTokenizerFast  # it has no types
    return made(tokenizer_object=tokenizer, **names)


if __name__ == "__main__":
    main()
