"""Readers against damaged and hostile files: our own mutations of valid ones, from a seed that names each case.

`make fuzz FUZZ_SECONDS=600` divides the time among the readers; `python fuzzing.py --only csv:17` repeats one case.
Each reader runs in a process of its own, with a limit on memory and on the time of a case. Whatever ends in
something else than a result or a `PetmError` is a failure: its file is saved, and its case is printed.
"""

import argparse
import copy
import faulthandler
import gzip
import io
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

import hf_folders
from networks import TinyCNN, images, randomise, seeded
from petm._internal.files import sha256_of_file
from petm.adapter.model import attach_adapter
from petm.data.arrays import read_idx
from petm.data.base import TensorData
from petm.data.decisions import read_decided
from petm.data.fields import Fields
from petm.data.opening import open_data
from petm.data.reader import Reader
from petm.data.sources import Source, open_sources
from petm.data.texts import read_texts
from petm.errors import PetmError
from petm.grading.grade_files import write_tables
from petm.grading.grade_table import read_grades
from petm.grading.grader import fit_grader, load
from petm.grading.onnx_export import export_onnx
from petm.grading.onnx_grader import OnnxGrader
from petm.grading.production import read_production
from petm.models.hf_processors import load_processor
from petm.models.loading import call_model, load_model
from petm.selective.targets import Coverage
from petm.selective.thresholds import Threshold

CASE_SECONDS, MORE_MEMORY = 20, 3 << 30
"""Seconds of one case, and bytes that a reader may take beyond those it starts with."""

TOKENS = [
    b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"\xed\xa0\xbd", b"\\ud83d", b"[" * 50_000, b"{", b'"":', b"NaN", b"-1",
    b"9" * 5_000, b"1e999", b"-0", b"null", b"true", b"\xef\xbb\xbf", b"\xff\xfe", b"../..", b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", struct.pack("<q", 1 << 62), struct.pack(">q", -1),
    b"%s", b"\t", b"[/b]", b"'", b"=",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, -1, 0, 1 << 31, 1 << 63, 10**4000, 1e308, float("nan"), float("inf"), "", "x" * 10_000, "\ud83d", "\0",
    "../../x", "/etc/passwd", 10**9, -3, 2.5, [], {}, [[]], {"": None}, [1, "a"], "1", "hf:x", [0.0] * 1000,
]  # fmt: skip


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, cut, doubled, moved or inserted."""
    for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
        at, length = chance.randrange(len(content) + 1), chance.choice([1, 4, 8, 64, 1000])
        head, some, tail = content[:at], content[at : at + length], content[at + length :]
        kind = chance.randrange(8)
        if kind == 0 and some:
            content = head + bytes([some[0] ^ 1 << chance.randrange(8)]) + some[1:] + tail
        elif kind == 1:
            content = head + chance.randbytes(len(some)) + tail
        elif kind == 2:
            content = head
        elif kind == 3:
            content = head + tail
        elif kind == 4:
            content = head + some * chance.choice([2, 3, 50]) + tail
        elif kind == 5:
            content = head + tail[: chance.randrange(1000)] + some + tail
        else:
            token = chance.choice(TOKENS)
            content = head + token + (tail if kind == 6 else content[at + len(token) :])
    return content


def mutated_json(content: bytes, chance: random.Random) -> bytes:
    """A JSON object with other values at some places, or with names missing, or its text mutated."""
    if chance.random() < 0.2:
        return mutated(content, chance)
    told = json.loads(content)
    for _ in range(chance.choice([1, 1, 2, 5])):
        holder, key = chance.choice([*_places(told)] or [({}, "")])
        if chance.random() < 0.15 and isinstance(holder, dict):
            holder.pop(key, None)
        elif isinstance(holder, dict) or key < len(holder):
            holder[key] = copy.deepcopy(chance.choice(VALUES))
    with_digits = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(told).encode("utf-8", "surrogatepass")
    finally:
        sys.set_int_max_str_digits(with_digits)


def _places(told: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in [*(told.items() if isinstance(told, dict) else enumerate(told))]:
        yield told, key
        if isinstance(value, dict | list):
            yield from _places(value)


def mutated_zip(content: bytes, chance: random.Random) -> bytes:
    """An archive with a mutated member whose checksum is right, or the bytes of the archive mutated."""
    if chance.random() < 0.3:
        return mutated(content, chance)
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        names = old.namelist()
        chosen = chance.choice(names)
        for name in names:
            member = old.read(name)
            if name == chosen and chance.random() < 0.5:  # the header alone
                member = mutated(member[:128], chance) + member[128:]
            elif name == chosen:
                member = mutated(member, chance)
            new.writestr(name, member)
    return stream.getvalue()


def mutated_gzip(content: bytes, chance: random.Random) -> bytes:
    """A gzip file of mutated content, or mutated itself."""
    if chance.random() < 0.5:
        return mutated(content, chance)
    return gzip.compress(mutated(gzip.decompress(content), chance), 1)


def mutated_tensors(content: bytes, chance: random.Random) -> bytes:
    """A safetensors file with another header of the length that it tells, or its bytes mutated."""
    if chance.random() < 0.3:
        return mutated(content, chance)
    length = struct.unpack("<Q", content[:8])[0]
    header = mutated_json(content[8 : 8 + length], chance)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def mutated_metadata(content: bytes, chance: random.Random) -> bytes:
    """A graph with another value of one of its metadata."""
    import onnx

    graph = onnx.load_model_from_string(content)
    entry = chance.choice([each for each in graph.metadata_props if each.key.startswith("petm.")])
    value = mutated_json(b'{"": %s}' % entry.value.encode(), chance)[5:-1]
    entry.value = value.decode("utf-8", "replace")
    return bytes(graph.SerializeToString())


Mutate = Callable[[bytes, random.Random], bytes]


class Target(NamedTuple):
    """A file to mutate, and what reads it."""

    file: Path
    read: Callable[[Path], object]
    mutate: Mutate = mutated
    settle: Callable[[Path], object] | None = None
    """Makes the other files fit the mutated one."""


def _each_row_once(sources: list[Source], reader: Reader | None) -> None:
    for source in sources:
        rows = []
        for some in source.rows(0, 1 << 60, 7):
            rows += [(row.path, row.number) for row in some]
            if reader is not None:
                assert len(reader.read(some).reasons) == len(some)
        assert len(rows) == source.count()
        assert len(set(rows)) == len(rows) or None in {number for _, number in rows}
        source.identity()


def _texts(path: Path) -> None:
    for skip_bad in (True, False):
        try:
            read_texts(path, skip_bad=skip_bad)
        except PetmError:
            assert True
    _each_row_once(open_sources([path], text_column="text", label_column="label"), None)


def _images(path: Path) -> None:
    reader = Reader(size=(8, 8), channels=1)
    try:
        data = open_data(path, size=None if path.suffix == ".npz" else (8, 8), channels=None, skip_bad=True)
        data.inputs(range(min(len(data), 8)))
    except PetmError:
        assert True
    _each_row_once(open_sources([path], label_column="label"), reader)


def _paths(path: Path) -> None:
    with path.open("rb") as file:
        lines = [os.fsdecode(line.rstrip(b"\n")) for line in file if line.strip()]
    lines = [line for line in lines if not line.startswith(("/", ".", "*", "?", "["))]  # no walk through the disk
    _each_row_once(open_sources(lines, keep_faults=True), Reader(size=(8, 8), channels=1))


def _grades(path: Path, threshold: Threshold) -> None:
    for batch in read_grades(path):
        batch.to_pylist()
    read_production([path], threshold, window=100)


def _seeds(folder: Path) -> dict[str, Target]:
    """Valid files of each kind."""
    pixels = (images(6, 1, 8, 8).numpy() * 255).astype(np.uint8)
    texts = [{"text": f'text {n}, "quoted"\nand é', "label": ["a", "b"][n % 2], "n": n} for n in range(40)]
    found: dict[str, Target] = {}
    header, *rows = ['"text","label","n"', *(f'"{row["n"]} a, ""b""\nc",a,{row["n"]}' for row in texts)]
    (folder / "csv.csv").write_text("\n".join([header, *rows, "plain,b,1"]))
    (folder / "jsonl.jsonl").write_text("\n".join(map(json.dumps, texts)))
    pq.write_table(pa.Table.from_pylist(texts), folder / "parquet.parquet", row_group_size=16)
    found |= {name: Target(folder / f"{name}.{name}", _texts) for name in ("csv", "jsonl", "parquet")}

    for kind in ("png", "jpeg", "gif", "tiff", "bmp", "webp", "ppm"):
        file = folder / f"{kind}.{kind}"
        Image.fromarray(pixels[0, 0]).save(file)
        found[kind] = Target(file, _images)
    encoded = [{"image": {"bytes": found["png"].file.read_bytes()}, "label": n % 2} for n in range(20)]
    pq.write_table(pa.Table.from_pylist(encoded), folder / "images.parquet", row_group_size=8)
    found["images"] = Target(folder / "images.parquet", _images)
    np.savez(folder / "npz.npz", images=pixels, labels=np.arange(6) % 2)
    found["npz"] = Target(folder / "npz.npz", _images, mutated_zip)

    idx = bytes((0, 0, 8, 3)) + struct.pack(">3I", 6, 8, 8) + pixels.tobytes()
    (folder / "idx").write_bytes(idx)
    (folder / "idx.gz").write_bytes(gzip.compress(idx))
    found["idx"] = Target(folder / "idx", lambda path: read_idx(path, 3))
    found["idx.gz"] = Target(folder / "idx.gz", lambda path: read_idx(path, 3), mutated_gzip)
    (folder / "list.txt").write_text("\n".join([*(each.file.name for each in found.values()), "gone.png"]))
    found["list"] = Target(folder / "list.txt", _paths)

    labels = [{"input": f"{n}.png", "label": ["a", "b"][n % 2], "row": n} for n in range(30)]
    (folder / "labels.csv").write_text(
        "\n".join(["input,label,row", *(",".join(map(str, row.values())) for row in labels)])
    )
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, labels)))
    pq.write_table(pa.Table.from_pylist(labels), folder / "labels.parquet")
    return (
        found
        | {
            f"labels.{kind}": Target(folder / f"labels.{kind}", lambda path: read_decided([path], ("a", "b"), fewest=1))
            for kind in ("csv", "jsonl", "parquet")
        }
        | _graders(folder)
        | _folders(folder)
    )


def _folders(folder: Path) -> dict[str, Target]:
    """Hugging Face folders: their configurations, tokenizer, processor and weights."""
    found = {}
    for kind, parts in {
        "bert": (hf_folders.bert(), hf_folders.word_tokenizer()),
        "vit": (hf_folders.vit(), hf_folders.image_processor()),
    }.items():
        place = hf_folders.save(folder / kind, *parts)

        def read(file: Path, text: bool = kind == "bert") -> None:
            processor: Any = load_processor(file.parent)
            if text:
                rows = [torch.tensor([row]) for row in processor.encode(["Who was Galileo ?"], 40)["input_ids"]]
                call_model(load_model(f"hf:{file.parent}"), Fields({"input_ids": rows[0]}))
            else:
                values = torch.from_numpy(processor.prepare(Image.new("RGB", (9, 9))))[None]
                call_model(load_model(f"hf:{file.parent}"), values)

        for file in place.iterdir():
            mutate = mutated_tensors if file.suffix == ".safetensors" else mutated_json
            found[f"{kind}/{file.name}"] = Target(file, read, mutate)
    return found


def _graders(folder: Path) -> dict[str, Target]:
    """A bundle and its files, and grades that it gave."""
    model = seeded(TinyCNN).eval()
    grader = fit_grader(randomise(attach_adapter(model, {"fc1": 2})), TensorData(images(60), torch.arange(60) % 10),
                        target=Coverage(0.6))  # fmt: skip
    bundle = folder / "my.petm"
    grader.save(bundle)
    from petm.grading.stream import grade_stream

    np.savez(folder / "graded.npz", images=images(40).numpy())
    given = grade_stream(grader, open_sources([folder / "graded.npz"]), Reader(size=(28, 28), channels=1))
    tables = [graded.table for graded in given]
    found = {}
    for kind in ("csv", "jsonl", "parquet"):
        write_tables(folder / f"grades.{kind}", f".{kind}", iter(tables))
        found[f"grades.{kind}"] = Target(folder / f"grades.{kind}", lambda path: _grades(path, grader.threshold))

    def fitting(file: Path) -> None:
        """Has the manifest tell the hash of a file."""
        told = json.loads((bundle / "petm.json").read_bytes())
        told["files"][file.name] = sha256_of_file(file)
        (bundle / "petm.json").write_text(json.dumps(told))

    def read(file: Path) -> None:
        load(bundle, seeded(TinyCNN).eval()).grade(images(2))

    found["petm.json"] = Target(bundle / "petm.json", read, mutated_json)
    found["adapter_config.json"] = Target(bundle / "adapter_config.json", read, mutated_json, fitting)
    found["adapter"] = Target(bundle / "adapter_model.safetensors", read, mutated_tensors, fitting)
    export_onnx(grader, folder / "model.onnx", images(2))
    found["onnx"] = Target(folder / "model.onnx", lambda path: OnnxGrader(path).grade(images(2)), mutated_metadata)
    return found


class Failure(NamedTuple):
    """A case that ended in something else than a result or a `PetmError`."""

    case: str
    what: str


def run_case(name: str, target: Target, number: int, content: bytes, kept: Path) -> Failure | None:
    """Reads one mutation; the file of a failure is saved in the folder ``kept``."""
    mutant = target.mutate(content, random.Random(f"{name}:{number}"))
    target.file.write_bytes(mutant)
    faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
    try:
        if target.settle is not None:
            target.settle(target.file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(target.file)
    except PetmError:
        return None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames if "src/petm" in frame.filename]
        what = f"{type(error).__name__} (at {' '.join(where[-1:])} in {frames[-1].name}): {str(error)[:200]}"
        return _keep(f"{name}:{number}", what, target, kept)
    finally:
        faulthandler.cancel_dump_traceback_later()
        target.file.write_bytes(content)
    return None


def _keep(case: str, what: str, target: Target, kept: Path) -> Failure:
    kept.mkdir(parents=True, exist_ok=True)
    shutil.copy(target.file, kept / f"{case.replace(':', '-').replace('/', '-')}-{target.file.name}")
    return Failure(case, what)


def fuzz(name: str, target: Target, numbers: range, seconds: float, kept: Path) -> tuple[int, list[Failure]]:
    """Runs cases in forked processes, a new one behind each that died; returns their number, and failures by place."""
    content, failures = target.file.read_bytes(), dict[str, Failure]()
    state = target.file.parent / "petm.json"
    manifest = state.read_bytes() if target.settle else None
    target.read(target.file)  # it is valid
    end, number = time.monotonic() + seconds, numbers.start
    while number < numbers.stop and time.monotonic() < end and len(failures) < 20:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reader)
                limit = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + MORE_MEMORY
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
                with os.fdopen(writer, "w") as told:
                    while number < numbers.stop and time.monotonic() < end:
                        failure = run_case(name, target, number, content, kept)
                        told.write(json.dumps([number, failure and failure.what]) + "\n")
                        told.flush()
                        number += 1
                os._exit(0)
            finally:
                os._exit(1)  # whatever is raised here, the caller's own work is not done twice
        os.close(writer)
        with os.fdopen(reader) as told:
            for line in told:
                number, what = json.loads(line)
                number += 1
                if what:
                    failures.setdefault(what.partition("): ")[0], Failure(f"{name}:{number - 1}", what))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            what = f"the process ended with {code}, by a crash or after {CASE_SECONDS} seconds"
            target.file.write_bytes(target.mutate(content, random.Random(f"{name}:{number}")))
            failures[f"{number}"] = _keep(f"{name}:{number}", what, target, kept)
            number += 1
        target.file.write_bytes(content)
        if manifest is not None:
            state.write_bytes(manifest)
    return number - numbers.start, [*failures.values()]


def fuzz_all(seconds: float, cases: int, kept: Path, *, first: int = 0, only: str = "") -> list[Failure]:
    """Fuzzes each reader for its part of the time; prints their cases and failures, and returns these."""
    found: list[Failure] = []
    with tempfile.TemporaryDirectory() as place:
        targets = _seeds(Path(place))
        os.chdir(place)
        chosen = {name: target for name, target in targets.items() if only in ("", name)}
        for name, target in chosen.items():
            count, failures = fuzz(name, target, range(first, first + cases), seconds / len(chosen), kept)
            print(f"{name}: {count} cases, {len(failures)} failures", flush=True)
            for failure in failures:
                print(f"  {failure.case}: {failure.what}", flush=True)
            found += failures
        os.chdir("/")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each reader")
    parser.add_argument("--only", default="", help="a reader, or one of its cases: csv, csv:17")
    parser.add_argument("--kept", type=Path, default=Path("runs/fuzz"), help="folder of the files that failed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    name, _, number = options.only.partition(":")
    first, cases = (int(number), 1) if number else (options.first, 1 << 40)
    failures = fuzz_all(options.seconds, cases, options.kept.absolute(), first=first, only=name)
    sys.exit(f"{len(failures)} failures; their files are in {options.kept}" if failures else 0)


if __name__ == "__main__":
    main()
