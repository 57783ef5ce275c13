"""Subtitles from segments with times: SRT and WebVTT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def write_srt(segments: Sequence[Mapping[str, Any]]) -> str:
    """Return SRT. A segment has `start` and `end` in seconds, and `text`."""
    cues = [
        f"{number}\n{_time(each['start'], ',')} --> {_time(each['end'], ',')}\n{each['text'].strip()}\n"
        for number, each in enumerate(segments, 1)
    ]
    return "\n".join(cues)


def write_vtt(segments: Sequence[Mapping[str, Any]]) -> str:
    """Return WebVTT. A segment has `start` and `end` in seconds, and `text`."""
    cues = [
        f"\n{_time(each['start'], '.')} --> {_time(each['end'], '.')}\n{each['text'].strip()}\n"
        for each in segments
    ]
    return "".join(["WEBVTT\n", *cues])


def _time(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
