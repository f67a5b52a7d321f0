"""Tables of grades, made up."""

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq

from petm.grading.grade_table import grade_table
from petm.grading.grades import Grades
from petm.selective.thresholds import Threshold

THRESHOLD = Threshold(0.5, "by hand", max_risk=0.1, confidence=0.95)


def graded(count, *, seed=0, threshold=THRESHOLD, unreadable=0.1, labelled=0.5, error_rate=0.2):
    """A table of grades, some inputs unreadable and some with a true label."""
    generator = np.random.default_rng(seed)
    readable = generator.random(count) >= unreadable
    n = int(readable.sum())
    labels, suspicion = generator.integers(0, 3, n), generator.random(n)
    grades = Grades(labels, labels, suspicion, suspicion / 2, threshold.trusts(suspicion, labels))
    truth = np.full(count, -1)
    truth[readable] = np.where(generator.random(n) < error_rate, (labels + 1) % 3, labels)
    known = readable & (generator.random(count) < labelled)
    return grade_table(
        [f"{seed}/{index}.png" for index in range(count)],
        [None] * count,
        grades,
        ("cat", "dog", "cow"),
        reasons=[None if good else "damaged" for good in readable],
        true_labels=[int(label) if good else None for label, good in zip(truth, known, strict=True)],
    )


def write(table, path):
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=70)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        import json

        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return path
