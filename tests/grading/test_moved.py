"""Bundles that are moved together with what they name."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from networks import images
from petm.adapter.model import attach_adapter
from petm.errors import PetmError
from petm.evidence.suspicion import suspicion_named
from petm.grading.grader import Grader, load
from petm.grading.manifest import read_manifest
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin, found_from, paths_from
from petm.models.loading import save_weights
from petm.selective.thresholds import Threshold

NETWORK = """
from torch import nn
def build():
    return nn.Sequential(nn.Conv2d(1, 2, 3, stride=4), nn.Flatten(), nn.Linear(98, 10))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "old" / "nets").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path


def test_a_bundle_finds_model_and_weights_beside_itself(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("nets/net.py").write_text(NETWORK)
    scope: dict[str, type] = {}
    exec(NETWORK, scope)
    model = scope["build"]().eval()
    save_weights(model, Path("w.safetensors"))
    origin = Origin(ModelOrigin("nets/net.py:build", weights="w.safetensors"))
    adapted = attach_adapter(model, {"2": 1})
    Grader(adapted, Threshold(0.5, "by hand"), suspicion_named("softmax"), origin=origin).save("graders/my.petm")
    expected = load("graders/my.petm", trust_bundle_code=True).grade(images(4))
    assert read_manifest("graders/my.petm").origin == origin, "as it was named, where that is the same file"

    (place / "old").rename(place / "new")
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    found = load("../new/graders/my.petm", trust_bundle_code=True)
    assert torch.equal(torch.from_numpy(found.grade(images(4)).suspicion), torch.from_numpy(expected.suspicion))
    assert found.origin.model.weights == os.path.join("..", "new", "w.safetensors")
    found.save("../new/again.petm")
    assert read_manifest("../new/again.petm").paths[os.path.join("..", "new", "w.safetensors")] == "../w.safetensors"

    (place / "new" / "w.safetensors").unlink()
    with pytest.raises(PetmError, match=r"w\.safetensors.*--weights"):
        load("../new/graders/my.petm", trust_bundle_code=True)


def test_folders_of_hugging_face_and_what_is_not_there(place: Path) -> None:
    for name in ("bert", "base", "tokens"):
        Path(name).mkdir()
    inputs = InputOrigin(processor="tokens", base="base")
    origin = Origin(ModelOrigin("hf:bert", {"base": "base"}, weights="gone.safetensors"), inputs)
    paths = paths_from(origin, Path("my.petm"))
    assert paths == {"bert": "../bert", "base": "../base", "tokens": "../tokens"}
    assert found_from(origin, Path("my.petm"), paths) == origin
    there = str(place / "old")
    os.chdir(place)
    assert found_from(origin, Path(there, "my.petm"), paths) == Origin(
        ModelOrigin(f"hf:{there}/bert", {"base": f"{there}/base"}, weights="gone.safetensors"),
        replace(inputs, processor=f"{there}/tokens", base=f"{there}/base"),
    )
    moved = Path("other", "my.petm")
    assert found_from(origin, moved, paths) == origin, "what has not moved along stays as it was named"
    assert paths_from(Origin(ModelOrigin("mypkg.nets:build")), moved) == {}
