"""Work that repeats for as long as the service runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

# An action that takes longer than this to end is cancelled when the service stops.
STOP_GRACE_S = 2.0

_logger = logging.getLogger(__name__)


class Repeating:
    """Runs `action` each `interval_s` seconds, and at once when `wake` is set."""

    def __init__(
        self,
        name: str,
        interval_s: float,
        action: Callable[[], Awaitable[object]],
        wake: asyncio.Event | None = None,
    ) -> None:
        self._name = name
        self._interval_s = interval_s
        self._action = action
        self._wake = wake or asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """End after the action that is running, or in the middle of one that takes too long."""
        if self._task is not None:
            self._stopping = True
            self._wake.set()
            await asyncio.wait({self._task}, timeout=STOP_GRACE_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            if self._stopping:
                return
            try:
                await self._action()
            except Exception:
                # Top of a loop: it must outlive a database that is away for a while.
                _logger.exception("background_failed %s", self._name)
