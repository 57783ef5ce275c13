"""The engine of jobs on a real database, with a counting provider and the real billing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.common.clock import now
from services.common.db import Database
from services.common.outbox import Outbox
from services.common.rpc import Call, RpcError
from services.common.rpc.call import Identity
from services.workflow import tables
from services.workflow.admission import Admission
from services.workflow.desk import Desk
from services.workflow.engine.batches import Advancer
from services.workflow.engine.clockwork import Clockwork
from services.workflow.engine.crash import CrashPoints
from services.workflow.engine.settler import Settler
from services.workflow.engine.worker import Worker
from services.workflow.server import JobServer
from services.workflow.store.batches import Batches
from services.workflow.store.letters import Letters
from services.workflow.store.notices import Notices
from services.workflow.store.records import SECOND
from services.workflow.store.rounds import Rounds
from tests.support.jobs import CountingRouter, MemoryOutputs
from tests.support.rabbitmq import Broker, private_broker

MIGRATIONS = Path("services/workflow/migrations").resolve()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Run a broker for all tests of this folder. Who kills it starts it again."""
    with private_broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


class CountingBilling:
    """Takes holds and charges as the contract says, in memory, and hands them to `books` if there are any."""

    def __init__(self) -> None:
        self.books: Any = None
        self.holds: dict[str, int] = {}
        self.charges: dict[str, int] = {}
        self.released: list[str] = []
        self.extended: list[int] = []
        self.extend_fails: RpcError | None = None
        self.room = 1_000_000
        self.refused: dict[str, str] = {}
        """Why charges of a hold are refused."""

    async def extend_hold(self, request, call):
        if self.extend_fails is not None:
            raise self.extend_fails
        assert request.amount_nano_credits == self.holds[request.hold_id]
        self.extended.append(request.ttl_s)

    async def create_hold(self, request, call):
        if not self.room:
            raise RpcError("INSUFFICIENT_CREDITS", "no credits")
        if self.books is not None:
            await self.books.create_hold(request, call)
        self.room -= 1
        self.holds[request.hold_id] = request.amount_nano_credits

    async def release_hold(self, request, call):
        self.released.append(request.hold_id)
        if self.books is not None:
            await self.books.release_hold(request, call)

    async def settle(self, request, call):
        for charge in request.charges:
            if charge.hold_id in self.refused:
                raise RpcError(self.refused[charge.hold_id], "the charge cannot be booked")
        if self.books is not None:
            await self.books.settle(request, call)
        for charge in request.charges:
            known = self.charges.setdefault(charge.charge_id, charge.amount_nano_credits)
            assert known == charge.amount_nano_credits


class Clock:
    """The wall clock, or ahead of it; or it stands still at a time."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self.stopped_at: datetime | None = None

    def __call__(self) -> datetime:
        return (self.stopped_at or now()) + timedelta(seconds=self.ahead_s)


@dataclass
class Engine:
    """Everything between a caller and a provider."""

    jobs: Batches
    attempts: Letters
    rounds: Rounds
    notices: Notices
    outbox: Outbox
    router: CountingRouter
    billing: CountingBilling
    outputs: MemoryOutputs
    worker: Worker
    clockwork: Clockwork
    server: JobServer
    settler: Settler
    advancer: Advancer
    clock: Clock
    later_s: float = 0.0

    @property
    def shift_s(self) -> float:
        """How far the clock of the engine itself is ahead."""
        return self.clock.ahead_s

    @shift_s.setter
    def shift_s(self, seconds: float) -> None:
        self.clock.ahead_s = seconds

    def now(self) -> int:
        return round((self.clock().timestamp() + self.later_s) * SECOND)

    async def work_off(self) -> int:
        """Work off every message that is due, one after the other; return how many."""
        count = 0
        while messages := await self.outbox.take(self.now()):
            for message in messages:
                count += 1
                await self.handle(message.queue, message.subject_id)
                await self.outbox.passed_on([message.id])
        return count

    async def handle(self, queue: str, subject_id: str) -> None:
        match queue:
            case "job.settle":
                await self.settler.settle(subject_id)
            case "job.advance":
                await self.advancer.advance_many([subject_id])
            case "job.notice":
                await self.worker.notice(self.notices, subject_id)
            case _:
                await self.worker.work(subject_id)


CALLER = Call(
    "req_1", Identity(organisation_id="org_1", key_id="key_1", scopes=frozenset({"jobs"}), token="t")
)
STRANGER = Call("req_2", Identity(organisation_id="org_1", key_id="key_2", token="t"))


@pytest_asyncio.fixture
async def engine(database_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    database, clock = Database(database_url, "workflow"), Clock()
    await database.migrate(MIGRATIONS)
    outbox = Outbox(database, tables.outbox)
    jobs, attempts = Batches(database, outbox), Letters(database, outbox)
    rounds, notices = Rounds(database, outbox), Notices(database, outbox)
    router, billing, outputs = CountingRouter(), CountingBilling(), MemoryOutputs()

    async def unchecked(given, call):
        return given

    worker = Worker(attempts, rounds, router, outputs, "w1", clock, CrashPoints(""))
    admission = Admission(jobs, router, billing, unchecked, clock)
    desk = Desk(admission, notices, attempts, router, clock)
    server = JobServer(jobs, admission, desk, lambda file_id: f"link:{file_id}", lambda: None, clock)
    engine = Engine(
        jobs,
        attempts,
        rounds,
        notices,
        outbox,
        router,
        billing,
        outputs,
        worker,
        Clockwork(jobs, rounds, worker, billing, clock, lambda: None),
        server,
        Settler(jobs, attempts, billing, clock),
        Advancer(jobs, clock),
        clock,
    )
    yield engine
    await database.close()
