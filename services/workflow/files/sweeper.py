"""The lifecycle of files: what has expired goes, with its content. One replica at a time does it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from services.common.outbox import SECOND
from services.workflow.files.store import FileStore
from services.workflow.store.duties import Duties

EVERY_S = 60.0
BATCH = 200

_logger = logging.getLogger(__name__)


class Sweeper:
    """Removes expired files in the background."""

    def __init__(self, files: FileStore, duties: Duties, clock: Callable[[], datetime]) -> None:
        self._files = files
        self._duties = duties
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="file-sweeper")

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except Exception:
                _logger.exception("file_sweep_failed")
            await asyncio.sleep(EVERY_S)

    async def sweep(self) -> int:
        """Remove what has expired, when it is this replica's turn; return how many files."""
        now = round(self._clock().timestamp() * SECOND)
        if not await self._duties.take("file-sweep", 2 * EVERY_S, now):
            return 0
        removed = 0
        while count := await self._files.remove_expired(now, BATCH):
            removed += count
        while await self._files.sweep_contents(now, BATCH):
            continue
        return removed
