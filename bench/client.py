"""Load by a client of our own: latency at a constant rate, and streams to their end.

Its share of a latency must be small and the same for every row: requests are made beforehand, answers are
only looked at for their end and their first token.
"""

from __future__ import annotations

import asyncio
import gc
import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bench.errors import BenchError
from bench.load import REQUEST_LIMIT_S, Load, require_loopback
from bench.payload import FIRST_PIECE, Target

# The event loop wakes up to a millisecond late; the last stretch before a send is spent polling.
POLL_BEFORE_S = 0.0015
OPEN_BEFORE = 4
HEAD_END = b"\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
# Not the one of another header's name: LiteLLM passes on the upstream's with a prefix.
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
TOKEN = FIRST_PIECE.encode()


@dataclass
class Latencies:
    """One run, in ms, in order of sending; counted from the intended send time.

    `last_byte`: to the end of the answer. `first_token`: to the first text of a stream. `late`: to the real
    send time, the client's own share of both.
    """

    last_byte: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)


def percentile(values: list[float], percent: float) -> float:
    """Return the smallest value that at least `percent` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def request_bytes(target: Target) -> bytes:
    """Return the whole request."""
    url = urlsplit(target.url)
    body = target.body.encode()
    headers = {"Host": url.netloc, **target.headers, "Content-Length": str(len(body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {url.path} HTTP/1.1\r\n{lines}\r\n".encode() + body


class Answer:
    """What has come of one answer."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.first_token_at = 0.0
        self._head = 0
        self._length = -1

    def add(self, data: bytes, now: float) -> bool:
        """Take in data and tell whether the answer is whole."""
        self.received += data
        if not self._head:
            end = self.received.find(HEAD_END)
            if end < 0:
                return False
            self._head = end + len(HEAD_END)
            found = LENGTH.search(self.received, 0, end + 2)
            self._length = int(found.group(1)) if found else -1
        if not self.first_token_at and TOKEN in self.received:
            self.first_token_at = now
        if self._length >= 0:
            return len(self.received) - self._head >= self._length
        return self.received.endswith(LAST_CHUNK)

    def require_success(self) -> None:
        """Raise unless the status is 200."""
        if not self.received.startswith(b"HTTP/1.1 200"):
            raise BenchError(f"answered {bytes(self.received[:500])!r}")


class Connection(asyncio.Protocol):
    """A kept-alive connection with one request at a time."""

    def __init__(self) -> None:
        self._waiting: asyncio.Future[float] | None = None
        self.answer = Answer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to send on."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, request: bytes) -> asyncio.Future[float]:
        """Send a request; the future becomes the time of the answer's last byte."""
        self.answer = Answer()
        self._waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._waiting

    def data_received(self, data: bytes) -> None:
        """Take in a part of the answer."""
        now = time.perf_counter()
        if self._waiting and self.answer.add(data, now) and not self._waiting.done():
            self._waiting.set_result(now)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the request that is under way."""
        if self._waiting and not self._waiting.done():
            self._waiting.set_exception(BenchError(f"a connection was closed before the answer: {error}"))


class Client:
    """Connections to one address, as many as are needed at the same time."""

    def __init__(self, target: Target) -> None:
        url = urlsplit(target.url)
        self._address = (url.hostname or "", url.port or 80)
        self._idle: list[Connection] = []
        self._all: list[Connection] = []

    async def ask(self, request: bytes) -> tuple[float, float]:
        """Return when the first token and the last byte came."""
        connection = self._idle.pop() if self._idle else await self._connect()
        async with asyncio.timeout(REQUEST_LIMIT_S):
            ended = await connection.send(request)
        connection.answer.require_success()
        if not connection.transport.is_closing():
            self._idle.append(connection)
        return connection.answer.first_token_at, ended

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, *self._address)
        self._all.append(connection)
        return connection

    def close(self) -> None:
        """Close all connections."""
        for connection in self._all:
            connection.transport.close()


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the client's own garbage collection out of the latencies."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def until(due: float) -> None:
    """Return at the time `due`, or at once when it has passed."""
    if (early := due - time.perf_counter() - POLL_BEFORE_S) > 0:
        await asyncio.sleep(early)
    while time.perf_counter() < due:  # noqa: ASYNC110 - answers are read between two looks at the clock
        await asyncio.sleep(0)


@contextmanager
def one_failure() -> Iterator[None]:
    """Raise the first failure of a task group alone, and say what a time-out means."""
    try:
        yield
    except ExceptionGroup as failures:
        first = failures.exceptions[0]
        if isinstance(first, TimeoutError):
            raise BenchError(f"an answer took more than {REQUEST_LIMIT_S} s: cannot keep up") from None
        raise first from None


async def visit(target: Target, connections: int) -> None:
    """Send each variant once, so that what a first use costs is paid before anything is measured."""
    require_loopback(target)
    numbers = iter(target.variants)
    client = Client(target)

    async def send() -> None:
        for number in numbers:
            await client.ask(request_bytes(target.variant(number)))

    try:
        with one_failure():
            async with asyncio.TaskGroup() as group:
                for _ in range(connections):
                    group.create_task(send())
    finally:
        client.close()


async def drained(target: Target, seconds: float, connections: int) -> Load:
    """Send one request after another over so many connections; after `seconds` wait for the last answers.

    Where a request takes long, wrk would leave the started ones unanswered, and their cost be nobody's.
    """
    require_loopback(target)
    request = request_bytes(target)
    client = Client(target)
    answered = 0

    async def send() -> None:
        nonlocal answered
        while time.perf_counter() < began + seconds:
            await client.ask(request)
            answered += 1

    began = time.perf_counter()
    try:
        with one_failure():
            async with asyncio.TaskGroup() as group:
                for _ in range(connections):
                    group.create_task(send())
        return Load(answered, time.perf_counter() - began)
    finally:
        client.close()


async def constant_rate(target: Target, rate: float, seconds: float) -> Latencies:
    """Send `rate` requests per second for `seconds`, on time whether or not earlier ones were answered.

    An open loop: a slow answer holds up nobody but itself.
    """
    require_loopback(target)
    request = request_bytes(target)
    client = Client(target)
    found: list[tuple[float, float, float]] = [(0.0, 0.0, 0.0)] * round(rate * seconds)

    async def send(due: float, index: int) -> None:
        late = time.perf_counter() - due
        token_at, ended_at = await client.ask(request)
        found[index] = (late * 1000, (token_at - due) * 1000 if token_at else 0.0, (ended_at - due) * 1000)

    try:
        # Opens a few connections, so that the first samples do not measure connecting.
        await asyncio.gather(*(client.ask(request) for _ in range(OPEN_BEFORE)))
        with collector_paused(), one_failure():
            start = time.perf_counter() + 0.05
            async with asyncio.TaskGroup() as group:
                for index in range(len(found)):
                    due = start + index / rate
                    await until(due)
                    group.create_task(send(due, index))
    finally:
        client.close()
    return Latencies(
        last_byte=[ended for _, _, ended in found],
        first_token=[token for _, token, _ in found if token],
        late=[late for late, _, _ in found],
    )
