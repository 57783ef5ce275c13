"""Many rows at once, and what statements tell, over both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.bulk import BulkInsert, BulkUpdate, OneOf, at_once, name_of
from services.common.db import Database
from services.router.app import MIGRATIONS

# A column of every type that is written this way.
things = sa.Table(
    "things",
    sa.MetaData(),
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("more", sa.LargeBinary, nullable=False),
    sa.Column("done", sa.Boolean, nullable=False),
)
TEXT = 'ä \\ { } , " NULL \u2028 %s ?'


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url, "router")
    await opened.migrate(MIGRATIONS)
    async with opened.transaction() as connection:
        await connection.run_sync(things.metadata.create_all)
    yield opened
    await opened.close()


def row(
    number: int, *, text: str = "", at: int = 0, data: bytes = b"", done: bool = False
) -> tuple[Any, ...]:
    return f"id_{number}", f"name_{number}", text, at, number, data, b"\0\xff", done


async def run(connection: AsyncConnection, insert: BulkInsert, rows: list[tuple[Any, ...]]) -> Any:
    for statement in insert.of(rows):
        answer = await connection.exec_driver_sql(*statement)
    return answer


@pytest.mark.parametrize("count", [*range(1, 9), 63, 64, 65, 85, 149, 1000])
async def test_any_number_of_rows_is_stored_once(database: Database, count: int) -> None:
    insert, rows = BulkInsert(database, things), [row(number) for number in range(count)]
    async with database.transaction() as connection:
        await run(connection, insert, rows)
        # All of them again: they are there.
        await run(connection, insert, rows)
    assert await stored(database) == sorted(rows)


async def stored(database: Database) -> list[Any]:
    async with database.reading() as connection:
        rows = await connection.execute(sa.select(things).order_by(things.c.id))
        return [tuple(each) for each in rows]


async def test_every_type_comes_back_as_it_was(database: Database) -> None:
    rows = [
        row(1, text=TEXT, at=2**62, data=bytes(range(256)), done=True),
        row(2, at=-(2**62)),
        row(3, text="", at=1),
    ]
    insert = BulkInsert(database, things)
    async with database.transaction() as connection:
        await run(connection, insert, rows)
    assert await stored(database) == rows


async def test_what_is_there_stays_and_the_new_ones_are_named(database: Database) -> None:
    insert = BulkInsert(database, things, returning="id")
    async with database.transaction() as connection:
        await run(connection, insert, [row(1, text="first")])
        both = [row(1, text="second"), row(2, text="second")]
        answer = await run(connection, insert, both)
        if not database.sqlite:
            assert answer.scalars().all() == ["id_2"]
    assert [each[2] for each in await stored(database)] == ["first", "second"]


async def test_rows_that_exist_can_be_changed(database: Database) -> None:
    insert = BulkInsert(database, things, "(id) DO UPDATE SET at = things.at + excluded.at")
    for _ in range(2):
        async with database.transaction() as connection:
            await run(connection, insert, [row(1, at=5), row(2, at=7)])
    assert [each[3] for each in await stored(database)] == [10, 14]


async def test_any_number_of_ids_is_one_parameter(database: Database) -> None:
    insert, ids = BulkInsert(database, things), OneOf(database)
    names = [f"id_{number}" for number in range(40_000)]
    async with database.transaction() as connection:
        await run(connection, insert, [row(n) for n in range(3)])
        mark = f"UPDATE {name_of(database, things)} SET done = TRUE WHERE id {ids.text}"
        await connection.exec_driver_sql(mark, (ids.argument([*names[1:], TEXT, "'"]),))
    assert [each[-1] for each in await stored(database)] == [False, True, True]


async def test_statements_tell_how_many_rows_they_touched(database: Database) -> None:
    insert = BulkInsert(database, things)
    async with database.transaction() as connection:
        await run(connection, insert, [row(n) for n in range(3)])
        change = sa.update(things).values(at=9)
        assert (await connection.execute(change)).rowcount == 3
        returned = await connection.execute(change.where(things.c.at == 9).returning(things.c.id))
        assert sorted(returned.scalars()) == ["id_0", "id_1", "id_2"]
        assert (await connection.execute(sa.delete(things).where(things.c.at == 1))).rowcount == 0


async def test_a_statement_that_fails_says_why_and_the_next_one_runs(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/any.db", "any")
    with pytest.raises(sa.exc.OperationalError, match="no such table: missing_one"):
        async with database.transaction() as connection:
            await connection.exec_driver_sql("SELECT * FROM missing_one")
    async with database.reading() as connection:
        assert await connection.scalar(sa.text("SELECT 1")) == 1
    await database.close()


async def test_each_row_gets_its_own_values_at_once_with_others(database: Database) -> None:
    insert, update = (
        BulkInsert(database, things, ""),
        BulkUpdate(database, things.c.id, [things.c.at, things.c.data]),
    )
    async with database.transaction() as connection:
        await run(connection, insert, [row(n, text="kept") for n in range(3)])
    changes = update.of([("id_0", 5, b"\0a"), ("id_2", 2**62, b""), ("id_9", 1, b"nobody's")])
    statements = at_once(database, [changes, *insert.of([row(3)])])
    assert database.sqlite or len(statements) == 1
    async with database.transaction() as connection:
        for statement in statements:
            await connection.exec_driver_sql(*statement)
    found = await stored(database)
    assert [(each[2], each[3], each[5]) for each in found] == [
        ("kept", 5, b"\0a"),
        ("kept", 0, b""),
        ("kept", 2**62, b""),
        ("", 0, b""),
    ]


async def test_what_must_be_new_is_refused_when_it_is_not(database: Database) -> None:
    insert = BulkInsert(database, things, "", columns=[*things.c])
    async with database.transaction() as connection:
        await run(connection, insert, [row(1)])
    async with database.transaction() as connection:
        with pytest.raises(sa.exc.IntegrityError):
            await run(connection, insert, [row(2), row(1)])
        await connection.rollback()
    assert await stored(database) == [row(1)]
