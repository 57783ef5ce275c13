"""Rows 19 to 22, 24, 25, 28, 31 and 40 as the caller sees them: the router before the real adapters."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
import pytest_asyncio
from omnihub.common.v1.chat_pb2 import ChatInput, Message
from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.provider.v1.provider_service_api import ProviderService
from omnihub.router.v1 import router_service_pb2 as pb

from services.common.rpc import Call, RpcError
from services.router.settings import RouteSettings
from tests.support import gemini_wire
from tests.support.chat_stack import Connected
from tests.support.fakes import FakeBilling
from tests.support.fault_server import (
    Disconnect,
    FaultServer,
    Pause,
    Recorded,
    SharedFaultServer,
    Stall,
    Step,
    answer,
)
from tests.support.providers import running_providers
from tests.support.router import INPUT_NANO, OUTPUT_NANO, Router, a_call
from tests.support.vendors import TEXT, VENDORS, Ask
from tests.support.vendors.table import BODIES, PROMPT, asks

pytestmark = pytest.mark.asyncio(loop_scope="module")
BACKUP = VENDORS["openai"]
NEXT = "/backup/v1/chat/completions"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(listener: SharedFaultServer) -> Any:
    configured = {name: vendor.settings(listener.url) for name, vendor in VENDORS.items()}
    configured["backup"] = BACKUP.settings(f"{listener.url}/backup")
    async with running_providers(**configured) as running:
        yield running


@pytest.fixture
def jitter(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The ranges that waits were drawn from; the waits themselves are nothing."""
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.0

    monkeypatch.setattr(random, "uniform", draw)
    return drawn


async def router_of(client: ProviderService, ask: Ask, *others: str, **settings: Any) -> Router:
    """Return a router whose model `m` is the vendor's, then the others'."""
    route = [f"{ask.vendor.name}/{ask.vendor.model}", *others]
    billing = FakeBilling()
    for target in route:
        billing.price(target, INPUT_NANO * 1000, OUTPUT_NANO * 1000)
    answered = await client.get_capabilities(provider.GetCapabilitiesRequest(), Call.internal(5))
    connected: Any = Connected(client, answered.providers)
    return Router({"m": RouteSettings(route=route, **settings)}, connected, billing)


def fields(ask: Ask) -> dict[str, Any]:
    chat = ChatInput(model="m", messages=[Message(role="user", content=PROMPT)], max_tokens=50)
    if not ask.raw:
        return {"chat": chat}
    attempt = ask.attempt({**BODIES[ask.vendor.raw_format], "model": "m"})
    return {"chat": chat, "raw_body": attempt.raw_body, "wire_format": attempt.wire_format}


async def get(router: Router, ask: Ask) -> pb.ChatResponse:
    async with asyncio.timeout(60):
        response: pb.ChatResponse = await router.client.chat(pb.ChatRequest(**fields(ask)), a_call())
    return response


async def stream(router: Router, ask: Ask) -> tuple[list[pb.StreamChatResponse], RpcError | None]:
    messages = []
    try:
        async with asyncio.timeout(60):
            async for message in router.client.stream_chat(pb.StreamChatRequest(**fields(ask)), a_call()):
                messages.append(message)
    except RpcError as error:
        return messages, error
    return messages, None


def said(messages: Sequence[pb.StreamChatResponse]) -> str:
    return "".join(each.raw_frame.text + each.part_delta.text for each in messages)


def asked(server: FaultServer) -> tuple[int, int]:
    """Return how often the vendor and the next one were asked."""
    after = sum(request.path == NEXT for request in server.requests)
    return len(server.requests) - after, after


def good_next(server: FaultServer, in_stream: bool = False) -> None:
    server.scripts[NEXT] = BACKUP.good(in_stream)


@asks(24, one_way=True)
async def test_some_retries_with_jitter_then_the_next(
    listener: SharedFaultServer, client: ProviderService, jitter: Any, ask: Ask
) -> None:
    for refusal in ask.vendor.refusals.passing:
        server = listener.fresh()
        jitter.clear()
        server.script = refusal.script()
        good_next(server)
        router = await router_of(client, ask, "backup/b", retries=2)
        response = await get(router, ask)
        assert response.model_used == "backup/b"
        assert asked(server) == (3, 1)
        assert server.injected[f"status_{refusal.status}"] == 3
        assert jitter[:2] == [(0, 0.2), (0, 0.4)]
        [decision] = router.journal.decisions
        assert [each.state for each in decision.attempts] == ["failed"] * 3 + ["complete"]
        assert len(router.journal.charges) == 1  # failed attempts are not billed


@pytest.mark.usefixtures("jitter")
@asks(20, one_way=True)
async def test_what_asking_again_cannot_mend_goes_to_the_next_at_once(
    listener: SharedFaultServer, client: ProviderService, ask: Ask
) -> None:
    """Of the 400 class only 408 and 429 may pass; a 404 without an error is of an address, not of a model."""
    for status, body in ((409, {"error": {"message": "changed meanwhile"}}), (404, b"404 page not found")):
        server = listener.fresh()
        server.script = answer(body, status)
        good_next(server)
        router = await router_of(client, ask, "backup/b", retries=2)
        assert (await get(router, ask)).model_used == "backup/b"
        assert server.injected[f"status_{status}"] == 1
        assert asked(server) == (1, 1)


@pytest.mark.usefixtures("jitter")
@asks(24, one_way=True)
async def test_a_stream_that_cannot_begin_begins_elsewhere(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    refusal = ask.vendor.refusals.passing[0]
    server.script = refusal.script()
    good_next(server, in_stream=True)
    router = await router_of(client, ask, "backup/b", retries=1)
    messages, error = await stream(router, ask)
    assert error is None
    assert said(messages) == TEXT
    assert asked(server) == (2, 1)
    assert server.injected[f"status_{refusal.status}"] == 2


@pytest.mark.usefixtures("jitter")
@asks(25, one_way=True)
@pytest.mark.parametrize("in_stream", [False, True])
async def test_when_all_fail_attempts_are_bounded(
    server: FaultServer, client: ProviderService, ask: Ask, in_stream: bool
) -> None:
    refusal = next(each for each in ask.vendor.refusals.passing if each.status == 503)
    server.script = refusal.script()
    vendor = ask.vendor
    router = await router_of(client, ask, f"{vendor.name}/{vendor.model}-2", retries=2)
    if in_stream:
        _, error = await stream(router, ask)
        assert error is not None
    else:
        with pytest.raises(RpcError) as caught:
            await get(router, ask)
        error = caught.value
    assert error.reason == "PROVIDER_OVERLOADED"
    assert len(server.requests) == server.injected["status_503"] == 6
    assert router.journal.charges == []


@pytest.mark.usefixtures("jitter")
@asks(25, one_way=True)
async def test_an_open_circuit_spares_the_vendor(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    """However many callers come, only the failures that open it are asked for."""
    server.script = ask.vendor.refusals.passing[0].script()
    good_next(server)
    router = await router_of(client, ask, "backup/b", retries=2)
    for _ in range(10):
        assert (await get(router, ask)).model_used == "backup/b"
    before, after = asked(server)
    assert before <= 6
    assert after == 10


@pytest.mark.usefixtures("jitter")
@asks(19, 20, 37, one_way=True)
async def test_what_no_retry_mends_is_asked_once(
    listener: SharedFaultServer, client: ProviderService, ask: Ask
) -> None:
    no = ask.vendor.refusals
    for refusal in (*no.auth, *no.missing, *no.billing, *no.too_long):
        server = listener.fresh()
        server.script = refusal.script()
        router = await router_of(client, ask, retries=2)
        with pytest.raises(RpcError) as caught:
            await get(router, ask)
        assert caught.value.reason == refusal.reason
        assert len(server.requests) == server.injected[f"status_{refusal.status}"] == 1
        server.requests.clear()
        if refusal.reason == "CONTEXT_LENGTH_EXCEEDED":
            continue  # Only a larger model is worth asking.
        good_next(server)
        router = await router_of(client, ask, "backup/b", retries=2)
        assert (await get(router, ask)).model_used == "backup/b"
        assert asked(server) == (1, 1)


@pytest.mark.usefixtures("jitter")
@asks(21, one_way=True)
async def test_what_the_vendor_asks_for_is_waited(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    limited, times = ask.vendor.refusals.limited, []

    def respond(request: Recorded) -> Sequence[Step]:
        times.append(asyncio.get_running_loop().time())
        if len(times) > 1:
            return answer(ask.vendor.text.whole)
        if ask.vendor.name == "gemini":
            detail = gemini_wire.retry_info("0.15s")
            return answer(gemini_wire.error(429, "RESOURCE_EXHAUSTED", "slow", detail), 429)
        return limited.script(**{"retry-after-ms": "150"})

    server.choose = respond
    await get(await router_of(client, ask, retries=2), ask)
    assert len(times) == 2
    assert times[1] - times[0] >= 0.15
    assert server.injected["status_429"] == 1


@asks(21, one_way=True)
async def test_too_long_a_wait_is_not_waited(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    server.script = ask.vendor.refusals.limited.script(**{"retry-after": "3600"})
    good_next(server)
    router = await router_of(client, ask, "backup/b", retries=2)
    assert (await get(router, ask)).model_used == "backup/b"
    assert asked(server) == (1, 1)
    assert server.injected["status_429"] == 1


@asks(28, one_way=True)
async def test_a_stalled_stream_keeps_and_bills_what_came(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    server.script = [*ask.vendor.script(ask.vendor.begun()), Stall()]
    router = await router_of(client, ask, "backup/b", rescue="off", timeouts={"idle_s": 0.2})
    messages, error = await stream(router, ask)
    assert error is not None
    assert error.reason == "PROVIDER_TIMEOUT"
    assert said(messages) == TEXT
    [charge] = router.journal.charges
    assert charge.usage.estimated
    assert charge.usage.input_total > 0
    assert charge.usage.output_total > 0
    assert asked(server) == (1, 0)
    assert server.injected["stall"] == 1


@asks(31, one_way=True)
async def test_after_output_nobody_is_asked_in_silence(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    server.script = [*ask.vendor.script(ask.vendor.begun()), Pause(0.05), Disconnect()]
    good_next(server, in_stream=True)
    router = await router_of(client, ask, "backup/b", rescue="off", retries=2)
    messages, error = await stream(router, ask)
    assert error is not None
    assert error.reason == "STREAM_TRUNCATED"
    assert said(messages) == TEXT
    assert messages[-1].error.outcome.state == "truncated"
    assert asked(server) == (1, 0)
    assert server.injected["disconnect"] == 1


@asks(40, one_way=True)
async def test_who_leaves_is_billed_what_came_once(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    server.script = [*ask.vendor.script(ask.vendor.begun()), Stall()]
    good_next(server, in_stream=True)
    router = await router_of(client, ask, "backup/b", retries=2)
    came = asyncio.Event()

    async def read() -> None:
        text = ""
        async for message in router.client.stream_chat(pb.StreamChatRequest(**fields(ask)), a_call()):
            text += said([message])
            if text == TEXT:
                came.set()

    task = asyncio.create_task(read())
    async with asyncio.timeout(60):
        await came.wait()
        task.cancel()
        await server.hung_up.wait()
        await asyncio.gather(task, return_exceptions=True)
        await router.settle()
    assert asked(server) == (1, 0)
    [decision] = router.journal.decisions
    assert (decision.state, len(decision.attempts)) == ("cancelled", 1)
    [charge] = router.journal.charges
    assert (charge.state, charge.usage.estimated) == ("cancelled", True)
    assert server.injected["stall"] == 1
