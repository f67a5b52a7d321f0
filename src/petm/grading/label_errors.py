"""Wrong labels of a data set, found by the features of a trained model, and their table."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from petm._internal.files import write_atomically
from petm._internal.progress import track
from petm.data.base import Data, as_data
from petm.data.labels import UNLABELLED, Place, enumerated
from petm.data.unseen import sample_hashes
from petm.errors import ArgumentError, DataError, ModelError, PetmWarning
from petm.grading.grader import Grader
from petm.selective.label_errors import FOLDS, label_errors, out_of_fold

if TYPE_CHECKING:
    import pyarrow as pa

SUSPECT_COLUMNS = (
    "input",
    "row",
    "text",
    "label",
    "label_name",
    "suggested",
    "suggested_name",
    "probability_of_label_error",
    "copies",
)
_LONGEST_TEXT = 200


@dataclass(frozen=True, eq=False)
class FoundLabelErrors:
    """What is known of the labels of ``N`` samples, in the order of the data.

    Attributes:
        labels: int64 ``(N,)``, the given labels.
        suggested: int64 ``(N,)``, the most probable class besides the given one.
        probability: float64 ``(N,)``, that the label is wrong; NaN where there is no opinion.
        copies: int64 ``(N,)``, the number of samples with the same input, itself included.
        order: int64 ``(N,)``, the samples from the most probably wrong label to the least.
        classes: Class names; numbers where there are none.
        places: File and row of each sample.
        texts: The beginning of each text; empty where the samples are no texts.
    """

    labels: NDArray[np.int64]
    suggested: NDArray[np.int64]
    probability: NDArray[np.float64]
    copies: NDArray[np.int64]
    order: NDArray[np.int64]
    classes: tuple[str, ...]
    places: Sequence[Place]
    texts: Sequence[str] = ()

    @property
    def expected(self) -> float:
        """The sum of the probabilities: the expected number of wrong labels."""
        return float(np.nansum(self.probability))

    def table(self, top: int | None = None) -> "pa.Table":
        """Returns the columns `SUSPECT_COLUMNS`, the most probably wrong label first, at most ``top`` rows."""
        import pyarrow as pa

        rows = self.order[:top].tolist()
        columns: dict[str, Any] = {
            "input": pa.array([self.places[row][0] for row in rows], pa.string()),
            "row": pa.array([self.places[row][1] for row in rows], pa.int64()),
            "label": self.labels[rows],
            "label_name": [self.classes[label] for label in self.labels[rows]],
            "suggested": self.suggested[rows],
            "suggested_name": [self.classes[label] for label in self.suggested[rows]],
            "probability_of_label_error": pa.array(self.probability[rows], from_pandas=True),
            "copies": self.copies[rows],
        }
        if self.texts:
            columns["text"] = [self.texts[row] for row in rows]
        return pa.table({name: columns[name] for name in SUSPECT_COLUMNS if name in columns})

    def save(self, path: str | Path, *, top: int | None = None) -> None:
        """Writes `table` as ``.csv``, ``.parquet`` or ``.jsonl``, atomically; raises RunError where it cannot."""
        from petm.grading.grade_files import write_tables

        def write(temporary: Path) -> None:
            write_tables(temporary, Path(path).suffix.lower(), self._parts(top))

        write_atomically(Path(path), write)

    def _parts(self, top: int | None) -> Iterator["pa.Table"]:
        yield self.table(top)

    def __repr__(self) -> str:
        return f"FoundLabelErrors({len(self.labels)} samples, {self.expected:.1f} wrong labels expected)"


def find_label_errors(
    model: "torch.nn.Module | Grader", data: Any, *, folds: int = FOLDS, unseen: bool = False, seed: int = 0
) -> FoundLabelErrors:
    """Returns for each sample the probability that its label is wrong, and the class that is right instead.

    One pass of the model gives features, the input of its last linear layer. Small classifiers on these learn from
    ``folds - 1`` parts of the labels and judge the rest (`petm.selective.label_errors`), so no label judges itself.
    The labels may be of other classes than the model's. Equal inputs are in one part; if their labels differ, at most
    one is right. Memory: ``4 N (K + D)`` bytes for features ``D`` and classes ``K``.

    Args:
        model: The trained model, or a grader of it.
        data: Labelled samples, as `petm.fit` takes them; those without a label are left out.
        folds: Number of parts, at least 2.
        unseen: The model has not been trained on these samples and their classes are its own, so that its softmax is
            one more opinion. A model that was trained on them repeats wrong labels.
        seed: Seed of the parts.

    Raises:
        ArgumentError: An argument breaks its rule.
        DataError: Fewer than two classes have two samples.
        ModelError: The model calls no linear layer last, or with ``unseen`` has other classes.
    """
    from petm.evidence.protocol import compute_answers

    if folds < 2:
        raise ArgumentError(f"folds: expected at least 2, got {folds}.")
    grader = model if isinstance(model, Grader) else None
    samples: Data = as_data(data, processor=grader.processor if grader else None)
    samples = samples.subset(samples.labels != UNLABELLED)
    if not len(samples):
        raise DataError(f"{samples.source}: expected labelled samples, got none. Name the column of labels.")
    labels = samples.labels.numpy()
    network: torch.nn.Module = grader.adapted.base if grader else model  # type: ignore[assignment]
    answers = compute_answers(network, samples)
    if answers.layer_input is None:
        raise ModelError(
            "model: expected features, the input of a linear layer that is called last, got a model without. Label "
            "errors cannot be found by it: name another model."
        )
    classes = samples.classes or (grader.origin.model.classes if grader else ())
    count = max(len(classes), int(labels.max()) + 1)
    names = classes + tuple(map(str, range(len(classes), count)))
    own = grader.origin.model.classes if grader else ()
    if unseen and (answers.base.shape[1] != count or (own and own != names)):
        raise ModelError(
            f"unseen: expected data of the model's {answers.base.shape[1]} classes, got {enumerated(names)}. Leave it "
            f"out, as the model's softmax says nothing of others."
        )
    _, groups = np.unique(sample_hashes(samples), return_inverse=True)
    features = answers.layer_input.numpy()
    with track("heads", folds) as progress:
        opinions = out_of_fold(
            features, labels, classes=count, groups=groups, folds=folds, seed=seed, on_fold=progress.advance
        )
    if unseen:
        opinions = (2 * opinions + answers.base.softmax(1).numpy()) / 3
    found = label_errors(opinions, labels, groups=groups)
    if lost := int(np.isnan(found.probability).sum()):
        warnings.warn(
            f"{samples.source}: expected each class to have several samples, got {lost:,} whose class no other part "
            f"has. Nothing is said of their labels.",
            PetmWarning,
            stacklevel=2,
        )
    is_text = bool(samples.text(0))
    return FoundLabelErrors(
        labels,
        found.suggested,
        found.probability,
        np.bincount(groups)[groups],
        found.order,
        names,
        [samples.place(row) for row in range(len(samples))],
        [samples.text(row)[:_LONGEST_TEXT] for row in range(len(samples))] if is_text else (),
    )
