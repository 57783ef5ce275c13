"""Files, consents and webhooks as the workflow service wires them, behind a real HTTP listener."""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web
from omnihub.router.v1.media_router_service_pb2 import DeleteVoiceResponse
from omnihub.workflow.v1 import job_service_pb2 as pb
from PIL import Image

from services.common.clock import now
from services.common.db import Database
from services.common.outbox import Outbox
from services.common.rpc import Call, Connector, Registry, RpcError
from services.common.rpc.call import Identity
from services.common.service import Infrastructure
from services.listener import HttpListener
from services.workflow import tables
from services.workflow.admission import Admission
from services.workflow.desk import Desk
from services.workflow.engine.crash import CrashPoints
from services.workflow.engine.worker import Worker
from services.workflow.http import FileRoutes
from services.workflow.server import JobServer
from services.workflow.settings import WorkflowSettings
from services.workflow.store.batches import Batches
from services.workflow.store.letters import Letters
from services.workflow.store.notices import Notices
from services.workflow.store.rounds import Rounds
from services.workflow.wiring import Parts, build_parts
from tests.support.jobs import CountingRouter
from tests.support.ports import free_port

MIGRATIONS = Path("services/workflow/migrations").resolve()
KEYS = {
    "key-one": Identity(organisation_id="org_1", key_id="key_1", scopes=frozenset({"chat"}), token="t"),
    "key-two": Identity(organisation_id="org_2", key_id="key_2", scopes=frozenset({"chat"}), token="t"),
    "key-poor": Identity(organisation_id="org_1", key_id="key_3", scopes=frozenset({"usage"}), token="t"),
}
CALLER = Call("req_1", KEYS["key-one"])
STRANGER = Call("req_2", KEYS["key-two"])


def picture(kind: str = "PNG", size: tuple[int, int] = (64, 48)) -> bytes:
    """Return a real picture."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 60)).save(buffer, kind)
    return buffer.getvalue()


def sound(frames: int = 4000) -> bytes:
    """Return a real recording."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(b"\1\2" * frames)
    return buffer.getvalue()


class Keys:
    """Knows three keys."""

    async def authenticate(self, credential: str) -> Identity:
        """Return who holds a key."""
        if credential not in KEYS:
            raise RpcError("INVALID_CREDENTIAL", "no such key")
        return KEYS[credential]


class Books:
    """Counts holds."""

    def __init__(self) -> None:
        self.holds: list[str] = []

    async def create_hold(self, request: Any, call: Call) -> None:
        """Count one."""
        self.holds.append(request.hold_id)

    async def release_hold(self, request: Any, call: Call) -> None:
        """Nothing."""


class RecordingRouter(CountingRouter):
    """Remembers what providers were sent, and plans at several."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Any] = []
        self.planned: list[Any] = []
        self.deleted: list[tuple[str, str]] = []
        self.delete_failures: list[RpcError] = []

    async def delete_voice(self, request: Any, call: Call) -> DeleteVoiceResponse:
        """Remember, and fail as told."""
        self.deleted.append((request.provider, request.voice))
        if self.delete_failures:
            raise self.delete_failures.pop(0)
        return DeleteVoiceResponse()

    async def plan_media(self, request: Any, call: Call) -> Any:
        """Remember."""
        self.planned.append(request)
        return await super().plan_media(request, call)

    async def submit_media(self, request: Any, call: Call) -> Any:
        """Remember."""
        self.sent.append(request.attempt)
        return await super().submit_media(request, call)


@dataclass
class Bench:
    """The parts, a clock that can be moved, and an HTTP client."""

    parts: Parts
    database: Database
    outbox: Outbox
    jobs: Batches
    attempts: Letters
    router: RecordingRouter
    books: Books
    server: JobServer
    worker: Worker
    http: httpx.AsyncClient
    listener: HttpListener
    consents: Any
    later: timedelta = timedelta()
    notified: list[pb.ReceiveWebhookRequest] = field(default_factory=list)
    refuse: RpcError | None = None

    def clock(self) -> datetime:
        """Return the time, moved."""
        return now() + self.later

    def micros(self) -> int:
        """Return it in microseconds."""
        return round(self.clock().timestamp() * 1_000_000)

    async def receive_webhook(self, request: Any, call: Call) -> pb.ReceiveWebhookResponse:
        """Take in a provider's notification."""
        if self.refuse is not None:
            raise self.refuse
        self.notified.append(request)
        return pb.ReceiveWebhookResponse(job_id="job_7")

    async def upload(self, data: bytes, key: str = "key-one", **more: Any) -> Any:
        """Upload over HTTP and return the file."""
        answer = await self.http.post("/files", content=data, headers=bearer(key), **more)
        assert answer.status_code == 201, answer.text
        return answer.json()["file"]

    async def work_off(self, queues: tuple[str, ...] = ()) -> int:
        """Work off what is due, settling aside."""
        count = 0
        while messages := await self.outbox.take(self.micros(), queues):
            for message in messages:
                count += 1
                if message.queue == "job.notify":
                    await self.parts.notifier.notify(message.subject_id)
                elif message.queue == "voice.remove":
                    await self.parts.voices.remove(message.subject_id)
                elif message.queue != "job.settle":
                    await self.worker.work(message.subject_id)
                await self.outbox.passed_on([message.id])
        return count


def bearer(key: str) -> dict[str, str]:
    """Return the header of a key."""
    return {"authorization": f"Bearer {key}"}


async def open_bench(
    folder: Path,
    database_url: str,
    storage_url: str = "",
    master_key: str = "",
    instance: str = "one",
    **settings: Any,
) -> Bench:
    """Return a started bench; close it with close_bench."""
    database = Database(database_url, "workflow")
    await database.migrate(MIGRATIONS)
    outbox = Outbox(database, tables.outbox)
    jobs, attempts = Batches(database, outbox), Letters(database, outbox)
    rounds, notices = Rounds(database, outbox), Notices(database, outbox)
    router, books = RecordingRouter(), Books()
    port = free_port()
    infrastructure = Infrastructure(
        connector=Connector(Registry(), {}, None), data_dir=folder, instance_id=instance
    )
    held: dict[str, Bench] = {}

    def clock() -> datetime:
        return held["bench"].clock() if held else now()

    parts = build_parts(
        WorkflowSettings(**settings),
        infrastructure,
        database,
        outbox,
        jobs,
        router,
        public_url=f"http://127.0.0.1:{port}",
        storage_url=storage_url,
        master_key=master_key,
        clock=clock,
    )
    admission = Admission(jobs, parts.materials, books, parts.inputs, clock, parts.check_endpoint)
    desk = Desk(admission, notices, attempts, parts.materials, clock)
    server = JobServer(jobs, admission, desk, parts.links.to, lambda: None, clock, parts.remove_outputs)
    worker = Worker(attempts, rounds, parts.materials, parts.outputs, "w1", clock, CrashPoints(""))
    consents = parts.interfaces(jobs.cancel, lambda: None)[1][1]

    async def no_problems() -> dict[str, str]:
        return {}

    bench = Bench(
        parts, database, outbox, jobs, attempts, router, books, server, worker,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20), None, consents,
    )  # fmt: skip
    held["bench"] = bench
    routes = FileRoutes(parts.files, parts.uploads, parts.links, bench, Keys()).routes()
    bench.listener = HttpListener(f"127.0.0.1:{port}", routes, no_problems, 1)
    try:
        await parts.start()
        await bench.listener.start()
    except BaseException:
        await bench.http.aclose()
        await parts.stop()
        await database.close()
        raise
    return bench


async def close_bench(bench: Bench) -> None:
    """Stop everything."""
    await bench.http.aclose()
    await bench.listener.stop()
    await bench.parts.stop()
    await bench.database.close()


class Receiver:
    """A user's server: keeps what it gets, answers what it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[Mapping[str, str], bytes]] = []
        self.answers: list[int] = []
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen."""
        application = web.Application()
        application.router.add_post("/hook", self._take)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        port = free_port()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{port}/hook"

    async def _take(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        return web.Response(status=self.answers.pop(0) if self.answers else 204)

    async def stop(self) -> None:
        """Stop."""
        if self._runner is not None:
            await self._runner.cleanup()
