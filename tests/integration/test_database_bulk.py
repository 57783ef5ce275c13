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
from services.router.store import journal

TEXT = 'ä \\ { } , " NULL \u2028 %s ?'


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url, "router")
    await opened.migrate(MIGRATIONS)
    yield opened
    await opened.close()


def row(
    number: int, *, text: str = "", at: int = 0, data: bytes = b"", settled: bool = False
) -> tuple[Any, ...]:
    return f"att_{number}", f"dec_{number}", text, "", "", at, data, b"\0\xff", settled


async def run(connection: AsyncConnection, insert: BulkInsert, rows: list[tuple[Any, ...]]) -> Any:
    for statement in insert.of(rows):
        answer = await connection.exec_driver_sql(*statement)
    return answer


@pytest.mark.parametrize("count", [*range(1, 9), 63, 64, 65, 85, 149, 1000])
async def test_any_number_of_rows_is_stored_once(database: Database, count: int) -> None:
    insert, rows = BulkInsert(database, journal), [row(number) for number in range(count)]
    async with database.transaction() as connection:
        await run(connection, insert, rows)
        # All of them again: they are there.
        await run(connection, insert, rows)
    assert await stored(database) == sorted(rows)


async def stored(database: Database) -> list[Any]:
    async with database.reading() as connection:
        rows = await connection.execute(sa.select(journal).order_by(journal.c.attempt_id))
        return [tuple(each) for each in rows]


async def test_every_type_comes_back_as_it_was(database: Database) -> None:
    rows = [
        row(1, text=TEXT, at=2**62, data=bytes(range(256)), settled=True),
        row(2, at=-(2**62)),
        row(3, text="", at=1),
    ]
    insert = BulkInsert(database, journal)
    async with database.transaction() as connection:
        await run(connection, insert, rows)
    assert await stored(database) == rows


async def test_what_is_there_stays_and_the_new_ones_are_named(database: Database) -> None:
    insert = BulkInsert(database, journal, returning="attempt_id")
    async with database.transaction() as connection:
        await run(connection, insert, [row(1, text="first")])
        both = [row(1, text="second"), row(2, text="second")]
        answer = await run(connection, insert, both)
        if not database.sqlite:
            assert answer.scalars().all() == ["att_2"]
    assert [each[2] for each in await stored(database)] == ["first", "second"]


async def test_rows_that_exist_can_be_changed(database: Database) -> None:
    insert = BulkInsert(database, journal, "(attempt_id) DO UPDATE SET at = journal.at + excluded.at")
    for _ in range(2):
        async with database.transaction() as connection:
            await run(connection, insert, [row(1, at=5), row(2, at=7)])
    assert [each[5] for each in await stored(database)] == [10, 14]


async def test_any_number_of_ids_is_one_parameter(database: Database) -> None:
    insert, ids = BulkInsert(database, journal), OneOf(database)
    names = [f"att_{number}" for number in range(40_000)]
    async with database.transaction() as connection:
        await run(connection, insert, [row(n) for n in range(3)])
        mark = f"UPDATE {name_of(database, journal)} SET settled = TRUE WHERE attempt_id {ids.text}"
        await connection.exec_driver_sql(mark, (ids.argument([*names[1:], TEXT, "'"]),))
    assert [each[-1] for each in await stored(database)] == [False, True, True]


async def test_statements_tell_how_many_rows_they_touched(database: Database) -> None:
    insert = BulkInsert(database, journal)
    async with database.transaction() as connection:
        await run(connection, insert, [row(n) for n in range(3)])
        change = sa.update(journal).values(at=9)
        assert (await connection.execute(change)).rowcount == 3
        returned = await connection.execute(change.where(journal.c.at == 9).returning(journal.c.attempt_id))
        assert sorted(returned.scalars()) == ["att_0", "att_1", "att_2"]
        assert (await connection.execute(sa.delete(journal).where(journal.c.at == 1))).rowcount == 0


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
        BulkInsert(database, journal, ""),
        BulkUpdate(database, journal.c.attempt_id, [journal.c.at, journal.c.decision]),
    )
    async with database.transaction() as connection:
        await run(connection, insert, [row(n, text="kept") for n in range(3)])
    changes = update.of([("att_0", 5, b"\0a"), ("att_2", 2**62, b""), ("att_9", 1, b"nobody's")])
    statements = at_once(database, [changes, *insert.of([row(3)])])
    assert database.sqlite or len(statements) == 1
    async with database.transaction() as connection:
        for statement in statements:
            await connection.exec_driver_sql(*statement)
    found = await stored(database)
    assert [(each[2], each[5], each[6]) for each in found] == [
        ("kept", 5, b"\0a"),
        ("kept", 0, b""),
        ("kept", 2**62, b""),
        ("", 0, b""),
    ]


async def test_what_must_be_new_is_refused_when_it_is_not(database: Database) -> None:
    insert = BulkInsert(database, journal, "", columns=[*journal.c])
    async with database.transaction() as connection:
        await run(connection, insert, [row(1)])
    async with database.transaction() as connection:
        with pytest.raises(sa.exc.IntegrityError):
            await run(connection, insert, [row(2), row(1)])
        await connection.rollback()
    assert await stored(database) == [row(1)]
