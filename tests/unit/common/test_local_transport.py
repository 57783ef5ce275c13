"""What the local transport does beyond its contract: cheaply, and leaving nothing behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.common.rpc import Call, RpcError, local
from services.common.rpc.outlet import Outlet, OutletStream, offer
from tests.support.echo import TRANSPORTS, CountRequest, CountResponse, Echo, SayRequest


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far deadlines come near within a test."""
    monkeypatch.setattr(local, "NEAR_S", 0.2)
    monkeypatch.setattr(local, "LOOK_EVERY_S", 0.05)


async def hang(request: Any, call: Any) -> Any:
    """Never answer."""
    await asyncio.Event().wait()


async def one_and_no_more(request: Any, call: Any) -> AsyncIterator[Any]:
    """Answer once, then never again."""
    yield CountResponse(number=1)
    await asyncio.Event().wait()


@pytest.mark.usefixtures("quick")
async def test_a_deadline_that_was_far_is_kept() -> None:
    async with TRANSPORTS["local"](Echo(hang, one_and_no_more)) as client:
        began = time.monotonic()
        call = Call("req_1").within(0.5)
        stream = client.count(CountRequest(), call)
        await anext(stream)
        with pytest.raises(RpcError) as unary:
            await client.say(SayRequest(), call)
        with pytest.raises(RpcError) as streamed:
            await anext(stream)
        assert {unary.value.reason, streamed.value.reason} == {"DEADLINE_EXCEEDED"}
        assert 0.45 < time.monotonic() - began < 10


@pytest.mark.usefixtures("quick")
async def test_calls_that_have_ended_leave_no_alarm() -> None:
    async with TRANSPORTS["local"](Echo()) as client:
        for seconds in (0.1, 60):
            await client.say(SayRequest(), Call("req_1").within(seconds))
            async for _ in client.count(CountRequest(until=3), Call("req_1").within(seconds)):
                pass
            abandoned = client.count(CountRequest(until=3), Call("req_1").within(seconds))
            await anext(abandoned)
            del abandoned
            gc.collect()
    await local.cancelled_handlers_ended()
    # Tasks tell that they have ended in the turn after.
    await asyncio.sleep(0)
    alarms = local.alarms_of(asyncio.get_running_loop())
    assert not alarms._far
    assert not alarms._near
    assert not local._running


async def test_a_stream_collected_in_another_thread_is_stopped_in_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Garbage is collected in any thread; the event loop belongs to one."""
    threads: list[int] = []
    cut = local._Pipe.cut

    def recorded(pipe: local._Pipe, ended: RpcError | bool) -> None:
        threads.append(threading.get_ident())
        cut(pipe, ended)

    monkeypatch.setattr(local._Pipe, "cut", recorded)
    async with TRANSPORTS["local"](Echo(hang, one_and_no_more)) as client:
        held = [client.count(CountRequest(), Call("req_1").within(60))]
        await anext(held[0])
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
        await asyncio.sleep(0)
        await local.cancelled_handlers_ended()
    assert threads == [threading.get_ident()]
    assert not local.alarms_of(asyncio.get_running_loop())._far


async def test_a_caller_who_leaves_before_the_handler_began_leaves_nothing() -> None:
    async with TRANSPORTS["local"](Echo(hang, one_and_no_more)) as client:
        call = asyncio.ensure_future(client.say(SayRequest(), Call("req_1").within(60)))
        asyncio.get_running_loop().call_soon(call.cancel)
        await asyncio.gather(call, return_exceptions=True)
        await local.cancelled_handlers_ended()
        await asyncio.sleep(0)
        assert not local._running


class Echoing:
    """Gives each number it is told to its outlet, from where no task runs."""

    def __init__(self) -> None:
        self.outlet = Outlet()
        self.refused = asyncio.Queue[Any]()

    def count(self, request: Any, call: Any) -> Any:
        return OutletStream(self._events(), self.outlet)

    async def _events(self) -> AsyncIterator[Any]:  # type: ignore[misc]
        yield CountResponse(number=0)
        while True:
            yield await self.refused.get()

    def tell(self, number: int) -> bool:
        message = CountResponse(number=number)
        taken = self.refused.empty() and self.outlet.give(message)
        if not taken:
            self.refused.put_nowait(message)
        return taken


async def test_what_is_given_passes_all_services_in_one_turn() -> None:
    origin, read, taken, three = Echoing(), asyncio.Queue[int](), [], asyncio.Event()

    def accept(message: Any) -> bool:
        if message.number == 1000:
            return False
        taken.append(message.number)
        three.set() if message.number == 3 else None
        return True

    async def reader(stream: Any) -> None:
        async for message in stream:
            read.put_nowait(message.number)

    local_client = TRANSPORTS["local"]
    async with (
        local_client(Echo(count=origin.count)) as inner,
        local_client(Echo(count=inner.count)) as outer,
    ):
        assert not origin.tell(7), "nobody reads yet"
        assert (await origin.refused.get()).number == 7
        stream = outer.count(CountRequest(), Call("req_1").within(60))
        reading = asyncio.create_task(reader(stream))
        assert await read.get() == 0
        offer(stream, accept)
        await asyncio.sleep(0)
        # No await from here on: no task can have run.
        assert origin.tell(1)
        assert origin.tell(2)
        assert taken == [1, 2]
        assert not origin.tell(1000)
        assert not origin.tell(3), "what was refused goes first"
        assert await read.get() == 1000
        await three.wait()
        assert taken == [1, 2, 3]
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        assert not origin.tell(4), "the reader has left"
        await local.cancelled_handlers_ended()
        assert taken == [1, 2, 3]


async def test_a_stream_with_an_outlet_leaves_no_garbage() -> None:
    async with TRANSPORTS["local"](Echo(count=lambda *_: Echoing().count(None, None))) as client:

        async def once() -> None:
            stream = client.count(CountRequest(), Call("req_1").within(60))
            offer(stream, lambda _: False)
            await anext(stream)
            await stream.aclose()
            await local.cancelled_handlers_ended()
            await asyncio.sleep(0)

        await once()
        gc.collect()
        gc.disable()
        try:
            await once()
            assert gc.collect() == 0
        finally:
            gc.enable()
