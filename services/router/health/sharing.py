"""Replicas tell each other how providers do, through the database and behind the requests' back.

Each writes what it has measured and, at once, which circuits have opened; each reads every few seconds
which have opened elsewhere, and is careful with those: one request at a time probes. No request waits for
any of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

import sqlalchemy as sa

from services.router.health.health import Health
from services.router.health.store import HealthStore, Minute, Opening

WRITE_EVERY_S = 10.0
# What opened longer ago has been probed by whoever saw it.
RECENT_MS = 60_000
FORGET_EVERY_S = 3600.0
# Clocks of replicas differ; a row that is a little older than the last look may still be news.
_SKEW_MS = 30_000

_logger = logging.getLogger(__name__)


class HealthSharing:
    """The background work of health."""

    def __init__(
        self,
        health: Health,
        store: HealthStore,
        instance_id: str,
        interval_s: float,
        retention_days: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._health = health
        self._store = store
        self._instance_id = instance_id
        self._interval_s = interval_s
        self._retention_minutes = retention_days * 1440
        self._clock = clock
        self._opened: dict[str, Opening] = {}
        self._wake = asyncio.Event()
        self._seen: dict[tuple[str, str], int] = {}
        self._elsewhere: dict[str, set[str]] = {}
        self._task: asyncio.Task[None] | None = None
        health.on_opened = self._note

    def _note(self, name: str, reason: str) -> None:
        now_ms = int(self._clock() * 1000)
        self._opened[name] = Opening(name, self._instance_id, now_ms, reason)
        self._wake.set()

    def opened_elsewhere(self, name: str) -> int:
        """Return how many other processes have opened a circuit within the last minute."""
        return len(self._elsewhere.get(name, ()))

    async def write(self) -> None:
        """Write what has changed here."""
        changed = self._health.measurements.take_changed()
        minutes = [Minute(minute, target, self._instance_id, tally) for target, minute, tally in changed]
        opened, self._opened = self._opened, {}
        try:
            await self._store.write(minutes, opened.values())
        except (sa.exc.SQLAlchemyError, OSError):
            # What is measured next is written with what was measured before; openings are not.
            self._opened = {**opened, **self._opened}
            raise

    async def read(self) -> None:
        """Take in which circuits have opened elsewhere."""
        since = int(self._clock() * 1000) - RECENT_MS
        elsewhere: dict[str, set[str]] = {}
        for opening in await self._store.openings(since - _SKEW_MS):
            if opening.instance_id == self._instance_id:
                continue
            elsewhere.setdefault(opening.name, set()).add(opening.instance_id)
            key = opening.name, opening.instance_id
            if self._seen.get(key, 0) < opening.opened_at_ms:
                self._seen[key] = opening.opened_at_ms
                self._health.caution(opening.name)
        self._elsewhere = elsewhere
        self._seen = {key: at for key, at in self._seen.items() if at >= since - _SKEW_MS}

    async def forget(self) -> None:
        """Delete what is too old."""
        now = self._clock()
        await self._store.delete_before(
            int(now // 60) - self._retention_minutes, int(now * 1000) - 2 * RECENT_MS
        )

    def start(self) -> None:
        """Start the loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop the loop and write what is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            with contextlib.suppress(sa.exc.SQLAlchemyError, OSError):
                await self.write()

    async def _run(self) -> None:
        written = forgotten = 0.0
        while True:
            try:
                now = time.monotonic()
                if self._opened or now - written >= WRITE_EVERY_S:
                    written = now
                    await self.write()
                await self.read()
                if now - forgotten >= FORGET_EVERY_S:
                    forgotten = now
                    await self.forget()
            except (sa.exc.SQLAlchemyError, OSError) as error:
                _logger.warning("health_not_shared %s", error)
            except Exception:
                _logger.exception("health_not_shared")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._wake.wait()
            self._wake.clear()
