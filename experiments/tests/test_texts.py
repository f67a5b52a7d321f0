"""The whole way of a text classifier: trained here, fitted, graded and judged by the commands of a user."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path) -> str:
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trec() -> Path:
    root = os.environ.get("PETM_DATA_DIR")
    if root is None or not (Path(root) / "trec").is_dir():
        pytest.skip("PETM_DATA_DIR is not set: the questions of TREC are read from there")
    return Path(root) / "trec"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_questions_from_a_transformer_of_ones_own_to_its_grades(trec: Path, tmp_path: Path) -> None:
    model = f"hf:{tmp_path / 'bert'}"
    run("-m", "experiments.small_bert", "--train", trec / "train.parquet", "--epochs", "3", "-o", tmp_path / "bert")
    data: list[str | Path] = ["--model", model, "--train", trec / "train.parquet", "--test", trec / "test.parquet"]
    run("-m", "experiments", "detection", *data, "--seeds", "1", "--method", "fast", "-o", tmp_path / "detection")
    result: dict[str, Any] = json.loads((tmp_path / "detection" / "result.json").read_text())
    assert result["errors"]["test"] < 0.25 * 500, "A has learned something"
    ours = next(row for row in result["methods"] if row["name"] == "second_opinion_fast")
    found = ours["difference"]["aurc"]
    print(f"TREC: AURC of the second opinion minus the softmax's {found}")
    assert found["low"] <= found["value"] <= found["high"]
    assert 1 < ours["cost"]["passes"] < 1.3
    bundle = tmp_path / "trec.petm"
    run("-m", "petm", "fit", "--model", model, "--data", trec / "train.parquet", "--calibration",
        trec / "test.parquet", "--coverage", "0.8", "-o", bundle)  # fmt: skip
    run("-m", "petm", "grade", bundle, trec / "test.parquet", "-o", tmp_path / "grades.csv")
    with (tmp_path / "grades.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 500
    assert sum(row["grade"] == "trusted" for row in rows) == pytest.approx(400, abs=2)
