"""Networks on which copies or wrappers of a layer fail: hooks on the user's own modules work on all of them."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from networks import images, randomise
from petm.adapter.layer_choice import choose_layers
from petm.adapter.model import ONE, Member, attach_adapter
from petm.adapter.one_pass import dual_logits
from petm.adapter.peft_folder import load_adapter, save_adapter
from petm.adapter.split_point import split_point_of
from petm.models.loading import call_model


class ReadsStride(nn.Module):
    """As MobileNetV2 in transformers: padding is computed from what the convolution says of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, stride=2)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        pad = (x.shape[-1] + self.conv.stride[0]) % 2
        x = F.relu6(self.conv(F.pad(x, (0, pad, 0, pad))))
        x = F.relu6(
            F.conv2d(x, self.depthwise.weight, groups=self.depthwise.groups) + self.depthwise.bias.view(-1, 1, 1)
        )
        return self.fc(x.mean((2, 3)))


class NamedSecond(nn.Module):
    """Its modules are called as petm calls its adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.default, self.second, self.third = nn.Linear(784, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(F.relu(self.second(F.relu(self.default(x.flatten(1))))))


class StemLast(nn.Module):
    """Defines last what it calls first."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.middle, self.stem = nn.Linear(16, 5), nn.Linear(32, 16), nn.Linear(784, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.middle(F.relu(self.stem(x.flatten(1))))))


class Encoder(nn.Module):
    """PyTorch's own transformer, whose fused kernel in eval mode reads weights without calling the layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(28, 4, 32, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(28, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.squeeze(1)).mean(1))


class Attends(nn.Module):
    """Attention alone, by its fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(28, 4, batch_first=True)
        self.fc, self.head = nn.Linear(28, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(1)
        return self.head(F.relu(self.fc(self.attention(x, x, x, need_weights=False)[0].mean(1))))


def levit() -> nn.Module:
    config = transformers.LevitConfig(
        image_size=32,
        num_channels=1,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
        num_labels=5,
    )
    model = transformers.LevitForImageClassification(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)
    return model


def peft_model() -> nn.Module:
    """A base model with a fine-tuned LoRA adapter that nobody has merged."""
    tuned = get_peft_model(NamedSecond(), LoraConfig(r=2, target_modules=["default", "second"]))
    with torch.no_grad():
        for name, tensor in tuned.named_parameters():
            if "lora_B" in name:
                tensor.normal_(0, 0.2)
    return tuned


class Int8Linear(nn.Module):
    """A quantised layer as libraries make them: whole numbers in a buffer, and the product in its own forward."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("qweight", (layer.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.qweight.to(x.dtype) * self.scale, self.bias)


def quantised() -> nn.Module:
    model = NamedSecond()
    for name, layer in list(model.named_children()):
        setattr(model, name, Int8Linear(layer))
    return model


def float64() -> nn.Module:
    return StemLast().double()


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, int], tuple[int, ...]]] = {
    "reads self.conv.stride": (ReadsStride, {"conv": 2, "fc": 2}, (1, 28, 28)),
    "named second": (NamedSecond, {"default": 3, "second": 2}, (1, 28, 28)),
    "stem defined last": (StemLast, {"stem": 2, "head": 2}, (1, 28, 28)),
    "TransformerEncoder": (Encoder, {"encoder.layers.1.linear1": 2, "head": 2}, (1, 28, 28)),
    "MultiheadAttention": (Attends, {"fc": 2, "head": 2}, (1, 28, 28)),
    "LeViT": (levit, {}, (1, 32, 32)),
    "unmerged PeftModel": (peft_model, {"base_model.model.second": 2, "base_model.model.third": 2}, (1, 28, 28)),
    "float64": (float64, {"middle": 2, "head": 2}, (1, 28, 28)),
    "int8": (quantised, {"second": 2, "third": 3}, (1, 28, 28)),
}
MEMBERS = {"one": ONE, "three": (Member(), Member("second"), Member("third"))}


@pytest.mark.parametrize("members", MEMBERS.values(), ids=MEMBERS)
@pytest.mark.parametrize("name", CASES)
def test_one_pass_is_two_passes_and_the_base_model_stays(
    name: str, members: tuple[Member, ...], tmp_path: Path
) -> None:
    make, layers, shape = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
    x = images(6, *shape)
    with torch.no_grad():
        before = call_model(copy.deepcopy(model), x)
    if not layers:
        layers = choose_layers(model, x, members, max_ratio=1.6, max_extra_parameters=0.5).ranks
    adapted = randomise(attach_adapter(model, layers, members=members), scale=0.3)
    with torch.no_grad():
        plain = call_model(model, x)
        both = dual_logits(adapted, x)
        assert torch.equal(adapted(x, alpha=0), plain), "the model to the bit"
        assert torch.allclose(both.base, plain, rtol=0, atol=1e-5)
        assert torch.allclose(both.second, adapted(x, alpha=1), rtol=0, atol=1e-5)
        assert not torch.allclose(both.base, both.second, atol=1e-3)
        save_adapter(adapted, tmp_path)
        loaded = load_adapter(model, tmp_path, members)
        assert torch.equal(loaded(x), adapted(x))
        adapted.detach()
        loaded.detach()
        assert torch.equal(call_model(model, x), before), "the model is as it was"


@pytest.mark.parametrize("name", CASES)
def test_late_layers_are_those_that_are_called_late(name: str) -> None:
    make, _, shape = CASES[name]
    model, x = make().eval(), images(4, *shape)
    chosen = choose_layers(model, x, ONE, max_ratio=1.9, max_extra_parameters=0.5)
    assert chosen.ranks
    adapted = attach_adapter(model, chosen.ranks)
    split_point = split_point_of(adapted, x)
    assert 1 <= split_point.counted_ratio <= 1.9
    assert split_point.operations > 0


def test_the_stem_is_not_late_though_it_is_defined_last() -> None:
    late = choose_layers(StemLast().eval(), images(4), ONE, max_ratio=1.2, max_extra_parameters=0.5).ranks
    assert list(late) == ["middle", "head"]


def test_layers_within_a_layer_have_no_adapter_of_their_own() -> None:
    chosen = choose_layers(peft_model().eval(), images(4), ONE, max_ratio=None, max_extra_parameters=0.5).ranks
    assert list(chosen) == [f"base_model.model.{name}" for name in ("default", "second", "third")]


def test_a_layer_called_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.again, self.head = nn.Linear(28, 28), nn.Linear(28, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.again(F.relu(self.again(x.mean((1, 2))))))

    adapted, x = randomise(attach_adapter(Twice().eval(), {"again": 2}), scale=0.5), images(5)
    both = dual_logits(adapted, x)
    torch.testing.assert_close(both.second, adapted(x).detach())
    assert not torch.allclose(both.base, both.second, atol=1e-3)


def quantised_by(library: str) -> nn.Module:
    model: Any = StemLast()
    if library == "bitsandbytes":
        bnb = pytest.importorskip("bitsandbytes")
        for name, layer in list(model.named_children()):
            int8 = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, has_fp16_weights=False)
            int8.load_state_dict(layer.state_dict())
            setattr(model, name, int8.to("cpu"))
        return model
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", ["bitsandbytes", "torchao"])
def test_int8_layers_of_libraries(library: str, tmp_path: Path) -> None:
    model, x = quantised_by(library).eval(), images(6)
    with torch.no_grad():
        plain = call_model(model, x)
    ranks = choose_layers(model, x, ONE, max_ratio=1.5, max_extra_parameters=0.5).ranks
    adapted = randomise(attach_adapter(model, ranks), scale=0.3)
    both = dual_logits(adapted, x)
    with torch.no_grad():
        assert torch.equal(adapted(x, alpha=0), plain)
        assert torch.allclose(both.second, adapted(x), rtol=0, atol=1e-5)
        assert not torch.allclose(both.base, both.second, atol=1e-3)
        save_adapter(adapted, tmp_path)
        assert torch.equal(load_adapter(model, tmp_path)(x), adapted(x))
