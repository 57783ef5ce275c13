"""Transcripts, paid by the second."""

from __future__ import annotations

from typing import Any

import msgspec
from omnihub.common.v1.media_pb2 import MediaOutput, MediaUsage
from omnihub.provider.v1 import media_provider_service_pb2 as pb

from services.formats.errors import invalid
from services.providers.domain.failure import Failures
from services.providers.media import parameters
from services.providers.media.audio import likely_seconds
from services.providers.media.http_adapter import number, texts
from services.providers.media.http_media import Content, File, file_of
from services.providers.media.parameters import Word, Written

FORMATS = ("json", "text", "verbose_json", "srt")
_SUBTITLES = "srt"
_MIMES = {"srt": "application/x-subrip", "text": "text/plain"}


def write(attempt: pb.MediaAttempt) -> Written:
    """Return the fields of a request; the file is that of `files_of`."""
    given = attempt.input.transcription
    if given.format and given.format not in FORMATS:
        raise invalid("input.transcription.format", f"this provider has {', '.join(FORMATS)}")
    words: dict[str, Word] = {
        "audio": lambda file: {"source_url": file.url} if file.url else {},
        "language": lambda tag: {"language_code": tag.partition("-")[0].lower()},
        "diarise": "diarize",
        "temperature": "temperature",
        "format": _format,
    }
    if list(given.timestamps) == ["word"]:
        words["timestamps"] = lambda _: {"timestamps_granularity": "word"}
    written = parameters.write(attempt, words)
    written.values["model_id"] = attempt.model
    return written


def _format(name: str) -> dict[str, Any]:
    """Return what asks for a format. Given as JSON text: it stands in one field of the form."""
    if name != _SUBTITLES:
        return {}
    return {"additional_formats": msgspec.json.encode([{"format": name}]).decode()}


def files_of(attempt: pb.MediaAttempt) -> list[File]:
    """Return the sound, unless the provider is to fetch it."""
    audio = attempt.input.transcription.audio
    if audio.url:
        return []
    return [file_of(audio, attempt.provider, "file", "input.transcription.audio", "audio.mp3")]


def read(answer: Content, attempt: pb.MediaAttempt, failures: Failures) -> pb.MediaProgress:
    """Return the transcript. Raises PROVIDER_PROTOCOL."""
    given = attempt.input.transcription
    found = answer.read(dict[str, Any], failures)
    text = found.get("text")
    if given.format == _SUBTITLES:
        text = _subtitles(found)
    if not isinstance(text, str):
        raise failures.of("PROVIDER_PROTOCOL", "answered without a transcript", http_status=200)
    facts = MediaOutput(mime=_MIMES.get(given.format, "application/json"))
    if given.format not in _MIMES:
        facts.details_json = answer.body.decode()
    usage = usage_of(found, given.audio.data)
    facts.duration_s = 0.0 if usage.estimated else usage.seconds
    output = pb.ProviderOutput(text=text, facts=facts)
    return pb.MediaProgress(state="succeeded", outputs=[output], usage=usage)


def _subtitles(found: dict[str, Any]) -> str | None:
    rows = found.get("additional_formats")
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and row.get("requested_format") == _SUBTITLES:
            return texts(row.get("content")) or None
    return None


def usage_of(found: dict[str, Any], audio: bytes) -> MediaUsage:
    """Return the seconds: as it says, as the last word ends, or as the file is long."""
    seconds = number(found.get("audio_duration_secs"))
    if seconds:
        return MediaUsage(seconds=seconds)
    words = found.get("words")
    ends = [number(word.get("end")) for word in words or [] if isinstance(word, dict)]
    likely, guessed = likely_seconds(audio)
    return MediaUsage(seconds=max([likely, *ends]), estimated=guessed)
