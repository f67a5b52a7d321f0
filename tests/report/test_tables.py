import io

import pytest
from rich.console import Console

from example_result import example, found
from petm.report.tables import (
    MISSING,
    Table,
    judged,
    percent,
    points,
    print_result,
    result_tables,
    size,
    terminal_table,
)


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
        ("LoRA-PETM at α = 0 and the base model", "100.00%", "100.00%", "100%"),
        ("LoRA-PETM at α = 1 and the teacher", "98.77%", "50.00%", "96%"),
        ("LoRA-PETM small at α = 1 and the teacher", "90.00%", "–", "–"),
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
        ("Base model", "1,000", "4.00 kB", "–", "–"),
        ("Teacher", "1,000", "4.00 kB", "–", "–"),
        ("Adapter", "500", "2.00 kB", "50.0% of the teacher", "50.0%"),
        ("Small adapter", "20", "80 bytes", "2.0% of the teacher", "–"),
        ("PETM: both models", "2,000", "8.00 kB", "–", "–"),
        ("LoRA-PETM: model and adapter", "1,500", "6.00 kB", "75.0% of PETM", "75.0%"),
        ("LoRA-PETM small", "1,020", "4.08 kB", "51.0% of PETM", "–"),
    )


def test_settings_and_seconds_are_in_words() -> None:
    tables = result_tables(example())
    settings = dict(tables["settings"].rows)
    assert settings["Training data"] == "digits, 2,000 samples, SHA-256 abababababab…"
    assert settings["Weights of the base model"] == "trained here"
    assert settings["Training data of the teacher"] == "all data, the model's errors replaced"
    assert settings["Epochs without gain before it stops"] == "never stops early"
    assert (settings["FGSM epsilon"], settings["Temperature of the distillation"]) == ("0.1", "1")
    assert tables["seconds"].rows == (
        ("Find and replace the model's errors", "–", "–", "0.5"),
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
