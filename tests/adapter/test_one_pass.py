import pytest
import torch
from torch import nn

from networks import ResidualNet, TinyCNN, images, randomise, seeded
from petm._internal.operations import count_operations
from petm.adapter.model import AdaptedModel, Member, attach_adapter
from petm.adapter.one_pass import (
    DualLogits,
    answers_of,
    dual_logits,
    find_feature_layer,
    predict_answers,
    set_cascade,
)
from petm.data.base import TensorData
from petm.data.views import view
from petm.errors import ArgumentError, DataError, ModelError


@pytest.fixture(params=[(TinyCNN, {"fc1": 3}), (ResidualNet, {"conv1": 2, "fc": 4})], ids=["plain", "BatchNorm"])
def both(request: pytest.FixtureRequest) -> tuple[nn.Module, AdaptedModel]:
    network, layers = request.param
    model = seeded(network).eval()
    return model, randomise(attach_adapter(model, layers), scale=0.5)


def test_both_opinions_of_a_batch(both: tuple[nn.Module, AdaptedModel]) -> None:
    model, adapted = both
    found = dual_logits(adapted, images(6))
    assert isinstance(found, DualLogits)
    assert torch.equal(found.base, model(images(6)))
    assert torch.equal(found.second, adapted(images(6), alpha=1))
    assert not torch.allclose(found.base, found.second, atol=0.01)
    assert not found.base.requires_grad
    assert not found.second.requires_grad


def test_both_opinions_of_a_data_set(both: tuple[nn.Module, AdaptedModel]) -> None:
    _, adapted = both
    found = predict_answers(adapted, TensorData(images(7)), batch_size=3)
    parts = [dual_logits(adapted, images(7)[start : start + 3]) for start in (0, 3, 6)]
    assert torch.equal(found.base, torch.cat([part.base for part in parts]))
    assert torch.equal(found.second, torch.cat([part.second for part in parts]))
    assert found.base.dtype == found.second.dtype == torch.float32


@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_large_batch_runs_in_parts_with_no_more_rows_than_it_has(
    both: tuple[nn.Module, AdaptedModel], n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adapted = both
    adapted.take_features(find_feature_layer(adapted, images(2)))
    rows: list[int] = []
    model.get_submodule(adapted.feature_layer).register_forward_hook(lambda _, __, output: rows.append(len(output)))
    whole = answers_of(adapted, images(n))
    assert rows[-1] == 2 * n
    monkeypatch.setattr("petm.adapter.one_pass._LARGE", 1)
    rows.clear()
    parts = answers_of(adapted, images(n))
    assert max(rows) <= max(n + n % 2, 2)
    assert sum(rows) == 2 * n
    for name in ("base", "second", "features"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), atol=1e-5, rtol=1e-5)
    assert parts.members == whole.members


COMMITTEES = {
    "two adapters": (Member(), Member("second")),
    "a mirror": (Member(view="mirror"),),
    "A at a mirror": (Member(""), Member("", "mirror")),
    "all of it": (Member(), Member("second", "shift 1 -2"), Member("", "mirror")),
}


@pytest.mark.parametrize("members", COMMITTEES.values(), ids=COMMITTEES)
@pytest.mark.parametrize(("network", "layers"), [(TinyCNN, {"fc1": 3}), (ResidualNet, {"block.conv1": 2, "fc": 4})])
def test_a_committee_answers_with_the_mean_of_its_probabilities(
    network: type[nn.Module], layers: dict[str, int], members: tuple[Member, ...]
) -> None:
    model, x = seeded(network).eval(), images(5)
    adapted = randomise(attach_adapter(model, layers, members=members), scale=0.5)
    looks = {"same": x, "mirror": x.flip(3), "shift 1 -2": view("shift 1 -2")(x)}
    alone = {"": model, **{name: adapted.alone(name) for name in adapted.adapters}}
    with torch.no_grad():
        probabilities = torch.stack([alone[m.adapter](looks[m.view]).double().softmax(1) for m in members]).mean(0)
    found = dual_logits(adapted, x)
    assert torch.allclose(found.base, model(x), atol=1e-5)
    assert torch.allclose(found.second.double().softmax(1), probabilities, atol=1e-6)
    assert torch.allclose(adapted(x), found.second, atol=1e-5)
    assert (adapted.split_point.kind == "apart") == all(member.view != "same" for member in members)


def test_a_view_costs_a_pass_and_leaves_the_others_their_shared_prefix() -> None:
    model = seeded(TinyCNN).eval()
    ratios = []
    for members in [(Member(),), (Member(), Member("", "mirror"))]:
        adapted = attach_adapter(model, {"fc2": 1}, members=members)
        dual_logits(adapted, images(3))
        counted = count_operations(lambda held=adapted: dual_logits(held, images(3)), adapted.base)
        plain = count_operations(lambda: model(images(3)), model)
        assert counted / plain == pytest.approx(adapted.split_point.counted_ratio, rel=0.01)
        ratios.append(counted / plain)
        adapted.detach()
    assert ratios[1] == pytest.approx(ratios[0] + 1, rel=0.01)


def test_what_a_committee_shares_is_computed_once() -> None:
    model = seeded(TinyCNN).eval()
    counted = []
    for members in [(Member(),), (Member(), Member("second"), Member("third"))]:
        adapted = attach_adapter(model, {"fc2": 1}, members=members)
        dual_logits(adapted, images(4))
        counted.append(adapted.split_point.counted_ratio - 1)
    assert counted[1] == pytest.approx(3 * counted[0])
    assert counted[1] < 0.2


@pytest.mark.parametrize("members", [(Member(),), (Member("", "mirror"), Member("second"))])
def test_a_second_look_at_the_least_sure(members: tuple[Member, ...]) -> None:
    model, x = seeded(ResidualNet).eval(), images(40)
    adapted = randomise(attach_adapter(model, {"fc": 3}, members=members), scale=0.5)
    everything = dual_logits(adapted, x)
    set_cascade(adapted, TensorData(x), 0.25)
    found = dual_logits(adapted, x)
    suspicion = 1 - everything.base.double().softmax(1).amax(1)
    looked = suspicion >= suspicion.sort().values[30]
    assert looked.sum() == 10
    assert torch.allclose(found.second[looked], everything.second[looked], atol=1e-5)
    assert torch.equal(found.second[~looked], found.base[~looked])
    assert torch.allclose(found.base, everything.base, atol=1e-5)
    alone = [dual_logits(adapted, x[index : index + 1]).second for index in range(40)]
    assert torch.allclose(torch.cat(alone), found.second, atol=1e-5)
    set_cascade(adapted, TensorData(x), 1.0)
    assert torch.allclose(dual_logits(adapted, x).second, everything.second, atol=1e-5)
    with pytest.raises(ArgumentError, match=r"share: expected a number above 0 and at most 1, got 0"):
        set_cascade(adapted, TensorData(x), 0)


def test_an_adapter_alone_is_all_that_is_trained() -> None:
    adapted = attach_adapter(seeded(TinyCNN), {"fc1": 2}, members=(Member(), Member("second")))
    alone = adapted.alone("second")
    with alone.learning():
        trained = [name for name, weight in alone.named_parameters() if weight.requires_grad]
    assert len(trained) == 2
    assert all("second" in name for name in trained)


def test_faults(both: tuple[nn.Module, AdaptedModel]) -> None:
    _, adapted = both
    with pytest.raises(DataError, match=r"mine: "):
        predict_answers(adapted, TensorData(images(0), source="mine"))
    with pytest.raises(ModelError, match=r"model: cannot take inputs of shape \(2, 5\)"):
        dual_logits(adapted, images(2, 5))
