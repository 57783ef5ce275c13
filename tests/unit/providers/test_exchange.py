"""How long a provider may be silent, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from services.providers.domain.failure import MID_STREAM, Failures, ProviderError
from services.providers.http import Exchange, Timeouts
from services.providers.posting import Answer
from services.providers.wire import Body

LIMITS = Timeouts(connect_s=5, first_token_s=15, idle_s=10, total_s=100)


class Clock:
    """As much of an event loop as timers need."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Any:
        timer = (when, callback)
        self.timers.append(timer)
        return Handle(self, timer)

    def move(self, until: float) -> None:
        while due := sorted(
            (timer for timer in self.timers if timer[0] <= until), key=lambda timer: timer[0]
        ):
            self.timers.remove(due[0])
            self.now = due[0][0]
            due[0][1]()
        self.now = until


class Handle:
    def __init__(self, clock: Clock, timer: tuple[float, Callable[[], None]]) -> None:
        self._clock, self._timer = clock, timer

    def cancel(self) -> None:
        if self._timer in self._clock.timers:
            self._clock.timers.remove(self._timer)


class Line:
    """Stands for a connection."""

    transport = None

    def read_on(self) -> None:
        """Nothing was stopped."""

    def close(self) -> None:
        """Nothing is open."""


def begun(clock: Clock) -> tuple[Exchange, Body]:
    """Return an answer in the middle of its stream."""
    line: Any = Line()
    body = Body(line, asyncio.get_running_loop())
    loop: Any = clock
    exchange = Exchange(Answer(200, {}, body, line), LIMITS, Failures("p", "m", ()), 0, loop)
    exchange.phase, exchange.got_token = MID_STREAM, True
    return exchange, body


def heard(exchange: Exchange) -> list[bytes]:
    """Take what comes without reading it; return what was taken so far, and after."""
    taken = []

    def accept(data: bytes) -> bool:
        taken.append(data)
        exchange.touch()
        return True

    exchange.offer_to(accept)
    return taken


async def test_who_is_heard_without_being_read_may_go_on() -> None:
    clock = Clock()
    exchange, body = begun(clock)
    taken = heard(exchange)
    reading = asyncio.ensure_future(exchange.read_chunk())
    await asyncio.sleep(0)
    for second in range(9, 60, 9):
        clock.move(second)
        assert body.feed(b"more") == 0
    assert len(taken) == 6
    assert not reading.done()
    clock.move(54 + 9.9)
    await asyncio.sleep(0)
    assert not reading.done()
    clock.move(54 + 10.1)
    with pytest.raises(ProviderError, match="silent for 10 s") as raised:
        await reading
    assert raised.value.reason == "PROVIDER_TIMEOUT"
    exchange.close()
    assert not clock.timers
    assert body.accept is None


async def test_whoever_speaks_ends_with_the_whole_time() -> None:
    clock = Clock()
    exchange, body = begun(clock)
    heard(exchange)
    reading = asyncio.ensure_future(exchange.read_chunk())
    await asyncio.sleep(0)
    for second in range(9, 100, 9):
        clock.move(second)
        body.feed(b"more")
    clock.move(100)
    with pytest.raises(ProviderError, match="no complete answer within 100 s"):
        await reading
    exchange.close()
