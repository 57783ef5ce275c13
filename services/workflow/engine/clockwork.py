"""What happens by itself: providers are asked how far they are, deadlines pass, lost attempts come back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime

from services.workflow.engine.worker import POLL_LIMIT_S, Worker
from services.workflow.store.attempts import SECOND, Attempts
from services.workflow.store.jobs import Jobs

TICK_S = 0.5
SWEEP_S = 5.0
POLLS_AT_ONCE = 50

_logger = logging.getLogger(__name__)


class Clockwork:
    """Two loops; replicas share the work through the database."""

    def __init__(self, jobs: Jobs, attempts: Attempts, worker: Worker, clock: Callable[[], datetime]) -> None:
        self._jobs = jobs
        self._attempts = attempts
        self._worker = worker
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        loops = ((self.poll, TICK_S), (self.sweep, SWEEP_S))
        self._tasks = [asyncio.create_task(_repeat(action, pause)) for action, pause in loops]

    async def stop(self) -> None:
        """End."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _now(self) -> int:
        return round(self._clock().timestamp() * SECOND)

    async def poll(self) -> None:
        """Ask every provider whose time has come."""
        due = await self._attempts.due_polls(self._now(), POLL_LIMIT_S)
        gate = asyncio.Semaphore(POLLS_AT_ONCE)

        async def ask(attempt: object, job: object) -> None:
            async with gate:
                await self._worker.poll(attempt, job)

        await asyncio.gather(*(ask(attempt, job) for attempt, job in due))

    async def sweep(self) -> None:
        """End what is too late, and bring back what was lost."""
        await self._jobs.expire_due(self._now())
        await self._attempts.bring_back_lost(self._now())


async def _repeat(action: Callable[[], Awaitable[None]], pause_s: float) -> None:
    while True:
        try:
            await action()
        except Exception:
            _logger.exception("job_clockwork_failed")
        await asyncio.sleep(pause_s)
