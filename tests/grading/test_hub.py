"""Uploading, with a stub in the place of the Hub: what is sent, and that nothing is unless asked."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from torch import nn

from networks import randomise
from petm.adapter.model import Member, attach_adapter
from petm.cli import main
from petm.data.base import Data
from petm.errors import BundleError, HubError
from petm.grading.grader import fit_grader
from petm.grading.hub import push_to_hub
from petm.selective.targets import Coverage


@pytest.fixture
def bundle(model: nn.Module, digits: tuple[Data, ...], tmp_path: Path) -> Path:
    adapted = randomise(attach_adapter(model, {"fc1": 4}, members=(Member(), Member("second"))))
    fit_grader(adapted, digits[1], target=Coverage(0.7)).save(tmp_path / "g.petm")
    return tmp_path / "g.petm"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What would have been sent to the Hub."""
    made: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self: HfApi, repo_id: str, **keywords: Any) -> str:
        made.append(("create_repo", {"repo_id": repo_id, **keywords}))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self: HfApi, **keywords: Any) -> None:
        made.append(("upload_folder", keywords))

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return made


FILES = [
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "petm.json",
    "second/adapter_config.json",
    "second/adapter_model.safetensors",
]


@pytest.mark.parametrize("public", [False, True])
def test_the_bundle_is_uploaded_and_nothing_else(
    bundle: Path, calls: list[tuple[str, dict[str, Any]]], public: bool
) -> None:
    assert calls == [], "fitting and saving upload nothing"
    (bundle / "notes.txt").write_text("for myself")
    assert push_to_hub(bundle, "me/digits", public=public) == "https://huggingface.co/me/digits"
    (first, made), (second, sent) = calls
    assert (first, made) == ("create_repo", {"repo_id": "me/digits", "private": not public, "exist_ok": True})
    assert second == "upload_folder"
    assert (sent["repo_id"], Path(sent["folder_path"])) == ("me/digits", bundle)
    assert sorted(sent["allow_patterns"]) == FILES
    assert not any("*" in pattern for pattern in sent["allow_patterns"])


def test_a_damaged_bundle_is_not_uploaded(bundle: Path, calls: list[tuple[str, dict[str, Any]]]) -> None:
    (bundle / "README.md").write_text("changed")
    with pytest.raises(BundleError, match=r"README.md has changed since it was written"):
        push_to_hub(bundle, "me/digits")
    assert calls == []


@pytest.mark.parametrize("step", ["create_repo", "upload_folder"])
@pytest.mark.parametrize("error", [OSError("401 Unauthorized.\nDetails"), RuntimeError("no route"), ValueError()])
def test_a_hub_that_does_not_take_it(
    bundle: Path, calls: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    def fail(self: HfApi, *arguments: Any, **keywords: Any) -> None:
        raise error

    monkeypatch.setattr(HfApi, step, fail)
    said = str(error).splitlines()[0] if str(error) else "ValueError"
    with pytest.raises(
        HubError, match=rf"repository: expected a repository to which you may write, got 'me/d': {said}"
    ):
        push_to_hub(bundle, "me/d")


@pytest.mark.parametrize("name", ["a//b", "a/b/c", "me/my digits", ""])
def test_a_name_that_the_hub_cannot_have(bundle: Path, calls: list[tuple[str, dict[str, Any]]], name: str) -> None:
    with pytest.raises(
        HubError, match=rf"repository: .* got '{name}': .*Check its name, and log in with hf auth login"
    ):
        push_to_hub(bundle, name)
    assert calls == []


@pytest.mark.parametrize("as_json", [False, True])
def test_petm_push(
    bundle: Path,
    calls: list[tuple[str, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    as_json: bool,
) -> None:
    monkeypatch.setattr(sys, "argv", ["petm", "push", str(bundle), "me/digits", *(["--json"] if as_json else [])])
    main()
    out, _ = capfd.readouterr()
    address = "https://huggingface.co/me/digits"
    if as_json:
        assert json.loads(out) == {"bundle": str(bundle), "repository": "me/digits", "address": address}
    else:
        assert out.strip() == address
    assert [name for name, _ in calls] == ["create_repo", "upload_folder"]
