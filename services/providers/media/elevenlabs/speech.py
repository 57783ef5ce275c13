"""Speech: bytes, or lines of JSON that also tell when each character is said."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from omnihub.common.v1.media_pb2 import MediaOutput, MediaUsage, SpeechInput
from omnihub.provider.v1 import media_provider_service_pb2 as pb

from services.formats.errors import invalid
from services.providers.domain.failure import MID_STREAM, Failures, ProviderError
from services.providers.media import parameters
from services.providers.media.audio import CHARACTERS_PER_SECOND, MIMES, pcm_seconds
from services.providers.media.http_media import JSON, Content
from services.providers.media.parameters import Word, Written

LINE_LIMIT = 16 * 2**20
# Rates that it has, and the rest of a format's name at each; the first is the usual one.
_RATES: Mapping[str, Mapping[int, str]] = {
    "mp3": {44100: "_128", 24000: "_48", 22050: "_32"},
    "opus": {48000: "_64"},
    "pcm": dict.fromkeys((24000, 8000, 16000, 22050, 32000, 44100, 48000), ""),
}
_VOICE = re.compile(r"[A-Za-z0-9_-]{1,100}")


class _Line(msgspec.Struct):
    audio_base64: str = ""
    alignment: dict[str, Any] | None = None
    normalized_alignment: dict[str, Any] | None = None


def write(attempt: pb.MediaAttempt) -> Written:
    """Return a request to speak; the voice and the format are in its address."""
    given = attempt.input.speech
    if not given.text:
        raise invalid("input.speech.text", "is empty")
    if not given.voice:
        raise invalid("input.speech.voice", "name a voice of this provider: ask for the list of voices")
    if not _VOICE.fullmatch(given.voice):
        raise invalid("input.speech.voice", "expected a voice's id: ask for the list of voices")
    _format(given)
    words: dict[str, Word] = {
        "text": "text",
        "voice": lambda _: {},
        "format": lambda _: {},
        "sample_rate": lambda _: {},
        "timestamps": lambda _: {},
        "speed": lambda value: {"voice_settings": {"speed": parameters.plain(value)}},
        "language": lambda tag: {"language_code": tag.partition("-")[0].lower()},
    }
    written = parameters.write(attempt, words)
    written.values["model_id"] = attempt.model
    return written


def _format(given: SpeechInput) -> tuple[str, int]:
    """Return a format's name and its sample rate. Raises FormatError."""
    kind = given.format or "mp3"
    rates = _RATES.get(kind)
    if rates is None:
        raise invalid("input.speech.format", f"this provider has {', '.join(_RATES)}")
    rate = given.sample_rate or next(iter(rates))
    if rate not in rates:
        known = ", ".join(map(str, sorted(rates)))
        raise invalid("input.speech.sample_rate", f"of {kind} this provider has {known}")
    return f"{kind}_{rate}{rates[rate]}", rate


def address(given: SpeechInput, stream: bool) -> tuple[str, Mapping[str, str]]:
    """Return where a text is spoken: path and query."""
    path = f"/v1/text-to-speech/{given.voice}" + ("/stream" if stream else "")
    if given.timestamps:
        path += "/with-timestamps"
    return path, {"output_format": _format(given)[0]}


def check_type(content_type: str, given: SpeechInput, failures: Failures) -> None:
    """Raise PROVIDER_PROTOCOL when what comes is something else than what was asked for."""
    if content_type.startswith("text/html") or (content_type == JSON and not given.timestamps):
        message = f"answered with {content_type} instead of sound"
        raise failures.of("PROVIDER_PROTOCOL", message, http_status=200)


def read(answer: Content, given: SpeechInput, failures: Failures) -> pb.MediaProgress:
    """Return the sound. Raises PROVIDER_PROTOCOL, STREAM_TRUNCATED."""
    check_type(answer.content_type, given, failures)
    audio, details = answer.body, ""
    if given.timestamps:
        line = answer.read(_Line, failures)
        audio, details = _audio(line, failures), _alignment(line)
    if not audio:
        raise cut(failures)
    name, rate = _format(given)
    usage = usage_of(given, answer.headers, len(audio))
    facts = MediaOutput(
        mime=MIMES[name.partition("_")[0]],
        sample_rate=rate,
        duration_s=0.0 if usage.estimated else usage.seconds,
        details_json=details,
    )
    output = pb.ProviderOutput(data=audio, facts=facts)
    return pb.MediaProgress(state="succeeded", outputs=[output], usage=usage)


def started(given: SpeechInput, written: Written) -> pb.StreamSpeechResponse:
    """Return the first message of a stream."""
    name, rate = _format(given)
    mime = MIMES[name.partition("_")[0]]
    return pb.StreamSpeechResponse(start=pb.SpeechStart(mime=mime, sample_rate=rate, receipt=written.receipt))


def read_line(line: bytes, failures: Failures) -> Iterator[pb.StreamSpeechResponse]:
    """Yield what one line holds. Raises PROVIDER_PROTOCOL."""
    if not line.strip():
        return
    try:
        found = msgspec.json.decode(line, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise failures.of("PROVIDER_PROTOCOL", "sent a line that is no JSON", MID_STREAM) from None
    audio = _audio(found, failures)
    if audio:
        yield pb.StreamSpeechResponse(audio=audio)
    alignment = _alignment(found)
    if alignment:
        yield pb.StreamSpeechResponse(alignment_json=alignment)


def usage_of(given: SpeechInput, headers: Mapping[str, str], size: int) -> MediaUsage:
    """Return what is paid: our characters; its own unit, the credits, beside them."""
    usage = MediaUsage(characters=len(given.text))
    cost = headers.get("character-cost", "")
    if cost.isdecimal():
        usage.provider_units = float(cost)
        usage.raw_json = msgspec.json.encode({"character-cost": int(cost)}).decode()
    if given.format == "pcm":
        usage.seconds = pcm_seconds(size, _format(given)[1])
    else:
        usage.seconds = len(given.text) / CHARACTERS_PER_SECOND
        usage.estimated = True
    return usage


def cut(failures: Failures) -> ProviderError:
    """Return the error for sound that is not complete."""
    return failures.of("STREAM_TRUNCATED", "the sound ended before it was complete", MID_STREAM)


def _audio(line: _Line, failures: Failures) -> bytes:
    try:
        return base64.b64decode(line.audio_base64, validate=True)
    except (binascii.Error, ValueError):
        raise failures.of("PROVIDER_PROTOCOL", "sent sound that cannot be decoded", MID_STREAM) from None


def _alignment(line: _Line) -> str:
    told = {
        name: value
        for name in ("alignment", "normalized_alignment")
        if (value := getattr(line, name)) is not None
    }
    return msgspec.json.encode(told).decode() if told else ""
