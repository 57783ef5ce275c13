"""The journal and its settlement over both databases."""

from __future__ import annotations

import asyncio
import importlib
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from omnihub.billing.v1 import billing_service_pb2 as billing_pb
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.router.v1.decision_pb2 import Decision

from services.common.db import Database
from services.common.rpc import Call, RpcError
from services.router.accounting import journal as journal_module
from services.router.accounting.journal import BATCH, Journal, JournalError, _Statements
from services.router.accounting.leases import Leases
from services.router.accounting.settlement import BATCH as BOOKED_AT_ONCE
from services.router.accounting.settlement import FAILURES, Settlement
from services.router.accounting.store import JournalStore, Record, journal, unsettled
from services.router.app import MIGRATIONS
from tests.support.fakes import FakeBilling
from tests.support.router import bounded

NOW_MS = int(time.time() * 1000)


def a_record(
    number: int, *, lease_id: str = "lease_1", at_ms: int = NOW_MS, amount: int | None = 5
) -> Record:
    charge = b""
    if amount is not None:
        charge = Charge(
            charge_id=f"att_{number}", lease_id=lease_id, amount_nano_credits=amount
        ).SerializeToString()
    decision = Decision(decision_id=f"dec_{number}", state="complete").SerializeToString()
    return Record(f"att_{number}", f"dec_{number}", "org_1", lease_id, at_ms, decision, charge)


class WatchedJournal(Journal):
    """Tells of each commit of its thread, and can be held or made to fail there."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, inline=False, **options)
        self.commits: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.failures: list[Exception] = []
        self.lost: list[Exception] = []
        """Raised after the commit, whose confirmation is lost."""

    def _commit(self, engine: sa.Engine, statements: _Statements) -> None:
        self.entered.set()
        self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        super()._commit(engine, statements)
        self.commits.append(statements.records)
        if self.lost:
            raise self.lost.pop(0)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url, "router")
    await opened.migrate(MIGRATIONS)
    yield opened
    await opened.close()


@pytest.fixture
async def writer(database: Database) -> AsyncIterator[WatchedJournal]:
    started = WatchedJournal(database, "proc_1", (0.0, 0.0))
    started.start()
    yield started
    started.gate.set()
    await started.stop()


async def rows(database: Database) -> list[str]:
    async with database.reading() as connection:
        return list(await connection.scalars(sa.select(journal.c.attempt_id).order_by(journal.c.attempt_id)))


async def test_a_record_is_durable_when_append_returns(database: Database, writer: WatchedJournal) -> None:
    await writer.append(a_record(1))
    engine = database.synchronous_engine()
    with engine.connect() as other:
        assert other.scalars(sa.select(journal.c.attempt_id)).all() == ["att_1"]
    engine.dispose()


async def test_append_waits_for_the_commit(writer: WatchedJournal) -> None:
    writer.gate.clear()
    written = writer.append(a_record(1))
    await asyncio.to_thread(writer.entered.wait, 5)
    assert not written.done()
    writer.gate.set()
    async with bounded():
        await written


async def test_what_comes_while_it_is_busy_is_one_commit(database: Database, writer: WatchedJournal) -> None:
    writer.gate.clear()
    first = writer.append(a_record(0))
    await asyncio.to_thread(writer.entered.wait, 5)
    rest = [writer.append(a_record(number)) for number in range(1, BATCH + 10)]
    writer.gate.set()
    async with bounded(20):
        await asyncio.gather(first, *rest)
    assert writer.commits == [1, BATCH, 9]
    assert len(await rows(database)) == BATCH + 10


async def test_a_passing_failure_is_tried_again(database: Database, writer: WatchedJournal) -> None:
    gone = sa.exc.OperationalError("INSERT", {}, Exception("the database restarts"))
    writer.failures = [gone, gone]
    async with bounded():
        await writer.append(a_record(1))
    assert await rows(database) == ["att_1"]


async def test_a_lasting_failure_fails_the_request_and_not_the_next_one(
    database: Database, writer: WatchedJournal
) -> None:
    writer.failures = [sa.exc.OperationalError("INSERT", {}, Exception("gone")) for _ in range(3)]
    async with bounded():
        with pytest.raises(JournalError, match="not delivered"):
            await writer.append(a_record(1))
        await writer.append(a_record(2))
    assert await rows(database) == ["att_2"]


async def test_what_may_be_charged_is_not_said_to_be_free(database: Database, writer: WatchedJournal) -> None:
    world = World(database, writer)
    writer.lost = [sa.exc.OperationalError("COMMIT", {}, Exception("gone")) for _ in range(3)]
    async with bounded():
        with pytest.raises(JournalError, match="may be charged all the same"):
            await writer.append(a_record(1))
        await world.settlement.settle_own()
    assert not writer.lost
    assert list(world.billing.charges) == ["att_1"]


async def test_a_fault_does_not_end_the_writer(writer: WatchedJournal) -> None:
    writer.failures = [ValueError("a fault")]
    async with bounded():
        with pytest.raises(JournalError):
            await writer.append(a_record(1))
        await writer.append(a_record(2))


async def test_a_table_that_is_missing_at_first(database: Database, writer: WatchedJournal) -> None:
    async with database.transaction() as connection:
        await connection.run_sync(lambda sync: journal.drop(sync))
    with pytest.raises(JournalError):
        await writer.append(a_record(1))
    async with database.transaction() as connection:
        await connection.run_sync(lambda sync: journal.create(sync))
    await writer.append(a_record(2))
    assert await rows(database) == ["att_2"]


async def test_a_record_is_written_once(database: Database, writer: WatchedJournal) -> None:
    await writer.append(a_record(1))
    await writer.append(a_record(1, amount=99))
    [charge] = await JournalStore(database).unsettled(10)
    assert charge.amount_nano_credits == 5


async def test_who_stops_waiting_changes_nothing(database: Database, writer: WatchedJournal) -> None:
    writer.gate.clear()
    written = writer.append(a_record(1))
    written.cancel()
    writer.gate.set()
    await writer.append(a_record(2))
    assert await rows(database) == ["att_1", "att_2"]


async def test_stopping_writes_what_is_queued_and_refuses_more(
    database: Database, writer: WatchedJournal
) -> None:
    writer.gate.clear()
    waiting = [writer.append(a_record(number)) for number in range(3)]
    stopping = asyncio.create_task(writer.stop())
    await asyncio.sleep(0)
    with pytest.raises(JournalError):
        await writer.append(a_record(9))
    writer.gate.set()
    async with bounded():
        await stopping
        await asyncio.gather(*waiting)
    assert len(await rows(database)) == 3


async def test_marks_and_records_share_a_commit(database: Database, writer: WatchedJournal) -> None:
    await writer.append(a_record(1))
    writer.gate.clear()
    writer.entered.clear()
    blocked = writer.append(a_record(2))
    await asyncio.to_thread(writer.entered.wait, 5)
    both = writer.mark_settled(["att_1"]), writer.append(a_record(3))
    writer.gate.set()
    async with bounded():
        await asyncio.gather(blocked, *both)
    assert writer.commits == [1, 1, 1]
    unsettled = await JournalStore(database).unsettled(10)
    assert [charge.charge_id for charge in unsettled] == ["att_2", "att_3"]


async def test_a_connection_that_dies_is_replaced(database: Database, writer: WatchedJournal) -> None:
    await writer.append(a_record(1))
    connection = writer._connection
    assert connection is not None
    if database.sqlite:
        connection.dbapi_connection.close()
    else:
        async with database.transaction() as other:
            backends = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            )
            await other.exec_driver_sql(f"{backends} AND pid <> pg_backend_pid()")
    async with bounded():
        await writer.append(a_record(2))
    assert await rows(database) == ["att_1", "att_2"]


async def test_what_was_unsettled_before_it_had_a_table_is_unsettled(
    database: Database, writer: WatchedJournal
) -> None:
    await asyncio.gather(*(writer.append(a_record(number)) for number in range(3)))
    await writer.mark_settled(["att_1"])
    migration = importlib.import_module("services.router.migrations.0008_unsettled")

    def back_and_forth(connection: sa.Connection) -> None:
        if not database.sqlite:
            connection.exec_driver_sql('SET LOCAL search_path TO "router"')
        with Operations.context(MigrationContext.configure(connection)):
            migration.downgrade()
            settled = connection.exec_driver_sql("SELECT attempt_id FROM journal WHERE settled")
            assert settled.scalars().all() == ["att_1"]
            migration.upgrade()

    async with database.transaction() as connection:
        await connection.run_sync(back_and_forth)
    waiting = await JournalStore(database).unsettled(10)
    assert [charge.charge_id for charge in waiting] == ["att_0", "att_2"]
    assert await rows(database) == ["att_0", "att_1", "att_2"]


class World:
    """A settlement of one process over a journal."""

    def __init__(self, database: Database, writer: Journal, instance_id: str = "proc_1") -> None:
        self.billing = FakeBilling()
        self.store = JournalStore(database)
        self.settlement = Settlement(self.store, writer, self.billing, instance_id, 60)
        self.leases = Leases(self.billing, instance_id, 10, 1000, self.settlement.settle_lease)


async def test_charges_are_booked_once(database: Database, writer: WatchedJournal) -> None:
    world = World(database, writer)
    await asyncio.gather(*(writer.append(a_record(number)) for number in range(20)))
    await world.settlement.settle_own()
    await world.settlement.settle_own()
    assert len(world.billing.charges) == 20
    assert world.billing.calls == ["settle"]
    assert await world.store.unsettled(10) == []


@pytest.mark.parametrize("reason", ["INVALID_ARGUMENT", "IDEMPOTENCY_KEY_REUSED"])
async def test_a_charge_that_cannot_be_booked_holds_up_no_other(
    database: Database, writer: WatchedJournal, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(database, writer)
    world.billing.unbookable_reason = reason
    await asyncio.gather(*(writer.append(a_record(number)) for number in range(5)))
    world.billing.unbookable.add("att_2")
    await world.settlement.settle_own()
    assert sorted(world.billing.charges) == ["att_0", "att_1", "att_3", "att_4"]
    assert [charge.charge_id for charge in await world.store.unsettled(10)] == ["att_2"]
    assert "charge_refused_by_billing att_2" in caplog.text
    asked = len(world.billing.calls)
    await writer.append(a_record(6))
    await world.settlement.settle_own()
    await world.settlement.replay()
    assert "att_6" in world.billing.charges
    # It was not asked about again.
    assert len(world.billing.calls) == asked + 1


async def test_a_charge_that_billing_fails_at_holds_up_no_other_and_is_tried_again(
    database: Database, writer: WatchedJournal
) -> None:
    world = World(database, writer)
    await asyncio.gather(*(writer.append(a_record(number)) for number in range(5)))
    world.billing.breaking.add("att_2")
    with pytest.raises(RpcError):
        await world.settlement.settle_own()
    assert sorted(world.billing.charges) == ["att_0", "att_1", "att_3", "att_4"]
    assert [charge.charge_id for charge in await world.store.unsettled(10)] == ["att_2"]
    world.billing.breaking.clear()
    await world.settlement.settle_own()
    assert len(world.billing.charges) == 5
    assert await world.store.unsettled(10) == []


@pytest.mark.parametrize("count", [2, 40])
async def test_when_billing_fails_at_everything_it_is_not_asked_for_each(
    database: Database, writer: WatchedJournal, count: int
) -> None:
    world = World(database, writer)
    names = {f"att_{number}" for number in range(count)}
    await asyncio.gather(*(writer.append(a_record(number)) for number in range(count)))
    world.billing.breaking |= names
    with pytest.raises(RpcError):
        await world.settlement.settle_own()
    assert len(world.billing.calls) <= 6
    world.billing.breaking.clear()
    await world.settlement.settle_own()
    assert set(world.billing.charges) == names


@pytest.mark.parametrize("which", ["own", "orphans", "all", "of a lease"])
async def test_charges_that_billing_fails_at_hold_up_no_later_ones(
    database: Database, writer: WatchedJournal, which: str
) -> None:
    world = World(database, writer)
    settle = {
        "own": world.settlement.settle_own,
        "orphans": world.settlement.settle_orphans,
        "all": world.settlement.replay,
        "of a lease": lambda: world.settlement.settle_lease("lease_1"),
    }[which]
    failing = {f"att_{number}" for number in range(FAILURES + 2)}
    count = len(failing) + 3
    old = NOW_MS - 60_000
    await asyncio.gather(*(writer.append(a_record(number, at_ms=old + number)) for number in range(count)))
    writer.unbooked.forget()
    world.billing.breaking |= failing
    # Billing fails at five in a row, and no more is asked of it. The next turn passes them by.
    for _ in range(2):
        await asyncio.gather(settle(), return_exceptions=True)
    assert len(world.billing.charges) == 3
    # Nor do they hold up what comes later, and they are tried again themselves.
    await writer.append(a_record(50, at_ms=old + 50))
    writer.unbooked.forget()
    world.billing.calls.clear()
    await asyncio.gather(settle(), return_exceptions=True)
    assert "att_50" in world.billing.charges
    assert len(world.billing.calls) == 1 + FAILURES
    world.billing.breaking.clear()
    await settle()
    assert len(world.billing.charges) == count + 1
    assert await world.store.unsettled(10) == []


async def test_a_lease_stays_open_for_a_charge_that_billing_has_failed_at_before(
    database: Database, writer: WatchedJournal
) -> None:
    world = World(database, writer)
    await asyncio.gather(*(writer.append(a_record(number)) for number in range(2)))
    world.billing.breaking.add("att_0")
    for _ in range(3):
        with pytest.raises(RpcError, match="INTERNAL"):
            await world.settlement.settle_lease("lease_1")
    await world.settlement.settle_lease("lease_2")


async def test_a_crash_between_booking_and_marking_books_nothing_twice(
    database: Database, writer: WatchedJournal
) -> None:
    world = World(database, writer)
    await writer.append(a_record(1))
    world.billing.refusals["settle"] = [RpcError("UNAVAILABLE", "the answer was lost")]
    with pytest.raises(RpcError):
        await world.settlement.settle_own()
    await world.billing.settle(type("Request", (), {"charges": await world.store.unsettled(10)}), None)  # type: ignore[arg-type]
    await World(database, writer, "proc_2").settlement.replay()
    assert [charge.amount_nano_credits for charge in world.billing.charges.values()] == [5]


async def test_replay_books_what_any_process_left(database: Database, writer: WatchedJournal) -> None:
    await asyncio.gather(*(writer.append(a_record(number)) for number in range(3)))
    other = Journal(database, "proc_2")
    other.start()
    later = World(database, other, "proc_2")
    await later.settlement.settle_own()
    assert later.billing.charges == {}
    await later.settlement.replay()
    assert len(later.billing.charges) == 3
    await other.stop()


class Unread(JournalStore):
    """A table that nobody may look into."""

    async def unsettled(self, limit: int, **which: Any) -> list[Charge]:
        raise AssertionError("what is at hand need not be read again")


async def test_charges_at_hand_are_not_read_again(database: Database, writer: WatchedJournal) -> None:
    world = World(database, writer)
    settlement = Settlement(Unread(database), writer, world.billing, "proc_1", 60)  # type: ignore[arg-type]
    await writer.append(a_record(1))
    await settlement.settle_own()
    assert list(world.billing.charges) == ["att_1"]
    writer.unbooked.look_there()
    with pytest.raises(AssertionError):
        await settlement.settle_own()
    assert not writer.unbooked.complete


async def test_what_comes_during_a_booking_waits_for_the_next(
    database: Database, writer: WatchedJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(database, writer)
    settle, turns = world.billing.settle, []

    async def busy(request: billing_pb.SettleRequest, call: Call) -> billing_pb.SettleResponse:
        turns.append(len(request.charges))
        await writer.append(a_record(100 + len(turns)))
        return await settle(request, call)

    monkeypatch.setattr(world.billing, "settle", busy)
    await asyncio.gather(*(writer.append(a_record(number)) for number in range(3)))
    await world.settlement.settle_own()
    assert turns == [3]
    await world.settlement.settle_own()
    assert turns == [3, 1]


@pytest.mark.parametrize("lost", ["too many", "away", "cancelled", "not written"])
async def test_what_is_not_at_hand_any_more_is_in_the_table(
    database: Database, writer: WatchedJournal, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(database, writer)
    if lost == "too many":
        monkeypatch.setattr(journal_module, "KEPT", 2)
    await asyncio.gather(*(writer.append(a_record(number)) for number in range(3)))
    if lost == "away":
        world.billing.refusals["settle"] = [RpcError("UNAVAILABLE", "starting")]
        with pytest.raises(RpcError):
            await world.settlement.settle_own()
    elif lost == "cancelled":
        monkeypatch.setattr(world.billing, "settle", lambda request, call: asyncio.Future())
        task = asyncio.create_task(world.settlement.settle_own())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        monkeypatch.undo()
    elif lost == "not written":
        # The commit happens, and then its answer is lost for good.
        writer.unbooked.take(3)
        writer.failures = [RuntimeError("broken")]
        with pytest.raises(JournalError):
            await writer.append(a_record(9))
    assert not writer.unbooked.complete
    await world.settlement.settle_own()
    assert sorted(world.billing.charges) == ["att_0", "att_1", "att_2"]
    assert writer.unbooked.complete


@pytest.mark.parametrize("at_hand", [True, False], ids=["at hand", "from the table"])
async def test_more_charges_than_one_batch(database: Database, writer: WatchedJournal, at_hand: bool) -> None:
    world = World(database, writer)
    count = BOOKED_AT_ONCE + 7
    await asyncio.gather(*(writer.append(a_record(number)) for number in range(count)))
    await (world.settlement.settle_own() if at_hand else world.settlement.replay())
    assert len(world.billing.charges) == count
    assert world.billing.calls == ["settle", "settle"]
    assert await world.store.unsettled(10) == []


async def test_orphans_are_booked_by_others_once_they_are_old(
    database: Database, writer: WatchedJournal
) -> None:
    now_ms = int(time.time() * 1000)
    await writer.append(a_record(1, at_ms=now_ms - 60_000))
    await writer.append(a_record(2, at_ms=now_ms))
    other = World(database, writer, "proc_2")
    await other.settlement.settle_orphans()
    assert list(other.billing.charges) == ["att_1"]


async def test_expired_leases_are_closed_after_their_charges(
    database: Database, writer: WatchedJournal
) -> None:
    world = World(database, writer, "proc_2")
    world.billing.leases = {"lease_1": 100}
    world.billing.expired = ["lease_1"]
    await writer.append(a_record(1))
    await world.settlement.reap(world.leases)
    assert world.billing.calls == ["list_expired_leases", "settle", "close_lease"]
    assert world.billing.closed == {"lease_1": 95}


async def test_a_lease_whose_charges_cannot_be_booked_stays_open(
    database: Database, writer: WatchedJournal
) -> None:
    world = World(database, writer, "proc_2")
    world.billing.leases = {"lease_1": 100}
    world.billing.expired = ["lease_1"]
    world.billing.refusals["settle"] = [RpcError("UNAVAILABLE", "starting")]
    await writer.append(a_record(1))
    with pytest.raises(RpcError):
        await world.settlement.reap(world.leases)
    assert world.billing.closed == {}


async def test_a_lease_that_cannot_be_settled_keeps_no_other_from_going_back(
    database: Database, writer: WatchedJournal
) -> None:
    world = World(database, writer, "proc_2")
    world.billing.leases = {"lease_1": 100, "lease_2": 100, "lease_3": 100}
    world.billing.expired = ["lease_1", "lease_2", "lease_3"]
    world.billing.breaking.add("att_1")
    await writer.append(a_record(1))
    with pytest.raises(RpcError, match="INTERNAL"):
        await world.settlement.reap(world.leases)
    assert world.billing.closed == {"lease_2": 100, "lease_3": 100}


async def test_the_reaper_leaves_alone_what_this_process_spends_from(
    database: Database, writer: WatchedJournal
) -> None:
    world = World(database, writer)
    reservation = await world.leases.reserve("org_1", 10)
    world.billing.expired = [reservation.lease_id]
    await world.settlement.reap(world.leases)
    assert world.billing.closed == {}


async def test_decisions_are_the_organisations_own(database: Database, writer: WatchedJournal) -> None:
    store = JournalStore(database)
    await writer.append(a_record(1))
    found = await store.decision("dec_1", "org_1")
    assert found is not None
    assert found.state == "complete"
    assert await store.decision("dec_1", "org_2") is None
    assert await store.decision("dec_2", "org_1") is None


async def test_old_records_go_but_never_unpaid_ones(database: Database, writer: WatchedJournal) -> None:
    store = JournalStore(database)
    old = NOW_MS - 10_000
    await writer.append(a_record(1, at_ms=old))
    await asyncio.gather(*(writer.append(a_record(n, at_ms=old, amount=None)) for n in range(10, 1500)))
    await writer.append(a_record(2, amount=None))
    await store.delete_before(NOW_MS)
    assert await rows(database) == ["att_1", "att_2"]
    await writer.mark_settled(["att_1"])
    await store.delete_before(NOW_MS)
    assert await rows(database) == ["att_2"]


async def test_what_is_unsettled_is_found_without_reading_what_is_settled(database: Database) -> None:
    # As `JournalStore.unsettled` asks.
    records = sa.join(unsettled, journal, unsettled.c.attempt_id == journal.c.attempt_id)
    query = sa.select(journal.c.charge).select_from(records).order_by(unsettled.c.attempt_id).limit(500)
    text = str(query.compile(database._engine.sync_engine, compile_kwargs={"literal_binds": True}))
    async with database.reading() as connection:
        if database.sqlite:
            plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")
        else:
            text = text.replace("FROM unsettled", "FROM router.unsettled AS unsettled")
            text = text.replace("JOIN journal", "JOIN router.journal AS journal")
            await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            plan = await connection.exec_driver_sql(f"EXPLAIN {text}")
        by_id = "SEARCH journal USING INDEX sqlite_autoindex_journal_1" if database.sqlite else "journal_pkey"
        assert by_id in str(plan.all())
