import json
import sys
from importlib.metadata import requires, version

import pytest
from click.testing import CliRunner

from petm.cli.doctor import doctor

NEEDS = ["click>=1", 'absent-a>=2; extra == "serve"', 'click>=999 ; extra == "onnx"', 'absent-b; extra == "dev"']


def told(monkeypatch: pytest.MonkeyPatch, needs: list[str], *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys.modules["petm.cli.doctor"], "requires", lambda _: needs)
    found = CliRunner().invoke(doctor, arguments)
    return found.exit_code, found.output


def test_what_is_missing_or_too_old_and_how_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    code, out = told(monkeypatch, NEEDS)
    lines = dict(line.split(": ", 1) for line in out.splitlines() if ": " in line)
    assert code == 0
    assert lines["packages"] == f"click {version('click')}"
    assert lines["extra serve"].startswith("absent-a missing (needs >=2). Install: pip install 'petm[serve]', or ")
    assert lines["extra serve"].endswith("pip install '.[serve]'")
    assert f"click {version('click')} (needs >=999)" in lines["extra onnx"]
    assert "extra dev" not in lines
    assert "cpu" in lines["devices"]


def test_as_json_and_with_a_package_that_is_always_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    code, out = told(monkeypatch, [*NEEDS, "absent-c"], "--json")
    found = json.loads(out)
    assert code == 1
    assert found["packages"]["absent-c"] == {"version": None, "needs": ""}
    assert found["extras"]["serve"]["packages"] == {"absent-a": {"version": None, "needs": ">=2"}}
    assert "petm[serve]" in found["extras"]["serve"]["install"]


def test_all_extras_of_users_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(told(monkeypatch, requires("petm") or [], "--json")[1])
    assert found["extras"].keys() == {"hf", "onnx", "quantized", "ray", "serve"}
