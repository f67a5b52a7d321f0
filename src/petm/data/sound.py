"""One sound from its encoded bytes: mono, at the rate that a model takes."""

import importlib
import wave
from io import BytesIO
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

SOUND_SUFFIXES = frozenset({".wav", ".flac"})
"""Suffixes of the formats that are read: WAV without compression, and FLAC where the package soundfile is installed."""


def as_heard(encoded: bytes, rate: int) -> NDArray[np.float32]:
    """Returns float32 ``(L,)`` in [-1, 1]: the mean of a sound's channels, at ``rate`` samples a second.

    Raises:
        Exception: Of any kind where the sound is damaged, empty or of an unknown format.
    """
    from scipy.signal import resample_poly

    values, found = _flac(encoded) if encoded.startswith(b"fLaC") else _wave(encoded)
    if not len(values):
        raise ValueError("no samples")
    mono = values.mean(1)
    if found != rate:
        common = gcd(found, rate)
        mono = resample_poly(mono, rate // common, found // common)
    return np.asarray(mono, np.float32)


def _wave(encoded: bytes) -> tuple[NDArray[np.float64], int]:
    """Samples ``(L, channels)`` in [-1, 1) and their number a second."""
    with wave.open(BytesIO(encoded)) as file:
        channels, width, rate, length = file.getparams()[:4]
        content = file.readframes(length)
    if len(content) != length * channels * width:
        raise EOFError(f"{len(content)} bytes of {length * channels * width}")
    if width == 1:  # the only width without signs
        return (np.frombuffer(content, np.uint8).reshape(-1, channels) - 128.0) / 128, rate
    wide = np.zeros((length * channels, 4), np.uint8)
    wide[:, 4 - width :] = np.frombuffer(content, np.uint8).reshape(-1, width)
    return wide.view("<i4").reshape(-1, channels) / 2.0**31, rate


def _flac(encoded: bytes) -> tuple[NDArray[np.float64], int]:
    try:
        soundfile: Any = importlib.import_module("soundfile")
    except ImportError as error:
        raise ValueError("FLAC, which needs the package soundfile: pip install soundfile") from error
    values, rate = soundfile.read(BytesIO(encoded), dtype="float64", always_2d=True)
    return values, int(rate)
