"""One connection to a provider, as it is read: the head of an answer, then its body, parsed by llhttp.

In place of aiohttp's `ResponseHandler`, whose parser and stream are made anew for each answer (ADR 0021). It
takes one answer after the other; what comes when none is expected closes it.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import aiohttp
import httptools
from multidict import CIMultiDict

# As aiohttp has them.
FIELD_LIMIT = 8190
FIELDS_LIMIT = 128
# Of a head, and of what is between the chunks of a body and behind it.
OVERHEAD_LIMIT = 64 * 2**10
# How gzip's data begins.
GZIP = 0x1F
# A body that is not read is not taken from the network beyond this.
READ_BUFFER = 2**18
# What is inflated at once.
INFLATED = 2**18
ENCODINGS = ("gzip", "x-gzip", "deflate")


class _MalformedError(Exception):
    """Raised in a callback of the parser."""


class Head(NamedTuple):
    """What an answer begins with."""

    status: int
    headers: CIMultiDict[str]
    body: Body


class Body:
    """The body of one answer, as it comes. The methods are those of aiohttp's `StreamReader`."""

    __slots__ = (
        "_complete",
        "_failure",
        "_inflater",
        "_loop",
        "_pieces",
        "_size",
        "_waiter",
        "_wire",
        "accept",
    )

    def __init__(self, wire: Wire, loop: asyncio.AbstractEventLoop) -> None:
        self.accept: Callable[[bytes], bool] | None = None
        """See `offer_to`."""
        self._wire = wire
        self._loop = loop
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._complete = False
        self._failure: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._inflater: _Inflater | None = None

    def offer_to(self, accept: Callable[[bytes], bool] | None) -> None:
        """Let `accept` have what comes while somebody waits to read it, who then waits on."""
        if self._inflater is None:
            self.accept = accept

    def encoded(self, encoding: str) -> None:
        """Take note of how the body is compressed. It is inflated as it is read, never before."""
        self._inflater = _Inflater(encoding)

    def feed(self, data: bytes) -> int:
        """Take in a piece, and return how much is left to read."""
        accept, waiter = self.accept, self._waiter
        # What is offered must be all there is, and nobody on the way to read it.
        if accept is not None and waiter is not None and not waiter.done() and not self._pieces:
            try:
                if accept(data):
                    return 0
            except Exception as failure:  # noqa: BLE001 - a parser's callback is no place to tell it
                self.set_exception(failure)
                return 0
        self._pieces.append(data)
        self._size += len(data)
        self._wake()
        return self._size

    def feed_eof(self) -> None:
        """Take note that the body is whole."""
        self._complete = True
        self._wake()

    def set_exception(self, failure: BaseException) -> None:
        """Let who reads fail, after what is here."""
        if self._failure is None:
            self._failure = failure
            self._wake()

    def drop(self, failure: BaseException) -> None:
        """Forget what is here; who reads fails."""
        self._pieces.clear()
        self._failure = self._failure or failure
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def exception(self) -> BaseException | None:
        """Return what broke it."""
        return self._failure

    def is_eof(self) -> bool:
        """Tell whether all of it has come and can be taken at once."""
        return self._complete and self._inflater is None

    def at_eof(self) -> bool:
        """Tell whether all of it has been read."""
        return self._complete and not self._pieces

    def read_nowait(self) -> bytes:
        """Return what is here."""
        pieces, self._size = self._pieces, 0
        data = pieces.popleft() if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._wire.read_on()
        return data

    async def readany(self) -> bytes:
        """Return what has come, waiting for it; empty at the end. Raises aiohttp.ClientError."""
        while True:
            if self._pieces or (self._inflater is not None and self._inflater.pending):
                data = self.read_nowait() if self._inflater is None else self._inflate(self._inflater)
                if data:
                    return data
            elif self._failure is not None:
                raise self._failure
            elif self._complete:
                if self._inflater is not None and not self._inflater.ended:
                    raise aiohttp.ClientPayloadError("the compressed answer is not whole")
                return b""
            else:
                self._waiter = self._loop.create_future()
                await self._waiter

    def _inflate(self, inflater: _Inflater) -> bytes:
        piece = self._pieces.popleft() if self._pieces else b""
        self._size -= len(piece)
        data, rest = inflater.inflate(piece)
        if rest:
            self._pieces.appendleft(rest)
            self._size += len(rest)
        elif self._size < READ_BUFFER:
            self._wire.read_on()
        return data


class _Inflater:
    """Inflates a body a little at a time: a small one may hold gigabytes."""

    def __init__(self, encoding: str) -> None:
        self._deflate = encoding == "deflate"
        self._stream: Any = None
        self.pending = False
        """It may hold data that needs nothing more to be read."""

    @property
    def ended(self) -> bool:
        """The compressed data is whole."""
        return self._stream is None or self._stream.eof

    def inflate(self, piece: bytes) -> tuple[bytes, bytes]:
        """Return some data, and what of the piece is still to be inflated. Raises ClientPayloadError."""
        if self.ended:
            self._stream = self._begin(piece)
        try:
            data = self._stream.decompress(piece, INFLATED)
        except zlib.error as error:
            raise aiohttp.ClientPayloadError(f"the answer cannot be inflated: {error}") from None
        if self._stream.eof:
            self.pending = False
            return data, self._stream.unused_data
        self.pending = len(data) == INFLATED
        return data, self._stream.unconsumed_tail

    def _begin(self, piece: bytes) -> Any:
        """Begin with the data, or with what follows it: gzip's may come in several parts, each whole."""
        if self._stream is not None and (self._deflate or piece[0] != GZIP):
            raise aiohttp.ClientPayloadError("something follows the compressed answer")
        # Servers differ in what they call deflate: with the header of zlib, or without.
        bare = self._deflate and piece[0] & 0xF != 8
        return zlib.decompressobj(-zlib.MAX_WBITS if bare else zlib.MAX_WBITS | 32)


class Wire(asyncio.Protocol):
    """One connection. What aiohttp's connector needs of it is public; `ask` expects an answer."""

    __slots__ = (
        "_body",
        "_come",
        "_complete",
        "_fields",
        "_head",
        "_in_head",
        "_interim",
        "_loop",
        "_overhead",
        "_parser",
        "_paused",
        "_reusable",
        "_until_close",
        "closed",
        "transport",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.transport: Any = None
        self.closed: asyncio.Future[None] | None = None
        self._loop = loop
        self._parser: Any = httptools.HttpResponseParser(self)
        # As aiohttp reads answers: what servers get wrong without doing harm is taken.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._head: asyncio.Future[Head] | None = None
        self._body: Body | None = None
        """Of the answer that is expected, or has come."""
        self._come: list[bytes] = []
        """Pieces of the body that came in one read: who reads is not woken for each."""
        self._complete = True
        self._reusable = True
        self._until_close = False
        self._interim = False
        self._in_head = False
        self._overhead = 0
        self._paused = False
        self._fields: list[tuple[bytes, bytes]] = []

    # What the connector asks.

    def is_connected(self) -> bool:
        """Tell whether it can be used."""
        return self.transport is not None and not self.transport.is_closing()

    @property
    def should_close(self) -> bool:
        """No other request may use it."""
        return not (self._complete and self._reusable)

    def close(self) -> None:
        """Close it in order."""
        if self.transport is not None:
            self.transport.close()
            self.transport = None

    def abort(self) -> None:
        """Drop it."""
        if self.transport is not None:
            self.transport.abort()
            self.transport = None

    # What a request asks.

    def ask(self, *data: bytes) -> asyncio.Future[Head]:
        """Send a request. The future is its answer's head; it fails as aiohttp does."""
        self._head = head = self._loop.create_future()
        self._body = Body(self, self._loop)
        self._complete = False
        self._overhead = 0
        if self.is_connected():
            self.read_on()
            self.transport.writelines(data)
        else:
            self.fail(aiohttp.ServerDisconnectedError())
        return head

    def read_on(self) -> None:
        """Read again, should it have stopped."""
        if self._paused and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()

    def fail(self, failure: BaseException) -> None:
        """End the answer that is expected; its connection is not used again."""
        self._reusable = False
        head, body = self._head, self._body
        if head is not None and not head.done():
            head.set_exception(failure)
        elif body is not None and not self._complete:
            body.set_exception(failure)

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = transport
        self.closed = self._loop.create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is being read: some bodies end so, others break."""
        self.transport = None
        head = self._head
        if self._complete:
            pass
        elif head is None or not head.done():
            self.fail(aiohttp.ServerDisconnectedError() if exc is None else aiohttp.ClientOSError(*exc.args))
        elif self._until_close and exc is None:
            self.on_message_complete()
        else:
            self.fail(aiohttp.ClientPayloadError("the connection was closed before the answer was whole"))
        self._reusable = False
        # It holds this connection, and this connection holds it.
        self._parser = None
        if self.closed is not None and not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Parse; the callbacks below do the rest."""
        if self._complete:
            # Nobody has asked.
            self._spoil()
            return
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._refuse(str(error))
        except httptools.HttpParserUpgrade:
            self._refuse("it changed the protocol")
        else:
            if self._come:
                self._hand_on()
            if self._overhead > OVERHEAD_LIMIT and not self._complete:
                self._refuse("what is around its data is too much")

    def _hand_on(self) -> None:
        """Let the body have what has come."""
        come, self._come = self._come, []
        body = self._body
        left = body.feed(come[0] if len(come) == 1 else b"".join(come)) if body is not None else 0
        if left > READ_BUFFER and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def _refuse(self, message: str) -> None:
        if self._come:
            self._hand_on()
        self.fail(aiohttp.ClientPayloadError(message))
        self._spoil()

    def _spoil(self) -> None:
        self._reusable = False
        if self.transport is not None:
            self.transport.close()

    # What the parser tells.

    def on_message_begin(self) -> None:
        """Begin an answer, of which there may be one."""
        if self._complete:
            raise _MalformedError("more than the answer")
        self._fields = []
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take in a header. What comes behind a chunked body is none."""
        if not self._in_head:
            return
        if len(name) + len(value) > FIELD_LIMIT or len(self._fields) == FIELDS_LIMIT:
            raise _MalformedError("its head is too large")
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Hand out the head, unless it is an interim one."""
        self._in_head = False
        status = self._parser.get_status_code()
        self._interim = 100 <= status < 200
        if status == 101:
            raise _MalformedError("it changed the protocol")
        if self._interim:
            return
        headers = CIMultiDict(
            [
                (name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape"))
                for name, value in self._fields
            ]
        )
        framed = "Content-Length" in headers or "Transfer-Encoding" in headers or status in (204, 304)
        self._until_close = not framed
        head, body = self._head, self._body
        assert body is not None
        encoding = headers.get("Content-Encoding", "").strip().lower()
        if encoding in ENCODINGS:
            body.encoded(encoding)
        elif encoding not in ("", "identity"):
            raise _MalformedError("its encoding was not asked for")
        if head is not None and not head.done():
            head.set_result(Head(status, headers, body))

    def on_body(self, data: bytes) -> None:
        """Take in a piece of the body."""
        self._overhead = 0
        self._come.append(data)

    def on_message_complete(self) -> None:
        """Take note that the answer is whole."""
        if self._interim:
            return
        if self._come:
            self._hand_on()
        self._complete = True
        self._reusable = self._reusable and not self._until_close and self._parser.should_keep_alive()
        if self._body is not None:
            self._body.feed_eof()
