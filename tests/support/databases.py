"""Migrated databases for the tests: each schema is migrated once in a pytest process, then used again.

A test gets a database without rows, as a service finds it after its first start. To migrate it anew, and to
drop it, took more time than most tests. A test of the migrations themselves is marked `new_database`.

SQLite: what the first migration made is copied into the next file.
PostgreSQL: a database is emptied after the test and given to the next one. One whose schemas a test has
changed, one that another process has migrated, and one with much in it are dropped instead.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import sqlalchemy
from psycopg import sql

from services.common import db
from tests.support.postgresql import Server

_SERVICES = Path(db.__file__).resolve().parents[1]
# Emptying a larger one would leave more behind than it saves.
_LARGEST_BYTES = 2_000_000
# Each change to the structure of a schema writes a row of these anew, under another `xmin`.
_STRUCTURE = """
WITH mine AS (SELECT oid, xmin FROM pg_class WHERE relnamespace = %(schema)s::regnamespace)
SELECT md5(string_agg(part, ' ' ORDER BY part)) FROM (
  SELECT 'class ' || oid || ' ' || xmin AS part FROM mine
  UNION ALL SELECT 'column ' || attrelid || ' ' || attnum || ' ' || xmin
    FROM pg_attribute WHERE attrelid IN (SELECT oid FROM mine)
  UNION ALL SELECT 'trigger ' || oid || ' ' || xmin FROM pg_trigger WHERE tgrelid IN (SELECT oid FROM mine)
  UNION ALL SELECT 'constraint ' || oid || ' ' || xmin
    FROM pg_constraint WHERE connamespace = %(schema)s::regnamespace
  UNION ALL SELECT 'function ' || oid || ' ' || xmin
    FROM pg_proc WHERE pronamespace = %(schema)s::regnamespace
) AS parts
"""
_SCHEMAS = """
SELECT nspname FROM pg_namespace
WHERE nspname NOT LIKE 'pg\\_%' AND nspname NOT IN ('information_schema', 'public')
UNION SELECT 'public' FROM pg_class WHERE relnamespace = 'public'::regnamespace
"""
_END_SESSIONS = """
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@dataclass(frozen=True)
class _Migrated:
    """A schema as its migrations left it."""

    structure: str
    # Names, and the rows of those that have any, as COPY writes them.
    tables: tuple[str, ...]
    rows: dict[str, bytes]


class Migrations:
    """Takes the place of `services.common.migrations` where tests run services in their own process."""

    def __init__(self) -> None:
        # Off while a test of the migrations runs.
        self.shortcut = True
        self.migrated: dict[str, dict[str, _Migrated]] = {}
        self._files: dict[Path, sqlite3.Connection] = {}
        self._one_at_a_time = threading.Lock()

    def upgrade(self, engine: sqlalchemy.Engine, schema: str, scripts: Path) -> None:
        """Bring a schema to the newest revision."""
        from services.common import migrations

        if not (self.shortcut and _SERVICES in scripts.resolve().parents):
            migrations.upgrade(engine, schema, scripts)
        elif engine.dialect.name == "sqlite":
            with self._one_at_a_time:
                self._copy(engine, schema, scripts)
        else:
            with self._one_at_a_time:
                self._upgrade(engine, schema, scripts)

    def _upgrade(self, engine: sqlalchemy.Engine, schema: str, scripts: Path) -> None:
        from services.common import migrations

        migrations.upgrade(engine, schema, scripts)
        with psycopg.connect(engine.url.set(drivername="postgresql").render_as_string(False)) as opened:
            known = self.migrated.setdefault(opened.info.dbname, {})
            # Whoever comes second, with another replica, would take the first one's rows for the migration's.
            if schema not in known:
                known[schema] = _look_at(opened, schema)

    def _copy(self, engine: sqlalchemy.Engine, schema: str, scripts: Path) -> None:
        from services.common import migrations

        pooled = engine.raw_connection()
        file: Any = pooled.driver_connection
        try:
            if file.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone() != (0,):
                migrations.upgrade(engine, schema, scripts)
            elif scripts in self._files:
                self._files[scripts].backup(file)
            else:
                migrations.upgrade(engine, schema, scripts)
                self._files[scripts] = sqlite3.connect(":memory:", check_same_thread=False)
                file.backup(self._files[scripts])
        finally:
            pooled.close()

    def close(self) -> None:
        """Forget what was made."""
        for file in self._files.values():
            file.close()


def _look_at(opened: psycopg.Connection[Any], schema: str) -> _Migrated:
    tables = opened.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,)).fetchall()
    names = tuple(name for (name,) in tables)
    rows = {}
    for name in _those_with_rows(opened, schema, names):
        table = sql.Identifier(schema, name)
        with opened.cursor().copy(sql.SQL("COPY {} TO STDOUT").format(table)) as copying:
            rows[name] = b"".join(bytes(part) for part in copying)
    return _Migrated(_structure(opened, schema), names, rows)


def _structure(opened: psycopg.Connection[Any], schema: str) -> str:
    found = opened.execute(_STRUCTURE, {"schema": f'"{schema}"'}).fetchone()
    assert found is not None
    return str(found[0])


def _those_with_rows(opened: psycopg.Connection[Any], schema: str, names: tuple[str, ...]) -> list[str]:
    asking = [
        sql.SQL("SELECT {} WHERE EXISTS (SELECT FROM {})").format(
            sql.Literal(name), sql.Identifier(schema, name)
        )
        for name in names
    ]
    return [name for (name,) in opened.execute(sql.SQL(" UNION ALL ").join(asking))] if asking else []


def _empty(opened: psycopg.Connection[Any], known: dict[str, _Migrated]) -> bool:
    """Bring a database back to what its migrations left. Returns False when that is not worth it."""
    opened.execute(_END_SESSIONS)
    if not {schema for (schema,) in opened.execute(_SCHEMAS)} <= known.keys():
        return False
    for schema, migrated in known.items():
        size = "SELECT SUM(pg_relation_size(oid)) FROM pg_class WHERE relnamespace = %s::regnamespace"
        [bytes_of_all] = opened.execute(size, (f'"{schema}"',)).fetchone() or [0]
        if bytes_of_all > _LARGEST_BYTES or _structure(opened, schema) != migrated.structure:
            return False
        _bring_back(opened, schema, migrated)
    return True


def _bring_back(opened: psycopg.Connection[Any], schema: str, migrated: _Migrated) -> None:
    # Triggers that keep what is booked from being changed, and foreign keys, are for others.
    opened.execute("SET session_replication_role = replica")
    for name in _those_with_rows(opened, schema, migrated.tables):
        opened.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(schema, name)))
    for name, rows in migrated.rows.items():
        statement = sql.SQL("COPY {} FROM STDIN").format(sql.Identifier(schema, name))
        with opened.cursor().copy(statement) as copying:
            copying.write(rows)
    restart = "SELECT setval(format('%%I.%%I', schemaname, sequencename)::regclass, start_value, false) "
    opened.execute(restart + "FROM pg_sequences WHERE schemaname = %s", (schema,))


class Databases:
    """The databases of a server that tests have used and others may use again."""

    def __init__(self, server: Server, migrations: Migrations) -> None:
        self._server = server
        self._migrations = migrations
        self._free: list[str] = []

    @contextmanager
    def without_rows(self) -> Iterator[str]:
        """Yield the URL of a database in which no service has stored anything."""
        name = self._free.pop() if self._free else self._server.create()
        url = self._server.url_of(name)
        try:
            yield url
        finally:
            if self._is_as_new(url):
                self._free.append(name)
            else:
                self._drop(name)

    def _is_as_new(self, url: str) -> bool:
        known = self._migrations.migrated.get(urlsplit(url).path.removeprefix("/"), {})
        try:
            with psycopg.connect(url, autocommit=True) as opened:
                return _empty(opened, known)
        except psycopg.Error:
            # Whatever a test did to it, and whatever an own server does not allow: the next one is new.
            return False

    def _drop(self, name: str) -> None:
        self._migrations.migrated.pop(name, None)
        self._server.drop(name)

    def close(self) -> None:
        """Drop what is left."""
        while self._free:
            self._drop(self._free.pop())
