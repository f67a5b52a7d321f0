"""Quantised, spread and sharded models. bitsandbytes and torchao are no packages of the tests: theirs skip without."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from hf_folders import bert, save
from networks import TinyCNN, seeded
from petm._internal.distributed import Group
from petm._internal.files import fingerprint
from petm.adapter.model import attach_adapter
from petm.data.base import TensorData
from petm.data.fields import Fields
from petm.errors import ArgumentError, ExtraError, ModelError
from petm.fitting import fit
from petm.grading.grader import load
from petm.models.loading import load_model, load_weights, save_weights, share_weights, weights_fingerprint
from petm.models.prediction import move
from petm.models.probe import check_module
from short_recipe import SHORT

SCRIPT = Path(__file__).parents[1] / "helpers" / "sharded_fit.py"


class Scaled(nn.Parameter):
    """Whole numbers with a scale beside them, as bitsandbytes has them."""

    scale: float


class ScaledLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 6, 4
        numbers = torch.randint(-9, 9, (4, 6), generator=torch.Generator().manual_seed(0)).to(torch.int8)
        self.weight = torch.Tensor._make_subclass(Scaled, numbers, False)
        self.weight.scale = 0.1

    def forward(self, x: Tensor) -> Tensor:
        weight: Any = self.weight
        return nn.functional.linear(x, weight.data.float() * weight.scale)


def wrapped() -> nn.Module:
    """A layer whose weight consists of two tensors, as torchao has them."""
    layer = nn.Linear(6, 4)
    both = TwoTensor(torch.arange(24.0).view(4, 6), torch.ones(4, 6))
    layer.weight = nn.Parameter(both, requires_grad=False)
    return layer


def test_a_copy_of_the_modules_shares_quantised_weights() -> None:
    model, x = nn.Sequential(ScaledLinear()), torch.randn(3, 6)
    copy = share_weights(model)
    assert torch.equal(copy(x), model(x))
    assert copy[0].weight.data_ptr() == model[0].weight.data_ptr()


def test_the_fingerprint_of_a_weight_of_several_tensors() -> None:
    layer: Any = wrapped()
    parts = ["bias", layer.bias, "weight.a", torch.arange(24.0).view(4, 6), "weight.b", torch.ones(4, 6)]
    assert weights_fingerprint(layer) == fingerprint(parts)


def test_what_is_in_its_place_is_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(TinyCNN)
    monkeypatch.setattr(model, "to", None)
    assert move(model, "cpu") == torch.device("cpu")


def test_a_model_on_several_devices_stays() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    assert move(model, "cpu") == torch.device("cpu")
    assert model[1].weight.is_meta
    model.hf_device_map = {"0": "cpu", "1": "disk"}  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"^model: .*1\.weight on the meta device.*'disk'"):
        check_module(model)


@pytest.mark.parametrize("model", [nn.Sequential(wrapped())], ids=["torchao"])
def test_weights_that_no_file_holds(model: nn.Module, tmp_path: Path) -> None:
    save_weights(nn.Sequential(nn.Linear(6, 4)), file := tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"^include_base: .*0\.weight as TwoTensor"):
        save_weights(model, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"^weights: .*0\.weight as TwoTensor"):
        load_weights(model, file)


@pytest.mark.parametrize("layer", [ScaledLinear, wrapped])
def test_no_teacher_of_a_quantised_model(layer: Any) -> None:
    data = TensorData(torch.randn(40, 6), torch.arange(40) % 4)
    with pytest.raises(ModelError, match=r"^recipe: .*0\.weight"):
        fit(nn.Sequential(layer()), data, recipe="paper", device="cpu")


def test_a_quantised_layer_without_sizes() -> None:
    layer = ScaledLinear()
    del layer.in_features
    with pytest.raises(ArgumentError, match=r"^layers: .*'0', a ScaledLinear without in_features"):
        attach_adapter(nn.Sequential(layer, nn.Linear(4, 4)), {"0": 1})


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_missing_package_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", bert())
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExtraError, match=r"bitsandbytes.*petm\[quantized\]"):
        load_model(f"hf:{folder}")


def test_a_device_map(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", bert())
    spread = load_model(f"hf:{folder}", device_map={"": "cpu"})
    assert weights_fingerprint(spread) == weights_fingerprint(load_model(f"hf:{folder}"))
    with pytest.raises(ModelError, match=r"^device_map: .*on disk"):
        load_model(f"hf:{folder}", device_map={"bert": "disk", "classifier": "cpu"})
    with pytest.raises(ModelError, match=r"^device_map: "):
        load_model("petm.models:PaperCNN", device_map="auto")


def test_a_process_with_a_part_of_the_model_runs_all_samples() -> None:
    for copy in range(2):
        shard = Group(copy=copy)
        assert list(shard.own(100)) == list(range(100))
        assert shard.is_main == (copy == 0)


def texts(model: nn.Module) -> TensorData:
    ids = torch.randint(1, 300, (120, 9), generator=torch.Generator().manual_seed(0))
    fields = Fields({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    with torch.no_grad():
        labels = model(**fields).logits.argmax(1)
    labels[::4] = (labels[::4] + 1) % 3
    return TensorData(fields, labels)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["4-bit", "8-bit", "torchao", "bfloat16"])
def test_fit_save_and_load(kind: str, tmp_path: Path) -> None:
    pytest.importorskip({"torchao": "torchao", "bfloat16": "torch"}.get(kind, "bitsandbytes"))
    model = bert(words=300, hidden_size=64, intermediate_size=128)  # bitsandbytes has blocks of 64
    data = texts(model)
    if kind == "bfloat16":
        model = model.to(torch.bfloat16)
    else:
        from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig, TorchAoConfig

        bits: Any = {"load_in_4bit": True} if kind == "4-bit" else {"load_in_8bit": True}
        how: Any = BitsAndBytesConfig(**bits)
        if kind == "torchao":
            from torchao.quantization import Int8WeightOnlyConfig

            how = TorchAoConfig(Int8WeightOnlyConfig())
        plain = save(tmp_path / "plain", model)
        model = AutoModelForSequenceClassification.from_pretrained(plain, quantization_config=how, device_map="cpu")
    folder = save(tmp_path / "model", model)
    model.eval()
    grader = fit(model, data, recipe=SHORT, device="cpu", force=True)
    x = data.inputs(range(120))
    with torch.no_grad():
        assert torch.equal(grader.adapted(x, alpha=0.0), model(**x).logits)
    suspicion = grader.grade(x).suspicion
    grader.save(tmp_path / "my.petm")
    again = load(tmp_path / "my.petm", f"hf:{folder}")
    assert again.adapted.base is not model
    assert again.grade(x).suspicion.tolist() == suspicion.tolist()


@pytest.mark.filterwarnings("ignore")
def test_gradients_pass_through_4_bit_layers_after_inference() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    layers = [bnb.nn.Linear4bit(64, 64, quant_type="nf4") for _ in range(2)]
    model = nn.Sequential(*(layer.to("cpu") for layer in layers), nn.Linear(64, 3)).eval()
    check_module(model)
    x = torch.randn(4, 64)
    with torch.no_grad():
        plain = model(x)
    weights_fingerprint(model)
    x.requires_grad_()
    answer = model(x)
    assert torch.equal(answer, plain)
    assert torch.autograd.grad(answer.sum(), x)[0].abs().sum() > 0


@pytest.mark.slow
def test_sharded_as_whole(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    alone, shard = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", "other"))
    for losses in ("losses 0", f"losses {1 << 24}"):
        assert shard[losses] == pytest.approx(alone[losses], rel=1e-4)
    assert shard["suspicion"] == pytest.approx(alone["suspicion"], rel=1e-4)
    assert shard["trusted"] == alone["trusted"] == alone["loaded"]
    assert shard["fingerprint"] == alone["fingerprint"]
    assert shard["held"] == shard["held at the end"] < 0.51 * alone["held"]
    assert not shard["gradients"]
