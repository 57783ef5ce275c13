"""Every way a vendor whose format no caller speaks can misbehave. Each test shows that the fault happened."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from tests.support import gemini_wire
from tests.support.adapters import WIRES, typed
from tests.support.fault_server import (
    Disconnect,
    Endless,
    FaultServer,
    Head,
    Send,
    Stall,
    answer,
    running_fault_server,
)
from tests.support.matrix import cells
from tests.support.providers import KEY, chat, running_providers, settings, stream_chat, text_of

BOTH = ("gemini", "ollama")
# Long enough for a busy machine, short enough for a suite.
SHORT = {"first_token_s": 0.2, "idle_s": 0.2, "total_s": 0.6, "connect_s": 0.5}
STREAMED = pytest.mark.parametrize("streamed", [False, True])
RETRYABLE = {"PROVIDER_RATE_LIMITED", "PROVIDER_OVERLOADED", "PROVIDER_FAILED"}


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with running_fault_server() as server:
        yield server


@pytest.fixture
async def client(server: FaultServer) -> AsyncIterator[ProviderService]:
    configured = {name: settings(name, server.url, **SHORT) for name in BOTH}
    async with running_providers(**configured) as client:
        yield client


async def failure(client: ProviderService, adapter: str, streamed: bool, **limits: int) -> RpcError:
    asked = typed(adapter, timeouts=pb.Timeouts(**limits))
    with pytest.raises(RpcError) as caught:
        await (stream_chat if streamed else chat)(client, asked)
    error = caught.value
    assert KEY not in str(error)
    assert (error.metadata["provider"], error.metadata["model"]) == (adapter, "real-model")
    return error


async def broken_stream(
    client: ProviderService, adapter: str
) -> tuple[list[pb.StreamChatResponse], RpcError]:
    """Return what came before a stream broke, and how it broke."""
    messages: list[pb.StreamChatResponse] = []

    async def read() -> None:
        request = pb.StreamChatRequest(attempt=typed(adapter))
        async for message in client.stream_chat(request, Call.internal(30)):
            messages.append(message)

    with pytest.raises(RpcError) as caught:
        await read()
    assert not any(message.HasField("end") for message in messages)
    return messages, caught.value


KEY_INVALID = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
error = gemini_wire.error
STATUSES: list[tuple[int, str, int, object, str]] = [
    (
        19,
        "gemini",
        400,
        error(400, "INVALID_ARGUMENT", f"bad {KEY}", KEY_INVALID),
        "PROVIDER_CREDENTIAL_REFUSED",
    ),
    (19, "gemini", 400, error(400, "INVALID_ARGUMENT", "API key not valid."), "PROVIDER_CREDENTIAL_REFUSED"),
    (19, "gemini", 401, error(401, "UNAUTHENTICATED", "no"), "PROVIDER_CREDENTIAL_REFUSED"),
    (19, "gemini", 403, error(403, "PERMISSION_DENIED", "no"), "PROVIDER_CREDENTIAL_REFUSED"),
    (20, "gemini", 404, error(404, "NOT_FOUND", "models/x is not found"), "MODEL_NOT_FOUND"),
    (21, "gemini", 429, error(429, "RESOURCE_EXHAUSTED", "You exceeded your quota"), "PROVIDER_RATE_LIMITED"),
    (
        22,
        "gemini",
        429,
        error(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."),
        "PROVIDER_BILLING",
    ),
    (22, "gemini", 400, error(400, "FAILED_PRECONDITION", "Please enable billing"), "PROVIDER_BILLING"),
    (24, "gemini", 500, error(500, "INTERNAL", "oops"), "PROVIDER_FAILED"),
    (24, "gemini", 502, b"<html><body>Bad gateway</body></html>", "PROVIDER_FAILED"),
    (24, "gemini", 503, error(503, "UNAVAILABLE", "The model is overloaded."), "PROVIDER_OVERLOADED"),
    (24, "gemini", 529, b"", "PROVIDER_OVERLOADED"),
    (27, "gemini", 504, error(504, "DEADLINE_EXCEEDED", "late"), "PROVIDER_TIMEOUT"),
    (
        37,
        "gemini",
        400,
        error(
            400,
            "INVALID_ARGUMENT",
            "The input token count (9) exceeds the maximum number of tokens allowed (8).",
        ),
        "CONTEXT_LENGTH_EXCEEDED",
    ),
    (37, "gemini", 413, b"", "CONTEXT_LENGTH_EXCEEDED"),
    (39, "gemini", 404, b"<html>nothing here</html>", "PROVIDER_FAILED"),
    (12, "gemini", 400, error(400, "INVALID_ARGUMENT", "Unknown name"), "PROVIDER_REJECTED"),
    # Where a stream was asked for, the vendor may wrap its error in a list.
    (24, "gemini", 503, [error(503, "UNAVAILABLE", "The model is overloaded.")], "PROVIDER_OVERLOADED"),
    (19, "ollama", 401, {"error": "unauthorized"}, "PROVIDER_CREDENTIAL_REFUSED"),
    (20, "ollama", 404, {"error": 'model "x" not found, try pulling it first'}, "MODEL_NOT_FOUND"),
    (21, "ollama", 429, {"error": "too many requests"}, "PROVIDER_RATE_LIMITED"),
    (24, "ollama", 500, {"error": "model runner has unexpectedly stopped"}, "PROVIDER_FAILED"),
    (24, "ollama", 503, {"error": "server busy. maximum pending requests exceeded"}, "PROVIDER_OVERLOADED"),
    (37, "ollama", 400, {"error": "the input length exceeds the context length"}, "CONTEXT_LENGTH_EXCEEDED"),
    (39, "ollama", 502, b"<html>Bad gateway</html>", "PROVIDER_FAILED"),
    (12, "ollama", 400, {"error": '"x" does not support tools'}, "PROVIDER_REJECTED"),
]


@STREAMED
@pytest.mark.parametrize(
    ("adapter", "status", "body", "reason"),
    [
        pytest.param(
            *case[1:],
            id=f"{case[1]}-{case[2]}-{case[4]}-{index}",
            marks=pytest.mark.matrix(row=case[0], adapter=case[1]),
        )
        for index, case in enumerate(STATUSES)
    ],
)
async def test_status_and_body_are_classed(
    server: FaultServer,
    client: ProviderService,
    adapter: str,
    status: int,
    body: object,
    reason: str,
    streamed: bool,
) -> None:
    server.script = answer(body, status)
    error = await failure(client, adapter, streamed)
    assert error.reason == reason
    assert error.metadata["http_status"] == str(status)
    assert error.metadata["phase"] == "before_first_byte"
    assert error.metadata["retryable"] == ("true" if reason in RETRYABLE else "false")
    assert "<" not in error.message
    assert server.injected[f"status_{status}"] == len(server.requests) == 1  # never a retry


# A date is made when the test runs.
IN_FIVE_MINUTES = "in five minutes"


def limited(*details: dict[str, Any]) -> dict[str, Any]:
    return error(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota", *details)


@pytest.mark.parametrize("adapter", cells(21, "gemini"))
@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (limited(gemini_wire.retry_info("46s")), {}, 46),
        (limited({"@type": "x"}, gemini_wire.retry_info("46.837906s")), {}, 46.837906),
        (limited(gemini_wire.retry_info("36000s")), {}, 36000),
        (limited(gemini_wire.retry_info("46s")), {"retry-after": "7"}, 7),
        (limited(gemini_wire.retry_info("soon")), {}, None),
        (limited(), {"retry-after-ms": "1500"}, 1.5),
        (
            limited(),
            {"retry-after": IN_FIVE_MINUTES},
            300,
        ),
        (limited(), {}, None),
    ],
)
async def test_the_delay_in_the_body(
    server: FaultServer,
    client: ProviderService,
    adapter: str,
    body: object,
    headers: dict[str, str],
    expected: float | None,
) -> None:
    if headers.get("retry-after") == IN_FIVE_MINUTES:
        headers = {"retry-after": format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)}
    server.script = answer(body, 429, headers)
    error = await failure(client, adapter, streamed=False)
    assert server.injected["status_429"] == 1
    assert error.reason == "PROVIDER_RATE_LIMITED"
    if expected is None:
        assert error.retry_after_s is None
    else:
        assert error.retry_after_s == pytest.approx(expected, abs=20 if expected == 300 else 0.001)


@STREAMED
@pytest.mark.parametrize("adapter", cells(26, *BOTH))
async def test_nobody_listens(adapter: str, streamed: bool) -> None:
    async with running_fault_server() as gone:
        url = gone.url
    async with running_providers(**{adapter: settings(adapter, url, **SHORT)}) as client:
        error = await failure(client, adapter, streamed)
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_FAILED", "before_first_byte")


@STREAMED
@pytest.mark.parametrize("adapter", cells(27, *BOTH))
async def test_silence_before_the_first_byte(
    server: FaultServer, client: ProviderService, adapter: str, streamed: bool
) -> None:
    server.script = [Stall()]
    error = await failure(client, adapter, streamed)
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_TIMEOUT", "before_first_byte")
    await asyncio.wait_for(server.hung_up.wait(), 1)
    assert server.injected["stall"] == 1


@pytest.mark.parametrize("adapter", BOTH)
async def test_empty_frames_do_not_stop_the_first_token_clock(
    server: FaultServer, client: ProviderService, adapter: str
) -> None:
    wire = WIRES[adapter]
    empty = b": ping\n\n" if adapter == "gemini" else b"\n"
    server.script = [Head(content_type=wire.content_type), Endless(empty, 0.02)]
    error = await failure(client, adapter, streamed=True)
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_TIMEOUT", "before_first_byte")
    assert "first token" in error.message
    assert server.injected["endless"] == 1


@pytest.mark.parametrize("adapter", cells(28, *BOTH))
async def test_silence_in_mid_stream(server: FaultServer, client: ProviderService, adapter: str) -> None:
    wire = WIRES[adapter]
    server.script = [*wire.stream(wire.frames(wire.chunks[:3])), Stall()]
    messages, error = await broken_stream(client, adapter)
    assert text_of(messages) == "Grüße, "
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_TIMEOUT", "mid_stream")
    await asyncio.wait_for(server.hung_up.wait(), 1)
    assert server.injected["stall"] == 1


@STREAMED
@pytest.mark.parametrize("adapter", cells(29, *BOTH))
async def test_slow_loris_meets_the_total_limit(
    server: FaultServer, client: ProviderService, adapter: str, streamed: bool
) -> None:
    wire = WIRES[adapter]
    head = wire.stream(wire.frames(wire.chunks[:3])) if streamed else [Head(), Send(b"{")]
    server.script = [*head, Endless(b" ", 0.02)]
    error = await failure(client, adapter, streamed)
    assert error.reason == "PROVIDER_TIMEOUT"
    assert "0.6 s" in error.message
    await asyncio.wait_for(server.hung_up.wait(), 1)
    assert server.injected["endless"] == 1


@pytest.mark.parametrize("adapter", [*cells(30, *BOTH), *cells(31, *BOTH)])
@pytest.mark.parametrize("cut", ["clean end", "half a frame", "disconnect"])
async def test_a_stream_without_its_finish_is_an_error(
    server: FaultServer, client: ProviderService, adapter: str, cut: str
) -> None:
    wire = WIRES[adapter]
    data = wire.frames(wire.chunks[:-1]) + (wire.half_frame if cut == "half a frame" else b"")
    server.script = [*wire.stream(data), *([Disconnect()] if cut == "disconnect" else [])]
    messages, error = await broken_stream(client, adapter)
    assert text_of(messages) == "Grüße, Welt 🌍"
    assert (error.reason, error.metadata["phase"]) == ("STREAM_TRUNCATED", "mid_stream")
    assert server.injected["disconnect"] == (1 if cut == "disconnect" else 0)
    assert len(server.requests) == 1


@STREAMED
@pytest.mark.parametrize("adapter", cells(25, *BOTH))
async def test_disconnect_before_an_answer(
    server: FaultServer, client: ProviderService, adapter: str, streamed: bool
) -> None:
    server.script = [Disconnect()]
    error = await failure(client, adapter, streamed)
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_FAILED", "before_first_byte")
    assert server.injected["disconnect"] == len(server.requests) == 1  # asked once


@pytest.mark.parametrize("adapter", cells(32, *BOTH))
async def test_a_malformed_frame_is_never_skipped(
    server: FaultServer, client: ProviderService, adapter: str
) -> None:
    wire = WIRES[adapter]
    server.script = wire.stream(wire.frames(wire.chunks[:3]) + wire.bad_frame + wire.frames(wire.chunks[3:]))
    messages, error = await broken_stream(client, adapter)
    assert text_of(messages) == "Grüße, "
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_PROTOCOL", "mid_stream")
    assert len(server.requests) == 1


NONE_ANSWERS = [
    b"<html>hello</html>",
    b"",
    b"null",
    b'{"candidates": [',
    b'{"message": 5}',
    b"{}",
    b"\xff\xfe",
]


@pytest.mark.parametrize("adapter", cells(32, *BOTH))
@pytest.mark.parametrize("body", NONE_ANSWERS)
async def test_an_answer_that_is_none(
    server: FaultServer, client: ProviderService, adapter: str, body: bytes
) -> None:
    server.script = answer(body)
    error = await failure(client, adapter, streamed=False)
    assert error.reason == "PROVIDER_PROTOCOL"
    assert len(server.requests) == 1


MID_STREAM_ERRORS: list[tuple[str, Any, str]] = [
    ("gemini", error(503, "UNAVAILABLE", "overloaded"), "PROVIDER_OVERLOADED"),
    (
        "gemini",
        error(429, "RESOURCE_EXHAUSTED", "slow", gemini_wire.retry_info("3s")),
        "PROVIDER_RATE_LIMITED",
    ),
    ("gemini", error(500, "INTERNAL", "oops"), "PROVIDER_FAILED"),
    # A line with nothing but the error, and no line that says it is done.
    ("ollama", {"error": "an error was encountered while running the model"}, "PROVIDER_FAILED"),
    ("ollama", {"error": "the prompt exceeds the available context size"}, "CONTEXT_LENGTH_EXCEEDED"),
]


@pytest.mark.parametrize("position", [0, 4])
@pytest.mark.parametrize(
    ("adapter", "frame", "reason"),
    [pytest.param(*case, marks=pytest.mark.matrix(row=33, adapter=case[0])) for case in MID_STREAM_ERRORS],
)
async def test_an_error_after_status_200(
    server: FaultServer, client: ProviderService, adapter: str, frame: Any, reason: str, position: int
) -> None:
    wire = WIRES[adapter]
    server.script = wire.stream(wire.frames([*wire.chunks[:position], frame]))
    messages, error = await broken_stream(client, adapter)
    assert error.reason == reason
    assert error.metadata["phase"] == ("mid_stream" if position else "before_first_byte")
    assert text_of(messages) == ("Grüße, Welt 🌍" if position else "")
    if reason == "PROVIDER_RATE_LIMITED":
        assert error.retry_after_s == 3


@STREAMED
@pytest.mark.parametrize(("adapter", "frame", "reason"), MID_STREAM_ERRORS)
async def test_an_error_body_with_status_200(
    server: FaultServer, client: ProviderService, adapter: str, frame: Any, reason: str, streamed: bool
) -> None:
    server.script = answer(frame)
    error = await failure(client, adapter, streamed)
    assert error.reason == reason
    assert len(server.requests) == 1


@STREAMED
@pytest.mark.parametrize("adapter", cells(35, "gemini"))
async def test_a_blocked_prompt_has_no_candidates(
    server: FaultServer, client: ProviderService, adapter: str, streamed: bool
) -> None:
    wire = WIRES[adapter]
    server.script = (
        wire.stream(wire.frames([gemini_wire.BLOCKED])) if streamed else answer(gemini_wire.BLOCKED)
    )
    error = await failure(client, adapter, streamed)
    assert (error.reason, error.metadata["provider_code"]) == ("CONTENT_FILTERED", "PROHIBITED_CONTENT")
    assert error.metadata["phase"] == "before_first_byte"
    assert error.metadata["retryable"] == "false"
    assert len(server.requests) == 1


@pytest.mark.parametrize("adapter", cells(35, "gemini"))
async def test_content_filtered_in_mid_stream_is_a_finish(
    server: FaultServer, client: ProviderService, adapter: str
) -> None:
    wire = WIRES[adapter]
    filtered = gemini_wire.chunk(finish="SAFETY")
    server.script = wire.stream(wire.frames([*wire.chunks[:3], filtered]))
    *messages, end = await stream_chat(client, typed(adapter))
    assert text_of(messages) == "Grüße, "
    assert (end.end.finish.reason, end.end.finish.raw) == ("content_filter", "SAFETY")


@pytest.mark.parametrize("adapter", cells(38, *BOTH))
async def test_an_oversized_frame_is_stopped(
    server: FaultServer, client: ProviderService, adapter: str
) -> None:
    wire = WIRES[adapter]
    server.script = [*wire.stream(wire.large_frame), Endless(b"x" * 2**20)]
    error = await failure(client, adapter, True, first_token_ms=20_000, total_ms=20_000)
    assert error.reason == "PROVIDER_PROTOCOL"
    assert "exceeds 16777216 bytes" in error.message
    await asyncio.wait_for(server.hung_up.wait(), 1)
    assert server.injected["endless"] == 1


@pytest.mark.parametrize("adapter", cells(39, *BOTH))
async def test_gzip(server: FaultServer, client: ProviderService, adapter: str) -> None:
    body = gzip.compress(json.dumps(WIRES[adapter].answer).encode())
    server.script = answer(body, headers={"Content-Encoding": "gzip"})
    assert (await chat(client, typed(adapter))).finish.reason == "stop"


@pytest.mark.parametrize("adapter", cells(39, *BOTH))
@pytest.mark.parametrize("content_type", ["text/html", "application/json"])
async def test_no_stream_where_one_was_asked_for(
    server: FaultServer, client: ProviderService, adapter: str, content_type: str
) -> None:
    server.script = [Head(content_type=content_type), Send(b"{}")]
    error = await failure(client, adapter, streamed=True)
    assert error.reason == "PROVIDER_PROTOCOL"
    assert content_type in error.message


@pytest.mark.parametrize("adapter", cells(40, *BOTH))
@pytest.mark.parametrize("when", ["before the first byte", "in mid-stream"])
async def test_a_cancelled_stream_closes_the_connection(
    server: FaultServer, client: ProviderService, adapter: str, when: str
) -> None:
    wire = WIRES[adapter]
    head = [] if when == "before the first byte" else wire.stream(wire.frames(wire.chunks[:3]))
    server.script = [*head, Stall()]
    limits = pb.Timeouts(first_token_ms=20_000, idle_ms=20_000, total_ms=20_000)
    request = pb.StreamChatRequest(attempt=typed(adapter, timeouts=limits))

    async def read() -> None:
        async for _ in client.stream_chat(request, Call.internal(30)):
            pass

    task = asyncio.create_task(read())
    await asyncio.wait_for(server.reached.wait(), 5)
    task.cancel()
    await asyncio.wait_for(server.hung_up.wait(), 1)
    assert server.injected["stall"] == 1
    assert len(server.requests) == 1
