"""The time of the database, for what several processes compare: their own clocks may differ by minutes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from services.common.db import Database

MEASURE_EVERY_S = 30.0

_logger = logging.getLogger(__name__)


class DatabaseClock:
    """This process's clock, put right by that of PostgreSQL. With SQLite there is one clock anyway."""

    def __init__(self, database: Database, local: Callable[[], datetime]) -> None:
        self._database = database
        self._local = local
        self._offset = timedelta()
        self._task: asyncio.Task[None] | None = None

    def __call__(self) -> datetime:
        """Return the current time, in UTC."""
        return self._local() + self._offset

    async def start(self) -> None:
        """Measure, and keep measuring."""
        if self._database.sqlite:
            return
        await self.measure()
        self._task = asyncio.create_task(self._keep(), name="database-clock")

    async def stop(self) -> None:
        """Stop measuring."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def measure(self) -> None:
        """Compare the clocks. The answer is taken to have been written half way."""
        async with self._database.reading() as connection:
            await connection.execute(sa.select(1))
            before = self._local()
            there: datetime = (await connection.execute(sa.select(sa.func.clock_timestamp()))).scalar_one()
            after = self._local()
        self._offset = there - (before + (after - before) / 2)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(MEASURE_EVERY_S)
            try:
                await self.measure()
            except (SQLAlchemyError, OSError) as error:
                _logger.warning("database_clock_unknown %s", type(error).__name__)
            except Exception:
                _logger.exception("database_clock_unknown")
