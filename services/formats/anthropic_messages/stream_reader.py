"""The events of a messages stream: facts for passing them on, or typed events."""

from __future__ import annotations

import msgspec
from omnihub.common.v1.chat_pb2 import OpaquePart, Part, ToolCall
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop

from services.formats.answers import Event, Progress
from services.formats.anthropic_messages.blocks import PROVIDER
from services.formats.anthropic_messages.citations import read_citation
from services.formats.anthropic_messages.outcome import WireUsage, read_finish, read_usage
from services.formats.documents import Index, from_decode_error, text_of


class _Message(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    usage: WireUsage | None = None


class _Delta(msgspec.Struct):
    type: str = ""
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    signature: str | None = None
    citation: msgspec.Raw = msgspec.Raw(b"")
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _Block(msgspec.Struct):
    type: str = ""
    id: str | None = None
    name: str | None = None
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


class StreamEvent(msgspec.Struct):
    """One event, as far as the platform reads it."""

    type: str
    index: Index = 0
    message: _Message | None = None
    delta: _Delta | None = None
    content_block: msgspec.Raw = msgspec.Raw(b"")
    usage: WireUsage | None = None
    error: msgspec.Raw = msgspec.Raw(b"")


_decoder = msgspec.json.Decoder(StreamEvent)
_block_decoder = msgspec.json.Decoder(_Block)


class _Reader:
    """What both ways of reading a stream share."""

    def __init__(self) -> None:
        self.progress = Progress()
        self._usage = WireUsage()

    def _read(self, data: bytes) -> StreamEvent:
        try:
            read = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise from_decode_error(error) from None
        progress = self.progress
        match read.type:
            case "message_start" if read.message is not None:
                progress.model = read.message.model or ""
                progress.response_id = read.message.id or ""
                self._count(read.message.usage)
            case "message_delta":
                self._count(read.usage)
                if read.delta is not None and read.delta.stop_reason:
                    if read.usage is None:  # The one of the start does not know what was written since.
                        progress.usage = None
                    progress.finish = read_finish(read.delta.stop_reason, read.delta.stop_sequence or "")
            case "message_stop":
                progress.closed = True
            case "content_block_delta" if read.delta is not None:
                delta = read.delta
                pieces = (delta.text, delta.partial_json, delta.thinking)
                progress.output_chars += sum(len(piece) for piece in pieces if piece)
            case "error":
                progress.error = read.error or msgspec.Raw(b"{}")
        return read

    def _count(self, usage: WireUsage | None) -> None:
        """Take a usage report. Reports are cumulative; they replace, they never add."""
        if usage is not None:
            self._usage = self._usage.updated(usage)
            self.progress.usage = read_usage(self._usage)


class RawReader(_Reader):
    """Reads the facts of a stream that is passed on, and holds back what ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.tail: list[bytes] = []

    def read(self, event: bytes, data: bytes) -> tuple[bytes, str]:
        """Take one server-sent event; return the frame to pass on, perhaps none, and the text in it.

        Raises FormatError when `data` is not an event of this format.
        """
        read = self._read(data)
        if self.progress.error is not None:
            return b"", ""
        if self.tail or self.progress.finish is not None:
            if read.type != "ping":
                self.tail.append(data)
            return b"", ""
        if read.delta is not None:
            text = read.delta.text or ""
            if read.delta.thinking:
                self.progress.thought = True
        else:
            text = self._part(read)
        return b"event: %b\ndata: %b\n\n" % (read.type.encode(), data.replace(b"\n", b" ")), text

    def _part(self, read: StreamEvent) -> str:
        """Take in the start or end of a part; return the text it starts with."""
        progress = self.progress
        if read.type == "content_block_stop":
            progress.open_part = ""
        if read.type != "content_block_start":
            return ""
        progress.parts = max(progress.parts, read.index + 1)
        part = _start(read.content_block)
        progress.open_part = part.WhichOneof("kind") or ""
        if progress.open_part not in ("text", "reasoning"):
            progress.beyond_text = True
        if part.reasoning.redacted or part.reasoning.text:
            progress.thought = True
        return part.text.text


class StreamReader(_Reader):
    """Turns events into typed events."""

    def __init__(self) -> None:
        super().__init__()
        self._open: list[int] = []

    def read(self, event: bytes, data: bytes) -> list[Event]:
        """Take one server-sent event. Raises FormatError when `data` is not an event of this format."""
        read = self._read(data)
        match read.type:
            case "content_block_start":
                self._open.append(read.index)
                part = _start(read.content_block)
                self.progress.thought = self.progress.thought or part.reasoning.redacted
                self.progress.beyond_text = self.progress.beyond_text or part.HasField("opaque")
                return [PartStart(index=read.index, part=part)]
            case "content_block_delta" if read.delta is not None:
                delta = _delta(read.index, read.delta)
                return [delta] if delta is not None else []
            case "content_block_stop":
                if read.index in self._open:
                    self._open.remove(read.index)
                return [PartStop(index=read.index)]
        return []

    def finish(self) -> list[Event]:
        """Return the ends of the parts that are still open."""
        events: list[Event] = [PartStop(index=index) for index in self._open]
        self._open = []
        return events


def _start(raw: msgspec.Raw) -> Part:
    try:
        block = _block_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise from_decode_error(error, "content_block") from None
    part = Part()
    match block.type:
        case "text":
            part.text.text = block.text or ""
            part.text.SetInParent()
        case "thinking":
            part.reasoning.text = block.thinking or ""
            part.reasoning.signature = block.signature or ""
            part.reasoning.SetInParent()
        case "redacted_thinking":
            part.reasoning.encrypted = block.data or ""
            part.reasoning.redacted = True
        case "tool_use":
            part.tool_call.CopyFrom(ToolCall(id=block.id or "", name=block.name or ""))
        case _:
            part.opaque.CopyFrom(OpaquePart(provider=PROVIDER, raw_json=text_of(raw)))
    return part


def _delta(index: int, delta: _Delta) -> PartDelta | None:
    match delta.type:
        case "text_delta":
            return PartDelta(index=index, text=delta.text or "")
        case "input_json_delta":
            return PartDelta(index=index, arguments_json=delta.partial_json or "")
        case "thinking_delta":
            return PartDelta(index=index, reasoning=delta.thinking or "")
        case "signature_delta":
            return PartDelta(index=index, signature=delta.signature or "")
        case "citations_delta":
            return PartDelta(index=index, citation=read_citation(delta.citation))
    return None
