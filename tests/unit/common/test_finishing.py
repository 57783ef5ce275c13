"""Who is cancelled leaves when the work is done, or when it takes too long."""

from __future__ import annotations

import asyncio

import pytest

from services.common.finishing import finished


class Work:
    """Begins, goes on when it is told to, and notes how it ended."""

    def __init__(self) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.end = ""

    async def __call__(self) -> str:
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.end = "cancelled"
            raise
        self.end = "done"
        return "result"


async def test_the_result_is_returned_and_errors_are_raised():
    work = Work()
    work.go_on.set()
    assert await finished(work()) == "result"

    async def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await finished(fail())


async def test_who_is_cancelled_stays_until_the_work_is_done():
    work = Work()
    waiting = asyncio.create_task(finished(work()))
    await work.begun.wait()
    waiting.cancel()
    # It has been told, and stays.
    await asyncio.sleep(0)
    assert not waiting.done()
    work.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.end == "done"


@pytest.mark.parametrize("again", [False, True])
async def test_nobody_stays_for_ever(again):
    """Neither beyond the limit, nor when cancelled again."""
    work = Work()
    waiting = asyncio.create_task(finished(work(), None if again else 0.01))
    await work.begun.wait()
    waiting.cancel()
    if again:
        await asyncio.sleep(0)
        waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)
    assert work.end == "cancelled"
