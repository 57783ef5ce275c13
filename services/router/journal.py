"""The journal's writer: durable before the last byte, without the event loop waiting for a disk.

One thread writes. It commits what has queued up while the last commit ran: a single record when
idle, a batch when busy.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from services.common.db import Database
from services.router.store import Record, journal

_logger = logging.getLogger(__name__)
# Bounds the memory of one commit, not the throughput.
BATCH = 500

_Waiting = tuple[Record, "asyncio.Future[None] | None"]


class Journal:
    """Appends records to the `journal` table of the router's database."""

    def __init__(self, database: Database, instance_id: str) -> None:
        self._database = database
        self._instance_id = instance_id
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start the writing thread."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._write_all, name="journal", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Write what is queued and end the thread."""
        if self._thread is not None:
            self._stopping.set()
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)

    async def append(self, record: Record) -> None:
        """Return once the record is durable. Raises what the database raised."""
        assert self._loop is not None
        written: asyncio.Future[None] = self._loop.create_future()
        self._queue.put((record, written))
        await written

    def append_soon(self, record: Record) -> None:
        """Append without waiting, for requests whose caller has gone."""
        self._queue.put((record, None))

    def _write_all(self) -> None:
        engine = self._database.synchronous_engine()
        try:
            with engine.connect() as connection:
                while batch := self._next_batch():
                    self._write(connection, batch)
        finally:
            engine.dispose()

    def _next_batch(self) -> list[_Waiting]:
        """Wait for a record and take all that are there. Empty when the writer is to stop."""
        batch: list[_Waiting] = []
        item = self._queue.get()
        while item is not None:
            batch.append(item)
            if len(batch) == BATCH:
                break
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                break
        else:
            # The stop sign: write what came before it, then find it again.
            if batch:
                self._queue.put(None)
        return batch

    def _write(self, connection: sa.Connection, batch: list[_Waiting]) -> None:
        rows = [
            {
                "attempt_id": record.attempt_id,
                "decision_id": record.decision_id,
                "organisation_id": record.organisation_id,
                "lease_id": record.lease_id,
                "instance_id": self._instance_id,
                "at": record.at_ms,
                "decision": record.decision,
                "charge": record.charge,
                "settled": not record.charge,
            }
            for record, _ in batch
        ]
        failure = self._commit(connection, rows)
        waiting = [future for _, future in batch if future is not None]
        if waiting and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_resolve, waiting, failure)

    def _commit(self, connection: sa.Connection, rows: list[dict[str, object]]) -> Exception | None:
        """Insert the rows once, whatever happened to earlier tries. Returns what went wrong for good."""
        insert = _insert_for(connection).on_conflict_do_nothing()
        failure: Exception | None = None
        for pause_s in (0.1, 0.5, 2, None):
            try:
                if self._database.sqlite:
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                connection.execute(insert, rows)
                connection.commit()
            except sa.exc.DBAPIError as error:
                failure = error
                connection.invalidate()
                connection.rollback()
                if pause_s is not None:
                    self._stopping.wait(pause_s)
            else:
                return None
        _logger.error("journal_write_failed records=%d", len(rows), exc_info=failure)
        return failure


def _insert_for(connection: sa.Connection) -> sqlite.Insert | postgresql.Insert:
    if connection.dialect.name == "sqlite":
        return sqlite.insert(journal)
    return postgresql.insert(journal)


def _resolve(futures: list[asyncio.Future[None]], failure: Exception | None) -> None:
    for future in futures:
        if future.done():
            continue
        if failure is None:
            future.set_result(None)
        else:
            future.set_exception(failure)
