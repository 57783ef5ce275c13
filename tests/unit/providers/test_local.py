"""The offline provider: deterministic, counted, and open about what it is."""

from __future__ import annotations

import json
import math

import pytest
from omnihub.common.v1.chat_pb2 import ChatInput, Message, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb

from services.common.rpc import Call, RpcError
from tests.support.providers import chat, running_providers, stream_chat, text_of


def attempt(**fields: object) -> pb.Attempt:
    chat_input = ChatInput(messages=[Message(role="user", content="Hello there, 世界!")], **fields)
    return pb.Attempt(provider="local", model="echo", chat=chat_input)


async def test_it_says_what_it_is_and_streams_the_same() -> None:
    async with running_providers() as client:
        answer = await chat(client, attempt())
        start, *events, end = await stream_chat(client, attempt())
    text = answer.message.parts[0].text.text
    assert "not a language model" in text
    assert "Hello there, 世界!" in text
    assert text_of(events) == text
    assert len(events) > 8  # word by word
    assert (end.end.finish, end.end.usage) == (answer.finish, answer.usage)
    assert answer.finish.reason == "stop"
    assert (answer.usage.input_total, answer.usage.estimated) == (5, False)
    assert answer.usage.output_total > 10
    assert not start.start.wire_format


async def test_limits_and_stop_sequences() -> None:
    async with running_providers() as client:
        short = await chat(client, attempt(max_tokens=3))
        stopped = await chat(client, attempt(stop=["offline"]))
        capped = attempt()
        capped.output_cap = 2
        assert (await chat(client, capped)).usage.output_total == 2
    assert (short.finish.reason, short.usage.output_total) == ("length", 3)
    assert (stopped.finish.reason, stopped.finish.stop_sequence) == ("stop", "offline")
    assert stopped.message.parts[0].text.text.endswith("OmniHub's ")


@pytest.mark.parametrize(
    ("wire_format", "body"),
    [
        (WireFormat.WIRE_FORMAT_OPENAI_CHAT, {"messages": [{"role": "user", "content": "hi"}]}),
        (
            WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES,
            {"max_tokens": 50, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
        ),
    ],
)
async def test_raw_bodies_are_read(wire_format: WireFormat.ValueType, body: dict) -> None:
    raw = pb.Attempt(
        provider="local", model="echo", raw_body=json.dumps(body).encode(), wire_format=wire_format
    )
    async with running_providers() as client:
        answer = await chat(client, raw)
        assert answer.message.parts[0].text.text.endswith("You said: hi")
        raw.raw_body = b'{"messages": [{"role": "user"}]}'
        with pytest.raises(RpcError) as caught:
            await chat(client, raw)
    assert caught.value.violations[0].field == "messages[0].content"


async def test_embeddings_are_normalised_and_lexical() -> None:
    request = pb.EmbedRequest(
        provider="local", model="hash", inputs=["the cat sat", "the cat sits", "quantum"]
    )
    async with running_providers() as client:
        response = await client.embed(request, Call.internal(5))
        raw = pb.EmbedRequest(provider="local", model="hash", raw_body=b'{"input": "the cat sat"}')
        again = await client.embed(raw, Call.internal(5))
        for body in (
            b"{}",
            b'{"input": 5}',
            b'{"input": "x", "dimensions": 0}',
            b'{"input": "x", "dimensions": 5000}',
        ):
            with pytest.raises(RpcError) as caught:
                await client.embed(
                    pb.EmbedRequest(provider="local", model="hash", raw_body=body), Call.internal(5)
                )
            assert caught.value.reason == "INVALID_ARGUMENT"
    first, second, third = ([*vector.values] for vector in response.embeddings)
    assert len(first) == 256
    assert math.isclose(math.hypot(*first), 1, abs_tol=1e-5)
    near, far = dot(first, second), dot(first, third)
    assert near > 0.5 > far
    assert [*again.embeddings[0].values] == first
    assert response.usage.input_total == 7


def dot(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
