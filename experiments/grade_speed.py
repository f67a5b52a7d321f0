"""What does ``petm grade`` cost over a plain loop, and does its memory grow with the number of inputs?

MNIST is written into Parquet files as PNG. ``petm grade`` runs as a command, against a plain loop in a process of its
own that reads the same file, decodes and computes the base model's logits, in turn. Memory is the greatest resident set
of the command on few and on many images.

    python -m experiments.grade_speed --weights mnist_converged.safetensors --data-dir DIR -o docs/measured
"""

import argparse
import io
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from experiments.machine import describe_machine
from petm._internal.files import write_json
from petm.data.base import Data
from petm.data.digits import load_mnist
from petm.data.fields import one_tensor
from petm.fitting import fit
from petm.grading.provenance import InputOrigin, ModelOrigin, Origin
from petm.models.loading import load_weights
from petm.models.paper import paper_cnn
from petm.selective.targets import MaxRisk

PLAIN = """
import io, sys
import numpy as np, pyarrow.parquet as pq, torch
from PIL import Image
from petm.models.loading import load_weights
from petm.models.paper import paper_cnn
model = paper_cnn(); load_weights(model, sys.argv[2]); model.eval()
answers = []
with torch.no_grad():
    for batch in pq.ParquetFile(sys.argv[1]).iter_batches(256, columns=["image"]):
        images = [np.asarray(Image.open(io.BytesIO(cell["bytes"])), np.float32) for cell in batch.column(0).to_pylist()]
        answers.append(model(torch.from_numpy(np.stack(images)[:, None] / 255)))
print(torch.cat(answers).shape)
"""
"""What people write who only want the base model's logits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="of petm.models:PaperCNN")
    parser.add_argument("--data-dir", type=Path, required=True, help="of MNIST")
    parser.add_argument("--samples", type=int, default=60_000, help="of the timed file")
    parser.add_argument("--memory", type=int, nargs=2, default=(10_000, 200_000), help="images in few and in many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2], help="of Ray; none leaves it out")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/measured"))
    arguments = parser.parse_args()
    train, test = load_mnist(arguments.data_dir)
    result: dict[str, Any] = {"machine": describe_machine(torch.device("cpu")), "samples": arguments.samples}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = write_bundle(folder, arguments.weights, train, test)
        timed = write_images(folder, train, arguments.samples)
        plain, graded = [], []
        for _ in range(arguments.rounds):
            plain.append(run([sys.executable, "-c", PLAIN, str(timed), str(arguments.weights)])[0])
            graded.append(run(grade(bundle, timed, folder / "g.parquet", "--overwrite"))[0])
            print(f"plain loop {plain[-1]:.1f} s, petm grade {graded[-1]:.1f} s", flush=True)
        ratios = [one / other for one, other in zip(graded, plain, strict=True)]
        result["time"] = {"plain": plain, "grade": graded, "ratio": median(ratios), "ratios": ratios}
        peaks = []
        for count in arguments.memory:
            file = write_images(folder, train, count)
            peaks.append(run(grade(bundle, file, folder / f"{count}.parquet.csv"))[1])
            print(f"{count} images: {peaks[-1] / 1e6:.0f} MB", flush=True)
        result["memory"] = {"images": arguments.memory, "peak": peaks, "ratio": peaks[1] / peaks[0]}
        result["ray"] = {}
        for workers in arguments.workers:
            more = ("--engine", "ray", "--workers", str(workers), "--overwrite")
            result["ray"][workers] = run(grade(bundle, timed, folder / "ray.parquet", *more))[0]
            print(f"Ray, {workers} workers: {result['ray'][workers]:.1f} s", flush=True)
    write_json(arguments.output / "grade.json", result)
    print(f"petm grade over the plain loop: {result['time']['ratio']:.2f}; memory: {result['memory']['ratio']:.3f}")


def write_bundle(folder: Path, weights: Path, train: Data, test: Data) -> Path:
    """Fits the recipe ``fast`` to a part of the training data and saves it."""
    model = paper_cnn()
    load_weights(model, weights)
    origin = Origin(ModelOrigin("petm.models:PaperCNN", {}, str(weights.absolute())), InputOrigin((28, 28), 1))
    grader = fit(model, train.subset(range(6000)), calibration=test, target=MaxRisk(0.01), origin=origin, device="cpu")
    grader.save(folder / "bundle.petm")
    return folder / "bundle.petm"


def write_images(folder: Path, data: Data, count: int) -> Path:
    """Writes so many images as PNG into one Parquet file, those of the data again and again."""
    path = folder / f"{count}.parquet"
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    with pq.ParquetWriter(path, pa.schema({"image": kind, "label": pa.int64()})) as writer:
        for start in range(0, count, 5000):
            rows = [index % len(data) for index in range(start, min(start + 5000, count))]
            pixels = one_tensor(data.inputs(rows), "to write").mul(255).round().to(torch.uint8).numpy()[:, 0]
            cells = [{"bytes": _png(image), "path": None} for image in pixels]
            writer.write_table(pa.table({"image": pa.array(cells, kind), "label": data.labels[rows].tolist()}))
    return path


def _png(pixels: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def grade(bundle: Path, file: Path, output: Path, *more: str) -> list[str]:
    """The command."""
    return [sys.executable, "-m", "petm", "grade", str(bundle), str(file), "-o", str(output), *more]


def run(command: list[str]) -> tuple[float, int]:
    """Seconds and the greatest resident set of a command, in bytes, sampled."""
    # Not ru_maxrss: a child starts with its parent's.
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        with suppress(OSError):
            peak = max([peak, *(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line)])
        time.sleep(0.05)
    assert process.returncode == 0, command
    return time.perf_counter() - began, peak * 1024


if __name__ == "__main__":
    main()
