"""A bundle runs no code: what it names is built only where it is petm's own, or its user trusts it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hf_folders
from forged_bundles import forge
from networks import TinyCNN, images, randomise, seeded
from petm.adapter.model import attach_adapter
from petm.errors import ArgumentError, BundleError, ModelError
from petm.grading.grader import Grader, load
from petm.grading.provenance import ModelOrigin, Origin
from petm.models.hf_classifier import load_classifier
from petm.models.hf_folder import refuse_custom_code
from petm.models.paper import paper_cnn
from petm.selective.thresholds import DISAGREEMENT

SPY = """
from pathlib import Path
from torch import nn
Path("imported").touch()
from networks import TinyCNN
def build(): return TinyCNN()
def writes(**_): Path("called").touch()
class Net(TinyCNN): pass
class NoNet: pass
borrowed = print
"""

COMMANDS = """
import json, sys
sys.path.remove('')  # the installed command starts without the current folder in its path
from petm.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["petm", *arguments]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    print(f"\\n{code}", "" if code == 1 else arguments, file=sys.stderr)
    print("\\0", end="", file=sys.stderr)
"""
"""Runs one command after the other, and divides what they say; one import of PyTorch serves them all."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (tmp_path / "spy.py").write_text(SPY)
    yield tmp_path
    for name in ("spy", "_petm_file_spy", "linked", "linked_folder"):
        sys.modules.pop(name, None)


Save = Callable[..., Path]


@pytest.fixture
def save(place: Path) -> Save:
    """Writes a bundle that names how its model is built, weights included."""

    def write(reference: str, model: nn.Module | None = None, **arguments: Any) -> Path:
        network = model or seeded(TinyCNN)
        adapted = randomise(attach_adapter(network, {"fc1": 2}))
        grader = Grader(adapted, DISAGREEMENT, origin=Origin(ModelOrigin(reference, arguments)))
        grader.save(place / "b.petm", include_base=True, overwrite=True)
        adapted.detach()
        return place / "b.petm"

    return write


@pytest.mark.parametrize(
    "reference",
    [
        "os:system", "posix:system", "subprocess:run", "builtins:exec", "spy:build", "spy.py:build", "spy:Net",
        "b.petm/spy.py:build", "petm:load_model", "petm.models.paper:paper_cnn", "petm.models.loading:load_model",
        "petm._internal.files:shutil", "petm.grading.bundle:os.system", "petm/../spy.py:build", "petm.py:build",
        "x", ":", "petm.absent:Net", "petm.errors:PetmError",
    ],
)  # fmt: skip
def test_nothing_else_is_imported_or_called(save: Save, place: Path, reference: str) -> None:
    bundle = save(reference, command="touch called", args="touch called", shell=True)
    with pytest.raises((BundleError, ModelError)):
        load(bundle)
    assert not (place / "called").exists()
    assert not (place / "imported").exists()
    assert "spy" not in sys.modules


@pytest.mark.slow
def test_the_commands_run_no_shell_command(save: Save, place: Path) -> None:
    bundle = str(save("os:system", command="touch called"))
    verbs = [["grade", bundle, "spy.py"], ["export", bundle, "-o", "x.onnx"], ["serve", bundle, "--port", "0"]]
    (place / "onnxruntime.py").write_text(SPY)  # a file with the name of a library beside the bundle
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(verbs)],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stderr.split("\0")[:-1]
    assert len(said) == len(verbs)
    for told in said:
        assert told.rstrip().endswith("\n1")
        assert "--trust-bundle-code" in told
        assert "Traceback" not in told
    assert not (place / "called").exists()
    assert not (place / "imported").exists()


def test_trust_announces_and_imports(save: Save, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, x = save("spy:build"), images(4)
    expected = seeded(TinyCNN).eval()(x)
    for reference, place_of in (("spy:build", "spy.py"), ("spy:Net", "spy.py"), ("spy.py:build", "spy.py")):
        forge(bundle, "model/reference", reference)
        grader = load(bundle, trust_bundle_code=True)
        with torch.no_grad():
            assert torch.equal(grader.adapted(x, alpha=0), expected)
        err = capsys.readouterr().err
        assert str(place / place_of) in err
        assert f"calls {reference.split(':')[1]}()" in err


@pytest.mark.parametrize(
    "reference",
    [
        "os:system", "posix:system", "subprocess:run", "shutil:rmtree",  # no module with a network
        "spy:print", "spy:borrowed", "spy:Path", "spy:TinyCNN", "spy:NoNet", "spy:absent",  # not its own network
        "inside/evil.py:build", "b.petm/evil.py:build", "linked.py:build", "linked:build", "linked_folder.evil:build",
    ],
)  # fmt: skip
def test_trust_has_limits(save: Save, place: Path, reference: str) -> None:
    bundle = save(reference)
    (bundle / "evil.py").write_text(SPY.replace("imported", "evil"))
    (place / "linked.py").symlink_to(bundle / "evil.py")
    (place / "linked_folder").symlink_to(bundle)
    (place / "inside").symlink_to(bundle)
    with pytest.raises((BundleError, ModelError)):
        load(bundle, trust_bundle_code=True)
    assert not (place / "evil").exists()
    assert not (place / "called").exists()


def test_a_network_of_petm_needs_no_trust(save: Save) -> None:
    for reference in ("petm.models:PaperCNN", "petm.models.paper:PaperCNN", "petm:PaperCNN"):
        bundle, x = save(reference, paper_cnn(3), classes=3), images(2)
        with torch.no_grad():
            assert torch.equal(load(bundle).adapted(x, alpha=0), paper_cnn(3).eval()(x))


@pytest.mark.parametrize("classes", [4, 10**8, 10**15, 10**30, -1, "3", [3], None])
def test_arguments_ask_for_no_memory(save: Save, classes: Any) -> None:
    bundle = save("petm.models:PaperCNN", paper_cnn(3), classes=3)
    forge(bundle, "model/arguments", {"classes": classes})
    with pytest.raises((BundleError, ModelError)):
        load(bundle)


def test_a_users_word_replaces_the_bundles(save: Save) -> None:
    bundle, x = save("os:system", command="touch called"), images(3)
    forge(bundle, "model/arguments", {})
    with torch.no_grad():
        assert torch.equal(load(bundle, "networks:TinyCNN").adapted(x, alpha=0), seeded(TinyCNN).eval()(x))


# Hugging Face folders


def test_code_in_a_folder_that_the_bundle_names_needs_both(save: Save, place: Path) -> None:
    hf_folders.save(place / "own", hf_folders.bert(), hf_folders.word_tokenizer())
    config = json.loads((place / "own" / "config.json").read_text())
    (place / "own" / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "own.Config"}}))
    (place / "own" / "own.py").write_text(SPY)
    bundle = save("hf:own")
    with pytest.raises(ModelError, match="trust_remote_code"):
        load(bundle)
    with pytest.raises(ModelError, match="trust_remote_code"):
        load(bundle, trust_bundle_code=True)
    with pytest.raises(ArgumentError, match="trust_remote_code: expected trust_bundle_code"):
        load(bundle, trust_remote_code=True)
    (place / "own").rename(bundle / "own")
    forge(bundle, "model/reference", "hf:b.petm/own")
    with pytest.raises(BundleError, match="outside the bundle"):
        load(bundle, trust_bundle_code=True, trust_remote_code=True)
    assert not (place / "imported").exists()


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModel": "own.Model"}},
        {"attn_implementation": "stranger/kernel"},
        {"text_config": {"_attn_implementation": {"": "stranger/kernel:load"}}},
        {"experts_implementation": "stranger/kernel"},
    ],
)
def test_code_of_the_hub_is_custom_code(config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="trust_remote_code"):
        refuse_custom_code(Path("folder"), config, trust_remote_code=False)
    refuse_custom_code(Path("folder"), config, trust_remote_code=True)
    refuse_custom_code(Path("folder"), {"attn_implementation": "sdpa", "a": "b/c"}, trust_remote_code=False)


def test_trust_in_nobodys_folder_is_refused(save: Save, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from petm.cli import main

    monkeypatch.setattr(sys, "argv", ["petm", "grade", str(save("hf:own")), "spy.py", "--trust-remote-code"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert "--trust-remote-code: expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    "entries",
    [
        {"num_hidden_layers": 10**6}, {"depths": [1, 10**6]}, {"text_config": {"n_layers": 10**6}},
        {"num_labels": 10**9}, {"architectures": 3}, {"architectures": {}},
    ],
)  # fmt: skip
def test_a_forged_configuration(place: Path, entries: dict[str, Any]) -> None:
    hf_folders.save(place / "own", hf_folders.bert(), hf_folders.word_tokenizer())
    config = json.loads((place / "own" / "config.json").read_text())
    (place / "own" / "config.json").write_text(json.dumps(config | entries))
    with pytest.raises(ModelError, match="model: expected"):
        load_classifier(place / "own")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_pipe_in_a_folder_is_not_opened(place: Path, name: str) -> None:
    hf_folders.save(place / "own", hf_folders.bert(), hf_folders.word_tokenizer())
    (place / "own" / name).unlink(missing_ok=True)
    os.mkfifo(place / "own" / name)
    with pytest.raises(ModelError, match="a device or pipe"):
        load_classifier(place / "own")
