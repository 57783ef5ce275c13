"""What OpenAI and Anthropic say when something is wrong. What all share is in tests/integration/matrix."""

from __future__ import annotations

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
    FaultServer,
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
    ("openai", 409, openai_error("changed meanwhile"), "PROVIDER_FAILED"),
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
    retryable = reason in {"PROVIDER_RATE_LIMITED", "PROVIDER_OVERLOADED", "PROVIDER_FAILED"}
    retryable = retryable and status not in (404, 409)
    assert error.metadata["retryable"] == ("true" if retryable else "false")
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


async def test_a_choice_that_failed_is_no_answer(server: FaultServer, client: ProviderService) -> None:
    error = {"code": 502, "message": "the upstream hung up"}
    choice = {"index": 0, "finish_reason": "error", "error": error, "message": {"content": ""}}
    server.script = answer({"id": "x", "model": "m", "choices": [choice]})
    told = await failure(client, attempt("openai"), streamed=False)
    assert (told.reason, told.metadata["http_status"]) == ("PROVIDER_FAILED", "502")
    assert "the upstream hung up" in told.message
    assert len(server.requests) == 1


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "translated"])
@pytest.mark.parametrize(
    "told", [{"code": 502, "message": "the upstream hung up"}, None], ids=["told", "untold"]
)
async def test_a_streamed_choice_that_failed_is_no_end(
    server: FaultServer, client: ProviderService, told: dict | None, raw: bool
) -> None:
    said, failed = wire.openai_chunk(), wire.openai_chunk()
    said["choices"] = [{"index": 0, "delta": {"content": "half"}}]
    failed["choices"] = [
        {"index": 0, "delta": {"content": ""}, "finish_reason": "error"} | ({"error": told} if told else {})
    ]
    server.script = stream(frames("openai", [said, failed]))
    messages, error = await broken_stream(client, attempt("openai", raw))
    assert text_of(messages[1:]) == "half"
    assert error.reason == "PROVIDER_FAILED"
    assert ("hung up" if told else "did not say which") in error.message


async def test_no_request_is_sent_by_a_stopped_service(server: FaultServer) -> None:
    async with running_providers(openai=settings("openai", server.url)) as client:
        pass
    error = await failure(client, attempt("openai"), streamed=False)
    assert error.reason == "UNAVAILABLE"
    assert server.requests == []
