"""What `petm.learn` makes of the same number of labels: drawn by `petm next`, at random, or the most suspect inputs.

    python -m experiments.next_labels mnist_early --shifts rotation,blurred --models DIR --data-dir DIR -o FILE.json
    python -m experiments.next_labels mnist_early --ways spread --models DIR --data-dir DIR -o FILE.json

Half of the shifted test images can be labelled, the other half judges. The present grader is by the softmax, with a
probability of error from undisturbed images, as in `experiments.suite.fits.judge_learning`. ``spread`` has the chances
of `petm next`, but draws by systematic sampling in the order of clusters of the features: none is left out.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from experiments.suite.models import Places, default_folder, load_base
from petm._internal.files import write_json
from petm.adapter.model import views_alone
from petm.adapter.one_pass import predict_answers
from petm.data.base import Data
from petm.evidence.formulas import SOFTMAX
from petm.evidence.protocol import compute_answers
from petm.grading.grader import Grader, fit_grader
from petm.grading.grades import Grades
from petm.learning import learned
from petm.selective.audit import coins
from petm.selective.metrics import aurc
from petm.selective.next_labels import labelling_chances

WAYS = ("petm next", "at random", "most suspect", "spread")
CLUSTERS = 50


def chosen(
    way: str, grades: Grades, features: NDArray[np.float32], count: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
    """Returns rows to label, and their chances; of the most suspect there are none."""
    doubt = grades.probability_of_error
    if way == "at random":
        return np.random.default_rng(seed).permutation(len(doubt))[:count], None
    if way == "most suspect":
        return np.argsort(-doubt, kind="stable")[:count], np.full(count, np.nan)
    chances = labelling_chances(doubt, grades.labels, count=count)
    if way == "spread":
        clusters = KMeans(CLUSTERS, n_init=1, random_state=seed).fit_predict(features)
        order = np.lexsort((doubt, clusters))
        steps = np.floor(np.cumsum(chances[order]) + np.random.default_rng(seed).random())
        rows = order[np.diff(steps, prepend=0) > 0]
    else:
        rows = np.flatnonzero(coins(range(len(chances)), seed=seed) < chances)
    return rows, chances[rows]


def figures(grader: Grader, judged: Data) -> dict[str, object]:
    """Returns errors, AURC, errors left among the most trusted, and the errors that the probabilities tell."""
    answers = predict_answers(grader.adapted, judged)
    found, wrong = grader.suspicion.of(answers).numpy(), (answers.predicted != judged.labels).numpy()
    order = found.argsort(kind="stable")
    left = {f"{share:.0%}": int(wrong[order[: round(share * len(order))]].sum()) for share in (0.9, 0.8)}
    told = float(grader.grade(judged).probability_of_error.sum())
    return {"errors": int(wrong.sum()), "aurc": aurc(found, wrong), "left": left, "told errors": round(told, 1)}


def main() -> None:
    """Runs the comparison and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--shifts", default="rotation,blurred")
    parser.add_argument("--ways", default=",".join(WAYS[:3]), help=", ".join(WAYS))
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=default_folder())
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    base = load_base(given.model, Places(given.cache, given.models, Path(), Path(), given.data_dir))
    half, results = len(base.test) // 2, []
    present = fit_grader(views_alone(base.model, ()), base.choosing, target=None, score=SOFTMAX.name)
    for shift in given.shifts.split(","):
        production = base.under(shift)
        pool, judged = production.subset(base.order[:half]), production.subset(base.order[half:])
        grades = present.grade(pool)
        wrong_in_pool = grades.labels != pool.labels.numpy()
        features = compute_answers(base.model, pool).features.numpy()
        results.append({"shift": shift, "way": "the present grader", **figures(present, judged)})
        print(results[-1], flush=True)
        for seed in range(given.draws):
            for way in given.ways.split(","):
                rows, chances = chosen(way, grades, features, given.count, seed)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that nothing is guaranteed without chances
                    found = learned(present, pool.subset(torch.from_numpy(rows)), chance=chances, seed=seed)
                choice = found.grader.choice
                row = {"shift": shift, "way": way, "seed": seed, "labels": len(rows)}
                row |= {"errors labelled": int(wrong_in_pool[rows].sum()), "taken": choice.name if choice else None}
                results.append({**row, **figures(found.grader, judged)})
                print(results[-1], flush=True)
        write_json(given.output, {"model": given.model, "results": results})


if __name__ == "__main__":
    main()
