"""A whole answer from the events of a stream, and the events of a stream from a whole answer. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from omnihub.common.v1.chat_pb2 import Message, Part, WireFormat
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop

from services.formats import anthropic_messages, openai_chat, openai_responses
from services.formats.answers import Answer, StreamReader

_FORMATS = {
    WireFormat.WIRE_FORMAT_OPENAI_CHAT: openai_chat,
    WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES: anthropic_messages,
    WireFormat.WIRE_FORMAT_OPENAI_RESPONSES: openai_responses,
}
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
Event = PartStart | PartDelta | PartStop


def read_whole(body: bytes, wire_format: int) -> Answer:
    """Read an answer in a caller's own format. Raises FormatError."""
    answer: Answer = _FORMATS[WireFormat.ValueType(wire_format)].read_response(body)
    return answer


def read_frames(frames: bytes, wire_format: int) -> Message:
    """Read the frames of a stream in a caller's own format into its answer. Raises FormatError."""
    reader: StreamReader = _FORMATS[WireFormat.ValueType(wire_format)].StreamReader()
    events: list[Event] = []
    for block in _BLANK_LINE.split(frames):
        name, data = b"", []
        for line in block.splitlines():
            field, _, value = line.partition(b":")
            if field == b"data":
                data.append(value.removeprefix(b" "))
            elif field == b"event":
                name = value.strip()
        if data:
            events += reader.read(name, b"\n".join(data))
    return assemble([*events, *reader.finish()])


def assemble(events: Iterable[Event]) -> Message:
    """Return the message that typed events write. Parts that are neither text nor thoughts stay empty."""
    parts: dict[int, Part] = {}
    for event in events:
        if isinstance(event, PartStart):
            parts.setdefault(event.index, Part()).CopyFrom(event.part)
        elif isinstance(event, PartDelta):
            _extend(parts.setdefault(event.index, Part()), event)
    return Message(role="assistant", parts=[parts[index] for index in sorted(parts)])


def _extend(part: Part, delta: PartDelta) -> None:
    kind = delta.WhichOneof("delta")
    if kind == "text":
        part.text.text += delta.text
    elif kind == "citations_json":
        part.text.citations_json += delta.citations_json
    elif kind == "reasoning":
        part.reasoning.text += delta.reasoning
    elif kind == "signature":
        part.reasoning.signature += delta.signature
    elif kind == "refusal":
        part.refusal.text += delta.refusal


def disassemble(message: Message) -> Iterator[Event]:
    """Yield the typed events of a whole answer of text and thoughts."""
    parts = list(message.parts)
    if message.content:
        parts.insert(0, Part())
        parts[0].text.text = message.content
    for index, part in enumerate(parts):
        begun = Part()
        begun.CopyFrom(part)
        reasoning = part.WhichOneof("kind") == "reasoning"
        if reasoning:
            begun.reasoning.ClearField("text")
            begun.reasoning.ClearField("signature")
        else:
            begun.text.ClearField("text")
            begun.text.ClearField("citations_json")
        yield PartStart(index=index, part=begun)
        if reasoning:
            yield PartDelta(index=index, reasoning=part.reasoning.text)
            if part.reasoning.signature:
                yield PartDelta(index=index, signature=part.reasoning.signature)
        else:
            yield PartDelta(index=index, text=part.text.text)
            if part.text.citations_json:
                yield PartDelta(index=index, citations_json=part.text.citations_json)
        yield PartStop(index=index)
