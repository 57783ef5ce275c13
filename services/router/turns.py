"""One after the other, without a queue before a peer that does not answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from services.common.rpc import RpcError

# Not about whoever asked, and slow to come: those who wait would wait as long again, each after the other.
_SILENT = ("UNAVAILABLE", "DEADLINE_EXCEEDED")
_Answer = TypeVar("_Answer")


class Turns:
    """Turns of each key, `at_once` at a time. Who waits while the peer does not answer is told so, too."""

    def __init__(self, at_once: int = 1) -> None:
        self._at_once = at_once
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._silent: dict[str, tuple[float, RpcError]] = {}

    @asynccontextmanager
    async def of(self, key: str) -> AsyncIterator[None]:
        """Wait for a turn and take it. Raises RpcError when the peer has not answered meanwhile."""
        came = time.monotonic()
        if (turns := self._turns.get(key)) is None:
            turns = self._turns[key] = asyncio.Semaphore(self._at_once)
        async with turns:
            if (silent := self._silent.get(key)) is not None and came < silent[0]:
                error = silent[1]
                raise RpcError(error.reason, error.message, retry_after_s=error.retry_after_s)
            yield

    async def ask(self, key: str, asked: Awaitable[_Answer]) -> _Answer:
        """Return what the peer answers, and note whether it does."""
        try:
            answer = await asked
        except RpcError as error:
            if error.reason in _SILENT:
                self._silent[key] = time.monotonic(), error
            raise
        self._silent.pop(key, None)
        return answer
