"""What comes of an attempt, in a shape that can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from omnihub.common.v1.chat_pb2 import Finish, Part, Usage
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from tests.support.providers import KEY, chat
from tests.support.vendors.answers import Called
from tests.support.vendors.table import PROMPT, Ask

RETRYABLE = {
    "PROVIDER_FAILED",
    "PROVIDER_OVERLOADED",
    "PROVIDER_PROTOCOL",
    "PROVIDER_RATE_LIMITED",
    "STREAM_TRUNCATED",
}


@dataclass(frozen=True)
class Outcome:
    """An answer, whichever way it came."""

    text: str
    reasoning: str
    calls: list[Called]
    finish: Finish
    usage: Usage
    model: str
    response_id: str


async def whole(client: ProviderService, ask: Ask, attempt: pb.Attempt | None = None) -> Outcome:
    """Ask for a whole answer."""
    response = await chat(client, attempt or ask.attempt())
    message = ask.module.read_response(response.raw_body).message if ask.raw else response.message
    parts = list(message.parts) or [Part(text={"text": message.content})]
    return _outcome(parts, response, response.model, response.response_id)


async def streamed(client: ProviderService, ask: Ask, attempt: pb.Attempt | None = None) -> Outcome:
    """Ask for a stream."""
    messages = await read(client, attempt or ask.attempt())
    parts = raw_parts(messages, ask) if ask.raw else typed_parts(messages)
    start = messages[0].start
    return _outcome(parts, messages[-1].end, start.model, start.response_id)


def _outcome(parts: list[Part], end: Any, model: str, response_id: str) -> Outcome:
    return Outcome(
        text="".join(part.text.text for part in parts),
        reasoning="".join(part.reasoning.text for part in parts),
        calls=[
            Called(part.tool_call.name, part.tool_call.arguments_json, part.tool_call.id)
            for part in parts
            if part.HasField("tool_call")
        ],
        finish=end.finish,
        usage=end.usage,
        model=model,
        response_id=response_id,
    )


async def read(client: ProviderService, attempt: pb.Attempt) -> list[pb.StreamChatResponse]:
    """Return all messages of a stream."""
    stream = client.stream_chat(pb.StreamChatRequest(attempt=attempt), Call.internal(30))
    return [message async for message in stream]


def typed_parts(messages: list[pb.StreamChatResponse]) -> list[Part]:
    """Put the parts of a typed stream together again."""
    parts: dict[int, Part] = {}
    for message in messages:
        if message.HasField("part_start"):
            parts[message.part_start.index] = Part.FromString(message.part_start.part.SerializeToString())
        elif message.HasField("part_delta"):
            part, delta = parts[message.part_delta.index], message.part_delta
            match delta.WhichOneof("delta"):
                case "text":
                    part.text.text += delta.text
                case "arguments_json":
                    part.tool_call.arguments_json += delta.arguments_json
                case "reasoning":
                    part.reasoning.text += delta.reasoning
                case "signature":
                    part.reasoning.signature += delta.signature
    return [parts[index] for index in sorted(parts)]


def passed(messages: list[pb.StreamChatResponse], ask: Ask) -> bytes:
    """Return the bytes that a caller of the vendor's own format gets."""
    frames = b"".join(message.raw_frame.data for message in messages)
    return frames + bytes(ask.module.close_raw_stream(messages[-1].end.raw_tail))


def raw_parts(messages: list[pb.StreamChatResponse], ask: Ask) -> list[Part]:
    """Read what the caller gets as its own client would: by the format's typed reader."""
    reader = ask.module.StreamReader()
    events = []
    for frame in passed(messages, ask).split(b"\n\n"):
        lines = dict(line.split(b": ", 1) for line in frame.splitlines() if b": " in line)
        if b"data" in lines:
            events += reader.read(lines.get(b"event", b""), lines[b"data"])
    typed = []
    for event in events:
        name = {"PartStart": "part_start", "PartDelta": "part_delta", "PartStop": "part_stop"}
        typed.append(pb.StreamChatResponse(**{name[type(event).__name__]: event}))
    return typed_parts(typed)


async def failure(
    client: ProviderService, ask: Ask, in_stream: bool, attempt: pb.Attempt | None = None
) -> RpcError:
    """Return how an attempt fails that sends nothing first."""
    if in_stream:
        messages, error = await broken(client, ask, attempt)
        assert not [each for each in messages if each.raw_frame.text or each.part_delta.text]
        return error
    with pytest.raises(RpcError) as caught:
        await chat(client, attempt or ask.attempt())
    return checked(caught.value, ask)


async def broken(
    client: ProviderService, ask: Ask, attempt: pb.Attempt | None = None
) -> tuple[list[pb.StreamChatResponse], RpcError]:
    """Return what came before a stream broke, and how it broke."""
    messages: list[pb.StreamChatResponse] = []

    async def take() -> None:
        request = pb.StreamChatRequest(attempt=attempt or ask.attempt())
        async for message in client.stream_chat(request, Call.internal(30)):
            messages.append(message)

    with pytest.raises(RpcError) as caught:
        await take()
    assert not any(message.HasField("end") for message in messages)
    return messages, checked(caught.value, ask)


def checked(error: RpcError, ask: Ask) -> RpcError:
    """Check what every failure says, and what none says."""
    told = f"{error} {error.message} {error.metadata}"
    assert KEY not in told
    assert PROMPT not in told
    assert "<html" not in told
    assert len(error.message) < 700
    assert (error.metadata["provider"], error.metadata["model"]) == (ask.vendor.name, ask.vendor.model)
    # A wrong address stays wrong, whoever answers at it.
    passing = error.reason in RETRYABLE and error.metadata.get("http_status") != "404"
    assert error.metadata["retryable"] == ("true" if passing else "false")
    return error
