"""``petm next``: which graded inputs to label next."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from petm.cli import options
from petm.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


@click.command(
    "next",
    epilog="Example: petm next grades.parquet -n 200 -o queue.parquet",
    short_help="Choose which graded inputs to label next.",
)
@click.argument("grades", nargs=-1, required=True)
@click.option("-n", "--count", type=click.IntRange(1), required=True, help="Inputs to label; about so many are drawn.")
@options.output(text="File: .csv, .parquet or .jsonl, in the columns of petm grade.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@options.seed
def next_labels(grades: tuple[str, ...], count: int, output: Path, overwrite: bool, seed: int) -> None:
    """Choose which graded inputs to label next: doubtful ones of all classes, each with a known chance.

    Each row of the files of petm grade is drawn by a coin of its own, with a chance by its probability of error and
    never 0. The drawn rows are written with their chance, so that petm learn and petm recalibrate weigh them by it.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from petm._internal.files import check_new_file, write_atomically
    from petm.grading.grade_files import write_tables
    from petm.grading.grade_table import GRADE_NAMES, GRADE_SUFFIXES, SCHEMA, read_grades
    from petm.selective.audit import coins
    from petm.selective.next_labels import labelling_chances

    check_new_file(output, *GRADE_SUFFIXES, overwrite=overwrite)
    options.check_writable("output", output)

    def graded(*columns: str) -> "Iterator[pa.Table]":
        for path in grades:
            for batch in read_grades(path, columns):
                rows = pa.Table.from_batches([batch])
                yield rows.filter(pc.not_equal(rows["grade"], GRADE_NAMES[2]))

    known = pa.concat_tables(graded("label", "probability_of_error", "grade"))
    if known["probability_of_error"].null_count:
        raise DataError(
            f"{grades[0]}: expected a probability of error in each row, got none in some. Grade with a bundle that has "
            f"one (petm recalibrate)."
        )
    chances = labelling_chances(known["probability_of_error"].to_numpy(), known["label"].to_numpy(), count=count)
    drawn, start = list["pa.Table"](), 0
    for rows in graded(*SCHEMA.names):
        own = chances[start : start + len(rows)]
        start += len(rows)
        names = zip(rows["input"].to_pylist(), rows["row"].to_pylist(), strict=True)
        chosen = coins([("next", *name) for name in names], seed=seed) < own
        for name, column in {"chance": pa.array(own), "audit": pc.equal(rows["grade"], GRADE_NAMES[0])}.items():
            rows = rows.set_column(rows.schema.get_field_index(name), name, column)
        drawn.append(rows.filter(pa.array(np.asarray(chosen))))
    table = pa.concat_tables(drawn)
    kept = [name for name in table.column_names if table[name].null_count < len(table) or name in ("row", "reason")]
    write_atomically(output, lambda path: write_tables(path, output.suffix.lower(), iter([table.select(kept)])))
    click.echo(
        f"{len(table):,} of {start:,} rows are drawn, with chances from {chances.min():.3g} to {chances.max():.3g}. "
        f"Written: {output}. Next: petm serve BUNDLE --queue {output} --labels-file labels.jsonl, then petm learn "
        f"BUNDLE --labels labels.jsonl --grades {output}",
        err=True,
    )
