"""``petm serve``: a grader behind HTTP."""

import math
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from petm.cli import options
from petm.errors import ArgumentError

if TYPE_CHECKING:
    from petm.grading.provenance import InputOrigin
    from petm.serving.engine import GraderEngine
    from petm.serving.limits import Limits
    from petm.serving.reading import Reader

MEBI = 2**20


@click.command(
    epilog="Example: petm serve runs/demo/grader.petm --port 8000",
    short_help="Grade over HTTP, with a page to review grades.",
)
@options.grader
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 for all networks.")
@click.option("--port", default=8000, show_default=True, help="Port to listen at; 0 takes a free one.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the key that requests must send as X-API-Key. Or set PETM_API_KEY.",
)
@click.option("--allowed-host", "hosts", multiple=True, help="Host name that requests may use; repeatable.")
@click.option("--labels-file", type=options.PATH, help="JSON Lines file for labels that people give to inputs.")
@click.option(
    "--queue", multiple=True, help="File of petm grade whose suspects and audit rows are reviewed; repeatable."
)
@click.option("--grades-file", type=options.PATH, help="JSON Lines file (.jsonl) for the grades of all that is sent.")
@click.option(
    "--audit", type=float, help="Share of the trusted that the page draws for review, such as 0.05; with --grades-file."
)
@click.option("--max-batch", "batch", default=64, show_default=True, help="Inputs in one pass; 1 batches nothing.")
@click.option("--max-wait-ms", default=2.0, show_default=True, help="Most milliseconds to wait for other inputs.")
@click.option("--max-body-mib", default=32.0, show_default=True, help="Most MiB in a request's body.")
@click.option("--max-pixels", "pixels", default=24_000_000, show_default=True, help="Most pixels of an image.")
@click.option("--max-characters", "characters", default=200_000, show_default=True, help="Most characters of a text.")
@click.option("--max-inputs", default=256, show_default=True, help="Most inputs in one request.")
@click.option("--max-waiting", default=1024, show_default=True, help="Inputs accepted and not yet answered, else 429.")
@click.option("--max-connections", "connections", default=512, show_default=True, help="Most connections open at once.")
@click.option("--timeout", default=30.0, show_default=True, help="Seconds for receiving a body, and for its answer.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of a pass. Absent: all cores but one.")
@options.device
@options.config
def serve(
    place: options.GraderPlace,
    host: str,
    port: int,
    api_key_file: Path | None,
    hosts: tuple[str, ...],
    labels_file: Path | None,
    queue: tuple[str, ...],
    grades_file: Path | None,
    audit: float | None,
    max_wait_ms: float,
    max_body_mib: float,
    max_inputs: int,
    max_waiting: int,
    threads: int | None,
    device: str,
    **more: Any,
) -> None:
    """Grade over HTTP: POST /grade takes images or texts, one or many; / is a page for people.

    The grader is a bundle, or an .onnx file from petm export. After SIGTERM, the service answers all accepted requests
    and ends.
    """
    from petm._internal.extras import import_extra

    key = _read_key(api_key_file)
    _check_files(queue, labels_file, grades_file, audit)
    if not math.isfinite(max_body_mib):
        raise click.UsageError(f"--max-body-mib: expected a number above 0, got {max_body_mib}.")
    place.check()
    import_extra("serve", "fastapi", "uvicorn", "python_multipart", "prometheus_client")
    from petm.serving.engine_process import EngineProcess
    from petm.serving.limits import Limits
    from petm.serving.server import is_loopback
    from petm.serving.server import serve as serve_grader

    body, inputs = int(max_body_mib * MEBI), min(max_inputs, max_waiting)
    limits = Limits(wait=max_wait_ms / 1000, body=body, inputs=inputs, queue=max_waiting, **more)
    make = partial(_make_engine, limits, place, device, threads)
    if key is None and not is_loopback(host):
        click.echo("Warning: listening beyond this machine without a key. See --api-key-file.", err=True)
    serve_grader(
        lambda limits: EngineProcess(
            make, lambda facts: _make_reader(limits, place, facts.inputs, facts.shape), patience=2 * limits.timeout
        ),
        limits,
        host=host,
        port=port,
        labels=labels_file,
        queue=queue,
        grades=grades_file,
        audit=audit,
        key=key,
        hosts=hosts,
        started=lambda address: click.echo(f"{address} serves {place.bundle}; Ctrl-C or SIGTERM ends it.", err=True),
    )


def _read_key(path: Path | None) -> str | None:
    """The key that requests must send."""
    key = path.read_text(errors="replace").strip() if path else os.environ.get("PETM_API_KEY")
    if key is not None and (len(key) < 16 or not key.isascii() or not key.isprintable()):
        raise ArgumentError(
            "key: expected at least 16 printable ASCII characters in --api-key-file or PETM_API_KEY, got others. "
            "Make one: openssl rand -hex 32."
        )
    return key


def _check_files(queue: tuple[str, ...], labels: Path | None, grades: Path | None, audit: float | None) -> None:
    """Raises UsageError or PetmError where the files of a review do not go together."""
    from petm.selective.audit import check_audit

    check_audit(audit)
    if queue and labels is None:
        raise click.UsageError("--queue: expected --labels-file beside it, for the decisions, got none.")
    if audit is not None and grades is None:
        raise click.UsageError("--audit: expected --grades-file beside it, for the chances of the draw, got none.")
    if grades is not None and grades.suffix.lower() != ".jsonl":
        raise click.UsageError(f"--grades-file: expected a name that ends in .jsonl, got {grades}.")
    if queue and grades is not None:
        raise click.UsageError("--queue: expected no --grades-file beside it, as the page grades the queue once more.")
    for path in queue:
        options.check_readable("queue", Path(path))


def _make_engine(limits: "Limits", place: options.GraderPlace, device: str, threads: int | None) -> "GraderEngine":
    """The engine, made in the inference process."""
    import torch

    from petm.cli.graders import open_grader
    from petm.cli.process import keep_large_blocks
    from petm.serving.engine import GraderEngine

    keep_large_blocks()
    options.show_own_warnings()
    threads = threads or max(1, (os.cpu_count() or 1) - 1)  # one core is for reading requests and images
    torch.set_num_threads(threads)
    grader = open_grader(place, device, threads)
    shape = getattr(grader, "shape", None)
    return GraderEngine(grader, _make_reader(limits, place, grader.origin.inputs, shape))


def _make_reader(
    limits: "Limits", place: options.GraderPlace, inputs: "InputOrigin", shape: tuple[int, ...] | None
) -> "Reader":
    """The reader of inputs in the form of the fit; each process makes its own."""
    from petm.cli.graders import inputs_at, processor_of
    from petm.serving.reading import reader_for

    read_as = inputs_at(inputs, place)
    return reader_for(read_as, limits, processor_of(read_as, place.trust_remote_code), shape)
