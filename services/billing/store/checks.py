"""The checker: derives every projection anew and compares it with what is stored.

Sums are made by the database, over one snapshot. Everything here is synchronous: it runs in a thread
of its own, or in a command, and never holds up a request.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import sqlalchemy as sa

from services.billing.domain.accounts import FAMILY, PAID, PAYABLE, PROMO, RECEIVABLE, ROUNDING, WALLET
from services.billing.domain.difference import Difference, Report
from services.billing.domain.grant import PAID as PAID_GRANT
from services.billing.domain.ledger import PICO_PER_NANO
from services.billing.domain.plan import PlanBook
from services.billing.domain.purse import RAISING
from services.billing.store.budget_check import check_counters
from services.billing.store.budget_tables import budget_counter, budget_slice
from services.billing.store.chain_check import check_chain
from services.billing.store.rollup import BY_MINUTE, EVERYONE, HOUR, MINUTES_OF_HOUR, TOTAL
from services.billing.store.tables import (
    account,
    credit_grant,
    grant_movement,
    hold,
    lease,
    ledger_block,
    ledger_entry,
    ledger_transaction,
    unsealed,
    usage_event,
    usage_rollup,
)
from services.common.db import Database

# Differences of one rule that are listed; whoever finds that many needs no more.
LISTED = 1000
Rule = Callable[[], sa.Select[Any]]


def check_ledger(database: Database, plan_book: PlanBook | None = None) -> Report:
    """Check everything and report. Reads every row of the ledger.

    `plan_book`: the plans of files, to know which counters of plans still count; without it none are checked.
    """
    engine = database.synchronous_engine()
    try:
        with engine.connect() as connection:
            if database.sqlite:
                connection.exec_driver_sql("BEGIN")
            else:
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            report = Report(
                transactions=_count(connection, ledger_transaction),
                entries=_count(connection, ledger_entry),
                usage_events=_count(connection, usage_event),
                blocks=_count(connection, ledger_block),
                unsealed=_count(connection, unsealed),
            )
            for rule in RULES:
                report.differences += _differences(connection, rule)
            report.differences += itertools.islice(check_counters(connection, plan_book), LISTED)
            report.differences += check_chain(connection)
            connection.rollback()
    finally:
        engine.dispose()
    return report


def _count(connection: sa.Connection, table: sa.Table) -> int:
    return int(connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0)


def _differences(connection: sa.Connection, rule: Rule) -> Iterator[Difference]:
    rows: Iterable[Any] = connection.execute(rule().limit(LISTED))
    for row in rows:
        yield Difference(rule.__name__, str(row[0]), _text(row[1]), _text(row[2]))


def _text(side: Any) -> str:
    # PostgreSQL sums 64-bit integers to a decimal.
    return str(side) if isinstance(side, str) else str(int(side))


def _unequal(subject: Any, expected: Any, found: Any) -> sa.Select[Any]:
    return sa.select(subject, expected, found).where(expected != found)


def _or_zero(value: Any) -> Any:
    return sa.func.coalesce(value, 0)


def _totals(key: Any, value: Any, *conditions: Any, source: Any = None) -> Any:
    """Return a subquery of (key, total)."""
    query = sa.select(key, sa.func.sum(value).label("total")).where(*conditions).group_by(key)
    return (query if source is None else query.select_from(source)).subquery()


def zero_sum() -> sa.Select[Any]:
    """Every transaction sums to zero."""
    total = sa.func.sum(ledger_entry.c.amount)
    query = sa.select(ledger_entry.c.transaction_id, sa.literal(0), total)
    return query.group_by(ledger_entry.c.transaction_id).having(total != 0)


def posted() -> sa.Select[Any]:
    """An account's balance is the sum of its entries."""
    entries = _totals(ledger_entry.c.account_id, ledger_entry.c.amount)
    query = _unequal(account.c.id, _or_zero(entries.c.total), account.c.posted)
    joined = account.outerjoin(entries, entries.c.account_id == account.c.id)
    return query.select_from(joined).where(account.c.kind != WALLET)


def wallet() -> sa.Select[Any]:
    """A wallet is the sum of the organisation's accounts."""
    part = account.alias("part")
    parts = _totals(part.c.organisation_id, part.c.posted, part.c.kind.in_(FAMILY))
    query = _unequal(account.c.id, _or_zero(parts.c.total), account.c.posted)
    joined = account.outerjoin(parts, parts.c.organisation_id == account.c.organisation_id)
    return query.select_from(joined).where(account.c.kind == WALLET)


def held() -> sa.Select[Any]:
    """What is held is the sum of the open holds."""
    holds = _totals(hold.c.account_id, hold.c.amount, hold.c.state == "open")
    query = _unequal(account.c.id, _or_zero(holds.c.total), account.c.held)
    return query.select_from(account.outerjoin(holds, holds.c.account_id == account.c.id))


def leased() -> sa.Select[Any]:
    """What is leased is the sum of what is unspent in open leases."""
    rest = sa.case((lease.c.granted > lease.c.spent, lease.c.granted - lease.c.spent), else_=0)
    leases = _totals(lease.c.account_id, rest, lease.c.state == "open")
    query = _unequal(account.c.id, _or_zero(leases.c.total), account.c.leased)
    return query.select_from(account.outerjoin(leases, leases.c.account_id == account.c.id))


def lease_spent() -> sa.Select[Any]:
    """What a lease has spent is the sum of the charges booked against it in time."""
    in_time = (usage_event.c.lease_id != "", usage_event.c.hold_id == "", ~usage_event.c.late)
    events = _totals(usage_event.c.lease_id, usage_event.c.amount, *in_time)
    query = _unequal(lease.c.id, _or_zero(events.c.total), lease.c.spent)
    return query.select_from(lease.outerjoin(events, events.c.lease_id == lease.c.id))


def captured() -> sa.Select[Any]:
    """What a hold has captured is what was charged to it in time, and at most the hold."""
    events = _totals(
        usage_event.c.hold_id, usage_event.c.amount, usage_event.c.hold_id != "", ~usage_event.c.late
    )
    charged = sa.case((events.c.total > hold.c.amount, hold.c.amount), else_=_or_zero(events.c.total))
    query = _unequal(hold.c.id, charged, hold.c.captured)
    return query.select_from(hold.outerjoin(events, events.c.hold_id == hold.c.id))


def charged() -> sa.Select[Any]:
    """What a settlement took from the organisation is the sum of its usage events."""
    return _events_against_entries(usage_event.c.amount, account.c.kind.in_(FAMILY), -ledger_entry.c.amount)


def cost() -> sa.Select[Any]:
    """What a settlement says we owe providers is the sum of its usage events' costs."""
    return _events_against_entries(usage_event.c.cost, account.c.kind == PAYABLE, ledger_entry.c.amount)


def _events_against_entries(column: Any, accounts: Any, amount: Any) -> sa.Select[Any]:
    events = _totals(usage_event.c.transaction_id, column)
    of_accounts = ledger_entry.join(account, account.c.id == ledger_entry.c.account_id)
    entries = _totals(ledger_entry.c.transaction_id, amount, accounts, source=of_accounts)
    joined = ledger_transaction.outerjoin(events, events.c.transaction_id == ledger_transaction.c.id)
    joined = joined.outerjoin(entries, entries.c.transaction_id == ledger_transaction.c.id)
    query = _unequal(ledger_transaction.c.id, _or_zero(events.c.total), _or_zero(entries.c.total))
    # Before format 1 entries went to other accounts.
    return query.select_from(joined).where(
        ledger_transaction.c.kind == "charges", ledger_transaction.c.format > 0
    )


def event_booked() -> sa.Select[Any]:
    """Every usage event names the transaction that booked it."""
    known = ledger_transaction.c.id == usage_event.c.transaction_id
    query = sa.select(usage_event.c.id, usage_event.c.transaction_id, sa.literal("no such transaction"))
    return query.select_from(usage_event.outerjoin(ledger_transaction, known)).where(
        ledger_transaction.c.id.is_(None)
    )


def rolled_up() -> sa.Select[Any]:
    """An hour's total of an organisation is the sum of its events."""
    rollup = usage_rollup.c
    hour = usage_event.c.at.op("/")(sa.literal(HOUR, sa.BigInteger))
    events = sa.select(usage_event.c.organisation_id, hour.label("hour"), usage_event.c.amount, sa.literal(1))
    sums = sa.select(rollup.organisation_id, rollup.hour, rollup.amount, rollup.requests)
    sums = sums.where(rollup.dimension == TOTAL, rollup.organisation_id != EVERYONE)
    return _same_sums(_by_hour(events), _by_hour(sums))


def sums_by_minute() -> sa.Select[Any]:
    """An hour's total, also of all organisations, is the sum of its minutes."""
    rollup = usage_rollup.c
    hour = rollup.hour.op("/")(sa.literal(MINUTES_OF_HOUR, sa.BigInteger))
    minutes = sa.select(rollup.organisation_id, hour.label("hour"), rollup.amount, rollup.requests)
    hours = sa.select(rollup.organisation_id, rollup.hour, rollup.amount, rollup.requests)
    return _same_sums(
        _by_hour(minutes.where(rollup.dimension == BY_MINUTE)),
        _by_hour(hours.where(rollup.dimension == TOTAL)),
    )


def sums_by_dimension() -> sa.Select[Any]:
    """An hour's sums by any dimension come to the hour's total."""
    total, part = usage_rollup.alias("total"), usage_rollup.alias("part")
    same = sa.and_(part.c.organisation_id == total.c.organisation_id, part.c.hour == total.c.hour)
    subject = part.c.organisation_id + " " + part.c.dimension + " " + sa.cast(part.c.hour, sa.String)
    found = sa.func.sum(part.c.amount)
    query = sa.select(subject, total.c.amount, found).select_from(part.join(total, same))
    query = query.where(total.c.dimension == TOTAL, part.c.dimension.not_in((TOTAL, BY_MINUTE)))
    key = (part.c.organisation_id, part.c.dimension, part.c.hour, total.c.amount)
    return query.group_by(*key).having(total.c.amount != found)


def _by_hour(rows: sa.Select[Any]) -> Any:
    each = rows.subquery()
    whose, hour, amount, requests = each.c
    sums = sa.func.sum(amount).label("amount"), sa.func.sum(requests).label("requests")
    return sa.select(whose.label("whose"), hour.label("hour"), *sums).group_by(whose, hour)


def _same_sums(expected: Any, found: Any) -> sa.Select[Any]:
    """Return what differs between two lists of (whose, hour, amount, requests), either way."""
    none = sa.literal(0, sa.BigInteger)

    def side(rows: Any, ours: bool) -> sa.Select[Any]:
        row = rows.subquery().c
        sums = (row.amount, row.requests, none, none) if ours else (none, none, row.amount, row.requests)
        names = ("expected", "expected_requests", "found", "found_requests")
        labelled = (value.label(name) for value, name in zip(sums, names, strict=True))
        return sa.select(row.whose, row.hour, *labelled)

    every = sa.union_all(side(expected, True), side(found, False)).subquery().c

    def text(amount: Any, requests: Any) -> Any:
        parts = (sa.cast(sa.func.sum(value), sa.String) for value in (amount, requests))
        return next(parts) + " for " + next(parts)

    wanted, there = text(every.expected, every.expected_requests), text(every.found, every.found_requests)
    subject = every.whose + " hour " + sa.cast(every.hour, sa.String)
    query = sa.select(subject, wanted, there).group_by(every.whose, every.hour)
    return query.having(wanted != there)


def grant_remaining() -> sa.Select[Any]:
    """What is left of a grant is planned - released + reopened and so on."""
    signed = sa.case(
        (grant_movement.c.kind.in_(RAISING), grant_movement.c.amount), else_=-grant_movement.c.amount
    )
    moved = _totals(grant_movement.c.grant_id, signed)
    query = _unequal(credit_grant.c.id, _or_zero(moved.c.total), credit_grant.c.remaining)
    return query.select_from(credit_grant.outerjoin(moved, moved.c.grant_id == credit_grant.c.id))


def slices() -> sa.Select[Any]:
    """The grants of an organisation are what its paid and its promotional credits consist of."""
    kind = sa.case((credit_grant.c.kind == PAID_GRANT, PAID), else_=PROMO)
    columns = (credit_grant.c.organisation_id, kind.label("kind"))
    total = sa.func.sum(credit_grant.c.remaining).label("total")
    left: Any = sa.select(*columns, total).group_by(credit_grant.c.organisation_id, kind).subquery()
    same = sa.and_(left.c.organisation_id == account.c.organisation_id, left.c.kind == account.c.kind)
    query = _unequal(account.c.id, _or_zero(left.c.total), account.c.posted)
    return query.select_from(account.outerjoin(left, same)).where(account.c.kind.in_((PAID, PROMO)))


def receivable() -> sa.Select[Any]:
    """Nobody owes less than nothing."""
    query = sa.select(account.c.id, sa.literal("at most 0"), account.c.posted)
    return query.where(account.c.kind == RECEIVABLE, account.c.posted > 0)


def rounding() -> sa.Select[Any]:
    """The rounding account is, to the pico-credit, what charges were rounded up by."""
    total = sa.select(_or_zero(sa.func.sum(usage_event.c.rounding_pico))).scalar_subquery()
    found = account.c.posted * PICO_PER_NANO + account.c.carry_pico
    return _unequal(account.c.id, total, found).where(account.c.id == ROUNDING)


def budget_leased() -> sa.Select[Any]:
    """What is set aside of a limit's window is the sum of what is unspent in its open slices."""
    rest = sa.case(
        (budget_slice.c.granted > budget_slice.c.spent, budget_slice.c.granted - budget_slice.c.spent),
        else_=0,
    )
    columns = (budget_slice.c.limit_id, budget_slice.c.window_start)
    open_ones = budget_slice.c.state == "open"
    slices: Any = sa.select(*columns, sa.func.sum(rest).label("total")).where(open_ones).group_by(*columns)
    parts = slices.subquery()
    same = sa.and_(
        parts.c.limit_id == budget_counter.c.limit_id,
        parts.c.window_start == budget_counter.c.window_start,
    )
    query = _unequal(budget_counter.c.limit_id, _or_zero(parts.c.total), budget_counter.c.leased)
    return query.select_from(budget_counter.outerjoin(parts, same))


def budget_slices_spent() -> sa.Select[Any]:
    """The slices of a limit's window have not given more than its charges have used.

    How much of that each slice gave is not derived: events do not name them, for a slice lives for seconds.
    """
    columns = (budget_slice.c.limit_id, budget_slice.c.window_start)
    given: Any = sa.select(*columns, sa.func.sum(budget_slice.c.spent).label("total")).group_by(*columns)
    parts = given.subquery()
    same = sa.and_(
        parts.c.limit_id == budget_counter.c.limit_id,
        parts.c.window_start == budget_counter.c.window_start,
    )
    query = sa.select(budget_counter.c.limit_id, budget_counter.c.spent, parts.c.total)
    return query.join(parts, same).where(parts.c.total > budget_counter.c.spent)


def budget_slice_spent() -> sa.Select[Any]:
    """No slice has given more than it was granted."""
    query = sa.select(budget_slice.c.id, budget_slice.c.granted, budget_slice.c.spent)
    return query.where(budget_slice.c.spent > budget_slice.c.granted)


RULES: tuple[Rule, ...] = (
    zero_sum,
    posted,
    wallet,
    held,
    leased,
    lease_spent,
    captured,
    charged,
    cost,
    event_booked,
    rolled_up,
    sums_by_minute,
    sums_by_dimension,
    grant_remaining,
    slices,
    receivable,
    rounding,
    budget_leased,
    budget_slices_spent,
    budget_slice_spent,
)
