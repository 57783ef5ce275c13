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
# One call that was not answered may have been bad luck: a crowd does not fail for it.
TOLERATED = 1
_Answer = TypeVar("_Answer")


class _Turn:
    """The turns of one key, for as long as anybody has one or waits."""

    __slots__ = ("gate", "users")

    def __init__(self, at_once: int) -> None:
        self.gate = asyncio.Semaphore(at_once)
        self.users = 0


class Turns:
    """Turns of each key, `at_once` at a time.

    Who has waited while the peer did not answer, and not when asked again either, is told so, too.
    """

    def __init__(self, at_once: int = 1) -> None:
        self._at_once = at_once
        self._turns: dict[str, _Turn] = {}
        self._silences: dict[str, list[float]] = {}

    @asynccontextmanager
    async def of(self, key: str) -> AsyncIterator[None]:
        """Wait for a turn and take it. Raises RpcError when the peer has not answered meanwhile."""
        came = time.monotonic()
        if (turn := self._turns.get(key)) is None:
            turn = self._turns[key] = _Turn(self._at_once)
        turn.users += 1
        try:
            async with turn.gate:
                silences = self._silences.get(key, ())
                if len(silences) > TOLERATED and came < silences[-1 - TOLERATED]:
                    raise RpcError("UNAVAILABLE", "billing does not answer; retry", retry_after_s=1)
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                # Nothing is kept of who has had a turn once: whoever comes later has not waited in silence.
                del self._turns[key]
                self._silences.pop(key, None)

    async def ask(self, key: str, asked: Awaitable[_Answer]) -> _Answer:
        """Return what the peer answers, and note whether it does."""
        asked_at = time.monotonic()
        try:
            answer = await asked
        except RpcError as error:
            if error.reason in _SILENT:
                self._note_silence(key, asked_at)
            raise
        self._silences.pop(key, None)
        return answer

    def _note_silence(self, key: str, asked_at: float) -> None:
        """Note when a silence ended; calls that were under way side by side are one."""
        if key not in self._turns:
            return  # Nobody waits who could be told.
        silences = self._silences.setdefault(key, [])
        if not silences or asked_at >= silences[-1]:
            silences.append(time.monotonic())
            del silences[: -1 - TOLERATED]
