"""Speech: bytes, without a word about what they cost."""

from __future__ import annotations

from omnihub.common.v1.chat_pb2 import ParameterReceipt
from omnihub.common.v1.media_pb2 import MediaOutput, MediaUsage, SpeechInput
from omnihub.provider.v1 import media_provider_service_pb2 as pb

from services.formats.errors import invalid
from services.providers.domain.failure import MID_STREAM, Failures
from services.providers.media import parameters
from services.providers.media.audio import (
    CHARACTERS_PER_SECOND,
    MIMES,
    CutError,
    pcm_seconds,
    wave_facts,
)
from services.providers.media.http_media import Content
from services.providers.media.parameters import Word, Written

DEFAULT_VOICE = "alloy"
DEFAULT_FORMAT = "mp3"
PCM_RATE = 24_000
_NO_SOUND = ("text/", "application/json")


def write(attempt: pb.MediaAttempt) -> Written:
    """Return a request to speak."""
    given = attempt.input.speech
    if not given.text:
        raise invalid("input.speech.text", "is empty")
    if given.format and given.format not in MIMES:
        raise invalid("input.speech.format", f"expected one of {', '.join(MIMES)}")
    if given.speed and not 0.25 <= given.speed <= 4:
        raise invalid("input.speech.speed", "expected a number from 0.25 to 4")
    words: dict[str, Word] = {
        "text": "input",
        "voice": "voice",
        "format": "response_format",
        "speed": "speed",
        "instructions": "instructions",
    }
    if given.sample_rate == PCM_RATE:
        # What it always is.
        words["sample_rate"] = lambda _: {}
    written = parameters.write(attempt, words)
    written.values["model"] = attempt.model
    written.values.setdefault("response_format", DEFAULT_FORMAT)
    if "voice" not in written.values:
        written.values["voice"] = DEFAULT_VOICE
        written.receipt.append(ParameterReceipt(name="voice", outcome="added", detail=DEFAULT_VOICE))
    return written


def check_type(content_type: str, failures: Failures) -> None:
    """Raise PROVIDER_PROTOCOL when what comes is no sound."""
    if content_type.startswith(_NO_SOUND):
        message = f"answered with {content_type} instead of sound"
        raise failures.of("PROVIDER_PROTOCOL", message, http_status=200)


def read(answer: Content, given: SpeechInput, failures: Failures) -> pb.MediaProgress:
    """Return the sound. Raises PROVIDER_PROTOCOL for something else, STREAM_TRUNCATED when it is cut."""
    check_type(answer.content_type, failures)
    kind = given.format or DEFAULT_FORMAT
    if not answer.body:
        raise _cut(failures)
    rate, seconds = 0, 0.0
    if kind == "pcm":
        rate, seconds = PCM_RATE, pcm_seconds(len(answer.body), PCM_RATE)
    elif kind == "wav":
        try:
            wave = wave_facts(answer.body)
        except CutError:
            raise _cut(failures) from None
        if wave is None:
            raise failures.of("PROVIDER_PROTOCOL", "answered with something else than WAV", http_status=200)
        rate, seconds = wave
    facts = MediaOutput(mime=MIMES[kind], sample_rate=rate, duration_s=seconds)
    return pb.MediaProgress(
        state="succeeded",
        outputs=[pb.ProviderOutput(data=answer.body, facts=facts)],
        usage=usage_of(given, seconds),
    )


def usage_of(given: SpeechInput, seconds: float = 0.0) -> MediaUsage:
    """Return what is paid: the characters, which are exact, and the seconds, which may be a guess."""
    characters = len(given.text)
    usage = MediaUsage(characters=characters, seconds=seconds)
    if not seconds:
        usage.seconds = characters / (CHARACTERS_PER_SECOND * (given.speed or 1))
        usage.estimated = True
    return usage


def started(given: SpeechInput, written: Written) -> pb.StreamSpeechResponse:
    """Return the first message of a stream."""
    kind = given.format or DEFAULT_FORMAT
    rate = PCM_RATE if kind in ("pcm", "wav") else 0
    return pb.StreamSpeechResponse(
        start=pb.SpeechStart(mime=MIMES[kind], sample_rate=rate, receipt=written.receipt)
    )


def ended(given: SpeechInput, size: int, failures: Failures) -> pb.StreamSpeechResponse:
    """Return the last message of a stream of `size` bytes. Raises STREAM_TRUNCATED for silence."""
    if not size:
        raise _cut(failures)
    seconds = pcm_seconds(size, PCM_RATE) if given.format == "pcm" else 0.0
    return pb.StreamSpeechResponse(end=pb.SpeechEnd(usage=usage_of(given, seconds)))


def _cut(failures: Failures) -> Exception:
    message = "the sound ended before it was complete"
    return failures.of("STREAM_TRUNCATED", message, MID_STREAM)
