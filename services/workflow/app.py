"""The only wiring of the workflow service."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

import obstore.store
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.common.v1.media_pb2 import MediaInput
from omnihub.router.v1.media_router_service_api import MediaRouterService
from omnihub.workflow.v1.file_content_service_api import FileContentService
from omnihub.workflow.v1.job_service_api import JobService
from omnihub.workflow.v1alpha1.workflow_service_api import WorkflowService

from services.common.bus import Consumer, Relay, Topology
from services.common.clock import now
from services.common.foreign import ForeignClient
from services.common.outbox import Outbox
from services.common.rpc import Call
from services.common.service import Infrastructure, Service
from services.workflow import tables
from services.workflow.admission import Admission
from services.workflow.content_server import FileContentServer
from services.workflow.domain.kinds import LATE, PRIORITIES, SUBMIT
from services.workflow.engine.clockwork import Clockwork
from services.workflow.engine.crash import CrashPoints
from services.workflow.engine.dispatcher import Dispatcher
from services.workflow.engine.settler import Settler
from services.workflow.engine.worker import Worker
from services.workflow.files.links import Links
from services.workflow.files.outputs import Outputs
from services.workflow.files.store import FileStore
from services.workflow.server import JobServer, WorkflowServer
from services.workflow.settings import WorkflowSettings
from services.workflow.store.attempts import SECOND, Attempts
from services.workflow.store.jobs import Jobs
from services.workflow.store.records import SETTLE_QUEUE

MIGRATIONS = Path(__file__).with_name("migrations")
SETTLED_AT_ONCE = 8


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


def build(settings: WorkflowSettings, infrastructure: Infrastructure, *, public_url: str) -> Service:
    """Build the workflow service, with its worker. Links to files begin with `public_url`."""
    database = infrastructure.database("workflow")
    router = infrastructure.connector.connect(MediaRouterService, "router")
    billing = infrastructure.connector.connect(BillingService, "billing")
    outbox = Outbox(database, tables.outbox)
    jobs, attempts = Jobs(database, outbox), Attempts(database, outbox)
    folder = infrastructure.data_dir / "files"
    foreign = ForeignClient(settings.allow_private_urls)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = FileStore(database, obstore.store.LocalStore(str(folder)))
    links = Links(_link_secret(infrastructure.data_dir), public_url, lambda: now().timestamp())
    outputs = Outputs(files, router, foreign.download, now)
    worker = Worker(
        attempts, router, outputs, infrastructure.instance_id, now, CrashPoints(settings.crash_at)
    )
    settler = Settler(jobs, attempts, billing)
    limits = {LATE: settings.late_concurrency, SUBMIT: settings.submit_concurrency}
    room = {f"job.{way}.{priority}": limits[way] for way in limits for priority in PRIORITIES}
    queue = _queue(infrastructure, outbox, room, worker, attempts, settler)
    clockwork = Clockwork(jobs, attempts, worker, now)

    async def check(given: MediaInput, call: Call) -> MediaInput:
        return given

    admission = Admission(jobs, router, billing, check, now)

    async def start() -> None:
        await database.migrate(MIGRATIONS)
        await foreign.start()
        queue.start()
        clockwork.start()

    async def stop() -> None:
        await clockwork.stop()
        await queue.stop()
        await foreign.stop()
        await database.close()

    server = JobServer(jobs, admission, links.to, queue.wake, now)
    return Service(
        name="workflow",
        interfaces=[
            (WorkflowService, WorkflowServer()),
            (JobService, server),
            (FileContentService, FileContentServer(files)),
        ],
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
) -> Queue:
    """Return what brings messages to the worker: this process alone, or RabbitMQ."""
    handlers = dict.fromkeys(room, worker.work)
    if not infrastructure.amqp_url:
        everything = {**handlers, SETTLE_QUEUE: settler.settle}
        return Queue(Dispatcher(outbox, everything, {**room, SETTLE_QUEUE: SETTLED_AT_ONCE}, now))
    topology = Topology("job", tuple(room))

    async def bury(name: str, subject_id: str, reason: str) -> None:
        await attempts.bury(name, subject_id, reason, round(now().timestamp() * SECOND))

    return Queue(
        Dispatcher(outbox, {SETTLE_QUEUE: settler.settle}, {SETTLE_QUEUE: SETTLED_AT_ONCE}, now),
        Relay(infrastructure.amqp_url, topology, outbox, now),
        Consumer(infrastructure.amqp_url, topology, handlers, room, bury),
    )


def _link_secret(folder: Path) -> bytes:
    """Return what links are signed with; made once."""
    path = folder / "link-secret"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_bytes(secrets.token_bytes(32))
    return path.read_bytes()
