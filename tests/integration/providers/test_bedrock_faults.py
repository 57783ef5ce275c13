"""Every way Bedrock can misbehave, over real HTTP. Each test shows that the fault happened."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import pytest
from botocore.exceptions import ClientError, EventStreamError
from omnihub.common.v1.chat_pb2 import Part
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from services.providers.settings import ProviderSettings
from tests.support import botocore_judge, event_stream, wire_bedrock
from tests.support.bedrock import CLAUDE, TITAN, cell, cells, typed
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
from tests.support.providers import (
    KEY,
    KEY_ID,
    REGION,
    chat,
    running_providers,
    settings,
    stream_chat,
    text_of,
)

# Long enough for a busy machine, short enough for a suite.
SHORT = {"first_token_s": 0.2, "idle_s": 0.2, "total_s": 0.6, "connect_s": 0.5}
TEXT = wire_bedrock.TEXT
HALF = wire_bedrock.PLAIN[:3]


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with running_fault_server() as server:
        yield server


@pytest.fixture
async def client(server: FaultServer) -> AsyncIterator[ProviderService]:
    async with running_providers(bedrock=settings("bedrock", server.url, **SHORT)) as client:
        yield client


async def failure(client: ProviderService, streamed: bool, asked: pb.Attempt | None = None) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await (stream_chat if streamed else chat)(client, asked or typed())
    error = caught.value
    assert KEY not in str(error)
    assert (error.metadata["provider"], error.metadata["model"]) == ("bedrock", (asked or typed()).model)
    return error


async def broken_stream(
    client: ProviderService, asked: pb.Attempt | None = None
) -> tuple[list[pb.StreamChatResponse], RpcError]:
    """Return what came before a stream broke, and how it broke."""
    messages: list[pb.StreamChatResponse] = []

    async def read() -> None:
        request = pb.StreamChatRequest(attempt=asked or typed())
        async for message in client.stream_chat(request, Call.internal(30)):
            messages.append(message)

    with pytest.raises(RpcError) as caught:
        await read()
    assert not any(message.HasField("end") for message in messages)
    return messages, caught.value


LONG = "The model returned the following errors: Input is too long for requested model."
INVALID_MODEL = "The provided model identifier is invalid."
ON_DEMAND = "Invocation of model ID x with on-demand throughput isn\u2019t supported."
QUOTA = "ServiceQuotaExceededException"


def case(status: int, name: str, message: str, reason: str, *rows: int) -> Any:
    """Return one row of the table, and the cells of the matrix it fills."""
    return pytest.param(status, name, message, reason, marks=cells(*rows))


REFUSED = "PROVIDER_CREDENTIAL_REFUSED"
STATUSES = [
    case(403, "AccessDeniedException", "no access", REFUSED, 19),
    case(403, "UnrecognizedClientException", "bad token", REFUSED, 19),
    case(403, "InvalidSignatureException", "no match", REFUSED, 19),
    case(403, "ExpiredTokenException", "expired", REFUSED, 19),
    case(401, "", "Unauthorized", REFUSED, 19),
    case(400, "ValidationException", INVALID_MODEL, "MODEL_NOT_FOUND", 20),
    case(400, "ValidationException", ON_DEMAND, "MODEL_NOT_FOUND", 20),
    case(404, "ResourceNotFoundException", "gone", "MODEL_NOT_FOUND", 20),
    case(400, "ValidationException", LONG, "CONTEXT_LENGTH_EXCEEDED", 37),
    case(413, "", "too large", "CONTEXT_LENGTH_EXCEEDED", 37),
    case(400, "ValidationException", "messages: bad", "PROVIDER_REJECTED"),
    case(400, "ValidationException", "blocked by our content filters", "CONTENT_FILTERED", 35),
    case(400, QUOTA, "your quota", "PROVIDER_BILLING", 22),
    case(408, "ModelTimeoutException", "too slow", "PROVIDER_TIMEOUT"),
    case(424, "ModelErrorException", "the model failed", "PROVIDER_FAILED", 24, 25),
    case(429, "ThrottlingException", "slow down", "PROVIDER_RATE_LIMITED", 21, 22),
    case(429, "ModelNotReadyException", "loading", "PROVIDER_OVERLOADED", 24),
    case(500, "InternalServerException", "oops", "PROVIDER_FAILED", 24, 25),
    case(503, "ServiceUnavailableException", "busy", "PROVIDER_OVERLOADED", 24, 25),
]


@pytest.mark.parametrize("where", ["header", "body"])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("status", "name", "message", "reason"), STATUSES)
async def test_status_and_name_are_classed(
    server: FaultServer,
    client: ProviderService,
    status: int,
    name: str,
    message: str,
    reason: str,
    streamed: bool,
    where: str,
) -> None:
    if where == "header":
        server.script = answer({"message": message}, status, {"x-amzn-ErrorType": f"{name}:http://x/"})
    else:
        server.script = answer({"__type": f"com.amazon.coral#{name}", "Message": message}, status)
    error = await failure(client, streamed)
    assert error.reason == reason
    assert message in error.message
    assert error.metadata["http_status"] == str(status)
    assert error.metadata["phase"] == "before_first_byte"
    assert error.metadata.get("provider_code", "") == name
    retryable = {"PROVIDER_RATE_LIMITED", "PROVIDER_OVERLOADED", "PROVIDER_FAILED"}
    assert error.metadata["retryable"] == ("true" if reason in retryable else "false")
    assert server.injected[f"status_{status}"] == len(server.requests) == 1  # never a retry


@cell(21)
@pytest.mark.parametrize(("header", "seconds"), [("7", 7), ("soon", None)])
async def test_retry_after(
    server: FaultServer, client: ProviderService, header: str, seconds: float | None
) -> None:
    named = {"x-amzn-ErrorType": "ThrottlingException", "retry-after": header}
    server.script = answer({"message": "slow down"}, 429, named)
    error = await failure(client, streamed=False)
    assert error.retry_after_s == seconds
    assert server.injected["status_429"] == 1


async def test_the_vendors_client_reads_the_same_error(server: FaultServer) -> None:
    sdk = botocore_judge.client("bedrock-runtime", server.url, REGION, KEY_ID, KEY)
    asked = {"modelId": CLAUDE, "messages": [{"role": "user", "content": [{"text": "hi"}]}]}
    for headers in ({"x-amzn-ErrorType": "ModelNotReadyException:http://x/"}, {}):
        body = (
            {"message": "loading"}
            if headers
            else {"__type": "a#ModelNotReadyException", "message": "loading"}
        )
        server.script = answer(body, 429, headers)
        with pytest.raises(ClientError) as caught:
            await asyncio.to_thread(lambda: sdk.converse(**asked))
        assert caught.value.response["Error"]["Code"] == "ModelNotReadyException"
    broken = event_stream.exception("throttlingException", {"message": "slow"})
    server.script = event_stream.event_stream(event_stream.frames(*HALF) + broken)

    def read() -> list[Any]:
        with closing(sdk.converse_stream(**asked)["stream"]) as events:
            return list(events)

    with pytest.raises(EventStreamError, match="throttlingException"):
        await asyncio.to_thread(read)
    sdk.close()
    assert server.injected["status_429"] == 2


@cell(39)
@pytest.mark.parametrize("status", [502, 403])
async def test_a_page_in_place_of_an_error(server: FaultServer, client: ProviderService, status: int) -> None:
    server.script = answer(b"<html><body>Bad gateway</body></html>", status)
    error = await failure(client, streamed=True)
    assert error.reason == ("PROVIDER_FAILED" if status == 502 else "PROVIDER_CREDENTIAL_REFUSED")
    assert "<" not in error.message
    assert server.injected[f"status_{status}"] == 1


@cell(19)
async def test_what_was_signed_is_not_repeated(server: FaultServer) -> None:
    token = "temporary-session-token"
    configured = settings("bedrock", server.url).model_dump(exclude_unset=True) | {"session_token": token}
    said = f"The Canonical String should have been\n'POST\nx-amz-security-token:{token}\n{KEY}'"
    server.script = answer({"message": said}, 403, {"x-amzn-ErrorType": "InvalidSignatureException"})
    async with running_providers(bedrock=ProviderSettings.model_validate(configured)) as client:
        error = await failure(client, streamed=False)
    assert token not in error.message
    assert "x-amz-security-token:***" in error.message
    assert server.injected["status_403"] == 1


async def test_an_odd_model_is_not_asked_for(server: FaultServer, client: ProviderService) -> None:
    for model in ("..", "a b", "a?b=c", "модель"):
        asked = typed(model)
        with pytest.raises(RpcError, match="is no id of a model") as caught:
            await chat(client, asked)
        assert caught.value.reason == "MODEL_NOT_FOUND"
    assert server.requests == []


@cell(26)
@pytest.mark.parametrize("streamed", [False, True])
async def test_nobody_listens(streamed: bool) -> None:
    async with running_fault_server() as gone:
        url = gone.url
    async with running_providers(bedrock=settings("bedrock", url, **SHORT)) as client:
        error = await failure(client, streamed)
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_FAILED", "before_first_byte")


@cell(27)
@pytest.mark.parametrize("head", [[], [Head(content_type=event_stream.CONTENT_TYPE)]])
async def test_silence_before_the_first_byte(
    server: FaultServer, client: ProviderService, head: list[Any]
) -> None:
    server.script = [*head, Stall()]
    error = await failure(client, streamed=True)
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_TIMEOUT", "before_first_byte")
    await asyncio.wait_for(server.hung_up.wait(), 10)
    assert server.injected["stall"] == 1


@cell(28)
async def test_silence_in_mid_stream(server: FaultServer, client: ProviderService) -> None:
    server.script = [*event_stream.event_stream(event_stream.frames(*HALF)), Stall()]
    messages, error = await broken_stream(client)
    assert text_of(messages[1:]) == TEXT
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_TIMEOUT", "mid_stream")
    await asyncio.wait_for(server.hung_up.wait(), 10)
    assert server.injected["stall"] == 1


@cell(29)
@pytest.mark.parametrize("streamed", [False, True])
async def test_slow_loris_meets_the_total_limit(
    server: FaultServer, client: ProviderService, streamed: bool
) -> None:
    frame = event_stream.event("x", b"x" * 1000)
    head = (
        event_stream.event_stream(event_stream.frames(*HALF), frame[:20])
        if streamed
        else [Head(), Send(b"{")]
    )
    server.script = [*head, Endless(b"x", 0.02)]
    error = await failure(client, streamed)
    assert error.reason == "PROVIDER_TIMEOUT"
    assert "0.6 s" in error.message
    await asyncio.wait_for(server.hung_up.wait(), 10)
    assert server.injected["endless"] == 1


@cell(30, 31)
@pytest.mark.parametrize("model", [CLAUDE, TITAN])
@pytest.mark.parametrize("cut", ["clean end", "half a frame", "disconnect"])
async def test_a_stream_without_its_finish_is_an_error(
    server: FaultServer, client: ProviderService, cut: str, model: str
) -> None:
    events = HALF if model == CLAUDE else wire_bedrock.TITAN_EVENTS[:1]
    data = event_stream.frames(*events)
    if cut == "half a frame":
        data += event_stream.frames(wire_bedrock.stop("end_turn"))[:-3]
    server.script = event_stream.event_stream(data)
    if cut == "disconnect":
        server.script = [*server.script, Disconnect()]
    messages, error = await broken_stream(client, typed(model))
    assert text_of(messages[1:]) == (TEXT if model == CLAUDE else "Grüße, ")
    assert (error.reason, error.metadata["phase"]) == ("STREAM_TRUNCATED", "mid_stream")
    assert server.injected["disconnect"] == (1 if cut == "disconnect" else 0)
    assert len(server.requests) == 1


@cell(15, 30)
@pytest.mark.parametrize("rest", [b"", event_stream.frames(wire_bedrock.METADATA)[:-3], "exception", "stall"])
async def test_after_its_finish_only_the_usage_is_missing(
    server: FaultServer, client: ProviderService, rest: bytes | str
) -> None:
    tail = rest if isinstance(rest, bytes) else b""
    if rest == "exception":
        tail = event_stream.exception("internalServerException", {"message": "late"})
    server.script = event_stream.event_stream(event_stream.frames(*wire_bedrock.PLAIN[:-1]) + tail)
    if rest == "stall":
        server.script = [*server.script, Stall()]
    *_, end = await stream_chat(client, typed())
    assert end.end.finish.reason == "stop"
    assert end.end.usage.estimated
    assert server.injected["stall"] == (1 if rest == "stall" else 0)


@pytest.mark.parametrize("streamed", [False, True])
@cell(31)
async def test_disconnect_before_an_answer(
    server: FaultServer, client: ProviderService, streamed: bool
) -> None:
    server.script = [Disconnect()]
    error = await failure(client, streamed)
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_FAILED", "before_first_byte")
    assert server.injected["disconnect"] == 1


TEXT_FRAME = event_stream.frames(wire_bedrock.delta(0, text="more"))
BROKEN = {
    "checksum of the message": event_stream.with_bad_message_checksum(TEXT_FRAME),
    "checksum of the prelude": event_stream.with_bad_prelude(TEXT_FRAME),
    "server-sent events": b"data: {}\n\ndata: {}\n\n",
    "payload that is no JSON": event_stream.event("contentBlockDelta", b'{"contentBlockIndex": 0, "del'),
    "payload of another shape": event_stream.event("contentBlockDelta", b'{"contentBlockIndex": "a"}'),
    "arguments without a call": event_stream.frames(wire_bedrock.delta(7, toolUse={"input": "{}"})),
}


@cell(32, 41)
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("together", [True, False])
async def test_a_malformed_frame_is_never_skipped(
    server: FaultServer, client: ProviderService, broken: bytes, together: bool
) -> None:
    before, after = event_stream.frames(*HALF), event_stream.frames(*wire_bedrock.PLAIN[3:])
    pieces = [before + broken + after] if together else [before, broken, after]
    server.script = event_stream.event_stream(*pieces)
    messages, error = await broken_stream(client)
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_PROTOCOL", "mid_stream")
    assert text_of(messages[1:]) == TEXT  # What came before it is kept.
    assert len(server.requests) == 1


@cell(32, 41)
async def test_a_malformed_chunk_of_titan(server: FaultServer, client: ProviderService) -> None:
    for payload in ({"bytes": "*"}, {}, {"bytes": "e30x"}):
        server.script = event_stream.event_stream(event_stream.frames(("chunk", payload)))
        _, error = await broken_stream(client, typed(TITAN))
        assert error.reason == "PROVIDER_PROTOCOL"
    assert len(server.requests) == 3


@cell(32, 34, 39)
@pytest.mark.parametrize(
    "body",
    [
        b"<html>hello</html>",
        b"",
        b"null",
        b'{"output": {',
        b"{}",
        b'{"output": {"message": {}}, "stopReason": "end_turn"}',
        b'{"output": {"message": {"content": [1]}}, "stopReason": "end_turn"}',
        b'{"output": {"message": {"content": []}}}',
        b'{"output": {"message": {"content": []}}, "stopReason": "end_turn", "usage": {}}',
        b'{"Output": {"__type": "com.amazon.coral.service#UnknownOperationException"}}',
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("model", [CLAUDE, TITAN])
async def test_an_answer_that_is_none(
    server: FaultServer, client: ProviderService, body: bytes, model: str
) -> None:
    server.script = answer(body)
    error = await failure(client, False, typed(model))
    assert error.reason == "PROVIDER_PROTOCOL"
    assert len(server.requests) == 1


@cell(39)
@pytest.mark.parametrize("content_type", ["text/html", "application/json"])
async def test_no_stream_where_one_was_asked_for(
    server: FaultServer, client: ProviderService, content_type: str
) -> None:
    server.script = [Head(content_type=content_type), Send(b"{}")]
    error = await failure(client, streamed=True)
    assert error.reason == "PROVIDER_PROTOCOL"
    assert content_type in error.message
    assert len(server.requests) == 1


EXCEPTIONS = [
    ("internalServerException", "PROVIDER_FAILED", "500"),
    ("modelStreamErrorException", "PROVIDER_FAILED", "424"),
    ("modelTimeoutException", "PROVIDER_TIMEOUT", "408"),
    ("validationException", "PROVIDER_REJECTED", "400"),
    ("throttlingException", "PROVIDER_RATE_LIMITED", "429"),
    ("serviceUnavailableException", "PROVIDER_OVERLOADED", "503"),
    ("somethingNewException", "PROVIDER_FAILED", "500"),
]


@cell(33, 41)
@pytest.mark.parametrize("model", [CLAUDE, TITAN])
@pytest.mark.parametrize("began", [True, False])
@pytest.mark.parametrize(("kind", "reason", "status"), EXCEPTIONS)
async def test_an_exception_after_status_200(
    server: FaultServer,
    client: ProviderService,
    kind: str,
    reason: str,
    status: str,
    began: bool,
    model: str,
) -> None:
    events = HALF if model == CLAUDE else wire_bedrock.TITAN_EVENTS[:1]
    before = event_stream.frames(*events) if began else b""
    broken = event_stream.exception(kind, {"message": "m", "originalMessage": "of the model"})
    server.script = event_stream.event_stream(before + broken)
    messages, error = await broken_stream(client, typed(model))
    assert (error.reason, error.metadata["http_status"]) == (reason, status)
    assert error.metadata["provider_code"] == kind[0].upper() + kind[1:]
    assert "m: of the model" in error.message
    assert error.metadata["phase"] == ("mid_stream" if began else "before_first_byte")
    assert bool(text_of(messages[1:])) is began
    assert len(server.requests) == 1


@cell(33, 37, 41)
async def test_an_exception_is_also_classed_by_its_message(
    server: FaultServer, client: ProviderService
) -> None:
    server.script = event_stream.event_stream(
        event_stream.exception("validationException", {"message": LONG})
    )
    _, error = await broken_stream(client)
    assert error.reason == "CONTEXT_LENGTH_EXCEEDED"
    server.script = event_stream.event_stream(event_stream.error("InternalFailure", "an unmodelled error"))
    _, error = await broken_stream(client)
    assert (error.reason, error.metadata["provider_code"]) == ("PROVIDER_FAILED", "InternalFailure")
    assert "an unmodelled error" in error.message
    server.script = event_stream.event_stream(event_stream.exception("odd", {"message": 5}))
    _, error = await broken_stream(client)
    assert (error.reason, "ended the stream with Odd" in error.message) == ("PROVIDER_FAILED", True)
    assert len(server.requests) == 3


@cell(35)
async def test_a_guardrail_is_a_finish(server: FaultServer, client: ProviderService) -> None:
    trace = {"guardrail": {"actionReason": "blocked"}}
    message = {"role": "assistant", "content": [{"text": "Sorry."}]}
    server.script = answer(
        {
            "output": {"message": message},
            "stopReason": "guardrail_intervened",
            "usage": wire_bedrock.USAGE,
            "trace": trace,
        }
    )
    response = await chat(client, typed())
    assert (response.finish.reason, response.finish.raw) == ("content_filter", "guardrail_intervened")
    assert json.loads(response.message.extension_json["@response"])["trace"] == trace
    metadata = ("metadata", {"usage": wire_bedrock.USAGE, "trace": trace})
    events = [wire_bedrock.START, wire_bedrock.stop("guardrail_intervened"), metadata]
    server.script = event_stream.event_stream(event_stream.frames(*events))
    *_, end = await stream_chat(client, typed())
    assert end.end.finish.reason == "content_filter"
    assert end.end.usage.input_total == 20
    assert len(server.requests) == 2


@cell(36)
async def test_broken_tool_arguments_are_passed_on(server: FaultServer, client: ProviderService) -> None:
    events = [
        wire_bedrock.START,
        wire_bedrock.tool_start(0, "unknown_tool", "t1"),
        wire_bedrock.delta(0, toolUse={"input": '{"x": '}),
        wire_bedrock.block_stop(0),
        wire_bedrock.stop("malformed_tool_use"),
        wire_bedrock.METADATA,
    ]
    server.script = event_stream.event_stream(event_stream.frames(*events))
    messages = await stream_chat(client, typed())
    assert "".join(message.part_delta.arguments_json for message in messages) == '{"x": '
    assert messages[1].part_start.part.tool_call.name == "unknown_tool"
    assert messages[-1].end.finish.reason == "malformed"
    # Sent back, it is flagged: this format has objects only.
    asked = typed()
    call = {"id": "t1", "name": "unknown_tool", "arguments_json": '{"x": '}
    asked.chat.messages.add(role="assistant", parts=[Part(tool_call=call)])
    server.script = answer(wire_bedrock.ANSWER)
    response = await chat(client, asked)
    sent = botocore_judge.check_request(server.requests[1].body)
    assert sent["messages"][1]["content"][0]["toolUse"]["input"] == {"arguments": '{"x": '}
    assert [entry.outcome for entry in response.receipt if entry.name.endswith(".input")] == ["translated"]


@cell(38)
async def test_an_oversized_frame_is_stopped(server: FaultServer, client: ProviderService) -> None:
    frame = event_stream.event("contentBlockDelta", b"x" * (16 * 2**20))
    server.script = [*event_stream.event_stream(frame[: 2**20]), Endless(b"x" * 2**20)]
    asked = typed()
    asked.timeouts.first_token_ms = asked.timeouts.total_ms = 20_000
    error = await failure(client, True, asked)
    assert error.reason == "PROVIDER_PROTOCOL"
    assert "exceeds 16777216 bytes" in error.message
    await asyncio.wait_for(server.hung_up.wait(), 10)
    assert server.injected["endless"] == 1


@cell(38)
async def test_a_frame_below_the_limit_passes(server: FaultServer, client: ProviderService) -> None:
    text = "x" * (8 * 2**20)
    frame = event_stream.frames(wire_bedrock.START, wire_bedrock.delta(0, text=text), *wire_bedrock.PLAIN[3:])
    server.script = event_stream.event_stream(frame)
    asked = typed()
    asked.timeouts.first_token_ms = asked.timeouts.total_ms = asked.timeouts.idle_ms = 20_000
    assert text_of(await stream_chat(client, asked)) == text


@cell(39)
async def test_a_gzip_bomb_is_stopped(server: FaultServer, client: ProviderService) -> None:
    bomb = gzip.compress(b"{" + b" " * (80 * 2**20), compresslevel=1)
    server.script = [Head(headers={"Content-Encoding": "gzip"}), Send(bomb)]
    asked = typed()
    asked.timeouts.total_ms = 20_000
    error = await failure(client, False, asked)
    assert error.reason == "PROVIDER_PROTOCOL"
    assert len(server.requests) == 1


@cell(40)
@pytest.mark.parametrize("when", ["before the first byte", "in mid-stream"])
async def test_a_cancelled_stream_closes_the_connection(
    server: FaultServer, client: ProviderService, when: str
) -> None:
    head = [] if when == "before the first byte" else event_stream.event_stream(event_stream.frames(*HALF))
    server.script = [*head, Stall()]
    asked = typed()
    asked.timeouts.first_token_ms = asked.timeouts.idle_ms = asked.timeouts.total_ms = 20_000
    calls = client.stream_chat(pb.StreamChatRequest(attempt=asked), Call.internal(30))

    async def read() -> None:
        async for _ in calls:
            pass

    task = asyncio.create_task(read())
    await asyncio.wait_for(server.reached.wait(), 10)
    task.cancel()
    await asyncio.wait_for(server.hung_up.wait(), 10)
    assert server.injected["stall"] == 1


@cell(40)
async def test_cancelled_embeddings_close_their_connections(
    server: FaultServer, client: ProviderService
) -> None:
    server.script = [Head(), Send(b"{"), Stall()]
    request = pb.EmbedRequest(provider="bedrock", model="amazon.titan-embed-text-v1", inputs=["a", "b"])
    request.timeouts.total_ms = 20_000
    task = asyncio.create_task(client.embed(request, Call.internal(30)))
    await asyncio.wait_for(server.reached.wait(), 10)
    task.cancel()
    await asyncio.wait_for(server.hung_up.wait(), 10)
    assert server.injected["stall"] >= 1


async def test_without_a_credential_the_error_says_what_to_do(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    configured = ProviderSettings(adapter="bedrock", region=REGION, base_url=server.url)
    async with running_providers(bedrock=configured) as client:
        error = await failure(client, streamed=True)
    assert error.reason == "PROVIDER_CREDENTIAL_REFUSED"
    assert "set api_key, or access_key_id" in error.message
    assert server.requests == []
