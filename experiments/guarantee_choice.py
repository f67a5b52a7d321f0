"""How often the guarantee is violated after the suspicion was chosen on a part of the labels.

Each draw has labelled samples of a population whose risk at every threshold is known. Two fifths of them choose among
the softmax, a second opinion, cascades over it and a regression, as `petm.fit` does; the threshold is set on the rest.
The control chooses on all samples and sets the threshold on all of them.

    python -m experiments.guarantee_choice --draws 1000 -o docs/measured
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from petm._internal.files import plain, write_json
from petm._internal.progress import console, track
from petm.adapter.model import Member
from petm.adapter.one_pass import Answers
from petm.evidence.candidates import Budget, candidates
from petm.evidence.choice import Choosing, Labelled, choose_suspicion
from petm.fitting import CHOICE_SHARE
from petm.selective.metrics import share
from petm.selective.targets import MaxRisk

MEMBERS = (Member(), Member("", "mirror"))
CONFIDENCE, MAX_RISK, POPULATION = 0.95, 0.05, 40_000


def population(size: int, help_of_second: float, seed: int) -> Labelled:
    """Returns answers of a model and of two members to samples of three classes.

    Args:
        size: Number of samples.
        help_of_second: How much the first member knows beyond the model; the second knows half of it.
        seed: Seed of the samples.
    """
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (size,), generator=random)
    truth = torch.nn.functional.one_hot(labels, 3).float()
    base = 3 * truth + 1.5 * torch.randn(size, 3, generator=random)
    members = [base + known * truth + torch.randn(size, 3, generator=random) for known in (help_of_second, 0.5)]
    return Labelled(Answers(base, torch.stack(members, 1), MEMBERS), labels)


def draw(whole: Labelled, n: int, seed: int, *, apart: bool) -> tuple[bool, bool, float, str, bool]:
    """Returns whether a guarantee is claimed and violated, the true coverage, and what was chosen: a cascade or not."""
    rows = torch.randperm(len(whole.labels), generator=torch.Generator().manual_seed(seed))[:n]
    first = rows[: int(CHOICE_SHARE * n)] if apart else rows
    rest = rows[int(CHOICE_SHARE * n) :] if apart else rows
    budget = Budget(0.25, adapters=0.1)
    compared = candidates(MEMBERS[:1], [MEMBERS[1:]], budget, targeted=True)
    choosing = Choosing(Labelled(whole.answers.rows(first), whole.labels[first]), max_risk=MAX_RISK, seed=seed)
    chosen = choose_suspicion(choosing, compared)
    answers = whole.answers.only(chosen.members).under(chosen.cascade)
    suspicion, wrong = chosen.suspicion.of(answers).numpy(), (answers.predicted != whole.labels).numpy()
    target, place = MaxRisk(MAX_RISK, confidence=CONFIDENCE), rest.numpy()
    threshold = target.threshold(suspicion[place], wrong[place], answers.predicted.numpy()[place], classes=3)
    trusted = threshold.trusts(suspicion, answers.predicted.numpy())
    claimed = bool(trusted.any())
    violated = claimed and bool(wrong[trusted].mean() > MAX_RISK)
    return claimed, violated, float(trusted.mean()), chosen.choice.name, chosen.cascade is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1000, help="Labelled samples of each draw.")
    parser.add_argument("--helps", default="0,2", help="How much the second opinion knows, with commas.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="Folder of guarantee_choice.json.")
    told = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for known in map(float, told.helps.split(",")):
        whole = population(POPULATION, known, 7)
        for apart in (True, False):
            title = f"second opinion {known:g}, {'apart' if apart else 'on all, the control'}"
            found = []
            with track(title, told.draws) as progress:
                for seed in range(told.draws):
                    found.append(draw(whole, told.samples, seed, apart=apart))
                    progress.advance(1)
            violated = share(sum(each[1] for each in found), told.draws)
            row = {
                "case": title,
                "claimed": sum(each[0] for each in found),
                "violated": plain(violated),
                "coverage": sum(each[2] for each in found) / told.draws,
                "softmax_kept": [each[3] for each in found].count("softmax") / told.draws,
                "cascade_taken": sum(each[4] for each in found) / told.draws,
                "violated_by_a_cascade": sum(each[1] and each[4] for each in found),
            }
            rows.append(row)
            console.print(str(row), highlight=False, markup=False)
            made = {"draws": told.draws, "samples": told.samples, "max_risk": MAX_RISK, "rows": rows}
            write_json(told.output / "guarantee_choice.json", made)


if __name__ == "__main__":
    main()
