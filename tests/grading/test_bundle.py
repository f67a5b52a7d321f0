import copy
import errno
import json
import os
import pickletools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

import petm.adapter.lora
import petm.grading.manifest
from forged_bundles import forge
from networks import ResidualNet, images, randomise, seeded
from petm._internal.files import plain
from petm.adapter.model import AdaptedModel, Cascade, Member, attach_adapter
from petm.adapter.one_pass import dual_logits
from petm.adapter.split_point import split_point_of
from petm.errors import BundleError, RunError
from petm.evidence.suspicion import suspicion_named
from petm.grading.bundle import read_bundle, write_bundle
from petm.grading.manifest import Manifest, MemberRecord, read_manifest
from petm.grading.provenance import Origin
from petm.models.loading import weights_fingerprint
from petm.selective.probability import ErrorProbability
from petm.selective.sets import PredictionSets
from petm.selective.targets import MaxRisk
from petm.selective.thresholds import DISAGREEMENT
from small_disk import files_of_at_most

ANOTHER_KIND = r"expected a petm bundle, got a petm.json of another kind"
FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors", "petm.json"]


@pytest.fixture
def model() -> nn.Module:
    return seeded(ResidualNet).eval()


@pytest.fixture
def adapted(model: nn.Module) -> AdaptedModel:
    return randomise(attach_adapter(model, {"conv1": 2, "block.conv1": 3, "fc": 4}))


def write(path: Path, adapted: AdaptedModel, *, include_base: bool = False, overwrite: bool = False) -> None:
    manifest = Manifest(
        origin=Origin(settings={"é": [1.5]}),
        fingerprint=weights_fingerprint(adapted.base),
        parameters=9,
        layers=adapted.ranks,
        adapter_parameters=3,
        split_point=plain(adapted.split_point),
        members=tuple(MemberRecord(member.adapter, member.view) for member in adapted.members),
        cascade=adapted.cascade,
        feature_layer="",
        suspicion=suspicion_named("mean_opinion").as_json(),
        threshold=DISAGREEMENT,
        target=MaxRisk(0.02, per="class"),
        probability=ErrorProbability(
            "isotonic", 0.01, knots=(0.0, 0.5), values=(0.1, 0.9), log_losses={"logistic": 0.2}
        ),
        measured={"recall": {"value": 0.5}},
        choice=None,
        outcome=None,
        sets=PredictionSets(0.9, "threshold", ((0.0,), (0.875,)), (90, 40), (1.0, 2.5)),
        versions={"petm": "1"},
    )
    write_bundle(path, adapted, manifest, {}, card="# Card\n", include_base=include_base, overwrite=overwrite)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def bundle(tmp_path: Path, adapted: AdaptedModel) -> Path:
    write(tmp_path / "b.petm", adapted, include_base=True)
    return tmp_path / "b.petm"


def test_a_bundle_holds_these_files_and_no_pickle(bundle: Path, adapted: AdaptedModel, tmp_path: Path) -> None:
    assert sorted(content(bundle)) == sorted([*FILES, "base.safetensors"])
    write(tmp_path / "c.petm", adapted)
    assert sorted(content(tmp_path / "c.petm")) == FILES
    for name, found in content(bundle).items():
        if name.endswith(".json"):
            json.loads(found)
        elif name.endswith(".safetensors"):
            load_file(bundle / name)
        assert not found.startswith((b"\x80", b"PK")), "neither a pickle nor torch's zip of pickles"
        with pytest.raises(ValueError, match=r"."):
            list(pickletools.genops(found))
    assert sorted(os.listdir(tmp_path)) == ["b.petm", "c.petm"]


def test_a_bundle_is_read_back(bundle: Path, model: nn.Module, adapted: AdaptedModel) -> None:
    found, manifest, _ = read_bundle(bundle, model)
    for alpha in (0.0, 1.0):
        assert torch.equal(found(images(4), alpha=alpha), adapted(images(4), alpha=alpha))
    assert manifest.origin.settings == {"é": [1.5]}
    assert manifest.target == MaxRisk(0.02, per="class")
    assert manifest.probability == ErrorProbability("isotonic", 0.01, 0, 0, (0.0, 0.5), (0.1, 0.9), {"logistic": 0.2})
    base = load_file(bundle / "base.safetensors")
    assert base.keys() == model.state_dict().keys()
    assert all(torch.equal(base[name], tensor) for name, tensor in model.state_dict().items())


def test_peft_alone_can_load_it(bundle: Path, model: nn.Module, adapted: AdaptedModel) -> None:
    plain = PeftModel.from_pretrained(copy.deepcopy(model), str(bundle)).eval()
    assert torch.equal(plain(images(4)), adapted(images(4)))


# damage


@pytest.mark.parametrize("name", [*FILES, "base.safetensors"])
def test_a_flipped_bit_anywhere_is_found(bundle: Path, name: str) -> None:
    whole = (bundle / name).read_bytes()
    places = {0, len(whole) // 3, len(whole) // 2, len(whole) - 3}
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (bundle / name).write_bytes(bytes(damaged))
        with pytest.raises(BundleError, match=rf"b.petm: .*{name}|b.petm: expected a petm bundle"):
            read_manifest(bundle)
    (bundle / name).write_bytes(whole)
    read_manifest(bundle)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "base.safetensors"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=rf"b.petm: expected the file {name}, got none\. Restore it or fit again"):
        read_manifest(bundle)


def test_a_truncated_file_is_named(bundle: Path) -> None:
    path = bundle / "base.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"b.petm: expected base.safetensors as petm writes it"):
        read_manifest(bundle)


def test_a_manifest_changed_by_hand(bundle: Path) -> None:
    manifest = json.loads((bundle / "petm.json").read_text())
    manifest["settings"]["é"] = [2.5]
    (bundle / "petm.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"b.petm: petm.json has changed since it was written"):
        read_manifest(bundle)


def test_what_is_no_bundle(tmp_path: Path) -> None:
    for path, got in ((tmp_path, "no petm.json in it"), (tmp_path / "absent", "a path that does not exist")):
        with pytest.raises(BundleError, match=f": expected a petm bundle, got {got}"):
            read_manifest(path)
    for text, message in (
        ("{", "petm.json: expected readable JSON"),
        ("\x00", "petm.json: expected readable JSON"),
        ("[" * 200_000, "petm.json: expected readable JSON"),
        ('{"a": "\\ud800"}', "petm.json: expected readable JSON"),
        ("[]", "petm.json: expected a JSON object"),
        ("{}", ANOTHER_KIND),
        ('{"format": "another", "format_version": 1}', ANOTHER_KIND),
        ('{"format": "petm bundle", "format_version": "1"}', ANOTHER_KIND),
        ('{"format": "petm bundle", "format_version": 1}', r"expected bundle version 4, got 1\. Fit again"),
        ('{"format": "petm bundle", "format_version": 5}', r"expected bundle version 4, got 5\. Upgrade petm"),
        ('{"format": "petm bundle", "format_version": 4}', r"petm.json has changed since it was written"),
    ):
        (tmp_path / "petm.json").write_text(text)
        with pytest.raises(BundleError, match=message):
            read_manifest(tmp_path)
    (tmp_path / "petm.json").write_bytes(b"\xff\xfe")
    with pytest.raises(BundleError, match=r"petm.json: expected readable JSON"):
        read_manifest(tmp_path)


# writing


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_bundle_is_never_overwritten(tmp_path: Path, adapted: AdaptedModel, overwrite: bool) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("years of work")
    before = content(tmp_path)
    for name in ("folder", "file"):
        with pytest.raises(RunError, match=rf"{name}: expected no such path yet, got something that is no bundle"):
            write(tmp_path / name, adapted, overwrite=overwrite)
    assert content(tmp_path) == before


def test_a_bundle_is_overwritten_only_when_asked(bundle: Path, adapted: AdaptedModel) -> None:
    before = content(bundle)
    with pytest.raises(RunError, match=r"b.petm: expected no such path yet, got a bundle\. .* overwrite=True"):
        write(bundle, adapted)
    assert content(bundle) == before
    randomise(adapted, seed=1)
    write(bundle, adapted, overwrite=True)
    assert sorted(content(bundle)) == FILES
    assert content(bundle)["adapter_model.safetensors"] != before["adapter_model.safetensors"]
    read_manifest(bundle)
    assert os.listdir(bundle.parent) == ["b.petm"]


def fail_in_adapter(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(adapted: AdaptedModel, folder: Path) -> None:
        (folder / "adapter_model.safetensors").write_text("half")
        raise error

    monkeypatch.setattr(petm.grading.bundle, "save_adapter", fail)


def fail_in_manifest(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(path: Path, content: Any) -> None:
        path.write_text("half")
        raise error

    monkeypatch.setattr(petm.grading.manifest, "write_json", fail)


def fail_at_the_last_rename(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    really, target = os.replace, "b.petm"
    failed = []

    def replace(source: Any, destination: Any) -> None:
        if Path(destination).name == target and not failed:
            failed.append(source)
            raise error
        really(source, destination)

    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize("fail", [fail_in_adapter, fail_in_manifest, fail_at_the_last_rename])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()])
@pytest.mark.parametrize("there_is_one", [False, True])
def test_a_bundle_is_whole_or_not_there(
    tmp_path: Path,
    adapted: AdaptedModel,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[[pytest.MonkeyPatch, BaseException], None],
    error: BaseException,
    there_is_one: bool,
) -> None:
    if there_is_one:
        write(tmp_path / "b.petm", adapted)
    before = content(tmp_path)
    fail(monkeypatch, error)
    expected = RunError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as raised:
        write(tmp_path / "b.petm", randomise(adapted, seed=1), overwrite=True)
    if expected is RunError:
        assert "b.petm: could not be written (No space left on device)" in str(raised.value)
    assert content(tmp_path) == before
    assert os.listdir(tmp_path) == (["b.petm"] if there_is_one else [])


def test_a_full_disk(tmp_path: Path, adapted: AdaptedModel) -> None:
    for limit in (100, 1500, 3000):  # within the adapter, its configuration, the base
        with files_of_at_most(limit), pytest.raises(RunError, match=r"could not be written \(.*[Tt]oo large"):
            write(tmp_path / "b.petm", adapted, include_base=True)
        assert os.listdir(tmp_path) == []


def test_a_place_where_nothing_can_be_written(tmp_path: Path, adapted: AdaptedModel) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/b.petm: could not be written \(.*\)\."):
        write(tmp_path / "file" / "b.petm", adapted)


def test_a_bundle_may_be_moved(bundle: Path, model: nn.Module, adapted: AdaptedModel, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "elsewhere" / "c")
    found, *_ = read_bundle(tmp_path / "elsewhere" / "c", model)
    assert torch.equal(found(images(4)), adapted(images(4)))


@pytest.mark.parametrize(
    "members",
    [
        (Member(), Member("second"), Member("second", "mirror")),
        (Member("second", "shift 1 0"), Member()),
        (Member("", "mirror"),),
    ],
    ids=["two adapters", "another order", "no adapter"],
)
def test_a_committee_survives(tmp_path: Path, model: nn.Module, members: tuple[Member, ...]) -> None:
    adapted = randomise(attach_adapter(model, {"conv1": 2, "fc": 4}, members=members))
    adapted.cascade = Cascade(0.25, 0.75, 0.5)
    write(tmp_path / "c.petm", adapted)
    files = set(content(tmp_path / "c.petm"))
    second = {"second/adapter_config.json", "second/adapter_model.safetensors"}
    assert files == {"README.md", "petm.json"} | (set(FILES) | second if adapted.adapters else set())
    again, *_ = read_bundle(tmp_path / "c.petm", model)
    assert again.members == members
    assert again.cascade == Cascade(0.25, 0.75, 0.5)
    adapted.cascade = again.cascade = None
    for one, other in zip(dual_logits(adapted, images(5)), dual_logits(again, images(5)), strict=True):
        assert torch.equal(one, other)


def test_a_bundle_that_lacks_an_adapter(tmp_path: Path, model: nn.Module) -> None:
    adapted = attach_adapter(model, {"fc": 4}, members=(Member(), Member("second")))
    write(tmp_path / "c.petm", adapted)
    (tmp_path / "c.petm" / "second" / "adapter_model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"expected the file second/adapter_model.safetensors, got none"):
        read_manifest(tmp_path / "c.petm")


# what somebody has forged


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (name, value)
        for name in ("model", "adapter", "members", "inputs", "threshold", "data", "versions", "files")
        for value in (..., 3, "text", True)
    ]
    + [
        ("settings", 3),
        ("measured", [1]),
        ("suspicion", 3),
        ("cascade", {"low": 0.5, "high": 2, "most": 1}),
        ("cascade", {"low": 0.5, "high": 1}),
        ("cascade", {"low": 0.5, "high": 1, "most": -1}),
        ("members", [{"adapter": "default", "view": "same"}] * 1000),
        ("members", [{"adapter": 3, "view": "same"}]),
        ("model/fingerprint", "0"),
        ("model/parameters", -1),
        ("model/parameters", True),
        ("model/parameters", 1.5),
        ("model/arguments", []),
        ("model/classes", [1]),
        ("model/reference", {}),
        ("adapter/layers", {"fc": 0}),
        ("adapter/parameters", None),
        ("adapter/split_point", "inside"),
        ("inputs/size", [1]),
        ("inputs/size", [0, 5]),
        ("inputs/size", [5, 1e9]),
        ("inputs/channels", 4),
        ("threshold/value", "nan"),
        ("threshold/value", None),
        ("threshold/rule", None),
        ("threshold/coverage", 1.1),
        ("threshold/classes", [{}]),
        ("target", {"kind": "luck"}),
        ("target", {"kind": "max_risk", "max_risk": 3}),
        ("target", {"kind": "coverage"}),
        ("probability", []),
        ("probability/method", "luck"),
        ("probability/knots", [0.5]),
        ("probability/knots", [0.5, 0.0]),
        ("probability/least", 0.9),
        ("probability/log_losses", {"a": "b"}),
        ("data", {"train": {"source": "a", "samples": -1, "content": ""}}),
        ("versions", {"petm": 1}),
        ("files", {"README.md": "short"}),
        ("files", {"../secret": "0" * 64}),
        ("files", {"/etc/passwd": "0" * 64}),
        ("files", {"a/../../b": "0" * 64}),
    ],
)
def test_a_forged_entry_is_named(bundle: Path, where: str, value: Any) -> None:
    forge(bundle, where, value)
    with pytest.raises(BundleError, match=rf"petm.json.*{where.split('/')[-1]}"):
        read_manifest(bundle)


def test_a_forger_who_changes_nothing_is_not_refused(bundle: Path) -> None:
    forge(bundle, "feature_layer", "")
    read_manifest(bundle)


def test_a_split_point_is_checked_once_instead_of_searched_again(
    tmp_path: Path, model: nn.Module, adapted: AdaptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = split_point_of(adapted, images(4))
    write(tmp_path / "b.petm", adapted)
    again, *_ = read_bundle(tmp_path / "b.petm", model)
    with monkeypatch.context() as patch:
        patch.setattr("petm.adapter.split_point.find_split_point", pytest.fail)
        assert split_point_of(again, images(4)) == expected
    for one, other in zip(dual_logits(adapted, images(5)), dual_logits(again, images(5)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("where", "value"),
    [("kind", "nowhere"), ("module", 3), ("shared", "a"), ("repeated", {"a": [3]}), ("counted_ratio", 0.5)],
)
def test_a_forged_split_point(tmp_path: Path, model: nn.Module, adapted: AdaptedModel, where: str, value: Any) -> None:
    split_point_of(adapted, images(4))
    write(tmp_path / "b.petm", adapted)
    forge(tmp_path / "b.petm", f"adapter/split_point/{where}", value)
    with pytest.raises(BundleError, match=f"split_point.*{where}"):
        read_bundle(tmp_path / "b.petm", model)


def test_a_split_point_that_is_none_of_this_network_is_searched_again(
    tmp_path: Path, model: nn.Module, adapted: AdaptedModel
) -> None:
    expected = split_point_of(adapted, images(4))
    write(tmp_path / "b.petm", adapted)
    forge(tmp_path / "b.petm", "adapter/split_point/module", "elsewhere")
    again, *_ = read_bundle(tmp_path / "b.petm", model)
    assert split_point_of(again, images(4)) == expected
