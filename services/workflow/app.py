"""The only wiring of the workflow service."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.router.v1.media_router_service_api import MediaRouterService
from omnihub.workflow.v1.job_service_api import JobService
from omnihub.workflow.v1alpha1.workflow_service_api import WorkflowService

from services.common.bus import Consumer, Relay, Topology
from services.common.clock import now
from services.common.outbox import Outbox
from services.common.service import Infrastructure, Service
from services.workflow import tables
from services.workflow.admission import Admission
from services.workflow.domain.kinds import LATE, PRIORITIES, SUBMIT
from services.workflow.engine.clockwork import Clockwork
from services.workflow.engine.crash import CrashPoints
from services.workflow.engine.dispatcher import Dispatcher
from services.workflow.engine.settler import Settler
from services.workflow.engine.worker import Worker
from services.workflow.http import FileRoutes
from services.workflow.notifier import Notifier
from services.workflow.server import JobServer, WorkflowServer
from services.workflow.settings import WorkflowSettings
from services.workflow.store.attempts import SECOND, Attempts
from services.workflow.store.jobs import Jobs
from services.workflow.store.records import NOTIFY_QUEUE, SETTLE_QUEUE
from services.workflow.wiring import build_parts

MIGRATIONS = Path(__file__).with_name("migrations")
SETTLED_AT_ONCE = 8
NOTIFIED_AT_ONCE = 16


class Queue:
    """The parts that bring messages to handlers, stopped in reverse."""

    def __init__(self, *parts: Dispatcher | Relay | Consumer) -> None:
        self._parts = parts

    def start(self) -> None:
        """Begin."""
        for part in self._parts:
            part.start()

    async def stop(self) -> None:
        """End."""
        for part in reversed(self._parts):
            await part.stop()

    def wake(self) -> None:
        """Look for messages now."""
        for part in self._parts:
            if not isinstance(part, Consumer):
                part.wake()


def build(
    settings: WorkflowSettings,
    infrastructure: Infrastructure,
    *,
    public_url: str,
    storage_url: str = "",
    master_key: str = "",
) -> Service:
    """Build the workflow service, with its worker. Links to files begin with `public_url`."""
    database = infrastructure.database("workflow")
    router = infrastructure.connector.connect(MediaRouterService, "router")
    billing = infrastructure.connector.connect(BillingService, "billing")
    outbox = Outbox(database, tables.outbox)
    jobs, attempts = Jobs(database, outbox), Attempts(database, outbox)
    parts = build_parts(
        settings,
        infrastructure,
        database,
        outbox,
        jobs,
        router,
        public_url=public_url,
        storage_url=storage_url,
        master_key=master_key,
        clock=now,
    )
    crash = CrashPoints(settings.crash_at)
    worker = Worker(attempts, parts.materials, parts.outputs, infrastructure.instance_id, now, crash)
    settler = Settler(jobs, attempts, billing)
    limits = {LATE: settings.late_concurrency, SUBMIT: settings.submit_concurrency}
    room = {f"job.{way}.{priority}": limits[way] for way in limits for priority in PRIORITIES}
    queue = _queue(infrastructure, outbox, room, worker, attempts, settler, parts.notifier)
    clockwork = Clockwork(jobs, attempts, worker, now)
    admission = Admission(jobs, parts.materials, billing, parts.inputs, now, parts.check_endpoint)

    async def start() -> None:
        await database.migrate(MIGRATIONS)
        await parts.start()
        queue.start()
        clockwork.start()

    async def stop() -> None:
        await clockwork.stop()
        await queue.stop()
        await parts.stop()
        await database.close()

    server = JobServer(jobs, admission, parts.links.to, queue.wake, now, parts.remove_outputs)
    authenticator = infrastructure.authenticator
    assert authenticator is not None
    http = FileRoutes(parts.files, parts.uploads, parts.links, server, authenticator)
    return Service(
        name="workflow",
        interfaces=[
            (WorkflowService, WorkflowServer()),
            (JobService, server),
            *parts.interfaces(jobs.cancel, queue.wake),
        ],
        routes=http.routes(),
        start=start,
        stop=stop,
        check=database.ping,
    )


def _queue(
    infrastructure: Infrastructure,
    outbox: Outbox,
    room: Mapping[str, int],
    worker: Worker,
    attempts: Attempts,
    settler: Settler,
    notifier: Notifier,
) -> Queue:
    """Return what brings messages to the worker: this process alone, or RabbitMQ."""
    handlers = dict.fromkeys(room, worker.work)
    # Never leave this process: they wait for others, not for a processor.
    own = {SETTLE_QUEUE: settler.settle, NOTIFY_QUEUE: notifier.notify}
    own_room = {SETTLE_QUEUE: SETTLED_AT_ONCE, NOTIFY_QUEUE: NOTIFIED_AT_ONCE}
    if not infrastructure.amqp_url:
        return Queue(Dispatcher(outbox, {**handlers, **own}, {**room, **own_room}, now))
    topology = Topology("job", tuple(room))

    async def bury(name: str, subject_id: str, reason: str) -> None:
        await attempts.bury(name, subject_id, reason, round(now().timestamp() * SECOND))

    return Queue(
        Dispatcher(outbox, own, own_room, now),
        Relay(infrastructure.amqp_url, topology, outbox, now),
        Consumer(infrastructure.amqp_url, topology, handlers, room, bury),
    )
