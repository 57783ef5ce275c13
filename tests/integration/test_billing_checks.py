"""The hash chain and the checker: what was changed behind the ledger's back is found, with both sides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from services.billing import command
from services.billing.auditor import Auditor
from services.billing.domain.correction import Request
from services.billing.domain.grant import Grant
from services.billing.domain.plan import PlanBook
from services.billing.store import Store, postings, settlement
from services.billing.store.budget_tables import budget_counter, budget_slice
from services.billing.store.tables import (
    account,
    credit_grant,
    grant_movement,
    hold,
    lease,
    ledger_block,
    ledger_entry,
    ledger_head,
    ledger_seal,
    ledger_transaction,
    usage_event,
    usage_rollup,
)
from tests.support.billing import ORGANISATION, SECOND, assert_books_balance, charge, fund, open_store, tamper

TTL = 60 * SECOND


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with open_store(database_url) as opened:
        await fund(opened, "1")
        await opened.acquire_lease("l", ORGANISATION, "p", 1000, 1000, TTL, 0)
        await opened.create_hold("h", ORGANISATION, 500, TTL, 0)
        await opened.create_hold("done", ORGANISATION, 500, TTL, 0)
        await opened.settle([charge("a", 100, lease_id="l"), charge("b", 200, hold_id="done")], 1)
        await opened.refund_charge(Request("r", "a", 40), 2)
        assert await opened.seal(3) > 0
        await opened.settle([charge("c", 5)], 4)
        assert await opened.seal(5) > 0
        yield opened


async def found(store: Store) -> set[str]:
    report = await store.check(9)
    assert not report.ok
    assert all(each.expected != each.found and each.subject for each in report.differences)
    return {each.rule for each in report.differences}


HOURS = sa.update(usage_rollup)
EVENT = sa.select(usage_event.c.transaction_id).where(usage_event.c.id == "a").scalar_subquery()


@pytest.mark.parametrize(
    ("statement", "rules"),
    [
        (
            sa.update(ledger_entry).where(ledger_entry.c.amount == -5).values(amount=-4),
            {"zero_sum", "chain"},
        ),
        (sa.update(account).where(account.c.id == "revenue.usage").values(posted=7), {"posted"}),
        (sa.update(account).where(account.c.id == "wallet:org_a").values(posted=7), {"wallet"}),
        (sa.update(account).where(account.c.id == "wallet:org_a").values(held=7), {"held"}),
        (sa.update(account).where(account.c.id == "wallet:org_a").values(leased=7), {"leased"}),
        (sa.update(lease).values(spent=7), {"leased", "lease_spent"}),
        (sa.update(hold).where(hold.c.id == "done").values(captured=7), {"captured"}),
        (sa.update(usage_event).where(usage_event.c.id == "a").values(amount=7), {"charged", "chain"}),
        (sa.update(usage_event).where(usage_event.c.id == "a").values(cost=7), {"cost", "chain"}),
        (sa.update(usage_event).where(usage_event.c.id == "a").values(model="m"), {"chain"}),
        (sa.update(usage_event).where(usage_event.c.id == "a").values(transaction_id="t"), {"event_booked"}),
        (sa.delete(usage_event).where(usage_event.c.id == "c"), {"charged", "chain"}),
        (sa.update(usage_event).where(usage_event.c.id == "a").values(project_id="p"), {"chain"}),
        (sa.update(usage_event).where(usage_event.c.id == "a").values(rating="null"), {"chain"}),
        (HOURS.where(usage_rollup.c.dimension == "").values(amount=7), {"rolled_up", "sums_by_minute"}),
        (HOURS.where(usage_rollup.c.dimension == "").values(requests=7), {"rolled_up", "sums_by_minute"}),
        (HOURS.where(usage_rollup.c.dimension == "model").values(amount=7), {"sums_by_dimension"}),
        (sa.delete(usage_rollup).where(usage_rollup.c.dimension == "minute"), {"sums_by_minute"}),
        (sa.delete(usage_rollup), {"rolled_up"}),
        (sa.update(credit_grant).values(remaining=7), {"grant_remaining", "slices"}),
        (sa.update(grant_movement).where(grant_movement.c.kind == "reopen").values(amount=7), {"chain"}),
        (sa.update(account).where(account.c.kind == "receivable").values(posted=7), {"receivable", "posted"}),
        (sa.update(account).where(account.c.id == "rounding").values(carry_pico=7), {"rounding"}),
        (sa.update(ledger_transaction).where(ledger_transaction.c.id == "r").values(note="n"), {"chain"}),
        (sa.update(ledger_block).where(ledger_block.c.number == 1).values(hash="0" * 64), {"chain"}),
        (sa.delete(ledger_block).where(ledger_block.c.number == 1), {"chain"}),
        (sa.delete(ledger_block).where(ledger_block.c.number == 2), {"chain"}),
        (sa.delete(ledger_seal).where(ledger_seal.c.block == 2), {"chain"}),
        (sa.delete(ledger_head), {"chain"}),
    ],
)
async def test_what_was_changed_is_found(store: Store, statement: Any, rules: set[str]) -> None:
    assert (await store.check(9)).ok
    await tamper(store, statement)
    assert rules <= await found(store)


async def test_what_was_sealed_in_the_first_format_stays_checkable(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(settlement, "FORMAT", 1)
        patch.setattr(postings, "FORMAT", 1)
        await store.settle([charge("old", 7)], 6)
    await store.settle([charge("new", 8)], 7)
    assert await store.seal(8) == 2
    assert (await store.check(9)).ok
    old = sa.update(usage_event).where(usage_event.c.id == "old")
    # The first format did not cover this column.
    await tamper(store, old.values(run_id="r"))
    assert (await store.check(9)).ok
    await tamper(store, old.values(model="m"))
    assert await found(store) == {"chain"}


async def test_what_was_changed_in_budgets_is_found(store: Store) -> None:
    counter = {"limit_id": "lim", "window_start": 0, "spent": 4, "leased": 5}
    part = {"id": "s", "limit_id": "lim", "window_start": 0, "holder": "p", "granted": 9, "spent": 4}
    rows = {budget_counter: counter, budget_slice: {**part, "state": "open", "expires_at": 1}}
    await tamper(store, *(sa.insert(table).values(row) for table, row in rows.items()))
    assert (await store.check(9)).ok
    await tamper(store, sa.update(budget_counter).values(leased=7))
    assert await found(store) == {"budget_leased"}
    await tamper(store, sa.update(budget_counter).values(leased=4), sa.update(budget_slice).values(spent=5))
    assert await found(store) == {"budget_slices_spent"}
    await tamper(store, sa.update(budget_slice).values(spent=10))
    assert await found(store) == {"budget_leased", "budget_slice_spent", "budget_slices_spent"}


async def test_a_transaction_that_was_slipped_in_is_found(store: Store) -> None:
    row = dict.fromkeys(("kind", "fingerprint", "actor", "note", "organisation_id", "refers_to"), "")
    row |= {"id": "gift", "at": 0, "format": 1}
    entries = [
        {"transaction_id": "gift", "account_id": "wallet.paid:org_a", "amount": 50},
        {"transaction_id": "gift", "account_id": "revenue.usage", "amount": -50},
    ]
    await tamper(store, sa.insert(ledger_transaction).values(row), sa.insert(ledger_entry).values(entries))
    assert {"chain", "posted"} <= await found(store)


async def test_a_difference_is_kept_until_it_is_gone(store: Store) -> None:
    wrong = sa.update(account).where(account.c.id == "wallet:org_a")
    async with store.database.reading() as connection:
        held = await connection.scalar(sa.select(account.c.held).where(account.c.id == "wallet:org_a"))
    await tamper(store, wrong.values(held=7))
    for now in (10, 20):
        await store.check(now)
    (row,) = await store.discrepancies(None, 10, resolved=False)
    assert (row.rule, row.subject, row.expected, row.found) == ("held", "wallet:org_a", str(held), "7")
    assert (row.first_seen_at, row.last_seen_at, row.resolved_at) == (10, 20, None)
    await tamper(store, wrong.values(held=held))
    assert (await store.check(30)).ok
    assert await store.discrepancies(None, 10, resolved=False) == []
    (row,) = await store.discrepancies(None, 10, resolved=True)
    assert row.resolved_at == 30


async def test_blocks_are_sealed_once_by_any_number_of_replicas(store: Store) -> None:
    await store.settle([charge(f"n{number}", 1, f"org_{number}") for number in range(30)], 6)
    await asyncio.gather(
        *(store.seal(7) for _ in range(5)), *(store.settle([charge(f"m{n}", 1)], 7) for n in range(5))
    )
    while await store.seal(8):
        pass
    report = await store.check(9)
    assert (report.ok, report.unsealed) == (True, 0)
    async with store.database.reading() as connection:
        sealed = await connection.scalar(sa.select(sa.func.count()).select_from(ledger_seal))
    assert sealed == report.transactions


async def test_one_replica_checks_in_an_interval(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    clock = [datetime(2026, 1, 1, tzinfo=UTC)]
    auditors = [Auditor(store, 3600 * SECOND, lambda: clock[0]) for _ in range(4)]
    await tamper(store, sa.update(account).where(account.c.id == "wallet:org_a").values(held=7))
    for expected in (1, 1, 2):
        await asyncio.gather(*(auditor.check() for auditor in auditors))
        assert caplog.text.count("ledger_discrepancy held wallet:org_a") == expected
        clock[0] = clock[0].replace(
            hour=clock[0].hour + (1 if expected == 1 and clock[0].minute else 0), minute=59
        )
    await store.settle([charge("x", 1)], 9)
    await auditors[0].seal()
    assert (await store.check(9)).unsealed == 0


async def test_the_command_prints_both_sides(
    store: Store, database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asyncio.to_thread(_command, database_url, tmp_path) == 0
    assert capsys.readouterr().out.startswith("the books add up: ")
    await tamper(store, sa.update(account).where(account.c.id == "wallet:org_a").values(held=7))
    assert await asyncio.to_thread(_command, database_url, tmp_path) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "held wallet:org_a: expected 500, found 7"
    assert printed[1].startswith("1 differences: ")


def _command(database_url: str, tmp_path: Path) -> int:
    if database_url.startswith("sqlite"):
        file = Path(database_url.removeprefix("sqlite:///"))
        return command.check(_folder_with(file, tmp_path), "", PlanBook({}))
    return command.check(tmp_path, database_url, PlanBook({}))


def _folder_with(file: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir(exist_ok=True)
    if not (folder / "billing.db").exists():
        (folder / "billing.db").symlink_to(file)
    return folder


def test_the_command_says_when_there_is_no_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.check(tmp_path, "", PlanBook({})) == 2
    assert "OMNIHUB_DATA_DIR" in capsys.readouterr().err
    (tmp_path / "billing.db").write_bytes(b"this is no database, whatever its name says" * 50)
    assert command.check(tmp_path, "", PlanBook({})) == 2
    assert "cannot be read" in capsys.readouterr().err


async def test_a_grant_is_part_of_the_chain(store: Store) -> None:
    await store.grant(Grant("k", ORGANISATION, 7), 6)
    while await store.seal(7):
        pass
    await assert_books_balance(store)
    await tamper(store, sa.delete(grant_movement).where(grant_movement.c.transaction_id == "k"))
    assert "chain" in await found(store)
