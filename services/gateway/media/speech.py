"""POST /v1/audio/speech: the audio itself as it is made, or events that carry it."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from omnihub.common.v1.media_pb2 import MediaInput, MediaUsage
from omnihub.router.v1 import media_router_service_pb2 as router
from omnihub.router.v1.media_router_service_api import MediaRouterService
from omnihub.workflow.v1 import job_service_pb2 as pb
from omnihub.workflow.v1.consent_service_api import ConsentService
from omnihub.workflow.v1.consent_service_pb2 import UseVoiceRequest

from services.common.log import RequestEvent
from services.common.rpc import Call, RpcError
from services.formats.errors import invalid
from services.gateway.chat import EVENT_STREAM, checked_model, receipt_header, told
from services.gateway.exchange import Exchange, header_value
from services.gateway.media.fields import Fields, read_fields
from services.gateway.media.generations import IDEMPOTENCY_KEY, Generations, in_words_of
from services.gateway.settings import GatewaySettings

NAMES = {"text": "input", "format": "response_format"}
FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")
TEXT_LIMIT = 100_000
UNKNOWN = "application/octet-stream"
# Nobody streams this: a job may still speak, or says precisely why not.
_NO_STREAM = ("NO_CANDIDATE", "NOT_IMPLEMENTED", "PARAMETER_UNSUPPORTED")


class SpeechEndpoint:
    """Speaks a text: as it is made where a provider can, otherwise once it is complete."""

    def __init__(
        self,
        generations: Generations,
        media_router: MediaRouterService,
        consents: ConsentService,
        settings: GatewaySettings,
    ) -> None:
        self._generations = generations
        self._consents = consents
        self._router = media_router
        self._settings = settings

    async def serve(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Serve one authenticated request."""
        fields = await read_fields(exchange, self._settings.body_limit_bytes, self._settings.file_limit_bytes)
        as_events = fields.choice("stream_format", ("audio", "sse")) == "sse"
        request = pb.CreateJobRequest(model=fields.text("model"), input=_read(fields))
        # Strictness and keys are words of jobs.
        as_job = exchange.headers.get(IDEMPOTENCY_KEY) or exchange.headers.get("x-omnihub-strict")
        if not as_job and await self._spoken(exchange, call, event, request, fields, as_events=as_events):
            return
        job = await self._generations.run(exchange, call, event, request, fields, NAMES)
        if not job.outputs:
            raise RpcError("PROVIDER_PROTOCOL", f"the job {job.job_id} made no audio")
        output = job.outputs[0]
        audio = self._generations.read(output.file_id, call)
        async with aclosing(audio):
            if as_events:
                await _write_events(exchange, audio, job.usage)
                return
            kind = (b"content-type", header_value(output.mime or UNKNOWN))
            exchange.bare = True
            await exchange.start(200, [kind, (b"content-length", str(round(output.size)).encode())])
            async for piece in audio:
                await exchange.write(piece, more=True)
        await exchange.write(b"", more=False)

    async def _spoken(
        self,
        exchange: Exchange,
        call: Call,
        event: RequestEvent,
        request: pb.CreateJobRequest,
        fields: Fields,
        *,
        as_events: bool,
    ) -> bool:
        """Speak as it is made. Return False when nobody can: nothing has been begun then."""
        event.fields["model"] = checked_model(request.model)
        asked = router.StreamSpeechRequest(
            model=request.model, speech=request.input.speech, extension_json=fields.left_json()
        )
        if asked.speech.voice:
            try:
                voice = await self._consents.use_voice(UseVoiceRequest(voice=asked.speech.voice), call)
            except RpcError as error:
                raise in_words_of(error, NAMES) from None
            asked.speech.voice, asked.provider = voice.provider_voice, voice.provider
        stream: Any = self._router.stream_speech(asked, call)
        async with aclosing(stream):
            try:
                first = await anext(stream, None)
            except RpcError as error:
                if error.reason in _NO_STREAM:
                    return False
                raise in_words_of(error, NAMES) from None
            if first is None:
                raise RpcError("STREAM_TRUNCATED", "the speech ended before it began")
            if entries := told(first.start.receipt):
                exchange.own_headers.append((b"x-omnihub-receipt", receipt_header(entries)))
            usage = MediaUsage()
            audio = _audio_of(stream, event, usage)
            if as_events:
                await _write_events(exchange, audio, usage)
                return True
            exchange.bare = True
            await exchange.start(200, [(b"content-type", header_value(first.start.mime or UNKNOWN))])
            async for piece in audio:
                await exchange.write(piece, more=True)
        await exchange.write(b"", more=False)
        return True


async def _audio_of(stream: Any, event: RequestEvent, usage: MediaUsage) -> AsyncGenerator[bytes, None]:
    """Yield the audio; what it used is in `usage` afterwards. Raises RpcError when it breaks off."""
    async for message in stream:
        if message.HasField("audio"):
            yield message.audio
        elif message.HasField("end"):
            usage.CopyFrom(message.end.usage)
            event.fields.update(model_used=message.end.model_used, cost=message.end.cost)
            return
    raise RpcError("STREAM_TRUNCATED", "the speech ended without saying how")


def _read(fields: Fields) -> MediaInput:
    """Return what is to be said. Raises FormatError."""
    given = MediaInput()
    speech = given.speech
    speech.text = fields.text("input", required=True)
    if len(speech.text) > TEXT_LIMIT:
        raise invalid("input", f"expected at most {TEXT_LIMIT} characters")
    speech.voice = fields.reference("voice")
    speech.format = fields.choice("response_format", FORMATS)
    speech.instructions = fields.text("instructions")
    speech.language = fields.text("language")
    speech.speed = fields.number("speed", 0.25, 4) or 0
    return given


async def _write_events(exchange: Exchange, audio: AsyncGenerator[bytes, None], usage: MediaUsage) -> None:
    await exchange.start(200, EVENT_STREAM)
    async for piece in audio:
        encoded = base64.b64encode(piece).decode("ascii")
        await exchange.write(_event({"type": "speech.audio.delta", "audio": encoded}), more=True)
    done: dict[str, Any] = {"type": "speech.audio.done"}
    if tokens := token_usage(usage):
        done["usage"] = tokens
    await exchange.write(_event(done), more=False)


def _event(document: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(document)


def token_usage(usage: MediaUsage) -> dict[str, int]:
    """Return tokens as OpenAI counts them; empty when the provider counts something else."""
    tokens = usage.tokens
    if not (tokens.input_total or tokens.output_total):
        return {}
    return {
        "input_tokens": tokens.input_total,
        "output_tokens": tokens.output_total,
        "total_tokens": tokens.input_total + tokens.output_total,
    }
