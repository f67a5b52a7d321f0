"""A few cases of each reader from a fixed seed; `make fuzz` runs as many as there is time for."""

import subprocess
import sys
from pathlib import Path

import pytest

import fuzzing


@pytest.mark.slow
def test_no_damaged_file_ends_in_anything_but_an_error_of_ours(tmp_path: Path) -> None:
    code = "import sys, fuzzing; sys.exit(len(fuzzing.fuzz_all(60, 5, fuzzing.Path(sys.argv[1]))))"
    folder = Path(fuzzing.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
