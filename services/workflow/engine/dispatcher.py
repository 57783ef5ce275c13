"""The embedded queue: the outbox is drained in this process, each queue with a bounded number at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime

from services.common.outbox import SECOND, TAKEN_S, Message, Outbox

POLL_S = 0.5
STOP_GRACE_S = 5.0
# What lasts longer is kept from others, so often that a look that fails does no harm.
KEEP_S = TAKEN_S / 4
# Messages handed to a handler of many at a time, and the pause before those it could not work off.
BULK = 100
RETRY_S = 5
GATHER_S = 0.1

Handler = Callable[[str], Awaitable[None]]
BulkHandler = Callable[[Sequence[str]], Awaitable[Collection[str]]]
"""Takes subjects, and returns those it has worked off."""

_logger = logging.getLogger(__name__)


class Dispatcher:
    """Hands messages to handlers by queue, and removes them once these have returned."""

    def __init__(
        self,
        outbox: Outbox,
        handlers: Mapping[str, Handler],
        concurrency: Mapping[str, int],
        clock: Callable[[], datetime],
        keep_s: float = KEEP_S,
    ) -> None:
        self._outbox = outbox
        self._keep_s = keep_s
        self._handlers = handlers
        self._room = dict(concurrency)
        self._clock = clock
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._running: dict[asyncio.Task[None], Message] = {}

    def start(self) -> None:
        """Begin to drain."""
        self._loop = asyncio.create_task(self._drain(), name="job-dispatcher")
        self._keeper = asyncio.create_task(self._keep(), name="job-keeper")

    async def stop(self) -> None:
        """Stop taking messages, let handlers end for a moment; what they leave is taken again later."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        if self._running:
            await asyncio.wait(self._running, timeout=STOP_GRACE_S)
        left = [*self._running, *([self._keeper] if self._keeper else [])]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def wake(self) -> None:
        """Look for messages now: one has just been written."""
        self._wake.set()

    async def _drain(self) -> None:
        while True:
            self._wake.clear()
            try:
                found = await self._take()
            except Exception:
                # The database is away for a moment.
                _logger.exception("outbox_not_read")
                found = False
            if not found:
                try:
                    async with asyncio.timeout(POLL_S):
                        await self._wake.wait()
                except TimeoutError:
                    continue

    async def _keep(self) -> None:
        """Keep messages from being taken again, here or elsewhere, while their handlers work."""
        before: set[int] = set()
        while True:
            await asyncio.sleep(self._keep_s)
            running = {message.id for message in self._running.values()}
            before, lasting = running, running & before
            try:
                await self._outbox.keep(sorted(lasting), round(self._clock().timestamp() * SECOND))
            except Exception:
                _logger.exception("messages_not_kept")

    async def _take(self) -> bool:
        """Hand out what there is room for. Tells whether there was anything."""
        now = round(self._clock().timestamp() * SECOND)
        with_room = {queue: room for queue, room in self._room.items() if room > 0}
        # One question for all queues: mostly nothing is due in any.
        if not with_room or not await self._outbox.has_due(now, list(with_room)):
            return False
        found = False
        for queue, room in with_room.items():
            for message in await self._outbox.take(now, [queue], room):
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


class BulkDispatcher:
    """Hands the messages of one queue to a handler many at a time, and removes those it has worked off."""

    def __init__(
        self,
        outbox: Outbox,
        queue: str,
        handler: BulkHandler,
        clock: Callable[[], datetime],
    ) -> None:
        self._outbox = outbox
        self._queue = queue
        self._handler = handler
        self._clock = clock
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to drain."""
        self._loop = asyncio.create_task(self._drain(), name=f"{self._queue}-dispatcher")

    async def stop(self) -> None:
        """Stop; what is not worked off is taken again later."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    def wake(self) -> None:
        """Look for messages now."""
        self._wake.set()

    async def _drain(self) -> None:
        while True:
            self._wake.clear()
            try:
                found = await self.drain_once()
            except Exception:
                _logger.exception("queue_failed %s", self._queue)
                found = 0
            if not found:
                try:
                    async with asyncio.timeout(POLL_S):
                        await self._wake.wait()
                except TimeoutError:
                    continue
            if found < BULK:
                # Others may come in a moment: together they cost less.
                await asyncio.sleep(GATHER_S)

    async def drain_once(self) -> int:
        """Work off what is due. Returns how many messages there were."""
        messages = await self._outbox.take(self._now(), [self._queue], BULK)
        if not messages:
            return 0
        done = await self._handler(list(dict.fromkeys(message.subject_id for message in messages)))
        await self._outbox.passed_on([each.id for each in messages if each.subject_id in done])
        later = self._now() + RETRY_S * SECOND
        await self._outbox.give_back([each.id for each in messages if each.subject_id not in done], later)
        return len(messages)

    def _now(self) -> int:
        return round(self._clock().timestamp() * SECOND)
