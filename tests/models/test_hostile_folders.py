"""Hugging Face folders and files of weights of strangers: right, or one line before anything large is allocated."""

import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import hf_folders
from petm.errors import ModelError
from petm.models.hf_classifier import load_classifier
from petm.models.hf_processors import load_processor
from petm.models.hf_tokenizer import Tokenizer
from petm.models.loading import load_weights, read_weights


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("folders")
    hf_folders.save(place / "bert", hf_folders.bert(), hf_folders.word_tokenizer())
    hf_folders.save(place / "vit", hf_folders.vit(), hf_folders.image_processor())
    return place


@pytest.fixture
def bert(folders: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders / "bert", tmp_path / "bert"))


@pytest.fixture
def vit(folders: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders / "vit", tmp_path / "vit"))


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "max_position_embeddings", "intermediate_size"])
def test_a_model_larger_than_its_weights_is_not_built(bert: Path, name: str) -> None:
    change(bert / "config.json", **{name: 10**6})  # as 10**9, which no machine could build before it is refused
    with pytest.raises(ModelError, match=r"model: expected weights of the size that config.json says .* got .* bytes"):
        load_classifier(bert)


def test_an_image_model_larger_than_its_weights_is_not_built(vit: Path) -> None:
    change(vit / "config.json", image_size=10**4)
    with pytest.raises(ModelError, match="model: expected weights of the size"):
        load_classifier(vit)


def test_architectures_are_named_whatever_they_are(bert: Path) -> None:
    change(bert / "config.json", architectures=[3])
    with pytest.raises(ModelError, match=r"expected an image, sequence or audio classifier in .*, got 3 in its config"):
        load_classifier(bert)


@pytest.mark.parametrize("named", ["../elsewhere.safetensors", "/dev/zero", "absent.safetensors", 3, ["a"]])
def test_an_index_names_files_of_its_folder(bert: Path, named: Any) -> None:
    shutil.copy(bert / "model.safetensors", bert.parent / "elsewhere.safetensors")
    (bert / "model.safetensors").rename(bert / "model-00001-of-00001.safetensors")
    index = bert / "model.safetensors.index.json"
    names = load_file(bert / "model-00001-of-00001.safetensors")
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")})
    )
    load_classifier(bert)
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, named)}))
    with pytest.raises(ModelError, match=r"model: expected model.safetensors.index.json to name files of weights"):
        load_classifier(bert)


def test_whole_numbers_are_no_weights_in_floats(bert: Path) -> None:
    state = load_file(bert / "model.safetensors")
    state["classifier.weight"] = state["classifier.weight"].to(torch.int8)
    save_file(state, bert / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"classifier.weight is I8 in the file and floats in the model"):
        load_classifier(bert)


def test_an_adapter_beside_the_model_is_not_loaded_with_it(bert: Path) -> None:
    (bert / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "/", "r": 1000000000}')
    with pytest.raises(ModelError, match="model: expected a model without an adapter of PEFT"):
        load_classifier(bert)


def test_a_text_beside_the_weights_has_a_bound(bert: Path) -> None:
    with (bert / "tokenizer.json").open("r+b") as file:
        file.truncate(1 << 30)
    for load in (load_classifier, load_processor):
        with pytest.raises(ModelError, match=r"model: expected at most .* bytes of tokenizer.json"):
            load(bert)


@pytest.mark.parametrize("limit", ["many", 2.5, [512]])
def test_the_most_tokens_are_a_whole_number(bert: Path, limit: Any) -> None:
    change(bert / "tokenizer_config.json", model_max_length=limit)
    with pytest.raises(ModelError, match=r"model: expected a whole number of tokens at most"):
        load_processor(bert)


@pytest.mark.parametrize(("limit", "expected"), [(12.0, 12), (1e30, 40), (10**30, 40), (-1, 40)])
def test_the_most_tokens_as_they_are_written(bert: Path, limit: Any, expected: int) -> None:
    change(bert / "tokenizer_config.json", model_max_length=limit)
    tokenizer = load_processor(bert)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.maximum == expected


def test_a_pattern_that_takes_too_long(bert: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    change(bert / "tokenizer.json", pre_tokenizer=split)
    tokenizer = load_processor(bert)
    assert isinstance(tokenizer, Tokenizer)
    with pytest.raises(ModelError, match=r"model: expected a tokenizer that can take the texts, got: "):
        tokenizer.encode(["x" * 60], 40)


@pytest.mark.parametrize(
    "entries",
    [
        {"size": {"height": 20_000, "width": 20_000}},
        {"size": 10**9},
        {"size": {"shortest_edge": 1e9}},
        {"do_center_crop": True, "crop_size": {"height": 10**6, "width": 10**6}},
        {"size": {"height": -1, "width": 16}},
        {"image_mean": [0.5]},
        {"image_mean": float("nan")},
        {"image_std": [0, 0, 0]},
        {"image_std": 0, "image_mean": 0},
        {"rescale_factor": 0},
        {"rescale_factor": 1e300},
    ],
)
def test_an_image_processor_outside_all_bounds(vit: Path, entries: dict[str, Any]) -> None:
    change(vit / "preprocessor_config.json", **entries)
    with pytest.raises(ModelError) as caught:
        load_processor(vit)
    assert len(str(caught.value).splitlines()) == 1
    assert "MemoryError" not in str(caught.value)


# files of weights


def test_weights_of_another_kind_of_numbers(tmp_path: Path) -> None:
    model, path = nn.Linear(4, 2), tmp_path / "w.pt"
    before = model.weight.clone()
    for strange in (
        torch.ones(2, 4, dtype=torch.int8),
        torch.ones(2, 4, dtype=torch.complex64),
        torch.ones(2, 4).to_sparse(),
        torch.empty(2, 4, device="meta"),
    ):
        torch.save({"weight": strange, "bias": torch.zeros(2)}, path)
        with pytest.raises(ModelError, match=r"weights: .* weight is of .* in the file and of floats in the model"):
            load_weights(model, path)
    assert torch.equal(model.weight, before)
    torch.save({"weight": torch.ones(2, 4, dtype=torch.float16), "bias": torch.zeros(2)}, path)
    load_weights(model, path)
    assert torch.equal(model.weight, torch.ones(2, 4))


def test_an_archive_of_weights_that_is_packed(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as old, zipfile.ZipFile(tmp_path / "w.pt", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ModelError, match=r"weights: .* bytes packed into"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("length", [1 << 30, 99_999_999, 1 << 62])
def test_a_list_of_tensors_of_any_length(tmp_path: Path, length: int) -> None:
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(ModelError, match=rf"not a whole safetensors file \(a list of tensors of {length:,} bytes\)"):
        read_weights(tmp_path / "w.safetensors")
