"""The adapter: which part of the API makes what, and what its errors mean."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec
from omnihub.provider.v1 import media_provider_service_pb2 as pb

from services.common import clock
from services.providers.domain.classification import ErrorFacts, ErrorTable
from services.providers.domain.failure import MID_STREAM, Failures, ProviderError, UnsupportedError
from services.providers.http import Exchange, Upstream
from services.providers.media.adapter import Abilities
from services.providers.media.elevenlabs import speech, transcription, voices, webhook
from services.providers.media.http_adapter import texts
from services.providers.media.http_media import ContentAdapter, document, form, pieces
from services.providers.media.parameters import Written
from services.providers.settings import ProviderSettings

_KINDS = frozenset({"speech", "transcription", "voice_clone"})
_ERRORS = ErrorTable(
    codes={
        # Also with status 401: the key is good, its credits are gone.
        "quota_exceeded": "PROVIDER_BILLING",
        "payment_required": "PROVIDER_BILLING",
        "invalid_api_key": "PROVIDER_CREDENTIAL_REFUSED",
        "needs_authorization": "PROVIDER_CREDENTIAL_REFUSED",
        "missing_permissions": "PROVIDER_CREDENTIAL_REFUSED",
        # Two kinds of 429: wait for one of our own to end, or come back later.
        "too_many_concurrent_requests": "PROVIDER_CONCURRENCY",
        "concurrent_limit_exceeded": "PROVIDER_CONCURRENCY",
        "system_busy": "PROVIDER_OVERLOADED",
        "model_not_found": "MODEL_NOT_FOUND",
        "invalid_model_id": "MODEL_NOT_FOUND",
        "max_character_limit_exceeded": "CONTEXT_LENGTH_EXCEEDED",
        "voice_not_found": "PROVIDER_REJECTED",
        "invalid_uid": "PROVIDER_REJECTED",
        "content_against_policy": "CONTENT_FILTERED",
        "detected_unusual_activity": "PROVIDER_CREDENTIAL_REFUSED",
    },
)


class ElevenLabsAdapter(ContentAdapter):
    """Everything is made within the call. Nothing can be asked for twice, or found again."""

    adapter = "elevenlabs"
    errors = _ERRORS
    abilities = Abilities(
        kinds=_KINDS,
        immediate=_KINDS,
        streams_speech=True,
        models={"speech": ("eleven_*",), "transcription": ("scribe_*",), "voice_clone": ("instant",)},
    )

    def __init__(self, name: str, settings: ProviderSettings, upstream: Upstream) -> None:
        super().__init__(name, settings, upstream)
        self._webhook_secrets = [secret.get_secret_value() for secret in settings.webhook_secrets]

    def credential(self, key: str) -> dict[str, str]:
        """Return the key's header."""
        return {"xi-api-key": key}

    def read_refusal(self, headers: Mapping[str, str], body: bytes) -> ErrorFacts:
        """Return what `detail` says: an object, or a list of what is wrong with the request."""
        try:
            detail = msgspec.json.decode(body, type=dict[str, Any]).get("detail")
        except (msgspec.DecodeError, UnicodeDecodeError):
            return super().read_refusal(headers, body)
        if isinstance(detail, list) and detail and isinstance(detail[0], dict):
            place = detail[0].get("loc")
            field = ".".join(map(str, place)) if isinstance(place, list) else ""
            return ErrorFacts(
                message=f"{field}: {texts(detail[0].get('msg'))}", param=field, code="invalid", found=True
            )
        if not isinstance(detail, dict):
            return super().read_refusal(headers, body)
        code = texts(detail.get("status")) or texts(detail.get("code"))
        return ErrorFacts(message=texts(detail.get("message")), code=code, found=bool(code))

    async def submit(self, attempt: pb.MediaAttempt) -> pb.SubmitMediaResponse:
        """Speak, write down, or clone a voice."""
        match attempt.input.WhichOneof("kind"):
            case "speech":
                return await self._speech(attempt)
            case "transcription":
                return await self._transcription(attempt)
            case "voice_clone":
                return await self._voice_clone(attempt)
            case kind:
                raise UnsupportedError(self.name, f"{self.name} does not make {kind}", "input")

    async def _speech(self, attempt: pb.MediaAttempt) -> pb.SubmitMediaResponse:
        written = speech.write(attempt)
        url = self.url(*speech.address(attempt.input.speech, stream=False))
        answer = await self.paid(attempt, url, document(written.values))
        progress = speech.read(answer, attempt.input.speech, self.failures(attempt.model))
        return _response(progress, written, answer.request_id)

    async def _transcription(self, attempt: pb.MediaAttempt) -> pb.SubmitMediaResponse:
        written = transcription.write(attempt)
        sent = await form(written.values, transcription.files_of(attempt))
        answer = await self.paid(attempt, self.url("/v1/speech-to-text"), sent)
        progress = transcription.read(answer, attempt, self.failures(attempt.model))
        return _response(progress, written, answer.request_id)

    async def _voice_clone(self, attempt: pb.MediaAttempt) -> pb.SubmitMediaResponse:
        written = voices.write_clone(attempt)
        sent = await form(written.values, voices.samples_of(attempt))
        answer = await self.paid(attempt, self.url("/v1/voices/add"), sent)
        progress = voices.read_clone(answer, self.failures(attempt.model))
        return _response(progress, written, answer.request_id)

    async def stream_speech(self, attempt: pb.MediaAttempt) -> AsyncGenerator[pb.StreamSpeechResponse, None]:
        """Yield the sound as it comes, with the times of characters when they are asked for."""
        written = speech.write(attempt)
        given, failures = attempt.input.speech, self.failures(attempt.model)
        url, limits = self.url(*speech.address(given, stream=True)), self.limits(attempt)
        size = 0
        async with self.opened("POST", url, failures, limits, document(written.values)) as exchange:
            speech.check_type(exchange.content_type, given, failures)
            yield speech.started(given, written)
            read = _timed(exchange, failures) if given.timestamps else _sound(exchange)
            async for message in read:
                size += len(message.audio)
                yield message
            if not size:
                raise speech.cut(failures)
            end = pb.SpeechEnd(usage=speech.usage_of(given, exchange.headers, size))
        yield pb.StreamSpeechResponse(end=end)

    async def voices(self) -> list[pb.Voice]:
        """Return the account's voices, page by page."""
        failures = self.failures("")
        found: list[pb.Voice] = []
        query = {"page_size": str(voices.PAGE_SIZE)}
        for _ in range(voices.MOST_PAGES):
            url = self.url("/v2/voices", query)
            answer = await self.content("GET", url, failures, self.question())
            page = answer.read(voices.Page, failures)
            found += map(voices.voice_of, page.voices)
            if not page.has_more or not page.next_page_token:
                break
            query["next_page_token"] = page.next_page_token
        return found

    async def delete_voice(self, voice: str) -> None:
        """Forget a voice. Raises NOT_FOUND for an id that can be none."""
        url = self.url(f"/v1/voices/{self.check_id(voice, '')}")
        try:
            await self.content("DELETE", url, self.failures(""), self.question())
        except ProviderError as error:
            if error.metadata.get("http_status") != "404" and error.metadata.get("provider_code") not in (
                "voice_not_found",
                "voice_does_not_exist",
            ):
                raise

    async def read_webhook(self, headers: Mapping[str, str], body: bytes) -> pb.ReadWebhookResponse:
        """Return what a notification says. Raises INVALID_CREDENTIAL unless it is genuine and fresh."""
        signed = headers.get(webhook.HEADER, "")
        webhook.verify(signed, body, self._webhook_secrets, clock.now().timestamp())
        return webhook.read(body)


def _response(progress: pb.MediaProgress, written: Written, request_id: str) -> pb.SubmitMediaResponse:
    return pb.SubmitMediaResponse(progress=progress, receipt=written.receipt, provider_request_id=request_id)


async def _sound(exchange: Exchange) -> AsyncGenerator[pb.StreamSpeechResponse, None]:
    async for audio in pieces(exchange):
        yield pb.StreamSpeechResponse(audio=audio)


async def _timed(exchange: Exchange, failures: Failures) -> AsyncGenerator[pb.StreamSpeechResponse, None]:
    """Read lines of JSON. Raises STREAM_TRUNCATED when the last one is cut, PROVIDER_PROTOCOL for others."""
    rest = b""
    async for data in pieces(exchange):
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > speech.LINE_LIMIT:
            message = f"a line of its answer exceeds {speech.LINE_LIMIT} bytes"
            raise failures.of("PROVIDER_PROTOCOL", message, MID_STREAM)
        for line in lines:
            for event in speech.read_line(line, failures):
                yield event
    try:
        last = list(speech.read_line(rest, failures))
    except ProviderError:
        raise speech.cut(failures) from None
    for event in last:
        yield event
