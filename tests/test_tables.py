import io
import json
from typing import Any

import pytest
from rich.console import Console

from petm.files import plain
from petm.tables import MISSING, Table, judged, percent, points, print_result, result_tables, size, terminal_table


def found(caught: int, flagged: int, errors: int = 40) -> dict[str, Any]:
    recall, precision = (caught / of if of else float("nan") for of in (errors, flagged))
    return {
        "recall": recall,
        "precision": precision,
        "flagged": flagged,
        "errors": errors,
        "caught": caught,
        "recall_interval": (0.1234, 0.9876),
        "precision_interval": (0.25, 0.75),
    }


def differences(**words: str) -> dict[str, Any]:
    """Differences whose intervals mean the given words; the other measures are unclear."""
    intervals = {"better": (0.1, 0.3), "worse": (-0.3, -0.1), "unclear": (-0.05, 0.05), "missing": (float("nan"),) * 2}
    chosen = {measure: intervals[words.get(measure, "unclear")] for measure in ("recall", "precision", "auroc")}
    return {measure: {"value": (low + high) / 2, "low": low, "high": high} for measure, (low, high) in chosen.items()}


def example() -> dict[str, Any]:
    """A result as `reproduce` writes it, with round numbers, as JSON has it."""
    caught = {
        "petm": (30, 50),
        "lora_petm": (20, 40),
        "lora_petm_small": (10, 16),
        "petm_control": (31, 50),
        "control": (20, 44),
        "softmax": (0, 0),
    }
    result = {
        "protocol": {
            "base_epochs": 4, "twin_epochs": 6, "epochs": 60, "patience": None, "batch_size": 32, "epsilon": 0.1,
            "start": "base", "samples": "replaced", "temperature": 1.0, "seed": 7, "base_weights": None,
        },
        "data": {
            "train": {"source": "digits", "samples": 2000, "content": "ab" * 32},
            "test": {"source": "digits", "samples": 1000, "content": "cd" * 32},
        },
        "base": {"parameters": 1000, "test_accuracy": 0.96, "train_errors": 1, "test_errors": 40},
        "fidelity": {
            "base_at_alpha_0": 1.0, "twin_at_alpha_1": 0.98765, "small_twin_at_alpha_1": 0.9,
            "error_set": {"base_at_alpha_0": 1.0, "twin_at_alpha_1": 0.5, "small_twin_at_alpha_1": float("nan")},
        },
        "detection": {name: found(*counts) for name, counts in caught.items()},
        "ranking": {name: {"auroc": 0.98765, "aupr_error": float("nan")} for name in caught},
        "differences": {
            "petm": differences(),
            "lora_petm_small": differences(auroc="missing"),
            "petm_control": differences(recall="worse", precision="better"),
            "control": differences(),
            "softmax": differences(recall="better", precision="better", auroc="better"),
        },
        "cost": {
            "base_parameters": 1000, "twin_parameters": 1000, "adapter_parameters": 500, "small_parameters": 20,
            "base_bytes": 4000, "twin_bytes": 4000, "adapter_bytes": 2000, "small_bytes": 80,
            "adapter_over_twin": 0.5, "small_over_twin": 0.02,
            "system_over_petm": 0.75, "small_system_over_petm": 0.51,
        },
        "drift": [
            {"layer": "conv1", "relative_norm": 0.0956, "rank_90": 2, "full_rank": 9},
            {"layer": "fc1", "relative_norm": float("inf"), "rank_90": 13, "full_rank": 128},
        ],
        "dial": {
            "alpha": [0.0, 0.5, 1.0], "fidelity_to_base": [1.0, 0.99, 0.95], "fidelity_to_twin": [0.9, 0.95, 0.98],
        },
        "figure_1": {
            "conv1_explained": {"base": [0.3, 0.2, 0.5], "twin": [0.5, 0.25, 0.25]},
            "conv2_explained": {"base": [0.3, 0.2, 0.5], "twin": [0.5, 0.25, 0.25]},
            "silhouette_features": 0.1, "silhouette_map": 0.04, "probe_accuracy": 0.875, "images": 300,
        },
        "training": {"lora_petm": {"epochs": 23, "best_epoch": 18, "loss": 0.0159}},
        "seconds": {"errors": 0.456, "lora_petm": 11.49, "something new": 2000.0},
        "seed": 7,
        "versions": {"python": "3.11.7", "petm": "0.1.0"},
        "paper": {
            "source": "LoRA-PETM (ACK 2025)",
            "fidelity": {"base_at_alpha_0": 1.0, "twin_at_alpha_1": 0.96},
            "detection": {
                "petm": {"recall": 0.8750, "precision": 0.5904},
                "lora_petm": {"recall": 0.8842, "precision": 0.5348},
            },
            "cost": {"adapter_over_twin": 0.5, "system_over_petm": 0.75},
        },
    }  # fmt: skip
    return json.loads(json.dumps(plain(result), allow_nan=False))


def drawn(table: Table, width: int = 80) -> str:
    held = io.StringIO()
    Console(file=held, width=width, color_system=None).print(terminal_table(table))
    return held.getvalue()


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (percent(0.57407), "57.4%"),
        (percent(0.96, 0), "96%"),
        (percent(1.0, 2), "100.00%"),
        (percent(None), "–"),
        (points(0.2037), "+20.4"),
        (points(-0.0371), "−3.7"),
        (points(-0.0001), "+0.0"),
        (points(None), "–"),
        (size(999), "999 bytes"),
        (size(78168), "78.2 kB"),
        (size(999_600), "1.00 MB"),
        (size(4_799_528), "4.80 MB"),
    ],
)
def test_numbers_are_written_for_people(written: str, expected: str) -> None:
    assert written == expected


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.01, 0.2, "better"),
        (-0.2, -0.01, "worse"),
        (-0.2, 0.01, "no clear difference"),
        (0.0, 0.2, "no clear difference"),
        (-0.2, 0.0, "no clear difference"),
        (None, None, MISSING),
    ],
)
def test_the_word_is_chosen_by_whether_the_interval_excludes_zero(
    low: float | None, high: float | None, word: str
) -> None:
    assert judged({"value": 0.1, "low": low, "high": high}) == word


def test_every_row_of_every_table_is_text_under_its_header() -> None:
    tables = result_tables(example())
    for name, table in tables.items():
        assert table.rows, name
        assert {len(row) for row in table.rows} == {len(table.header)}
        assert all(isinstance(cell, str) and cell for row in table.rows for cell in row), "no empty cell"
        assert not any(word in cell for row in table.rows for cell in row for word in ("nan", "inf", "None"))


def test_table_1_stands_beside_the_paper() -> None:
    assert result_tables(example())["fidelity"].rows == (
        ("LoRA-PETM at α = 0 and A", "100.00%", "100.00%", "100%"),
        ("LoRA-PETM at α = 1 and A'", "98.77%", "50.00%", "96%"),
        ("LoRA-PETM small at α = 1 and A'", "90.00%", "–", "–"),
    )


def test_table_2_has_the_papers_rows_and_the_controls() -> None:
    assert result_tables(example())["detection"].rows == (
        ("PETM", "75.0% (12.3–98.8)", "60.0% (25.0–75.0)", "50", "30 of 40"),
        ("PETM in the paper", "87.5%", "59.0%", "–", "–"),
        ("LoRA-PETM", "50.0% (12.3–98.8)", "50.0% (25.0–75.0)", "40", "20 of 40"),
        ("LoRA-PETM in the paper", "88.4%", "53.5%", "–", "–"),
        ("LoRA-PETM small", "25.0% (12.3–98.8)", "62.5% (25.0–75.0)", "16", "10 of 40"),
        ("PETM control", "77.5% (12.3–98.8)", "62.0% (25.0–75.0)", "50", "31 of 40"),
        ("Control", "50.0% (12.3–98.8)", "45.5% (25.0–75.0)", "44", "20 of 40"),
        ("Softmax", "0.0% (12.3–98.8)", "–", "0", "0 of 40"),
    )


def test_an_undefined_measure_is_a_dash() -> None:
    tables = result_tables(example())
    assert tables["ranking"].rows[0] == ("PETM", "98.77%", "–")
    assert tables["drift"].rows == (("conv1", "9.6%", "2", "9"), ("fc1", "–", "13", "128"))
    rows = {row[:2]: row[2:] for row in tables["differences"].rows}
    assert rows["LoRA-PETM small", "AUROC"] == ("–", "–", "–")
    assert rows["PETM control", "Recall"] == ("−20.0", "−30.0 to −10.0", "worse")
    assert rows["Control", "Precision"] == ("+0.0", "−5.0 to +5.0", "no clear difference")
    assert rows["Softmax", "AUROC"] == ("+20.0", "+10.0 to +30.0", "better")


def test_the_cost_adds_up() -> None:
    assert result_tables(example())["cost"].rows == (
        ("A", "1,000", "4.00 kB", "–", "–"),
        ("A'", "1,000", "4.00 kB", "–", "–"),
        ("Adapter", "500", "2.00 kB", "50.0% of A'", "50.0%"),
        ("Small adapter", "20", "80 bytes", "2.0% of A'", "–"),
        ("PETM: A and A'", "2,000", "8.00 kB", "–", "–"),
        ("LoRA-PETM: A and adapter", "1,500", "6.00 kB", "75.0% of PETM", "75.0%"),
        ("LoRA-PETM small", "1,020", "4.08 kB", "51.0% of PETM", "–"),
    )


def test_settings_and_seconds_are_in_words() -> None:
    tables = result_tables(example())
    settings = dict(tables["settings"].rows)
    assert settings["Training data"] == "digits, 2,000 samples, SHA-256 abababababab…"
    assert settings["Weights of A"] == "trained here"
    assert settings["A' learns from"] == "all data, A's errors replaced"
    assert settings["Epochs without gain before it stops"] == "never stops early"
    assert (settings["FGSM epsilon"], settings["Temperature of the distillation"]) == ("0.1", "1")
    assert tables["seconds"].rows == (
        ("Find and replace A's errors", "–", "–", "0.5"),
        ("Distill the adapter", "23", "18", "11.5"),
        ("something new", "–", "–", "2,000.0"),
        ("Total", "–", "–", "2,011.9"),
    )


def test_a_method_that_nobody_knows_comes_last_under_its_own_name() -> None:
    result = example()
    result["detection"] = {"novel": found(1, 2)} | result["detection"]
    assert result_tables(result)["detection"].rows[-1][0] == "novel"


def test_the_tables_fit_a_terminal_of_80_columns() -> None:
    for name, table in result_tables(example()).items():
        text = drawn(table)
        assert "…" not in text.replace("abab…", "").replace("cdcd…", ""), f"{name} is cut"
        first, last = table.rows[0], table.rows[-1]
        for cell in (*first, *last):
            assert name == "settings" or cell in text, f"{name} breaks {cell!r} over lines"


def test_nothing_in_a_table_is_read_as_markup() -> None:
    text = drawn(Table("[red]title", "[bold]caption", ("[i]name", "value"), (("[link=x]row", "[/]"),)))
    for part in ("[red]title", "[bold]caption", "[i]name", "[link=x]row", "[/]"):
        assert part in text


def test_the_result_is_printed_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(example())
    printed = capsys.readouterr()
    assert printed.err == ""
    for title in ("Table 1: fidelity", "Table 2: detection", "Is it better?", "Cost", "Drift"):
        assert title in printed.out
