"""Rows 38 to 40: answers that are too large, packed, or something else; and callers who leave."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
from typing import Any

import pytest
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from tests.support.fault_server import Endless, FaultServer, Head, Send, Stall, answer
from tests.support.providers import KEY, chat
from tests.support.vendors import TEXT, Ask
from tests.support.vendors.outcomes import failure, read, whole
from tests.support.vendors.refusals import PAGE
from tests.support.vendors.table import asks

pytestmark = pytest.mark.asyncio(loop_scope="module")
STREAMED = pytest.mark.parametrize("in_stream", [False, True])
MIB = 2**20


async def hung_up(server: FaultServer) -> None:
    async with asyncio.timeout(60):
        await server.hung_up.wait()


@asks(38)
async def test_an_endless_frame(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    vendor = ask.vendor
    server.script = [*vendor.script(vendor.large_frame), Endless(b"x" * MIB)]
    error = await failure(client, ask, True)
    assert error.reason == "PROVIDER_PROTOCOL"
    assert f"exceeds {16 * MIB} bytes" in error.message
    await hung_up(server)
    assert server.injected["endless"] == 1


@pytest.mark.parametrize("packed", [False, True])
@asks(38, only=("openai", "bedrock", "ollama"))
async def test_an_endless_body(server: FaultServer, client: ProviderService, ask: Ask, packed: bool) -> None:
    """What is read of it is bounded, also where little comes and much is meant: a gzip bomb."""
    if packed:
        bomb = gzip.compress(b"{" + b" " * (80 * MIB), compresslevel=1)
        server.script = [Head(headers={"Content-Encoding": "gzip"}), Send(bomb, fault="bomb")]
    else:
        server.script = [Head(), Endless(b"{" + b" " * (4 * MIB))]
    tracemalloc.start()
    try:
        error = await failure(client, ask, False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error.reason == "PROVIDER_PROTOCOL"
    assert peak < 200 * MIB
    assert server.injected["bomb" if packed else "endless"] == 1


@asks(38)
async def test_a_large_error_page_is_read_in_part(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    server.script = [Head(500, content_type="text/plain"), Endless(b"x" * MIB)]
    error = await failure(client, ask, True)
    assert error.reason == "PROVIDER_FAILED"
    await hung_up(server)
    assert server.injected["status_500"] == server.injected["endless"] == 1


@asks(39)
async def test_a_packed_body(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    packed = gzip.compress(json.dumps(ask.vendor.text.whole).encode())
    server.script = [Head(headers={"Content-Encoding": "gzip"}), Send(packed)]
    assert (await whole(client, ask)).text == TEXT
    server.script = [Head(headers={"Content-Encoding": "gzip"}), Send(b"not packed", fault="not_gzip")]
    error = await failure(client, ask, in_stream=False)
    assert error.reason == "PROVIDER_PROTOCOL"
    assert server.injected["not_gzip"] == 1


@asks(39)
@STREAMED
async def test_a_page_instead_of_an_answer(
    server: FaultServer, client: ProviderService, ask: Ask, in_stream: bool
) -> None:
    """A proxy's page, with our key in it: classed by its status, and none of its text is repeated."""
    for status, reason in ((200, "PROVIDER_PROTOCOL"), (403, "PROVIDER_CREDENTIAL_REFUSED"), (404, "")):
        server.script = [Head(status, content_type="text/html"), Send(PAGE, fault="page")]
        error = await failure(client, ask, in_stream)
        # Where no vendor speaks, a 404 is the wrong address and not the wrong model.
        assert error.reason == (reason or "PROVIDER_FAILED"), status
        assert "body" not in error.message
        assert KEY not in error.message
    assert server.injected["page"] == len(server.requests) == 3


@asks(39)
async def test_another_type_where_a_stream_was_asked_for(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    for content_type in ("text/html", "application/json"):
        server.script = [Head(content_type=content_type), Send(b"{}", fault="type")]
        error = await failure(client, ask, in_stream=True)
        assert error.reason == "PROVIDER_PROTOCOL"
        assert content_type in error.message
    assert server.injected["type"] == 2


async def leave(server: FaultServer, asking: Any) -> None:
    """Leave while the vendor is at it, and see it told at once."""
    task = asyncio.ensure_future(asking)
    async with asyncio.timeout(60):
        await server.reached.wait()
    task.cancel()
    await hung_up(server)
    assert server.injected["stall"] == len(server.requests) == 1


@asks(40)
@pytest.mark.parametrize("when", ["before the head", "before the first byte", "in mid-stream"])
async def test_who_leaves_a_stream_closes_the_connection(
    server: FaultServer, client: ProviderService, ask: Ask, when: str
) -> None:
    head = [Head(content_type=ask.vendor.content_type)]
    scripts: dict[str, list[Any]] = {
        "before the head": [],
        "before the first byte": [*head],
        "in mid-stream": [*head, Send(ask.vendor.begun())],
    }
    server.script = [*scripts[when], Stall()]
    await leave(server, read(client, ask.attempt()))


@asks(40)
async def test_who_leaves_a_whole_answer_closes_the_connection(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    server.script = [Head(), Send(b"{"), Stall()]
    await leave(server, chat(client, ask.attempt()))
    # The next request gets a connection of its own.
    server.script = answer(ask.vendor.text.whole)
    assert (await whole(client, ask)).text == TEXT
    assert server.requests[0].connection != server.requests[1].connection


async def take(stream: Any) -> None:
    async for _ in stream:
        pass


@asks(40)
async def test_a_callers_deadline_closes_the_connection(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    server.script = [*ask.vendor.script(ask.vendor.begun()), Stall()]
    request = pb.StreamChatRequest(attempt=ask.attempt())
    with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
        await take(client.stream_chat(request, Call.internal(0.2)))
    await hung_up(server)
    assert server.injected["stall"] == 1
