"""Wrong labels found: `petm.find_label_errors` beside cleanlab's scores of the same out-of-fold probabilities.

    pip install cleanlab==2.9.0
    python -m experiments.label_errors --data-dir DIR --models DIR -o docs/measured/label_errors.json

``--data-dir`` holds MNIST and CIFAR-10, ``--models`` the given models. Labels are flipped to any other class, or within
two pairs of classes. Networks are the given ones on test images, which they have not seen, and networks that are
trained here on the flipped labels of training images. ``--cache`` keeps features of networks.
"""

import argparse
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from petm._internal.files import write_json
from petm.data.base import Data, TensorData
from petm.data.digits import load_mnist
from petm.data.fields import one_tensor
from petm.data.opening import open_data
from petm.evidence.protocol import compute_answers
from petm.models.loading import load_model
from petm.models.paper import PaperCNN
from petm.selective.label_errors import label_errors, out_of_fold

PAIRS = {"mnist": ((4, 9), (3, 5)), "cifar10": ((3, 5), (1, 9))}
"""Classes that are taken for each other: digits of like form; cat and dog, automobile and truck."""
SCORES = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")
DRAWS = range(101, 106)
"""Seeds of the flips that are reported; the constants of the ranking were chosen on others."""
RESAMPLES = 300


def flip(labels: Tensor, share: float, pairs: tuple[tuple[int, int], ...], seed: int) -> Tensor:
    """Returns labels of which a share is wrong: any other class, or, with pairs, the other class of the pair."""
    generator, flipped = torch.Generator().manual_seed(seed), labels.clone()
    if not pairs:
        rows = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
        flipped[rows] = (labels[rows] + torch.randint(1, 10, (len(rows),), generator=generator)) % 10
        return flipped
    other = torch.arange(10)
    for one, two in pairs:
        other[one], other[two] = two, one
    could = (other[labels] != labels).nonzero().flatten()
    rows = could[torch.randperm(len(could), generator=generator)[: round(share * len(labels))]]
    flipped[rows] = other[labels[rows]]
    return flipped


def trained(network: nn.Module, images: Tensor, labels: Tensor, epochs: int, rate: float, *, moved: bool) -> nn.Module:
    """Returns the network trained by AdamW, one-cycle; ``moved`` flips and shifts whole batches of images."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
    steps = epochs * -(-len(images) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(128):
            x = images[rows].float() / 255
            if moved:
                x = x.flip(-1) if torch.rand(()) < 0.5 else x
                i, j = torch.randint(0, 5, (2,)).tolist()
                x = F.pad(x, (2, 2, 2, 2), mode="reflect")[:, :, i : i + 32, j : j + 32]
            loss = F.cross_entropy(network(x), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def answers(cache: Path, name: str, make: Callable[[], tuple[nn.Module, Tensor, Tensor]]) -> dict[str, Any]:
    """Returns features and logits, from the cache where they are there."""
    path = cache / f"{name}.pt"
    if not path.exists():
        network, images, labels = make()
        found = compute_answers(network, TensorData(images, labels))
        cache.mkdir(parents=True, exist_ok=True)
        torch.save({"features": found.features, "logits": found.base, "labels": labels}, path)
    return dict(torch.load(path))


def precision(score: NDArray[Any], wrong: NDArray[np.bool_]) -> float:
    """Returns the share of wrong labels among as many highest scores as there are wrong labels."""
    return float(wrong[np.argsort(-score, kind="stable")[: wrong.sum()]].mean())


def judged(found: dict[str, Any], given: Tensor) -> dict[str, Any]:
    """Returns precision at the number flipped by score, and differences with paired bootstrap intervals."""
    get_label_quality_scores = import_module("cleanlab.rank").get_label_quality_scores
    labels, wrong = given.numpy(), (given != found["labels"]).numpy()
    heads = out_of_fold(found["features"].numpy(), labels, classes=10)
    softmax = found["logits"].softmax(1).numpy()
    told: dict[str, Any] = {"rows": len(labels), "flipped": int(wrong.sum())}
    for name, opinions in {"heads": heads, "heads and softmax": (2 * heads + softmax) / 3, "softmax": softmax}.items():
        # Of a network that was trained on these labels the softmax is shown, but not used by petm without --unseen.
        whole = np.maximum(opinions, 1e-6)
        whole = whole / whole.sum(1, keepdims=True)
        mine = label_errors(opinions, labels)
        scores = {"petm": mine.probability}
        for each in SCORES:
            adjust = each != "confidence_weighted_entropy"
            for adjusted in (False, True) if adjust else (False,):
                key = f"cleanlab {each}{', adjusted' if adjusted else ''}"
                scores[key] = -get_label_quality_scores(labels, whole, method=each, adjust_pred_probs=adjusted)
        found_by = {key: precision(score, wrong) for key, score in scores.items()}
        best = max((key for key in found_by if key != "petm"), key=lambda key: found_by[key])
        random, gains = np.random.default_rng(0), {key: list[float]() for key in (best, "cleanlab self_confidence")}
        for _ in range(RESAMPLES):
            rows = random.integers(len(labels), size=len(labels))
            own = precision(scores["petm"][rows], wrong[rows])
            for key, gain in gains.items():
                gain.append(own - precision(scores[key][rows], wrong[rows]))
        against = {
            key: {"difference": found_by["petm"] - found_by[key], "interval": np.percentile(gain, [2.5, 97.5]).tolist()}
            for key, gain in gains.items()
        }
        sure = mine.probability > 0.5
        told[name] = {
            "precision": found_by,
            "best of cleanlab": best,
            "petm minus": against,
            "expected over flipped": float(mine.probability.sum() / wrong.sum()),
            "above one half": {"rows": int(sure.sum()), "wrong": float(wrong[sure].mean()) if sure.any() else None},
            "suggested is true": float((mine.suggested[wrong] == found["labels"].numpy()[wrong]).mean()),
        }
    return told


def main() -> None:
    """Runs the comparison and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/label-errors"))
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    digits = load_mnist(given.data_dir)

    def images(data: Data) -> tuple[Tensor, Tensor]:
        pixels = one_tensor(data.inputs(range(len(data))), "to flip labels of")
        return (pixels * 255).round().to(torch.uint8), data.labels

    def pictures(part: str, most: int) -> tuple[Tensor, Tensor]:
        data = open_data(given.data_dir / "cifar10" / f"{part}.parquet", size=(32, 32), channels=3)
        return images(data.subset(range(min(most, len(data)))))

    resnet, width = f"{given.models / 'resnet9.py'}:build", {"width": 16}
    results = []
    for name in PAIRS:

        def unseen(name: str = name) -> tuple[nn.Module, Tensor, Tensor]:
            if name == "mnist":
                return load_model("petm.models:PaperCNN", given.models / "mnist_converged.safetensors"), *images(
                    digits[1]
                )
            return load_model(resnet, given.models / "cifar10_resnet9.safetensors"), *pictures("test", 5000)

        found = answers(given.cache, f"{name}_unseen", unseen)
        kinds: list[tuple[float, tuple[tuple[int, int], ...]]] = [
            (0.02, ()),
            (0.05, ()),
            (0.1, ()),
            (0.05, PAIRS[name]),
        ]
        for share, pairs in kinds:
            for seed in DRAWS:
                told = judged(found, flip(found["labels"], share, pairs, seed))
                results.append(
                    {"data": name, "network": "has not seen the rows", "share": share, "pairs": pairs, **told}
                )
                print(results[-1])
        for share, pairs in kinds if name == "mnist" else kinds[1:2]:

            def on_flipped(
                name: str = name, share: float = share, pairs: Any = pairs
            ) -> tuple[nn.Module, Tensor, Tensor]:
                x, labels = images(digits[0].subset(range(20_000))) if name == "mnist" else pictures("train", 10_000)
                y = flip(labels, share, pairs, 1)
                if name == "mnist":
                    return trained(PaperCNN(), x, y, 4, 2e-3, moved=False), x, labels
                network = trained(load_model(resnet, arguments=width).train(), x, y, 10, 1e-2, moved=True)
                return network, x, labels

            kind = "pairs" if pairs else "uniform"
            found = answers(given.cache, f"{name}_trained_{kind}_{share}", on_flipped)
            told = judged(found, flip(found["labels"], share, pairs, 1))
            results.append({"data": name, "network": "trained on them", "share": share, "pairs": pairs, **told})
            print(results[-1])
        write_json(given.output, {"results": results})


if __name__ == "__main__":
    main()
