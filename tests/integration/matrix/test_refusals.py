"""Rows 19 to 22, 24, 26, 34, 35 and 37: the vendor says no, or cannot be reached."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from omnihub.provider.v1.provider_service_api import ProviderService

from tests.support import gemini_wire, wire, wire_bedrock
from tests.support.fault_server import FaultServer, Head, Send, answer, running_fault_server
from tests.support.providers import chat, running_providers
from tests.support.vendors import VENDORS, Ask
from tests.support.vendors.outcomes import failure, read, streamed, whole
from tests.support.vendors.refusals import Refusal
from tests.support.vendors.table import asks

pytestmark = pytest.mark.asyncio(loop_scope="module")
STREAMED = pytest.mark.parametrize("in_stream", [False, True])
NO_BILL = [name for name, vendor in VENDORS.items() if not vendor.refusals.billing]


async def check(
    server: FaultServer, client: ProviderService, ask: Ask, refusal: Refusal, in_stream: bool
) -> Any:
    """The reason, the status, and that nobody asked twice."""
    server.script = refusal.script()
    server.requests.clear()
    server.injected.clear()
    error = await failure(client, ask, in_stream)
    assert error.reason == refusal.reason, (refusal, error.message)
    assert error.metadata["http_status"] == str(refusal.status)
    assert error.metadata["phase"] == "before_first_byte"
    assert server.injected[f"status_{refusal.status}"] == len(server.requests) == 1
    return error


@asks(19)
@STREAMED
async def test_the_credential_is_refused(
    server: FaultServer, client: ProviderService, ask: Ask, in_stream: bool
) -> None:
    for refusal in ask.vendor.refusals.auth:
        error = await check(server, client, ask, refusal, in_stream)
        assert error.metadata["retryable"] == "false"


@asks(20)
@STREAMED
async def test_the_model_is_unknown(
    server: FaultServer, client: ProviderService, ask: Ask, in_stream: bool
) -> None:
    for refusal in ask.vendor.refusals.missing:
        error = await check(server, client, ask, refusal, in_stream)
        assert error.metadata["retryable"] == "false"


def in_five_minutes() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)


@asks(21)
async def test_how_long_to_wait(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    limited = ask.vendor.refusals.limited
    await check(server, client, ask, limited, in_stream=False)
    for headers, expected in (
        ({"retry-after": "7"}, 7),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": in_five_minutes()}, 300),
        ({"retry-after": "Mon, 01 Jan 2001 00:00:00 GMT"}, 0),
        ({"retry-after": "soon"}, None),
    ):
        server.script = limited.script(**headers)
        for in_stream in (False, True):
            error = await failure(client, ask, in_stream)
            assert error.reason == "PROVIDER_RATE_LIMITED"
            told = error.retry_after_s
            assert told == expected or (expected and told == pytest.approx(expected, abs=20)), headers
    assert server.injected["status_429"] == 11


@pytest.mark.matrix(row=21, adapter="gemini")
async def test_geminis_delay_is_in_the_body(server: FaultServer, client: ProviderService) -> None:
    ask = Ask(VENDORS["gemini"], raw=False)
    for delay, expected in (("46s", 46), ("46.837906s", 46.837906), ("36000s", 36000), ("soon", None)):
        detail = gemini_wire.retry_info(delay)
        server.script = answer(gemini_wire.error(429, "RESOURCE_EXHAUSTED", "x", {"@type": "y"}, detail), 429)
        assert (await failure(client, ask, in_stream=True)).retry_after_s == expected
    assert server.injected["status_429"] == 4


@asks(22, without=NO_BILL)
@STREAMED
async def test_there_is_no_money(
    server: FaultServer, client: ProviderService, ask: Ask, in_stream: bool
) -> None:
    for refusal in ask.vendor.refusals.billing:
        error = await check(server, client, ask, refusal, in_stream)
        assert error.metadata["retryable"] == "false"


@asks(24)
@STREAMED
async def test_what_passes(server: FaultServer, client: ProviderService, ask: Ask, in_stream: bool) -> None:
    for refusal in ask.vendor.refusals.passing:
        error = await check(server, client, ask, refusal, in_stream)
        assert error.metadata["retryable"] == "true"


@asks(37)
@STREAMED
async def test_the_input_is_too_large(
    server: FaultServer, client: ProviderService, ask: Ask, in_stream: bool
) -> None:
    for refusal in ask.vendor.refusals.too_long:
        error = await check(server, client, ask, refusal, in_stream)
        assert error.metadata["retryable"] == "false"


@asks(12)
@STREAMED
async def test_the_request_is_at_fault(
    server: FaultServer, client: ProviderService, ask: Ask, in_stream: bool
) -> None:
    assert ask.vendor.refusals.rejected
    for refusal in ask.vendor.refusals.rejected:
        error = await check(server, client, ask, refusal, in_stream)
        assert error.metadata["retryable"] == "false"


@pytest.mark.matrix(row=27, adapter="gemini")
async def test_gemini_says_itself_that_it_was_too_slow(server: FaultServer, client: ProviderService) -> None:
    too_slow = Refusal("PROVIDER_TIMEOUT", 504, gemini_wire.error(504, "DEADLINE_EXCEEDED", "late"))
    await check(server, client, Ask(VENDORS["gemini"], raw=False), too_slow, in_stream=True)


@asks(26)
@STREAMED
async def test_nobody_listens(ask: Ask, in_stream: bool) -> None:
    async with running_fault_server() as gone:
        url = gone.url
    async with running_providers(**{ask.vendor.name: ask.vendor.settings(url, total_s=5)}) as client:
        error = await failure(client, ask, in_stream)
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_FAILED", "before_first_byte")
    assert "cannot connect" in error.message


@asks(26)
async def test_nobody_knows_the_name(monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    """Only the answer of the name service is made up: the suite asks none outside of this machine."""
    asked = []

    def unknown(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async with running_providers(
        **{ask.vendor.name: ask.vendor.settings("http://nobody.invalid", total_s=5)}
    ) as client:
        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        error = await failure(client, ask, in_stream=True)
    assert asked == ["nobody.invalid"]
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_FAILED", "before_first_byte")
    assert "cannot connect" in error.message


@asks(34)
@STREAMED
async def test_an_error_body_with_status_200(
    server: FaultServer, client: ProviderService, ask: Ask, in_stream: bool
) -> None:
    """It is an error, not an empty answer; also where a stream was asked for."""
    for reason, body in ask.vendor.refusals.late:
        server.script = [Head(), Send(answer(body)[1].data, fault="error_body")]  # type: ignore[union-attr]
        error = await failure(client, ask, in_stream)
        if in_stream and error.reason == "PROVIDER_PROTOCOL":
            assert "instead of a stream" in error.message
        else:
            assert error.reason == reason
    assert server.injected["error_body"] == len(server.requests) == len(ask.vendor.refusals.late)


@asks(35, without=("self_hosted", "ollama"))
async def test_content_that_is_refused(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    for refusal in ask.vendor.refusals.filtered:
        error = await check(server, client, ask, refusal, in_stream=False)
        assert error.metadata["retryable"] == "false"
    kind = {"gemini": "gemini", "bedrock": "converse", "titan": "titan", "anthropic": "anthropic"}.get(
        ask.vendor.name, "responses" if ask.vendor.name == "openai_responses" else "openai"
    )
    said, frames, expected = FILTERED[kind]
    server.script = answer(said)
    unary = await whole(client, ask)
    server.script = ask.vendor.script(ask.vendor.encode(*frames))
    stream = await streamed(client, ask)
    assert unary.finish.reason == stream.finish.reason == expected
    assert unary.finish.raw == stream.finish.raw


def _openai_filtered() -> tuple[Any, list[Any], str]:
    choice = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "content_filter"}
    frames = [*wire.OPENAI_TEXT[:1], wire.openai_chunk({}, "content_filter"), b"[DONE]"]
    return {**wire.OPENAI_ANSWER, "choices": [choice]}, frames, "content_filter"


def _responses_filtered() -> tuple[Any, list[Any], str]:
    ended = wire.openai_response(
        "incomplete", incomplete_details={"reason": "content_filter"}, usage=wire.RESPONSES_USAGE
    )
    last = {"type": "response.incomplete", "sequence_number": 2, "response": ended}
    return ended, [*wire.RESPONSES_EVENTS[:2], last], "content_filter"


def _anthropic_refused() -> tuple[Any, list[Any], str]:
    said = {**wire.ANTHROPIC_ANSWER, "content": [], "stop_reason": "refusal"}
    delta = {"stop_reason": "refusal", "stop_sequence": None}
    end = {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 1}}
    return said, [wire.ANTHROPIC_EVENTS[0], end, {"type": "message_stop"}], "refusal"


def _gemini_filtered() -> tuple[Any, list[Any], str]:
    said = gemini_wire.chunk({"text": "x"}, finish="SAFETY")
    return said, [gemini_wire.chunk({"text": "x"}), gemini_wire.chunk(finish="SAFETY")], "content_filter"


def _converse_filtered() -> tuple[Any, list[Any], str]:
    said = {**wire_bedrock.ANSWER, "stopReason": "guardrail_intervened"}
    events = [*wire_bedrock.PLAIN[:4], wire_bedrock.stop("guardrail_intervened"), wire_bedrock.METADATA]
    return said, list(events), "content_filter"


def _titan_filtered() -> tuple[Any, list[Any], str]:
    result = {"tokenCount": 0, "outputText": "", "completionReason": "CONTENT_FILTERED"}
    chunk = {"outputText": "", "completionReason": "CONTENT_FILTERED", "totalOutputTextTokenCount": 0}
    events = [wire_bedrock.TITAN_EVENTS[0], wire_bedrock.titan_chunk(chunk)]
    return {"inputTextTokenCount": 5, "results": [result]}, events, "content_filter"


FILTERED = {
    "openai": _openai_filtered(),
    "responses": _responses_filtered(),
    "anthropic": _anthropic_refused(),
    "gemini": _gemini_filtered(),
    "converse": _converse_filtered(),
    "titan": _titan_filtered(),
}


@pytest.mark.matrix(row=35, adapter="gemini")
@STREAMED
async def test_geminis_blocked_prompt_has_no_candidates(
    server: FaultServer, client: ProviderService, in_stream: bool
) -> None:
    vendor = VENDORS["gemini"]
    blocked = vendor.script(vendor.encode(gemini_wire.BLOCKED))
    server.script = blocked if in_stream else answer(gemini_wire.BLOCKED)
    error = await failure(client, Ask(vendor, raw=False), in_stream)
    assert (error.reason, error.metadata["provider_code"]) == ("CONTENT_FILTERED", "PROHIBITED_CONTENT")
    assert len(server.requests) == 1


@pytest.mark.parametrize("ask", [Ask(VENDORS["openai"], raw=False)], ids=["openai"])
@pytest.mark.matrix(row=35, adapter="openai")
async def test_openais_refusal_is_kept(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    message = {"role": "assistant", "content": None, "refusal": "I will not."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    server.script = answer({**wire.OPENAI_ANSWER, "choices": [choice]})
    parts = (await chat(client, ask.attempt())).message.parts
    assert [part.refusal.text for part in parts] == ["I will not."]
    chunks = [wire.openai_chunk({"refusal": "I will "}), wire.openai_chunk({"refusal": "not."})]
    frames = [*chunks, wire.openai_chunk({}, "stop"), b"[DONE]"]
    server.script = ask.vendor.script(ask.vendor.encode(*frames))
    messages = await read(client, ask.attempt())
    assert messages[1].part_start.part.WhichOneof("kind") == "refusal"
    assert "".join(message.part_delta.refusal for message in messages) == "I will not."
