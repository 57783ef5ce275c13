"""Callers who leave: the connection upstream closes at once, nobody else is asked, what came is paid once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from omnihub.common.v1.chat_pb2 import ChatInput, Message
from omnihub.router.v1 import router_service_pb2 as pb

from services.common.rpc import RpcError
from services.providers.settings import ProviderSettings
from services.router.settings import RouteSettings
from tests.integration.chat.upstreams import FRAMES, PIECES
from tests.support.chat_stack import Stack, running_stack
from tests.support.fault_server import FaultServer, Head, Recorded, Send, Stall, Step, running_fault_server
from tests.support.router import a_call, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
FORMATS = ("openai", "anthropic")
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
LIMIT_S = 0.1
# How often callers leave, and how often the end may be late. Beside other tests a busy machine stops us for
# longer now and then: what closes late by itself is late every time. With nothing else running, none may be.
TRIES = [pytest.param((20, 10), id="busy"), pytest.param((100, 0), id="alone", marks=pytest.mark.alone)]
NEVER_S = 5


def respond(request: Recorded) -> list[Step]:
    """Send some frames of an answer, then nothing more."""
    form = request.path.split("/")[1]
    position = int(request.headers["x-position"])
    frames = FRAMES[form](PIECES)[:position]
    return [Head(content_type="text/event-stream"), *map(Send, frames), Stall()]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[FaultServer]:
    def configure(server: FaultServer) -> None:
        server.choose = respond

    async with running_fault_server(configure) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(upstream: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    providers, routes = {}, {}
    for form in FORMATS:
        for position in (0, 4):
            settings = {
                "adapter": form,
                "base_url": f"{upstream.url}/{form}",
                "headers": {"x-position": str(position)},
            }
            providers[f"{form}-{position}"] = ProviderSettings.model_validate(settings)
        other = f"{form}-0/other"
        for position in (0, 4):
            routes[f"{form}-{position}"] = RouteSettings(route=[f"{form}-{position}/m", other])
    async with running_stack(tmp_path_factory.mktemp("chat"), providers, routes) as stack:
        yield stack


@pytest.fixture
def stack(running: Stack, upstream: FaultServer) -> Stack:
    running.router.journal.records.clear()
    upstream.requests.clear()
    upstream.hang_ups.clear()
    upstream.hung_up.clear()
    upstream.injected.clear()
    return running


async def until_hung_up(upstream: FaultServer, left_at: float) -> float:
    """Return the seconds from the caller's leaving to the end of the provider's connection."""
    async with asyncio.timeout(5):
        await upstream.hung_up.wait()
    upstream.hung_up.clear()
    return upstream.hang_ups.pop() - left_at


def check(
    stack: Stack, upstream: FaultServer, waits: list[float], tries: tuple[int, int], paid: bool
) -> None:
    times, allowed = tries
    late = sorted(wait for wait in waits if wait > LIMIT_S)
    assert len(waits) == times
    assert len(late) <= allowed, late
    assert not [wait for wait in late if wait > NEVER_S]
    assert len(upstream.requests) == times, "no further attempt starts"
    assert upstream.injected["stall"] == times
    decisions = stack.router.journal.decisions
    assert [decision.state for decision in decisions] == ["cancelled"] * times
    assert all(len(decision.attempts) == 1 for decision in decisions)
    charges = Counter(charge.request_id for charge in stack.router.journal.charges)
    assert len(charges) == (times if paid else 0)
    assert set(charges.values()) <= {1}
    assert stack.router.reserved == 0


def request(form: str, position: int) -> pb.StreamChatRequest:
    chat = ChatInput(model=f"{form}-{position}", messages=[Message(role="user", content="hi")], max_tokens=50)
    return pb.StreamChatRequest(chat=chat)


async def leave_grpc(stack: Stack, form: str, position: int, reached: asyncio.Event) -> float:
    """Ask, leave in the middle (or before the first token), and return when that was."""
    stream = stack.router.client.stream_chat(request(form, position), a_call())

    async def read() -> None:
        async for event in stream:
            if event.part_delta.text == PIECES[1]:
                reading.set()

    reading = reached if not position else asyncio.Event()
    task = asyncio.create_task(read())
    await reading.wait()
    left_at = asyncio.get_running_loop().time()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return left_at


@pytest.mark.parametrize("tries", TRIES)
@pytest.mark.parametrize("position", [0, 4])
@pytest.mark.parametrize("form", FORMATS)
async def test_cancelled_rpcs(
    stack: Stack, upstream: FaultServer, form: str, position: int, tries: tuple[int, int]
) -> None:
    waits = []
    for _ in range(tries[0]):
        upstream.reached.clear()
        left_at = await leave_grpc(stack, form, position, upstream.reached)
        waits.append(await until_hung_up(upstream, left_at))
    await stack.router.settle()
    check(stack, upstream, waits, tries, paid=bool(position))


@pytest.mark.parametrize("tries", TRIES)
@pytest.mark.parametrize("position", [0, 4])
@pytest.mark.parametrize("form", FORMATS)
async def test_closed_connections(
    stack: Stack, upstream: FaultServer, form: str, position: int, tries: tuple[int, int]
) -> None:
    body = {
        "model": f"{form}-{position}",
        "stream": True,
        "max_tokens": 50,
        "messages": [{"role": "user", "content": "hi"}],
    }

    async def read(client: httpx.AsyncClient) -> None:
        async with client.stream("POST", PATHS[form], json=body) as answer:
            async for text in answer.aiter_text():
                if PIECES[1].strip() in text:
                    reading.set()

    waits = []
    for _ in range(tries[0]):
        upstream.reached.clear()
        reading = upstream.reached if not position else asyncio.Event()
        task = asyncio.create_task(read(stack.http))
        await reading.wait()
        left_at = asyncio.get_running_loop().time()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        waits.append(await until_hung_up(upstream, left_at))
    while len(stack.router.journal.records) < tries[0]:
        await stack.router.settle()
        await asyncio.sleep(0)
    check(stack, upstream, waits, tries, paid=bool(position))


@pytest.mark.parametrize("tries", TRIES)
@pytest.mark.parametrize("form", FORMATS)
async def test_deadlines_close_it_too(
    stack: Stack, upstream: FaultServer, form: str, tries: tuple[int, int]
) -> None:
    loop = asyncio.get_running_loop()
    # Side by side, for each has to wait; one after the other, for each is to be closed at once.
    ends = [loop.time() + 1 + 0.02 * number for number in range(tries[0])]

    async def run_out(end: float) -> None:
        call = a_call(timeout_s=end - loop.time())
        with pytest.raises(RpcError, match="DEADLINE_EXCEEDED"):
            [_ async for _ in stack.router.client.stream_chat(request(form, 4), call)]

    await asyncio.gather(*map(run_out, ends))
    await until(lambda: len(upstream.hang_ups) == tries[0])
    await stack.router.settle()
    waits = [closed - end for closed, end in zip(sorted(upstream.hang_ups), ends, strict=True)]
    check(stack, upstream, waits, tries, paid=True)
