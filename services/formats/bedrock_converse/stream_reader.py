"""The events of ConverseStream: typed events."""

from __future__ import annotations

from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import OpaquePart, Part, ToolCall
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop

from services.formats.answers import Event, Progress
from services.formats.bedrock_converse.blocks import PROVIDER, ImageSource
from services.formats.bedrock_converse.citations import read_citation
from services.formats.bedrock_converse.media import mime_of
from services.formats.bedrock_converse.outcome import (
    ResponseFields,
    Trace,
    WireUsage,
    model_of,
    read_finish,
    read_usage,
)
from services.formats.documents import from_decode_error, raw_of, write_object
from services.formats.errors import FormatError
from services.formats.media import decode_base64

# Names of frames that break the stream start so.
EXCEPTION = b"exception/"
_ERROR = b"error/"
_STATUSES = {
    "InternalServerException": 500,
    "ModelStreamErrorException": 424,
    "ModelTimeoutException": 408,
    "ServiceUnavailableException": 503,
    "ThrottlingException": 429,
    "ValidationException": 400,
}


class _ToolStart(msgspec.Struct):
    id: str = msgspec.field(default="", name="toolUseId")
    name: str = ""
    type: str | None = None


class _ImageStart(msgspec.Struct):
    format: str = ""


class _Start(msgspec.Struct):
    tool: _ToolStart | None = msgspec.field(default=None, name="toolUse")
    result: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="toolResult")
    image: _ImageStart | None = None


class _ToolDelta(msgspec.Struct):
    input: str = ""


class _ReasoningDelta(msgspec.Struct):
    text: str | None = None
    signature: str | None = None
    redacted: str | None = msgspec.field(default=None, name="redactedContent")


class _ImageDelta(msgspec.Struct):
    source: ImageSource | None = None


class _Delta(msgspec.Struct):
    text: str | None = None
    tool: _ToolDelta | None = msgspec.field(default=None, name="toolUse")
    result: list[msgspec.Raw] | None = msgspec.field(default=None, name="toolResult")
    reasoning: _ReasoningDelta | None = msgspec.field(default=None, name="reasoningContent")
    citation: msgspec.Raw = msgspec.Raw(b"")
    image: _ImageDelta | None = None


class _Payload(msgspec.Struct):
    """The payload of any event, as far as the platform reads it. Padding is left out."""

    index: int = msgspec.field(default=0, name="contentBlockIndex")
    start: _Start | None = None
    delta: _Delta | None = None
    stop_reason: str = msgspec.field(default="", name="stopReason")
    added: ResponseFields | None = msgspec.field(default=None, name="additionalModelResponseFields")
    usage: WireUsage | None = None
    trace: Trace | None = None


class _Exception(msgspec.Struct):
    message: str = ""
    original: str | None = msgspec.field(default=None, name="originalMessage")


_decoder = msgspec.json.Decoder(_Payload)
_exception_decoder = msgspec.json.Decoder(_Exception)


def read_exception(event: bytes, data: bytes) -> msgspec.Raw:
    """Return what broke a stream as an error object: message, type and the status it stands for."""
    word = event.partition(b"/")[2].decode()
    word = word[:1].upper() + word[1:]
    try:
        read = _exception_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        read = _Exception()
    texts = [text for text in (read.message, read.original) if text]
    error = {
        "message": ": ".join(dict.fromkeys(texts)) or f"ended the stream with {word}",
        "type": word,
        "status_code": _STATUSES.get(word, 500),
    }
    return msgspec.Raw(msgspec.json.encode(error))


class _Block:
    """A block of the answer that is being written."""

    def __init__(self, kind: str, index: int) -> None:
        self.kind = kind
        self.index = index
        self.held: dict[str, Any] = {}
        """What can only be told as a whole."""
        self.pieces: list[Any] = []


class StreamReader:
    """Turns events into typed events. A block of text has no start of its own."""

    def __init__(self) -> None:
        self.progress = Progress()
        self._blocks: dict[int, _Block] = {}
        self._next = 0

    def read(self, event: bytes, data: bytes) -> list[Event]:
        """Take one frame; unknown events are nothing. Raises FormatError when `data` is not its payload."""
        progress = self.progress
        if event.startswith((EXCEPTION, _ERROR)):
            if progress.finish is None:
                progress.error = read_exception(event, data)
            progress.closed = True
            return []
        read_event = _EVENTS.get(event)
        if read_event is None:
            return []
        try:
            payload = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise from_decode_error(error) from None
        events: list[Event] = []
        read_event(self, payload, events)
        return events

    def finish(self) -> list[Event]:
        """Return the ends of the parts that are still open."""
        events: list[Event] = []
        for index in list(self._blocks):
            self._stop(index, events)
        return events

    def _message_stop(self, payload: _Payload, events: list[Event]) -> None:
        self.progress.finish = read_finish(payload.stop_reason, payload.added)

    def _metadata(self, payload: _Payload, events: list[Event]) -> None:
        """Take what comes last."""
        if payload.usage is not None:
            self.progress.usage = read_usage(payload.usage)
        self.progress.model = model_of(payload.trace)
        self.progress.closed = self.progress.finish is not None

    def _block_start(self, payload: _Payload, events: list[Event]) -> None:
        start, index = payload.start, payload.index
        if start is None:
            return
        if start.tool is not None and start.tool.type is None:
            block = self._open("tool_call", index, events)
            call = ToolCall(id=start.tool.id, name=start.tool.name)
            self.progress.output_chars += len(call.name)
            events.append(PartStart(index=block.index, part=Part(tool_call=call)))
        elif start.tool is not None:
            self._open("server_call", index, events).held = {
                "toolUseId": start.tool.id,
                "name": start.tool.name,
                "type": start.tool.type,
            }
        elif start.result:
            self._open("server_result", index, events).held = msgspec.json.decode(start.result)
        elif start.image is not None:
            self._open("image", index, events).held = {"format": start.image.format}

    def _block_delta(self, payload: _Payload, events: list[Event]) -> None:
        delta, index = payload.delta, payload.index
        if delta is None:
            return
        if delta.text is not None:
            self._count(delta.text)
            at = self._part("text", index, events)
            events.append(PartDelta(index=at, text=delta.text))
        elif delta.tool is not None:
            self._tool_delta(index, delta.tool.input, events)
        elif delta.reasoning is not None:
            self._reasoning_delta(index, delta.reasoning, events)
        elif delta.citation:
            at = self._part("text", index, events)
            events.append(PartDelta(index=at, citation=read_citation(delta.citation)))
        elif delta.result is not None or delta.image is not None:
            block = self._blocks.get(index)
            if block is not None:
                block.pieces.extend(delta.result or [delta.image])

    def _tool_delta(self, index: int, text: str, events: list[Event]) -> None:
        self._count(text)
        block = self._blocks.get(index)
        if block is not None and block.kind == "server_call":
            block.pieces.append(text)
            return
        if block is None or block.kind != "tool_call":
            raise FormatError("MALFORMED_BODY", "arguments came before the call they belong to")
        if text:
            events.append(PartDelta(index=block.index, arguments_json=text))

    def _reasoning_delta(self, index: int, delta: _ReasoningDelta, events: list[Event]) -> None:
        if delta.redacted is not None:
            block = self._open("reasoning", index, events)
            part = Part()
            part.reasoning.encrypted, part.reasoning.redacted = delta.redacted, True
            self.progress.thought = True
            events.append(PartStart(index=block.index, part=part))
            return
        at = self._part("reasoning", index, events)
        if delta.text:
            self._count(delta.text)
            events.append(PartDelta(index=at, reasoning=delta.text))
        if delta.signature:
            events.append(PartDelta(index=at, signature=delta.signature))

    def _block_stop(self, payload: _Payload, events: list[Event]) -> None:
        self._stop(payload.index, events)

    def _count(self, text: str) -> None:
        self.progress.output_chars += len(text)

    def _part(self, kind: str, index: int, events: list[Event]) -> int:
        """Return the part that a delta belongs to; it starts with its first delta."""
        block = self._blocks.get(index)
        if block is None or block.kind != kind:
            block = self._open(kind, index, events)
            part = Part()
            getattr(part, kind).SetInParent()
            events.append(PartStart(index=block.index, part=part))
        return block.index

    def _open(self, kind: str, index: int, events: list[Event]) -> _Block:
        self._stop(index, events)
        self.progress.beyond_text = self.progress.beyond_text or kind in _WHOLE
        block = _Block(kind, self._next)
        self._blocks[index] = block
        self._next += 1
        return block

    def _stop(self, index: int, events: list[Event]) -> None:
        block = self._blocks.pop(index, None)
        if block is None:
            return
        whole = _WHOLE.get(block.kind)
        if whole is not None:
            events.append(PartStart(index=block.index, part=whole(block)))
        events.append(PartStop(index=block.index))


_EVENTS = {
    b"contentBlockStart": StreamReader._block_start,
    b"contentBlockDelta": StreamReader._block_delta,
    b"contentBlockStop": StreamReader._block_stop,
    b"messageStop": StreamReader._message_stop,
    b"metadata": StreamReader._metadata,
}


def _server_call(block: _Block) -> Part:
    arguments = raw_of("".join(block.pieces) or "{}")
    return _opaque({"toolUse": {**block.held, "input": arguments}})


def _server_result(block: _Block) -> Part:
    return _opaque({"toolResult": {**block.held, "content": block.pieces}})


def _opaque(block: dict[str, Any]) -> Part:
    return Part(opaque=OpaquePart(provider=PROVIDER, raw_json=write_object(block).decode()))


def _image(block: _Block) -> Part:
    sources = [piece.source for piece in block.pieces if piece.source is not None]
    part = Part()
    part.image.data = b"".join(decode_base64(source.data or "") or b"" for source in sources)
    part.image.mime = mime_of(block.held["format"])
    return part


# Kinds of blocks that are told as a whole, at their end.
_WHOLE = {"server_call": _server_call, "server_result": _server_result, "image": _image}
