"""The only wiring of the workflow service: `workflow` serves jobs, `worker` works them off."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import obstore.store
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.common.v1.media_pb2 import MediaInput
from omnihub.router.v1.media_router_service_api import MediaRouterService
from omnihub.workflow.v1.file_content_service_api import FileContentService
from omnihub.workflow.v1.job_service_api import JobService
from omnihub.workflow.v1alpha1.workflow_service_api import WorkflowService

from services.common.bell import Bell
from services.common.bus import Consumer, Relay, Topology
from services.common.clock import now
from services.common.database_clock import DatabaseClock
from services.common.db import Database
from services.common.foreign import ForeignClient
from services.common.outbox import Outbox
from services.common.rpc import Call
from services.common.service import Infrastructure, Service
from services.workflow import tables
from services.workflow.admission import Admission
from services.workflow.content_server import FileContentServer
from services.workflow.desk import Desk
from services.workflow.domain.kinds import LATE, PRIORITIES, SUBMIT
from services.workflow.engine.batches import Advancer
from services.workflow.engine.clockwork import Clockwork
from services.workflow.engine.crash import CrashPoints
from services.workflow.engine.dispatcher import BulkDispatcher, BulkHandler, Dispatcher
from services.workflow.engine.settler import Settler
from services.workflow.engine.worker import Worker
from services.workflow.files.links import Links
from services.workflow.files.outputs import Outputs
from services.workflow.files.store import FileStore
from services.workflow.server import JobServer, WorkflowServer
from services.workflow.settings import WorkflowSettings
from services.workflow.store.batches import Batches
from services.workflow.store.letters import Letters
from services.workflow.store.notices import Notices
from services.workflow.store.records import ADVANCE_QUEUE, NOTICE_QUEUE, SECOND, SETTLE_QUEUE
from services.workflow.store.rounds import Rounds

MIGRATIONS = Path(__file__).with_name("migrations")
# Rung when there is something to begin, and when something has ended.
BELL, ENDED_BELL = "jobs", "jobs.ended"
NOTICES_AT_ONCE = 16
# The most urgent queues first.
QUEUES = tuple(f"job.{way}.{priority}" for priority in PRIORITIES for way in (LATE, SUBMIT))
# Of the room that a worker has for urgent jobs, so much more for those that can wait.
BATCH_SHARE = 4


@dataclass(frozen=True, slots=True)
class Base:
    """What both targets stand on."""

    database: Database
    outbox: Outbox
    clock: DatabaseClock
    jobs: Batches
    letters: Letters
    notices: Notices
    files: FileStore
    router: MediaRouterService
    billing: BillingService
    bell: Bell
    ended: Bell
    crash: CrashPoints

    async def start(self) -> None:
        """Bring the database up to date, and look at its clock."""
        await self.database.migrate(MIGRATIONS)
        await self.clock.start()

    async def stop(self) -> None:
        """Let go of the database."""
        await self.clock.stop()
        await self.database.close()


def _base(settings: WorkflowSettings, infrastructure: Infrastructure) -> Base:
    database = infrastructure.database("workflow")
    outbox = Outbox(database, tables.outbox)
    folder = infrastructure.data_dir / "files"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Base(
        database=database,
        outbox=outbox,
        clock=DatabaseClock(database, now),
        jobs=Batches(database, outbox),
        letters=Letters(database, outbox),
        notices=Notices(database, outbox),
        files=FileStore(database, obstore.store.LocalStore(str(folder))),
        router=infrastructure.connector.connect(MediaRouterService, "router"),
        billing=infrastructure.connector.connect(BillingService, "billing"),
        bell=infrastructure.bell(BELL),
        ended=infrastructure.bell(ENDED_BELL),
        crash=CrashPoints(settings.crash_at),
    )


def build(settings: WorkflowSettings, infrastructure: Infrastructure, *, public_url: str) -> Service:
    """Build the service that takes jobs in and tells of them. Links to files begin with `public_url`."""
    base = _base(settings, infrastructure)
    links = Links(_link_secret(infrastructure.data_dir), public_url, lambda: now().timestamp())

    async def check(given: MediaInput, call: Call) -> MediaInput:
        return given

    admission = Admission(base.jobs, base.router, base.billing, check, base.clock)
    desk = Desk(admission, base.notices, base.letters, base.router, base.clock)
    relay = None
    if infrastructure.amqp_url:
        confirmed = partial(base.crash.pass_by, "after_confirm")
        topology = Topology("job", QUEUES)
        relay = Relay(infrastructure.amqp_url, topology, base.outbox, base.clock, confirmed)
        base.bell.listen(relay.wake)

    async def start() -> None:
        await base.start()
        if relay is not None:
            relay.start()

    async def stop() -> None:
        if relay is not None:
            await relay.stop()
        await base.stop()

    server = JobServer(base.jobs, admission, desk, links.to, base.bell.ring, base.clock)
    return Service(
        name="workflow",
        interfaces=[
            (WorkflowService, WorkflowServer()),
            (JobService, server),
            (FileContentService, FileContentServer(base.files)),
        ],
        start=start,
        stop=stop,
        check=base.database.ping,
    )


def build_worker(settings: WorkflowSettings, infrastructure: Infrastructure, *, public_url: str) -> Service:
    """Build what works jobs off. Providers notify `public_url`; empty: they are only polled."""
    base = _base(settings, infrastructure)
    foreign = ForeignClient(settings.allow_private_urls)
    rounds = Rounds(base.database, base.outbox)
    worker = Worker(
        base.letters,
        rounds,
        base.router,
        Outputs(base.files, base.router, foreign.download, base.clock),
        infrastructure.instance_id,
        base.clock,
        base.crash,
        webhook_base=public_url,
        lease_s=settings.lease_s,
    )
    parts = [
        *_bulk(base),
        *_consumers(settings, infrastructure.amqp_url, base, worker),
    ]
    clockwork = Clockwork(
        base.jobs, rounds, worker, base.billing, base.clock, base.bell.ring, settings.sweep_interval_s
    )
    for part in parts:
        if isinstance(part, Dispatcher):
            base.bell.listen(part.wake)
        elif isinstance(part, BulkDispatcher):
            base.bell.listen(part.wake)
            base.ended.listen(part.wake)

    async def start() -> None:
        await base.start()
        await foreign.start()
        for part in parts:
            part.start()
        clockwork.start()

    async def stop() -> None:
        await clockwork.stop()
        for part in reversed(parts):
            await part.stop()
        await foreign.stop()
        await base.stop()

    return Service(name="worker", start=start, stop=stop, check=base.database.ping)


def _bulk(base: Base) -> Sequence[BulkDispatcher]:
    """Return what is worked off many at a time, wherever it was written."""
    settler = Settler(base.jobs, base.letters, base.billing, base.crash)
    handlers: dict[str, BulkHandler] = {
        SETTLE_QUEUE: settler.settle_many,
        ADVANCE_QUEUE: Advancer(base.jobs, base.clock).advance_many,
    }

    def ringing(handler: BulkHandler) -> BulkHandler:
        async def handle(subjects: Sequence[str]) -> Collection[str]:
            done = await handler(subjects)
            base.bell.ring()
            return done

        return handle

    # Items that have ended let others begin.
    handlers[ADVANCE_QUEUE] = ringing(handlers[ADVANCE_QUEUE])
    return [BulkDispatcher(base.outbox, queue, handler, base.clock) for queue, handler in handlers.items()]


def _consumers(
    settings: WorkflowSettings, amqp_url: str, base: Base, worker: Worker
) -> Sequence[Dispatcher | Consumer]:
    """Return what brings messages of attempts to the worker: from the database, or from RabbitMQ."""
    room = _room(settings)

    async def work(attempt_id: str) -> None:
        await worker.work(attempt_id)
        base.ended.ring()

    async def notice(attempt_id: str) -> None:
        await worker.notice(base.notices, attempt_id)
        base.ended.ring()

    handlers = dict.fromkeys(QUEUES, work)
    notices = {NOTICE_QUEUE: notice}, {NOTICE_QUEUE: NOTICES_AT_ONCE}
    if not amqp_url:
        return [Dispatcher(base.outbox, {**handlers, **notices[0]}, {**room, **notices[1]}, base.clock)]

    async def bury(queue: str, subject_id: str, reason: str) -> None:
        await base.letters.bury(queue, subject_id, reason, round(base.clock().timestamp() * SECOND))

    return [
        Dispatcher(base.outbox, *notices, base.clock),
        Consumer(amqp_url, Topology("job", QUEUES), handlers, room, bury),
    ]


def _room(settings: WorkflowSettings) -> dict[str, int]:
    """Return how many messages of each queue are worked on at the same time."""
    limits = {LATE: settings.late_concurrency, SUBMIT: settings.submit_concurrency}
    room = {}
    for queue in QUEUES:
        _, way, priority = queue.split(".")
        room[queue] = limits[way] if priority == PRIORITIES[0] else max(1, limits[way] // BATCH_SHARE)
    return room


def _link_secret(folder: Path) -> bytes:
    """Return what links are signed with; made once."""
    path = folder / "link-secret"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_bytes(secrets.token_bytes(32))
    return path.read_bytes()
