"""What the fakes of media vendors share: a real HTTP server that records requests and fails as told."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Refuse:
    """The vendor answers with this and does nothing."""

    status: int
    document: Any = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CutAfter:
    """The vendor does what it was asked, and the connection breaks before the answer."""


@dataclass(frozen=True)
class StallAfter:
    """The vendor does what it was asked, and never answers."""


Fault = Refuse | CutAfter | StallAfter


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    operation: str
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body) if self.body else None


class FakeVendor:
    """Base of the fakes. `faults[operation]` are injected one after the other, and counted in `injected`."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[Seen] = []
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.injected: Counter[str] = Counter()
        self.application = web.Application(client_max_size=2**27)

    def route(self, method: str, path: str, handler: Handler) -> None:
        """Serve an operation; it is called as its handler."""
        operation = handler.__name__

        async def handle(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            seen = Seen(
                operation, request.method, request.path, dict(request.query), request.headers.copy(), body
            )
            self.seen.append(seen)
            fault = self.faults[operation].pop(0) if self.faults[operation] else None
            if isinstance(fault, Refuse):
                self.injected[f"{operation}_{fault.status}"] += 1
                text = fault.document if isinstance(fault.document, str) else json.dumps(fault.document)
                kind = "text/html" if isinstance(fault.document, str) else "application/json"
                return web.Response(status=fault.status, text=text, headers=fault.headers, content_type=kind)
            response = await handler(request)
            if isinstance(fault, CutAfter):
                self.injected[f"{operation}_cut"] += 1
                assert request.transport is not None
                request.transport.abort()
            if isinstance(fault, StallAfter):
                self.injected[f"{operation}_stalled"] += 1
                await asyncio.Event().wait()
            return response

        self.application.router.add_route(method, path, handle)

    def count(self, operation: str) -> int:
        """Return how often an operation was asked for."""
        return sum(seen.operation == operation for seen in self.seen)

    def last(self, operation: str) -> Seen:
        """Return the latest request of an operation."""
        return next(seen for seen in reversed(self.seen) if seen.operation == operation)


Vendor = TypeVar("Vendor", bound=FakeVendor)


@asynccontextmanager
async def running(vendor: Vendor) -> AsyncIterator[Vendor]:
    """Run a fake on a free port of 127.0.0.1."""
    runner = web.AppRunner(
        vendor.application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    vendor.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield vendor
    finally:
        await runner.cleanup()
