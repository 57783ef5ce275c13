"""Wherever a caller is cancelled, or the database closed, no connection is left and the database goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any

import pytest

from services.common.db import Database
from tests.support.left_open import LeftOpen, watching


class InterruptedAt:
    """Awaits something; while it waits for the `number`th time, `interrupt` is called with its task."""

    def __init__(
        self,
        number: int,
        work: Coroutine[Any, Any, None],
        interrupt: Callable[[asyncio.Task[None]], None],
    ) -> None:
        self._number = number
        self._work = work
        self._interrupt = interrupt
        self.waited = 0

    @property
    def interrupted(self) -> bool:
        return self.waited > self._number

    async def run(self) -> None:
        await self

    def __await__(self) -> Generator[Any, Any, None]:
        resume: Callable[[], Any] = partial(self._work.send, None)
        while True:
            try:
                future = resume()
            except StopIteration:
                return
            if self.waited == self._number:
                asyncio.get_running_loop().call_soon(self._interrupt, asyncio.current_task())
            self.waited += 1
            try:
                yield future
            except BaseException as error:  # noqa: BLE001 - it is passed on
                resume = partial(self._work.throw, error)
            else:
                resume = partial(self._work.send, None)


async def write(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS things (id INTEGER)")
        await connection.exec_driver_sql("INSERT INTO things VALUES (1)")


async def read(database: Database) -> None:
    async with database.reading() as connection:
        await connection.exec_driver_sql("SELECT 1")


async def one_after_another(database: Database) -> None:
    """Without a pause in which who closes could come between."""
    await write(database)
    await read(database)


def cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def cancel_again_and_again(task: asyncio.Task[None]) -> None:
    """Also what it does because it was cancelled."""
    loop = asyncio.get_running_loop()
    task.cancel()
    loop.call_soon(task.cancel)
    loop.call_soon(loop.call_soon, task.cancel)


def close(
    database: Database, closing: list[Awaitable[None]], cancelled: bool, task: asyncio.Task[None]
) -> None:
    """As a process that ends does."""
    if cancelled:
        task.cancel()
    closing.append(asyncio.create_task(database.close()))


def begin_to_read(database: Database, late: list[Awaitable[None]], _: asyncio.Task[None]) -> None:
    late.append(asyncio.create_task(read(database)))


async def _nothing_is_left(left: LeftOpen) -> None:
    """No connection and no task, once the threads have ended that were told to."""
    for connection in left.open():
        if thread := getattr(connection, "_thread", None):
            await asyncio.to_thread(thread.join, 20)
    assert left.open() == []
    if others := asyncio.all_tasks() - {asyncio.current_task()}:
        _, others = await asyncio.wait(others, timeout=5)
    assert not others


@pytest.mark.parametrize("work", [write, read])
@pytest.mark.parametrize("used", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("interrupt", [cancel, cancel_again_and_again])
async def test_cancelled_anywhere(
    database_url: str,
    work: Callable[[Database], Coroutine[Any, Any, None]],
    used: bool,
    interrupt: Callable[[asyncio.Task[None]], None],
) -> None:
    for number in range(1000):
        with watching() as left:
            database = Database(database_url, "public", pool_size=1)
            if used:
                await read(database)
            caller = InterruptedAt(number, work(database), interrupt)
            [outcome] = await asyncio.gather(asyncio.create_task(caller.run()), return_exceptions=True)
            async with asyncio.timeout(60):
                await write(database)
                await database.close()
            await _nothing_is_left(left)
        if not caller.interrupted:
            break
        assert isinstance(outcome, asyncio.CancelledError) or interrupt is not cancel, (number, outcome)
    assert outcome is None
    assert number > 2


@pytest.mark.parametrize("work", [write, read, one_after_another])
@pytest.mark.parametrize("cancelled", [False, True])
async def test_closed_anywhere(
    database_url: str, work: Callable[[Database], Coroutine[Any, Any, None]], cancelled: bool
) -> None:
    for number in range(1000):
        closing: list[Awaitable[None]] = []
        with watching() as left:
            database = Database(database_url, "public", pool_size=1)

            caller = InterruptedAt(number, work(database), partial(close, database, closing, cancelled))
            [outcome] = await asyncio.gather(asyncio.create_task(caller.run()), return_exceptions=True)
            await asyncio.gather(*closing or [database.close()])
            await _nothing_is_left(left)
        if not caller.interrupted:
            break
        assert isinstance(outcome, asyncio.CancelledError) if cancelled else outcome is None, outcome
    assert number > 2


async def test_who_comes_while_it_closes_or_later(database_url: str) -> None:
    for number in range(1000):
        with watching() as left:
            database = Database(database_url, "public", pool_size=1)
            await read(database)
            late: list[Awaitable[None]] = []
            closing = InterruptedAt(number, database.close(), partial(begin_to_read, database, late))
            await asyncio.create_task(closing.run())
            await asyncio.gather(*late or [read(database)])
            await _nothing_is_left(left)
        if not closing.interrupted:
            break
    # The driver for PostgreSQL closes without a pause.
    assert number > 0 or not database.sqlite
