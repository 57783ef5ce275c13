"""Changes of data that other processes keep in memory, visible everywhere within 5 s.

The owner appends to its `changes` table in the transaction that makes the change and serves a
`WatchChanges` rpc; a follower reads it and drops what it cached. The table is polled each
second, so nothing depends on a notification arriving.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import sqlalchemy as sa
from omnihub.common.v1 import change_pb2
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.db import LOCK_TIMEOUT_MS, Database
from services.common.rpc.call import Call
from services.common.rpc.errors import RpcError

POLL_S = 1.0
# A follower that has heard nothing for this long no longer trusts what it cached.
STALE_S = 4.0
BATCH = 1000
# Changes become visible in commit order, their numbers are given earlier: a reader goes back this far so
# that a slow transaction with a low number is not skipped. Changes are idempotent, so repeats are harmless.
OVERLAP = 200
# Longer than any transaction that appends can wait for its lock.
SETTLED_S = 2 * LOCK_TIMEOUT_MS / 1000

_logger = logging.getLogger(__name__)


def changes_table(metadata: sa.MetaData) -> sa.Table:
    """Return the `changes` table; the service's migration creates it with the same columns."""
    return sa.Table(
        "changes",
        metadata,
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("topic", sa.String(64), nullable=False),
        sa.Column("key", sa.String(256), nullable=False),
    )


class ChangeFeed:
    """The owner's side."""

    def __init__(self, database: Database, table: sa.Table, *, sole_writer: bool = True) -> None:
        """Make the feed. `sole_writer`: on SQLite only this process writes to the file."""
        self._database = database
        self._table = table
        self._sole_writer = sole_writer
        self._appended_at = time.monotonic()
        newer = table.c.seq > sa.bindparam("after", type_=table.c.seq.type)
        self._next = sa.select(table).where(newer).order_by(table.c.seq).limit(BATCH)

    async def append(self, connection: AsyncConnection, topic: str, *keys: str) -> None:
        """Record that `keys` changed, in the transaction that changes them."""
        if keys:
            self._appended_at = time.monotonic()
            rows = [{"topic": topic, "key": key} for key in keys]
            await connection.execute(sa.insert(self._table), rows)

    async def position(self) -> int:
        """Return the number of the newest change."""
        async with self._database.reading() as connection:
            newest = await connection.scalar(sa.select(sa.func.max(self._table.c.seq)))
        return newest or 0

    async def since(self, seq: int) -> list[change_pb2.Change]:
        """Return the next changes after `seq`, oldest first."""
        rows = await self._database.look(self._next, after=seq)
        return [change_pb2.Change(seq=row.seq, topic=row.topic, key=row.key) for row in rows]

    async def watch(self, after_seq: int) -> AsyncIterator[tuple[Sequence[change_pb2.Change], int]]:
        """Yield new changes and the feed's position, at least once a second, for ever."""
        seen: set[int] = set()
        seq = after_seq
        looked = False
        while True:
            found = [] if looked and self._nothing_new() else await self.since(max(0, seq - OVERLAP))
            looked = True
            fresh = [change for change in found if change.seq > after_seq and change.seq not in seen]
            seen.update(change.seq for change in fresh)
            seq = max([seq, *seen])
            seen = {number for number in seen if number > seq - OVERLAP}
            yield fresh, seq
            if len(found) < BATCH:
                await asyncio.sleep(POLL_S)

    def _nothing_new(self) -> bool:
        """Tell whether a look at the table can be saved: only this process writes to the file."""
        return (
            self._sole_writer and self._database.sqlite and time.monotonic() - self._appended_at > SETTLED_S
        )


class Follower:
    """The reader's side: calls `on_change` for each change, and knows how fresh it is."""

    def __init__(
        self,
        watch: Callable[[Any, Call], AsyncIterator[Any]],
        make_request: Callable[..., Any],
        on_change: Callable[[Sequence[change_pb2.Change]], Awaitable[None]],
    ) -> None:
        self._watch = watch
        self._make_request = make_request
        self._on_change = on_change
        self._seq = 0
        self._heard_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._first = asyncio.Event()

    @property
    def fresh(self) -> bool:
        """Tell whether a change made STALE_S ago would have arrived."""
        return time.monotonic() - self._heard_at < STALE_S

    def start(self) -> None:
        """Begin following in the background."""
        self._task = asyncio.create_task(self._follow())

    async def wait_until_heard(self, timeout_s: float) -> None:
        """Wait for the first answer of the owner. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await self._first.wait()

    async def stop(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            try:
                await self._read()
            except RpcError as error:
                _logger.warning("change_feed_interrupted %s", error)
            except Exception:
                # The changes it failed at are asked for again: nothing is missed.
                _logger.exception("change_feed_interrupted")
            await asyncio.sleep(POLL_S)

    async def _read(self) -> None:
        # A change may have got its number before the last one seen and become visible after it.
        request = self._make_request(after_seq=max(0, self._seq - OVERLAP))
        stream: Any = self._watch(request, Call.internal())
        async with aclosing(stream):
            async for answer in stream:
                if answer.changes:
                    await self._on_change(answer.changes)
                self._seq = max(self._seq, answer.seq)
                self._heard_at = time.monotonic()
                self._first.set()
