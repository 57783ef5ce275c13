"""Rows 1 to 6: good answers, whole and streamed, cut anywhere."""

from __future__ import annotations

import json
from typing import Any

import pytest
from omnihub.provider.v1.provider_service_api import ProviderService

from tests.support.fault_server import FaultServer, answer
from tests.support.providers import chat
from tests.support.vendors import TEXT, Ask, Called
from tests.support.vendors.outcomes import Outcome, passed, read, streamed, whole
from tests.support.vendors.table import SSE, VENDORS, asks

pytestmark = pytest.mark.asyncio(loop_scope="module")
NO_SSE = [name for name, vendor in VENDORS.items() if vendor.content_type != SSE]
NO_CALLS = [name for name, vendor in VENDORS.items() if vendor.calls is None]


def named(calls: list[Called]) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in calls]


@asks(1)
async def test_a_plain_answer(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    vendor = ask.vendor
    server.script = answer(vendor.text.whole)
    response = await chat(client, ask.attempt())
    if ask.raw:
        assert json.loads(response.raw_body) == vendor.text.whole
    outcome = await whole(client, ask)
    assert outcome.text == TEXT
    assert (outcome.model, outcome.response_id) == vendor.reports
    assert outcome.finish.reason == "stop"
    assert (outcome.usage.input_total, outcome.usage.output_total) == vendor.usage
    assert not outcome.usage.estimated
    assert {request.method for request in server.requests} == {"POST"}


def comparable(outcome: Outcome) -> dict[str, Any]:
    """Ids that we made are new in each answer."""
    calls = [(call.name, json.loads(call.arguments)) for call in outcome.calls]
    return {**outcome.__dict__, "calls": calls}


@asks(2)
@pytest.mark.parametrize("kind", ["text", "calls"])
async def test_a_stream_equals_an_answer(
    server: FaultServer, client: ProviderService, ask: Ask, kind: str
) -> None:
    said = getattr(ask.vendor, kind) or ask.vendor.text
    server.script = ask.vendor.good(False, said)
    expected = await whole(client, ask)
    server.script = ask.vendor.good(True, said)
    assert comparable(await streamed(client, ask)) == comparable(expected)


@asks(3)
@pytest.mark.parametrize("size", [1, 7, 61])
async def test_any_split_gives_the_same(
    server: FaultServer, client: ProviderService, ask: Ask, size: int
) -> None:
    """At 1 byte every character beyond ASCII is cut."""
    data = ask.vendor.frames()
    assert len("🌍".encode()) == 4
    server.script = ask.vendor.script(data)
    messages = await read(client, ask.attempt())
    server.script = ask.vendor.script(*(data[at : at + size] for at in range(0, len(data), size)))
    cut = await read(client, ask.attempt())
    assert cut[0] == messages[0]
    assert cut[-1] == messages[-1]
    if ask.raw:
        assert passed(cut, ask) == passed(messages, ask)
    else:
        assert cut == messages
    assert "".join(each.raw_frame.text + each.part_delta.text for each in cut) == TEXT


def by_the_specification(vendor: Any) -> bytes:
    """Return the frames with all that server-sent events allow: other line ends, data on several lines,
    comments, fields that nobody knows, and nothing after the last event."""
    written = b": a comment\r\n\r\n"
    for document in vendor.text.frames:
        written += b"id: 7\r\nretry: 10\r\n: between\r\n"
        if isinstance(document, dict) and "type" in document:
            written += b"event: %b\r\n" % document["type"].encode()
        lines = document if isinstance(document, bytes) else json.dumps(document, indent=1).encode()
        written += b"".join(b"data: %b\r\n" % line for line in lines.splitlines()) + b"\r\n"
    return written.removesuffix(b"\r\n\r\n")


@asks(4, without=NO_SSE)
async def test_events_by_the_specification(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    server.script = ask.vendor.good(True)
    expected = await streamed(client, ask)
    server.script = ask.vendor.script(by_the_specification(ask.vendor))
    messages = await read(client, ask.attempt())
    assert messages[-1].end.finish == expected.finish
    assert messages[-1].end.usage == expected.usage
    assert "".join(each.raw_frame.text + each.part_delta.text for each in messages) == TEXT


@asks(5, without=NO_CALLS)
async def test_one_tool_call(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    said = ask.vendor.call
    assert said is not None
    for in_stream, get in ((False, whole), (True, streamed)):
        server.script = ask.vendor.good(in_stream, said)
        outcome = await get(client, ask)
        [call], [expected] = outcome.calls, said.calls
        assert call.name == expected.name
        assert call.id == expected.id or (call.id and not expected.id)
        assert json.loads(call.arguments) == json.loads(expected.arguments)
        if in_stream or ask.vendor.name != "bedrock":
            assert call.arguments.replace(" ", "") == expected.arguments.replace(" ", "")
        assert outcome.finish.reason == "tool_calls"


@asks(5, without=NO_CALLS)
async def test_the_arguments_are_the_models_own_text(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    said = ask.vendor.call
    assert said is not None
    server.script = ask.vendor.good(True, said)
    assert named((await streamed(client, ask)).calls) == named(list(said.calls))


@asks(6, without=NO_CALLS)
async def test_parallel_tool_calls(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    """Order and ids are kept, also where pieces come interleaved; ids are made where there are none."""
    said = ask.vendor.calls
    assert said is not None
    seen: list[str] = []
    for in_stream, get in ((False, whole), (True, streamed)):
        server.script = ask.vendor.good(in_stream, said)
        outcome = await get(client, ask)
        expected = [(call.name, json.loads(call.arguments)) for call in said.calls]
        assert [(call.name, json.loads(call.arguments)) for call in outcome.calls] == expected
        ids = [call.id for call in outcome.calls]
        assert len(set(ids)) == len(ids)
        if said.calls[0].id:
            assert ids == [call.id for call in said.calls]
        else:
            assert all(ids)
            assert not set(ids) & set(seen)
        seen += ids
        assert outcome.finish.reason == "tool_calls"
