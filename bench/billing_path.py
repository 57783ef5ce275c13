"""What billing costs on the request path: admission from a lease and from limits, and the journal."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from operator import add
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from omnihub.billing.v1 import billing_service_pb2 as billing
from omnihub.billing.v1 import budget_service_pb2 as budget
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.common.v1.chat_pb2 import Usage

from services.common.db import Database
from services.common.ids import new_id
from services.common.rpc import Call, Identity
from services.router.accounting.budget_rules import BudgetRules
from services.router.accounting.budgets import Budgets
from services.router.accounting.journal import Journal
from services.router.accounting.leases import Leases
from services.router.accounting.settlement import Settlement
from services.router.accounting.store import JournalStore, Record, unsettled
from services.router.app import MIGRATIONS
from services.router.domain.limits import Rule, rules_of
from tests.support.billing import Directory, running_billing
from tests.support.fakes import FakeBilling, FakeBudgets

ORGANISATION = "org_bench"
ADMISSIONS = 20_000
RECORDS = 4000
WORKERS = 32
NANO, TOKENS, COST = 2_000_000, 3000, 1_500_000
# As many bytes as the decision of a usual request.
DECISION = bytes(900)


class GenerousBudgets(FakeBudgets):
    """Grants whatever is asked for."""

    async def acquire_slices(self, request: Any, call: Call) -> budget.AcquireSlicesResponse:
        """Grant more than anybody spends."""
        slices = [
            budget.Slice(slice_id=each.slice_id, granted_total=10**15, available=10**15)
            for each in request.slices
        ]
        return budget.AcquireSlicesResponse(slices=slices, expires_in_s=3600)


def limits(keys: int) -> list[Rule]:
    """Return two limits of the organisation, and two of each key."""
    terms = [
        ("organisation", ORGANISATION, "credits", "month"),
        ("organisation", ORGANISATION, "tokens", "minute"),
    ]
    for number in range(keys):
        terms += [("key", f"key_{number}", measure, "minute") for measure in ("requests", "credits")]
    return [
        Rule(f"{scope}:{scope_id}:{measure}", scope, scope_id, measure, window, 10**15)
        for scope, scope_id, measure, window in terms
    ]


@dataclass
class Gate:
    """What a request passes before its provider is called, with and without limits."""

    leases: Leases
    budgets: Budgets
    callers: list[Identity]
    """As the authenticator keeps them."""

    async def credits_alone(self, number: int) -> None:
        """Reserve and spend credits."""
        reservation = await self.leases.reserve(ORGANISATION, NANO)
        self.leases.spend(reservation, COST)

    async def with_limits(self, number: int) -> None:
        """Reserve and spend credits and what four limits leave."""
        identity = self.callers[number % len(self.callers)]
        known = self.budgets.rules.of(ORGANISATION)
        assert known is not None
        rules = self.budgets.rules_for(known, identity, "", "")
        drawn = await self.budgets.reserve(ORGANISATION, rules, NANO, TOKENS)
        reservation = await self.leases.reserve(ORGANISATION, NANO)
        self.leases.spend(reservation, COST)
        self.budgets.spend(drawn, COST, TOKENS)


def gate(keys: int) -> Gate:
    """Return a gate whose organisation has limits for so many keys."""

    async def nothing(lease_id: str = "") -> None:
        return

    wallet: Any = FakeBilling(available=10**18, lease_ttl_s=3600)
    service: Any = GenerousBudgets()
    budgets = Budgets(service, lambda on_change: BudgetRules(wallet, service, on_change), "bench", nothing)
    budgets.rules._known[ORGANISATION] = rules_of("", (), limits(keys))
    callers = [Identity(organisation_id=ORGANISATION, key_id=f"key_{number}") for number in range(keys)]
    return Gate(Leases(wallet, "bench", 10**17, 10**18, nothing), budgets, callers)


async def microseconds(work: Callable[[int], Awaitable[None]], times: int) -> float:
    """Return the CPU time of one call; the collector is set as in the service."""
    gc.collect()
    started = time.process_time()
    for number in range(times):
        await work(number)
    return (time.process_time() - started) / times * 1e6


async def _bare(number: int) -> None:
    return


async def admission(keys: int, rounds: int) -> dict[str, list[float]]:
    """Return microseconds of admitting, by what is admitted from; the loop around it is subtracted."""
    here = gate(keys)
    # What was made for the measurement is not what the collector looks at in a service.
    gc.freeze()
    found: dict[str, list[float]] = {"lease": [], "lease and four limits": []}
    for number in range(min(keys, ADMISSIONS)):
        await here.with_limits(number)
    for _ in range(rounds):
        loop = await microseconds(_bare, ADMISSIONS)
        found["lease"].append(await microseconds(here.credits_alone, ADMISSIONS) - loop)
        found["lease and four limits"].append(await microseconds(here.with_limits, ADMISSIONS) - loop)
    return found


def charge(charge_id: str, lease_id: str) -> Charge:
    """Return the charge of a usual request."""
    made = Charge(
        charge_id=charge_id,
        organisation_id=ORGANISATION,
        lease_id=lease_id,
        amount_nano_credits=COST,
        cost_nano_credits=COST - 1000,
        request_id="req_0123456789abcdef",
        decision_id="dec_" + charge_id,
        key_id="key_1",
        user_id="usr_1",
        workspace_id="wsp_1",
        provider="wall",
        model="wall/gpt-bench",
        task="chat",
        modality="text",
        price_version="wall@1",
        cost_source="usage",
        state="complete",
        latency_ms=420,
        usage=Usage(input_total=900, output_total=300),
    )
    # In whole milliseconds, as the router writes it.
    made.at.seconds, milliseconds = divmod(int(time.time() * 1000), 1000)
    made.at.nanos = milliseconds * 1_000_000
    return made


class _Away:
    """Stands for the journal when there is none."""

    def append(self, record: Record) -> asyncio.Future[None]:
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        written.get_loop().call_soon(written.set_result, None)
        return written


async def _answer_all(journal: Journal | _Away, lease_id: str, with_records: bool) -> float:
    """Let WORKERS end RECORDS requests and return the CPU time of one in microseconds."""
    nothing = Record("", "", "", "", 0, b"", b"")

    async def work() -> None:
        for _ in range(RECORDS // WORKERS):
            record = nothing
            if with_records:
                attempt_id = new_id("att")
                charged = charge(attempt_id, lease_id).SerializeToString()
                at = int(time.time() * 1000)
                record = Record(
                    attempt_id, "dec_" + attempt_id, ORGANISATION, lease_id, at, DECISION, charged
                )
            await journal.append(record)

    started = time.process_time()
    await asyncio.gather(*(work() for _ in range(WORKERS)))
    return (time.process_time() - started) / RECORDS * 1e6


async def journal(router_url: str, billing_url: str, rounds: int) -> dict[str, list[float]]:
    """Return microseconds of this process per request: of recording and of booking, each on its own.

    While recording is measured nothing else is here: billing's background work would count for as long as a
    commit takes, not for what a request costs.
    """
    database = Database(router_url, "router")
    await database.migrate(MIGRATIONS)
    record = await _recording(database, rounds)
    async with database.transaction() as connection:
        await connection.execute(sa.delete(unsettled))
    book = await _booking(database, billing_url, rounds)
    await database.close()
    return {"record": record, "book": book, "sum": list(map(add, record, book))}


async def _recording(database: Database, rounds: int) -> list[float]:
    writer = Journal(database, "bench")
    writer.start()
    found = []
    for _ in range(rounds):
        without = await _answer_all(_Away(), "", False)
        found.append(await _answer_all(writer, new_id("lease"), True) - without)
    await writer.stop()
    return found


async def _booking(database: Database, billing_url: str, rounds: int) -> list[float]:
    found = []
    writer = Journal(database, "bench")
    with tempfile.TemporaryDirectory(prefix="omnihub-bench-") as folder:
        directory = Directory(ORGANISATION, bootstrap=ORGANISATION)
        async with running_billing(billing_url, Path(folder), directory) as service:
            writer.start()
            settlement = Settlement(JournalStore(database), writer, service, "bench", 1.0)
            lease_id = await _lease(service)
            for _ in range(rounds):
                await _answer_all(writer, lease_id, True)
                started = time.process_time()
                await settlement.settle_own()
                found.append((time.process_time() - started) / RECORDS * 1e6)
            await writer.stop()
    return found


async def _lease(service: BillingService) -> str:
    request = billing.AcquireLeaseRequest(
        lease_id=new_id("lease"),
        organisation_id=ORGANISATION,
        holder="bench",
        wanted_nano_credits=90 * 10**9,
        minimum_nano_credits=10**9,
    )
    for _ in range(100):
        balance = await service.get_balance(
            billing.GetBalanceRequest(), Call("req", Identity(organisation_id=ORGANISATION))
        )
        if balance.available not in ("", "0"):
            break
        await asyncio.sleep(0.05)
    await service.acquire_lease(request, Call.internal(5))
    return request.lease_id
