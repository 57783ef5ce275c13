"""Bindings of stored responses over both databases: written with the journal's record, ended once."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.common.v1.chat_pb2 import Finish, Usage
from omnihub.router.v1.decision_pb2 import AttemptRecord, Decision

from services.common.db import Database
from services.router.accounting.journal import Journal
from services.router.accounting.store import JournalStore, Record
from services.router.app import MIGRATIONS
from services.router.responses.store import ResponseStore, StoredResponse, stored_response

NOW_MS = int(time.time() * 1000)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url, "router")
    await opened.migrate(MIGRATIONS)
    yield opened
    await opened.close()


def a_response(response_id: str = "resp_1", organisation_id: str = "org_1", **more: object) -> StoredResponse:
    attempt_id = f"att_{response_id}_{organisation_id}"
    at = NOW_MS - 60_000
    known = {"decision_id": f"dec_{attempt_id}", "attempt_id": attempt_id, "target": "keeper/m", "at": at}
    return StoredResponse(organisation_id, response_id, **{**known, **more})  # type: ignore[arg-type]


async def record(database: Database, *responses: StoredResponse) -> None:
    """Write them as the journal does."""
    journal = Journal(database, "proc_gone")
    journal.start()
    for each in responses:
        attempt = AttemptRecord(attempt_id=each.attempt_id, target=each.target, state="complete")
        decision = Decision(
            decision_id=each.decision_id, state="in_progress", attempts=[attempt], usage=Usage(estimated=True)
        )
        await journal.append(
            Record(
                each.attempt_id,
                each.decision_id,
                each.organisation_id,
                "",
                each.at,
                decision.SerializeToString(),
                b"",
                each.row(),
            )
        )
    await journal.stop()


async def test_only_its_organisation_finds_a_response(database: Database) -> None:
    mine, theirs = a_response(), a_response(organisation_id="org_2", target="other/m")
    await record(database, mine, theirs)
    store = ResponseStore(database, "proc_1")
    assert await store.find("org_1", "resp_1") == mine
    assert await store.find("org_2", "resp_1") == theirs
    assert await store.find("org_3", "resp_1") is None


async def test_several_who_see_the_end_charge_it_once(database: Database) -> None:
    pending = a_response(pending=True, charge=b"x", reserved=5)
    await record(database, pending)
    charge = Charge(charge_id=pending.attempt_id, amount_nano_credits=7)
    end = Decision(state="complete", cost="0.000000007", usage=Usage(output_total=9), finish=Finish(raw="x"))
    stores = [ResponseStore(database, f"proc_{number}") for number in range(5)]
    settled = await asyncio.gather(*(store.settle(pending, charge, end) for store in stores))
    assert sorted(settled) == [False] * 4 + [True]
    found = await stores[0].find("org_1", "resp_1")
    assert found is not None
    assert (found.pending, found.charge) == (False, b"")
    journal = JournalStore(database)
    winner = f"proc_{settled.index(True)}"
    assert await journal.unsettled(10, instance_id=winner) == [charge]
    decision = await journal.decision(pending.decision_id, "org_1")
    assert decision is not None
    assert (decision.state, decision.usage, decision.attempts[0].cost) == ("complete", end.usage, end.cost)


@pytest.mark.parametrize("first_pending", [True, False])
async def test_two_answers_of_one_id_are_each_paid(database: Database, first_pending: bool) -> None:
    # A server of one's own counts its answers from nought after each start.
    first = a_response(pending=first_pending, charge=b"x", decision_id="dec_1", attempt_id="att_1")
    second = a_response(
        pending=True, charge=b"x", decision_id="dec_2", attempt_id="att_2", at=NOW_MS, target="other/m"
    )
    await record(database, first, second)
    store = ResponseStore(database, "proc_1")
    # The id means the newer one; both are asked about until they end.
    assert await store.find("org_1", "resp_1") == second
    pending = [first, second] if first_pending else [second]
    assert await store.due(NOW_MS, 10) == pending
    charges = [Charge(charge_id=each.attempt_id, amount_nano_credits=7) for each in pending]
    for each, charge in zip(pending, charges, strict=True):
        assert await store.claim(each, NOW_MS)
        assert await store.settle(each, charge, Decision(state="complete"))
        assert not await store.settle(each, charge, Decision(state="complete"))
    assert sorted(await JournalStore(database).unsettled(10), key=lambda each: each.charge_id) == charges
    assert await store.due(NOW_MS + 1, 10) == []
    await store.delete(second)
    assert await store.find("org_1", "resp_1") is None


async def test_an_old_answer_is_forgotten_and_a_newer_one_of_its_id_is_not(database: Database) -> None:
    old = a_response(attempt_id="att_1", decision_id="dec_1")
    new = a_response(attempt_id="att_2", decision_id="dec_2", at=NOW_MS)
    await record(database, old, new)
    store = ResponseStore(database, "proc_1")
    await store.delete_before(NOW_MS)
    assert await store.find("org_1", "resp_1") == new
    await store.delete_before(NOW_MS + 1)
    assert await store.find("org_1", "resp_1") is None


@pytest.mark.new_database
async def test_what_was_stored_before_is_carried_over(database_url: str, tmp_path: Path) -> None:
    for script in sorted(MIGRATIONS.glob("000[1-6]_*.py")):
        shutil.copy(script, tmp_path)
    database = Database(database_url, "router")
    await database.migrate(tmp_path)
    pending = a_response(pending=True, charge=b"x", price=b"y", reserved=5)
    async with database.transaction() as connection:
        await connection.execute(sa.insert(stored_response).values(pending.row()))
    await database.migrate(MIGRATIONS)
    store = ResponseStore(database, "proc_1")
    assert await store.find("org_1", "resp_1") == pending
    assert await store.due(NOW_MS, 10) == [pending]
    await database.close()


async def test_who_did_not_see_the_end_finds_what_was_charged(database: Database) -> None:
    ended, pending = a_response(pending=True, charge=b"x"), a_response("resp_2", pending=True)
    await record(database, ended, pending)
    charge = Charge(charge_id=ended.attempt_id, amount_nano_credits=7)
    await ResponseStore(database, "proc_1").settle(ended, charge, Decision(state="complete"))
    asked = [ended.attempt_id, pending.attempt_id, "att_forgotten"]
    found = await ResponseStore(database, "proc_2").ends_of(asked)
    assert found == {ended.attempt_id: charge, "att_forgotten": None}


async def test_one_sweeper_at_a_time_asks(database: Database) -> None:
    pending = a_response(pending=True, polled_at=NOW_MS - 60_000)
    await record(database, pending, a_response("resp_2"))
    store = ResponseStore(database, "proc_1")
    [due] = await store.due(NOW_MS - 1000, 10)
    assert due == pending
    assert sorted(await asyncio.gather(*(store.claim(due, NOW_MS) for _ in range(3)))) == [False, False, True]
    assert await store.due(NOW_MS - 1000, 10) == []


async def test_what_is_pending_is_never_forgotten(database: Database) -> None:
    pending, kept = a_response(pending=True), a_response("resp_2")
    await record(database, pending, kept)
    store = ResponseStore(database, "proc_1")
    await store.delete(pending)
    await store.delete_before(NOW_MS)
    assert await store.find("org_1", "resp_1") is not None
    assert await store.find("org_1", "resp_2") is None
