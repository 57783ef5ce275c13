"""SQLite's driver for the event loop, with one visit to its thread for each statement.

aiosqlite visits it four times (cursor, execute, fetch, close), and each visit wakes two threads:
that was most of what a transaction of small statements cost (ADR 0024).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from typing import Any, Self

import aiosqlite


class _Cursor:
    """What SQLAlchemy needs of a cursor. Every statement takes its rows along."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self.arraysize = 1

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, statement: str, parameters: Sequence[Any] = ()) -> Self:
        await self._connection.visit(self._run, statement, parameters, False)
        return self

    async def executemany(self, statement: str, parameters: Sequence[Sequence[Any]]) -> Self:
        await self._connection.visit(self._run, statement, parameters, True)
        return self

    def _run(self, statement: str, parameters: Sequence[Any], many: bool) -> None:
        """Run a statement and keep what it answers. In the connection's thread."""
        cursor: sqlite3.Cursor = self._connection.opened.cursor()
        try:
            (cursor.executemany if many else cursor.execute)(statement, parameters)
            self.description, self.lastrowid = cursor.description, cursor.lastrowid
            self._rows = cursor.fetchall() if cursor.description else []
            # Of a statement that returns rows it is known once they are fetched.
            self.rowcount = cursor.rowcount
        finally:
            cursor.close()

    async def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        self._rows = []


class Connection(aiosqlite.Connection):
    """A connection whose cursors need one visit."""

    def cursor(self) -> _Cursor:  # type: ignore[override]
        """Return a cursor that costs nothing until it executes."""
        return _Cursor(self)

    @property
    def opened(self) -> sqlite3.Connection:
        """The driver's own connection; only for its thread."""
        return self._conn

    def stop(self) -> asyncio.Future[Any] | None:
        """End its thread, once: nobody would answer what is asked of it afterwards.

        Who closes it gently and is cancelled stops it, and the gentle way then stops it again.
        """
        return super().stop() if self._running else None

    async def visit(self, work: Any, *arguments: Any) -> None:
        """Do something in the connection's thread."""
        await self._execute(work, *arguments)  # type: ignore[no-untyped-call]


def connect(path: str, **options: Any) -> Connection:
    """Open a file; awaited by SQLAlchemy, as what `aiosqlite.connect` returns."""
    connection = Connection(lambda: sqlite3.connect(path, **options), iter_chunk_size=64)
    # A process that ends must not wait for it.
    connection._thread.daemon = True
    return connection
