"""Transcripts. They are paid by tokens or by seconds, whichever the model says."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import Usage
from omnihub.common.v1.media_pb2 import MediaOutput, MediaUsage
from omnihub.provider.v1 import media_provider_service_pb2 as pb

from services.formats.errors import invalid
from services.providers.domain.failure import Failures
from services.providers.media import parameters
from services.providers.media.audio import likely_seconds
from services.providers.media.http_adapter import number, texts, whole
from services.providers.media.http_media import Content, File, file_of
from services.providers.media.parameters import Word, Written

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
_DIARISED = "diarized_json"
# What they are when they are no JSON.
_MIMES = {"srt": "application/x-subrip", "vtt": "text/vtt", "text": "text/plain"}
_GRANULARITIES = ("word", "segment")
_TIME = re.compile(r"-->\s*(?:(\d+):)?(\d\d):(\d\d)[.,](\d{3})")


def write(attempt: pb.MediaAttempt) -> Written:
    """Return the fields of a request; the file is that of `file`."""
    given = attempt.input.transcription
    if given.format and given.format not in FORMATS:
        raise invalid("input.transcription.format", f"expected one of {', '.join(FORMATS)}")
    if any(each not in _GRANULARITIES for each in given.timestamps):
        raise invalid("input.transcription.timestamps", "expected word, segment or both")
    if given.timestamps and given.format not in ("", "verbose_json"):
        raise invalid("input.transcription.timestamps", "need the format verbose_json")
    asked = _asked_format(attempt)
    words: dict[str, Word] = {
        "audio": lambda _: {},
        "language": lambda tag: {"language": tag.partition("-")[0].lower()},
        "prompt": "prompt",
        "temperature": "temperature",
        "timestamps": "timestamp_granularities",
        "format": lambda _: {"response_format": asked},
    }
    if given.diarise and asked == _DIARISED:
        words["diarise"] = lambda _: {"chunking_strategy": "auto"}
    written = parameters.write(attempt, words)
    written.values |= {"model": attempt.model, "response_format": asked}
    return written


def _asked_format(attempt: pb.MediaAttempt) -> str:
    given = attempt.input.transcription
    if given.diarise and given.format in ("", "json"):
        return _DIARISED
    if given.timestamps:
        return "verbose_json"
    # A plain text does not say what it cost; the same in JSON does.
    return "json" if given.format in ("", "text") else given.format


def file(attempt: pb.MediaAttempt) -> File:
    """Return the sound."""
    given = attempt.input.transcription.audio
    return file_of(given, attempt.provider, "file", "input.transcription.audio", "audio.mp3")


def read(answer: Content, attempt: pb.MediaAttempt, failures: Failures) -> pb.MediaProgress:
    """Return the transcript. Raises PROVIDER_PROTOCOL."""
    given = attempt.input.transcription
    asked = _asked_format(attempt)
    facts = MediaOutput(mime=_MIMES.get(given.format, "application/json"))
    if asked in ("srt", "vtt"):
        text = _text(answer, failures)
        usage = MediaUsage(seconds=_last_time(text), estimated=True)
    else:
        found = answer.read(dict[str, Any], failures)
        if not isinstance(found.get("text"), str):
            raise failures.of("PROVIDER_PROTOCOL", "answered without a text", http_status=200)
        text = found["text"]
        facts.duration_s = number(found.get("duration"))
        if given.format != "text":
            facts.details_json = answer.body.decode()
        usage = _usage(found)
    if not usage.HasField("tokens") and not usage.seconds:
        usage.seconds, usage.estimated = likely_seconds(given.audio.data)[0], True
    return pb.MediaProgress(
        state="succeeded", outputs=[pb.ProviderOutput(text=text, facts=facts)], usage=usage
    )


def _usage(found: dict[str, Any]) -> MediaUsage:
    """Return tokens or seconds. Older models only tell how long the sound is."""
    usage = MediaUsage(seconds=number(found.get("duration")))
    told = found.get("usage")
    if not isinstance(told, dict):
        return usage
    usage.raw_json = msgspec.json.encode(told).decode()
    if texts(told.get("type")) == "duration" or "seconds" in told:
        usage.seconds = number(told.get("seconds"))
    elif "input_tokens" in told:
        details = told.get("input_token_details")
        audio = whole(details.get("audio_tokens")) if isinstance(details, dict) else 0
        usage.tokens.CopyFrom(
            Usage(
                input_total=whole(told["input_tokens"]),
                input_audio=audio,
                output_total=whole(told.get("output_tokens")),
            )
        )
    return usage


def _text(answer: Content, failures: Failures) -> str:
    try:
        text = answer.body.decode()
    except UnicodeDecodeError:
        text = ""
    if not text or answer.content_type == "text/html":
        message = f"answered with {answer.content_type or 'nothing'} instead of a transcript"
        raise failures.of("PROVIDER_PROTOCOL", message, http_status=200)
    return text


def _last_time(text: str) -> float:
    """Return when the last line of subtitles ends, in seconds; 0 without any."""
    last = 0.0
    for hours, minutes, seconds, milliseconds in _TIME.findall(text):
        at = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + int(milliseconds) / 1000
        last = max(last, at)
    return last
