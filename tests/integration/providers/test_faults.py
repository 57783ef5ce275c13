"""Every way a provider can misbehave, over real HTTP. Each test shows that the fault happened."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from omnihub.common.v1.chat_pb2 import ChatInput, Message, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from tests.support import wire
from tests.support.fault_server import (
    Disconnect,
    Endless,
    FaultServer,
    Head,
    Send,
    Stall,
    answer,
    running_fault_server,
    sse,
    stream,
)
from tests.support.providers import KEY, chat, running_providers, settings, stream_chat, text_of

# Long enough for a busy machine, short enough for a suite.
SHORT = {"first_token_s": 0.2, "idle_s": 0.2, "total_s": 0.6, "connect_s": 0.5}
FORMATS = {
    "openai": WireFormat.WIRE_FORMAT_OPENAI_CHAT,
    "anthropic": WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES,
}
BODY = json.dumps({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}).encode()


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with running_fault_server() as server:
        yield server


@pytest.fixture
async def client(server: FaultServer) -> AsyncIterator[ProviderService]:
    configured = {name: settings(name, server.url, **SHORT) for name in ("openai", "anthropic")}
    async with running_providers(**configured) as client:
        yield client


def attempt(provider: str, raw: bool = True) -> pb.Attempt:
    if raw:
        return pb.Attempt(provider=provider, model="m", raw_body=BODY, wire_format=FORMATS[provider])
    chat_input = ChatInput(messages=[Message(role="user", content="hi")])
    return pb.Attempt(provider=provider, model="m", chat=chat_input)


def good_stream(provider: str) -> list:
    return wire.OPENAI_TEXT if provider == "openai" else wire.ANTHROPIC_EVENTS


def frames(provider: str, documents: list, done: bool = True) -> bytes:
    return sse(*documents, event=provider == "anthropic", done=done and provider == "openai")


async def failure(client: ProviderService, asked: pb.Attempt, streamed: bool) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await (stream_chat if streamed else chat)(client, asked)
    error = caught.value
    assert KEY not in str(error)
    assert error.metadata["provider"] == asked.provider
    assert error.metadata["model"] == "m"
    return error


async def broken_stream(
    client: ProviderService, asked: pb.Attempt
) -> tuple[list[pb.StreamChatResponse], RpcError]:
    """Return what came before a stream broke, and how it broke."""
    messages: list[pb.StreamChatResponse] = []

    async def read() -> None:
        async for message in client.stream_chat(pb.StreamChatRequest(attempt=asked), Call.internal(30)):
            messages.append(message)

    with pytest.raises(RpcError) as caught:
        await read()
    assert not any(message.HasField("end") for message in messages)
    return messages, caught.value


def openai_error(message: str, code: object = None, kind: str = "x", **fields: object) -> dict:
    return {"error": {"message": message, "type": kind, "param": None, "code": code, **fields}}


def anthropic_error(kind: str, message: str, **fields: object) -> dict:
    return {"type": "error", "error": {"type": kind, "message": message, **fields}, "request_id": "req_1"}


STATUSES = [
    ("openai", 401, openai_error("Incorrect API key", "invalid_api_key"), "PROVIDER_CREDENTIAL_REFUSED"),
    ("openai", 403, openai_error("not allowed"), "PROVIDER_CREDENTIAL_REFUSED"),
    ("openai", 402, openai_error("pay", 402), "PROVIDER_BILLING"),
    ("openai", 429, openai_error("no money", "insufficient_quota"), "PROVIDER_BILLING"),
    ("openai", 404, openai_error("no model", "model_not_found"), "MODEL_NOT_FOUND"),
    ("openai", 400, openai_error("no model", "model_not_found"), "MODEL_NOT_FOUND"),
    ("openai", 400, openai_error("too long", "context_length_exceeded"), "CONTEXT_LENGTH_EXCEEDED"),
    ("openai", 400, openai_error("the maximum context length is 8"), "CONTEXT_LENGTH_EXCEEDED"),
    ("openai", 413, openai_error("too large"), "CONTEXT_LENGTH_EXCEEDED"),
    ("openai", 400, openai_error("filtered", "content_filter"), "CONTENT_FILTERED"),
    ("openai", 403, openai_error("m", 403, metadata={"reasons": ["violence"]}), "CONTENT_FILTERED"),
    ("openai", 400, openai_error("bad temperature"), "PROVIDER_REJECTED"),
    ("openai", 422, {"detail": "wrong"}, "PROVIDER_REJECTED"),
    ("openai", 429, openai_error("slow down", "rate_limit_exceeded"), "PROVIDER_RATE_LIMITED"),
    ("openai", 498, openai_error("capacity"), "PROVIDER_OVERLOADED"),
    ("openai", 503, openai_error("loading"), "PROVIDER_OVERLOADED"),
    ("openai", 500, openai_error("oops"), "PROVIDER_FAILED"),
    ("openai", 502, b"<html><body>Bad gateway</body></html>", "PROVIDER_FAILED"),
    ("openai", 404, b"<html>nothing here</html>", "PROVIDER_FAILED"),
    ("openai", 302, b"", "PROVIDER_FAILED"),
    ("openai", 500, {"error": "model runner has stopped"}, "PROVIDER_FAILED"),
    ("anthropic", 401, anthropic_error("authentication_error", "bad"), "PROVIDER_CREDENTIAL_REFUSED"),
    ("anthropic", 402, anthropic_error("billing_error", "pay"), "PROVIDER_BILLING"),
    (
        "anthropic",
        400,
        anthropic_error("invalid_request_error", "Your credit balance is too low"),
        "PROVIDER_BILLING",
    ),
    (
        "anthropic",
        429,
        anthropic_error("rate_limit_error", "x", details={"error_code": "enforced_spend_limit_reached"}),
        "PROVIDER_BILLING",
    ),
    ("anthropic", 404, anthropic_error("not_found_error", "model: m"), "MODEL_NOT_FOUND"),
    (
        "anthropic",
        400,
        anthropic_error("invalid_request_error", "prompt is too long: 9 > 8"),
        "CONTEXT_LENGTH_EXCEEDED",
    ),
    ("anthropic", 413, anthropic_error("request_too_large", "x"), "CONTEXT_LENGTH_EXCEEDED"),
    ("anthropic", 400, anthropic_error("invalid_request_error", "tools.0: wrong"), "PROVIDER_REJECTED"),
    ("anthropic", 429, anthropic_error("rate_limit_error", "slow"), "PROVIDER_RATE_LIMITED"),
    ("anthropic", 529, anthropic_error("overloaded_error", "busy"), "PROVIDER_OVERLOADED"),
    ("anthropic", 500, anthropic_error("api_error", "oops"), "PROVIDER_FAILED"),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("provider", "status", "body", "reason"), STATUSES)
async def test_status_and_body_are_classed(
    server: FaultServer,
    client: ProviderService,
    provider: str,
    status: int,
    body: object,
    reason: str,
    streamed: bool,
) -> None:
    server.script = answer(body, status)
    error = await failure(client, attempt(provider), streamed)
    assert error.reason == reason
    assert error.metadata["http_status"] == str(status)
    assert error.metadata["phase"] == "before_first_byte"
    retryable = {"PROVIDER_RATE_LIMITED", "PROVIDER_OVERLOADED", "PROVIDER_FAILED"}
    assert error.metadata["retryable"] == ("true" if reason in retryable else "false")
    assert "<" not in error.message
    assert server.injected[f"status_{status}"] == len(server.requests) == 1  # never a retry


async def test_what_the_provider_says_is_passed_on_without_our_key(
    server: FaultServer, client: ProviderService
) -> None:
    body = openai_error(f"key {KEY} is\nbad " + "x" * 5000, "odd_code", param="messages[0]")
    server.script = answer({"error": {**body["error"], "param": "messages[0]"}}, 400)
    error = await failure(client, attempt("openai"), streamed=False)
    assert error.message.startswith("openai: key *** is bad xxx")
    assert len(error.message) < 600
    assert error.metadata["param"] == "messages[0]"
    assert error.metadata["provider_code"] == "odd_code"
    assert server.injected["status_400"] == 1


IN_FIVE_MINUTES = "the date in five minutes"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": IN_FIVE_MINUTES}, 300),
        ({"retry-after": "Mon, 01 Jan 2001 00:00:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
async def test_retry_after(
    server: FaultServer, client: ProviderService, headers: dict[str, str], expected: float | None
) -> None:
    if headers.get("retry-after") == IN_FIVE_MINUTES:
        date = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
        headers = {"retry-after": date}
    server.script = answer(openai_error("slow down"), 429, headers)
    error = await failure(client, attempt("openai"), streamed=False)
    assert server.injected["status_429"] == 1
    if expected is None:
        assert error.retry_after_s is None
    else:
        assert error.retry_after_s == pytest.approx(expected, abs=20)


@pytest.mark.parametrize("streamed", [False, True])
async def test_nobody_listens(streamed: bool) -> None:
    async with running_fault_server() as gone:
        url = gone.url
    async with running_providers(wall=settings("openai", url, **SHORT)) as client:
        asked = pb.Attempt(provider="wall", model="m", raw_body=BODY, wire_format=FORMATS["openai"])
        error = await failure(client, asked, streamed)
    assert error.reason == "PROVIDER_FAILED"
    assert error.metadata["phase"] == "before_first_byte"


@pytest.mark.parametrize("streamed", [False, True])
async def test_silence_before_the_first_byte(
    server: FaultServer, client: ProviderService, streamed: bool
) -> None:
    server.script = [Stall()]
    error = await failure(client, attempt("openai"), streamed)
    assert error.reason == "PROVIDER_TIMEOUT"
    assert error.metadata["phase"] == "before_first_byte"
    await asyncio.wait_for(server.hung_up.wait(), 1)
    assert server.injected["stall"] == 1


@pytest.mark.parametrize("raw", [True, False])
async def test_keep_alive_comments_do_not_stop_the_first_token_clock(
    server: FaultServer, client: ProviderService, raw: bool
) -> None:
    server.script = [Head(content_type="text/event-stream"), Endless(b": PROCESSING\n\n", 0.02)]
    error = await failure(client, attempt("openai", raw), streamed=True)
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_TIMEOUT", "before_first_byte")
    assert "first token" in error.message
    await asyncio.wait_for(server.hung_up.wait(), 1)
    assert server.injected["endless"] == 1


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_silence_in_mid_stream(
    server: FaultServer, client: ProviderService, provider: str, raw: bool
) -> None:
    server.script = [*stream(frames(provider, good_stream(provider)[:-3])), Stall()]
    if provider == "openai":
        server.script = [*stream(frames(provider, good_stream(provider)[:2], done=False)), Stall()]
    messages, error = await broken_stream(client, attempt(provider, raw))
    assert text_of(messages[1:]).startswith("Grüße, ")
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_TIMEOUT", "mid_stream")
    await asyncio.wait_for(server.hung_up.wait(), 1)
    assert server.injected["stall"] == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_slow_loris_meets_the_total_limit(
    server: FaultServer, client: ProviderService, streamed: bool
) -> None:
    head = stream(frames("openai", wire.OPENAI_TEXT[:2], done=False)) if streamed else [Head(), Send(b"{")]
    server.script = [*head, Endless(b" ", 0.02)]
    error = await failure(client, attempt("openai"), streamed)
    assert error.reason == "PROVIDER_TIMEOUT"
    assert "0.6 s" in error.message
    await asyncio.wait_for(server.hung_up.wait(), 1)
    assert server.injected["endless"] == 1


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("cut", ["clean end", "half a frame", "done without finish", "disconnect"])
async def test_a_stream_without_its_finish_is_an_error(
    server: FaultServer, client: ProviderService, provider: str, raw: bool, cut: str
) -> None:
    documents = wire.OPENAI_TEXT[:3] if provider == "openai" else wire.ANTHROPIC_EVENTS[:9]
    data = frames(provider, documents, done=cut == "done without finish")
    if cut == "half a frame":
        data += b'data: {"id":"x","choi'
    server.script = stream(data)
    if cut == "disconnect":
        server.script = [*server.script, Disconnect()]
    messages, error = await broken_stream(client, attempt(provider, raw))
    assert text_of(messages[1:]) == "Grüße, Welt 🌍"
    assert (error.reason, error.metadata["phase"]) == ("STREAM_TRUNCATED", "mid_stream")
    assert server.injected["disconnect"] == (1 if cut == "disconnect" else 0)
    assert len(server.requests) == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_disconnect_before_an_answer(
    server: FaultServer, client: ProviderService, streamed: bool
) -> None:
    server.script = [Disconnect()]
    error = await failure(client, attempt("openai"), streamed)
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_FAILED", "before_first_byte")
    assert server.injected["disconnect"] == 1


async def test_disconnect_in_a_body(server: FaultServer, client: ProviderService) -> None:
    server.script = [Head(headers={"Content-Length": "1000"}), Send(b'{"id":'), Disconnect()]
    error = await failure(client, attempt("openai"), streamed=False)
    assert error.reason in {"PROVIDER_FAILED", "PROVIDER_PROTOCOL"}
    assert server.injected["disconnect"] == 1


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_a_malformed_frame_is_never_skipped(
    server: FaultServer, client: ProviderService, provider: str, raw: bool
) -> None:
    documents = good_stream(provider)
    bad = sse(b'{"choices": [{"delta": {"content": ', done=False)
    server.script = stream(
        frames(provider, documents[:2], done=False) + bad + frames(provider, documents[2:])
    )
    _, error = await broken_stream(client, attempt(provider, raw))
    assert error.reason == "PROVIDER_PROTOCOL"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"<html>hello</html>",
        b"",
        b"null",
        b'{"id": 1',
        b'{"choices": []}',
        b'{"choices": [1]}',
        b'{"content": 5}',
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_an_answer_that_is_none(
    server: FaultServer, client: ProviderService, provider: str, raw: bool, body: bytes
) -> None:
    server.script = answer(body)
    error = await failure(client, attempt(provider, raw), streamed=False)
    assert error.reason == "PROVIDER_PROTOCOL"
    assert len(server.requests) == 1


@pytest.mark.parametrize("content_type", ["text/html", "application/json"])
async def test_no_stream_where_one_was_asked_for(
    server: FaultServer, client: ProviderService, content_type: str
) -> None:
    server.script = [Head(content_type=content_type), Send(b"{}")]
    error = await failure(client, attempt("openai"), streamed=True)
    assert error.reason == "PROVIDER_PROTOCOL"
    assert content_type in error.message


MID_STREAM_ERRORS = [
    (
        "openai",
        {"error": {"message": "m", "code": "tool_use_failed", "status_code": 400}},
        "PROVIDER_REJECTED",
    ),
    ("openai", {"error": {"message": "busy", "code": 503}, "id": "x", "choices": []}, "PROVIDER_OVERLOADED"),
    ("openai", {"error": {"message": "slow", "type": "rate_limit_error"}}, "PROVIDER_RATE_LIMITED"),
    ("openai", {"error": "the runner crashed"}, "PROVIDER_FAILED"),
    ("anthropic", anthropic_error("overloaded_error", "Overloaded"), "PROVIDER_OVERLOADED"),
    ("anthropic", anthropic_error("api_error", "oops"), "PROVIDER_FAILED"),
]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("position", [0, 9])
@pytest.mark.parametrize(("provider", "error_frame", "reason"), MID_STREAM_ERRORS)
async def test_an_error_after_status_200(
    server: FaultServer,
    client: ProviderService,
    provider: str,
    error_frame: dict,
    reason: str,
    position: int,
    raw: bool,
) -> None:
    documents = good_stream(provider)[: position if provider == "anthropic" else position // 3]
    data = frames(provider, documents, done=False) + b"event: error\n" + sse(error_frame)
    server.script = stream(data)
    messages, error = await broken_stream(client, attempt(provider, raw))
    assert error.reason == reason
    assert error.metadata["phase"] == ("mid_stream" if position else "before_first_byte")
    assert text_of(messages[1:]) == ("Grüße, Welt 🌍" if position else "")


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_error_body_with_status_200(
    server: FaultServer, client: ProviderService, streamed: bool
) -> None:
    server.script = answer({"error": {"message": "no credits", "code": 402}, "user_id": "u"})
    error = await failure(client, attempt("openai"), streamed)
    assert error.reason == "PROVIDER_BILLING"
    assert len(server.requests) == 1


async def test_an_oversized_frame_is_stopped(server: FaultServer, client: ProviderService) -> None:
    piece = b"x" * 2**20
    server.script = [*stream(b"data: "), Endless(piece)]
    asked = attempt("openai")
    asked.timeouts.first_token_ms = asked.timeouts.total_ms = 20_000
    error = await failure(client, asked, streamed=True)
    assert error.reason == "PROVIDER_PROTOCOL"
    assert "exceeds 16777216 bytes" in error.message
    await asyncio.wait_for(server.hung_up.wait(), 1)
    assert server.injected["endless"] == 1


async def test_a_gzip_bomb_is_stopped(server: FaultServer, client: ProviderService) -> None:
    bomb = gzip.compress(b"{" + b" " * (80 * 2**20), compresslevel=1)
    server.script = [Head(headers={"Content-Encoding": "gzip"}), Send(bomb)]
    asked = attempt("openai")
    asked.timeouts.total_ms = 20_000
    error = await failure(client, asked, streamed=False)
    assert error.reason == "PROVIDER_PROTOCOL"
    assert len(server.requests) == 1


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_content_filter_and_refusal_are_finishes(
    server: FaultServer, client: ProviderService, provider: str
) -> None:
    if provider == "openai":
        server.script = stream(
            frames(provider, [*wire.OPENAI_TEXT[:2], wire.openai_chunk({}, "content_filter")])
        )
    else:
        refused = {
            "type": "message_delta",
            "delta": {"stop_reason": "refusal"},
            "usage": {"output_tokens": 1},
        }
        server.script = stream(
            frames(provider, [*wire.ANTHROPIC_EVENTS[:10], refused, {"type": "message_stop"}])
        )
    *_, end = await stream_chat(client, attempt(provider))
    assert end.end.finish.reason == ("content_filter" if provider == "openai" else "refusal")


async def test_an_unknown_finish_is_not_a_stop(server: FaultServer, client: ProviderService) -> None:
    server.script = stream(frames("openai", [*wire.OPENAI_TEXT[:2], wire.openai_chunk({}, "surprise")]))
    *_, end = await stream_chat(client, attempt("openai"))
    assert (end.end.finish.reason, end.end.finish.raw) == ("unknown", "surprise")


@pytest.mark.parametrize("raw", [True, False])
async def test_broken_tool_arguments_are_passed_on(
    server: FaultServer, client: ProviderService, raw: bool
) -> None:
    documents = [*wire.OPENAI_TOOLS[:3], wire.openai_chunk({}, "tool_calls")]
    server.script = stream(frames("openai", documents))
    messages = await stream_chat(client, attempt("openai", raw))
    passed = "".join(
        message.raw_frame.data.decode() if raw else message.part_delta.arguments_json for message in messages
    )
    assert ('{\\"x\\": ' if raw else '{"x": ') in passed
    assert messages[-1].end.finish.reason == "tool_calls"


@pytest.mark.parametrize("when", ["before the first byte", "in mid-stream"])
async def test_a_cancelled_stream_closes_the_connection(
    server: FaultServer, client: ProviderService, when: str
) -> None:
    head = (
        [] if when == "before the first byte" else stream(frames("openai", wire.OPENAI_TEXT[:2], done=False))
    )
    server.script = [*head, Stall()]
    asked = attempt("openai")
    asked.timeouts.first_token_ms = asked.timeouts.idle_ms = asked.timeouts.total_ms = 20_000
    calls = client.stream_chat(pb.StreamChatRequest(attempt=asked), Call.internal(30))

    async def read() -> None:
        async for _ in calls:
            pass

    task = asyncio.create_task(read())
    await asyncio.wait_for(server.reached.wait(), 5)
    task.cancel()
    await asyncio.wait_for(server.hung_up.wait(), 1)
    assert server.injected["stall"] == 1
    # The next request gets a connection of its own.
    server.script = answer(wire.OPENAI_ANSWER)
    await chat(client, attempt("openai"))
    assert server.requests[0].connection != server.requests[1].connection


async def test_a_cancelled_answer_closes_the_connection(server: FaultServer, client: ProviderService) -> None:
    server.script = [Head(), Send(b"{"), Stall()]
    asked = attempt("openai")
    asked.timeouts.total_ms = 20_000
    task = asyncio.create_task(chat(client, asked))
    await asyncio.wait_for(server.reached.wait(), 5)
    task.cancel()
    await asyncio.wait_for(server.hung_up.wait(), 1)
    assert server.injected["stall"] == 1


async def test_after_its_finish_a_silent_stream_is_complete(
    server: FaultServer, client: ProviderService
) -> None:
    server.script = [*stream(frames("openai", wire.OPENAI_TEXT[:4], done=False)), Stall()]
    *_, end = await stream_chat(client, attempt("openai"))
    assert end.end.finish.reason == "stop"
    assert end.end.usage.estimated
    assert server.injected["stall"] == 1


def two_choices(*finished: int) -> list:
    def chunk(index: int, delta: dict, finish: str | None = None) -> dict:
        choice = {"index": index, "delta": delta, "finish_reason": finish}
        return {**wire.openai_chunk(), "choices": [choice]}

    documents = [chunk(0, {"content": "a"}), chunk(1, {"content": "b"})]
    return [*documents, *(chunk(index, {}, "stop") for index in finished)]


async def test_each_choice_must_finish(server: FaultServer, client: ProviderService) -> None:
    asked = attempt("openai")
    asked.raw_body = BODY[:-1] + b', "n": 2}'
    server.script = stream(frames("openai", two_choices(1)))
    _, error = await broken_stream(client, asked)
    assert error.reason == "STREAM_TRUNCATED"
    server.script = stream(frames("openai", two_choices(1, 0)))
    messages = await stream_chat(client, asked)
    assert messages[-1].end.finish.reason == "stop"
    assert text_of(messages[1:-1]) == "a"
    assert b'"b"' in messages[1].raw_frame.data


async def test_no_request_is_sent_by_a_stopped_service(server: FaultServer) -> None:
    async with running_providers(openai=settings("openai", server.url)) as client:
        pass
    error = await failure(client, attempt("openai"), streamed=False)
    assert error.reason == "UNAVAILABLE"
    assert server.requests == []
