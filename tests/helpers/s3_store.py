"""An S3 server on this machine, and what is put there."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from pyarrow.fs import FileSystem

from petm._internal.storage import RemotePath, locate

KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true"}


def serve_bucket() -> Iterator[str]:
    """Settings of an S3 server with an empty bucket ``shelf``, as they stand behind an address, until it is ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    settings = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        try:
            for _ in range(300):
                with socket.socket() as tried:
                    if tried.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            FileSystem.from_uri(f"s3://shelf/?{settings}")[0].create_dir("shelf")
            yield settings
        finally:
            server.terminate()
            server.wait()


def put(address: str, content: bytes) -> None:
    """Writes a file to a store."""
    place = locate(address)
    assert isinstance(place, RemotePath)
    with place.filesystem.open_output_stream(place.key) as file:
        file.write(content)
