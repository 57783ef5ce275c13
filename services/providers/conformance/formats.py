"""Raw bodies and frames, for providers that speak a foreign wire format themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from omnihub.common.v1.chat_pb2 import Finish, Usage, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.formats import anthropic_messages, openai_chat, openai_responses
from services.formats.answers import Answer, StreamReader
from services.formats.errors import FormatError
from services.providers.conformance.kit import MAX_TOKENS, QUESTION, Group, Subject, require
from services.providers.conformance.streams import judge
from services.providers.domain.clauses import BreachError
from services.providers.frames import FrameTooLargeError
from services.providers.http import FRAME_LIMIT
from services.providers.sse import SseParser

GROUP = Group("formats")


@dataclass(frozen=True, slots=True)
class Format:
    """How a wire format is written and read."""

    number: WireFormat.ValueType
    body: dict[str, Any]
    read_answer: Callable[[bytes], Answer]
    stream_reader: Callable[[], StreamReader]
    close_stream: Callable[[Sequence[bytes]], bytes]


_MESSAGES = [{"role": "user", "content": QUESTION}]
OPENAI = Format(
    WireFormat.WIRE_FORMAT_OPENAI_CHAT,
    {"messages": _MESSAGES},
    openai_chat.read_response,
    openai_chat.StreamReader,
    openai_chat.close_raw_stream,
)
ANTHROPIC = Format(
    WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES,
    {"messages": _MESSAGES, "max_tokens": MAX_TOKENS},
    anthropic_messages.read_response,
    anthropic_messages.StreamReader,
    anthropic_messages.close_raw_stream,
)

RESPONSES = Format(
    WireFormat.WIRE_FORMAT_OPENAI_RESPONSES,
    {"input": QUESTION},
    openai_responses.read_response,
    openai_responses.StreamReader,
    openai_responses.close_raw_stream,
)


async def _attempt(subject: Subject, wire: Format, stream: bool) -> pb.Attempt:
    attempt = await subject.attempt(max_tokens=0)
    attempt.raw_body = json.dumps({"model": attempt.model, **wire.body, "stream": stream}).encode()
    attempt.wire_format = wire.number
    attempt.output_cap = MAX_TOKENS
    return attempt


def _compare(clause: str, finish: Finish, usage: Usage, read: Finish, counted: Usage | None) -> None:
    message = f"`finish` says {finish.reason!r}, the format says {read.reason!r}"
    require(finish.reason == read.reason, clause, message)
    if counted is None or usage.estimated:
        return
    said = (usage.input_total, usage.output_total)
    found = (counted.input_total, counted.output_total)
    require(said == found, clause, f"`usage` says {said} tokens in and out, the format says {found}")


async def _judge_answer(subject: Subject, wire: Format) -> None:
    answer = await subject.answered(await _attempt(subject, wire, stream=False), "RAW-1")
    require(answer.HasField("raw_body"), "RAW-1", "`raw_body` is missing although the format is offered")
    try:
        read = wire.read_answer(answer.raw_body)
    except FormatError as error:
        raise BreachError("RAW-1", f"`raw_body` is not of its format: {error.message}") from None
    require(answer.HasField("usage"), "RAW-1", "`usage` is missing beside `raw_body`")
    _compare("RAW-1", answer.finish, answer.usage, read.finish, read.usage)


async def _judge_stream(subject: Subject, wire: Format) -> None:
    attempt = await _attempt(subject, wire, stream=True)
    reply = await subject.stream(attempt)
    judge(reply, attempt)
    start, end = reply.messages[0].start, reply.messages[-1].end
    named = start.wire_format == wire.number
    require(named, "RAW-2", "`start` does not name the format although it is offered and was asked for")
    frames = [message.raw_frame for message in reply.messages[1:-1]]
    written = b"".join(frame.data for frame in frames) + wire.close_stream(end.raw_tail)
    reader, text = wire.stream_reader(), []
    parser = SseParser(FRAME_LIMIT)
    try:
        for name, data in [*parser.feed(written), *parser.close()]:
            text += [getattr(event, "text", "") for event in reader.read(name, data) if _is_delta(event)]
    except (FormatError, FrameTooLargeError) as error:
        raise BreachError("RAW-2", f"the frames are not of their format: {error}") from None
    require(
        reader.progress.finish is not None, "RAW-2", "the frames and `raw_tail` have no end of the format"
    )
    said = "".join(frame.text for frame in frames)
    require(said == "".join(text), "RAW-2", "`text` beside the frames is not the text in the frames")
    finish = reader.progress.finish or Finish()
    _compare("RAW-2", end.finish, end.usage, finish, reader.progress.usage)


def _is_delta(event: object) -> bool:
    return hasattr(event, "text")


@GROUP.check("RAW-1", needs=["chat", "WIRE_FORMAT_OPENAI_CHAT"])
async def openai_chat_answers(subject: Subject) -> None:
    """OpenAI chat completions."""
    await _judge_answer(subject, OPENAI)


@GROUP.check("RAW-2", needs=["stream", "WIRE_FORMAT_OPENAI_CHAT"])
async def openai_chat_streams(subject: Subject) -> None:
    """OpenAI chat completions, streamed."""
    await _judge_stream(subject, OPENAI)


@GROUP.check("RAW-1", needs=["chat", "WIRE_FORMAT_ANTHROPIC_MESSAGES"])
async def anthropic_messages_answers(subject: Subject) -> None:
    """Anthropic messages."""
    await _judge_answer(subject, ANTHROPIC)


@GROUP.check("RAW-2", needs=["stream", "WIRE_FORMAT_ANTHROPIC_MESSAGES"])
async def anthropic_messages_streams(subject: Subject) -> None:
    """Anthropic messages, streamed."""
    await _judge_stream(subject, ANTHROPIC)


@GROUP.check("RAW-1", needs=["chat", "WIRE_FORMAT_OPENAI_RESPONSES"])
async def openai_responses_answers(subject: Subject) -> None:
    """OpenAI responses."""
    await _judge_answer(subject, RESPONSES)


@GROUP.check("RAW-2", needs=["stream", "WIRE_FORMAT_OPENAI_RESPONSES"])
async def openai_responses_streams(subject: Subject) -> None:
    """OpenAI responses, streamed."""
    await _judge_stream(subject, RESPONSES)
