import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.machine import can_measure, process_peak
from petm._internal.spill import give_back_blocks
from petm.cli.process import keep_large_blocks


@pytest.mark.skipif(not can_measure(torch.device("cpu")), reason="memory cannot be read here")
def test_freed_blocks_are_kept_until_they_are_given_back() -> None:
    keep_large_blocks()
    give_back_blocks()
    _, before = process_peak()
    blocks = [torch.ones(1 << 18) for _ in range(100)]
    assert process_peak()[1] - before > 90 << 20
    del blocks
    assert process_peak()[1] - before > 90 << 20
    give_back_blocks()
    assert process_peak()[1] - before < 10 << 20


@pytest.mark.slow
def test_a_module_of_the_current_folder_is_found(tmp_path: Path) -> None:
    """Started by a script that lies elsewhere, as the installed command is."""
    script, place = tmp_path / "bin" / "petm", tmp_path / "place"
    script.parent.mkdir()
    place.mkdir()
    script.write_text("from petm.cli import main\nmain()\n")
    (place / "mine.py").write_text("def build():\n    raise RuntimeError('found')\n")
    arguments = ["fit", "--data", "mine.py", "-o", "o.petm"]
    done = subprocess.run(
        [sys.executable, str(script), *arguments, "--model", "mine:build"],
        cwd=place, capture_output=True, text=True, timeout=120, check=False, env=os.environ,
    )  # fmt: skip
    assert "mine:build failed with RuntimeError: found" in done.stderr
