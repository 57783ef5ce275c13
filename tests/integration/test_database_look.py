"""Small questions: answered at once, also while others write; through a thread where they have to wait."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.common.db import LOOK_TIMEOUT_MS, Database, sqlite_url

things = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
QUERY = sa.select(things.c.id).order_by(things.c.id)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url, "public")
    async with opened.transaction() as connection:
        await connection.run_sync(things.create)
    yield opened
    await opened.close()


async def add(database: Database, number: int) -> None:
    async with database.transaction() as connection:
        await connection.execute(sa.insert(things).values(id=number))


async def ids(database: Database) -> list[int]:
    return [number for (number,) in await database.look(QUERY)]


async def test_a_look_sees_what_has_been_committed(database: Database) -> None:
    assert await ids(database) == []
    for number in range(3):
        await add(database, number)
        assert await ids(database) == list(range(number + 1))


async def test_a_look_does_not_wait_for_who_writes(database: Database) -> None:
    await add(database, 1)
    async with database.transaction() as connection:
        await connection.execute(sa.insert(things).values(id=2))
        assert await ids(database) == [1]
    assert await ids(database) == [1, 2]


async def test_a_fault_is_the_callers(database: Database) -> None:
    with pytest.raises(sa.exc.DBAPIError):
        await database.look(sa.select(sa.column("nothing")).select_from(sa.table("nowhere")))
    assert await ids(database) == []


async def test_whoever_has_to_wait_does_so_in_a_thread(tmp_path: Path) -> None:
    file = tmp_path / "things.db"
    owner = sqlite3.connect(file, isolation_level=None)
    owner.execute("PRAGMA locking_mode=EXCLUSIVE")
    owner.execute("PRAGMA journal_mode=WAL")
    owner.execute("CREATE TABLE things (id INTEGER PRIMARY KEY)")
    owner.execute("INSERT INTO things VALUES (1)")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite3.connect(file, timeout=0).execute("SELECT * FROM things")
    database = Database(sqlite_url(file), "public")
    looking = asyncio.create_task(ids(database))
    # The loop goes on meanwhile, for longer than a look may hold it up.
    for _ in range(10):
        await asyncio.sleep(LOOK_TIMEOUT_MS / 1000)
    assert not looking.done()
    owner.close()
    assert await looking == [1]
    await database.close()
