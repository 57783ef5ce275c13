"""POST /v1/audio/transcriptions: a recording in, its text in one of five forms out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from omnihub.common.v1.media_pb2 import MediaInput, MediaOutput, MediaUsage
from omnihub.workflow.v1 import job_service_pb2 as pb
from omnihub.workflow.v1.job_pb2 import Job

from services.common.log import RequestEvent
from services.common.rpc import Call, RpcError
from services.formats.errors import invalid
from services.gateway.chat import EVENT_STREAM
from services.gateway.exchange import Exchange
from services.gateway.media.fields import Fields, read_form
from services.gateway.media.generations import Generations
from services.gateway.media.speech import token_usage
from services.gateway.media.subtitles import write_srt, write_vtt
from services.gateway.settings import GatewaySettings

NAMES = {
    "audio": "file",
    "format": "response_format",
    "timestamps": "timestamp_granularities",
    "diarise": "response_format",
}
FORMATS = ("json", "text", "srt", "verbose_json", "vtt", "diarized_json")
_DIARISED = "diarized_json"
_SUBTITLES: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], str]] = {"srt": write_srt, "vtt": write_vtt}
_PLAIN: Mapping[str, bytes] = {
    "text": b"text/plain; charset=utf-8",
    "srt": b"application/x-subrip; charset=utf-8",
    "vtt": b"text/vtt; charset=utf-8",
}
_ARROW = " --> "


class TranscriptionsEndpoint:
    """Writes down what is said while the caller waits."""

    def __init__(self, generations: Generations, settings: GatewaySettings) -> None:
        self._generations = generations
        self._settings = settings

    async def serve(self, exchange: Exchange, call: Call, event: RequestEvent) -> None:
        """Serve one authenticated request."""
        fields = await read_form(exchange, self._settings.body_limit_bytes, self._settings.file_limit_bytes)
        wanted = fields.choice("response_format", FORMATS, "json")
        streamed = fields.flag("stream")
        if streamed and wanted in (*_PLAIN, "verbose_json"):
            raise invalid("response_format", "a stream carries json")
        request = pb.CreateJobRequest(model=fields.text("model"), input=_read(fields, wanted))
        job = await self._generations.run(exchange, call, event, request, fields, NAMES)
        if not job.outputs:
            raise RpcError("PROVIDER_PROTOCOL", f"the job {job.job_id} made no text")
        if streamed:
            await _stream(exchange, job)
        elif wanted in _PLAIN:
            text = _plain(job.outputs[0], wanted).encode()
            length = (b"content-length", str(len(text)).encode())
            await exchange.start(200, [(b"content-type", _PLAIN[wanted]), length])
            await exchange.write(text, more=False)
        else:
            await exchange.respond(200, msgspec.json.encode(_document(job, wanted)))


def _read(fields: Fields, wanted: str) -> MediaInput:
    """Return what is to be written down. Raises FormatError."""
    given = MediaInput()
    asked = given.transcription
    recording = fields.file("file")
    if recording is None:
        raise invalid("file", "is missing; send the recording as a part with a file name")
    asked.audio.CopyFrom(recording)
    asked.language, asked.prompt = fields.text("language"), fields.text("prompt")
    asked.diarise = wanted == _DIARISED
    asked.format = "verbose_json" if asked.diarise else wanted
    for granularity in fields.texts("timestamp_granularities"):
        if granularity not in ("word", "segment"):
            raise invalid("timestamp_granularities", "expected word, segment or both")
        asked.timestamps.append(granularity)
    temperature = fields.number("temperature", 0, 1)
    if temperature is not None:
        asked.temperature = temperature
    return given


def _details(output: MediaOutput) -> dict[str, Any]:
    found = msgspec.json.decode(output.details_json) if output.details_json else {}
    return found if isinstance(found, dict) else {}


def _plain(output: MediaOutput, wanted: str) -> str:
    """Return a text, or subtitles: the provider's own, or made of its segments. Raises RpcError."""
    write = _SUBTITLES.get(wanted)
    if write is None or _ARROW in output.text:
        return output.text
    segments = _details(output).get("segments")
    if not segments:
        raise RpcError(
            "PARAMETER_UNSUPPORTED",
            f"response_format: this model does not say when things are said, so there is no {wanted}",
            metadata={"param": "response_format"},
        )
    return write(segments)


def _document(job: Job, wanted: str) -> dict[str, Any]:
    output = job.outputs[0]
    details = _details(output)
    document: dict[str, Any] = {"text": details.get("text") or output.text}
    if wanted != "json":
        asked = job.input.transcription
        document["task"] = "transcribe"
        document["language"] = details.get("language") or asked.language
        document["duration"] = details.get("duration") or output.duration_s or job.usage.seconds
        for name in ("segments", "words"):
            if name in details:
                document[name] = details[name]
    elif "logprobs" in details:
        document["logprobs"] = details["logprobs"]
    if usage := _usage(job.usage):
        document["usage"] = usage
    return document


def _usage(usage: MediaUsage) -> dict[str, Any]:
    if tokens := token_usage(usage):
        return {"type": "tokens", **tokens}
    return {"type": "duration", "seconds": usage.seconds} if usage.seconds else {}


async def _stream(exchange: Exchange, job: Job) -> None:
    """Send the text as the events of a stream that had it at once."""
    text = job.outputs[0].text
    done: dict[str, Any] = {"type": "transcript.text.done", "text": text}
    if usage := _usage(job.usage):
        done["usage"] = usage
    await exchange.start(200, EVENT_STREAM)
    for document in ({"type": "transcript.text.delta", "delta": text}, done):
        await exchange.write(b"data: %b\n\n" % msgspec.json.encode(document), more=True)
    await exchange.write(b"", more=False)
