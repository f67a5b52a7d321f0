"""Adapters that PEFT has made: taken as second opinions, calibrated, saved, and read back by PEFT."""

import copy
import json
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from networks import ResidualNet, TinyCNN, images, seeded, snapshot
from petm.adapter.one_pass import dual_logits
from petm.adapter.peft_folder import adopt_adapter, load_adapter, save_adapter
from petm.cli import main
from petm.data.base import Data, TensorData
from petm.data.fields import Fields
from petm.errors import BundleError, PetmWarning
from petm.fitting import fit_adopted
from petm.grading.grader import RECALL, fit_grader, load
from petm.grading.manifest import read_manifest
from petm.models.loading import save_weights
from petm.selective.targets import Coverage

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora_alpha": {"r": 3, "lora_alpha": 16, "target_modules": ["fc1"]},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["conv2", "fc1"]},
    "dropout": {"r": 2, "lora_alpha": 8, "lora_dropout": 0.4, "target_modules": ["fc2"]},
    "several ranks": {
        "r": 2,
        "lora_alpha": 6,
        "rank_pattern": {"fc1": 5},
        "alpha_pattern": {"conv2": 7},
        "target_modules": ["conv2", "fc1", "fc2"],
    },
    "a pattern": {"r": 2, "target_modules": r"fc\d", "exclude_modules": ["fc2"]},
    "initial values": {"r": 2, "target_modules": ["fc1"], "init_lora_weights": "gaussian"},
    "no initial values": {"r": 2, "target_modules": ["fc1"], "init_lora_weights": False},
    "orthogonal": {"r": 2, "target_modules": ["fc1"], "init_lora_weights": "orthogonal"},
}
SCALES = {"lora_alpha": {"fc1": 16 / 3}, "rslora": {"conv2": 4, "fc1": 4}, "dropout": {"fc2": 4}}
SCALES["several ranks"] = {"conv2": 7 / 2, "fc1": 6 / 5, "fc2": 3}
RANKS = {"several ranks": {"conv2": 2, "fc1": 5, "fc2": 2}, "a pattern": {"fc1": 2}}

ONLY = r"expected an adapter that adds to weights in layers of the model and nothing else, got one with "


def trained_by_peft(model: nn.Module, folder: Path, config: Any = None, **keywords: Any) -> PeftModel:
    """A copy of the base model under PEFT, whose adapter has some values, saved; in eval mode."""
    tuned = get_peft_model(copy.deepcopy(model), config or LoraConfig(**keywords))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in tuned.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    tuned.save_pretrained(str(folder), save_embedding_layers=False)  # else it asks the hub for the base by its name
    return tuned.eval()


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_trained_elsewhere_is_the_second_opinion(tmp_path: Path, kind: str) -> None:
    model = seeded(TinyCNN).eval()
    before = snapshot(model)
    peft = trained_by_peft(model, tmp_path, **ADAPTERS[kind])
    adapted, x = adopt_adapter(model, tmp_path), images(9)
    with torch.no_grad():
        expected = peft(x)
        assert not torch.allclose(expected, model(x), atol=0.01)
        torch.testing.assert_close(adapted(x), expected)
        assert torch.equal(adapted(x, alpha=0.0), model(x))
        both = dual_logits(adapted, x)
        torch.testing.assert_close(both.second, expected)
        torch.testing.assert_close(both.base, model(x))
    assert adapted.ranks == RANKS.get(kind, adapted.ranks)
    assert snapshot(model) == before


@pytest.mark.parametrize("kind", SCALES)
def test_its_strength_is_pefts_scale_times_alpha(tmp_path: Path, kind: str) -> None:
    model = seeded(TinyCNN).eval()
    trained_by_peft(model, tmp_path, **ADAPTERS[kind])
    state, explicit = load_file(tmp_path / "adapter_model.safetensors"), copy.deepcopy(model)
    with torch.no_grad():
        for layer, scale in SCALES[kind].items():
            A, B = (state[f"base_model.model.{layer}.lora_{side}.weight"] for side in "AB")
            explicit.get_submodule(layer).weight += 0.5 * scale * torch.einsum("or,r...->o...", B.flatten(1), A)
        torch.testing.assert_close(adopt_adapter(model, tmp_path)(images(9), alpha=0.5), explicit(images(9)))


@pytest.mark.parametrize("kind", ["lora_alpha", "rslora", "several ranks"])
def test_it_is_calibrated_saved_and_loaded_and_peft_loads_it_from_there(
    model: nn.Module, digits: tuple[Data, ...], tmp_path: Path, kind: str
) -> None:
    peft = trained_by_peft(model, tmp_path / "adapter", **ADAPTERS[kind])
    grader = fit_grader(adopt_adapter(model, tmp_path / "adapter"), digits[1], target=Coverage(0.8))
    grader.save(tmp_path / "g.petm")
    x = digits[2].inputs(range(200))
    expected, found = grader.grade(x), load(tmp_path / "g.petm", model).grade(x)
    np.testing.assert_array_equal(found.suspicion, expected.suspicion)
    np.testing.assert_array_equal(found.trusted, expected.trusted)
    again = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "g.petm")).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(x), peft(x))
        np.testing.assert_array_equal(expected.second, peft(x).argmax(1))


def test_by_default_nine_of_ten_errors_are_flagged(model: nn.Module, digits: tuple[Data, ...], tmp_path: Path) -> None:
    trained_by_peft(model, tmp_path, r=2, target_modules=["fc2"])
    grader = fit_adopted(model, tmp_path, digits[2]).grader
    grades = grader.grade(digits[2])
    wrong = grades.labels != digits[2].labels.numpy()
    flagged = (~grades.trusted)[wrong].mean()
    assert RECALL <= flagged < RECALL + 1 / wrong.sum() + 1e-9
    assert grader.origin.data.keys() == {"calibration"}
    x = digits[1].inputs(range(60))
    with torch.no_grad():
        labels = model(x).argmax(1)
    with pytest.warns(PetmWarning, match="calibration: expected some errors"):
        assert fit_adopted(model, tmp_path, TensorData(x, labels)).grader.target == Coverage(0.9)


# networks of transformers

OUTDATED = "ignore:`is_gradient_checkpointing`:FutureWarning"  # PEFT, of transformers


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
        initializer_range=0.5,
    )
    return transformers.BertForSequenceClassification(config).eval()


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=50,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        num_labels=3,
        initializer_range=0.5,
        pad_token_id=0,
    )
    return transformers.GPT2ForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def tokens() -> Data:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 50, (40, 7), generator=generator)
    return TensorData(Fields({"input_ids": ids, "attention_mask": torch.ones_like(ids)}), torch.arange(40) % 3)


@pytest.mark.filterwarnings(OUTDATED)
@pytest.mark.parametrize(
    ("make", "keywords"),
    [
        (bert, {"target_modules": ["query", "value"], "lora_dropout": 0.1}),
        (bert, {"target_modules": "all-linear", "exclude_modules": ["classifier"]}),
        (bert, {"target_modules": ["query", "word_embeddings"], "use_rslora": True}),
        (bert, {"target_modules": ["query"], "layers_to_transform": [1], "layers_pattern": "layer"}),
        (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "task_type": "FEATURE_EXTRACTION"}),
    ],
    ids=["query and value", "all linear", "an embedding", "one layer", "gpt2"],
)
def test_adapters_on_transformers(
    make: Callable[[], nn.Module], keywords: dict[str, Any], tokens: Data, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make()
    peft = trained_by_peft(model, tmp_path / "adapter", r=4, lora_alpha=16, **keywords)
    grader = fit_adopted(model, tmp_path / "adapter", tokens, target=Coverage(0.5), force=True).grader
    grader.save(tmp_path / "g.petm")
    again = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "g.petm")).eval()
    x = tokens.inputs(range(40))
    assert isinstance(x, Fields)
    with torch.no_grad():
        expected = peft(**x).logits
        assert not torch.allclose(expected, model(**x).logits, atol=0.01)
        both = dual_logits(load(tmp_path / "g.petm", model).adapted, x)
        torch.testing.assert_close(both.second, expected)
        torch.testing.assert_close(both.base, model(**x).logits)
        torch.testing.assert_close(again(**x).logits, expected)


@pytest.mark.filterwarnings(OUTDATED)
@pytest.mark.parametrize("lora_bias", [False, True])
def test_a_head_of_its_own_is_one_more_adapter_and_peft_loads_it_from_there(tmp_path: Path, lora_bias: bool) -> None:
    model = bert()
    how: dict[str, Any] = {"r": 2, "lora_alpha": 3, "target_modules": ["query"], "lora_bias": lora_bias}
    with warnings.catch_warnings(action="ignore"):  # PEFT takes the biases for tensors that are cut
        peft = trained_by_peft(model, tmp_path / "adapter", task_type="SEQ_CLS", **how)
    adapted = adopt_adapter(model, tmp_path / "adapter")
    assert adapted.ranks["classifier"] == 3
    x = {"input_ids": torch.arange(4, 16).reshape(2, 6)}
    with torch.no_grad():
        expected, plain = peft(**x).logits, model(**x).logits
    assert not torch.allclose(expected, plain)
    torch.testing.assert_close(adapted(x), expected)
    torch.testing.assert_close(dual_logits(adapted, Fields(x)).second, expected)
    assert torch.equal(adapted(x, alpha=0.0), plain)
    save_adapter(adapted, tmp_path)
    with warnings.catch_warnings(action="ignore"):
        again = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path)).eval()
    torch.testing.assert_close(load_adapter(model, tmp_path)(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(again(**x).logits, expected)


def test_a_head_wider_than_its_input_is_one_more_adapter(tmp_path: Path) -> None:
    model = nn.Sequential(OrderedDict(body=nn.Linear(3, 4), head=nn.Linear(4, 7, bias=False))).eval()
    peft = trained_by_peft(model, tmp_path, r=1, target_modules=["body"], modules_to_save=["head"])
    x = torch.randn(5, 3)
    torch.testing.assert_close(adopt_adapter(model, tmp_path)(x), peft(x))


# refusals


def no_layer_of_a(folder: Path, model: nn.Module) -> None:
    trained_by_peft(seeded(ResidualNet), folder, r=2, target_modules=["fc"])


def other_layers_besides(folder: Path, model: nn.Module) -> None:
    trained_by_peft(seeded(ResidualNet), folder, r=2, target_modules=["fc", "conv1"])


def another_shape(folder: Path, model: nn.Module) -> None:
    wider = nn.Module()
    wider.fc1 = nn.Linear(80, 16)
    trained_by_peft(wider, folder, r=2, target_modules=["fc1"])


def a_pickle(folder: Path, model: nn.Module) -> None:
    tuned = trained_by_peft(model, folder, r=2, target_modules=["fc1"])
    state = {name: tensor for name, tensor in tuned.state_dict().items() if "lora_" in name}
    (folder / "adapter_model.safetensors").unlink()
    torch.save(state, folder / "adapter_model.bin")


def no_weights(folder: Path, model: nn.Module) -> None:
    trained_by_peft(model, folder, r=2, target_modules=["fc1"])
    (folder / "adapter_model.safetensors").unlink()


def damaged_weights(folder: Path, model: nn.Module) -> None:
    trained_by_peft(model, folder, r=2, target_modules=["fc1"])
    (folder / "adapter_model.safetensors").write_bytes(b"damaged")


def another_method(folder: Path, model: nn.Module) -> None:
    trained_by_peft(model, folder, LoHaConfig(r=2, target_modules=["fc1"]))


def a_dilated_convolution(folder: Path, model: nn.Module) -> None:
    model.conv1 = nn.Conv2d(1, 6, 3, stride=3, dilation=2)
    trained_by_peft(model, folder, r=2, target_modules=["conv1"])


def without_its_head(folder: Path, model: nn.Module) -> None:
    trained_by_peft(model, folder, r=2, target_modules=["fc1"], modules_to_save=["fc2"])
    held = load_file(folder / "adapter_model.safetensors")
    save_file({key: tensor for key, tensor in held.items() if "fc2" not in key}, folder / "adapter_model.safetensors")


def lora_with(**keywords: Any) -> Callable[[Path, nn.Module], None]:
    return lambda folder, model: trained_by_peft(model, folder, r=2, target_modules=["fc1"], **keywords) and None


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's, on what it finds strange
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lora_with(use_dora=True), ONLY + r"use_dora = True\. Train it without"),
        (lora_with(bias="all"), ONLY + r"bias = 'all'"),
        (lora_with(bias="lora_only"), ONLY + r"bias = 'lora_only'"),
        (lora_with(modules_to_save=["conv1"]), "conv1 of its own, which is no linear layer"),
        (without_its_head, r"fc2\.weight of shape none where \(10, \d+\) fits"),
        (lora_with(init_lora_weights="pissa"), ONLY + r"init_lora_weights = 'pissa'"),
        (lora_with(init_lora_weights="olora"), ONLY + r"init_lora_weights = 'olora'"),
        (another_method, r"expected an adapter of type LORA, got LOHA\. Train LoRA\."),
        (no_layer_of_a, r"expected a LoRA adapter that fits the model, got one of other layers \(fc\)"),
        (
            other_layers_besides,
            r"expected a LoRA adapter that fits the model, got one of other layers \(block",
        ),
        (another_shape, r"expected a LoRA adapter that fits the model, got "),
        (a_dilated_convolution, r"expected an adapter on layers to which PEFT adds a low-rank product, got conv1"),
        (a_pickle, r"expected adapter_model.safetensors, got adapter_model.bin, a pickle\. .* safe_serialization=True"),
        (no_weights, r"expected adapter_model.safetensors, got no such file\."),
        (damaged_weights, r"expected a LoRA adapter that fits the model, got "),
    ],
)
def test_what_is_refused(tmp_path: Path, make: Callable[[Path, nn.Module], None], message: str) -> None:
    model = seeded(TinyCNN).eval()
    make(tmp_path, model)
    before = snapshot(model)
    with pytest.raises(BundleError, match=message) as raised:
        adopt_adapter(model, tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}: ")
    assert "\n" not in str(raised.value)
    assert snapshot(model) == before


def test_folders_that_hold_no_adapter(tmp_path: Path) -> None:
    model, config = seeded(TinyCNN), tmp_path / "adapter_config.json"
    with pytest.raises(
        BundleError, match=r"expected an adapter that PEFT has saved, got no adapter_config\.json in it"
    ):
        adopt_adapter(model, tmp_path)
    for text, message in (
        ("{", r"expected a readable adapter_config\.json, got a damaged one"),
        ("[]", r"expected an object in adapter_config\.json, got list"),
        ("{}", r"expected an adapter of type LORA, got None"),
        ('{"peft_type": "LORA", "from_the_future": {"x": 1}}', ONLY + r"from_the_future = {'x': 1}"),
    ):
        config.write_text(text)
        with pytest.raises(BundleError, match=message):
            adopt_adapter(model, tmp_path)


def test_a_pickle_beside_the_tensors_is_not_read(tmp_path: Path) -> None:
    model = seeded(TinyCNN).eval()
    peft = trained_by_peft(model, tmp_path, r=2, target_modules=["fc1"])
    (tmp_path / "adapter_model.bin").write_bytes(b"no pickle at all")
    torch.testing.assert_close(adopt_adapter(model, tmp_path)(images(3)), peft(images(3)))


def test_another_base_is_told_by_its_name(tmp_path: Path) -> None:
    model = seeded(TinyCNN).eval()
    model.name_or_path = "somebody/digits"
    trained_by_peft(model, tmp_path, r=2, target_modules=["fc1"])
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "somebody/digits"
    adopt_adapter(model, tmp_path)
    model.name_or_path = "/moved/elsewhere/digits"
    adopt_adapter(model, tmp_path)
    model.name_or_path = "somebody/letters"
    with pytest.warns(
        PetmWarning, match=r"was trained on 'somebody/digits', but the model is 'somebody/letters'\. Pass"
    ):
        adopt_adapter(model, tmp_path)


def test_a_grader_knows_the_base_that_it_was_calibrated_with(
    model: nn.Module, digits: tuple[Data, ...], tmp_path: Path
) -> None:
    trained_by_peft(model, tmp_path / "adapter", r=2, target_modules=["fc1"])
    fit_adopted(model, tmp_path / "adapter", digits[1]).grader.save(tmp_path / "g.petm")
    with pytest.raises(BundleError, match=r"was made for another model"):
        load(tmp_path / "g.petm", seeded(TinyCNN))
    with pytest.raises(BundleError, match=r"was made for another model"):  # its adapter, on weights of the same shapes
        fit_adopted(seeded(TinyCNN), tmp_path / "g.petm", digits[1], force=True)
    assert fit_adopted(model, tmp_path / "g.petm", digits[1]).grader.adapted.ranks == {"fc1": 2}


# the command line


def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["petm", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    return code, *capfd.readouterr()


def test_petm_fit_takes_an_adapter(
    model: nn.Module,
    digits: tuple[Data, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_weights(model, tmp_path / "w.safetensors")
    peft = trained_by_peft(model, tmp_path / "adapter", **ADAPTERS["rslora"])
    x = digits[2].inputs(range(300))
    np.savez(tmp_path / "fresh.npz", images=x.numpy(), labels=digits[2].labels[:300].numpy())
    told = ("fit", "--model", "networks:TinyCNN", "--weights", "w.safetensors", "--data", "fresh.npz", "-o", "my.petm")
    code, out, err = run(monkeypatch, capfd, *told, "--adapter", "adapter", "--coverage", 0.75, "--json")
    assert code == 0, err
    manifest = json.loads(out)
    assert manifest["adapter"]["layers"] == {"conv2": 4, "fc1": 4}
    assert manifest["data"]["calibration"]["samples"] == 300
    assert manifest["settings"] == {"adapter": "trained elsewhere by PEFT"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "fresh.npz", "my.petm", "w.safetensors"]
    grades = load(tmp_path / "my.petm", "networks:TinyCNN").grade(x)
    assert grades.trusted.mean() == pytest.approx(0.75, abs=0.01)
    with torch.no_grad():
        np.testing.assert_array_equal(grades.second, peft(x).argmax(1))
    assert read_manifest(tmp_path / "my.petm").measured["calibration_samples"] == 300
    code, _, err = run(monkeypatch, capfd, *told, "--adapter", "nowhere", "--overwrite")
    assert code == 1
    assert err.startswith("Error: adapter: expected a file or folder, got nowhere, which does not exist")
    code, _, err = run(monkeypatch, capfd, *told, "--adapter", "adapter", "--recipe", "paper", "--layers", "fc1=2")
    assert code == 2
    assert "nothing is trained and all of --data calibrate, so leave out --recipe, --layers." in err
