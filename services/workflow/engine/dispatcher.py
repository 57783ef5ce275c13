"""The embedded queue: the outbox is drained in this process, each queue with a bounded number at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime

from services.common.outbox import SECOND, Message, Outbox

POLL_S = 0.5
STOP_GRACE_S = 5.0

Handler = Callable[[str], Awaitable[None]]

_logger = logging.getLogger(__name__)


class Dispatcher:
    """Hands messages to handlers by queue, and removes them once these have returned."""

    def __init__(
        self,
        outbox: Outbox,
        handlers: Mapping[str, Handler],
        concurrency: Mapping[str, int],
        clock: Callable[[], datetime],
    ) -> None:
        self._outbox = outbox
        self._handlers = handlers
        self._room = dict(concurrency)
        self._clock = clock
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._running: dict[asyncio.Task[None], Message] = {}

    def start(self) -> None:
        """Begin to drain."""
        self._loop = asyncio.create_task(self._drain(), name="job-dispatcher")

    async def stop(self) -> None:
        """Stop taking messages, let handlers end for a moment; what they leave is taken again later."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        if self._running:
            await asyncio.wait(self._running, timeout=STOP_GRACE_S)
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def wake(self) -> None:
        """Look for messages now: one has just been written."""
        self._wake.set()

    async def _drain(self) -> None:
        while True:
            self._wake.clear()
            if not await self._take():
                try:
                    async with asyncio.timeout(POLL_S):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    async def _take(self) -> bool:
        """Hand out what there is room for. Tells whether there was anything."""
        now = round(self._clock().timestamp() * SECOND)
        found = False
        for queue, room in list(self._room.items()):
            for message in await self._outbox.take(now, [queue], room) if room > 0 else ():
                found = True
                self._room[queue] -= 1
                task = asyncio.create_task(self._handle(message))
                self._running[task] = message
                task.add_done_callback(self._ended)
        return found

    def _ended(self, task: asyncio.Task[None]) -> None:
        message = self._running.pop(task)
        self._room[message.queue] += 1
        self._wake.set()

    async def _handle(self, message: Message) -> None:
        try:
            await self._handlers[message.queue](message.subject_id)
        except Exception:
            # The message stays and is taken again; the attempt's lease keeps others out meanwhile.
            _logger.exception("message_failed %s %s", message.queue, message.subject_id)
            return
        await self._outbox.passed_on([message.id])
