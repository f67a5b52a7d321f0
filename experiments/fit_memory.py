"""Does memory grow with the data? Peak memory of fitting on few and on many images that are read from disk.

Random JPEG images of 32×32 pixels are written into one Parquet file of each size. A network is fitted to them in a
process of its own, by the recipe ``fast`` without its mirror image, which trains nothing, in two epochs. Beside it
stands the bound: what the base model's own inference takes at the same batch, the adapter's training state and the
cache budget.

    python -m experiments.fit_memory -o docs/measured
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn

from experiments.detection.recipes import RECIPES
from experiments.machine import describe_machine, in_a_process, process_peak, process_reset
from petm._internal.files import write_json
from petm.data.base import Data
from petm.data.opening import open_data
from petm.fitting import fit
from petm.grading.grader import Grader
from petm.models.prediction import BATCH_SIZE, predict_logits
from petm.selective.targets import Recall

RECIPE = replace(RECIPES["fast"], mirrored=None, epochs=2)
CACHE_BUDGET = 64 << 20
STATE = 4
"""Tensors of an adapter in training: weights, gradient and two moments."""


def small_cnn() -> nn.Module:
    """Three convolutions and two linear layers for 3×32×32, of which the recipe adapts the last."""
    torch.manual_seed(0)
    convolutions: list[nn.Module] = []
    for inside, outside in ((3, 16), (16, 32), (32, 64)):
        convolutions += [nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10)).eval()


def resnet() -> nn.Module:
    """Eight blocks of widths 32 to 128, as transformers builds them, for 3×32×32."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_sizes": [32, 64, 128], "depths": [2, 2, 2], "num_labels": 10}
    network: nn.Module = ResNetForImageClassification(ResNetConfig(embedding_size=32, layer_type="basic", **shape))
    return network.eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {"small-cnn": small_cnn, "resnet": resnet}


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        network: A name of `NETWORKS`.
        path: Parquet file of images.
        infers: Run the base model alone instead of fitting.
    """

    network: str
    path: Path
    infers: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs=2, default=(10_000, 100_000))
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/measured"))
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [write_images(Path(folder), count) for count in arguments.samples]
        for network in NETWORKS:
            found.append(measure(network, paths, arguments.samples))
            print(found[-1], flush=True)
    machine = describe_machine(torch.device("cpu"))
    write_json(arguments.output / "memory.json", {"machine": machine, "batch": BATCH_SIZE, "networks": found})


def write_images(folder: Path, count: int) -> Path:
    """Writes random JPEG images into one Parquet file, in row groups of 2,500, and returns its path."""
    rng = np.random.default_rng(count)
    path = folder / f"{count}.parquet"
    schema = pa.schema({"image": pa.binary(), "label": pa.int64()})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, 2500):
            rows = min(2500, count - start)
            images = [_jpeg(pixels) for pixels in rng.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)]
            writer.write_table(pa.table({"image": images, "label": rng.integers(0, 10, rows)}, schema))
    return path


def _jpeg(pixels: np.ndarray[Any, Any]) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", quality=90)
    return stream.getvalue()


def measure(network: str, paths: list[Path], samples: tuple[int, int]) -> dict[str, Any]:
    """Returns what fitting takes on each file, the ratio of both, and the bound."""
    inference = in_a_process(fit_or_infer, Job(network, paths[0], infers=True))
    fits = [in_a_process(fit_or_infer, Job(network, path, infers=False)) for path in paths]
    few, many = fits
    bound = inference["own"] + STATE * many["adapter_bytes"] + many["kept_bytes"] + CACHE_BUDGET
    return {
        "network": network,
        "cache_budget": CACHE_BUDGET,
        "inference": inference,
        "fits": [
            {"samples": count, "file_bytes": path.stat().st_size, **each}
            for count, path, each in zip(samples, paths, fits, strict=True)
        ],
        "ratio": many["peak"] / few["peak"],
        "ratio_without_libraries": many["own"] / few["own"],
        "bound": bound,
        "of_bound": many["own"] / bound,
    }


def fit_or_infer(job: Job) -> dict[str, float]:
    """Runs in a process of its own; returns the greatest resident set, in all and above that of the libraries."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = NETWORKS[job.network]()
    for library in ("transformers.modeling_utils", "peft", "sklearn.linear_model"):
        import_module(library)
    predict_logits(model, open_data(job.path).subset(range(16)))  # loads and builds kernels
    process_reset()
    _, libraries = process_peak()
    began = time.perf_counter()
    # As the command does: what takes more than a quarter of the budget stays on disk.
    data = open_data(job.path).in_memory(CACHE_BUDGET // 4)
    grader = None
    if job.infers:
        predict_logits(model, data.subset(range(min(4 * BATCH_SIZE, len(data)))))
    else:
        grader = fit(model, data, recipe=RECIPE, cache_budget=CACHE_BUDGET, target=Recall(0.9), device="cpu")
    seconds, peak = time.perf_counter() - began, process_peak()[0]
    found: dict[str, float] = {"seconds": seconds, "peak": peak, "own": peak - libraries}
    return found | (_training_state(grader, data) if grader else {})


def _training_state(grader: Grader, data: Data) -> dict[str, float]:
    """Bytes of the adapters, and of what a training step keeps for its backward pass besides weights."""
    learner = grader.adapted
    learner.adapter.learn(*learner.adapters)
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*learner.parameters(), *learner.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answers = learner(data.inputs(range(BATCH_SIZE)))
    assert answers.requires_grad
    return {"adapter_bytes": 4 * learner.adapter_parameters(), "kept_bytes": sum(kept.values())}


if __name__ == "__main__":
    main()
