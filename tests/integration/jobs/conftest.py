"""The engine of jobs on a real database, with a counting provider and the real billing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from services.common.clock import now
from services.common.db import Database
from services.common.outbox import Outbox
from services.common.rpc import Call
from services.common.rpc.call import Identity
from services.workflow import tables
from services.workflow.admission import Admission
from services.workflow.engine.clockwork import Clockwork
from services.workflow.engine.crash import CrashPoints
from services.workflow.engine.settler import Settler
from services.workflow.engine.worker import Worker
from services.workflow.server import JobServer
from services.workflow.store.attempts import SECOND, Attempts
from services.workflow.store.jobs import Jobs
from tests.support.jobs import CountingRouter, MemoryOutputs

MIGRATIONS = Path("services/workflow/migrations").resolve()


class CountingBilling:
    """Takes holds and charges as the contract says, in memory."""

    def __init__(self) -> None:
        self.holds: dict[str, int] = {}
        self.charges: dict[str, int] = {}
        self.released: list[str] = []

    async def create_hold(self, request, call):
        self.holds[request.hold_id] = request.amount_nano_credits

    async def release_hold(self, request, call):
        self.released.append(request.hold_id)

    async def settle(self, request, call):
        for charge in request.charges:
            known = self.charges.setdefault(charge.charge_id, charge.amount_nano_credits)
            assert known == charge.amount_nano_credits


@dataclass
class Engine:
    """Everything between a caller and a provider."""

    jobs: Jobs
    attempts: Attempts
    outbox: Outbox
    router: CountingRouter
    billing: CountingBilling
    outputs: MemoryOutputs
    worker: Worker
    clockwork: Clockwork
    server: JobServer
    settler: Settler
    later_s: float = 0.0

    def now(self) -> int:
        return round((now().timestamp() + self.later_s) * SECOND)

    async def work_off(self) -> int:
        """Work off every message that is due, one after the other; return how many."""
        count = 0
        while messages := await self.outbox.take(self.now()):
            for message in messages:
                count += 1
                handler = self.settler.settle if message.queue == "job.settle" else self.worker.work
                await handler(message.subject_id)
                await self.outbox.passed_on([message.id])
        return count


CALLER = Call(
    "req_1", Identity(organisation_id="org_1", key_id="key_1", scopes=frozenset({"jobs"}), token="t")
)
STRANGER = Call("req_2", Identity(organisation_id="org_1", key_id="key_2", token="t"))


@pytest_asyncio.fixture
async def engine(database_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    database = Database(database_url, "workflow")
    await database.migrate(MIGRATIONS)
    outbox = Outbox(database, tables.outbox)
    jobs, attempts = Jobs(database, outbox), Attempts(database, outbox)
    router, billing, outputs = CountingRouter(), CountingBilling(), MemoryOutputs()

    async def unchecked(given, call):
        return given

    worker = Worker(attempts, router, outputs, "w1", now, CrashPoints(""))
    admission = Admission(jobs, router, billing, unchecked, now)
    server = JobServer(jobs, admission, lambda file_id: f"link:{file_id}", lambda: None, now)
    engine = Engine(
        jobs,
        attempts,
        outbox,
        router,
        billing,
        outputs,
        worker,
        Clockwork(jobs, attempts, worker, now),
        server,
        Settler(jobs, attempts, billing),
    )
    yield engine
    await database.close()
