"""POST over the lower half of aiohttp: its connections and its pool, without its session and its reader.

The session makes a request, a task that writes it, a parser and a response anew for every call, which is
most of what a call costs (docs/adr/0021). What is the same in all calls of an adapter is made once here, by
aiohttp too; answers are read by `wire.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import aiohttp
from aiohttp.connector import Connection
from yarl import URL

from services.providers.wire import Body, Wire

# A connection keeps what it could not write at once in memory; larger bodies go out in pieces instead.
LARGEST_BODY = 512 * 2**10
SKIPPED_HEADERS = ("User-Agent", "Accept")
# Heads of different addresses and headers that are kept.
_KEPT_HEADS = 512
_FORBIDDEN = ("\r", "\n", "\0")

HeaderItems = tuple[tuple[str, str], ...]


class Connector(aiohttp.TCPConnector):
    """Connections to providers that POSTs go over: as many as there are requests."""

    def __init__(self) -> None:
        super().__init__(limit=0, ttl_dns_cache=60)
        # aiohttp makes the connection and keeps it; what is read from it is ours.
        make: Any = Wire
        self._factory = partial(make, self._loop)


class Head(NamedTuple):
    """What does not change from call to call."""

    request: aiohttp.ClientRequest
    """Says where to connect to."""
    data: bytes
    """Everything up to the length of the body."""


class Answer:
    """A response whose head is here. Ends with `release` (keeps the connection) or `close` (does not)."""

    __slots__ = ("_connection", "content", "headers", "status")

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str],
        content: Body,
        connection: Connection,
    ) -> None:
        self.status = status
        self.headers = headers
        self.content = content
        self._connection: Connection | None = connection

    def release(self) -> None:
        """Give the connection back, if the body has come to its end and the request went out whole."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if _unsent(connection):
            _drop(connection)
        else:
            connection.release()

    def close(self) -> None:
        """Close the connection at once; whoever reads the body fails."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self.content.drop(aiohttp.ClientConnectionError("Connection closed"))
        _drop(connection)


def _unsent(connection: Connection) -> bool:
    transport = connection.transport
    return transport is not None and transport.get_write_buffer_size() > 0


def _drop(connection: Connection) -> None:
    """Close a connection at once. Merely closed, it would first wait until its peer takes what is unsent."""
    if _unsent(connection):
        assert connection.transport is not None
        connection.transport.abort()
    connection.close()


class Posting:
    """Sends bodies of moderate size over the connections of a session."""

    def __init__(self, session: aiohttp.ClientSession, connector: aiohttp.BaseConnector) -> None:
        self._session = session
        self._connector = connector
        self._loop = asyncio.get_running_loop()
        self._head = lru_cache(maxsize=_KEPT_HEADS)(self._make_head)

    def head(self, url: URL, headers: Mapping[str, str]) -> Head | None:
        """Return the head of a request; None for an address that the session has to look at.

        Raises ValueError for headers that would not be headers.
        """
        return self._head(url, tuple(headers.items()))

    def _make_head(self, url: URL, headers: HeaderItems) -> Head | None:
        if not url.raw_host or url.raw_user or url.raw_password or url.scheme not in {"http", "https"}:
            return None
        request = aiohttp.ClientRequest(
            "POST",
            url,
            headers=headers,
            skip_auto_headers=SKIPPED_HEADERS,
            loop=self._loop,
            session=self._session,
        )
        request.headers.setdefault("Content-Type", "application/octet-stream")
        request.headers.popall("Content-Length", None)
        lines = [f"{name}: {value}" for name, value in request.headers.items()]
        if any(character in line for line in lines for character in _FORBIDDEN):
            raise ValueError("a header holds a line break or a null character")
        text = "\r\n".join([f"POST {request.url.raw_path_qs} HTTP/1.1", *lines, "Content-Length: "])
        return Head(request, text.encode())

    async def post(self, head: Head, body: bytes, connect_s: float, wait_s: float) -> Answer:
        """Send a request and return the answer once its head is here.

        Raises TimeoutError when that takes longer than `wait_s`, aiohttp.ClientError and OSError.
        """
        loop = self._loop
        deadline = loop.time() + wait_s
        connection = await self._connect(head, min(connect_s, wait_s))
        try:
            wire = _wire_of(connection)
            answer = wire.ask(b"%b%d\r\n\r\n" % (head.data, len(body)), body)
            # Half the cost of `asyncio.timeout`, and as sure.
            timer = loop.call_at(deadline, wire.fail, TimeoutError())
            try:
                status, answer_headers, content = await answer
            finally:
                timer.cancel()
        except BaseException:
            _drop(connection)
            raise
        return Answer(status, answer_headers, content, connection)

    async def _connect(self, head: Head, connect_s: float) -> Connection:
        """Return a connection. One on which something has come that was not asked for has been closed."""
        try:
            return await self._connector.connect(head.request, [], _limits(connect_s))
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"no connection to {head.request.host}") from error


def _wire_of(connection: Connection) -> Wire:
    wire: Any = connection.protocol
    assert wire is not None
    return wire  # type: ignore[no-any-return]


@lru_cache(maxsize=64)
def _limits(connect_s: float) -> aiohttp.ClientTimeout:
    """Return limits of all that a new connection needs: name, socket and TLS."""
    return aiohttp.ClientTimeout(total=None, connect=connect_s)
