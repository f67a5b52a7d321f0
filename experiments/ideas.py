"""Which ideas help a second opinion on a converged model? Judged on training images that the model has not seen.

A network of the paper's kind is trained on 50,000 of MNIST's training images, as a converged model is; the
other 10,000 are for choosing. Adapters on fc1 and fc2 learn from each idea's data or objective, and the mean of p and
p' is judged by AURC, AUROC and AUPR-Error beside the base model's softmax. No test image is touched: `recipes` follows
from this table, and `python -m experiments detection` judges it.

    python -m experiments.ideas --data-dir DIR -o docs/measured
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from petm._internal.files import plain, write_json, write_text
from petm.adapter.model import attach_adapter, pool
from petm.adapter.one_pass import predict_answers
from petm.data.base import Data, Joined, TensorData
from petm.data.digits import load_mnist
from petm.data.fields import one_tensor
from petm.models.paper import PaperCNN, paper_cnn
from petm.models.prediction import predict_logits
from petm.models.scores import maximum_softmax, mean_of_both
from petm.selective.metrics import aupr_error, aurc, auroc
from petm.training.augmentation import MILD, Augmented
from petm.training.error_set import Direction, ErrorSet
from petm.training.loop import CROSS_ENTROPY, Settings, train
from petm.training.replacement import replace_errors

SEED, BATCH_SIZE = 0, 256
SAMPLES = 50_000
"""The base model and the adapters learn from so many."""
ADAPTERS = 3
"""In a committee."""

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def cross_entropy(model: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(rows), labels)


def label_smoothing(model: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(rows), labels, label_smoothing=0.05)


def focal(model: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    log_p = model(rows).log_softmax(1).gather(1, labels[:, None])
    loss: Tensor = -((1 - log_p.exp()) ** 2 * log_p).mean()
    return loss


def mixup(model: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    """At the split point, which is manifold mixup."""
    share = float(torch.distributions.Beta(0.3, 0.3).sample())
    other = torch.randperm(len(rows))
    logits = model(share * rows + (1 - share) * rows[other])
    return share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, labels[other])


def correctness_ranking(model: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, and a rank loss that wants the right ones of a batch surer than the wrong ones (Moon et al.)."""
    logits = model(rows)
    sure, right = logits.softmax(1).amax(1), (logits.argmax(1) == labels).double()
    other = torch.roll(torch.arange(len(rows)), 1)
    wanted = (right - right[other]).sign().float()
    rank = F.relu(wanted.abs() * 0.1 - wanted * (sure - sure[other])).mean()
    return F.cross_entropy(logits, labels) + rank


def sharpness_aware(model: nn.Module, rows: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy at the worst point within 0.05 of the weights, to first order (Foret et al.; FMFP)."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(cross_entropy(model, rows, labels), weights)
    length = torch.sqrt(sum(((g**2).sum() for g in gradients), torch.zeros(()))) + 1e-12
    steps = [0.05 * gradient / length for gradient in gradients]
    with torch.no_grad():
        for weight, step in zip(weights, steps, strict=True):
            weight.add_(step)
    loss = cross_entropy(model, rows, labels)
    loss.backward()
    with torch.no_grad():
        for weight, step in zip(weights, steps, strict=True):
            weight.sub_(step)
    return loss.detach().requires_grad_()  # its gradients are in place already


def learn(student: nn.Module, rows: Tensor, labels: Tensor, loss: Loss, *, seed: int, epochs: int, rate: float) -> None:
    torch.manual_seed(seed)
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    steps = epochs * -(-len(rows) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(rows)).split(BATCH_SIZE):
            optimizer.zero_grad()
            loss(student, rows[chosen], labels[chosen]).backward()
            optimizer.step()
            schedule.step()


def main() -> None:
    arguments = parse()
    torch.manual_seed(SEED)
    everything = load_mnist(arguments.data_dir)[0].in_memory()
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(SEED))
    data = everything.subset(order[:SAMPLES]).in_memory()
    held_out = everything.subset(order[SAMPLES : SAMPLES + 10_000]).in_memory()
    model = paper_cnn(seed=SEED)
    settings = Settings(epochs=8, learning_rate=2e-3, weight_decay=0.01, schedule="cosine", seed=SEED)
    train(model, data, CROSS_ENTROPY, settings, title="A")
    judge = Judge(model, data, held_out, arguments)
    print(f"A: {judge.training_errors} training errors, {int(judge.wrong.sum())} errors in {len(held_out)}")
    judge.softmax()
    every = ErrorSet(torch.arange(len(data)), data.labels, len(data), "every sample")

    def augmented(strength: float) -> Data:
        return Augmented(data, MILD.times(strength), seed=SEED)

    def moved(direction: Direction) -> Data:
        return replace_errors(model, data, every, epsilon=0.1, direction=direction)

    judge.idea("unchanged data", [data])
    for strength in (0.25, 1.0):
        judge.idea(f"and augmented, strength {strength}", [data, augmented(strength)])
    mild = [data, augmented(0.5)]
    judge.idea("and augmented, strength 0.5", mild)
    for loss in (label_smoothing, focal, mixup, correctness_ranking, sharpness_aware):
        judge.idea(f"and augmented 0.5, {loss.__name__.replace('_', ' ')}", mild, loss)
    for rank in (1, 2, 8, 12, 16, 64, 128):
        judge.idea(f"and augmented 0.5, rank {rank}", mild, rank=rank)
    judge.idea("and augmented 0.5, learning rate 1e-3", mild, rate=1e-3)
    judge.idea("and augmented 0.5, 6 epochs", mild, epochs=6)
    attacked = [*mild, moved("gradient")]
    judge.idea("and augmented 0.5, FGSM of all", attacked)
    judge.idea("and augmented 0.5, FGSM of all, 6 epochs", attacked, epochs=6)
    judge.idea("and augmented 0.5, FGSM of all, rank 12", attacked, rank=12)
    judge.idea("and augmented 0.5, FGSM of all, rank 12, 6 epochs", attacked, rank=12, epochs=6)
    judge.idea("and augmented 0.5, random signs on all", [*mild, moved("random")])
    judge.idea("and FGSM of all", [data, moved("gradient")])


class Head(nn.Module):
    """What follows the convolutions of the paper's network: adapters are trained on what these answer, computed once.

    Args:
        model: Its weights are shared.
    """

    def __init__(self, model: PaperCNN) -> None:
        super().__init__()
        self.fc1, self.fc2 = model.fc1, model.fc2

    def forward(self, rows: Tensor) -> Tensor:
        """Returns logits ``(N, K)`` for what enters fc1, float32 ``(N, 9216)``."""
        logits: Tensor = self.fc2(F.relu(self.fc1(rows)))
        return logits


@torch.no_grad()
def features(model: PaperCNN, data: Data) -> Tensor:
    """Returns what enters fc1, float32 ``(N, 9216)``."""
    parts = []
    for rows in torch.arange(len(data)).split(BATCH_SIZE):
        x = one_tensor(data.inputs(rows), "of pixels")
        parts.append(F.max_pool2d(F.relu(model.conv2(F.relu(model.conv1(x)))), 2).flatten(1))
    return torch.cat(parts)


class Judge:
    """A, its features, and the table so far."""

    def __init__(self, model: PaperCNN, data: Data, held_out: Data, arguments: argparse.Namespace) -> None:
        self.model, self.arguments = model, arguments
        self.base, self.unseen = predict_logits(model, held_out), features(model, held_out)
        self.wrong = (self.base.argmax(1) != held_out.labels).numpy()
        self.training_errors = int((predict_logits(model, data).argmax(1) != data.labels).sum())
        self.rows: list[dict[str, Any]] = []
        self._parts: Sequence[Data] = ()
        self._kept: tuple[Tensor, Tensor] | None = None

    def softmax(self) -> None:
        """Notes what the base model itself offers."""
        self._note("softmax of A", 0, maximum_softmax(self.base))

    def idea(self, name: str, parts: Sequence[Data], loss: Loss = cross_entropy, *, rank: int = 4, epochs: int = 3,
             rate: float = 3e-3) -> None:  # fmt: skip
        """Trains adapters on these data with this objective, and notes what one finds and what all do."""
        if self.arguments.only and not any(part in name for part in self.arguments.only):
            return
        ranks = {"fc1": rank, "fc2": min(rank, 10)}
        rows, labels = self._features(parts)
        adapters = [
            self._fit(rows, labels, loss, ranks=ranks, seed=seed, epochs=epochs, rate=rate)
            for seed in range(ADAPTERS * self.arguments.repeats)
        ]
        for size in (1, ADAPTERS):
            committees = [adapters[first : first + size] for first in range(0, len(adapters), size)]
            self._note(name, size, *(mean_of_both(self.base, pool(committee)) for committee in committees))

    def _features(self, parts: Sequence[Data]) -> tuple[Tensor, Tensor]:
        """What enters fc1 for these data, and their labels; kept for the next idea that asks for the same data."""
        if parts is not self._parts:
            self._kept, data = None, Joined(*parts)
            self._parts, self._kept = parts, (features(self.model, data), data.labels)
        assert self._kept is not None
        return self._kept

    def _fit(
        self, rows: Tensor, labels: Tensor, loss: Loss, *, ranks: dict[str, int], seed: int, epochs: int, rate: float
    ) -> Tensor:
        adapted = attach_adapter(Head(self.model), ranks, seed=seed)
        with adapted.learning():
            learn(adapted, rows, labels, loss, seed=seed, epochs=epochs, rate=rate)
        return predict_answers(adapted, TensorData(self.unseen)).second

    def _note(self, name: str, adapters: int, *suspicions: Tensor) -> None:
        """Notes the mean over the committees, and the standard deviation where there are several."""
        figures = {
            metric.name: [metric(suspicion.numpy(), self.wrong) for suspicion in suspicions]
            for metric in (aurc, auroc, aupr_error)
        }
        means = {key: float(np.mean(values)) for key, values in figures.items()}
        spread = {f"{key}_spread": float(np.std(values, ddof=1)) for key, values in figures.items() if len(values) > 1}
        self.rows.append({"idea": name, "adapters": adapters, "committees": len(suspicions), **means, **spread})
        print(f"{name:45} {adapters} ({len(suspicions)} times)  AURC {1e3 * means['aurc']:.3f} "
              f"±{1e3 * spread.get('aurc_spread', 0):.3f}  AUROC {100 * means['auroc']:.2f}  "
              f"AUPR-Error {100 * means['aupr_error']:.1f}", flush=True)  # fmt: skip
        self.write()

    def write(self) -> None:
        """Writes the table so far as JSON and as Markdown."""
        folder: Path = self.arguments.output
        told = {"samples": SAMPLES, "seed": SEED, "errors": int(self.wrong.sum())}
        write_json(folder / "ideas.json", plain({"settings": told, "rows": self.rows}))
        lines = ["| learns from, objective | adapters | AURC ×10³ | AUROC | AUPR-Error |", "|---|---|---|---|---|"]
        lines += [
            f"| {row['idea']} | {row['adapters'] or '–'} | {1e3 * row['aurc']:.3f} | {100 * row['auroc']:.2f} | "
            f"{100 * row['aupr_error']:.1f} |"
            for row in self.rows
        ]
        write_text(folder / "ideas.md", "\n".join(lines) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="Holds MNIST; absent: PETM_DATA_DIR.")
    parser.add_argument("--repeats", type=int, default=1, help="Committees of each idea, with seeds of their own.")
    parser.add_argument("--only", action="append", help="Ideas with this in their name, any number of times.")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/ideas"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
