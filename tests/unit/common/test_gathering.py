"""What is asked for at the same time is done together; who fails fails alone."""

from __future__ import annotations

import asyncio

import pytest

from services.common.gathering import Gathering


class Work:
    """Doubles numbers, once the gate is open; refuses odd company."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def __call__(self, items):
        self.batches.append(list(items))
        self.begun.set()
        await self.gate.wait()
        if 13 in items:
            raise ValueError("13")
        return [2 * item for item in items]


async def test_one_that_comes_alone_is_done_at_once():
    work = Work()
    assert await Gathering(work)(1) == 2
    assert work.batches == [[1]]


async def test_those_that_come_meanwhile_are_done_together():
    work = Work()
    gathering = Gathering(work, most=3)
    work.gate.clear()
    asked = [asyncio.create_task(gathering(number)) for number in range(6)]
    await work.begun.wait()
    work.gate.set()
    assert await asyncio.gather(*asked) == [0, 2, 4, 6, 8, 10]
    assert work.batches == [[0, 1, 2], [3, 4, 5]]


async def test_one_that_cannot_be_done_fails_alone():
    work = Work()
    gathering = Gathering(work)
    results = await asyncio.gather(*(gathering(number) for number in (1, 13, 2)), return_exceptions=True)
    assert results[0] == 2
    assert isinstance(results[1], ValueError)
    assert results[2] == 4
    assert work.batches == [[1, 13, 2], [1], [13], [2]]
    assert await gathering(3) == 6


async def test_who_leaves_stops_nothing():
    work = Work()
    gathering = Gathering(work)
    work.gate.clear()
    leaving, staying = (asyncio.create_task(gathering(number)) for number in (1, 2))
    await work.begun.wait()
    leaving.cancel()
    work.gate.set()
    assert await staying == 4
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_after_company_it_waits_for_more():
    work = Work()
    gathering = Gathering(work, linger_s=0.01)
    work.gate.clear()
    first = [asyncio.create_task(gathering(number)) for number in (1, 2)]
    await work.begun.wait()
    work.gate.set()
    await asyncio.gather(*first)
    # It lingers: these come one after the other and are done together.
    late = []
    for number in (3, 4):
        late.append(asyncio.create_task(gathering(number)))
        await asyncio.sleep(0)
    assert work.batches == [[1, 2]]
    assert await asyncio.gather(*late) == [6, 8]
    assert work.batches == [[1, 2], [3, 4]]


async def test_who_is_alone_does_not_wait():
    work = Work()
    gathering = Gathering(work, linger_s=3600.0)
    for number in (1, 2, 3):
        assert await gathering(number) == 2 * number
    assert work.batches == [[1], [2], [3]]
