"""A few cases of each reader from a fixed seed; `make fuzz` runs as many as there is time for."""

from pathlib import Path

import pytest

import fuzzing


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # as Python 3.12 warns where there are threads
def test_no_damaged_file_ends_in_anything_but_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fuzzing.fuzz_all(60, 5, tmp_path / "failed") == []
