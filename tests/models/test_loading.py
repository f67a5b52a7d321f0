import copy
import pickle
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from networks import ResidualNet, TiedNet, TinyCNN, images, seeded, snapshot
from petm.errors import ModelError
from petm.models.loading import (
    call_model,
    count_parameters,
    load_model,
    load_weights,
    read_weights,
    save_weights,
    share_weights,
    weights_fingerprint,
)
from petm.models.paper import PaperCNN, paper_cnn

FACTORIES = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn

@dataclass
class Sizes:
    inputs: int = 4

def make(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(Sizes().inputs, classes), nn.Dropout())

def fails():
    raise RuntimeError("no such size")

def wrong():
    return 3

NUMBER = 3
"""


@pytest.fixture
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


@pytest.fixture
def factories(tmp_path: Path, clean_imports: None) -> Path:
    path = tmp_path / "my_factories.py"
    path.write_text(FACTORIES)
    return path


# the paper's network


def test_the_papers_network_has_the_papers_size() -> None:
    model = paper_cnn()
    # LoRA-PETM (ACK 2025), section 3.1: 1,199,882 parameters
    assert count_parameters(model) == 320 + 18_496 + 1_179_776 + 1_290 == 1_199_882
    assert model(images(2)).shape == (2, 10)
    assert paper_cnn(3)(images(2)).shape == (2, 3)


def test_the_papers_network_by_hand() -> None:
    model, x = paper_cnn(seed=3), images(2)
    h = torch.relu(torch.nn.functional.conv2d(x, model.conv1.weight, model.conv1.bias))
    h = torch.relu(torch.nn.functional.conv2d(h, model.conv2.weight, model.conv2.bias))
    h = h.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)).flatten(1)
    h = torch.relu(h @ model.fc1.weight.T + model.fc1.bias)
    torch.testing.assert_close(model(x), h @ model.fc2.weight.T + model.fc2.bias)


def test_the_papers_network_follows_its_seed_alone() -> None:
    state = torch.get_rng_state()
    first = weights_fingerprint(paper_cnn(seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert weights_fingerprint(paper_cnn(seed=1)) == first
    assert weights_fingerprint(paper_cnn(seed=2)) != first
    torch.manual_seed(1)
    assert weights_fingerprint(PaperCNN()) == first


# load_model


def test_a_factory_in_a_file(factories: Path) -> None:
    model = load_model(f"{factories}:make", arguments={"classes": 5})
    assert isinstance(model, nn.Sequential)
    assert model[0].weight.shape == (5, 4)
    assert not model.training


def test_a_factory_in_a_module(factories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(factories.parent)
    assert load_model("my_factories:make")[0].weight.shape == (3, 4)


def test_the_current_folder_is_the_callers_business(factories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(factories.parent)
    before = list(sys.path)
    with pytest.raises(ModelError, match="my_factories"):
        load_model("my_factories:make")
    assert sys.path == before


def test_a_factory_in_an_installed_module() -> None:
    assert isinstance(load_model("petm.models:paper_cnn", arguments={"seed": 4}), PaperCNN)


def test_two_files_of_one_name(factories: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / factories.name
    other.parent.mkdir()
    other.write_text(FACTORIES.replace("inputs: int = 4", "inputs: int = 6"))
    assert load_model(f"{factories}:make")[0].weight.shape == (3, 4)
    assert load_model(f"{other}:make")[0].weight.shape == (3, 6)


@pytest.mark.parametrize("reference", ["my_factories", ":make", "my_factories:", ""])
def test_references_outside_their_rule(reference: str) -> None:
    rule = "model: expected 'module:factory', 'file.py:factory' or 'hf:DIR'"
    with pytest.raises(ModelError, match=rf"{rule}, got '{reference}'"):
        load_model(reference)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", r"model: expected a factory in .*my_factories.py, got 'absent'. Available: .*make, fails, wrong"),
        ("NUMBER", r"got 'NUMBER'. Available: dataclass, Sizes, make"),
        ("fails", r"model: .*:fails failed with RuntimeError: no such size\."),
        ("wrong", r"model: expected .*:wrong to return a torch.nn.Module, got int\."),
    ],
)
def test_factories_that_do_not_do(factories: Path, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(f"{factories}:{name}")


def test_a_factory_that_does_not_take_the_arguments(factories: Path) -> None:
    with pytest.raises(ModelError, match=r"make failed with TypeError: .*unexpected keyword argument 'depth'"):
        load_model(f"{factories}:make", arguments={"depth": 3})


def test_a_file_without_its_factory_says_how_to_name_one() -> None:
    with pytest.raises(ModelError, match=r"model: expected .*'file.py:factory'.*, got 'tiny.py'\. Name "):
        load_model("tiny.py")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("no_such_module_anywhere", r"model: no_such_module_anywhere cannot be imported \(ModuleNotFoundError"),
        ("absent.py", r"model: .*absent\.py, which does not exist"),
        ("broken.py", r"model: .*broken.py cannot be imported \(ZeroDivisionError"),
        ("syntax.py", r"model: .*syntax.py cannot be imported \(SyntaxError"),
    ],
)
def test_places_that_cannot_be_imported(tmp_path: Path, clean_imports: None, place: str, message: str) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "syntax.py").write_text("def")
    before = set(sys.modules)
    with pytest.raises(ModelError, match=message):
        load_model(f"{tmp_path / place if place.endswith('.py') else place}:make")
    assert not {name for name in set(sys.modules) - before if "broken" in name or "syntax" in name}


# weights


@pytest.mark.parametrize("network", [TinyCNN, ResidualNet, TiedNet])
def test_weights_survive_both_kinds_of_file(tmp_path: Path, network: type[nn.Module]) -> None:
    model = seeded(network, seed=1)
    save_weights(model, tmp_path / "w.safetensors")
    torch.save(model.state_dict(), tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        other = seeded(network, seed=2)
        load_weights(other, tmp_path / name)
        assert snapshot(other)["bits"] == snapshot(model)["bits"]
        assert weights_fingerprint(other) == weights_fingerprint(model)


def test_load_model_reads_weights(tmp_path: Path) -> None:
    model = paper_cnn(4, seed=9)
    save_weights(model, tmp_path / "w.safetensors")
    loaded = load_model("petm.models:paper_cnn", tmp_path / "w.safetensors", arguments={"classes": 4})
    assert weights_fingerprint(loaded) == weights_fingerprint(model)


class Malicious:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "w.pt"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"weight": Malicious(marker)}))
    else:
        torch.save({"weight": Malicious(marker)}, path)
    torch.load(path, weights_only=False) if how == "torch.save" else pickle.loads(path.read_bytes())
    assert marker.exists(), "the trap works"
    marker.unlink()
    with pytest.raises(ModelError, match=r"w.pt cannot be read as a state_dict with weights_only=True .*safetensors"):
        read_weights(path)
    assert not marker.exists()


@pytest.mark.parametrize("keep", [0, 7, 100, 2000, -1])
def test_a_truncated_safetensors_file(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(seeded(TinyCNN), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"weights: .*w.safetensors is not a whole safetensors file \("):
        read_weights(path)


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"weights: "):
        read_weights(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ModelError, match=r"text.pt cannot be read as a state_dict"):
        read_weights(tmp_path / "text.pt")
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "nested.pt")
    with pytest.raises(ModelError, match=r"weights: "):
        read_weights(tmp_path / "nested.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(ModelError, match=r"weights: "):
        read_weights(tmp_path / "tensor.pt")


def test_weights_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    model = seeded(TinyCNN)
    before = weights_fingerprint(model)
    state = seeded(TinyCNN, seed=1).state_dict()
    state["fc3.weight"] = state.pop("fc1.weight")
    state["fc2.bias"] = torch.zeros(4)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError) as raised:
        load_weights(model, tmp_path / "w.safetensors")
    assert str(raised.value) == (
        f"weights: {tmp_path}/w.safetensors does not fit the model: fc2.bias is (4,) in the file and "
        f"(10,) in the model; fc1.weight is missing in the file; fc3.weight is not in the model."
    )
    assert weights_fingerprint(model) == before


def test_many_differences_are_counted(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"conv1.bias is missing in the file; .* \(and 6 more\)\."):
        load_weights(seeded(TinyCNN), tmp_path / "w.safetensors")


def test_saved_weights_are_what_safetensors_reads(tmp_path: Path) -> None:
    model = seeded(ResidualNet)
    save_weights(model, tmp_path / "w.safetensors")
    found = load_file(tmp_path / "w.safetensors")
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def test_the_fingerprint_follows_every_bit_and_every_name() -> None:
    model = seeded(ResidualNet)
    first = weights_fingerprint(model)
    assert weights_fingerprint(copy.deepcopy(model)) == first
    assert weights_fingerprint(copy.deepcopy(model).train().requires_grad_(False)) == first
    for name in ("fc.bias", "block.bn1.running_var", "bn1.num_batches_tracked"):
        other = copy.deepcopy(model)
        value = other.state_dict()[name].view(-1)
        value[0] = value[0] + 1 if value.dtype == torch.int64 else torch.nextafter(value[0], torch.tensor(9.0))
        assert weights_fingerprint(other) != first
    assert weights_fingerprint(nn.Sequential(model)) != first


def test_tied_parameters_count_once() -> None:
    assert count_parameters(TiedNet()) == 28 * 28 + 2 * 28 + 28 * 10 + 10


# share_weights


@pytest.mark.parametrize("network", [TinyCNN, ResidualNet, TiedNet])
def test_a_sharing_copy(network: type[nn.Module]) -> None:
    model = seeded(network).train()
    before = snapshot(model)
    shared = share_weights(model)
    for name, tensor in model.state_dict().items():
        assert shared.state_dict()[name].data_ptr() == tensor.data_ptr()
    assert not any(parameter.requires_grad for parameter in shared.parameters())
    assert not any(module.training for module in shared.modules())
    assert not set(map(id, shared.modules())) & set(map(id, model.modules()))
    assert count_parameters(shared) == count_parameters(model)
    shared.add_module("more", nn.ReLU())
    shared.requires_grad_(True)
    assert snapshot(model) == before


def test_tied_weights_stay_tied() -> None:
    shared = share_weights(TiedNet())
    assert shared.first.weight is shared.second.weight


def test_a_model_that_cannot_be_copied() -> None:
    model = seeded(TinyCNN)
    model.lock = threading.Lock()
    with pytest.raises(ModelError, match=r"model: "):
        share_weights(model)


# call_model


class Answering(nn.Module):
    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, **arguments: object) -> object:
        if isinstance(self.answer, Exception):
            raise self.answer
        return arguments.get("answer", self.answer)


def test_logits_as_a_tensor_or_as_an_attribute() -> None:
    logits, x = torch.rand(3, 4), torch.zeros(3, 1)
    assert call_model(Answering(logits), x) is logits
    assert call_model(Answering(SimpleNamespace(logits=logits, loss=None)), x) is logits
    assert call_model(Answering(None), x, answer=logits) is logits
    assert call_model(Answering((torch.zeros(3, 2, 5), logits)), x) is logits
    assert call_model(Answering({"features": torch.zeros(3, 8), "out": logits}), x) is logits
    assert call_model(Answering([logits, torch.zeros(3, 4, dtype=torch.long)]), x) is logits


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (torch.zeros(3), r"\(3,\)"),
        (torch.zeros(3, 1), r"\(3, 1\)"),
        (torch.zeros(2, 4), r"\(2, 4\)"),
        (torch.zeros(3, 4, 1), r"\(3, 4, 1\)"),
        (torch.zeros(3, 4, dtype=torch.long), r"\(3, 4\) of torch.int64"),
        ((torch.zeros(3, 4), torch.zeros(3, 8)), r"a tuple of 0 \(3, 4\), 1 \(3, 8\)"),
        ({}, "dict"),
        (None, "NoneType"),
        (SimpleNamespace(logits=None), "SimpleNamespace"),
    ],
)
def test_answers_that_are_no_logits(answer: object, got: str) -> None:
    with pytest.raises(
        ModelError, match=rf"model: expected logits of shape \(3, K\) with K of at least 2, got {got}\."
    ):
        call_model(Answering(answer), torch.zeros(3, 1))


@pytest.mark.parametrize("error", [RuntimeError, ValueError, TypeError, IndexError, AssertionError])
def test_a_model_that_fails_on_its_inputs(error: type[Exception]) -> None:
    message = r"model: cannot take inputs of shape \(3, 1\): first line\. Check size and channels"
    with pytest.raises(ModelError, match=message):
        call_model(Answering(error("first line\nsecond line")), torch.zeros(3, 1))


def test_a_failure_without_words_and_a_lack_of_memory() -> None:
    with pytest.raises(ModelError, match=r"\(3, 1\): AssertionError\."):
        call_model(Answering(AssertionError()), torch.zeros(3, 1))
    with pytest.raises(torch.OutOfMemoryError):
        call_model(Answering(torch.OutOfMemoryError("full")), torch.zeros(3, 1))


def test_inputs_of_the_wrong_size() -> None:
    with pytest.raises(ModelError, match=r"model: "):
        call_model(seeded(TinyCNN), images(2, 3, 28, 28))


def test_weights_that_have_moved(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"weights: expected a file.*--weights"):
        read_weights(tmp_path / "moved.safetensors")
