"""The ground of all store tests: each test has an empty database of its own, on both engines."""

import pytest
import sqlalchemy as sa

from services.common.db import Database
from tests.support import postgresql


@pytest.mark.parametrize("round_", [1, 2])
async def test_each_test_has_an_empty_database(database_url: str, round_: int) -> None:
    database = Database(database_url, "public")
    table = sa.Table("things", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    async with database.transaction() as connection:
        await connection.run_sync(table.create)
        await connection.execute(sa.insert(table).values(id=round_))
    async with database.reading() as connection:
        assert (await connection.scalars(sa.select(table.c.id))).all() == [round_]
    await database.close()


def test_a_missing_postgresql_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(postgresql.URL_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(postgresql.Path, "glob", lambda *_: iter(()))
    with pytest.raises(postgresql.PostgresqlError, match="apt-get install postgresql"):
        postgresql.find_binaries()
