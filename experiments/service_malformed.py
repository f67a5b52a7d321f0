"""Requests that no client should send: what `service_load.py` mixes with good ones."""

import json
import random
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

FORM = "multipart/form-data; boundary=x"
JSON = "application/json"


def malformed(number: int) -> bytes:
    """Returns a whole HTTP request, one of few kinds in turn, with details drawn from ``number``."""
    chance = random.Random(number)
    return KINDS[number % len(KINDS)](chance)


def http(line: str, body: bytes, kind: str, *further: str) -> bytes:
    """An HTTP request as it is on the wire."""
    heads = "".join(f"{one}\r\n" for one in further)
    head = f"{line} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\n{heads}content-length: {len(body)}\r\n\r\n"
    return head.encode("latin-1", "replace") + body


def part(content: bytes, name: str = "files") -> bytes:
    return (
        f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n\r\n'.encode()
        + content
        + b"\r\n--x--\r\n"
    )


def _png(width: int = 28, height: int = 28, seed: int = 0) -> bytes:
    file = BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _bomb(chance: random.Random) -> bytes:
    """A small file with very many pixels, all black."""
    side = chance.choice([6000, 12_000, 20_000, 60_000])
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _text_bomb(chance: random.Random) -> bytes:
    """A PNG whose compressed comment is large."""
    plain, comment = _png(), b"a\0\0" + zlib.compress(bytes(chance.choice([1 << 20, 1 << 26])), 9)
    return plain[:33] + _chunk(b"zTXt", comment) + plain[33:]


def _noise(chance: random.Random) -> bytes:
    return http("POST /grade", chance.randbytes(chance.randrange(20_000)), FORM)


def _flipped(chance: random.Random) -> bytes:
    """A good form with some bytes changed."""
    body = bytearray(part(_png(seed=chance.randrange(100))))
    for _ in range(chance.randrange(1, 20)):
        body[chance.randrange(len(body))] = chance.randrange(256)
    return http("POST /grade", bytes(body), FORM)


def _cut(chance: random.Random) -> bytes:
    image = _png()
    return http("POST /grade", part(image[: chance.randrange(len(image))]), FORM)


def _nested(chance: random.Random) -> bytes:
    depth = chance.choice([100, 10_000, 500_000])
    return http("POST /grade", b'{"images":' + b"[" * depth + b"]" * depth + b"}", JSON)


def _wrong_types(chance: random.Random) -> bytes:
    values: list[Any] = [
        None,
        1,
        1e300,
        "a",
        {},
        [None],
        [1],
        [[]],
        ["!"],
        {"images": []},
        True,
        ["A" * 100_000],
        [""] * 1000,
    ]
    name = chance.choice(["images", "texts", "a", ""])
    return http(
        f"POST /{chance.choice(['grade', 'dial', 'labels'])}", json.dumps({name: chance.choice(values)}).encode(), JSON
    )


def _not_json(chance: random.Random) -> bytes:
    text = chance.choice(
        [b"", b"{", b"nul", b'{"images": ["\\ud800"]}', b"\xff\xfe", b"1" * 100_000, b'{"a":1}{"a":1}']
    )
    return http(f"POST /{chance.choice(['grade', 'dial', 'labels'])}", text, JSON)


def _huge_headers(chance: random.Random) -> bytes:
    size = chance.choice([10_000, 70_000, 1_000_000])
    if chance.random() < 0.5:
        return http("POST /grade", b"", FORM, f"x-large: {'a' * size}")
    return http("POST /grade", b"", FORM, *(f"x-{number}: a" for number in range(size // 10)))


def _not_http(chance: random.Random) -> bytes:
    lines = [
        b"GET / HTTP/9\r\n\r\n",
        b"\r\n" * 50,
        b"POST /grade HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"\0" * 100 + b"\r\n\r\n",
    ]
    lines += [b"POST /grade HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"]
    lines += [b"POST /grade HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\naa"]
    return chance.choice(lines)


def _too_large(chance: random.Random) -> bytes:
    size = (33 if chance.random() < 0.1 else 1) * 2**20
    return http("POST /grade", part(bytes(size)), FORM)


def _many_parts(chance: random.Random) -> bytes:
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n\r\n'
    return http("POST /grade", part * chance.choice([300, 3000]) + b"--x--\r\n", FORM)


def _strange_kinds(chance: random.Random) -> bytes:
    kinds = [
        "text/plain",
        "",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "application/json; charset=utf-7",
    ]
    kinds += [
        f"multipart/form-data; boundary={'b' * 300}",
        "application/x-www-form-urlencoded",
        "multipart/mixed; boundary=x",
    ]
    return http("POST /grade", part(_png()), chance.choice(kinds))


def _strange_paths(chance: random.Random) -> bytes:
    paths = [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/%00",
        "/grade?opinions=" + "a" * 5000,
        "/grade/../about",
    ]
    paths += ["/\\..\\", "//etc/passwd", "/%ff%fe", "/page.css/..%2f..%2fcore.py"]
    return http(f"{chance.choice(['GET', 'POST', 'DELETE', 'PATCH', 'A' * 100])} {chance.choice(paths)}", b"", FORM)


def _in_base64(make: Callable[[random.Random], bytes], chance: random.Random) -> bytes:
    return http("POST /grade", json.dumps({"images": [b64encode(make(chance)).decode()]}).encode(), JSON)


def _labels(chance: random.Random) -> bytes:
    record = {"label": chance.choice([-1, 10**30, "a", 1.5, None, [], 3]), "sha256": chance.choice(["", "0" * 64, 1])}
    return http("POST /labels", json.dumps(record | {"image": b64encode(_png()).decode()}).encode(), JSON)


def _dial(chance: random.Random) -> bytes:
    alphas = chance.choice([[], [1e9], ["a"], [0] * 1000, None, [None], 1])
    return http("POST /dial", json.dumps({"image": b64encode(_png()).decode(), "alphas": alphas}).encode(), JSON)


KINDS: list[Callable[[random.Random], bytes]] = [
    _noise,
    _flipped,
    _cut,
    lambda chance: http("POST /grade", part(_bomb(chance)), FORM),
    lambda chance: _in_base64(_bomb, chance),
    lambda chance: http("POST /grade", part(_text_bomb(chance)), FORM),
    lambda chance: http("POST /grade", part(_png(), "other"), FORM),
    lambda chance: http("POST /grade", part(_png(chance.choice([1, 3000]), 1)), FORM),
    _nested,
    _wrong_types,
    _not_json,
    _huge_headers,
    _not_http,
    _too_large,
    _many_parts,
    _strange_kinds,
    _strange_paths,
    _labels,
    _dial,
]
