"""The chunks of a chat completion stream: facts for passing them on, or typed events."""

from __future__ import annotations

from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import Part, TokenLogprobs, ToolCall
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop

from services.formats.answers import Event, Progress
from services.formats.details import Detail, read_detail, read_details, read_text, seal, text_field
from services.formats.documents import Fields, from_decode_error, read_value
from services.formats.openai_chat.citations import read_annotations
from services.formats.openai_chat.logprobs import read_logprobs
from services.formats.openai_chat.outcome import FAILED, WireUsage, read_finish, read_usage

DONE = b"[DONE]"


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: Any = None
    reasoning_content: str | None = None
    reasoning: Any = None
    reasoning_details: msgspec.Raw = msgspec.Raw(b"")
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    annotations: msgspec.Raw = msgspec.Raw(b"")
    # Of other kinds of answers; only that they are there matters.
    function_call: Any = None
    audio: Any = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None
    logprobs: msgspec.Raw = msgspec.Raw(b"")
    error: msgspec.Raw = msgspec.Raw(b"")


class Chunk(msgspec.Struct):
    """One chunk, as far as the platform reads it."""

    id: str | None = None
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: WireUsage | None = None
    error: msgspec.Raw = msgspec.Raw(b"")
    service_tier: Any = None


_decoder = msgspec.json.Decoder(Chunk)
_NULL = b"null"


class _Envelope(msgspec.Struct):
    usage: WireUsage | None = None


def _read_chunk(data: bytes, progress: Progress, usage_field: str) -> Chunk:
    try:
        chunk = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise from_decode_error(error) from None
    if chunk.error and bytes(chunk.error) != _NULL:
        progress.error = chunk.error
    if chunk.model and not progress.model:
        progress.model = chunk.model
    if chunk.id and not progress.response_id:
        progress.response_id = chunk.id
    usage = chunk.usage
    if usage is None and usage_field and usage_field.encode() in data:
        raw = msgspec.json.decode(data, type=Fields).get(usage_field, msgspec.Raw(b"null"))
        usage = (read_value(raw, _Envelope | None, usage_field) or _Envelope()).usage  # type: ignore[arg-type]
    if usage is not None:
        progress.usage = read_usage(usage, chunk.service_tier) or progress.usage
    return chunk


def _failure(choice: _Choice) -> msgspec.Raw | None:
    """Return the error of a choice that failed: some vendors put it there, and nothing at the top."""
    if choice.error and bytes(choice.error) != _NULL:
        return choice.error
    return FAILED if choice.finish_reason == "error" else None


class RawReader:
    """Reads the facts of a stream that is passed on, and holds back what ends it."""

    __slots__ = ("_choices", "_finishes", "_include_usage", "_usage_field", "progress", "tail")

    def __init__(self, include_usage: bool, choices: int = 1, usage_field: str = "") -> None:
        """`usage_field` names the object in a chunk that holds the usage where it is not at the top."""
        self._include_usage = include_usage
        self._usage_field = usage_field
        self._choices = choices
        self._finishes: dict[int, str] = {}
        self.progress = Progress()
        self.tail: list[bytes] = []

    def read(self, event: bytes, data: bytes) -> tuple[bytes, str]:
        """Take one server-sent event; return the frame to pass on, perhaps none, and the text in it.

        Raises FormatError when `data` is not a chunk.
        """
        if data == DONE:
            self.progress.closed = True
            return b"", ""
        progress = self.progress
        chunk = _read_chunk(data, progress, self._usage_field)
        if progress.error is not None:
            return b"", ""
        text = _plain_text(chunk)
        if text is not None:
            progress.output_chars += len(text)
        else:
            self._note_finishes(chunk)
            if progress.error is not None:
                return b"", ""
            text = self._text(chunk)
            if not chunk.choices and chunk.usage is not None:
                if self._include_usage:
                    self.tail.append(data)
                return b"", ""
        if self.tail or progress.finish is not None:
            self.tail.append(data)
            return b"", ""
        if b"\n" in data:
            data = data.replace(b"\n", b" ")
        return b"data: %b\n\n" % data, text

    def _note_finishes(self, chunk: Chunk) -> None:
        """Take down which choices are finished. The answer is, once all that were asked for are."""
        for choice in chunk.choices or ():
            self.progress.error = self.progress.error or _failure(choice)
            if choice.finish_reason:
                self._finishes.setdefault(choice.index, choice.finish_reason)
        if self.progress.finish is None and self._finishes and len(self._finishes) >= self._choices:
            self.progress.finish = read_finish(self._finishes[min(self._finishes)])

    def _text(self, chunk: Chunk) -> str:
        text = ""
        for choice in chunk.choices or ():
            delta = choice.delta
            if delta is None:
                continue
            content = delta.content
            if choice.index == 0 and isinstance(content, str):
                text += content
                self.progress.output_chars += len(content)
            elif content:
                self._beyond_text(content)
            for thought in (delta.reasoning_content, delta.reasoning):
                if thought and isinstance(thought, str):
                    self.progress.thought = True
                    self.progress.output_chars += len(thought)
            if delta.refusal or delta.tool_calls or delta.function_call or delta.audio:
                self._beyond_text(delta.refusal)
            for call in delta.tool_calls or ():
                if call.function is not None:
                    self.progress.output_chars += len(call.function.arguments or call.function.name or "")
        return text

    def _beyond_text(self, piece: Any) -> None:
        """Take in what no other model could go on with."""
        self.progress.beyond_text = True
        if isinstance(piece, str):
            self.progress.output_chars += len(piece)


def _plain_text(chunk: Chunk) -> str | None:
    """Return the text of a chunk that holds a piece of the first choice's text and nothing else."""
    choices = chunk.choices
    if choices is None or len(choices) != 1:
        return None
    choice = choices[0]
    delta = choice.delta
    if delta is None or choice.index or choice.finish_reason or choice.error:
        return None
    content = delta.content
    if not isinstance(content, str) or delta.reasoning_content or delta.reasoning or delta.refusal:
        return None
    return None if delta.tool_calls or delta.function_call or delta.audio else content


class StreamReader:
    """Turns chunks into typed events. Only the first choice is read."""

    def __init__(self, usage_field: str = "", call_prefix: str = "call") -> None:
        """`usage_field` names the object in a chunk that holds the usage where it is not at the top.

        Calls without an id get one that starts with `call_prefix`.
        """
        self.progress = Progress()
        self._usage_field = usage_field
        self._call_prefix = call_prefix
        self._next = 0
        self._open: tuple[str, int] | None = None
        """The kind and index of the text, thought or refusal being written."""
        self._detail: Detail = {}
        """What stands beside the text of the thought being written."""
        self._tools: dict[int, int] = {}

    def read(self, event: bytes, data: bytes) -> list[Event]:
        """Take one server-sent event. Raises FormatError when `data` is not a chunk."""
        if data == DONE:
            self.progress.closed = True
            return []
        chunk = _read_chunk(data, self.progress, self._usage_field)
        events: list[Event] = []
        for choice in chunk.choices or ():
            if choice.index != 0 or self.progress.error is not None:
                continue
            self.progress.error = _failure(choice)
            if self.progress.error is not None:
                continue
            if choice.delta is not None:
                self._delta(choice.delta, events)
            if self._open is not None and self._open[0] == "text":
                tokens = read_logprobs(choice.logprobs)
                if tokens:
                    events.append(PartDelta(index=self._open[1], logprobs=TokenLogprobs(tokens=tokens)))
            if choice.finish_reason and self.progress.finish is None:
                self.progress.finish = read_finish(choice.finish_reason)
        return events

    def finish(self) -> list[Event]:
        """Return the ends of the parts that are still open."""
        events: list[Event] = []
        self._stop_text(events)
        events.extend(PartStop(index=index) for index in self._tools.values())
        self._tools = {}
        return events

    def _delta(self, delta: _Delta, events: list[Event]) -> None:
        thought = delta.reasoning_content or delta.reasoning
        if details := read_details(delta.reasoning_details) if delta.reasoning_details else ():
            for detail in details:
                self._think(detail, events)
        elif isinstance(thought, str) and thought:
            events.append(PartDelta(index=self._part("reasoning", events), reasoning=thought))
            self.progress.output_chars += len(thought)
        for text in _texts(delta.content):
            events.append(PartDelta(index=self._part("text", events), text=text))
            self.progress.output_chars += len(text)
        for citation in read_annotations(delta.annotations):
            events.append(PartDelta(index=self._part("text", events), citation=citation))
        if delta.refusal:
            events.append(PartDelta(index=self._part("refusal", events), refusal=delta.refusal))
            self.progress.output_chars += len(delta.refusal)
        for position, call in enumerate(delta.tool_calls or ()):
            self._tool_call(call, position, events)

    def _think(self, detail: Detail, events: list[Event]) -> None:
        """Take a detail: a sealed one is whole, others are pieces of a thought with their kind and number."""
        if not text_field(detail):
            self._stop_text(events)
            events.append(PartStart(index=self._next, part=read_detail(detail)))
            events.append(PartStop(index=self._next))
            self._next += 1
            return
        if self._detail and any(detail.get(name) != self._detail.get(name) for name in ("type", "index")):
            self._stop_text(events)
        index, text = self._part("reasoning", events), read_text(detail)
        self._detail.update((name, value) for name, value in detail.items() if value is not None)
        if text:
            events.append(PartDelta(index=index, reasoning=text))
            self.progress.output_chars += len(text)

    def _part(self, kind: str, events: list[Event]) -> int:
        if self._open is not None and self._open[0] == kind:
            return self._open[1]
        self._stop_text(events)
        part = Part()
        getattr(part, kind).SetInParent()
        events.append(PartStart(index=self._next, part=part))
        self._open = (kind, self._next)
        self._next += 1
        return self._open[1]

    def _stop_text(self, events: list[Event]) -> None:
        if self._open is not None:
            if self._detail:
                events.append(PartDelta(index=self._open[1], signature=seal(self._detail)))
                self._detail = {}
            events.append(PartStop(index=self._open[1]))
            self._open = None

    def _tool_call(self, call: _ToolCall, position: int, events: list[Event]) -> None:
        key = call.index if call.index is not None else position
        function = call.function or _Function()
        if key not in self._tools:
            self._stop_text(events)
            self._tools[key] = self._next
            identifier = call.id or f"{self._call_prefix}_{key}"
            part = ToolCall(id=identifier, name=function.name or "", id_synthesised=not call.id)
            events.append(PartStart(index=self._next, part=Part(tool_call=part)))
            self.progress.output_chars += len(part.name)
            self._next += 1
        if function.arguments:
            events.append(PartDelta(index=self._tools[key], arguments_json=function.arguments))
            self.progress.output_chars += len(function.arguments)


def _texts(content: Any) -> list[str]:
    """Return the text of a delta: a string, or with some back ends a list of parts."""
    if isinstance(content, str):
        return [content] if content else []
    if not isinstance(content, list):
        return []
    texts = [piece.get("text") for piece in content if isinstance(piece, dict)]
    return [text for text in texts if isinstance(text, str) and text]
