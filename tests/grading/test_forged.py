"""Forged bundles: each ends in BundleError, at once, before anything large is allocated."""

import copy
import json
import math
import os
import re
import resource
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from forged_bundles import forge, seal, seal_files
from networks import TinyCNN, images, randomise, seeded
from petm.adapter.lora import ADAPTER
from petm.adapter.model import Member, attach_adapter
from petm.adapter.peft_folder import load_adapter, save_adapter
from petm.adapter.split_point import split_point_of
from petm.cli.inspect import print_manifest
from petm.errors import BundleError
from petm.evidence.suspicion import suspicion_named
from petm.grading.grader import Grader, load
from petm.grading.onnx_grader import Answer, OnnxGrader, _shape_of
from petm.grading.provenance import DataOrigin, InputOrigin, ModelOrigin, Origin
from petm.selective.bootstrap import Estimate
from petm.selective.choice import Choice, Compared
from petm.selective.outcome import Outcome
from petm.selective.probability import ErrorProbability
from petm.selective.targets import MaxRisk
from petm.selective.thresholds import Threshold
from petm.selective.trade_off import Coverages, TradeOff
from petm.selective.worth import Worth

LONG, DEEP = "x" * 200_000, json.loads("[" * 900 + "]" * 900)
STRANGE: tuple[Any, ...] = (
    None, True, -1, 1.5, 10**30, 1e300, "text", "", [], {}, [None], {"": {}}, "a\x1b[2Jb", "a\nb", "\u2028", DEEP, LONG,
)  # fmt: skip
"""Values of every type; those that suit an entry are no forgery."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with every entry that there can be."""
    adapted = randomise(attach_adapter(seeded(TinyCNN), {"conv2": 3, "fc1": 2}))
    split_point_of(adapted, images(4))
    origin = Origin(
        ModelOrigin("networks:TinyCNN", {"classes": 10}, "w.safetensors", tuple("abcdefghij")),
        InputOrigin((28, 28), 1, "tokens", "text", 12, "0" * 64),
        {"train": DataOrigin("images", 3, "0" * 64)},
        {"recipe": "auto"},
    )
    parts = tuple(Threshold(0.5, "r") for _ in range(10))
    threshold = Threshold(0.5, "r", 0.5, 0.1, 0.95, 0.05, 0.9, samples_needed=4, classes=parts)
    probability = ErrorProbability("isotonic", 0.01, knots=(0.0, 0.5), values=(0.1, 0.9), log_losses={"logistic": 0.2})
    measured = {"recall": {"value": 0.5, "low": 0.1, "high": 0.9, "count": 1, "of": 2}, "auroc": 0.9}
    choice = Choice("a", "aurc", (Compared("a", 0.1, 0.2, -0.1, 0.1, better=True, taken=True),), "It is better.")
    shares, estimate = Coverages(0.5, 0.6, 0.7, 0.8), Estimate(-3, -5, -1)
    worth = Worth(100, 2, 103, 2, estimate, estimate, 0.95, "better")
    outcome = Outcome((TradeOff(0.01, 0.95, shares, shares),), worth, softmax_alone=False)
    held = (probability, origin, measured, MaxRisk(0.02, per="class"), choice, outcome)
    grader = Grader(adapted, threshold, suspicion_named("mean_opinion"), *held)
    path = tmp_path_factory.mktemp("forged") / "b.petm"
    grader.save(path, include_base=True)
    return path


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "b.petm")


def entries(content: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The paths of all entries."""
    for name, entry in content.items() if isinstance(content, dict) else ():
        yield "/".join((*path, name))
        yield from entries(entry, (*path, name))


def use(bundle: Path) -> None:
    """Whatever a user does with a bundle."""
    print_manifest(bundle, as_json=False)
    grader = load(bundle, seeded(TinyCNN))
    grader.grade(images(4))


def refuse(bundle: Path, *, accepts: bool = False) -> str | None:
    """Expects BundleError of one line, in a second of processor time and with some megabytes; returns its message."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: BundleError | None = None
    try:
        use(bundle)
    except BundleError as error:
        found = error
    assert time.process_time() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
    if found is None:
        assert accepts, "a forgery was accepted"
        return None
    assert str(found).isprintable()
    assert len(str(found)) < 1000
    return str(found)


@pytest.mark.slow
def test_every_entry_is_checked(bundle: Path) -> None:
    """A third of about 1,500 forgeries; what suits an entry may be accepted, and then the grader works."""
    original = json.loads((bundle / "petm.json").read_text())
    del original["checksum"]
    forged = refused = 0
    for place, where in enumerate(entries(original)):
        for value in (..., *STRANGE)[place % 3 :: 3]:
            seal(bundle, copy.deepcopy(original))
            forge(bundle, where, value)
            forged, refused = forged + 1, refused + (refuse(bundle, accepts=True) is not None)
    assert forged > 450
    assert refused > 0.8 * forged


@pytest.mark.parametrize(
    ("where", "value", "named"),
    [
        ("suspicion/evidence", ["luck"], "evidence"),
        ("settings/a", DEEP, "too deep"),
        ("settings/a", LONG, "too long"),
        ("measured/a", math.nan, "NaN"),
        ("measured/a", -math.inf, "Infinity"),
        ("measured/a", 10**4000, "petm.json"),
        ("measured/a", 2**64, "64 bits"),
        ("model/classes/0", "\x1b[2J", "control characters"),
        ("model/reference", "a\nb:c", "control characters"),
        ("adapter/layers/fc1", 3, "layers"),
        ("adapter/layers/fc1", 10**9, "layers"),
        ("adapter/layers/elsewhere", 1, "layers"),
        ("members/0/adapter", "../b", "adapter|names within"),
        ("members/0/adapter", "/etc", "adapter|names within"),
        ("members/0/adapter", "a/b", "adapter"),
        ("members/0/adapter", "absent", "adapter"),
        ("members/0/view", "upside down", "members"),
        ("members/0/view", "shift 9999999999 0", "members"),
        ("members/0/view", ", ".join(["mirror"] * 1000), "view"),
        ("files/..", "0" * 64, "files"),
        ("files/a\\..\\b", "0" * 64, "files"),
        ("files/C:b", "0" * 64, "files"),
    ],
)
def test_a_forged_entry(bundle: Path, where: str, value: Any, named: str) -> None:
    forge(bundle, where, value)
    message = refuse(bundle)
    assert message is not None
    assert re.search(named, message)


@pytest.mark.parametrize(
    "text",
    [
        '{"format": "petm bundle", "format": "petm bundle"}', "[" * 10**6, '{"a":' * 10**6, "1" * 5000, "NaN", "",
        '{"format_version": 1e999}', "[" + "0," * (5 << 20) + "0]", "\ufeff{}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["petm.json", "adapter_config.json"])
def test_a_text_that_is_no_manifest(bundle: Path, name: str, text: str) -> None:
    (bundle / name).write_text(text)
    if name != "petm.json":
        seal_files(bundle)
    refuse(bundle)


@pytest.mark.parametrize("name", ["petm.json", "adapter_config.json", "adapter_model.safetensors", "base.safetensors"])
def test_what_is_no_file(bundle: Path, name: str, tmp_path: Path) -> None:
    kept = (bundle / name).read_bytes()
    (tmp_path / "outside").write_bytes(kept)
    for make in (
        lambda path: os.mkfifo(path),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path),
        lambda path: path.symlink_to(tmp_path / "outside"),
    ):
        shutil.rmtree(bundle / name) if (bundle / name).is_dir() else (bundle / name).unlink()
        make(bundle / name)
        if name != "petm.json" or not (bundle / name).is_file():
            refuse(bundle)


# adapters


def changed_config(bundle: Path, **entries: Any) -> None:
    config = json.loads((bundle / "adapter_config.json").read_text())
    (bundle / "adapter_config.json").write_text(json.dumps(config | entries))
    seal_files(bundle)


@pytest.mark.parametrize(
    "entries",
    [
        {"rank_pattern": {"(a+)+$": 2}},
        {"rank_pattern": {"(\\w+)*!": 2}},
        {"rank_pattern": {".*.*.*.*.*.*.*.*.*.*.*!": 2}},
        {"rank_pattern": ["fc1"]},
        {"rank_pattern": "fc1"},
        {"rank_pattern": {"(": 2}},
        {"rank_pattern": {f"a{number}": 1 for number in range(10_000)}},
        {"rank_pattern": {"fc1": 10**9}},
        {"rank_pattern": {"fc1": -2}},
        {"rank_pattern": {"fc1": [2]}},
        {"rank_pattern": {}, "r": None},
        {"alpha_pattern": {"fc1": "2"}, "lora_alpha": "2"},
        {"alpha_pattern": {"^fc1": 10**30}},
        {"alpha_pattern": {"^fc1": [1]}},
        {"alpha_pattern": {"^fc1": math.nan}},
        {"alpha_pattern": [[]]},
    ],
)
def test_a_forged_configuration(bundle: Path, entries: dict[str, Any]) -> None:
    changed_config(bundle, **entries)
    refuse(bundle)


def test_many_patterns_are_compiled_once(tmp_path: Path) -> None:
    """2,000 patterns and 200 layers: a compilation for each pair took minutes."""
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(200)))
    adapted = attach_adapter(model, {str(number): 1 for number in range(200)})
    path = tmp_path / "adapter"
    path.mkdir()
    save_adapter(adapted, path)
    adapted.detach()
    content = json.loads((path / "adapter_config.json").read_text())
    patterns = {f"a{number}.b": 1 for number in range(2000)} | {"7": 1, "1.7": 5, "[0-9]+": 1}
    (path / "adapter_config.json").write_text(json.dumps(content | {"rank_pattern": patterns}))
    started = time.process_time()
    with pytest.raises(BundleError, match="rank 1 in 107 where the settings say 5"):
        load_adapter(model, path)
    assert time.process_time() - started < 3


def test_no_adapter_is_allocated_beyond_its_file(bundle: Path) -> None:
    """One file says large adapters; a hundred members would each get one before their own files were read."""
    kept = {A: torch.zeros(2, 2)}
    model = seeded(TinyCNN)
    sides = {name: tuple(module.weight.shape) for name, module in model.named_modules() if name == "fc1"}
    outputs, inputs = sides["fc1"]
    save_file({A: torch.zeros(64, inputs), B: torch.zeros(outputs, 64)}, bundle / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 64, "lora_alpha": 64, "target_modules": "fc1"}
    (bundle / "adapter_config.json").write_text(json.dumps(config))
    (bundle / "other").mkdir()
    save_file(kept, bundle / "other" / "adapter_model.safetensors")
    with pytest.raises(BundleError, match="adapters of several shapes"):
        load_adapter(model, bundle, [Member(ADAPTER, ""), Member("other", "")])


def safetensors(path: Path, header: object, body: bytes = b"") -> None:
    """Writes a file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


A, B = "base_model.model.fc1.lora_A.weight", "base_model.model.fc1.lora_B.weight"


def entry(shape: list[Any], start: int = 0, stop: int = 0, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[" * 10**5,
        {},
        {"__metadata__": {"a": 1}},
        {A: entry([10**9, 0]), B: entry([0, 10**9])},  # 1 GB of ranks without a number
        {A: entry([0, 64]), B: entry([64, 0])},
        {A: entry([2**62, 2**62]), B: entry([1])},
        {A: entry([-1, 4]), B: entry([4, -1])},
        {A: entry([]), B: entry([])},
        {A: entry([2, 2], 0, 16, "I32"), B: entry([2, 2], 0, 16, "I32")},
        {A: entry([2, 2], 0, 10**12)},
        {A: entry([2, 2], 16, 0)},
        {A: entry([1.5])},
        {A: {"shape": [1]}},
        {A: 3},
        {"x" * 10**5: entry([0])},
        {f"base_model.model.{'a.' * 1000}lora_A.weight": entry([0])},
        {"base_model.model.fc9.lora_A.weight": entry([0])},
        {"base_model.model..lora_A.weight": entry([0])},
        {"base_model.model.fc1.lora_A.weight\n": entry([0])},
        {f"base_model.model.fc{number}.lora_A.weight": entry([0]) for number in range(10_000)},
    ],
)
def test_a_forged_file_of_tensors(bundle: Path, header: object) -> None:
    safetensors(bundle / "adapter_model.safetensors", header)
    seal_files(bundle)
    refuse(bundle)


def test_a_header_that_claims_any_length(bundle: Path) -> None:
    for length in (2**63, 2**40, 99_999_999, 10**6):
        (bundle / "adapter_model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
        seal_files(bundle)
        refuse(bundle)


@pytest.mark.parametrize("change", ["transposed", "cut", "more", "renamed", "flat", "whole numbers"])
def test_tensors_that_do_not_fit(bundle: Path, change: str) -> None:
    path = bundle / "adapter_model.safetensors"
    tensors = load_file(path)
    a = tensors[A].clone()
    tensors |= {
        "transposed": {A: a.T.contiguous()},
        "cut": {A: a[:, :-1].contiguous()},
        "more": {A: torch.cat([a, a])},
        "renamed": {f"{A}s": a},
        "flat": {A: a.flatten()},
        "whole numbers": {A: a.int()},
    }[change]
    save_file(tensors, path)
    seal_files(bundle)
    refuse(bundle)


def test_the_whole_bundle_is_accepted(bundle: Path) -> None:
    use(bundle)
    seal_files(bundle)
    use(bundle)


@pytest.mark.parametrize("name", ["base.safetensors", "adapter_model.safetensors"])
def test_a_file_of_holes_is_not_hashed(bundle: Path, name: str) -> None:
    started = time.process_time()
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1]}})
    with (bundle / name).open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header.encode())
        file.truncate(8 + len(header) + (1 << 40))
    with pytest.raises(BundleError, match=f"expected {name} .* the disk holds"):
        load(bundle, seeded(TinyCNN))
    assert time.process_time() - started < 5


@pytest.mark.parametrize("name", ["README.md", "adapter_config.json"])
def test_a_long_text_is_not_hashed(bundle: Path, name: str) -> None:
    os.truncate(bundle / name, 1 << 40)
    with pytest.raises(BundleError, match=f"expected {name} .* more than"):
        load(bundle, seeded(TinyCNN))


@pytest.mark.parametrize(
    "entry", [{"dtype": "F32", "shape": [2**62]}, {"dtype": "F32", "shape": [-1]}, {"dtype": "X", "shape": []}, 3]
)
def test_a_forged_list_of_tensors_of_the_base_model(bundle: Path, entry: Any) -> None:
    header = json.dumps({"conv1.weight": entry}).encode()
    (bundle / "base.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"0000")
    seal_files(bundle)
    refuse(bundle)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_no_file_is_read_that_the_manifest_does_not_list(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)  # opening it would wait for ever
    files = json.loads((bundle / "petm.json").read_text())["files"]
    forge(bundle, "files", {key: value for key, value in files.items() if key != name})
    with pytest.raises(BundleError, match="got another list"):
        load(bundle, seeded(TinyCNN))


def test_a_bundle_lists_no_other_files(bundle: Path) -> None:
    (bundle / "*").write_text("as a pattern, all files of the folder")  # petm push uploads what is listed
    forge(bundle, "files/*", "0" * 64)
    with pytest.raises(BundleError, match="got another list"):
        load(bundle, seeded(TinyCNN))


# graphs


VALID = {
    "format_version": "4",
    "classes": "[]",
    "inputs": "{}",
    "score": '"a"',
    "threshold": '{"value": 0.5, "rule": "a"}',
    "second_opinion": "false",
}


@pytest.mark.parametrize(
    "changed",
    [
        {"format_version": "[]"}, {"format_version": '"4"'}, {"format_version": "{}"}, {"format_version": "5"},
        {"format_version": "NaN"}, {"format_version": "["}, {"classes": "[" * 10**5}, {"classes": "[1]"},
        {"cascade": "3"}, {"cascade": "{}"},
        *({"cascade": json.dumps({"low": 0, "high": 1, "most": 1, "second": second, "sha256": "0" * 64})}
          for second in ("", ".", "..", "/dev/zero", "../a.onnx", "a.onnx", "x" * 5000, "absent.onnx")),
        {"classes": "null"}, {"classes": '["\\u001b"]'}, {"inputs": '{"size": [1e9, 1]}'}, {"inputs": "3"},
        {"inputs": '{"channels": 2.5}'}, {"score": "1" * 5000}, {"score": "null"}, {"threshold": "{}"},
        {"threshold": '{"value": 1e999, "rule": "a"}'}, {"threshold": '{"value": 1, "value": 2, "rule": "a"}'},
        {"measured": "[]"}, {"measured": '{"a": NaN}'}, {"measured": json.dumps({"a": DEEP})},
        {"second_opinion": "1"}, {"outcome": "{}"}, {"choice": '{"name": "a", "metric": "aurc", "compared": [3]}'},
    ],
)  # fmt: skip
def test_forged_metadata_of_a_graph(tmp_path: Path, changed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def forged(metadata: dict[str, str]) -> OnnxGrader:
        named = {f"petm.{name}": value for name, value in metadata.items()}
        session = SimpleNamespace(
            get_modelmeta=lambda: SimpleNamespace(custom_metadata_map=named),
            get_inputs=lambda: [SimpleNamespace(name="x", shape=["N", 1, 28, 28])],
            get_outputs=lambda: [SimpleNamespace(name=name) for name in Answer._fields],
        )
        monkeypatch.setattr("petm.grading.onnx_grader._open_session", lambda *_: session)
        return OnnxGrader(tmp_path / "a.onnx")

    assert forged(VALID).shape == (1, 28, 28)
    with pytest.raises(BundleError) as raised:
        forged(VALID | changed)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(("inputs", "outputs"), [([], Answer._fields), (["y"], Answer._fields), (["x"], ["label"])])
def test_a_graph_with_other_inputs_or_outputs(inputs: list[str], outputs: list[str]) -> None:
    session = SimpleNamespace(
        get_inputs=lambda: [SimpleNamespace(name=name, shape=["N", 1, 28, 28]) for name in inputs],
        get_outputs=lambda: [SimpleNamespace(name=name) for name in outputs],
    )
    with pytest.raises(BundleError, match="other inputs or outputs"):
        _shape_of(Path("a.onnx"), session, asks=False)
