"""One request and the response to it, as ASGI sees them: a scope, `receive` and `send`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from starlette.types import ASGIApp, Message, Scope

from services.listener.heads import CONTINUE, LAST_CHUNK, Head, write_head

_logger = logging.getLogger(__name__)

# Of a body that is not read; more is left to the sender.
BODY_BUFFER = 256 * 1024
# A body up to this is copied behind its head: two writes cost more.
COPIED = 64 * 1024
# Under this name a handler finds `Request.on_disconnect` in its scope. Not part of ASGI.
ON_DISCONNECT = "omnihub.on_disconnect"
# And under this one `Request.write_now`.
WRITE_NOW = "omnihub.write_now"
_FAULT = b"Internal Server Error"


class Connection(Protocol):
    """What a request needs of the connection it came on."""

    paused: bool
    """More has been written than the caller has taken."""

    def write(self, data: bytes) -> None:
        """Send bytes."""
        ...

    async def drain(self) -> None:
        """Wait until the caller has taken what was written."""
        ...

    def hold(self) -> None:
        """Read nothing for now."""
        ...

    def read_on(self) -> None:
        """Read again."""
        ...

    def answered(self, request: Request) -> None:
        """Go on: the response is complete."""
        ...

    def abort(self) -> None:
        """Drop the connection: a response that cannot be completed must not look complete."""
        ...


class Request:
    """What a request says, and how far the response has come."""

    __slots__ = (
        "_body",
        "_body_read",
        "_chunked",
        "_complete",
        "_connection",
        "_expects_continue",
        "_head",
        "_left",
        "_length",
        "_on_disconnect",
        "_silent",
        "_size",
        "_waiter",
        "finished",
        "keep_alive",
        "scope",
        "started",
        "task",
    )

    def __init__(
        self, connection: Connection, scope: Scope, *, keep_alive: bool, expects_continue: bool
    ) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.started = False
        self.finished = False
        self.task: asyncio.Task[None] | None = None
        self._connection = connection
        self._expects_continue = expects_continue
        self._body: list[bytes] = []
        self._size = 0
        self._complete = False
        self._body_read = False
        self._left = False
        self._waiter: asyncio.Future[None] | None = None
        self._on_disconnect: Callable[[], None] | None = None
        self._head = b""
        self._chunked = False
        self._silent = False
        self._length: int | None = None
        scope[ON_DISCONNECT] = self.on_disconnect
        scope[WRITE_NOW] = self.write_now

    def feed(self, data: bytes) -> None:
        """Take in a piece of the body. What nobody will read any more is dropped."""
        if self.finished:
            return
        self._body.append(data)
        self._size += len(data)
        if self._size > BODY_BUFFER:
            self._connection.hold()
        self._wake()

    def complete(self) -> None:
        """Take note that the body is whole."""
        self._complete = True
        self._wake()

    def disconnected(self) -> None:
        """Take note that nobody waits for the response any more."""
        if self.finished:
            return
        self._left = True
        self._wake()
        if self._on_disconnect is not None:
            self._on_disconnect()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Call back if the caller leaves before the response is complete.

        A task that waits for this in `receive` costs more than reading the request.
        """
        self._on_disconnect = callback
        if self._left:
            asyncio.get_running_loop().call_soon(callback)

    def forget(self) -> None:
        """Let go of what holds this request, now that it is over: nobody should have to search for it.

        Requests left to the garbage collector stop the process for a twentieth of a second now and then.
        """
        self.task = None
        self._on_disconnect = None
        self.scope.pop(ON_DISCONNECT, None)
        self.scope.pop(WRITE_NOW, None)

    async def run(self, app: ASGIApp) -> None:
        """Let an application answer."""
        try:
            await app(self.scope, self.receive, self.send)
        except Exception:
            _logger.exception("http_request_failed %s", self.scope["path"])
            if not self.started and not self._left:
                await self._tell_fault()
        finally:
            if not self.finished and not self._left:
                self._connection.abort()

    async def _tell_fault(self) -> None:
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(_FAULT))]
        self.keep_alive = False
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": _FAULT})

    async def receive(self) -> Message:
        """Return the next piece of the body. When all has been read, wait until the exchange is over."""
        if self._expects_continue:
            self._expects_continue = False
            if not self.started and not self._body:
                self._connection.write(CONTINUE)
        while not (self._left or self.finished):
            if self._body or (self._complete and not self._body_read):
                return self._next_piece()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return {"type": "http.disconnect"}

    def _next_piece(self) -> Message:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._body_read = self._complete
        if self._size > BODY_BUFFER:
            self._connection.read_on()
        self._size = 0
        return {"type": "http.request", "body": body, "more_body": not self._complete}

    async def send(self, message: Message) -> None:
        """Send the head, or a piece of the body. To a caller who has left nothing is sent."""
        if self._left:
            return
        if message["type"] == "http.response.body":
            self._send_piece(message.get("body", b""), message.get("more_body", False))
        else:
            self._send_head(message)
        if self._connection.paused:
            await self._connection.drain()

    def write_now(self, data: bytes) -> bool:
        """Send a piece of a stream, not the last, if the caller takes it at once. Tells whether it did."""
        connection = self._connection
        if self._left or not self._chunked or self.finished or self._silent or connection.paused:
            return False
        if self._head:
            self._send_piece(data, more=True)
        elif data:
            connection.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def _send_head(self, message: Message) -> None:
        if self.started:
            raise RuntimeError("the response has already begun")
        head: Head = write_head(message["status"], message["headers"], self.scope, self.keep_alive)
        self.started = True
        self._chunked, self._length, self._silent = head.chunked, head.length, head.silent
        self.keep_alive = head.keep_alive
        self._head = head.data
        if head.length is None:
            # Who waits for a stream is told that it has begun, in one write with what comes in the same turn.
            asyncio.get_running_loop().call_soon(self._send_bare_head)

    def _send_bare_head(self) -> None:
        head, self._head = self._head, b""
        if head and not self._left:
            self._connection.write(head)

    def _send_piece(self, data: bytes, more: bool) -> None:
        if not self.started or self.finished:
            raise RuntimeError("a piece of a body outside a response")
        if self._silent:
            data = b""
        elif self._length is not None:
            self._length -= len(data)
            if self._length < 0 or (self._length and not more):
                raise RuntimeError("the body is not as long as `content-length` says")
        elif self._chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._chunked and not more:
            data += LAST_CHUNK
        if self._head:
            head, self._head = self._head, b""
            if len(data) > COPIED:
                self._connection.write(head)
            else:
                data = head + data
        if data:
            self._connection.write(data)
        if not more:
            self.finished = True
            self._wake()
            self._connection.answered(self)
