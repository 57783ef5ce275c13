"""Keys that sign notifications: fetched once, kept for a day, fetched again when a signature fits none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

KEPT_S = 24 * 3600.0
# A forger must not make us ask all the time.
RENEWED_EVERY_S = 60.0

Key = TypeVar("Key")


class SigningKeys(Generic[Key]):
    """A cache of one provider's keys."""

    def __init__(
        self, fetch: Callable[[], Awaitable[Sequence[Key]]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._keys: Sequence[Key] = ()
        self._fetched_at = float("-inf")
        self._renewed_at = float("-inf")
        self._lock = asyncio.Lock()

    async def current(self) -> Sequence[Key]:
        """Return the keys as they are known. Raises what fetching raises."""
        async with self._lock:
            if self._clock() - self._fetched_at >= KEPT_S:
                await self._renew()
        return self._keys

    async def renewed(self) -> Sequence[Key]:
        """Return the keys as they are now, or none when they were fetched again a moment ago."""
        async with self._lock:
            if self._clock() - self._renewed_at < RENEWED_EVERY_S:
                return ()
            self._renewed_at = self._clock()
            await self._renew()
        return self._keys

    async def _renew(self) -> None:
        self._keys = await self._fetch()
        self._fetched_at = self._clock()
