"""Jobs in several processes, of which any may be killed; provider and books are counted outside of them."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from omnihub.billing.v1 import billing_service_pb2 as billing
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.common.v1.media_pb2 import ImageInput, MediaInput
from omnihub.router.v1.media_router_service_api import MediaRouterService
from omnihub.workflow.v1 import job_service_pb2 as pb
from omnihub.workflow.v1.job_pb2 import Job
from sqlalchemy.exc import SQLAlchemyError

from services.common.rpc import Call, RpcError
from services.common.rpc.call import Identity
from services.common.rpc.server import GrpcServer
from services.common.service import Service
from tests.support.job_process import JobProcess, built
from tests.support.jobs import CountingRouter
from tests.support.ports import free_port

OWNER = Identity(organisation_id="org_1", key_id="key_1", scopes=frozenset({"chat"}), token="t")
STRANGER = Identity(organisation_id="org_1", key_id="key_2", scopes=frozenset({"chat"}), token="t")
FINAL = {"succeeded", "failed", "cancelled", "expired"}
CLAIMED: LiteralString = (
    "SELECT job_id FROM workflow.job_event WHERE type = 'attempt.claimed' AND detail = %s"
)
HELD: LiteralString = "SELECT id FROM workflow.attempt WHERE worker = %s AND state = 'claimed'"
LEFT: LiteralString = (
    "SELECT id FROM workflow.attempt WHERE id = ANY(%s) AND state NOT IN ('succeeded', 'failed', 'cancelled')"
)
# On a busy machine a worker that lives may stand still for a second; a job that loses five leases has failed.
SETTINGS = {"lease_s": 3.0, "sweep_interval_s": 0.3}


class Books:
    """Billing as the contract says, in memory, served to all processes. Counts every booking."""

    def __init__(self) -> None:
        self.holds: dict[str, int] = {}
        self.charges: dict[str, billing.SettleRequest] = {}
        self.released: set[str] = set()

    async def create_hold(self, request: billing.CreateHoldRequest, call: Call) -> billing.CreateHoldResponse:
        self.holds[request.hold_id] = request.amount_nano_credits
        return billing.CreateHoldResponse()

    async def release_hold(
        self, request: billing.ReleaseHoldRequest, call: Call
    ) -> billing.ReleaseHoldResponse:
        self.released.add(request.hold_id)
        return billing.ReleaseHoldResponse()

    async def extend_hold(self, request: billing.ExtendHoldRequest, call: Call) -> billing.ExtendHoldResponse:
        return billing.ExtendHoldResponse()

    async def settle(self, request: billing.SettleRequest, call: Call) -> billing.SettleResponse:
        for charge in request.charges:
            known = self.charges.setdefault(charge.charge_id, charge)
            if known != charge:
                raise RpcError("INVALID_ARGUMENT", f"the charge {charge.charge_id} has changed")
        return billing.SettleResponse()

    def __getattr__(self, name: str) -> Any:
        async def not_served(request: Any, call: Call) -> Any:
            raise RpcError("NOT_IMPLEMENTED", name)

        if name.startswith("_"):
            raise AttributeError(name)
        return not_served


class ServedRouter(CountingRouter):
    """The counting provider, with a pause, so that crashes find it at work."""

    def __init__(self, pause_s: float = 0.01, **fields: Any) -> None:
        super().__init__(**fields)
        self.pause_s = pause_s
        self.answers = 0
        self._answered = asyncio.Condition()

    async def submit_media(self, request: Any, call: Call) -> Any:
        await asyncio.sleep(self.pause_s)
        answer = await super().submit_media(request, call)
        async with self._answered:
            self.answers += 1
            self._answered.notify_all()
        return answer

    async def until_answered(self, count: int) -> None:
        """Wait until so many questions have been answered since the beginning."""
        async with asyncio.timeout(60), self._answered:
            await self._answered.wait_for(lambda: self.answers >= count)

    def __getattr__(self, name: str) -> Any:
        async def not_served(request: Any, call: Call) -> Any:
            raise RpcError("NOT_IMPLEMENTED", name)

        if name.startswith("_"):
            raise AttributeError(name)
        return not_served


class Cluster:
    """A JobService in this process, and workers and relays in others."""

    def __init__(self, folder: Path, database: str, broker: str, router: ServedRouter) -> None:
        self.router = router
        self.books = Books()
        self.jobs: list[str] = []
        self._port = free_port()
        self._server = GrpcServer(f"127.0.0.1:{self._port}", None)
        self._given = {
            "router": f"127.0.0.1:{self._port}",
            "billing": f"127.0.0.1:{self._port}",
            "folder": str(folder),
            "database": database,
            "broker": broker,
            "settings": SETTINGS,
        }
        self._asked = 0
        self._log = folder / "processes.log"
        self._children: list[JobProcess] = []
        self._service: Service | None = None
        self._connector: Any = None
        self._api: Any = None
        self._looking: psycopg.AsyncConnection[Any] | None = None

    async def start(self) -> None:
        """Serve the fakes, and the jobs' own service without a relay."""
        self._server.add(MediaRouterService, self.router)
        self._server.add(BillingService, self.books)
        await self._server.start()
        self._service, self._connector = built("workflow", {**self._given, "broker": ""})
        await self._service.start()
        self._api = self._service.interfaces[1][1]

    async def stop(self) -> None:
        """End everything."""
        if self._looking is not None:
            await self._looking.close()
        for child in self._children:
            if child.returncode is None:
                child.send_signal(signal.SIGCONT)
                child.kill()
            await child.wait()
        if self._service is not None:
            await self._service.stop()
            await self._connector.close()
        await self._server.stop(0)

    async def spawn(self, target: str = "worker", *, fresh: bool = False, **given: Any) -> JobProcess:
        """Start a process; return once it works. `fresh`: with an interpreter that has loaded nothing yet."""
        settings = {**SETTINGS, **given.pop("settings", {})}
        child = JobProcess(target, {**self._given, **given, "settings": settings}, self._log, fresh=fresh)
        self._children.append(child)
        assert await child.until_ready(120), self._log.read_text()[-4000:]
        return child

    async def submit(self, count: int = 1, **fields: Any) -> list[str]:
        """Begin jobs."""
        made = []
        for _ in range(count):
            self._asked += 1
            given = MediaInput(image=ImageInput(prompt=f"boat {self._asked}"))
            request = pb.CreateJobRequest(input=given, idempotency_key=f"k{self._asked}", **fields)
            job_id = await self._create(request)
            made.append(job_id)
            self.jobs.append(job_id)
        return made

    async def _create(self, request: pb.CreateJobRequest) -> str:
        """Begin a job as a patient caller does: with the same key until there is an answer."""
        while True:
            try:
                answer = await self._api.create_job(request, Call(f"req_{request.idempotency_key}", OWNER))
            except (SQLAlchemyError, OSError):
                await asyncio.sleep(0.1)
            else:
                return str(answer.job.job_id)

    async def all(self, who: Identity = OWNER) -> list[Job]:
        """Return every job that somebody sees."""
        jobs: list[Job] = []
        token = ""
        while True:
            request = pb.ListJobsRequest(page_size=1000, page_token=token)
            page = await self._api.list_jobs(request, Call("req_list", who))
            jobs += page.jobs
            token = page.next_page_token
            if not token:
                return jobs

    async def count(self, state: str) -> int:
        """Return how many jobs are in a state, 1000 at most."""
        request = pb.ListJobsRequest(page_size=1000, state=state)
        return len((await self._api.list_jobs(request, Call("req_count", OWNER))).jobs)

    async def until_running(self, count: int) -> None:
        """Wait until so many jobs are with workers. They must stay there: the gate of the router is closed,
        or it takes long to answer."""
        async with asyncio.timeout(120):
            while await self.count("running") < count:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def held_by(self, worker: JobProcess) -> list[str]:
        """Return the attempts that a process has claimed and not ended, also when it is dead."""
        return await self._ask(HELD, worker.name)

    async def until_claimed_by(self, worker: JobProcess, limit_s: float = 180) -> None:
        """Wait until a process has claimed something: by the history, for claims come and go."""
        async with asyncio.timeout(limit_s):
            while not await self._ask(CLAIMED, worker.name):  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def until_ended(self, attempts: list[str], limit_s: float = 300) -> None:
        """Wait for the end of attempts."""
        async with asyncio.timeout(limit_s):
            while await self._ask(LEFT, attempts):  # noqa: ASYNC110
                await asyncio.sleep(0.2)

    async def _ask(self, query: LiteralString, given: object) -> list[str]:
        if self._looking is None:
            self._looking = await psycopg.AsyncConnection.connect(self._given["database"], autocommit=True)
        return [row[0] for row in await (await self._looking.execute(query, [given])).fetchall()]

    async def until_all_ended(self, limit_s: float = 180) -> list[Job]:
        """Wait for every job's end and its settlement."""
        async with asyncio.timeout(limit_s):
            while True:
                try:
                    # To look at all of them takes long when they are many; the router is served here, too.
                    live = [await self.count(state) for state in ("queued", "running", "cancel_requested")]
                    jobs = [] if any(live) else await self.all()
                except (SQLAlchemyError, OSError):
                    await asyncio.sleep(0.2)
                    continue
                # What was held for a job that then could not be written expires by itself.
                held = self.books.holds.keys() & {f"hold_{job.job_id}" for job in jobs}
                open_holds = held - self.books.released - self._captured()
                if not any(live) and all(job.state in FINAL for job in jobs) and not open_holds:
                    return jobs
                await asyncio.sleep(0.2)

    def _captured(self) -> set[str]:
        return {charge.hold_id for charge in self.books.charges.values()}

    async def check(self, states: set[str] | None = None) -> str:
        """Check what holds after any crash: each job ended once, paid once, seen by its owner alone.

        Returns a line that tells what was counted.
        """
        jobs = await self.until_all_ended()
        assert sorted(job.job_id for job in jobs) == sorted(self.jobs)
        assert {job.state for job in jobs} <= (states or {"succeeded"}), Counter(job.state for job in jobs)
        charges = Counter(charge.request_id for charge in self.books.charges.values())
        made = {job.job_id for job in jobs if job.state == "succeeded"}
        assert set(charges) == made
        assert set(charges.values()) <= {1}
        flagged = sum(job.maybe_double_charge for job in jobs)
        twice = sum(count > 1 for count in self.router.submitted.values())
        assert twice <= flagged, f"{twice} effects were asked for twice, {flagged} jobs say so"
        assert not await self.all(STRANGER)
        return f"{len(jobs)} jobs, {len(charges)} charges, {twice} asked twice, {flagged} flagged"


@asynccontextmanager
async def running_cluster(
    folder: Path, database: str, broker: str = "", router: ServedRouter | None = None
) -> AsyncIterator[Cluster]:
    """Run a cluster for the length of the context."""
    cluster = Cluster(folder, database, broker, router or ServedRouter())
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()
