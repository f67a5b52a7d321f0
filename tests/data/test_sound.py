"""Sounds: the values of a WAV file, folders of them, and what is refused."""

import struct
import sys
import types
import wave
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from petm.data.images import ImageProcessor
from petm.data.opening import open_data
from petm.data.reader import Reader
from petm.data.sound import as_heard
from petm.data.sources import open_sources
from petm.errors import DataError

RATE = 8000
TAKEN = ImageProcessor((4,), (-1, 1), "of four", lambda sound: sound[:4], lambda encoded: as_heard(encoded, RATE))


def wav(content: bytes, *, width: int = 2, channels: int = 1, rate: int = RATE) -> bytes:
    stream = BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(content)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("width", "content"),
    [
        (1, bytes([0, 128, 192])),
        (2, struct.pack("<3h", -(1 << 15), 0, 1 << 14)),
        (3, b"\x00\x00\x80" + b"\x00\x00\x00" + b"\x00\x00\x40"),
        (4, struct.pack("<3i", -(1 << 31), 0, 1 << 30)),
    ],
)
def test_samples_of_every_width(width: int, content: bytes) -> None:
    heard = as_heard(wav(content, width=width), RATE)
    assert heard.dtype == np.float32
    assert heard.tolist() == [-1, 0, 0.5]


def test_channels_are_averaged() -> None:
    both = struct.pack("<4h", 1 << 14, 0, -(1 << 14), 1 << 14)
    assert as_heard(wav(both, channels=2), RATE).tolist() == [0.25, 0]


@pytest.mark.parametrize("rate", [16000, 44100, 6000])
def test_a_tone_keeps_its_pitch_at_another_rate(rate: int) -> None:
    def tone(at: int) -> NDArray[np.float64]:
        return 0.5 * np.sin(2 * np.pi * 440 * np.arange(at // 2) / at)

    heard = as_heard(wav((tone(rate) * (1 << 15)).astype("<i2").tobytes(), rate=rate), RATE)
    assert len(heard) == RATE // 2
    middle = slice(200, -200)  # ends ring, as beyond them there is silence
    np.testing.assert_allclose(heard[middle], tone(RATE)[middle], atol=0.005)


def test_flac_is_read_by_soundfile_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ValueError, match="needs the package soundfile"):
        as_heard(b"fLaC....", RATE)
    fake: Any = types.ModuleType("soundfile")
    fake.read = lambda file, dtype, always_2d: (np.array([[0.5, 0.0], [0.0, -0.5]]), RATE)
    monkeypatch.setitem(sys.modules, "soundfile", fake)
    assert as_heard(b"fLaC....", RATE).tolist() == [0.25, -0.25]


def folder_in(path: Path) -> Path:
    for number, name in enumerate(("no", "yes", "yes")):
        (path / name).mkdir(parents=True, exist_ok=True)
        content = struct.pack("<5h", *[(number + 1) << 12] * 5)
        (path / name / f"{number}.wav").write_bytes(wav(content))
    return path


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    data = open_data(folder_in(tmp_path), processor=TAKEN)
    assert data.classes == ("no", "yes")
    assert data.labels.tolist() == [0, 1, 1]
    assert data.inputs([2, 0]).tolist() == [[0.375] * 4, [0.125] * 4]
    assert data.name(1) == str(tmp_path / "yes" / "1.wav")


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "an empty or unknown|EOFError|got: "),
        (b"RIFF....AIFF", "not a WAVE file"),
        (wav(b""), "no samples"),
        (wav(bytes(10))[:-3], "7 bytes of 10|EOFError"),
    ],
)
def test_a_sound_that_cannot_be_read_is_a_line_with_its_cause(tmp_path: Path, content: bytes, got: str) -> None:
    bad = folder_in(tmp_path) / "no" / "bad.wav"
    bad.write_bytes(content)
    data = open_data(tmp_path, processor=TAKEN)
    with pytest.raises(DataError, match=rf"bad\.wav: expected a readable sound, got: .*({got})"):
        data.inputs(range(4))
    kept = open_data(tmp_path, processor=TAKEN, skip_bad=True)
    assert len(kept) == 3
    assert [*kept.skipped] == [str(bad)]
    (source,) = open_sources([tmp_path])
    read = Reader(processor=TAKEN).read([row for rows in source.rows(0, 9, 9) for row in rows])
    assert [reason is None for reason in read.reasons] == [True, False, True, True]
