"""Answers: one document, or one a line until a line says that it is done."""

from __future__ import annotations

import msgspec
from omnihub.common.v1.chat_pb2 import Finish, Message, Part, TextPart, TokenLogprobs, ToolCall, Usage
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop

from services.formats.answers import Answer, Event, Progress
from services.formats.documents import FORMAT, decode_document
from services.formats.errors import invalid
from services.formats.ollama.logprobs import last_of, read_logprobs
from services.formats.usage import reported

_NAME = "ollama"
_REASONS = {"stop": "stop", "length": "length"}


class _Function(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _ToolCall(msgspec.Struct):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Answer(msgspec.Struct):
    model: str | None = None
    message: _Message | None = None
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    logprobs: msgspec.Raw = msgspec.Raw(b"")
    error: msgspec.Raw = msgspec.Raw(b"")


def _finish(answer: _Answer, called_tools: bool) -> Finish:
    """Return the finish; a word nobody knows, or none, is `unknown`, never `stop`."""
    word = answer.done_reason or ""
    reason = _REASONS.get(word, "unknown")
    return Finish(reason="tool_calls" if reason == "stop" and called_tools else reason, raw=word)


def _usage(answer: _Answer) -> Usage | None:
    """Return the usage, None when the provider left out a part of it, as it does for a cached prompt."""
    if not answer.prompt_eval_count or answer.eval_count is None:
        return None
    return reported(input_total=answer.prompt_eval_count, output_total=answer.eval_count)


def _call(call: _ToolCall, position: int, call_prefix: str) -> ToolCall:
    identifier = call.id or f"{call_prefix}_{position}"
    return ToolCall(id=identifier, name=call.function.name, id_synthesised=not call.id)


def _arguments(call: _ToolCall) -> str:
    return bytes(call.function.arguments).decode()


def read_response(body: bytes, call_prefix: str) -> Answer:
    """Read an answer; calls without an id get one that starts with `call_prefix`. Raises FormatError."""
    answer = decode_document(body, _Answer)
    if answer.message is None:
        raise invalid("message", "the answer has no message")
    if not answer.done:
        raise invalid("done", "the answer is not complete")
    message = Message(role="assistant")
    message.extension_json[FORMAT] = _NAME
    if answer.message.thinking:
        message.parts.add().reasoning.text = answer.message.thinking
    calls = answer.message.tool_calls or []
    if answer.message.content or not (calls or message.parts):
        text = answer.message.content or ""
        # Tokens of thoughts come first in the same list.
        tokens = last_of(read_logprobs(answer.logprobs), text)
        message.parts.add().text.MergeFrom(TextPart(text=text, logprobs=tokens))
    for position, call in enumerate(calls):
        read = _call(call, position, call_prefix)
        read.arguments_json = _arguments(call)
        message.parts.add().tool_call.CopyFrom(read)
    return Answer(message, _finish(answer, bool(calls)), _usage(answer), "", answer.model or "")


class StreamReader:
    """Turns lines into typed events."""

    def __init__(self, call_prefix: str) -> None:
        self.progress = Progress()
        self._prefix = call_prefix
        self._next = 0
        self._open = ""
        """The kind of the part being written: text or reasoning."""
        self._calls = 0

    def read(self, event: bytes, data: bytes) -> list[Event]:
        """Take one line. Raises FormatError when it is none of this format."""
        answer = decode_document(data, _Answer)
        progress = self.progress
        events: list[Event] = []
        if answer.error and bytes(answer.error) != b"null":
            progress.error = answer.error
            return events
        progress.model = progress.model or answer.model or ""
        if answer.message is not None:
            self._message(answer.message, answer.logprobs, events)
        if answer.done:
            progress.finish = _finish(answer, self._calls > 0)
            progress.usage = _usage(answer)
            progress.closed = True
        return events

    def finish(self) -> list[Event]:
        """Return the end of the part that is still open."""
        events: list[Event] = []
        self._stop(events)
        return events

    def _message(self, message: _Message, logprobs: msgspec.Raw, events: list[Event]) -> None:
        if message.thinking:
            events.append(PartDelta(index=self._part("reasoning", events), reasoning=message.thinking))
            self.progress.output_chars += len(message.thinking)
        if message.content:
            events.append(PartDelta(index=self._part("text", events), text=message.content))
            if tokens := last_of(read_logprobs(logprobs), message.content):
                events.append(PartDelta(index=self._next, logprobs=TokenLogprobs(tokens=tokens)))
            self.progress.output_chars += len(message.content)
        for call in message.tool_calls or ():
            self._stop(events)
            read, arguments = _call(call, self._calls, self._prefix), _arguments(call)
            events.append(PartStart(index=self._next, part=Part(tool_call=read)))
            events.append(PartDelta(index=self._next, arguments_json=arguments))
            events.append(PartStop(index=self._next))
            self.progress.output_chars += len(read.name) + len(arguments)
            self._calls += 1
            self._next += 1

    def _part(self, kind: str, events: list[Event]) -> int:
        if self._open != kind:
            self._stop(events)
            part = Part()
            getattr(part, kind).SetInParent()
            events.append(PartStart(index=self._next, part=part))
            self._open = kind
        return self._next

    def _stop(self, events: list[Event]) -> None:
        if self._open:
            events.append(PartStop(index=self._next))
            self._open = ""
            self._next += 1
