"""The POST that most requests leave by: connections, their reuse, and servers that misuse them."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from services.providers.domain.failure import Failures, ProviderError
from services.providers.http import Exchange, Timeouts, Upstream
from services.providers.posting import LARGEST_BODY, Posting
from tests.support.edge import make_certificate

HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "omnihub"}
BODY = b'{"model":"m"}'
GOOD = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"good": 1}'
FAILURES = Failures("wall", "m")
LIMITS = Timeouts(2, 2, 2, 5)
MIB = 2**20

Serve = Callable[[int, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Wire:
    """A server on the level of bytes. `serve` gets each connection with its number."""

    def __init__(self) -> None:
        self.url = URL()
        self.requests: list[tuple[int, bytes, bytes]] = []
        """Connection, head and body of each."""
        self.asked = asyncio.Event()
        self.ended = asyncio.Event()
        """A connection has been closed by the client."""

    async def read(self, number: int, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        self.requests.append((number, head, await reader.readexactly(length)))
        self.asked.set()


@asynccontextmanager
async def wire(serve: Serve, server: Wire, tls: ssl.SSLContext | None = None) -> AsyncIterator[Wire]:
    connections = 0

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            await serve(connections, reader, writer)
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            server.ended.set()
            writer.close()

    listening = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    async with listening:
        scheme = "http" if tls is None else "https"
        server.url = URL(f"{scheme}://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1/chat?a=b%20c")
        yield server


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    await upstream.start()
    yield upstream
    await upstream.stop()


async def ask(upstream: Upstream, url: URL, body: bytes = BODY, limits: Timeouts = LIMITS) -> bytes:
    exchange = await upstream.send(url, HEADERS, body, limits, FAILURES, stream=False)
    try:
        return await exchange.read_body()
    finally:
        exchange.close()


async def opened(upstream: Upstream, url: URL, body: bytes = BODY) -> Exchange:
    return await upstream.send(url, HEADERS, body, LIMITS, FAILURES, stream=True)


def answering(server: Wire, *answers: bytes) -> Serve:
    """Return a server that answers the requests of each connection so, one after the other."""

    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await server.read(number, reader)
            writer.write(answer)

    return serve


async def test_a_gzip_bomb_in_answer_to_a_large_body_is_stopped(upstream: Upstream) -> None:
    """Large bodies go through the session, which unpacks by itself: what it holds is bounded, too."""
    bomb = gzip.compress(b"{" + b" " * (96 * MIB), compresslevel=1)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n"
    server = Wire()
    async with wire(answering(server, b"%bContent-Length: %d\r\n\r\n%b" % (head, len(bomb), bomb)), server):
        exchange = await upstream.send(
            server.url, HEADERS, b"x" * (LARGEST_BODY + 1), LIMITS, FAILURES, stream=False
        )
        tracemalloc.start()
        try:
            with pytest.raises(ProviderError) as caught:
                await exchange.read_body(MIB)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            exchange.close()
        await server.ended.wait()
    assert caught.value.reason == "PROVIDER_PROTOCOL"
    assert f"exceeds {MIB} bytes" in caught.value.message
    [(_, _, sent)] = server.requests
    assert len(sent) > LARGEST_BODY
    assert peak < 16 * MIB


async def test_what_is_sent_is_what_the_session_sends(upstream: Upstream) -> None:
    server = Wire()
    async with wire(answering(server, GOOD, GOOD), server):
        await ask(upstream, server.url)
        await ask(upstream, server.url, b"x" * (LARGEST_BODY + 1))

    def lines(head: bytes) -> list[bytes]:
        first, *rest = head.split(b"\r\n")
        return [first, *sorted(line for line in rest if not line.startswith(b"Content-Length"))]

    (one, small, body), (two, large, _) = server.requests
    assert lines(small) == lines(large)
    assert small.startswith(b"POST /v1/chat?a=b%20c HTTP/1.1\r\n")
    assert body == BODY
    assert (one, two) == (1, 2)  # The session has a pool of its own.


async def test_a_connection_closed_while_idle_is_not_used_again(upstream: Upstream) -> None:
    server = Wire()

    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(number, reader)
        writer.write(GOOD)
        writer.write_eof()

    async with wire(serve, server):
        for _ in range(3):
            await ask(upstream, server.url)
            await server.ended.wait()
            server.ended.clear()
    assert [number for number, _, _ in server.requests] == [1, 2, 3]


async def test_a_post_that_meets_a_closing_connection_is_not_repeated(upstream: Upstream) -> None:
    server = Wire()

    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(number, reader)
        writer.write(GOOD)
        await server.read(number, reader)
        writer.transport.abort()

    async with wire(serve, server):
        await ask(upstream, server.url)
        with pytest.raises(ProviderError, match="closed the connection without an answer") as caught:
            await ask(upstream, server.url)
    assert caught.value.metadata["retryable"] == "true"
    assert caught.value.sent
    assert len(server.requests) == 2


async def test_an_answer_nobody_asked_for_answers_no_request(upstream: Upstream) -> None:
    server, other = Wire(), Wire()
    idle, sent = asyncio.Event(), asyncio.Event()

    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(number, reader)
        writer.write(GOOD)
        if number == 1:
            await idle.wait()
            writer.write(GOOD.replace(b"good", b"evil"))
            await writer.drain()
            sent.set()

    async with wire(serve, server), wire(answering(other, GOOD), other):
        assert json.loads(await ask(upstream, server.url)) == {"good": 1}
        idle.set()
        await sent.wait()
        # What was sent before has been read once a later answer has.
        await ask(upstream, other.url)
        assert json.loads(await ask(upstream, server.url)) == {"good": 1}
    assert [number for number, _, _ in server.requests] == [1, 2]


async def test_more_than_the_answer_closes_the_connection(upstream: Upstream) -> None:
    server = Wire()
    async with wire(answering(server, GOOD + GOOD.replace(b"good", b"evil")), server):
        assert json.loads(await ask(upstream, server.url)) == {"good": 1}
        assert json.loads(await ask(upstream, server.url)) == {"good": 1}
    assert [number for number, _, _ in server.requests] == [1, 2]


@pytest.mark.parametrize(
    "interim",
    [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"],
)
async def test_interim_answers_are_no_answers(upstream: Upstream, interim: bytes) -> None:
    server = Wire()
    async with wire(answering(server, interim + interim + GOOD, GOOD), server):
        assert json.loads(await ask(upstream, server.url)) == {"good": 1}
        assert json.loads(await ask(upstream, server.url)) == {"good": 1}
    assert [number for number, _, _ in server.requests] == [1, 1]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 11\r\n\r\n{"good": 1}', '{"good": 1}'),
        (b'HTTP/1.0 200 OK\r\n\r\n{"good": 1}', '{"good": 1}'),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", "abcde"),
    ],
)
async def test_every_way_a_body_may_end(upstream: Upstream, answer: bytes, text: str) -> None:
    server = Wire()

    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(number, reader)
        writer.write(answer)
        if b"chunked" not in answer:
            writer.write_eof()

    async with wire(serve, server):
        assert await ask(upstream, server.url) == text.encode()


class Deaf:
    """A server with small buffers that answers at once and reads nothing."""

    def __init__(self, answer: bytes) -> None:
        self._listening = socket.socket()
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen()
        self._port = self._listening.getsockname()[1]
        self.url = URL(f"http://127.0.0.1:{self._port}/")
        self._serving = asyncio.create_task(asyncio.to_thread(self._serve, answer))

    def _serve(self, answer: bytes) -> socket.socket:
        connection, _ = self._listening.accept()
        connection.sendall(answer)
        return connection

    def is_held(self) -> bool:
        """Tell whether the client's end of the connection is still open."""
        remote = f":{self._port:04X}"
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return any(line[2].endswith(remote) and line[3] == ESTABLISHED for line in lines)

    async def __aenter__(self) -> Deaf:
        return self

    async def __aexit__(self, *_: object) -> None:
        (await self._serving).close()
        self._listening.close()


ESTABLISHED = "01"


@pytest.fixture
def more_than_fits(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Return a body that no buffer of the system holds, sent as if it were moderate."""
    monkeypatch.setattr("services.providers.http.LARGEST_BODY", 2**26)
    return b"x" * 2**25


async def test_an_early_answer_is_read_and_its_connection_closed(
    upstream: Upstream, more_than_fits: bytes
) -> None:
    async with Deaf(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\n{}") as server:
        exchange = await opened(upstream, server.url, more_than_fits)
        assert exchange.status == 413
        assert server.is_held()
        assert await exchange.read_body() == b"{}"
        await asyncio.sleep(0)  # The loop closes what it was told to close.
        # Otherwise both would wait: one for the rest of the body, one for room to send it.
        assert not server.is_held()


async def test_a_body_nobody_takes_holds_no_connection(upstream: Upstream, more_than_fits: bytes) -> None:
    async with Deaf(b"HTTP/1.1 ") as server:
        with pytest.raises(ProviderError, match="no answer within"):
            await ask(upstream, server.url, more_than_fits, Timeouts(2, 2, 2, 0.3))
        await asyncio.sleep(0)
        assert not server.is_held()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 20_000 + b"\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n" + b"X-Many: 1\r\n" * 200 + b"\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: nine\r\n\r\n{}",
    ],
)
async def test_what_is_no_http_is_a_protocol_error(upstream: Upstream, answer: bytes) -> None:
    server = Wire()
    async with wire(answering(server, answer), server):
        with pytest.raises(ProviderError) as caught:
            await ask(upstream, server.url)
        assert caught.value.reason == "PROVIDER_PROTOCOL"
        await asyncio.wait_for(server.ended.wait(), 60)


async def test_a_broken_body_is_no_answer(upstream: Upstream) -> None:
    server = Wire()

    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(number, reader)
        writer.write(GOOD[:-3])
        writer.write_eof()

    async with wire(serve, server):
        with pytest.raises(ProviderError) as caught:
            await ask(upstream, server.url)
    assert caught.value.reason in {"PROVIDER_FAILED", "PROVIDER_PROTOCOL"}


async def test_a_body_faster_than_its_reader_waits_and_arrives_whole(upstream: Upstream) -> None:
    """What is not read is not taken from the network, and reading goes on where it stopped."""
    server = Wire()
    size = 2**25
    sent = asyncio.Event()

    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.read(number, reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(0, size, 2**16):
            writer.write(b"x" * 2**16)
            await writer.drain()
        sent.set()

    async with wire(serve, server):
        exchange = await opened(upstream, server.url)
        exchange.got_token = True
        received = len(await exchange.read_chunk())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sent.wait(), 0.5)
        while piece := await exchange.read_chunk():
            received += len(piece)
        exchange.release()
        assert received == size
        assert sent.is_set()


async def test_silence_ends_at_the_limit_and_closes(upstream: Upstream) -> None:
    server = Wire()
    async with wire(answering(server, b"HTTP/1.1 200 OK\r\n"), server):
        with pytest.raises(ProviderError, match="no answer within") as caught:
            await ask(upstream, server.url, limits=Timeouts(2, 2, 2, 0.2))
        assert caught.value.reason == "PROVIDER_TIMEOUT"
        await asyncio.wait_for(server.ended.wait(), 60)


async def test_who_stops_waiting_closes_the_connection(upstream: Upstream) -> None:
    server = Wire()
    async with wire(answering(server, b""), server):
        asking = asyncio.create_task(ask(upstream, server.url))
        await server.asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.wait_for(server.ended.wait(), 60)


async def test_a_reader_of_a_closed_exchange_fails(upstream: Upstream) -> None:
    server = Wire()
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    async with wire(answering(server, head), server):
        exchange = await opened(upstream, server.url)
        assert await exchange.read_chunk() == b"abc"
        reading = asyncio.ensure_future(exchange.read_chunk())
        await asyncio.sleep(0)
        exchange.close()
        with pytest.raises(ProviderError):
            await reading


@pytest.mark.parametrize("trusted", [True, False])
async def test_tls_is_verified(
    upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    certificate, key = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    if trusted:
        trusting = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)
    server = Wire()
    async with wire(answering(server, GOOD, GOOD), server, tls):
        if not trusted:
            with pytest.raises(ProviderError, match="cannot connect") as caught:
                await ask(upstream, server.url)
            assert not caught.value.sent
            assert not server.requests
            return
        for _ in range(2):
            assert json.loads(await ask(upstream, server.url)) == {"good": 1}
    assert [number for number, _, _ in server.requests] == [1, 1]


async def test_headers_that_would_be_more_than_headers_are_refused() -> None:
    connector = aiohttp.TCPConnector()
    async with aiohttp.ClientSession(connector=connector) as session:
        posting = Posting(session, connector)
        for value in ("a\r\nX-Evil: 1", "a\nb", "a\0b"):
            with pytest.raises(ValueError, match="line break"):
                posting.head(URL("http://127.0.0.1/"), {"X-Good": value})


async def test_addresses_with_more_in_them_are_the_sessions_matter() -> None:
    connector = aiohttp.TCPConnector()
    async with aiohttp.ClientSession(connector=connector) as session:
        posting = Posting(session, connector)
        assert posting.head(URL("http://user:secret@127.0.0.1/"), HEADERS) is None
        assert posting.head(URL("http:///nowhere"), HEADERS) is None
        first = posting.head(URL("https://127.0.0.1/v1"), HEADERS)
        assert first is not None
        assert posting.head(URL("https://127.0.0.1/v1"), dict(HEADERS)) is first
