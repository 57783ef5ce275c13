"""A database that is used again, or copied, is as its migrations left it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from services.billing.app import MIGRATIONS
from services.common import db
from services.common.db import Database
from tests.support.billing import charge, fund, open_store
from tests.support.databases import Databases, Migrations
from tests.support.postgresql import Server

# The migrations leave rows in the first three.
TABLES = ("ledger_head", "account", "alembic_version", "ledger_entry", "usage_event", "unsealed")


@pytest.fixture
def used_again(postgresql_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Databases]:
    migrations = Migrations()
    monkeypatch.setattr(db, "migrations", migrations)
    databases = Databases(postgresql_server, migrations)
    yield databases
    databases.close()


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


def content(url: str) -> dict[str, list[tuple[object, ...]]]:
    return {table: sorted(rows(url, f"SELECT * FROM billing.{table}")) for table in TABLES}


async def test_nothing_of_the_last_test_is_left(used_again: Databases) -> None:
    with used_again.without_rows() as first:
        await _migrate(first)
        at_first = content(first)
        async with open_store(first) as store:
            await fund(store, "1")
            await store.settle([charge("a", 100)], 1)
            assert await store.seal(2) > 0
        assert content(first)["ledger_head"] != at_first["ledger_head"]
        # Somebody who is still there, in the middle of something.
        lingering = psycopg.connect(first)
        lingering.execute("INSERT INTO billing.unsealed (transaction_id) VALUES ('late')")
    try:
        with used_again.without_rows() as second:
            assert second == first
            assert content(second) == at_first
            assert all(at_first[table] for table in TABLES[:3])
            async with open_store(second) as store:
                assert (await store.check(9)).ok
            with pytest.raises(psycopg.OperationalError, match="terminat"):
                lingering.commit()
    finally:
        lingering.close()


async def _migrate(url: str) -> None:
    database = Database(url, "billing")
    await database.migrate(MIGRATIONS)
    await database.close()


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE billing.usage_event DISABLE TRIGGER ALL",
        "ALTER TABLE billing.account DROP CONSTRAINT account_reserved_positive",
        "DROP INDEX billing.account_organisation",
        "CREATE TABLE more (id int)",
        "CREATE SCHEMA other",
        "INSERT INTO billing.unsealed SELECT repeat('x', 190) || n FROM generate_series(1, 9000) AS n",
    ],
)
async def test_one_that_was_changed_is_not_used_again(used_again: Databases, change: str) -> None:
    with used_again.without_rows() as first:
        await _migrate(first)
        with psycopg.connect(first) as connection:
            connection.execute(change)
    with used_again.without_rows() as second:
        assert second != first


async def test_a_copied_file_is_what_the_migrations_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrations = Migrations()
    monkeypatch.setattr(db, "migrations", migrations)
    for name in ("migrated", "copied"):
        await _migrate(f"sqlite:///{tmp_path / name}")
    migrations.close()
    migrated, copied = (_content(tmp_path / name) for name in ("migrated", "copied"))
    assert len(migrated) > 50
    assert migrated == copied


def _content(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        return [*connection.iterdump(), *map(str, connection.execute("PRAGMA journal_mode"))]
    finally:
        connection.close()
