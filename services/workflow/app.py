"""The only wiring of the workflow service: `workflow` serves jobs, `worker` works them off."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.router.v1.media_router_service_api import MediaRouterService
from omnihub.workflow.v1.file_content_service_api import FileContentService
from omnihub.workflow.v1.job_service_api import JobService
from omnihub.workflow.v1alpha1.workflow_service_api import WorkflowService

from services.common.bell import Bell
from services.common.clock import now
from services.common.database_clock import DatabaseClock
from services.common.db import Database
from services.common.late import late
from services.common.outbox import Outbox
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
from services.workflow.http import FileRoutes
from services.workflow.server import JobServer, WorkflowServer
from services.workflow.settings import WorkflowSettings
from services.workflow.store.batches import Batches
from services.workflow.store.letters import Letters
from services.workflow.store.notices import Notices
from services.workflow.store.records import (
    ADVANCE_QUEUE,
    LOST_QUEUE,
    NOTICE_QUEUE,
    NOTIFY_QUEUE,
    SECOND,
    SETTLE_QUEUE,
    VOICE_QUEUE,
)
from services.workflow.store.rounds import Rounds
from services.workflow.wiring import Parts, build_parts

if TYPE_CHECKING:
    from services.common import bus
else:
    # Only those who have a broker load its client.
    bus = late("services.common.bus")

MIGRATIONS = Path(__file__).with_name("migrations")
# Rung when there is something to begin, and when something has ended.
BELL, ENDED_BELL = "jobs", "jobs.ended"
NOTICES_AT_ONCE = 16
NOTIFIED_AT_ONCE = 16
VOICES_AT_ONCE = 4
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
    parts: Parts
    router: MediaRouterService
    billing: BillingService
    bell: Bell
    ended: Bell
    crash: CrashPoints

    async def start(self) -> None:
        """Bring the database up to date, look at its clock, and open what jobs need."""
        await self.database.migrate(MIGRATIONS)
        await self.clock.start()
        await self.parts.start()

    async def stop(self) -> None:
        """Let go of all of it."""
        await self.parts.stop()
        await self.clock.stop()
        await self.database.close()


def _base(
    settings: WorkflowSettings,
    infrastructure: Infrastructure,
    public_url: str,
    storage_url: str,
    master_key: str,
) -> Base:
    database = infrastructure.database("workflow")
    outbox = Outbox(database, tables.outbox)
    clock = DatabaseClock(database, now)
    jobs = Batches(database, outbox)
    parts = build_parts(
        settings,
        infrastructure,
        database,
        outbox,
        jobs,
        infrastructure.connector.connect(MediaRouterService, "router"),
        public_url=public_url,
        storage_url=storage_url,
        master_key=master_key,
        clock=clock,
    )
    return Base(
        database=database,
        outbox=outbox,
        clock=clock,
        jobs=jobs,
        letters=Letters(database, outbox),
        notices=Notices(database, outbox),
        parts=parts,
        router=parts.materials,
        billing=infrastructure.connector.connect(BillingService, "billing"),
        bell=infrastructure.bell(BELL),
        ended=infrastructure.bell(ENDED_BELL),
        crash=CrashPoints(settings.crash_at),
    )


def build(
    settings: WorkflowSettings,
    infrastructure: Infrastructure,
    *,
    public_url: str,
    storage_url: str = "",
    master_key: str = "",
) -> Service:
    """Build the service that takes jobs in and tells of them. Links to files begin with `public_url`."""
    base = _base(settings, infrastructure, public_url, storage_url, master_key)
    parts = base.parts
    admission = Admission(
        base.jobs, base.router, base.billing, parts.inputs, base.clock, parts.check_endpoint
    )
    desk = Desk(admission, base.notices, base.letters, base.router, base.clock)
    relay = None
    if infrastructure.amqp_url:
        confirmed = partial(base.crash.pass_by, "after_confirm")
        topology = bus.Topology("job", QUEUES)
        relay = bus.Relay(infrastructure.amqp_url, topology, base.outbox, base.clock, confirmed)
        base.bell.listen(relay.wake)

    async def start() -> None:
        await base.start()
        if relay is not None:
            relay.start()

    async def stop() -> None:
        if relay is not None:
            await relay.stop()
        await base.stop()

    server = JobServer(
        base.jobs, admission, desk, parts.links.to, base.bell.ring, base.clock, parts.remove_outputs
    )
    authenticator = infrastructure.authenticator
    assert authenticator is not None
    http = FileRoutes(parts.files, parts.uploads, parts.links, server, authenticator)
    return Service(
        name="workflow",
        interfaces=[
            (WorkflowService, WorkflowServer()),
            (JobService, server),
            (FileContentService, FileContentServer(parts.files)),
            *parts.interfaces(base.jobs.cancel, base.bell.ring),
        ],
        routes=http.routes(),
        start=start,
        stop=stop,
        check=base.database.ping,
    )


def build_worker(
    settings: WorkflowSettings,
    infrastructure: Infrastructure,
    *,
    public_url: str,
    storage_url: str = "",
    master_key: str = "",
) -> Service:
    """Build what works jobs off. Providers notify `public_url`; empty: they are only polled."""
    base = _base(settings, infrastructure, public_url, storage_url, master_key)
    rounds = Rounds(base.database, base.outbox)
    worker = Worker(
        base.letters,
        rounds,
        base.router,
        base.parts.outputs,
        infrastructure.instance_id,
        base.clock,
        base.crash,
        webhook_base=public_url,
        lease_s=settings.lease_s,
        late_result_s=settings.late_result_s,
    )
    parts = [
        *_bulk(base),
        *_consumers(settings, infrastructure.amqp_url, base, worker),
    ]
    clockwork = Clockwork(
        base.jobs,
        rounds,
        worker,
        base.billing,
        base.clock,
        base.bell.ring,
        settings.sweep_interval_s,
        settings.lease_s,
    )
    for part in parts:
        if isinstance(part, Dispatcher):
            base.bell.listen(part.wake)
        elif isinstance(part, BulkDispatcher):
            base.bell.listen(part.wake)
            base.ended.listen(part.wake)

    async def start() -> None:
        await base.start()
        for part in parts:
            part.start()
        clockwork.start()

    async def stop() -> None:
        await clockwork.stop()
        for part in reversed(parts):
            await part.stop()
        await base.stop()

    return Service(name="worker", start=start, stop=stop, check=base.database.ping)


def _bulk(base: Base) -> Sequence[BulkDispatcher]:
    """Return what is worked off many at a time, wherever it was written."""
    settler = Settler(base.jobs, base.letters, base.billing, base.clock, base.crash)
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
) -> Sequence[Dispatcher | bus.Consumer]:
    """Return what brings messages of attempts to the worker: from the database, or from RabbitMQ."""
    room = _room(settings)

    async def work(attempt_id: str) -> None:
        await worker.work(attempt_id)
        base.ended.ring()

    async def notice(attempt_id: str) -> None:
        await worker.notice(base.notices, attempt_id)
        base.ended.ring()

    handlers = dict.fromkeys(QUEUES, work)
    # These never go through the broker: they are few, and must not wait behind many.
    direct = (
        {
            LOST_QUEUE: work,
            NOTICE_QUEUE: notice,
            NOTIFY_QUEUE: base.parts.notifier.notify,
            VOICE_QUEUE: base.parts.voices.remove,
        },
        {
            LOST_QUEUE: settings.late_concurrency + settings.submit_concurrency,
            NOTICE_QUEUE: NOTICES_AT_ONCE,
            NOTIFY_QUEUE: NOTIFIED_AT_ONCE,
            VOICE_QUEUE: VOICES_AT_ONCE,
        },
    )
    if not amqp_url:
        return [Dispatcher(base.outbox, {**direct[0], **handlers}, {**direct[1], **room}, base.clock)]

    async def bury(queue: str, subject_id: str, reason: str) -> None:
        await base.letters.bury(queue, subject_id, reason, round(base.clock().timestamp() * SECOND))

    return [
        Dispatcher(base.outbox, *direct, base.clock),
        bus.Consumer(amqp_url, bus.Topology("job", QUEUES), handlers, room, bury),
    ]


def _room(settings: WorkflowSettings) -> dict[str, int]:
    """Return how many messages of each queue are worked on at the same time."""
    limits = {LATE: settings.late_concurrency, SUBMIT: settings.submit_concurrency}
    room = {}
    for queue in QUEUES:
        _, way, priority = queue.split(".")
        room[queue] = limits[way] if priority == PRIORITIES[0] else max(1, limits[way] // BATCH_SHARE)
    return room
