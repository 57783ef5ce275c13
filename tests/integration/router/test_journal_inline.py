"""Records that the event loop writes itself, and those it leaves to the journal's thread."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from services.common.db import Database, sqlite_url
from services.router.accounting import inline_commits
from services.router.accounting.journal import TURN, Journal, JournalError, _Statements
from services.router.accounting.store import Record, journal
from services.router.app import MIGRATIONS
from tests.support.router import bounded


def a_record(number: int) -> Record:
    return Record(f"att_{number}", f"dec_{number}", "org_1", "lease_1", 0, b"decision", b"charge")


class Counted(Journal):
    """Counts what its thread commits."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.by_thread: list[int] = []

    def _commit(self, engine: sa.Engine, statements: _Statements) -> None:
        super()._commit(engine, statements)
        self.by_thread.append(statements.records)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(sqlite_url(tmp_path / "router.db"), "router")
    await opened.migrate(MIGRATIONS)
    yield opened
    await opened.close()


Start = Callable[..., Counted]


@pytest.fixture(autouse=True)
def never_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine changes nothing here."""
    monkeypatch.setattr(inline_commits, "SLOW_S", 3600.0)


@pytest.fixture
async def start(database: Database) -> AsyncIterator[Start]:
    started: list[Counted] = []

    def begin(**options: Any) -> Counted:
        writer = Counted(database, "proc_1", (0.0, 0.0), **options)
        writer.start()
        started.append(writer)
        return writer

    yield begin
    for writer in started:
        await writer.stop()


def on_disk(tmp_path: Path) -> list[str]:
    with sqlite3.connect(tmp_path / "router.db") as other:
        found = [row[0] for row in other.execute("SELECT attempt_id FROM journal ORDER BY decision_id")]
    other.close()
    return found


async def test_what_one_turn_brings_is_one_transaction_without_the_thread(
    start: Start, tmp_path: Path
) -> None:
    writer = start()
    written = [writer.append(a_record(number)) for number in range(3)]
    assert on_disk(tmp_path) == []
    await asyncio.sleep(0)
    assert on_disk(tmp_path) == ["att_0", "att_1", "att_2"]
    async with bounded():
        await asyncio.gather(*written)
    assert writer.by_thread == []
    assert writer.unbooked.take(9) == [b"charge"] * 3


@pytest.mark.parametrize("option", ["survive_power_loss", "inline"])
async def test_only_where_a_commit_waits_for_no_disk(start: Start, option: str) -> None:
    writer = start(**{option: option == "survive_power_loss"})
    async with bounded():
        await writer.append(a_record(1))
    assert writer.by_thread == [1]


async def test_a_crowd_is_left_to_the_thread(start: Start, tmp_path: Path) -> None:
    writer = start()
    async with bounded():
        await asyncio.gather(*(writer.append(a_record(number)) for number in range(TURN + 1)))
    assert sum(writer.by_thread) == TURN + 1
    assert len(on_disk(tmp_path)) == TURN + 1


async def test_it_does_not_wait_for_who_else_writes(start: Start, tmp_path: Path) -> None:
    writer = start()
    async with bounded():
        await writer.append(a_record(1))
        other = sqlite3.connect(tmp_path / "router.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        written = writer.append(a_record(2))
        began = time.monotonic()
        await asyncio.sleep(0)
        # Whoever waits for a lock waits for seconds.
        assert time.monotonic() - began < 1
        assert not written.done()
        other.execute("COMMIT")
        other.close()
        await written
        assert writer.by_thread == [1]
        await writer.append(a_record(3))
    assert writer.by_thread == [1]
    assert on_disk(tmp_path) == ["att_1", "att_2", "att_3"]


async def test_after_a_slow_one_the_next_are_left_to_the_thread(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_commits, "SLOW_S", -1.0)
    monkeypatch.setattr(inline_commits, "SLOW_PAUSE_S", 3600.0)
    writer = start()
    async with bounded():
        await writer.append(a_record(1))
        assert writer.by_thread == []
        await writer.append(a_record(2))
    assert writer.by_thread == [1]


async def test_now_and_then_the_thread_gets_to_empty_the_log(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_commits, "COMMITS_IN_A_ROW", 3)
    writer = start()
    async with bounded():
        for number in range(6):
            await writer.append(a_record(number))
    assert writer.by_thread == [1, 1]


async def test_what_fails_half_way_is_undone_and_tried_by_the_thread(
    start: Start, database: Database, tmp_path: Path
) -> None:
    writer = start()
    async with bounded():
        await writer.append(a_record(1))
        async with database.transaction() as connection:
            await connection.run_sync(lambda sync: journal.drop(sync))
        with pytest.raises(JournalError, match="was not delivered"):
            await writer.append(a_record(2))
        async with database.transaction() as connection:
            await connection.run_sync(lambda sync: journal.create(sync))
        await writer.append(a_record(3))
    assert on_disk(tmp_path) == ["att_3"]
    assert writer.by_thread == []


async def test_a_connection_that_died_is_replaced(start: Start, tmp_path: Path) -> None:
    writer = start()
    async with bounded():
        await writer.append(a_record(1))
        assert writer._inline is not None
        connection = writer._inline._connection
        assert connection is not None
        connection.dbapi_connection.close()  # type: ignore[union-attr]
        await writer.append(a_record(2))
        assert writer.by_thread == [1]
        await writer.append(a_record(3))
    assert writer.by_thread == [1]
    assert on_disk(tmp_path) == ["att_1", "att_2", "att_3"]


async def test_a_connection_that_cannot_be_set_up_is_the_threads_affair(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[str] = []

    class Broken:
        def cursor(self) -> Any:
            failed.append("cursor")
            raise sqlite3.OperationalError("disk I/O error")

    writer = start()
    assert writer._inline is not None
    monkeypatch.setattr(writer._inline._engine, "raw_connection", Broken)
    async with bounded():
        await writer.append(a_record(1))
    assert failed == ["cursor"]
    assert writer.by_thread == [1]


async def test_stopping_writes_what_this_turn_has_brought(start: Start, tmp_path: Path) -> None:
    writer = start()
    written = writer.append(a_record(1))
    async with bounded():
        await writer.stop()
        await written
    assert on_disk(tmp_path) == ["att_1"]
    with pytest.raises(JournalError):
        await writer.append(a_record(2))
