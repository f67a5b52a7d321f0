"""``petm next``: which graded inputs to label next."""

from collections.abc import Iterator, Sequence
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
    from petm.grading.grade_files import check_apart, write_tables
    from petm.grading.grade_table import GRADE_NAMES, GRADE_SUFFIXES, SCHEMA, read_grades
    from petm.selective.audit import coins
    from petm.selective.next_labels import labelling_chances

    check_new_file(output, *GRADE_SUFFIXES, overwrite=overwrite)
    options.check_writable("output", output)
    check_apart(output, grades)

    if twice := next((path for path in grades if grades.count(path) > 1), None):
        raise DataError(f"{twice}: expected each file once, got it twice. Leave the copy out.")

    def typed(columns: Sequence[str]) -> "pa.Schema":  # files of different kinds differ in what may be null
        return pa.schema([SCHEMA.field(name).with_nullable(True) for name in columns])

    def graded(*columns: str) -> "Iterator[pa.Table]":
        for path in grades:
            for batch in read_grades(path, columns):
                rows = pa.Table.from_batches([batch]).select(columns).cast(typed(columns))
                yield rows.filter(pc.not_equal(rows["grade"], GRADE_NAMES[2]))

    needed = "label", "probability_of_error", "grade", "chance", "audit"
    known = pa.concat_tables([typed(needed).empty_table(), *graded(*needed)])
    if not len(known):
        raise DataError(f"{grades[0]}: expected graded rows, got none that could be read. Name other grades.")
    if known["probability_of_error"].null_count:
        raise DataError(
            f"{grades[0]}: expected a probability of error in each row, got none in some. Grade with a bundle that has "
            f"one (petm recalibrate)."
        )
    span = pc.min_max(known["probability_of_error"]).as_py()
    if not 0 <= span["min"] <= span["max"] <= 1:
        raise DataError(
            f"{grades[0]}: expected probabilities of error from 0 to 1, got {span['min']:.6g} to {span['max']:.6g}. "
            f"Name what petm grade wrote."
        )
    if _drawn_before(known):
        raise DataError(
            f"{grades[0]}: expected all rows of petm grade, got those that petm next has drawn, whose chances would be "
            f"wrong. Name the grades, and another --seed for another draw."
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


def _drawn_before(grades: "pa.Table") -> bool:
    """Whether rows are a queue of `next_labels`: petm grade gives suspects the chance 1 and draws few others."""
    import pyarrow.compute as pc

    from petm.grading.grade_table import GRADE_NAMES

    trusted, rare = pc.equal(grades["grade"], GRADE_NAMES[0]), pc.less(grades["chance"], 1.0)
    if pc.any(pc.and_(rare, pc.invert(trusted))).as_py():
        return True
    return bool(pc.any(rare).as_py()) and not pc.any(pc.and_(trusted, pc.invert(grades["audit"]))).as_py()
