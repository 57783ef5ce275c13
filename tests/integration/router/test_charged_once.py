"""I15: every attempt that has used something has exactly one charge, and every charge has its attempt.

Two processes write journals and book them at a real billing, over both databases; answers get lost before and
after the booking, and processes die with what they had at hand.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.usage_pb2 import Charge

from services.billing.store.tables import usage_event
from services.common.db import Database, sqlite_url
from services.common.rpc import RpcError
from services.router.accounting.journal import Journal
from services.router.accounting.settlement import Settlement
from services.router.accounting.store import JournalStore, Record, journal, unsettled
from services.router.app import MIGRATIONS
from tests.support.billing import ORGANISATION, Directory, charge, running_billing

STEPS = 60


class LostAnswerError(RpcError):
    """What a caller gets whose answer did not arrive."""


class Unreliable:
    """Billing whose answers get lost, before it has booked or after."""

    def __init__(self, service: BillingService) -> None:
        self._service = service
        self.lost: list[str] = []
        self.counts: Counter[str] = Counter()

    async def settle(self, request: Any, call: Any) -> Any:
        where = self.lost.pop() if self.lost else ""
        if where != "before":
            answer = await self._service.settle(request, call)
        if where:
            self.counts[where] += 1
            raise LostAnswerError("UNAVAILABLE", "the answer was lost")
        return answer


class Process:
    """A journal and its settlement."""

    def __init__(self, database: Database, service: Unreliable, name: str) -> None:
        self._database, self._service, self.name = database, service, name
        self.begin()

    def begin(self) -> None:
        """Start, as after a death: nothing is at hand."""
        self.journal = Journal(self._database, self.name)
        self.journal.start()
        service: Any = self._service
        self.settlement = Settlement(JournalStore(self._database), self.journal, service, self.name, 60)

    async def die(self) -> None:
        """End without booking what is at hand, and start again."""
        await self.journal.stop()
        self._service.counts["died"] += 1
        self.begin()
        await self.settlement.replay()


def a_record(number: int, amount: int | None) -> Record:
    made = Charge() if amount is None else charge(f"att_{number:04}", amount, provider="wall")
    made.at.seconds = number
    paid = b"" if amount is None else made.SerializeToString()
    return Record(f"att_{number:04}", f"dec_{number}", ORGANISATION, "", number, b"", paid)


async def step(dice: random.Random, processes: list[Process], service: Unreliable, number: int) -> None:
    process = dice.choice(processes)
    what = dice.choice(("write", "write", "write", "settle", "settle", "replay", "lose", "die"))
    if what == "write":
        await process.journal.append(a_record(number, dice.choice((None, 0, 7))))
    elif what == "lose":
        service.lost.append(dice.choice(("before", "after")))
    elif what == "die":
        service.lost.clear()
        await process.die()
    else:
        settlement = process.settlement
        with contextlib.suppress(LostAnswerError):
            await (settlement.settle_own() if what == "settle" else settlement.replay())


async def stored(database: Database, query: sa.Select[Any]) -> list[Any]:
    async with database.reading() as connection:
        return sorted(map(tuple, await connection.execute(query)))


@pytest.mark.parametrize("seed", range(2))
async def test_what_was_used_is_charged_once_whatever_dies(
    database_url: str, tmp_path: Path, seed: int
) -> None:
    is_file = database_url.startswith("sqlite")
    billing_url = sqlite_url(tmp_path / "books.db") if is_file else database_url
    dice = random.Random(seed)
    router, books = Database(database_url, "router"), Database(billing_url, "billing")
    await router.migrate(MIGRATIONS)
    async with running_billing(
        billing_url, tmp_path, Directory(ORGANISATION, bootstrap=ORGANISATION)
    ) as real:
        service = Unreliable(real)
        processes = [Process(router, service, f"proc_{number}") for number in range(2)]
        for number in range(STEPS):
            await step(dice, processes, service, number)
        service.lost.clear()
        for process in processes:
            await process.settlement.replay()
            await process.journal.stop()
        assert set(service.counts) == {"before", "after", "died"}
        used = sa.select(journal.c.attempt_id).where(journal.c.charge != b"")
        assert await stored(router, used) == await stored(books, sa.select(usage_event.c.id)) != []
        assert await stored(router, sa.select(unsettled)) == []
    await router.close()
    await books.close()
