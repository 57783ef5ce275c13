"""The journal's writer: durable before the last byte, without the event loop waiting for a disk.

Durable means that it survives `kill -9` of any process; on PostgreSQL, or with
`journal_survives_power_loss`, also the loss of the machine.

One thread writes. It commits what has queued up while the last commit ran: a single record when
idle, a batch when busy. Where a commit waits for nobody, the event loop writes itself what one turn of
it has brought (ADR 0028); what it cannot write at once is the thread's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.common.bulk import BulkInsert, OneOf, Row, name_of
from services.common.crash import CrashPoints
from services.common.db import Database
from services.router.accounting.inline_commits import InlineCommits
from services.router.accounting.store import Record, journal, unsettled
from services.router.responses.store import stored_response

_logger = logging.getLogger(__name__)
# Bounds the memory of one commit, not the throughput.
BATCH = 500
# More records than these in one turn of the event loop are the thread's: they take milliseconds.
TURN = 32
# Charges kept at hand while billing is away: more are read from the table again.
KEPT = 10_000
# Seconds between tries: a database that restarts is back before the last one.
PAUSES_S = (0.1, 0.5, 2.0)

_Waiting = tuple[Record, "asyncio.Future[None]"]
# Something to write: a record, or the ids of records that billing has booked.
_Item = _Waiting | tuple[list[str], "asyncio.Future[None]"]


@dataclass(frozen=True, slots=True)
class _Statements:
    """What writes a batch: each statement's text with its parameters, and how many records they hold."""

    of: Sequence[tuple[str, Any]]
    records: int


class JournalError(Exception):
    """A record could not be made durable for certain, so its answer is withheld.

    When only the confirmation of a commit was lost, each time, its charge is there and will be booked.
    """

    reason = "UNAVAILABLE"

    def __init__(self) -> None:
        self.message = (
            "the answer could not be recorded for certain and was not delivered; it may be charged all the "
            "same, look at the usage before you retry"
        )
        super().__init__(self.message)


class Unbooked:
    """Charges that are durable and not booked, kept at hand so that they need not be read again.

    The table holds them as well: what is not here, after a failure or because it was too much, is there.
    """

    def __init__(self) -> None:
        self._charges: deque[bytes] = deque()
        self.complete = True
        """Nothing of this process is in the table that was not here."""

    def __len__(self) -> int:
        return len(self._charges)

    def add(self, charges: Iterable[bytes]) -> None:
        """Keep serialised charges."""
        self._charges.extend(charges)
        if len(self._charges) > KEPT:
            self.forget()

    def take(self, count: int) -> list[bytes]:
        """Take out up to `count`, the oldest first."""
        return [self._charges.popleft() for _ in range(min(count, len(self._charges)))]

    def forget(self) -> None:
        """Leave them to the table."""
        self._charges.clear()
        self.look_there()

    def look_there(self) -> None:
        """Note that the table may hold what was never here."""
        self.complete = False


class Journal:
    """Appends records to the router's tables: `journal`, and `unsettled` for what is to be paid."""

    def __init__(
        self,
        database: Database,
        instance_id: str,
        pauses_s: Sequence[float] = PAUSES_S,
        *,
        survive_power_loss: bool = False,
        inline: bool = True,
        crash: CrashPoints | None = None,
    ) -> None:
        """With `inline` the event loop writes where that waits for no disk: on SQLite, by default."""
        self._database = database
        self._survive_power_loss = survive_power_loss
        self._crash = crash or CrashPoints()
        self._instance_id = instance_id
        self._pauses_s = pauses_s
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Event()
        # Kept open: making one for each commit costs more than the commit's own statements.
        self._connection: sa.PoolProxiedConnection | None = None
        self._inline = (
            InlineCommits(database) if inline and database.sqlite and not survive_power_loss else None
        )
        self._turn: list[_Item] = []
        # Skips what is there: a try that failed may have been committed all the same.
        self._insert = BulkInsert(database, journal)
        self._ids = OneOf(database)
        self._insert_unsettled = BulkInsert(database, unsettled)
        self._settle = f"DELETE FROM {name_of(database, unsettled)} WHERE attempt_id {self._ids.text}"
        self._insert_responses = BulkInsert(database, stored_response)
        self.unbooked = Unbooked()

    def start(self) -> None:
        """Start the writing thread."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._write_all, name="journal", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Write what is queued and end the thread."""
        if self._thread is not None and not self._stopping.is_set():
            self._stopping.set()
            self._write_turn()
            if self._inline is not None:
                self._inline.close()
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)

    def append(self, record: Record) -> asyncio.Future[None]:
        """Queue a record. The future ends once it is durable, or with JournalError when it cannot be made so.

        Whether somebody waits for the future makes no difference to the record.
        """
        return self._enqueue(record)

    def mark_settled(self, attempt_ids: list[str]) -> asyncio.Future[None]:
        """Record that billing has booked these. By the same thread, so that no record waits for a lock."""
        return self._enqueue(attempt_ids)

    def _enqueue(self, what: Record | list[str]) -> asyncio.Future[None]:
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._loop is None or self._stopping.is_set():
            written.set_exception(JournalError())
        elif self._inline is None or isinstance(what, list):
            self._queue.put((what, written))  # type: ignore[arg-type]
        else:
            if not self._turn:
                self._loop.call_soon(self._write_turn)
            self._turn.append((what, written))
        return written

    def _write_turn(self) -> None:
        """Write what this turn of the event loop has brought, or leave it to the thread."""
        turn, self._turn = self._turn, []
        if not turn:
            return
        records = [what for what, _ in turn]
        if (
            self._inline is not None
            and len(turn) <= TURN
            and self._inline.write(lambda connection: self._execute(self._statements(records), connection))
        ):
            self._resolve(turn, True)
            return
        for item in turn:
            self._queue.put(item)

    def _write_all(self) -> None:
        engine = self._database.synchronous_engine(survive_power_loss=self._survive_power_loss)
        try:
            while batch := self._next_batch():
                written = self._write(engine, [what for what, _ in batch])
                self._answer(batch, written)
        finally:
            self._disconnect()
            engine.dispose()

    def _next_batch(self) -> list[_Item]:
        """Wait for something to write and take all that is there. Empty when the writer is to stop."""
        batch: list[_Item] = []
        item = self._queue.get()
        while item is not None:
            batch.append(item)
            if len(batch) == BATCH:
                return batch
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch
        if batch:
            # The stop sign: write what came before it, then find it again.
            self._queue.put(None)
        return batch

    def _statements(self, batch: Sequence[Record | list[str]]) -> _Statements:
        """Return what writes a batch, as the driver takes it."""
        records = [what for what in batch if isinstance(what, Record)]
        statements: list[tuple[str, Any]] = []
        if records:
            statements += self._insert.of([self._row(record) for record in records])
        if owed := [(record.attempt_id,) for record in records if record.charge]:
            statements += self._insert_unsettled.of(owed)
        if responses := [record.response for record in records if record.response]:
            names = [column.name for column in stored_response.c]
            rows = [tuple(response[name] for name in names) for response in responses]
            statements += self._insert_responses.of(rows)
        if settled := [key for what in batch if not isinstance(what, Record) for key in what]:
            statements.append((self._settle, (self._ids.argument(settled),)))
        return _Statements(statements, len(records))

    def _row(self, record: Record) -> Row:
        """Return the row of the journal's table, in the order of its columns."""
        return (
            record.attempt_id,
            record.decision_id,
            record.organisation_id,
            record.lease_id,
            self._instance_id,
            record.at_ms,
            record.decision,
            record.charge,
        )

    def _write(self, engine: sa.Engine, batch: Sequence[Record | list[str]]) -> bool:
        """Write in one transaction, in several tries if need be. Tells whether it is durable."""
        failure: Exception | None = None
        for pause_s in (0.0, *self._pauses_s):
            self._stopping.wait(pause_s)
            try:
                self._commit(engine, self._statements(batch))
            except (sa.exc.DBAPIError, engine.dialect.loaded_dbapi.Error) as error:
                failure = error
                self._disconnect()
            except Exception as error:  # noqa: BLE001 - top level of the thread: it must outlive what went wrong
                failure = error
                self._disconnect()
                break
            else:
                return True
        _logger.error("journal_write_failed records=%d", len(batch), exc_info=failure)
        return False

    def _commit(self, engine: sa.Engine, statements: _Statements) -> None:
        """Write and commit, through the driver: what SQLAlchemy does around it costs more than the rest."""
        if self._connection is None:
            self._connection = engine.raw_connection()
        self._execute(statements, self._connection)

    def _execute(self, statements: _Statements, connection: sa.PoolProxiedConnection) -> None:
        cursor = connection.cursor()
        if self._database.sqlite:
            cursor.execute("BEGIN IMMEDIATE")
        for text, parameters in statements.of:
            # Only SQLite takes one row after the other.
            (cursor.executemany if isinstance(parameters, list) else cursor.execute)(text, parameters)
        if statements.records:
            self._crash.pass_by("before_journal_commit")
        connection.commit()
        cursor.close()
        self._crash.pass_by("after_journal_write" if statements.records else "after_settled_mark")

    def _disconnect(self) -> None:
        """Let the connection go; the next commit opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # It is broken already; what it says about that must not end the thread.
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                connection.invalidate()

    def _answer(self, batch: Sequence[_Item], written: bool) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._resolve, batch, written)

    def _resolve(self, batch: Sequence[_Item], written: bool) -> None:
        if written:
            self.unbooked.add(what.charge for what, _ in batch if isinstance(what, Record) and what.charge)
        else:
            # It may have been committed all the same.
            self.unbooked.forget()
        for _, future in batch:
            if future.done():
                continue
            if written:
                future.set_result(None)
            else:
                future.set_exception(JournalError())
