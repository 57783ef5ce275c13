"""A real HTTP server that answers as it is told and misbehaves on command.

A script is a list of steps. Each fault that really happened is counted in `injected`, so that a
test can show that it tested something.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
from aiohttp import web


@dataclass(frozen=True)
class Recorded:
    """A request as it arrived."""

    method: str
    path: str
    """As it was sent: encoded, with the query."""
    headers: Mapping[str, str]
    body: bytes
    connection: tuple[str, int]

    def json(self) -> dict:
        return msgspec.json.decode(self.body)


@dataclass(frozen=True)
class Head:
    """Status and headers."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


@dataclass(frozen=True)
class Send:
    """Bytes of the body, written at once."""

    data: bytes
    fault: str = ""
    """What is wrong with them, when something is: it is counted as injected."""


@dataclass(frozen=True)
class Stall:
    """Silence until the client hangs up."""


@dataclass(frozen=True)
class Disconnect:
    """The connection is cut."""


@dataclass(frozen=True)
class Endless:
    """The same bytes, again and again, `gap_s` apart, until the client hangs up."""

    data: bytes
    gap_s: float = 0


@dataclass(frozen=True)
class Wait:
    """A pause that lasts until the test sets the event."""

    event: asyncio.Event


@dataclass(frozen=True)
class Pause:
    """Time for what was sent to arrive on its own, as it does from afar."""

    seconds: float


Step = Head | Pause | Send | Stall | Disconnect | Endless | Wait


def sse(*documents: object, event: bool = False, done: bool = False) -> bytes:
    """Return documents as server-sent events."""
    frames = b""
    for document in documents:
        data = document if isinstance(document, bytes) else msgspec.json.encode(document)
        if event:
            frames += b"event: %b\n" % msgspec.json.decode(data)["type"].encode()
        frames += b"data: %b\n\n" % data
    return frames + (b"data: [DONE]\n\n" if done else b"")


def stream(*pieces: bytes) -> list[Step]:
    """Return the script of a stream sent in these pieces."""
    return [Head(content_type="text/event-stream"), *map(Send, pieces)]


def answer(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> list[Step]:
    """Return the script of a JSON answer."""
    body = document if isinstance(document, bytes) else msgspec.json.encode(document)
    return [Head(status, headers or {}), Send(body)]


class FaultServer:
    """Answers every request by `script`, or by the script for its path."""

    def __init__(self) -> None:
        self.url = ""
        self.script: Sequence[Step] = answer({})
        self.choose: Callable[[Recorded], Sequence[Step]] | None = None
        """Makes the script for each request, in place of the others."""
        self.scripts: dict[str, Sequence[Step]] = {}
        self.respond: Callable[[bytes], object] | None = None
        """Instead of a script: the JSON answer to a body."""
        self.requests: list[Recorded] = []
        self.injected: Counter[str] = Counter()
        self.hung_up = asyncio.Event()
        """The client closed the connection before it had the whole answer."""
        self.reached = asyncio.Event()
        """A fault has begun."""
        self.hang_ups: list[float] = []
        """When each such connection was closed, in seconds of the loop's clock."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        peer = request.transport.get_extra_info("peername")
        body = await request.read()
        recorded = Recorded(request.method, request.raw_path, request.headers.copy(), body, peer)
        self.requests.append(recorded)
        response = web.StreamResponse()
        script = self.scripts.get(request.path, self.script)
        try:
            if self.respond is not None:
                script = answer(self.respond(body))
            elif self.choose is not None:
                script = self.choose(recorded)
            for step in script:
                await self._run(step, request, response)
        except (asyncio.CancelledError, ConnectionError):
            self.hang_ups.append(asyncio.get_running_loop().time())
            self.hung_up.set()
            raise
        return response

    async def _run(self, step: Step, request: web.Request, response: web.StreamResponse) -> None:
        match step:
            case Head():
                response.set_status(step.status)
                response.content_type = step.content_type
                response.headers.update(step.headers)
                if step.status != 200:
                    self._count(f"status_{step.status}")
                await response.prepare(request)
            case Send():
                await response.write(step.data)
                if step.fault:
                    self._count(step.fault)
            case Pause():
                await asyncio.sleep(step.seconds)
            case Wait():
                await step.event.wait()
            case Stall():
                self._count("stall")
                await asyncio.Event().wait()
            case Disconnect():
                self._count("disconnect")
                request.transport.abort()
            case Endless():
                self._count("endless")
                while True:
                    await response.write(step.data)
                    await asyncio.sleep(step.gap_s)

    def _count(self, fault: str) -> None:
        self.injected[fault] += 1
        self.reached.set()


@asynccontextmanager
async def running_fault_server(
    configure: Callable[[FaultServer], None] | None = None,
) -> AsyncIterator[FaultServer]:
    """Run a fault server on a free port of 127.0.0.1."""
    server = FaultServer()
    if configure is not None:
        configure(server)
    async with _listening(server.handle) as server.url:
        yield server


class SharedFaultServer:
    """One listener for many tests; each gets a server of its own, and nothing of the last one is left."""

    def __init__(self) -> None:
        self.url = ""
        self.current = FaultServer()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        return await self.current.handle(request)

    def fresh(self) -> FaultServer:
        """Return the server that answers from now on."""
        self.current = FaultServer()
        self.current.url = self.url
        return self.current


@asynccontextmanager
async def running_shared_fault_server() -> AsyncIterator[SharedFaultServer]:
    """Run the listener of a module on a free port of 127.0.0.1."""
    shared = SharedFaultServer()
    async with _listening(shared.handle) as shared.url:
        yield shared


@asynccontextmanager
async def _listening(handle: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    application = web.Application(client_max_size=2**27)
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
