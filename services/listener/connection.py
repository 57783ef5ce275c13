"""One HTTP/1.1 connection: bytes to requests, one response after the other.

The parser is llhttp, through httptools; see docs/adr/0025-own-http-server.md for why there is no server
library around it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any, Protocol
from urllib.parse import unquote

import httptools
from starlette.types import Scope

from services.listener.heads import plain
from services.listener.request import Request

_logger = logging.getLogger(__name__)

# Longer than the edge keeps idle connections, so that the edge never writes into a closing one.
KEEP_ALIVE_S = 120.0
# From the first byte of a request to the end of its headers.
HEAD_S = 20.0
# As long as the edge gives a whole request by default.
BODY_STALL_S = 600.0
# Twice of what the edge lets through.
HEAD_LIMIT = 128 * 1024
_ASGI = {"version": "3.0", "spec_version": "2.3"}
_NEVER = float("inf")
# Tell that there is a body. The parser takes it for another protocol where one is asked for.
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class Server(Protocol):
    """What a connection needs of the server that accepted it."""

    connections: set[Connection]

    def begin(self, request: Request) -> None:
        """Have a request answered."""
        ...


class _MalformedError(Exception):
    """The request line names no resource, or the parser would lose the body."""


class Connection(asyncio.Protocol):
    """Parses what arrives, keeps requests in order, closes in time."""

    __slots__ = (
        "_addresses",
        "_current",
        "_deaf",
        "_drained",
        "_expects_continue",
        "_headers",
        "_held",
        "_in_head",
        "_loop",
        "_overhead",
        "_parser",
        "_receiving",
        "_refusal",
        "_server",
        "_transport",
        "_unsent",
        "_url",
        "_waiting",
        "deadline",
        "paused",
    )

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.paused = False
        self.deadline = loop.time() + KEEP_ALIVE_S
        """On the clock of the event loop: the server closes a connection that is past it."""
        self._server = server
        self._loop = loop
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: Any = None
        self._addresses: dict[str, Any] = {}
        self._current: Request | None = None
        """Is being answered."""
        self._receiving: Request | None = None
        """Its body is still on the way."""
        self._waiting: deque[Request] = deque()
        """Came before the response to an earlier one was complete."""
        self._deaf = False
        """What arrives is no longer looked at."""
        self._refusal = 0
        """The status that answers what could not be parsed, once the requests before it are answered."""
        self._held = False
        self._overhead = 0
        """Bytes since the last of a body or request: of a head, or of what is between chunks and behind."""
        self._in_head = False
        self._drained: list[asyncio.Future[None]] = []
        self._unsent = _NEVER
        """What was left to send when last looked at, once it closes."""

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport
        client = transport.get_extra_info("peername")
        server = transport.get_extra_info("sockname")
        self._addresses = {
            "client": client[:2] if isinstance(client, tuple) else None,
            "server": server[:2] if isinstance(server, tuple) else None,
        }
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything, and tell whoever is still at work."""
        self._server.connections.discard(self)
        self._deaf = True
        # It holds this connection, and this connection holds it.
        self._parser = None
        self._waiting.clear()
        self.resume_writing()
        current, self._current = self._current, None
        if current is not None:
            current.disconnected()

    def pause_writing(self) -> None:
        """Take note that the caller takes less than is written."""
        self.paused = True

    def resume_writing(self) -> None:
        """Take note that the caller has taken what was written."""
        self.paused = False
        drained, self._drained = self._drained, []
        for waiter in drained:
            if not waiter.done():
                waiter.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Parse; the callbacks below do the rest."""
        if self._deaf:
            return
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, _MalformedError):
                _logger.error("http_parser_failed", exc_info=error)
            self._refuse(400)
        except httptools.HttpParserUpgrade:
            # No other protocol is spoken here: the request was answered as it is, as the last one.
            self._deaf = True
        except httptools.HttpParserError:
            self._refuse(400)
        if self._overhead > HEAD_LIMIT and (self._in_head or self._receiving is not None):
            self._refuse(431)

    # What the parser tells.

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._expects_continue = False
        self._in_head = True
        if self._current is None:
            self.deadline = self._loop.time() + HEAD_S

    def on_url(self, url: bytes) -> None:
        """Take in a piece of the request line."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take in a header. What comes behind a chunked body is none: the edge has not seen it."""
        if not self._in_head:
            return
        name = name.lower()
        self._headers.append((name, value))
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects_continue = True

    def on_headers_complete(self) -> None:
        """Have the request answered, or let it wait for its turn."""
        self._in_head = False
        parser = self._parser
        version = parser.get_http_version()
        upgrades = parser.should_upgrade()
        if upgrades and any(name in _FRAMING and value != b"0" for name, value in self._headers):
            raise _MalformedError
        request = Request(
            self,
            self._scope(parser.get_method(), version),
            keep_alive=version == "1.1" and parser.should_keep_alive() and not upgrades,
            expects_continue=self._expects_continue,
        )
        self._receiving = request
        if self._current is None:
            self._begin(request)
        else:
            self._waiting.append(request)
            self.hold()

    def on_body(self, body: bytes) -> None:
        """Take in a piece of the body."""
        self._overhead = 0
        if self._receiving is not None:
            if self._current is self._receiving and not self._held:
                self.deadline = self._loop.time() + BODY_STALL_S
            self._receiving.feed(body)

    def on_message_complete(self) -> None:
        """Take note that the body is whole."""
        self._overhead = 0
        request, self._receiving = self._receiving, None
        if request is None:
            return
        request.complete()
        if not request.keep_alive:
            # Whatever follows the last request of a connection is none.
            self._deaf = True
        if request is self._current:
            self.deadline = _NEVER

    def _scope(self, method: bytes, version: str) -> Scope:
        raw_path, _, query = self._url.partition(b"?")
        if not raw_path.startswith(b"/"):
            raw_path, query = _target(self._url)
        path = raw_path.decode("latin-1")
        return {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "method": method.decode("ascii"),
            "scheme": "http",
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "root_path": "",
            "query_string": query,
            "headers": self._headers,
            **self._addresses,
        }

    def _begin(self, request: Request) -> None:
        self._current = request
        self.deadline = self._loop.time() + BODY_STALL_S if request is self._receiving else _NEVER
        self._server.begin(request)

    def _refuse(self, status: int) -> None:
        """Answer what cannot be parsed, when its turn comes, and hear no more."""
        if self._deaf:
            return
        self._deaf = True
        self._in_head = False
        broken, self._receiving = self._receiving, None
        if broken is not None and (broken is self._current or broken.finished):
            if not broken.started:
                self.write(plain(status))
            self.close()
            return
        if broken is not None:
            self._waiting.remove(broken)
        self._refusal = status
        if self._current is None:
            self._tell_refusal()

    def _tell_refusal(self) -> None:
        self.write(plain(self._refusal))
        self.close()

    # What requests and the server ask.

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the caller has taken what was written."""
        while self.paused:
            # Not one for all: the handler before may still wait for its last piece to go out.
            waiter = self._loop.create_future()
            self._drained.append(waiter)
            await waiter

    def hold(self) -> None:
        """Read nothing for now."""
        if not self._held:
            self._held = True
            self.deadline = _NEVER
            self._transport.pause_reading()

    def read_on(self) -> None:
        """Read again, unless requests wait already."""
        if self._held and not self._waiting and not self._transport.is_closing():
            self._held = False
            if self._receiving is not None:
                self.deadline = self._loop.time() + BODY_STALL_S
            self._transport.resume_reading()

    def answered(self, request: Request) -> None:
        """Go on with the next request, or wait for one."""
        self._current = None
        if not request.keep_alive:
            self.close()
        elif self._waiting:
            self._begin(self._waiting.popleft())
        elif self._refusal:
            self._tell_refusal()
        else:
            self.deadline = self._loop.time() + KEEP_ALIVE_S
        self.read_on()

    def finish(self) -> None:
        """Close after the response under way, or at once where there is none."""
        if self._current is None:
            self.close()
        else:
            self._current.keep_alive = False
            self._deaf = self._receiving is None

    def close(self) -> None:
        """Close once everything has been sent."""
        self._deaf = True
        self.deadline = self._loop.time() + BODY_STALL_S
        self._transport.close()

    def cut_off(self) -> None:
        """Close what is past its deadline. Who takes nothing of what is left to send is dropped."""
        unsent = self._transport.get_write_buffer_size()
        if self._transport.is_closing() and unsent >= self._unsent:
            self.abort()
            return
        self._unsent = unsent
        self.close()

    def abort(self) -> None:
        """Drop the connection."""
        self._deaf = True
        self._transport.abort()


def _target(url: bytes) -> tuple[bytes, bytes]:
    """Return path and query of a request line that does not begin with the path."""
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        raise _MalformedError from None
    if not parsed.path:
        raise _MalformedError
    return parsed.path, parsed.query or b""
