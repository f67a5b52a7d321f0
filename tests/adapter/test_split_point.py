import concurrent.futures
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from masked import Masked
from networks import ResidualNet, hooks, images, randomise, seeded, snapshot
from petm._internal.files import plain
from petm._internal.records import Record
from petm.adapter import layer_choice, split_point
from petm.adapter.model import AdaptedModel, Member, attach_adapter
from petm.adapter.one_pass import dual_logits
from petm.adapter.split_point import SplitPoint, from_json, map_tensors, split_point_of
from petm.data.base import Data
from petm.errors import ModelError
from petm.fitting import fit
from petm.models.paper import PaperCNN
from short_recipe import SHORT


class ReadsBatchSize(nn.Module):
    """Reshapes to the batch size that it saw at its entrance."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(1, 4, 5, stride=4), nn.Linear(144, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        return self.head(F.relu(self.fc(F.relu(self.conv(x)).view(n, -1))).view(n, 8))


class MixesBatch(nn.Module):
    """Subtracts the batch's mean behind the adapted layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(784, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc(x.flatten(1)))
        return self.head(x - x.mean(0))


class Positioned(nn.Module):
    """Attends to 4 quarters of an image by their places, whose projection all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.linspace(-1, 1, 32).view(1, 4, 8))
        self.project, self.query, self.head = nn.Linear(8, 8), nn.Linear(196, 8), nn.Linear(196, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).unflatten(1, (4, 196))
        weights = (self.query(x.mean(1, keepdim=True)) @ self.project(self.places).mT).softmax(-1)
        return self.head((weights @ x).squeeze(1))


class Windows(nn.Module):
    """Runs layers on the 4 quarters of each image as a batch of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(196, 6), nn.Linear(6, 6), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.outer(F.relu(self.inner(x.reshape(-1, 1, 196)))).view(-1, 24))


CASES: list[Any] = [
    (Positioned, {"project": 4, "head": 2}, "apart", ""),
    (Positioned, {"head": 2}, "inside", "head"),
    (Windows, {"inner": 4, "outer": 2, "head": 2}, "inside", "inner"),
    (PaperCNN, {"fc1": 8, "fc2": 4}, "inside", "fc1"),
    (PaperCNN, {"conv1": 4, "fc1": 8, "fc2": 5}, "inside", "conv1"),
    (PaperCNN, {"fc2": 4}, "inside", "fc2"),
    (ResidualNet, {"fc": 4}, "inside", "fc"),
    (ResidualNet, {"conv1": 2, "fc": 4}, "inside", "conv1"),
    (ResidualNet, {"block.conv1": 2}, "before", "bn1"),
    (ReadsBatchSize, {"fc": 3, "head": 2}, "before", ""),
    (ReadsBatchSize, {"head": 2}, "inside", "head"),
    (MixesBatch, {"fc": 3}, "apart", ""),
    (MixesBatch, {"head": 3}, "inside", "head"),
    (Masked, {"blocks.2.up": 2, "head": 2}, "before", "blocks.2"),
    (Masked, {"blocks.1.down": 2, "blocks.2.up": 2}, "before", "blocks.1"),
    (Masked, {"embed": 2, "head": 2}, "inside", "embed"),
]


def adapt(network: type[nn.Module], layers: dict[str, int]) -> AdaptedModel:
    return randomise(attach_adapter(seeded(network).eval(), layers), scale=0.3)


def apart(adapted: AdaptedModel, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat((adapted(x, alpha=0), adapted(x, alpha=1)))


@pytest.mark.parametrize(("network", "layers", "kind", "module"), CASES)
def test_the_streams_part_as_late_as_is_safe(
    network: type[nn.Module], layers: dict[str, int], kind: str, module: str
) -> None:
    adapted = adapt(network, layers)
    split_point = split_point_of(adapted, images(3))
    assert (split_point.kind, split_point.module) == (kind, module)
    for size in (1, 2, 3, 5, 28, 64):  # 28 is also a length within the samples
        x = images(size, seed=size)
        found, expected = torch.cat(dual_logits(adapted, x)), apart(adapted, x)
        assert torch.allclose(found, expected, rtol=0, atol=1e-5), size
        assert torch.equal(found.argmax(1), expected.argmax(1))
        assert size == 1 or not torch.allclose(expected[:size], expected[size:], atol=1e-3)


def test_layers_whose_rows_are_of_no_sample_are_not_chosen() -> None:
    model, members = seeded(Positioned).eval(), (Member(),)
    chosen = layer_choice.choose_layers(model, images(2), members, max_ratio=2.5, max_extra_parameters=0.5)
    assert sorted(chosen.ranks) == ["head", "query"]


def test_what_follows_the_batch_is_doubled_and_nothing_else() -> None:
    adapted = adapt(Masked, {"blocks.1.down": 2})
    doubled = split_point_of(adapted, images(3)).repeated
    assert doubled == {"blocks.1": ((0, 0), (1, "extra", "masks", 0)), "blocks.2": ((1, "extra", "masks", 0),)}


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 8)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return x + self.up(x) * table.sum(0)


class Tabled(nn.Module):
    """Blocks that are given a table of four rows beside the batch, as MPT gives one of its heads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(28 * 28, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(Scaled() for _ in range(3))
        self.table = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        held = self.embed(x.flatten(1))
        for block in self.blocks:
            held = block(held, self.table)
        return self.chosen(self.head(held), len(x))

    def chosen(self, logits: Tensor, n: int) -> Tensor:
        return logits


class ByInput(Tabled):
    """Takes rows by the size of its input, which only blocks that run once around the split point allow."""

    def chosen(self, logits: Tensor, n: int) -> Tensor:
        return logits[torch.arange(n)]


@pytest.mark.parametrize(("network", "layers", "kind"), [
    (Tabled, {"blocks.1.up": 2, "blocks.2.up": 2}, "before"), (ByInput, {"blocks.2.up": 2}, "around"),
])  # fmt: skip
def test_a_table_of_the_batchs_size_by_chance_stays(
    network: type[nn.Module], layers: dict[str, int], kind: str
) -> None:
    adapted = adapt(network, layers)
    assert split_point_of(adapted, images(3)).kind == kind
    for size in (2, 3, 4, 8):  # two samples have four rows in one pass
        x = images(size, seed=size)
        assert torch.allclose(torch.cat(dual_logits(adapted, x)), apart(adapted, x), rtol=0, atol=1e-4), size


def test_the_parting_does_not_depend_on_the_samples_at_hand() -> None:
    one, equal = images(1), images(1).expand(6, -1, -1, -1)
    for x in (one, equal):
        adapted = adapt(ResidualNet, {"block.conv1": 2})
        assert split_point_of(adapted, x).module == "bn1"
        adapted = adapt(MixesBatch, {"fc": 3})
        assert split_point_of(adapted, x).kind == "apart"


def test_an_untrained_adapter_parts_where_a_trained_one_does() -> None:
    adapted = attach_adapter(seeded(ResidualNet).eval(), {"block.conv1": 2})
    assert split_point_of(adapted, images(2)).module == "bn1"
    shared = attach_adapter(seeded(Positioned).eval(), {"project": 4, "head": 2})
    assert split_point_of(shared, images(2)).kind == "apart"  # a softmax hides what is added to all places


def test_counted_operations_of_the_paper_network() -> None:
    conv1, conv2, fc1, fc2 = 26 * 26 * 32 * 9, 24 * 24 * 64 * 32 * 9, 9216 * 128, 128 * 10
    plain = conv1 + conv2 + fc1 + fc2
    late = split_point_of(adapt(PaperCNN, {"fc1": 64, "fc2": 5}), images(2))
    adapter = 64 * (9216 + 128) + 5 * (128 + 10)
    assert late.counted_ratio == pytest.approx((plain + fc2 + adapter) / plain)
    assert late.share_before == pytest.approx((plain - fc2) / plain)
    early = split_point_of(adapt(PaperCNN, {"conv1": 4, "fc1": 64, "fc2": 5}), images(2))
    adapter += 4 * 26 * 26 * (9 + 32)
    assert early.counted_ratio == pytest.approx((2 * plain - conv1 + adapter) / plain)
    assert early.share_before == pytest.approx(conv1 / plain)


def test_the_prefix_runs_on_single_samples_and_the_rest_on_both() -> None:
    adapted = adapt(PaperCNN, {"fc1": 8, "fc2": 4})
    dual_logits(adapted, images(7))
    seen: dict[str, int] = {}
    for name in ("conv1", "conv2", "fc1", "fc2"):
        adapted.base.get_submodule(name).register_forward_pre_hook(
            lambda _, arguments, name=name: seen.__setitem__(name, len(arguments[0]))
        )
    dual_logits(adapted, images(7))
    assert list(seen.values()) == [7, 7, 7, 14]


@pytest.mark.parametrize(("network", "layers"), [(case[0], case[1]) for case in CASES])
def test_nothing_is_left_on_the_users_model_nor_on_ours(network: type[nn.Module], layers: dict[str, int]) -> None:
    model = seeded(network).train()
    before = snapshot(model)
    adapted = randomise(attach_adapter(model, layers))
    dual_logits(adapted, images(3))
    assert snapshot(model) == before
    x = images(4)
    second = adapted(x, alpha=1)
    with pytest.raises(ModelError, match=r"model: cannot take inputs of shape \(2, 3\)"):
        dual_logits(adapted, images(2, 3))
    assert torch.equal(adapted(x, alpha=1), second)
    assert torch.allclose(dual_logits(adapted, x).second, second, atol=1e-5)
    assert snapshot(model) == before
    adapted.detach()
    assert hooks(model) == 0


def test_an_exception_in_the_middle_of_a_pass() -> None:
    adapted = adapt(Masked, {"blocks.1.down": 2})
    x = images(4)
    expected = dual_logits(adapted, x)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    handle = adapted.base.get_submodule("blocks.2").register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        dual_logits(adapted, x)
    handle.remove()
    assert torch.equal(dual_logits(adapted, x).second, expected.second)
    assert torch.allclose(adapted(x, alpha=1), expected.second, atol=1e-5)


def test_empty_batch() -> None:
    found = dual_logits(adapt(PaperCNN, {"fc1": 2}), images(0))
    assert found.base.shape == found.second.shape == (0, 10)


def test_threads_share_one_model() -> None:
    adapted = adapt(Masked, {"blocks.1.down": 2, "head": 2})
    batches = [images(size, seed=size) for size in range(1, 9)] * 4
    expected = [apart(adapted, x) for x in batches]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: torch.cat(dual_logits(adapted, x)), batches))
        turned = list(pool.map(lambda x: adapted(x, alpha=0.5).detach(), batches))
    for both, want, half, x in zip(found, expected, turned, batches, strict=True):
        assert torch.allclose(both, want, atol=1e-5)
        assert torch.equal(half, adapted(x, alpha=0.5))


@pytest.mark.parametrize(("network", "layers"), [CASES[0][:2], CASES[5][:2], CASES[10][:2]])
def test_modes_of_pytorch(network: type[nn.Module], layers: dict[str, int]) -> None:
    adapted, x = adapt(network, layers), images(6)
    expected = apart(adapted, x)
    with torch.inference_mode():
        assert torch.allclose(torch.cat(dual_logits(adapted, x)), expected, atol=1e-5)
    channels_last = x.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(torch.cat(dual_logits(adapted, channels_last)), expected, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = torch.cat(dual_logits(adapted, x))
        assert torch.allclose(half.float(), apart(adapted, x).float(), atol=0.03)


class Both(nn.Module):
    def __init__(self, adapted: AdaptedModel) -> None:
        super().__init__()
        self.adapted = adapted

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(dual_logits(self.adapted, x))


@pytest.mark.slow
@pytest.mark.parametrize(("network", "layers"), [CASES[0][:2], CASES[5][:2]])
def test_export_and_compile(network: type[nn.Module], layers: dict[str, int]) -> None:
    adapted, x = adapt(network, layers), images(6)
    expected = apart(adapted, x)
    dual_logits(adapted, x)
    dynamic = {"x": {0: torch.export.Dim("batch", min=2)}}
    program = torch.export.export(Both(adapted).eval(), (x,), dynamic_shapes=dynamic, strict=False).module()
    assert torch.allclose(torch.cat(program(x)), expected, atol=1e-5)
    assert torch.allclose(torch.cat(program(images(3))), apart(adapted, images(3)), atol=1e-5)
    compiled = torch.compile(Both(adapted).eval(), backend="eager")
    assert torch.allclose(torch.cat(compiled(x)), expected, atol=1e-5)


def test_map_tensors_keeps_the_structure() -> None:
    one, two = torch.ones(1), torch.ones(2)
    value = {"a": [one, (two, "text")], "b": None, "c": torch.return_types.max((one, two))}  # type: ignore[arg-type]
    paths: list[Any] = []
    mapped = map_tensors(value, lambda path, tensor: paths.append(path) or tensor + 1)  # type: ignore[func-returns-value]
    assert paths[:2] == [("a", 0), ("a", 1, 0)]
    assert mapped["a"][1][1] == "text"
    assert torch.equal(mapped["a"][0], one + 1)


def test_a_saved_split_point_is_checked_and_not_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = split_point_of(adapt(ResidualNet, {"block.conv1": 2}), images(3))
    saved = from_json(Record(json.loads(json.dumps(plain(found))), "a bundle"))
    assert saved == found
    searches: list[object] = []
    search = split_point.find_split_point
    monkeypatch.setattr(split_point, "find_split_point", lambda *given: searches.append(given) or search(*given))
    loaded = adapt(ResidualNet, {"block.conv1": 2})
    loaded.remembered = saved
    assert torch.allclose(torch.cat(dual_logits(loaded, images(4))), apart(loaded, images(4)), atol=1e-5)
    assert (loaded.split_point, searches) == (found, [])
    for wrong in (SplitPoint("inside", "block.conv1"), SplitPoint("before", "no such module")):
        other = adapt(ResidualNet, {"block.conv1": 2})
        other.remembered = wrong
        assert split_point_of(other, images(3)) == found
    assert len(searches) == 2


def test_a_fit_searches_once(model: nn.Module, digits: tuple[Data, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    searches: list[object] = []
    search = split_point.find_split_point
    for module in (split_point, layer_choice):
        monkeypatch.setattr(module, "find_split_point", lambda *given: searches.append(given) or search(*given))
    fit(model, digits[0], calibration=digits[1], recipe=SHORT).grade(digits[2].inputs(range(5)))
    assert len(searches) == 1
