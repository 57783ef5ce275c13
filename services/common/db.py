"""One database per service: SQLite by default, PostgreSQL in production, the same code for both.

SQLite: one file per service in WAL mode, writers queue up in this process.
PostgreSQL: one schema per service, safe behind a transaction pooler (no prepared statements, no
session state).
"""

from __future__ import annotations

import asyncio
import logging
import re
import select
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.common import sqlite
from services.common.late import late

if TYPE_CHECKING:
    from services.common import migrations
else:
    # Alembic takes a tenth of a second to load, and most starts find nothing to migrate.
    migrations = late("services.common.migrations")

# A write that waits longer than this for a lock fails instead of hanging.
LOCK_TIMEOUT_MS = 10_000
# A look that would hold up the event loop for longer goes through a thread.
LOOK_TIMEOUT_MS = 20
# Closing waits this long for connections that are still in use: longer than a statement waits for a lock.
CLOSE_TIMEOUT_S = 15
_logger = logging.getLogger(__name__)
_REVISION = re.compile(r'^revision = "(.+)"$', re.MULTILINE)
# Alembic's own table.
_version = sqlalchemy.Table(
    "alembic_version", sqlalchemy.MetaData(), sqlalchemy.Column("version_num", sqlalchemy.String)
)


def sqlite_url(path: Path) -> str:
    """Return the URL of a SQLite file for the synchronous driver."""
    return f"sqlite:///{path}"


class Database:
    """A service's own database.

    `url` is `sqlite:///path` or `postgresql://...`; `schema` names the PostgreSQL schema.
    """

    def __init__(self, url: str, schema: str, pool_size: int = 20) -> None:
        self.schema = schema
        self.sqlite = url.startswith("sqlite")
        self._url = url
        self._write_lock = asyncio.Lock()
        # For `look`, from its first use on. SQLite only.
        self._looking: sqlalchemy.Connection | None = None
        self._in_use = _InUse()
        # Connections beyond the pool's size would be opened and closed again for every transaction.
        bounded = {"pool_size": pool_size, "max_overflow": 0, "pool_pre_ping": True}
        self._engine = self._asynchronous_engine(**{} if self.sqlite else bounded)
        if not self.sqlite:
            _ask_only_when_in_doubt(self._engine.sync_engine.dialect)

    def _asynchronous_engine(self, **pool: Any) -> AsyncEngine:
        if not self.sqlite:
            options = _postgresql_options(self.schema)
            return create_async_engine(self._asynchronous_url(), **pool, **options)
        connecting = {"timeout": LOCK_TIMEOUT_MS / 1000, "async_creator_fn": sqlite.connect}
        engine = create_async_engine(self._asynchronous_url(), **pool, connect_args=connecting)
        event.listen(engine.sync_engine, "connect", _configure_sqlite)
        return engine

    def _asynchronous_url(self) -> str:
        if self.sqlite:
            return self._url.replace("sqlite://", "sqlite+aiosqlite://", 1)
        return _psycopg_url(self._url)

    def synchronous_engine(self, *, survive_power_loss: bool = True) -> sqlalchemy.Engine:
        """Return an engine for code that runs in a thread of its own, such as the journal's writer.

        SQLite only: without `survive_power_loss` a commit outlives the process, whatever kills it, but its
        last moments may be missing after the machine lost its power.
        """
        if self.sqlite:
            engine = sqlalchemy.create_engine(
                self._url,
                connect_args={"timeout": LOCK_TIMEOUT_MS / 1000, "check_same_thread": False},
            )
            event.listen(engine, "connect", _configure_sqlite)
            if not survive_power_loss:
                event.listen(engine, "connect", _leave_syncing_to_the_kernel)
            return engine
        return sqlalchemy.create_engine(_psycopg_url(self._url), **_postgresql_options(self.schema))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that writes. Commits at the end, rolls back on any exception."""
        if not self.sqlite:
            with self._in_use:
                async with self._engine.begin() as connection:
                    yield connection
            return
        with self._in_use:
            async with self._write_lock, self._engine.connect() as connection:
                # Taking the write lock first avoids the upgrade deadlock of deferred transactions.
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
                try:
                    yield connection
                except BaseException:
                    await connection.rollback()
                    raise
                await connection.commit()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection that only reads, from one snapshot."""
        with self._in_use:
            async with self._engine.connect() as connection:
                if self.sqlite:
                    await connection.exec_driver_sql("BEGIN")
                yield connection

    async def look(self, query: sqlalchemy.Select[Any], **values: Any) -> Sequence[Any]:
        """Return the rows of one question that an index answers at once, such as whether anything is due.

        `values` are those of its named parameters. What is asked each second is made once and kept:
        to make it, and to find out what it is, takes SQLAlchemy five times as long as to ask it.

        SQLite answers it right here: a thread to wait in costs ten times the question (ADR 0026). Readers do
        not wait for writers there; should this one have to, it goes through a thread after all.
        """
        if self.sqlite:
            try:
                return self._look(query, values)
            except sqlalchemy.exc.OperationalError:
                self._look_away()
        async with self.reading() as connection:
            rows: Sequence[Any] = (await connection.execute(query, values)).all()
        return rows

    def _look(self, query: sqlalchemy.Select[Any], values: Mapping[str, Any]) -> Sequence[Any]:
        if self._looking is None:
            engine = sqlalchemy.create_engine(
                self._url,
                isolation_level="AUTOCOMMIT",
                poolclass=sqlalchemy.NullPool,
                connect_args={"timeout": LOOK_TIMEOUT_MS / 1000, "check_same_thread": False},
            )
            self._looking = engine.connect()
        rows: Sequence[Any] = self._looking.execute(query, values).all()
        # Ends nothing but what SQLAlchemy holds for a transaction.
        self._looking.rollback()
        return rows

    def _look_away(self) -> None:
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.close()

    async def migrate(self, scripts: Path) -> None:
        """Bring the schema to the newest revision in `scripts`. Safe when several processes do it at once.

        Raises ConnectionError when the database cannot be reached.
        """
        if self.sqlite:
            Path(self._url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        try:
            await asyncio.to_thread(self._migrate, scripts)
        except sqlalchemy.exc.OperationalError as error:
            raise ConnectionError(
                f"the database {self.schema!r} cannot be used: {error.orig}; check OMNIHUB_DATABASE_URL"
            ) from error

    def _migrate(self, scripts: Path) -> None:
        engine = self.synchronous_engine()
        try:
            if not _is_current(engine, scripts):
                migrations.upgrade(engine, self.schema, scripts)
        finally:
            engine.dispose()

    async def ping(self) -> None:
        """Raise when the database cannot be reached."""
        with self._in_use:
            async with self._engine.connect() as connection:
                await connection.exec_driver_sql("SELECT 1")

    async def close(self) -> None:
        """Close all connections, after what still uses one has ended.

        A connection that came back later would belong to a pool that nobody closes: who comes too late has
        one for himself, which is closed when he leaves.
        """
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._in_use.ended()
        except TimeoutError:
            _logger.warning("database_closed_in_use %s after %s s", self.schema, CLOSE_TIMEOUT_S)
        self._look_away()
        engine, self._engine = self._engine, self._asynchronous_engine(poolclass=sqlalchemy.NullPool)
        await engine.dispose()


class _InUse:
    """Counts those who have a connection, or wait for one."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def ended(self) -> None:
        """Wait until nobody has one, and nobody has taken one since the last was given back."""
        while self._count:
            await self._none.wait()


def newest_revision(scripts: Path) -> str:
    """Return the revision of the last script. Raises ValueError for a folder without one."""
    found = _REVISION.findall(max(scripts.glob("[0-9]*.py"), default=scripts / "none").read_text())
    return str(found[0])


def _is_current(engine: sqlalchemy.Engine, scripts: Path) -> bool:
    """Tell whether the database is at the revision of the last script, without loading Alembic."""
    try:
        with engine.connect() as connection:
            found = list(connection.scalars(sqlalchemy.select(_version.c.version_num)))
    except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.ProgrammingError):
        # It is new, or cannot be reached: what follows will say.
        return False
    return found == [newest_revision(scripts)]


def _psycopg_url(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


def _postgresql_options(schema: str) -> dict[str, Any]:
    return {
        # A transaction pooler hands each transaction to another session: no prepared statements.
        "connect_args": {"prepare_threshold": None, "application_name": f"omnihub-{schema}"},
        "execution_options": {"schema_translate_map": {None: schema}},
    }


def _ask_only_when_in_doubt(dialect: Any) -> None:
    """Take a connection for alive, without a way to the server, while nothing has come in on it.

    A server that ends says so or closes: both can be seen here.
    """
    ask = dialect.do_ping

    def alive(connection: Any) -> bool:
        driver = getattr(connection, "driver_connection", connection)
        looking = select.poll()
        looking.register(driver.pgconn.socket, select.POLLIN)
        return True if not looking.poll(0) else bool(ask(connection))

    dialect.do_ping = alive


def _configure_sqlite(connection: Any, _: Any) -> None:
    # The driver's own transactions are off: BEGIN is said explicitly.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # A committed transaction survives the loss of power, not only of the process.
    cursor.execute("PRAGMA synchronous=FULL")
    # Moving the log into the file stops writers for a moment: rarer than after each 4 MB.
    cursor.execute("PRAGMA wal_autocheckpoint=10000")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={LOCK_TIMEOUT_MS}")
    cursor.close()


def _leave_syncing_to_the_kernel(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA synchronous=NORMAL").close()
