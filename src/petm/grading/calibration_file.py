"""A calibration as a file of JSON, checked entry by entry when it is read; and as a grader of tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from petm._internal.files import check_new_file, plain, write_json
from petm._internal.records import Record
from petm.adapter.cascade import Allowance
from petm.data.score_rows import ScoreReader, ScoreRows
from petm.data.scores import open_tables
from petm.errors import BundleError
from petm.grading.grades import NO_SECOND, Grades
from petm.grading.manifest import checksum
from petm.grading.provenance import ModelOrigin, Origin
from petm.selective.calibration import Calibration
from petm.selective.choice import Choice
from petm.selective.outcome import Outcome
from petm.selective.plain import Columns, Predictions
from petm.selective.probability import ErrorProbability
from petm.selective.sets import PredictionSets, sets_of_grades
from petm.selective.targets import target_from_json, target_to_json
from petm.selective.thresholds import Threshold
from petm.selective.weighting import Weighting

SUFFIX, FORMAT, FORMAT_VERSION = ".calibration", "petm calibration", 1


def write_calibration(path: Path, made: Calibration, *, overwrite: bool = False) -> None:
    """Writes a calibration as one file of JSON, whole or not at all; raises RunError where it cannot be written."""
    check_new_file(path, SUFFIX, overwrite=overwrite)
    content = to_json(made)
    write_json(path, content | {"checksum": checksum(content)})


def to_json(made: Calibration) -> dict[str, Any]:
    """Returns a calibration in JSON's types, as in its file and ``petm inspect --json``."""
    found: dict[str, Any] = plain(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "columns": made.columns,
            "classes": made.classes,
            "suspicion": made.suspicion,
            "weighting": made.weighting,
            "threshold": made.threshold.as_json(),
            "target": target_to_json(made.target),
            "probability": made.probability,
            "choice": made.choice,
            "outcome": made.outcome,
            "measured": made.measured,
            "sets": made.sets,
        }
    )
    return found


def read_calibration(path: str | Path) -> Calibration:
    """Returns the calibration in a file.

    Raises:
        BundleError: There is none, it is damaged or too new, or an entry breaks its rule.
    """
    path = Path(path)
    if not path.is_file():
        got = "a folder" if path.is_dir() else "a path that does not exist"
        raise BundleError(f"{path}: expected a file from petm calibrate, got {got}.")
    record = Record.from_file(path)
    version = record.content.get("format_version")
    if record.content.get("format") != FORMAT or not isinstance(version, int) or isinstance(version, bool):
        raise BundleError(f"{path}: expected a file from petm calibrate, got JSON of another kind.")
    if version != FORMAT_VERSION:
        step = "Upgrade petm to read it" if version > FORMAT_VERSION else "Calibrate again"
        raise BundleError(f"{path}: expected calibration version {FORMAT_VERSION}, got {version}. {step}.")
    if record.content.get("checksum") != checksum({k: v for k, v in record.content.items() if k != "checksum"}):
        raise BundleError(f"{path}: has changed since it was written. Restore it or calibrate again.")
    return _checked(record)


def _checked(record: Record) -> Calibration:
    read = record.record("columns")
    columns = Columns(
        read.texts("probabilities"), read.text_or_none("prediction"), read.texts("scores"),
        read.flag("higher_is_suspect"), read.texts("groups"),
    )  # fmt: skip
    classes, suspicion, names = record.texts("classes"), record.texts("suspicion"), columns.candidates
    kinds = columns.shape[0]
    if not all(columns.all) or columns.prediction == "":
        raise BundleError(f"{read.place}: expected a name of each column, got an empty one.")
    if (kinds == 0) != (columns.prediction is not None) or kinds == 1 or kinds not in (0, len(classes)) or not names:
        raise BundleError(f"{read.place}: expected probabilities of all classes, or a prediction with scores.")
    if not suspicion or len(set(suspicion)) < len(suspicion) or not set(suspicion) <= set(names):
        got = ", ".join(suspicion)
        raise BundleError(f"{record.place}, suspicion: expected some of {', '.join(names)}, got {got!r:.80}.")
    weighting = None
    if record.has("weighting"):
        weighting = Weighting.from_json(record.record("weighting"), len(suspicion))
    if (weighting is None) != (len(suspicion) == 1):
        raise BundleError(f"{record.place}, weighting: expected one for several columns alone, got {len(suspicion)}.")
    threshold = Threshold.from_json(record.record("threshold"))
    if columns.groups != (threshold.groups.columns if threshold.groups else ()):
        raise BundleError(f"{record.place}, threshold: expected groups of {', '.join(columns.groups) or 'no column'}.")
    if threshold.groups is None and len(threshold.classes) not in (0, max(2, len(classes))):
        raise BundleError(f"{record.place}, threshold: expected one for each class, got {len(threshold.classes)}.")
    sets = sets_of_grades(record.record("sets")) if record.has("sets") else None
    if sets and len(sets.limits[0]) not in (1, kinds):
        raise BundleError(f"{record.place}, sets: expected limits of {kinds} classes, got {len(sets.limits[0])}.")
    return Calibration(
        threshold,
        suspicion,
        weighting,
        ErrorProbability.from_json(record.record("probability")),
        columns,
        classes,
        target_from_json(record.record("target")),
        Choice.from_json(record.record("choice")),
        Outcome.from_json(record.record("outcome")),
        record.free("measured"),
        sets,
    )


@dataclass(frozen=True, eq=False)
class ScoresGrader:
    """A calibration as a grader of tables: what `petm.grading.stream.grade_stream` asks of it."""

    made: Calibration
    has_second = False

    @property
    def threshold(self) -> Threshold:
        """The threshold on suspicion."""
        return self.made.threshold

    @property
    def sets(self) -> PredictionSets | None:
        """The candidates of a prediction, in each grade."""
        return self.made.sets

    @property
    def measured(self) -> Mapping[str, Any]:
        """Figures of the calibration."""
        return self.made.measured

    @cached_property
    def origin(self) -> Origin:
        """The class names."""
        return Origin(ModelOrigin(classes=self.made.classes))

    @property
    def reader(self) -> ScoreReader:
        """The reader of its inputs."""
        return ScoreReader(self.made.columns, self.made.classes)

    def sources(self, paths: Sequence[str | Path], label_column: str | None) -> list[ScoreRows]:
        """Returns the tables at paths; raises DataError where one cannot be read or lacks a column."""
        return [ScoreRows(path, self.made.columns, label_column) for path in open_tables(paths)]

    def allow(self, state: int | None = None) -> Allowance:
        """Returns an allowance of second opinions, of which there are none."""
        return Allowance(None, state)

    def grade_batch(self, found: Predictions, *, allowance: Allowance | None = None) -> Grades:
        """Returns the grades of some rows."""
        graded = self.made.judge(found)
        probability = graded.probability_of_error
        none, told = np.full_like(graded.predicted, NO_SECOND), (graded.suspicion, probability, graded.trusted)
        return Grades(graded.predicted, none, *told, self.made.classes, graded.candidates)
