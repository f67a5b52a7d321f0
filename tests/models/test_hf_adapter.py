"""LoRA classifiers as PEFT saves them: base, adapter and last layer as one base model, against PEFT's own logits."""

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

import hf_folders
from hf_folders import trained_adapter
from petm.adapter.layer_choice import choose_layers
from petm.adapter.lora import adaptable_layers
from petm.adapter.model import ONE, attach_adapter
from petm.adapter.one_pass import dual_logits
from petm.adapter.peft_folder import adopt_adapter
from petm.data.fields import Fields, Inputs
from petm.errors import BundleError, ExtraError, ModelError
from petm.models.hf_classifier import read_classes
from petm.models.hf_processors import ImageProcessor, load_processor
from petm.models.hf_tokenizer import Tokenizer
from petm.models.loading import call_model, load_model, weights_fingerprint

pytestmark = pytest.mark.usefixtures("no_network")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
WORDS = {"vocab_size": 64, "max_position_embeddings": 42, "pad_token_id": 0}


def made(kind: str) -> tuple[nn.Module, dict[str, Any]]:
    """A tiny base model, most of them without a last layer for the classes, and the settings of an adapter."""
    import transformers as hf

    torch.manual_seed(0)
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 64}
    if kind == "bert":
        return hf_folders.bert(("a", "b")), {"target_modules": ["query", "value"]}
    if kind == "distilbert":
        return hf.DistilBertForMaskedLM(hf.DistilBertConfig(**sizes)), {"target_modules": ["q_lin"]}
    if kind == "roberta":
        return hf.RobertaForMaskedLM(hf.RobertaConfig(**SIZES, **WORDS)), {"target_modules": ["query"]}
    if kind == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, **WORDS)), {"target_modules": "all-linear"}
    if kind == "qwen2":
        config = hf.Qwen2Config(**SIZES, **WORDS, num_key_value_heads=2)
        return hf.Qwen2ForCausalLM(config), {"target_modules": r".*\.(q|v)_proj"}
    config = hf.ViTConfig(**SIZES, image_size=16, patch_size=4)
    return hf.ViTModel(config), {"target_modules": ["q_proj"], "modules_to_save": ["classifier"], "task_type": None}


def samples(kind: str = "") -> Inputs:
    torch.manual_seed(2)
    if kind == "vit":
        return torch.randn(3, 3, 16, 16)
    return Fields({"input_ids": torch.randint(4, 60, (3, 7)), "attention_mask": torch.ones(3, 7, dtype=torch.long)})


def by_peft(tuned: PeftModel, x: Inputs) -> torch.Tensor:
    with torch.no_grad():
        return (tuned(**x) if isinstance(x, Fields) else tuned(x)).logits


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "llama", "qwen2", "vit"])
def test_it_answers_as_peft_does_to_the_bit_and_takes_a_second_opinion(tmp_path: Path, kind: str) -> None:
    base, settings = made(kind)
    tuned, x = trained_adapter(tmp_path / "adapter", base, **settings), samples(kind)
    expected = by_peft(tuned, x)
    assert expected.shape == (3, 3)
    assert read_classes(tmp_path / "adapter") == (3, ())
    model = load_model(f"hf:{tmp_path / 'adapter'}")
    ranks = choose_layers(model, x, ONE, max_ratio=None, max_extra_parameters=0.5).ranks
    assert not [name for name in ranks if "lora_" in name or "base_layer" in name or "original" in name]
    adapted = attach_adapter(model, ranks)
    for layer in ranks:
        nn.init.normal_(adapted.adapter.layer("default", layer).lora_B.weight, std=0.1)
    with torch.no_grad():
        assert torch.equal(call_model(model, x), expected)
        assert torch.equal(adapted(x, alpha=0.0), expected)
        both = dual_logits(adapted, x)
        torch.testing.assert_close(both.base, expected)
        torch.testing.assert_close(both.second, adapted(x))
    assert not torch.allclose(both.second, both.base)
    adapted.detach()


def test_a_second_opinion_adds_to_the_whole_output_of_pefts_layer(tmp_path: Path) -> None:
    trained_adapter(tmp_path / "adapter", hf_folders.bert(), target_modules=["query"])
    model, x = load_model(f"hf:{tmp_path / 'adapter'}"), torch.randn(2, 5, 32)
    name = "bert.encoder.layer.0.attention.self.query"
    layer: Any = model.get_submodule(name)
    lora = attach_adapter(model, {name: 2}).adapter.layer("default", name)
    nn.init.normal_(lora.lora_B.weight)
    pefts = layer.lora_B["default"](layer.lora_A["default"](x)) * layer.scaling["default"]
    expected = layer.base_layer(x) + pefts + lora.lora_B(lora.lora_A(x))
    torch.testing.assert_close(layer(x) + lora(x), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True, "lora_alpha": 16},
        {"rank_pattern": {"query": 2, "layer.1.*.value": 3}, "alpha_pattern": {"layer.0.*.query": 32}},
        {"layers_to_transform": [1], "layers_pattern": "layer"},
        {"target_modules": r"bert\.encoder\.layer\.1\..*(query|dense)", "exclude_modules": ["output.dense"]},
        {"use_dora": True},
        {"bias": "all"},
        {"target_modules": ["word_embeddings", "query"]},
        {"modules_to_save": ["pooler"]},
        {"modules_to_save": ["score"]},
        {"bias": "lora_only"},
        {"init_lora_weights": "gaussian"},
        {"lora_bias": True},
        {"trainable_token_indices": [5, 6]},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_each_setting_that_is_read_gives_pefts_own_logits(tmp_path: Path, settings: dict[str, Any]) -> None:
    tuned = trained_adapter(
        tmp_path / "adapter", hf_folders.bert(), **{"target_modules": ["query", "value"], **settings}
    )
    expected = by_peft(tuned, samples())
    assert torch.equal(call_model(load_model(f"hf:{tmp_path / 'adapter'}"), samples()), expected)
    base = load_model(f"hf:{tmp_path / 'base'}")
    if beyond := settings.keys() & {"bias", "use_dora", "trainable_token_indices"}:  # more than W0 + alpha * B A
        with pytest.raises(BundleError, match=f"{beyond.pop()} = "):
            adopt_adapter(base, tmp_path / "adapter")
    else:
        with torch.no_grad():
            torch.testing.assert_close(adopt_adapter(base, tmp_path / "adapter")(samples()), expected)


def test_its_base_is_found_beside_it_or_by_its_name(tmp_path: Path) -> None:
    tuned = trained_adapter(tmp_path / "adapter", hf_folders.bert(), target_modules=["query"])
    change(tmp_path / "adapter", base_model_name_or_path="base")
    expected = by_peft(tuned, samples())
    assert torch.equal(call_model(load_model(f"hf:{tmp_path / 'adapter'}"), samples()), expected)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"^base: expected"):
        load_model(f"hf:{tmp_path / 'adapter'}")
    for base in ("moved", tmp_path / "moved"):
        assert torch.equal(call_model(load_model(f"hf:{tmp_path / 'adapter'}", base=base), samples()), expected)


def test_names_of_classes_are_those_of_a_base_with_as_many(tmp_path: Path) -> None:
    trained_adapter(tmp_path / "adapter", hf_folders.bert(), target_modules=["query"])
    assert read_classes(tmp_path / "adapter") == (3, hf_folders.KINDS)


def test_its_scales_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    trained_adapter(tmp_path / "adapter", hf_folders.bert(), target_modules=["query"])
    before = weights_fingerprint(load_model(f"hf:{tmp_path / 'adapter'}"))
    assert weights_fingerprint(load_model(f"hf:{tmp_path / 'adapter'}")) == before
    change(tmp_path / "adapter", lora_alpha=64)
    assert weights_fingerprint(load_model(f"hf:{tmp_path / 'adapter'}")) != before


def test_its_tokenizer_or_image_processor_is_its_own_or_that_of_its_base(tmp_path: Path) -> None:
    trained_adapter(tmp_path / "adapter", hf_folders.bert(), target_modules=["query"])
    hf_folders.save(tmp_path / "base", hf_folders.word_tokenizer())
    of_base = load_processor(tmp_path / "adapter")
    hf_folders.save(tmp_path / "adapter", hf_folders.word_tokenizer(["Who ?"]))
    own = load_processor(tmp_path / "adapter")
    assert isinstance(own, Tokenizer)
    assert isinstance(of_base, Tokenizer)
    assert own.fingerprint != of_base.fingerprint
    assert own.maximum == of_base.maximum == 40  # the base model's positions
    base, settings = made("vit")
    trained_adapter(tmp_path / "images" / "adapter", base, **settings)
    hf_folders.save(tmp_path / "images" / "base", hf_folders.image_processor())
    assert isinstance(load_processor(tmp_path / "images" / "adapter"), ImageProcessor)


def test_layers_that_peft_bypasses_cannot_have_an_adapter() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"])
    with warnings.catch_warnings(action="ignore"):
        tuned = get_peft_model(hf_folders.bert(), config)
    head = "base_model.model.classifier"
    assert [name for name in adaptable_layers(tuned) if name.startswith(head)] == [f"{head}.modules_to_save.default"]


def change(folder: Path, **settings: Any) -> None:
    """Changes settings of an adapter."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def change_tensors(folder: Path, function: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    held = load_file(folder / "adapter_model.safetensors")
    function(held)
    save_file(held, folder / "adapter_model.safetensors")


def without_head(folder: Path) -> None:
    change_tensors(folder, lambda held: [held.pop(name) for name in list(held) if "classifier" in name])


def of_more_layers(folder: Path) -> None:
    hf_folders.save(folder.parent / "base", hf_folders.bert(num_hidden_layers=1))


def of_another_kind(folder: Path) -> None:
    shutil.rmtree(folder.parent / "base")
    hf_folders.save(folder.parent / "base", hf_folders.gpt2())


def of_other_widths(folder: Path) -> None:
    hf_folders.save(folder.parent / "base", hf_folders.bert(hidden_size=48))


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def without_pooler(folder: Path) -> None:
    path = folder.parent / "base" / "model.safetensors"
    held = load_file(path)
    save_file({name: tensor for name, tensor in held.items() if "pooler" not in name}, path, {"format": "pt"})


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no head for its classes": (without_head, r"classifier\.(bias|weight) is missing"),
    "random in base and adapter": (without_pooler, r"bert\.pooler\.dense\.bias is missing here and in the adapter"),
    "a base of fewer layers": (of_more_layers, r"layer\.1\.\S+ is not in the model"),
    "a base of another kind": (of_another_kind, r"query\.lora_A\.weight is not in the model"),
    "a base of other widths": (of_other_widths, r"is \(\d+, 32\) in the file and \(\d+, 48\) in the model"),
    "pickle": (pickled, r"adapter_model\.bin, a pickle"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no such file"),
    "damaged weights": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 99), "^model: "),
    "another method": (lambda folder: change(folder, peft_type="IA3"), "peft_type = 'IA3'"),
    "another task": (lambda folder: change(folder, task_type="CAUSAL_LM"), "task_type = 'CAUSAL_LM'"),
    "changed base weights": (lambda folder: change(folder, init_lora_weights="pissa"), "init_lora_weights = 'pissa'"),
    "a module to import": (lambda folder: change(folder, megatron_config={"a": 1}), "megatron_config"),
    "a setting of the future": (lambda folder: change(folder, of_2030=True), "of_2030 = True"),
    "a hanging pattern": (lambda folder: change(folder, target_modules="((a+)+)+b"), "target_modules"),
    "a hanging list": (lambda folder: change(folder, exclude_modules=["((a+)+)+b"]), "exclude_modules"),
    "a vast rank": (lambda folder: change(folder, r=10**9), "ranks"),
    "no rank": (lambda folder: change(folder, r="8"), "ranks"),
    "layers that are not there": (lambda folder: change(folder, target_modules=["q_proj"]), "target_modules"),
    "another base": (
        lambda folder: change(folder, base_model_name_or_path="owner/name"),
        "^base: expected.*owner/name",
    ),
    "a base that is no text": (lambda folder: change(folder, base_model_name_or_path=["a"]), "^base: expected"),
    "a base with a long name": (lambda folder: change(folder, base_model_name_or_path="a" * 5000), "^base: expected"),
    "no settings": (lambda folder: (folder / "adapter_config.json").write_text("[]"), "^model: expected"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of three classes on a base with two."""
    root = tmp_path_factory.mktemp("whole")
    trained_adapter(root / "adapter", hf_folders.bert(("a", "b")), target_modules=["query", "value"])
    change(root / "adapter", base_model_name_or_path="base")
    return root


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_in_one_line(whole: Path, tmp_path: Path, fault: str) -> None:
    folder = shutil.copytree(whole, tmp_path / "whole") / "adapter"
    spoil, message = FAULTS[fault]
    spoil(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(f"hf:{folder}")
    assert "\n" not in str(caught.value)


def test_a_missing_extra_is_named(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ExtraError, match=r"^hf: expected peft.*petm\[hf\]"):
        load_model(f"hf:{whole / 'adapter'}")


def test_a_base_beside_a_model_that_needs_none_is_refused(whole: Path) -> None:
    for reference in (f"hf:{whole / 'base'}", "petm.models:PaperCNN"):
        with pytest.raises(ModelError, match=r"^base: expected none"):
            load_model(reference, base=whole / "base")
