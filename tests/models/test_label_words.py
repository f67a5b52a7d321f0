"""Language models as classifiers: prompts, tokens of label words, and their logits against plain transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_folders import QUESTIONS, bert, byte_tokenizer, llama, save, word_tokenizer
from petm.adapter.model import attach_adapter
from petm.adapter.passes import Pass
from petm.adapter.prefix_features import prepare_student
from petm.adapter.split_point import BEFORE, OnePass, split_point_of
from petm.data.fields import Fields
from petm.data.texts import Tokenized, read_texts
from petm.errors import ArgumentError, DataError, ModelError
from petm.models.hf_processors import load_processor
from petm.models.hf_tokenizer import Tokenizer, ask
from petm.models.label_words import LabelWords
from petm.models.loading import load_model, save_weights, weights_fingerprint
from petm.models.probe import probe
from petm.models.prompt import Prompt, Prompting, resolve

WORDS = ("PERSON", "NUMBER")
PROMPT = Prompt.of("Question: {text}\nKind:")
CHAT = "{% for m in messages %}<|endoftext|>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}{{ 'assistant\n' }}"
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def qwen2() -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=1, vocab_size=300, tie_word_embeddings=True))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=256, vocab_size=300))


def gemma2() -> nn.Module:
    """Whose logits are more than its last layer: they are squashed into a range."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {**SIZES, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 300}
    return Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=0.5))


MAKERS = (llama, qwen2, gpt2, gemma2)


def made(maker: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = maker().eval()
    for weight in model.parameters():  # logits that differ between texts
        weight.data.mul_(3 if weight.ndim > 1 else 1)
    return model


def chatting() -> Any:
    """Has tokens for ``PERSON`` and ``NUMBER``, behind a space and without, but not for digits behind a space."""
    answers = [f"{before}{word}" for word in WORDS for before in ("\n", " ", '"') for _ in range(99)]
    tokenizer = byte_tokenizer([*answers, *(text for text, _ in QUESTIONS)])
    tokenizer.chat_template = CHAT
    return tokenizer


def folder_of(root: Path, maker: Callable[[], nn.Module] = llama) -> Path:
    return save(root / "model", made(maker), chatting())


def plainly(model: nn.Module, tokenizer: Any, prompt: str, words: tuple[str, ...] = WORDS) -> Tensor:
    """What transformers says of one prompt: the logits of the words' first tokens, told without petm."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    first = [tokenizer(f" {word}")["input_ids"][0] for word in words]
    with torch.no_grad():
        return model(input_ids=ids).logits[0, -1, first]


def read(folder: Path, prompt: Prompt) -> Tokenizer:
    found = load_processor(folder, prompt=prompt)
    assert isinstance(found, Tokenizer)
    return found


def batch_of(encoder: Tokenizer, texts: list[str], root: Path) -> Fields:
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Tokenized(read_texts(root / "texts.jsonl", label_column=None), encoder).inputs(range(len(texts)))


def test_words_of_several_tokens_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path, MAKERS[0])
    ask(folder, PROMPT, WORDS)
    assert "several tokens" not in capsys.readouterr().err
    _, tokens = ask(folder, PROMPT, ("PERSON", "qx"))
    assert chatting().decode([tokens["qx"]]).strip() == "q"
    assert "'qx' by 'q'" in capsys.readouterr().err


@pytest.mark.parametrize("maker", MAKERS)
def test_logits_are_those_of_transformers_one_text_at_a_time(tmp_path: Path, maker: Callable[[], nn.Module]) -> None:
    folder, whole, tokenizer = folder_of(tmp_path, maker), made(maker), chatting()
    prompt, tokens = ask(folder, PROMPT, WORDS)
    model = load_model(f"hf:{folder}", arguments={"label_words": tokens})
    texts = [text for text, _ in QUESTIONS[3:11]]
    expected = torch.stack([plainly(whole, tokenizer, f"Question: {text}\nKind:") for text in texts])
    assert expected.std(0).min() > 1e-3  # they tell texts apart
    x = batch_of(read(folder, prompt), texts, tmp_path)
    assert not x["attention_mask"][:, 0].all()
    assert x["attention_mask"][:, -1].all()  # padded, on the left
    padding = (x["attention_mask"] == 0).sum(1).tolist()
    right = x.map(lambda each: torch.stack([row.roll(-n) for row, n in zip(each, padding, strict=True)]))
    with torch.no_grad():
        for batch in (x, right):
            torch.testing.assert_close(model(**batch), expected, atol=1e-4, rtol=0)
        alone = torch.cat([model(**x[row].cut(slice(n, None))) for row, n in enumerate(padding)])
        torch.testing.assert_close(alone, expected, atol=1e-4, rtol=0)
    assert model.config.id2label == dict(enumerate(WORDS))


def test_the_users_own_model_stays_as_it_is_and_lends_its_modules() -> None:
    whole = made(llama)
    before, layers = weights_fingerprint(whole), dict(whole.named_modules())
    model = LabelWords(whole, {"a": 5, "b": 7})
    assert weights_fingerprint(whole) == before
    assert dict(whole.named_modules()) == layers
    assert model.model.model is whole.model
    assert whole(input_ids=torch.tensor([[5, 6]])).logits.shape == (1, 2, 300)
    assert weights_fingerprint(LabelWords(whole, {"a": 7, "b": 5})) != weights_fingerprint(model)


def test_weights_are_saved_and_read_with_the_rows_of_the_words_alone(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    how: Any = {"arguments": {"label_words": {"a": 5, "b": 7}}}
    model = load_model(f"hf:{folder}", **how)
    with torch.no_grad():
        model.get_parameter("model.lm_head.rows.weight").mul_(2)
    save_weights(model, tmp_path / "w.safetensors")
    again = load_model(f"hf:{folder}", tmp_path / "w.safetensors", **how)
    assert again.get_parameter("model.lm_head.rows.weight").shape == (2, 32)
    assert weights_fingerprint(again) == weights_fingerprint(model)


@pytest.mark.parametrize("maker", MAKERS)
def test_one_pass_separates_at_the_adapted_block_and_features_are_cached(
    tmp_path: Path, maker: Callable[[], nn.Module]
) -> None:
    folder = folder_of(tmp_path, maker)
    prompt, tokens = ask(folder, PROMPT, WORDS)
    model, encoder = load_model(f"hf:{folder}", arguments={"label_words": tokens}), read(folder, prompt)
    x = batch_of(encoder, [text for text, _ in QUESTIONS[3:11]], tmp_path)
    layers = [name for name, module in model.named_modules() if name.endswith((".1.mlp.down_proj", ".1.mlp.c_proj"))]
    adapted = attach_adapter(model, dict.fromkeys(layers, 4))
    for weight in adapted.adapter.parameters():
        nn.init.normal_(weight, std=0.2)
    split = split_point_of(adapted, x)
    assert split.kind == BEFORE
    assert split.module.endswith(".1")  # the block, as its input is added to what the layer gives
    with torch.no_grad():
        both = adapted.run(OnePass(len(x), split, adapted.members), x, rows=2 * len(x))
        apart = torch.cat((adapted.run(Pass(adapter=""), x), adapted(x)))
        torch.testing.assert_close(both, apart, atol=1e-4, rtol=0)
        assert not torch.allclose(both[:8], both[8:], atol=1e-2)
        _, student = prepare_student(adapted, x, 1 << 30)
        assert student is not None
        torch.testing.assert_close(student(student.rows(x)), adapted(x), atol=1e-4, rtol=1e-4)


def test_the_probe_finds_a_plain_classifier(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, gpt2)
    prompt, tokens = ask(folder, PROMPT, WORDS)
    (tmp_path / "texts.csv").write_text("text\n" + "\n".join(f'"{text}"' for text, _ in QUESTIONS[:12]))
    data = Tokenized(read_texts(tmp_path / "texts.csv", label_column=None), read(folder, prompt))
    assert not probe(load_model(f"hf:{folder}", arguments={"label_words": tokens}), data).by_length


def test_the_text_is_shortened_and_never_the_question() -> None:
    tokenizer = byte_tokenizer()
    asked = Prompting(tokenizer, Prompt.of("Question: {text}\nKind:"))
    long = "Who met Galileo in Paris , and who did not ? " * 20
    whole = tokenizer(f"Question: {long}\nKind:")["input_ids"]
    for limit in (40, 101, len(whole) - 1):
        (ids,) = asked.encode([long], limit)["input_ids"]
        said = tokenizer.decode(ids)
        assert limit - 3 <= len(ids) <= limit
        assert said.startswith("Question: Who met")
        assert said.endswith("\nKind:")
        assert long.startswith(said.removeprefix("Question: ").removesuffix("\nKind:"))
    assert asked.encode([long], len(whole))["input_ids"] == asked.encode([long], None)["input_ids"] == [whole]
    with pytest.raises(ArgumentError, match=r"template: .*--length"):
        asked.encode([long], 5)


def test_a_special_token_in_a_text_is_text() -> None:
    asked = Prompting(chatting(), Prompt.of("{text} Kind?", chat=True))
    (ids,) = asked.encode(["Who<|endoftext|>assistant\nNUMBER"], None)["input_ids"]
    assert (ids[0], ids.count(0)) == (0, 1)  # the template's own alone


def test_other_columns_stand_in_the_prompt(tmp_path: Path) -> None:
    prompt = Prompt.of("{title}: {text} {title}?")
    assert prompt.columns == ("title",)
    (tmp_path / "a.csv").write_text('review,title,label\n"Good, {title}",Film,0\nBad,Book,1\n')
    texts = read_texts(tmp_path / "a.csv", text_column=("review", *prompt.columns))
    asked = Prompting(tokenizer := byte_tokenizer(), prompt)
    found = [tokenizer.decode(ids) for ids in asked.encode(texts.texts.to_pylist(), None)["input_ids"]]
    assert found == ["Film: Good, {title} Film?", "Book: Bad Book?"]
    with pytest.raises(DataError, match="title"):
        asked.encode(["Bad"], None)


@pytest.mark.parametrize(
    ("template", "chat", "end", "between"),
    [
        ("{text} Kind:", False, "", " "),
        ("{text} Kind: ", False, "", " "),
        ("{text}\nKind:\n", False, "", ""),
        ('{text} Kind: "', False, "", ""),
        ("{text}", True, "", ""),
    ],
)
def test_label_words_follow_with_or_without_a_space(template: str, chat: bool, end: str, between: str) -> None:
    tokenizer = chatting()
    prompt, tokens = resolve(tokenizer, Prompt.of(template, chat=chat), WORDS)
    first = [tokenizer(between + word)["input_ids"][0] for word in WORDS]
    assert (prompt.end, list(tokens.items())) == (end, list(zip(WORDS, first, strict=True)))


def test_a_space_that_is_a_token_of_its_own_belongs_to_the_prompt() -> None:
    tokenizer = byte_tokenizer()
    prompt, tokens = resolve(tokenizer, Prompt.of("{text} Stars:"), ("1", "2"))
    assert prompt.end == " "
    assert list(tokens.values()) == [tokenizer.convert_tokens_to_ids(word) for word in ("1", "2")]
    (ids,) = Prompting(tokenizer, prompt).encode(["Who"], None)["input_ids"]
    assert ids == tokenizer("Who Stars: ")["input_ids"]


@pytest.mark.parametrize("words", [("PERSON",), ("PERSON", "PERSON "), ("Who", "Whose"), ("PERSON", "")])
def test_label_words_that_cannot_be_told_apart_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ArgumentError, match="label_words"):
        resolve(byte_tokenizer(), PROMPT, words)


def test_a_label_word_outside_the_vocabulary_is_refused() -> None:
    tokenizer = word_tokenizer()
    assert set(resolve(tokenizer, Prompt.of("{text} ?"), ("Paris", "Rome"))[1]) == {"Paris", "Rome"}  # before its [SEP]
    with pytest.raises(ArgumentError, match=r"label_words: .*'Berlin'"):
        resolve(tokenizer, Prompt.of("{text} ?"), ("Paris", "Berlin"))


def test_bad_prompts_and_folders_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    with pytest.raises(ArgumentError, match=r"template: .*\{text\}"):
        Prompt.of("Kind of {Text}?")
    with pytest.raises(ArgumentError, match="template"):
        Prompt.of("{text}\x1b[2J")
    with pytest.raises(ArgumentError, match="chat"):
        resolve(byte_tokenizer(), Prompt.of("{text}", chat=True), WORDS)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM.*--label-words"):
        load_model(f"hf:{folder}")
    with pytest.raises(ModelError, match="label_words"):
        load_model(f"hf:{folder}", arguments={"label_words": {"a": 1, "b": 300}})
    with pytest.raises(ModelError, match="arguments"):
        load_model(f"hf:{folder}", arguments={"words": 1})
    save(tmp_path / "bert", bert(), word_tokenizer())
    with pytest.raises(ModelError, match="BertForSequenceClassification"):
        load_model(f"hf:{tmp_path / 'bert'}", arguments={"label_words": {"a": 1, "b": 2}})
    with pytest.raises(ModelError, match="Linear"):
        LabelWords(nn.Linear(2, 2), {"a": 0, "b": 1})


def test_logits_that_the_last_layer_alone_does_not_make_are_refused() -> None:
    class Ranked(type(made(llama))):  # type: ignore[misc]
        def forward(self, *arguments: Any, **named: Any) -> Any:
            output = super().forward(*arguments, **named)
            output.logits = output.logits - output.logits.amax(-1, keepdim=True)  # over all words
            return output

    model = made(llama)
    model.__class__ = Ranked
    with pytest.raises(ModelError, match="Ranked"):
        LabelWords(model, {"a": 5, "b": 7})


def test_a_prompt_of_one_text_is_told_how_it_is_made() -> None:
    broken: Any = "What is {text}?"
    with pytest.raises(ArgumentError, match=r"^lines: expected a tuple of lines, got str .*Prompt\.of"):
        Prompt(broken)
