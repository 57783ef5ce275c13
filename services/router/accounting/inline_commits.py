"""Commits on the event loop, for transactions that wait for nobody (ADR 0028).

SQLite without power-loss safety hands a commit to the kernel: 0.1 ms, where waking a thread and being woken
by it takes most of a millisecond on an idle machine. Whatever would take longer is left to a thread: somebody
else's lock, a slow disk, moving the log into the file.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from services.common.db import Database

_logger = logging.getLogger(__name__)
# A commit that took longer than this waited after all: the next ones are left to the thread for a while.
SLOW_S = 0.005
SLOW_PAUSE_S = 1.0
# So often one is left to the thread in any case: its commit moves the log into the file once that is large.
COMMITS_IN_A_ROW = 1000


class InlineCommits:
    """A connection to SQLite for short transactions on the event loop."""

    def __init__(self, database: Database) -> None:
        self._engine = database.synchronous_engine(survive_power_loss=False)
        self._connection: sa.PoolProxiedConnection | None = None
        self._commits = 0
        self._slow_until = 0.0

    def write(self, transaction: Callable[[sa.PoolProxiedConnection], None]) -> bool:
        """Do a whole transaction. Tells whether that went well; it may have been committed even if not."""
        self._commits = (self._commits + 1) % COMMITS_IN_A_ROW
        began = time.monotonic()
        if not self._commits or began < self._slow_until:
            return False
        try:
            if self._connection is None:
                self._connection = self._open()
                # To open it is slow, and done once.
                began = time.monotonic()
            transaction(self._connection)
        except Exception as error:
            # The thread tries again, and reports what is really wrong.
            if not self._never_began(error):
                _logger.info("left_to_the_thread", exc_info=error)
                self.close()
            return False
        finally:
            if (now := time.monotonic()) - began > SLOW_S:
                self._slow_until = now + SLOW_PAUSE_S
        return True

    def _open(self) -> sa.PoolProxiedConnection:
        connection = self._engine.raw_connection()
        for setting in ("busy_timeout=0", "wal_autocheckpoint=0"):
            connection.cursor().execute(f"PRAGMA {setting}")
        return connection

    def close(self) -> None:
        """Close the connection, if it is open; the next write opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # It may be broken already; what it says about that changes nothing.
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                connection.invalidate()

    def _never_began(self, error: Exception) -> bool:
        """Tell whether somebody else was writing, and nothing has happened here."""
        if not isinstance(error, sqlite3.OperationalError) or self._connection is None:
            return False
        driver: Any = self._connection.driver_connection
        return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY and not driver.in_transaction
