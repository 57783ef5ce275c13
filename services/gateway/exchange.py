"""One HTTP exchange: what every endpoint of the facade does before and after its own work."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from starlette.types import Receive, Scope, Send

from services.common.authenticator import Authenticator
from services.common.ids import new_id
from services.common.log import RequestEvent
from services.common.rpc import Call, RpcError
from services.common.rpc.errors import InternalError, to_rpc_error
from services.common.rpc.server import credential_in
from services.common.telemetry import Traced
from services.formats.errors import invalid
from services.gateway.rate_limits import in_error
from services.gateway.surfaces import Surface

JSON = (b"content-type", b"application/json")
# Set by the edge on what is over its own limit.
BODY_LIMIT_HEADER = "x-omnihub-body-limit"
# What is read of bodies that are refused. The edge alone answers to what says that it is longer.
DISCARD_LIMIT = 512 * 2**20
# The same, of callers whom nobody knows.
DISCARD_LIMIT_UNKNOWN = 32 * 2**20
DISCARD_LIMIT_S = 30.0

_logger = logging.getLogger(__name__)
Headers = Iterable[tuple[bytes, bytes]]


class CallerLeftError(Exception):
    """The connection ended before the request was complete: there is nobody to answer."""


def header_value(text: str) -> bytes:
    """Return a text as the value of a header: what cannot stand there becomes a question mark."""
    if text.isascii() and text.isprintable():
        return text.encode("ascii")
    return "".join(char if char.isascii() and char.isprintable() else "?" for char in text).encode("ascii")


class Exchange:
    """A request that has been authenticated, and the response to it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self.query: bytes = scope.get("query_string", b"")
        self.path_params: Mapping[str, str] = scope.get("path_params", {})
        self.query_string: bytes = scope.get("query_string", b"")
        self.request_id = (
            self.headers.get("x-omnihub-request-id") or self.headers.get("x-request-id") or new_id("req")
        )
        self.started = False
        self.finished = False
        self.left = False
        self._read_whole = False
        self.bare = False
        """The body is no text that could carry an error: a failure cuts it short instead."""
        self.own_headers: list[tuple[bytes, bytes]] = []
        """Sent with every answer, also with an error."""
        self.facts: Mapping[str, Any] = {}
        """What rides as `omnihub` in the error event of a broken stream."""
        self.write_stream_error: Callable[..., bytes] | None = None
        """Ends a stream that is being written; it knows what has been written."""
        self._scope = scope
        self._receive = receive
        self._send = send

    async def read_body(self, limit: int) -> bytes:
        """Return the whole body. From then on the running task is cancelled when the caller leaves.

        Raises RpcError BODY_TOO_LARGE as soon as it is known to be, and CallerLeftError.
        """
        chunks: list[bytes] = []
        await self.read_into(chunks.append, limit)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def read_into(self, take: Callable[[bytes], None], limit: int) -> None:
        """Hand the body on piece by piece, as it comes; otherwise like `read_body`."""
        edge_limit = self.headers.get(BODY_LIMIT_HEADER, "")
        if edge_limit.isdecimal():
            limit = min(limit, int(edge_limit[:18]))
        if int(self.headers.get("content-length") or 0) > limit:
            raise _too_large(limit)
        if self.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
            # What little comes may mean much: it is not unpacked to be told apart.
            raise RpcError("MALFORMED_BODY", "bodies are not unpacked here; send it without Content-Encoding")
        size = 0
        while not self._read_whole:
            chunk = await self._next_piece()
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            take(chunk)
        self.watch()

    async def _next_piece(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise CallerLeftError
        self._read_whole = not message.get("more_body", False)
        return message.get("body", b"")  # type: ignore[no-any-return]

    async def discard(self, limit: int) -> None:
        """Read the rest of a body that is not wanted: many clients lose an answer that comes while they send.

        Not without end: whoever sends too much, or too slowly, is answered meanwhile.
        """
        size = 0
        try:
            async with asyncio.timeout(DISCARD_LIMIT_S):
                while not self._read_whole and size <= limit:
                    size += len(await self._next_piece())
        except (TimeoutError, CallerLeftError):
            return

    def watch(self) -> None:
        """Cancel the running task when the caller leaves. Only once the body has been read."""
        self._read_whole = True
        running = asyncio.current_task()
        assert running is not None

        def leave() -> None:
            self.left = True
            running.cancel()

        # What our listener offers beside ASGI: a task that waits in `receive` costs a tenth of the facade.
        self._scope["omnihub.on_disconnect"](leave)

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers."""
        self.started = True
        own = (b"x-omnihub-request-id", header_value(self.request_id))
        await self._send(
            {"type": "http.response.start", "status": status, "headers": [own, *self.own_headers, *headers]}
        )

    async def write(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the body."""
        self.finished = not more
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    @property
    def write_now(self) -> Callable[[bytes], bool]:
        """Send a piece of the body that is not the last, unless that means to wait. Tells whether it did."""
        # What our listener offers beside ASGI: a coroutine for each piece costs more than to write it.
        return self._scope["omnihub.write_now"]  # type: ignore[no-any-return]

    async def respond(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """Send a whole JSON response."""
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, [JSON, length, *headers])
        await self.write(body, more=False)


AGENT_LIMIT = 64


def attribution(headers: Mapping[str, str]) -> tuple[str, str]:
    """Return the agent and the run a caller names in headers. Raises FormatError."""
    named = []
    for name in ("x-omnihub-agent", "x-omnihub-run"):
        value = headers.get(name, "")
        if len(value) > AGENT_LIMIT or not (value.isascii() and value.isprintable()):
            raise invalid(name, f"expected at most {AGENT_LIMIT} printable ASCII characters")
        named.append(value)
    return named[0], named[1]


def _too_large(limit: int) -> RpcError:
    return RpcError("BODY_TOO_LARGE", f"the body exceeds {limit} bytes; send less, or upload media as files")


Work = Callable[[Exchange, Call, RequestEvent], Awaitable[None]]


class Endpoint:
    """An ASGI application for one path: authenticates, runs `work`, writes failures as the format does."""

    scope = "chat"
    """What the credential must hold."""

    def __init__(self, surface: Surface, authenticator: Authenticator, name: str, work: Work) -> None:
        self._surface = surface
        self._authenticator = authenticator
        self._name = name
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        exchange = Exchange(scope, receive, send)
        event = RequestEvent("http", self._name)
        event.request_id = exchange.request_id
        traced = Traced(self._name, exchange.headers.get("traceparent", ""))
        outcome, known = "OK", False
        try:
            call = await self._enter(exchange, traced.traceparent)
            known = True
            event.identify(call.request_id, call.identity, call.traceparent)
            await self._work(exchange, call, event)
        except CallerLeftError:
            outcome = "CANCELLED"
        except asyncio.CancelledError:
            outcome = "CANCELLED"
            if not exchange.left:
                stopping = RpcError("UNAVAILABLE", "the server stops; send the request again")
                await self._tell(exchange, stopping)
        except Exception as error:
            visible = to_rpc_error(error)
            outcome = visible.reason
            if isinstance(visible, InternalError):
                _logger.error("request_failed %s", exchange.request_id, exc_info=error)
            await exchange.discard(DISCARD_LIMIT if known else DISCARD_LIMIT_UNKNOWN)
            await self._tell(exchange, visible)
        finally:
            event.finish(outcome)
            traced.end(outcome, event.fields)

    async def _enter(self, exchange: Exchange, traceparent: str) -> Call:
        credential = credential_in(exchange.headers)
        if not credential:
            raise RpcError(
                "MISSING_CREDENTIAL", "no API key: send `Authorization: Bearer omni_sk_...` or `X-API-Key`"
            )
        identity = await self._authenticator.authenticate(credential)
        if not identity.holds(self.scope):
            raise RpcError(
                "PERMISSION_DENIED",
                f"the credential lacks the scope `{self.scope}`",
                metadata={"scope": self.scope},
            )
        return Call(exchange.request_id, identity, traceparent=traceparent)

    async def _tell(self, exchange: Exchange, error: RpcError) -> None:
        """Answer with an error, or end a stream that has begun with one: it must not look complete."""
        words = self._surface.error_words(error, exchange.request_id)
        if exchange.finished:
            return
        if exchange.started and exchange.bare:
            return
        if exchange.started:
            write = exchange.write_stream_error or self._surface.write_stream_error
            document = write(**words, extra=exchange.facts)
            await exchange.write(document, more=False)
            return
        headers = []
        if decision_id := error.metadata.get("decision_id"):
            headers.append((b"x-omnihub-decision-id", header_value(decision_id)))
        if error.retry_after_s is not None:
            # Never too early: the same refusal again would help nobody.
            headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode()))
        if error.row.http == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        headers += self._surface.rate_limit_headers(in_error(error))
        await exchange.respond(error.row.http, self._surface.write_error(**words), headers)
