"""The embedded queue: who works on a message for long has it alone."""

from __future__ import annotations

import asyncio
from typing import Any

from services.common.outbox import TAKEN_S, Outbox
from services.workflow.engine.dispatcher import Dispatcher
from services.workflow.tables import outbox as table
from tests.integration.jobs.conftest import Engine

QUEUE = "job.notify"


class Watched(Outbox):
    """Counts how often it has kept messages."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.jobs.database, table)
        self.fails = 0
        self.failed = 0
        self._kept = asyncio.Condition()

    async def keep(self, *arguments: Any) -> None:
        if self.fails:
            self.fails -= 1
            self.failed += 1
            raise OSError("the database is away")
        await super().keep(*arguments)
        async with self._kept:
            self._kept.notify_all()

    async def kept_again(self) -> None:
        """Wait for one that has begun after now."""
        async with asyncio.timeout(20), self._kept:
            for _ in range(2):
                await self._kept.wait()


async def test_a_message_whose_handler_is_slow_is_not_handed_out_again(engine: Engine) -> None:
    """As to a receiver of notifications that takes its time: it would get each again every ten seconds."""
    outbox, begun, gate = Watched(engine), asyncio.Event(), asyncio.Event()
    handled: list[str] = []

    async def handle(subject: str) -> None:
        handled.append(subject)
        begun.set()
        await gate.wait()

    dispatcher = Dispatcher(outbox, {QUEUE: handle}, {QUEUE: 2}, engine.clock, keep_s=0.01)
    async with engine.jobs.database.transaction() as connection:
        await outbox.append(connection, QUEUE, "job_1", engine.now())
    dispatcher.start()
    await begun.wait()
    # A look that fails is made good by the next one.
    outbox.fails = 1
    for _ in range(3):
        engine.shift_s += TAKEN_S - 1
        await outbox.kept_again()
        # Another replica, and this one.
        assert not await engine.outbox.take(engine.now(), [QUEUE])
    assert outbox.failed == 1
    gate.set()
    await dispatcher.stop()
    assert handled == ["job_1"]
    assert await outbox.oldest() is None


async def test_a_message_whose_handler_has_failed_is_not_kept(engine: Engine) -> None:
    """Others have it once its time is over."""
    outbox, failed = Watched(engine), asyncio.Event()

    async def handle(subject: str) -> None:
        failed.set()
        raise ValueError("no")

    dispatcher = Dispatcher(outbox, {QUEUE: handle}, {QUEUE: 2}, engine.clock, keep_s=0.01)
    async with engine.jobs.database.transaction() as connection:
        await outbox.append(connection, QUEUE, "job_1", engine.now())
    dispatcher.start()
    await failed.wait()
    await dispatcher.stop()
    engine.shift_s += TAKEN_S + 1
    assert [each.subject_id for each in await engine.outbox.take(engine.now(), [QUEUE])] == ["job_1"]
