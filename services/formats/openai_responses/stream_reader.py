"""The events of a response stream: facts for passing them on, or typed events."""

from __future__ import annotations

import msgspec
from omnihub.common.v1.chat_pb2 import OpaquePart, Part, ToolCall
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop

from services.formats.answers import Event, Progress
from services.formats.documents import from_decode_error, is_null, starts_with, text_of
from services.formats.openai_responses.outcome import read_usage
from services.formats.openai_responses.parts import ITEM
from services.formats.openai_responses.reasoning import unseal
from services.formats.openai_responses.response import Body

_NOTHING = msgspec.Raw(b"")
_TEXT = "response.output_text.delta"
_BEGINNING = frozenset({"response.created", "response.in_progress", "response.queued"})
_THOUGHTS = frozenset({"response.reasoning_summary_text.delta", "response.reasoning_text.delta"})
# Only these begin what another model could go on with.
_PLAIN = frozenset({"message", "reasoning"})
_COMPLETE = frozenset({"response.completed", "response.incomplete", "response.cancelled"})


class _Item(msgspec.Struct):
    type: str = ""
    call_id: str | None = None
    name: str | None = None
    encrypted_content: str | None = None


class _Event(msgspec.Struct):
    """One event, as far as the platform reads it."""

    type: str
    response: Body | None = None
    delta: msgspec.Raw = _NOTHING
    item: msgspec.Raw = _NOTHING
    part: msgspec.Raw = _NOTHING
    output_index: int = 0
    content_index: int = 0
    summary_index: int = 0
    error: msgspec.Raw = _NOTHING


_decoder = msgspec.json.Decoder(_Event)
_item_decoder = msgspec.json.Decoder(_Item)
_text_decoder = msgspec.json.Decoder(str)


class _Reader:
    """What both ways of reading a stream share."""

    def __init__(self) -> None:
        self.progress = Progress()

    def _read(self, data: bytes) -> tuple[_Event, str]:
        """Return an event and the text it adds. Raises FormatError."""
        try:
            read = _decoder.decode(data)
            text = ""
            if read.type.endswith(".delta") and starts_with(read.delta, b'"'):
                text = _text_decoder.decode(read.delta)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise from_decode_error(error) from None
        progress = self.progress
        progress.output_chars += len(text)
        if read.type == "error":
            nested = read.error and not is_null(read.error)
            progress.error = read.error if nested else msgspec.Raw(data)
        elif read.type == "response.failed":
            reported = read.response.error if read.response is not None else _NOTHING
            progress.error = reported if reported and not is_null(reported) else msgspec.Raw(b"{}")
        if read.response is not None:
            self._note(read.type, read.response)
        return read, text

    def _note(self, kind: str, response: Body) -> None:
        progress = self.progress
        progress.model = progress.model or response.model or ""
        progress.response_id = progress.response_id or response.id or ""
        if kind in _COMPLETE:
            progress.finish = response.finish
            tier = response.service_tier
            progress.usage = read_usage(response.usage, tier) if response.usage is not None else None
            progress.closed = True


class RawReader(_Reader):
    """Reads the facts of a stream that is passed on, and holds back what ends it.

    What comes before the first item is held back, too: a response that is accepted and then fails, as an
    overloaded provider's does, can then still be asked of another one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tail: list[bytes] = []
        self._beginning: list[bytes] = []

    def read(self, event: bytes, data: bytes) -> tuple[bytes, str]:
        """Take one server-sent event; return the frames to pass on, perhaps none, and the text in them.

        Raises FormatError when `data` is not an event of this format.
        """
        read, text = self._read(data)
        if self.progress.error is not None or self.tail:
            return b"", ""
        frame = b"event: %b\ndata: %b\n\n" % (read.type.encode(), data.replace(b"\n", b" "))
        self._weigh(read)
        if read.type in _BEGINNING:
            self._beginning.append(frame)
            return b"", ""
        if self.progress.closed:
            self.tail.append(data)
            frame = b""
        frames = b"".join(self._beginning) + frame
        self._beginning = []
        return frames, text if read.type == _TEXT else ""

    def _weigh(self, read: _Event) -> None:
        """Note what has come beside text, and which part is being written."""
        progress = self.progress
        match read.type:
            case "response.output_text.delta":
                if progress.open_part != "text":  # Some servers do not announce it.
                    self._begin("text")
            case "response.content_part.added" if b'"reasoning_text"' not in bytes(read.part):
                self._begin("text")
                progress.beyond_text = progress.beyond_text or b'"refusal"' in bytes(read.part)
            case "response.content_part.done" if progress.open_part == "text":
                progress.open_part = ""
            case "response.refusal.delta":
                progress.beyond_text = True
            case "response.output_item.added" | "response.output_item.done":
                self._weigh_item(read)
            case kind if kind in _THOUGHTS:
                progress.thought = True

    def _weigh_item(self, read: _Event) -> None:
        progress, item = self.progress, _item_of(read)
        progress.beyond_text = progress.beyond_text or item.type not in _PLAIN
        progress.thought = progress.thought or bool(item.encrypted_content)
        if read.type == "response.output_item.done":
            progress.open_part = ""
        elif item.type == "reasoning":
            self._begin("reasoning")

    def _begin(self, kind: str) -> None:
        self.progress.parts += 1
        self.progress.open_part = kind


class StreamReader(_Reader):
    """Turns events into typed events."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0
        self._open: dict[tuple[int, str, int], int] = {}

    def read(self, event: bytes, data: bytes) -> list[Event]:
        """Take one server-sent event. Raises FormatError when `data` is not an event of this format."""
        read, text = self._read(data)
        match read.type:
            case "response.output_item.added":
                return self._item_added(read)
            case "response.output_item.done":
                return self._item_done(read)
            case "response.output_text.delta":
                events, index = self._part(read, "text", read.content_index)
                return [*events, PartDelta(index=index, text=text)]
            case "response.refusal.delta":
                events, index = self._part(read, "refusal", read.content_index)
                return [*events, PartDelta(index=index, refusal=text)]
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                events, index = self._part(read, "reasoning", 0)
                return [*events, PartDelta(index=index, reasoning=text)]
            case "response.function_call_arguments.delta":
                events, index = self._part(read, "tool_call", 0)
                return [*events, PartDelta(index=index, arguments_json=text)]
        return []

    def finish(self) -> list[Event]:
        """Return the ends of the parts that are still open."""
        events: list[Event] = [PartStop(index=index) for index in self._open.values()]
        self._open = {}
        return events

    def _start(self, key: tuple[int, str, int], part: Part) -> PartStart:
        self._open[key] = self._next
        self._next += 1
        return PartStart(index=self._open[key], part=part)

    def _part(self, read: _Event, kind: str, position: int) -> tuple[list[Event], int]:
        """Return the start of a part, unless it is open, and its index."""
        key = (read.output_index, kind, position)
        events: list[Event] = []
        if key not in self._open:
            part = Part()
            getattr(part, kind).SetInParent()
            events.append(self._start(key, part))
        return events, self._open[key]

    def _item_added(self, read: _Event) -> list[Event]:
        item = _item_of(read)
        if item.type != "function_call":
            return []
        name = item.name or ""
        self.progress.output_chars += len(name)
        call = ToolCall(id=item.call_id or "", name=name)
        return [self._start((read.output_index, "tool_call", 0), Part(tool_call=call))]

    def _item_done(self, read: _Event) -> list[Event]:
        item = _item_of(read)
        events: list[Event] = []
        if item.type == "reasoning" and item.encrypted_content:
            events, index = self._part(read, "reasoning", 0)
            part = Part()
            unseal(item.encrypted_content, part.reasoning)
            if part.reasoning.signature:
                events.append(PartDelta(index=index, signature=part.reasoning.signature))
        elif item.type not in ("message", "function_call", "reasoning"):
            opaque = OpaquePart(provider=ITEM, raw_json=text_of(read.item))
            events.append(self._start((read.output_index, "opaque", 0), Part(opaque=opaque)))
        for key in [key for key in self._open if key[0] == read.output_index]:
            events.append(PartStop(index=self._open.pop(key)))
        return events


def _item_of(read: _Event) -> _Item:
    try:
        return _item_decoder.decode(read.item)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise from_decode_error(error, "item") from None
