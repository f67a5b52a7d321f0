"""``petm serve``: a grader behind HTTP."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from petm.cli import options
from petm.errors import ArgumentError

if TYPE_CHECKING:
    from petm.grading.provenance import InputOrigin
    from petm.serving.engine import Engine, Facts
    from petm.serving.limits import Limits
    from petm.serving.reading import Reader

MEBI = 2**20


@click.command(
    epilog="Example: petm serve runs/demo/grader.petm --port 8000",
    short_help="Grade over HTTP, with a page to look at.",
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0 for all of a network.")
@click.option("--port", default=8000, show_default=True, help="There; 0 takes a free one.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with the key that requests must bear as X-API-Key. Or set PETM_API_KEY.",
)
@click.option(
    "--allowed-host", "hosts", multiple=True, help="A name by which the service may be called; may be repeated."
)
@click.option("--labels-file", type=click.Path(path_type=Path), help="JSON Lines file for what people say of inputs.")
@click.option("--max-batch", default=64, show_default=True, help="Inputs in one pass; 1 batches nothing.")
@click.option(
    "--max-wait-ms", default=2.0, show_default=True, help="How long an input waits for others that are on their way."
)
@click.option("--max-body-mib", default=32.0, show_default=True, help="Of a request.")
@click.option("--max-pixels", default=24_000_000, show_default=True, help="Of an image.")
@click.option("--max-characters", default=200_000, show_default=True, help="Of a text.")
@click.option("--max-inputs", default=256, show_default=True, help="In one request.")
@click.option("--queue", default=1024, show_default=True, help="Inputs accepted and not yet answered; beyond, 429.")
@click.option("--timeout", default=30.0, show_default=True, help="Seconds for a body to come, and for its answer.")
@click.option(
    "--threads", type=click.IntRange(1), help="CPU threads of a pass. Absent: one fewer than there are cores."
)
@click.option(
    "--model", "reference", help="module:factory or hf:DIR of the model, if it is no longer where the bundle says."
)
@click.option("--weights", type=click.Path(path_type=Path), help="the model's weights, if they are no longer there.")
@options.processor
@options.trust_remote_code
@options.device
@options.config
def serve(
    bundle: Path,
    host: str,
    port: int,
    api_key_file: Path | None,
    hosts: tuple[str, ...],
    labels_file: Path | None,
    max_batch: int,
    max_wait_ms: float,
    max_body_mib: float,
    max_pixels: int,
    max_characters: int,
    max_inputs: int,
    queue: int,
    timeout: float,
    threads: int | None,
    reference: str | None,
    weights: Path | None,
    processor: Path | None,
    trust_remote_code: bool,
    device: str,
) -> None:
    """Grade over HTTP: POST /grade takes images or texts, one or many; / is a page for people.

    The grader is a bundle, or the .onnx file that petm export makes of one. SIGTERM ends it when all that was accepted
    is answered.
    """
    from petm._internal.extras import import_extra

    key = _read_key(api_key_file)
    import_extra("serve", "fastapi", "uvicorn", "python_multipart", "prometheus_client")
    from petm.serving.engine_process import EngineProcess
    from petm.serving.limits import Limits
    from petm.serving.server import is_loopback
    from petm.serving.server import serve as serve_grader

    limits = Limits(
        batch=max_batch,
        wait=max_wait_ms / 1000,
        body=int(max_body_mib * MEBI),
        pixels=max_pixels,
        characters=max_characters,
        inputs=min(max_inputs, queue),
        queue=queue,
        timeout=timeout,
    )

    how: Any = {"reference": reference, "processor": processor, "trust_remote_code": trust_remote_code}
    make = partial(_make_engine, threads=threads, bundle=bundle, weights=weights, device=device, **how)

    def make_reader(facts: "Facts") -> "Reader":
        return _make_reader(limits, facts.inputs, facts.shape, **how)

    if key is None and not is_loopback(host):
        click.echo("Warning: listening beyond this machine without a key. See --api-key-file.", err=True)
    serve_grader(
        lambda limits: EngineProcess(partial(make, limits), make_reader, patience=2 * limits.timeout),
        limits,
        host=host,
        port=port,
        labels=labels_file,
        key=key,
        hosts=hosts,
        started=lambda address: click.echo(f"{address} serves {bundle}; Ctrl-C or SIGTERM ends it.", err=True),
    )


def _read_key(path: Path | None) -> str | None:
    """The key that requests must bear."""
    import os

    key = path.read_text(errors="replace").strip() if path else os.environ.get("PETM_API_KEY")
    if key is not None and (len(key) < 16 or not key.isascii() or not key.isprintable()):
        raise ArgumentError(
            "key: expected at least 16 printable ASCII characters in --api-key-file or PETM_API_KEY, got others. "
            "Make one: openssl rand -hex 32."
        )
    return key


def _make_engine(
    limits: "Limits",
    *,
    threads: int | None,
    bundle: Path,
    reference: str | None,
    weights: Path | None,
    processor: Path | None,
    trust_remote_code: bool,
    device: str,
) -> "Engine":
    """The engine, in the process where it runs."""
    import os

    import torch

    from petm.cli.graders import open_grader
    from petm.cli.process import keep_large_blocks
    from petm.serving.engine import GraderEngine

    keep_large_blocks()
    options.show_own_warnings()
    # One core is left for reading requests and images, where there are several.
    threads = threads or max(1, (os.cpu_count() or 1) - 1)
    torch.set_num_threads(threads)
    grader = open_grader(bundle, device, reference, weights, trust_remote_code=trust_remote_code, threads=threads)
    shape = getattr(grader, "shape", None)
    how: Any = {"reference": reference, "processor": processor, "trust_remote_code": trust_remote_code}
    return GraderEngine(grader, _make_reader(limits, grader.origin.inputs, shape, **how))


def _make_reader(
    limits: "Limits",
    inputs: "InputOrigin",
    shape: tuple[int, ...] | None,
    *,
    reference: str | None,
    processor: Path | None,
    trust_remote_code: bool,
) -> "Reader":
    """What reads inputs as the grader was fitted with them; each process makes its own."""
    from petm.cli.graders import inputs_at, processor_of
    from petm.serving.reading import reader_for

    read_as = inputs_at(inputs, reference, processor)
    return reader_for(read_as, limits, processor_of(read_as, trust_remote_code), shape)
