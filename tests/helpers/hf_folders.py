"""Hugging Face folders of the tests: tiny classifiers with random weights, and tokenizers made of a few questions."""

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

KINDS = ("PERSON", "PLACE", "NUMBER")
"""What the questions ask for."""

_PEOPLE = ("Galileo", "Columbus", "Madonna", "Lincoln", "Mozart")
_PLACES = ("Paris", "Denver", "Aspen", "Rome", "Cairo")

QUESTIONS: tuple[tuple[str, str], ...] = (
    *((f"Who was {person} ?", "PERSON") for person in _PEOPLE),
    *((f"Who met {person} in {place} , and who did not ?", "PERSON") for person in _PEOPLE for place in _PLACES),
    *((f"Where is {place} ?", "PLACE") for place in _PLACES),
    *((f"Where in {place} was {person} ?", "PLACE") for person in _PEOPLE for place in _PLACES),
    *((f"How far is {place} ?", "NUMBER") for place in _PLACES),
    *((f"How old was {person} in {place} ?", "NUMBER") for person in _PEOPLE for place in _PLACES),
)
"""Text and kind, 90 of them."""


def save(folder: Path, *parts: Any) -> Path:
    """Writes a model, a tokenizer or a processor into a folder, without the library's progress bars."""
    with contextlib.redirect_stderr(io.StringIO()):
        for part in parts:
            part.save_pretrained(folder)
    return folder


def word_tokenizer(texts: Sequence[str] = tuple(text for text, _ in QUESTIONS), **settings: Any) -> Any:
    """A tokenizer by words as BERT has it: ``[CLS] ... [SEP]``, padded on the right with id 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, **{**names, **settings})


def byte_tokenizer(texts: Sequence[str] = tuple(text for text, _ in QUESTIONS), words: int = 300) -> Any:
    """A tokenizer by bytes as GPT-2 has it: nothing is added, and no token pads; id 0 ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")


def bert(names: Sequence[str] = KINDS, *, words: int = 64, **settings: Any) -> nn.Module:
    """A BERT of two layers for up to 40 tokens, from seed 0."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = {**sizes, "max_position_embeddings": 40, "vocab_size": words, **labels(names), **settings}
    return BertForSequenceClassification(BertConfig(**config)).eval()


def gpt2(names: Sequence[str] = KINDS) -> nn.Module:
    """A GPT-2 of two layers for up to 64 tokens, that knows of no padding, from seed 0."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 300}
    return GPT2ForSequenceClassification(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, **labels(names))).eval()


def llama() -> nn.Module:
    """A language model of two layers for the tokens of `byte_tokenizer`, from seed 0."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1, vocab_size=300)).eval()


def vit(names: Sequence[str] = KINDS, *, channels: int = 3) -> nn.Module:
    """A ViT of two layers for images of 16×16, from seed 0."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    shape = {"image_size": 16, "patch_size": 4, "num_channels": channels}
    return ViTForImageClassification(ViTConfig(**sizes, **shape, **labels(names))).eval()


def image_processor(**settings: Any) -> Any:
    """To 16×16, values from 0 to 1 to those from -1 to 1."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(**{"size": {"height": 16, "width": 16}, **settings})


def train(model: nn.Module, fields: Any, labels: torch.Tensor, *, steps: int = 12) -> None:
    """Takes a few steps on all samples at once."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        answer = model(**fields)
        nn.functional.cross_entropy(getattr(answer, "logits", answer), labels).backward()
        optimizer.step()


def labels(names: Sequence[str]) -> dict[str, Any]:
    """The class names as a configuration has them."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def trained_adapter(folder: Path, base: nn.Module, *, classes: int = 3, **settings: Any) -> Any:
    """A LoRA classifier of PEFT, written to ``folder``, its base to ``base`` beside it; what is trained is random."""
    import transformers
    from peft import LoraConfig, get_peft_model

    save(folder.parent / "base", base)
    images = base.main_input_name == "pixel_values"
    auto = transformers.AutoModelForImageClassification if images else transformers.AutoModelForSequenceClassification
    with torch.random.fork_rng(), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        plain = auto.from_pretrained(folder.parent / "base", num_labels=classes, ignore_mismatched_sizes=True)
        tuned = get_peft_model(plain, LoraConfig(**{"r": 4, "task_type": "SEQ_CLS", **settings}))
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.3)
        save(folder, tuned)
    return tuned.eval()
