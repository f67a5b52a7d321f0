import copy
import gc
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from networks import ResidualNet, TiedNet, TinyCNN, hooks, images, randomise, seeded, snapshot
from petm.adapter import passes
from petm.adapter.lora import adaptable_layers, sizes_of
from petm.adapter.model import AdaptedModel, attach_adapter
from petm.adapter.peft_folder import load_adapter, save_adapter
from petm.data.base import TensorData
from petm.errors import ArgumentError, BundleError, ModelError
from petm.models.loading import count_parameters
from petm.models.paper import paper_cnn
from petm.training.loop import CROSS_ENTROPY, Settings, train

LAYERS = {
    TinyCNN: {"conv1": 2, "conv2": 3, "fc1": 4, "fc2": 5},
    ResidualNet: {"conv1": 2, "block.conv1": 3, "fc": 4},
    TiedNet: {"second": 3, "head": 2},
}


class OneLayer(nn.Module):
    """A single layer of the given kind, and the mean of what it says as logits."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).flatten(1)


class Attention(nn.Module):
    """PyTorch's own transformer, whose fast path in eval mode reads weights without calling the layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(28, 4, 32, batch_first=True, dropout=0.0)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(28, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.squeeze(1)).mean(1))


def changed(network: type[nn.Module]) -> tuple[nn.Module, AdaptedModel]:
    model = seeded(network).eval()
    return model, randomise(attach_adapter(model, LAYERS[network]))


def delta(adapted: AdaptedModel, layer: str) -> Tensor:
    """B A of one layer, worked out from PEFT's tensors, in the shape of the layer's weight."""
    state = adapted.adapter_state()
    A, B = (state[f"base_model.model.{layer}.lora_{side}.weight"].double() for side in "AB")
    return torch.einsum("or,r...->o...", B.flatten(1), A)


def with_weights(model: nn.Module, adapted: AdaptedModel, alpha: float) -> nn.Module:
    """A copy of the base model in which every adapted weight is W0 + alpha * B A."""
    explicit = copy.deepcopy(model).double()
    with torch.no_grad():
        for layer in adapted.ranks:
            weight = explicit.get_submodule(layer).weight
            if layer == "second":  # a tied weight: the adapter belongs to this layer alone
                weight = nn.Parameter(weight.clone())
                explicit.get_submodule(layer).weight = weight
            weight += alpha * delta(adapted, layer)
    return explicit


# the three guarantees about alpha


@pytest.mark.parametrize("network", LAYERS)
def test_alpha_zero_is_the_base_model_to_the_bit(network: type[nn.Module]) -> None:
    model, adapted = changed(network)
    x = images(9)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(adapted(x, alpha=0), expected)
        assert torch.equal(adapted(x, alpha=0.0), expected)
        assert not torch.allclose(adapted(x, alpha=1), expected, atol=0.01)


def test_at_alpha_zero_even_an_adapter_gone_astray_does_no_harm() -> None:
    model, adapted = changed(TinyCNN)
    with torch.no_grad():
        for tensor in adapted.adapter_state().values():
            tensor.fill_(torch.inf)
    assert torch.equal(adapted(images(4), alpha=0), model(images(4)))
    assert not torch.isfinite(adapted(images(4), alpha=1)).any()


@pytest.mark.parametrize("network", LAYERS)
def test_an_untrained_adapter_changes_nothing_at_any_alpha(network: type[nn.Module]) -> None:
    model = seeded(network).eval()
    adapted = attach_adapter(model, LAYERS[network])
    for alpha in (0.0, 1.0, -3.0):
        assert torch.equal(adapted(images(4), alpha=alpha), model(images(4)))


@pytest.mark.parametrize("network", LAYERS)
def test_alpha_one_is_pefts_own_forward(network: type[nn.Module]) -> None:
    model, adapted = changed(network)
    ranks = {f"^{name}": rank for name, rank in LAYERS[network].items()}
    config = LoraConfig(r=1, lora_alpha=1, target_modules="|".join(LAYERS[network]), rank_pattern=ranks)
    config.alpha_pattern = ranks
    plain = get_peft_model(copy.deepcopy(model), config).eval()
    set_peft_model_state_dict(plain, adapted.adapter_state())
    assert torch.equal(adapted(images(9)), plain(images(9)))
    assert torch.equal(adapted(images(9), alpha=1), plain(images(9)))


@pytest.mark.parametrize("alpha", [-1, 0, 0.3, 1, 2.5])
@pytest.mark.parametrize("network", LAYERS)
def test_every_alpha_is_the_explicit_weight(network: type[nn.Module], alpha: float) -> None:
    model, adapted = changed(network)
    explicit = with_weights(model, adapted, alpha)
    torch.testing.assert_close(
        adapted(images(9), alpha=alpha), explicit(images(9).double()).float(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (6,)),
        (nn.Linear(6, 4, bias=False), (5, 6)),
        (nn.Conv1d(3, 4, 3, padding=1), (3, 9)),
        (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (3, 8, 8)),
        (nn.Conv2d(3, 4, 3, padding="same", bias=False), (3, 8, 8)),
        (nn.Conv2d(3, 4, 3, dilation=2), (3, 8, 8)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 8, 8)),
        (nn.Conv3d(2, 4, 2), (2, 4, 4, 4)),
    ],
    ids=str,
)
def test_every_kind_of_layer(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = OneLayer(layer)
    adapted = randomise(attach_adapter(model, {"layer": 3}))
    x = images(5, *shape)
    for alpha in (0.3, -2.0):
        expected = with_weights(model, adapted, alpha)(x.double()).float()
        torch.testing.assert_close(adapted(x, alpha=alpha), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(expected, model(x), atol=0.01)


def test_a_grouped_convolution() -> None:
    model = OneLayer(nn.Conv2d(4, 6, 3, groups=2))
    adapted = randomise(attach_adapter(model, {"layer": 4}))
    state, x = adapted.adapter_state(), images(3, 4, 6, 6)
    A, B = (state[f"base_model.model.layer.lora_{side}.weight"] for side in "AB")
    # The second factor has the layer's groups, the first has none.
    expected = model(x) + 0.7 * F.conv2d(F.conv2d(x, A), B, groups=2).flatten(1)
    torch.testing.assert_close(adapted(x, alpha=0.7), expected)


@pytest.mark.parametrize("layer", ["encoder.layers.0.linear1", "encoder.layers.1.linear2", "head"])
def test_the_fast_path_of_pytorchs_transformer_does_not_pass_the_adapter_by(layer: str) -> None:
    model = seeded(Attention).eval()
    adapted = randomise(attach_adapter(model, {layer: 2}), scale=0.5)
    with torch.inference_mode():
        assert torch.equal(adapted(images(4), alpha=0), model(images(4)))
        expected = with_weights(model, adapted, 1.0)(images(4).double()).float()
        torch.testing.assert_close(adapted(images(4)), expected, rtol=1e-3, atol=1e-5)
        assert not torch.allclose(expected, model(images(4)), atol=0.01)


# what the caller's model keeps


@pytest.mark.parametrize("network", LAYERS)
def test_attaching_training_and_using_leave_the_callers_model_alone(network: type[nn.Module]) -> None:
    model = seeded(network).train()
    next(model.children()).eval()
    next(model.parameters()).requires_grad_(False)
    before = snapshot(model)
    adapted = attach_adapter(model, LAYERS[network])
    data = TensorData(images(40), torch.arange(40) % 10)
    train(adapted, data, CROSS_ENTROPY, Settings(epochs=2, learning_rate=0.01, batch_size=16), device="cpu")
    adapted.train()
    adapted(images(4)).sum().backward()
    assert snapshot(model) == before
    assert hooks(model) == len(LAYERS[network])
    reference = seeded(network).eval()
    assert torch.equal(adapted(images(9), alpha=0), reference(images(9)))
    assert not torch.equal(adapted(images(9), alpha=1), reference(images(9)))
    adapted.detach()
    assert hooks(model) == 0


def test_hooks_go_with_the_last_reference() -> None:
    model = seeded(TinyCNN).eval()
    first, second = (attach_adapter(model, {"fc1": 2, "fc2": rank}) for rank in (1, 2))
    assert hooks(model) == 2, "one on each module, however many adapters"
    first.detach()
    first.detach()
    assert hooks(model) == 2
    del second
    gc.collect()
    assert hooks(model) == 0


def test_hooks_may_be_removed_while_others_are_added() -> None:
    """The garbage collector removes hooks at any moment, also in the thread that holds the lock."""
    adapted = attach_adapter(seeded(TinyCNN).eval(), {"fc1": 2})
    with passes._ADAPTING._lock:
        adapted.detach()
    assert hooks(adapted.base) == 0


def test_several_adapters_on_one_model_know_their_own() -> None:
    model, x = seeded(TinyCNN).eval(), images(5)
    graders = [randomise(attach_adapter(model, {"fc1": 2}), seed=seed) for seed in (1, 2)]
    alone = [with_weights(model, adapted, 1.0)(x.double()).float() for adapted in graders]
    for adapted, expected in zip(graders, alone, strict=True):
        torch.testing.assert_close(adapted(x), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(*alone, atol=0.01)


def test_copies_have_hooks_of_their_own() -> None:
    model, adapted = changed(TinyCNN)
    x = images(5)
    expected = adapted(x)
    other = copy.deepcopy(adapted)
    plain = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in adapted.adapter_state().values():
            tensor.zero_()
    assert torch.equal(other(x), expected)
    assert torch.equal(other(x, alpha=0), model(x))
    assert torch.equal(plain(x), model(x))
    again = randomise(attach_adapter(plain, LAYERS[TinyCNN]))  # the copy came with hooks
    assert torch.equal(again(x), expected)
    again.detach()
    assert hooks(plain) == 0


@pytest.mark.parametrize("network", LAYERS)
def test_weights_are_shared_and_only_the_adapter_learns(network: type[nn.Module]) -> None:
    model = seeded(network)
    adapted = attach_adapter(model, LAYERS[network])
    ours = {value.data_ptr() for value in model.state_dict().values()}
    for name, value in adapted.state_dict().items():
        assert (value.data_ptr() in ours) == ("lora_" not in name), name
    with adapted.learning():
        learning = {name for name, value in adapted.named_parameters() if value.requires_grad}
        assert learning
        assert all("lora_" in name for name in learning)
        assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == adapted.adapter_parameters()
    assert all(value.requires_grad for value in model.parameters())
    with pytest.raises(KeyboardInterrupt), adapted.learning():
        raise KeyboardInterrupt
    assert all(value.requires_grad for value in model.parameters())


def test_passes_run_in_eval_mode() -> None:
    model, adapted = changed(ResidualNet)
    expected = adapted(images(5)).detach()
    model.train()
    assert adapted.train() is adapted
    assert torch.equal(adapted(images(5)), expected)
    assert model.training


def test_tied_weights_stay_tied_beside_the_adapter() -> None:
    model, adapted = changed(TiedNet)
    assert adapted.base is model
    assert model.first.weight is model.second.weight
    assert torch.equal(model(images(3)), adapted(images(3), alpha=0))


def test_threads_may_use_different_alpha_at_once() -> None:
    _, adapted = changed(ResidualNet)
    x, alphas = images(8), [0.0, 1.0, 0.5, -2.0]
    with torch.no_grad():
        expected = [adapted(x, alpha=alpha) for alpha in alphas]
    wrong: list[float] = []
    barrier = threading.Barrier(len(alphas))

    def work(alpha: float, target: Tensor) -> None:
        barrier.wait()
        for _ in range(30):
            with torch.no_grad():
                if not torch.allclose(adapted(x, alpha=alpha), target, atol=1e-4):
                    wrong.append(alpha)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(alphas, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert not torch.allclose(expected[1], expected[2], atol=1e-3)


def test_a_failing_forward_leaves_no_alpha_behind() -> None:
    _, adapted = changed(TinyCNN)
    expected = adapted(images(2))
    with pytest.raises(ModelError, match=r"model: cannot take inputs of shape \(2, 3, 28, 28\)"):
        adapted(images(2, 3, 28, 28), alpha=5.0)
    assert torch.equal(adapted(images(2)), expected)
    assert torch.equal(adapted.base(images(2)), adapted(images(2), alpha=0))


# which layers, and how large


def test_names_are_exact() -> None:
    adapted = attach_adapter(seeded(ResidualNet), {"conv1": 2})
    assert {name.split(".lora_")[0] for name in adapted.adapter_state()} == {"base_model.model.conv1"}
    adapted = attach_adapter(seeded(ResidualNet), {"block.conv1": 3, "conv1": 1})
    shapes = {name: tuple(tensor.shape) for name, tensor in adapted.adapter_state().items() if "lora_A" in name}
    assert shapes == {
        "base_model.model.block.conv1.lora_A.weight": (3, 6, 3, 3),
        "base_model.model.conv1.lora_A.weight": (1, 1, 5, 5),
    }
    assert adapted.ranks == {"block.conv1": 3, "conv1": 1}


def test_a_dot_in_a_name_is_a_dot() -> None:
    model = nn.Sequential()
    model.add_module("a", nn.Sequential(nn.Linear(4, 4)))
    model.add_module("ax0", nn.Linear(4, 4))
    adapted = attach_adapter(model, {"a.0": 1})
    assert {name.split(".lora_")[0] for name in adapted.adapter_state()} == {"base_model.model.a.0"}


def test_the_papers_adapter_has_the_papers_size() -> None:
    # LoRA-PETM (ACK 2025), section 3.2: conv1 4 * (9 + 32), fc1 64 * (9216 + 128), fc2 5 * (128 + 10)
    model = paper_cnn()
    adapted = attach_adapter(model, {"conv1": 4, "fc1": 64, "fc2": 5})
    assert adapted.adapter_parameters() == 164 + 598_016 + 690 == 598_870
    assert count_parameters(adapted.base) == 1_199_882


def test_the_seed_decides_and_the_callers_random_numbers_are_left_alone() -> None:
    state = torch.get_rng_state()
    first, same, other = (attach_adapter(seeded(TinyCNN), {"fc1": 4}, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    A = "base_model.model.fc1.lora_A.weight"
    assert torch.equal(first.adapter_state()[A], same.adapter_state()[A])
    assert not torch.equal(first.adapter_state()[A], other.adapter_state()[A])


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_layers_chosen_by_drift_stay_within_the_budget(share: float) -> None:
    model, teacher = seeded(TinyCNN), seeded(TinyCNN)
    with torch.no_grad():
        teacher.fc1.weight += 0.3 * torch.randn(16, 1) @ torch.randn(1, 72)
        teacher.fc2.weight += 0.01 * torch.randn(10, 16)
    adapted = attach_adapter(model, teacher=teacher, max_extra_parameters=share)
    budget = share * count_parameters(model)
    assert adapted.adapter_parameters() <= budget
    assert adapted.ranks["fc2"] if share == 0.02 else adapted.ranks["fc1"]
    assert set(adapted.ranks) <= {"fc1", "fc2"}
    spent = sum(rank * sizes_of(model.get_submodule(name)).rank_cost for name, rank in adapted.ranks.items())
    assert adapted.adapter_parameters() == spent


def test_layers_that_cannot_take_an_adapter_are_not_chosen() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grouped, self.dilated = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, dilation=2)
            self.fc = nn.Linear(8, 3)

    model, teacher = seeded(Mixed), seeded(Mixed, seed=1)
    assert attach_adapter(model, teacher=teacher, max_extra_parameters=0.9).ranks.keys() <= {"dilated", "fc"}


class Custom(nn.Conv2d):
    """A convolution of somebody's own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)))


KINDS = "expected linear, convolution or embedding modules"


def faulty() -> nn.Module:
    return nn.ModuleDict(
        {
            "fc": nn.Linear(6, 4),
            "conv": nn.Conv2d(4, 8, 3),
            "bn": nn.BatchNorm2d(8),
            "grouped": nn.Conv2d(4, 8, 3, groups=2),
            "dilated": nn.Conv2d(4, 8, 3, dilation=(1, 2)),
            "mirrored": nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"),
            "custom": Custom(4, 8, 3),
            "attention": nn.MultiheadAttention(4, 2),
        }
    )


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"conv9": 1}, rf"{KINDS}, got 'conv9' .*'conv'.*\. Available: fc, conv, grouped, dilated, mirrored\."),
        ({"bn": 1}, rf"{KINDS}, got 'bn', a BatchNorm2d.*\. Available: fc"),
        ({"": 1}, rf"{KINDS}, got ''\. Available: fc"),
        (
            {"custom": 1},
            rf"{KINDS}, got 'custom', a convolution of class Custom\. Available",
        ),
        (
            {"attention.out_proj": 1},
            rf"{KINDS}, got 'attention.out_proj', the output layer of an attention\. Available",
        ),
        ({}, r"expected at least one layer, got none\. Available: fc, conv, grouped, dilated, mirrored\."),
        ({"fc": 0}, r"expected a rank from 1 to 4 for 'fc', got 0\."),
        ({"fc": 5}, r"expected a rank from 1 to 4 for 'fc', got 5\."),
        ({"conv": 9}, r"expected a rank from 1 to 8 for 'conv', got 9\."),
        ({"fc": 2.0}, r"expected a rank from 1 to 4 for 'fc', got 2\.0\."),
        ({"fc": True}, r"expected a rank from 1 to 4 for 'fc', got True\."),
        ({"grouped": 3}, r"expected a multiple of 2 as rank of the grouped convolution 'grouped', got 3\."),
        (None, r"expected a rank by layer name, or teacher=\.\.\. to choose by, got neither\. Available: fc, conv"),
    ],
)
def test_layers_outside_their_rule(layers: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^layers: {message}"):
        attach_adapter(faulty(), layers)


def test_a_budget_that_buys_nothing_and_a_teacher_that_has_not_moved() -> None:
    model = seeded(TinyCNN)
    with pytest.raises(ArgumentError, match=r"max_extra_parameters: expected a larger share, got 0.001: .*at least 26"):
        attach_adapter(model, teacher=seeded(TinyCNN, seed=1), max_extra_parameters=0.001)
    with pytest.raises(ArgumentError, match=r"teacher: expected weights that differ from the model's in conv1, .*same"):
        attach_adapter(model, teacher=seeded(TinyCNN))
    with pytest.raises(ModelError, match=r"teacher: "):
        attach_adapter(model, teacher=seeded(ResidualNet))


def test_adaptable_layers() -> None:
    assert list(adaptable_layers(seeded(ResidualNet))) == ["conv1", "block.conv1", "fc"]


def test_a_parametrised_layer() -> None:
    model = OneLayer(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3)))
    adapted, x = randomise(attach_adapter(model, {"layer": 2})), images(3, 2, 6, 6)
    A, B = (adapted.adapter_state()[f"base_model.model.layer.lora_{side}.weight"] for side in "AB")
    torch.testing.assert_close(adapted(x), model(x) + F.conv2d(F.conv2d(x, A), B).flatten(1))


def test_rank_cost_counts_what_peft_adds() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.grouped = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, (1, 3), groups=2)
            self.linear = nn.Linear(7, 5)

    layers = Layers()
    costs = {name: sizes_of(module).rank_cost for name, module in layers.named_children()}
    assert costs["linear"] == 7 + 5
    assert costs["plain"] == 3 * 3 * 3 + 8
    with pytest.warns(UserWarning, match="groups > 1"):
        adapted = get_peft_model(layers, LoraConfig(r=2, target_modules=list(costs)))
    for name, cost in costs.items():
        added = sum(value.numel() for key, value in adapted.named_parameters() if f".{name}." in key and "lora_" in key)
        assert added == 2 * cost, name


# files


@pytest.mark.parametrize("network", LAYERS)
def test_a_saved_adapter_answers_the_same_through_petm_and_through_peft(
    tmp_path: Path, network: type[nn.Module]
) -> None:
    model, adapted = changed(network)
    save_adapter(adapted, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    loaded = load_adapter(model, tmp_path)
    assert loaded.ranks == adapted.ranks
    for alpha in (0.0, 0.5, 1.0):
        assert torch.equal(loaded(images(5), alpha=alpha), adapted(images(5), alpha=alpha))
    plain = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path)).eval()
    assert torch.equal(plain(images(5)), adapted(images(5)))


def no_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def no_tensors(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def a_pickle_instead(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    torch.save(load_file(path), folder / "adapter_model.bin")
    path.unlink()


def half_the_tensors(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [no_config, no_tensors, a_pickle_instead, half_the_tensors])
def test_a_damaged_adapter_folder(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    model, adapted = changed(TinyCNN)
    save_adapter(adapted, tmp_path)
    damage(tmp_path)
    with pytest.raises(BundleError, match=r"expected an? (LoRA )?adapter that .*, got"):
        load_adapter(model, tmp_path)


def test_an_adapter_for_another_network(tmp_path: Path) -> None:
    _, adapted = changed(TinyCNN)
    save_adapter(adapted, tmp_path)
    with warnings.catch_warnings(), pytest.raises(BundleError, match=r"expected a LoRA adapter that fits the model"):
        warnings.simplefilter("ignore")
        load_adapter(seeded(ResidualNet), tmp_path)
