"""What sound is: types, and how long it lasts."""

from __future__ import annotations

import struct
from collections.abc import Mapping

MIMES: Mapping[str, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
# About what is said in a second, where the length of speech is not known.
CHARACTERS_PER_SECOND = 15
# Of speech as it is usually compressed: 64 kbit in a second.
_BYTES_PER_SECOND = 8000
_SAMPLE_BYTES = 2
# A stream's header that does not know how much follows.
_OPEN = frozenset({0, 0xFFFFFFFF, 0x7FFFFFFF})


class CutError(Exception):
    """Less sound than its header promises."""


def wave_facts(audio: bytes) -> tuple[int, float] | None:
    """Return sample rate and seconds of WAV; None for anything else. Raises CutError."""
    if audio[:4] != b"RIFF" or audio[8:12] != b"WAVE":
        return None
    position, rate, per_second = 12, 0, 0
    while position + 8 <= len(audio):
        name, size = struct.unpack_from("<4sI", audio, position)
        position += 8
        if name == b"fmt " and position + 12 <= len(audio):
            rate, per_second = struct.unpack_from("<II", audio, position + 4)
        if name == b"data":
            left = len(audio) - position
            # Some programs put the largest even number there, less the header.
            if size > left and size not in _OPEN and size < 0x7FFFF000:
                raise CutError
            return rate, min(size if size not in _OPEN else left, left) / (per_second or 1)
        position += size + size % 2
    raise CutError


def pcm_seconds(size: int, rate: int) -> float:
    """Return the seconds of `size` bytes of samples of 16 bits in one channel."""
    return size / (rate * _SAMPLE_BYTES)


def likely_seconds(audio: bytes) -> tuple[float, bool]:
    """Return how long sound lasts, and whether that is a guess from its size."""
    try:
        facts = wave_facts(audio)
    except CutError:
        facts = None
    if facts is not None:
        return facts[1], False
    return len(audio) / _BYTES_PER_SECOND, True
