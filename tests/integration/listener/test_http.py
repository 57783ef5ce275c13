"""The HTTP listener on the wire: what well-behaved callers rely on, and what the others must not achieve."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from services.listener import HttpListener, connection, server
from services.listener.request import BODY_BUFFER, ON_DISCONNECT
from services.listener.request import Request as HttpRequest
from tests.support.ports import free_port

FOUND = b"HTTP/1.1 200 OK\r\n"
PAGE = 1024 * 1024


class Wire:
    """A connection to the listener, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def line(self) -> bytes:
        return await self._reader.readline()

    async def head(self) -> bytes:
        return await self._reader.readuntil(b"\r\n\r\n")

    async def body(self, size: int) -> bytes:
        return await self._reader.readexactly(size)

    async def rest(self) -> bytes:
        """Return everything up to the end of the connection."""
        return await self._reader.read()

    def leave(self) -> None:
        self._writer.close()


class Site:
    """A running listener whose handlers the test holds in its hands."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.socket = folder / "http.sock"
        self.entered = asyncio.Event()
        self.released = asyncio.Event()
        self.left = asyncio.Event()
        self.pages = 0
        routes = [
            Route("/echo", self._echo, methods=["POST"]),
            Route("/hello", self._hello),
            Route("/slow", self._slow),
            Route("/stream", self._stream),
            Route("/empty", self._empty),
            Route("/name/{name:path}", self._name),
            Route("/deaf", self._deaf, methods=["POST"]),
            Route("/fault", self._fault),
            Route("/short", raw(self._short)),
            Route("/injected", raw(self._injected)),
            Route("/watched", raw(self._watched)),
            Route("/many", raw(self._many)),
            Route("/page", raw(self._page)),
        ]
        self.listener = HttpListener(f"127.0.0.1:{self.port}", routes, _no_problems, drain_timeout_s=5)
        self.listener.also_listen(f"unix:{self.socket}")

    async def _echo(self, request: Request) -> Response:
        body = await request.body()
        return Response(
            body, headers={"x-query": request.url.query, "x-said": request.headers.get("late", "no")}
        )

    async def _hello(self, request: Request) -> Response:
        return PlainTextResponse(f"hello {request.client.host if request.client else ''}")

    async def _slow(self, request: Request) -> Response:
        self.entered.set()
        await self.released.wait()
        return PlainTextResponse("slow")

    async def _stream(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"one"
            yield b""
            yield b"two"

        return StreamingResponse(pieces())

    async def _empty(self, request: Request) -> Response:
        return Response(status_code=204)

    async def _name(self, request: Request) -> Response:
        return PlainTextResponse(request.path_params["name"])

    async def _deaf(self, request: Request) -> Response:
        """Answer without having read the body."""
        return PlainTextResponse("no", 413)

    async def _fault(self, request: Request) -> Response:
        raise KeyError("a fault")

    async def _short(self, scope: Scope, receive: Receive, send: Send) -> None:
        """End before what was promised."""
        headers = [(b"content-length", b"10")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"1234", "more_body": True})

    async def _injected(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"x-name", b"a\r\nset-cookie: b")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[ON_DISCONNECT](self.left.set)
        self.entered.set()
        await self.left.wait()

    async def _many(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write more than any buffer holds, and say so once a write had to wait."""
        piece = b"x" * (1024 * 1024)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(32):
            writing = asyncio.ensure_future(send_piece(send, piece))
            await asyncio.sleep(0)
            if not writing.done():
                self.entered.set()
            await writing
        await send({"type": "http.response.body", "body": b""})

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.pages += 1
        headers = [(b"content-length", b"%d" % PAGE)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * PAGE})
        self.left.set()


async def send_piece(send: Send, piece: bytes) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": True})


def raw(app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> Any:
    """Return an application that Starlette does not take for a function of requests."""

    class Application:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope, receive, send)

    return Application()


async def _no_problems() -> dict[str, str]:
    return {}


@pytest_asyncio.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    await made.listener.start()
    async with asyncio.timeout(60):
        yield made
    made.released.set()
    await made.listener.stop()


@contextlib.asynccontextmanager
async def wire(site: Site) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def post(body: bytes, path: str = "/echo", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def post_chunked(path: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode()


def get(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "host: x", *headers, "", ""]).encode()


async def test_a_body_in_one_piece_and_in_many(site: Site) -> None:
    async with wire(site) as line:
        await line.send(post(b"whole", "/echo?a=b%20c"))
        assert b"x-query: a=b%20c" in await line.head()
        assert await line.body(5) == b"whole"
        for byte in post(b"byte by byte"):
            await line.send(bytes([byte]))
        assert (await line.head()).startswith(FOUND)
        assert await line.body(12) == b"byte by byte"


async def test_a_chunked_body(site: Site) -> None:
    async with wire(site) as line:
        head = get("/echo", "transfer-encoding: chunked", method="POST")
        await line.send(head + b"5\r\nfirst\r\n")
        await line.send(b"7;extension=x\r\n second\r\n0\r\nlate: x\r\n\r\n")
        answer = await line.head()
        assert b"content-length: 12" in answer
        assert b"x-said: no" in answer
        assert await line.body(12) == b"first second"


async def test_a_large_body_is_read_as_the_handler_takes_it(site: Site) -> None:
    body = bytes(range(256)) * (16 * 1024)
    async with httpx.AsyncClient() as http:
        assert (await http.post(f"{site.url}/echo", content=body)).content == body


async def test_a_body_that_nobody_reads_does_not_spoil_the_next_request(site: Site) -> None:
    async with wire(site) as line:
        await line.send(post(b"x" * (4 * BODY_BUFFER), "/deaf"))
        assert (await line.head()).startswith(b"HTTP/1.1 413 ")
        assert await line.body(2) == b"no"
        await line.send(get("/hello"))
        assert (await line.head()).startswith(FOUND)


async def test_requests_in_one_packet_are_answered_in_order(site: Site) -> None:
    async with wire(site) as line:
        await line.send(get("/slow") + post(b"second") + get("/hello", "connection: close"))
        await site.entered.wait()
        site.released.set()
        answers = await line.rest()
    assert answers.count(b"HTTP/1.1 200") == 3
    assert answers.index(b"slow") < answers.index(b"second") < answers.index(b"hello")


async def test_head_has_the_length_and_no_body(site: Site) -> None:
    async with wire(site) as line:
        await line.send(get("/hello", method="HEAD"))
        assert b"content-length: 15" in await line.head()
        await line.send(get("/empty"))
        head = await line.head()
        assert head.startswith(b"HTTP/1.1 204 ")
        assert b"transfer-encoding" not in head


async def test_a_stream_is_chunked_and_the_connection_lives_on(site: Site) -> None:
    async with wire(site) as line:
        for _ in range(2):
            await line.send(get("/stream"))
            assert b"transfer-encoding: chunked" in await line.head()
            assert await line.body(21) == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"


async def test_who_expects_to_be_told_to_go_on_is_told(site: Site) -> None:
    async with wire(site) as line:
        request = post(b"later", "/echo", "Expect: 100-Continue")
        await line.send(request[:-5])
        assert await line.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await line.send(request[-5:])
        assert (await line.head()).startswith(FOUND)
        assert await line.body(5) == b"later"


@pytest.mark.parametrize(
    "request_",
    [get("/hello", "connection: close"), get("/hello", version="1.0"), get("/stream", version="1.0")],
)
async def test_the_last_request_of_a_connection(site: Site, request_: bytes) -> None:
    async with wire(site) as line:
        await line.send(request_ + get("/hello"))
        answer = await line.rest()
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"connection: close" in answer
    assert answer.endswith((b"hello 127.0.0.1", b"onetwo"))


@pytest.mark.parametrize(
    ("path", "name"), [("/name/a%2Fb%20c", "a/b c"), ("/name/a//b?c", "a//b"), ("http://x/name/d", "d")]
)
async def test_paths(site: Site, path: str, name: str) -> None:
    async with wire(site) as line:
        await line.send(get(path, "connection: close"))
        assert (await line.rest()).endswith(f"\r\n\r\n{name}".encode())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/echo", 405), ("POST", "/hello", 405), ("GET", "/health", 200)],
)
async def test_what_has_no_handler(site: Site, method: str, path: str, status: int) -> None:
    async with httpx.AsyncClient() as http:
        assert (await http.request(method, site.url + path)).status_code == status


@pytest.mark.parametrize(
    "malformed",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: x\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nbroken header\r\n\r\n",
        b"GET nowhere HTTP/1.1\r\nhost: x\r\n\r\n",
        b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /echo HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        # The three ways to hide a second request in the body of a first.
        b"POST /echo HTTP/1.1\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcde",
        b"POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n",
    ],
)
async def test_what_is_no_http_is_refused(site: Site, malformed: bytes) -> None:
    async with wire(site) as line:
        await line.send(malformed + get("/hello"))
        answer = await line.rest()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answer.count(b"HTTP/1.1") == 1


async def test_what_came_before_nonsense_is_answered(site: Site) -> None:
    async with wire(site) as line:
        await line.send(get("/slow") + b"nonsense\r\n\r\n")
        await site.entered.wait()
        site.released.set()
        answer = await line.rest()
    assert answer.index(b"slow") < answer.index(b"HTTP/1.1 400 ")


async def test_another_protocol_is_not_spoken(site: Site) -> None:
    async with wire(site) as line:
        await line.send(get("/hello", "connection: upgrade", "upgrade: h2c") + b"PRI * HTTP/2.0\r\n\r\n")
        answer = await line.rest()
    assert answer.startswith(FOUND)
    assert answer.count(b"HTTP/1.1") == 1


async def test_headers_without_end_are_refused(site: Site) -> None:
    async with wire(site) as line:
        await line.send(b"GET /hello HTTP/1.1\r\nx: " + b"y" * (connection.HEAD_LIMIT + 1))
        assert (await line.rest()).startswith(b"HTTP/1.1 431 ")


async def test_what_comes_behind_a_body_is_limited_too(site: Site) -> None:
    async with wire(site) as line:
        await line.send(post_chunked("/echo") + b"0\r\nx: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(16):
                await line.send(b"y" * connection.HEAD_LIMIT)
        with contextlib.suppress(ConnectionError):
            assert (await line.rest()).startswith(b"HTTP/1.1 431 ")


async def test_nonsense_behind_an_early_answer_is_not_answered(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    async with wire(site) as line:
        await line.send(post_chunked("/deaf") + b"1\r\nx\r\n")
        head = await line.head()
        assert head.startswith(b"HTTP/1.1 413 ")
        assert await line.body(2) == b"no"
        await line.send(b"nonsense\r\n")
        assert await line.rest() == b""
    assert not caplog.records


async def test_a_body_beside_another_protocol_is_not_taken_for_none(site: Site) -> None:
    async with wire(site) as line:
        await line.send(post(b"here", "/echo", "connection: upgrade", "upgrade: h2c"))
        assert (await line.rest()).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("sent", [b"GET /hello HT", get("/hello")[:-2], post(b"x" * 9)[:-1], b""])
async def test_who_is_too_slow_is_cut_off(site: Site, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    for name in ("HEAD_S", "BODY_STALL_S", "KEEP_ALIVE_S"):
        monkeypatch.setattr(connection, name, 0.05)
    monkeypatch.setattr(server, "SWEEP_S", 0.01)
    async with wire(site) as line:
        await line.send(sent)
        assert await line.rest() == b""


@pytest.mark.parametrize("earlier", [b"", get("/stream")])
async def test_who_waits_for_an_answer_is_not_cut_off(
    site: Site, monkeypatch: pytest.MonkeyPatch, earlier: bytes
) -> None:
    for name in ("HEAD_S", "BODY_STALL_S"):
        monkeypatch.setattr(connection, name, 0.05)
    async with wire(site) as line:
        await line.send(earlier + get("/slow"))
        await site.entered.wait()
        # Another one is swept away, so this one would have been.
        async with wire(site) as slow:
            await slow.send(b"GET /hello HT")
            assert await slow.rest() == b""
        site.released.set()
        assert (await line.head()).startswith(FOUND)


async def test_a_handler_learns_that_the_caller_has_left(site: Site) -> None:
    async with wire(site) as line:
        await line.send(get("/watched"))
        await site.entered.wait()
        line.leave()
        async with asyncio.timeout(60):
            await site.left.wait()


async def test_a_caller_who_does_not_read_holds_the_writer_back(site: Site) -> None:
    async with wire(site) as line:
        await line.send(get("/many"))
        await site.entered.wait()
        assert (await line.head()).startswith(FOUND)
        size = 0
        while (length := int(await line.line(), 16)) > 0:
            size += len((await line.body(length + 2))[:-2])
        assert size == 32 * 1024 * 1024


@pytest.mark.parametrize("at_once", [True, False])
async def test_who_does_not_read_answers_gets_no_more_of_them_made(site: Site, at_once: bool) -> None:
    asked = 64
    async with wire(site) as line, httpx.AsyncClient(base_url=site.url) as other:
        for _ in range(1 if at_once else asked):
            await line.send(get("/page") * (asked if at_once else 1))
            await other.get("/hello")
        for _ in range(asked):
            await other.get("/hello")
        assert site.pages < asked / 2
        for _ in range(asked):
            assert (await line.head()).startswith(FOUND)
            await line.body(PAGE)
    assert site.pages == asked


async def test_handlers_end_when_who_does_not_read_has_left(site: Site) -> None:
    async with wire(site) as line:
        await line.send(get("/page") * 64)
        async with httpx.AsyncClient(base_url=site.url) as other:
            for _ in range(64):
                await other.get("/hello")
    # Far below the time that handlers under way would get.
    site.listener._drain_timeout_s = 120
    async with asyncio.timeout(60):
        await site.listener.stop()


@pytest.mark.parametrize("last", ["keep-alive", "close"])
async def test_who_does_not_read_is_cut_off(site: Site, monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    for name in ("BODY_STALL_S", "KEEP_ALIVE_S"):
        monkeypatch.setattr(connection, name, 0.05)
    monkeypatch.setattr(server, "SWEEP_S", 0.01)
    monkeypatch.setitem(globals(), "PAGE", 32 * 1024 * 1024)
    async with wire(site) as line:
        await line.send(get("/page", f"connection: {last}"))
        await site.left.wait()


@pytest.mark.parametrize(("path", "words"), [("/fault", "http_request_failed"), ("/injected", "line break")])
async def test_a_handler_that_fails(
    site: Site, path: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with wire(site) as line:
        await line.send(get(path))
        answer = await line.rest()
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"set-cookie" not in answer
    assert words in caplog.text


async def test_an_answer_that_stops_short_does_not_look_complete(site: Site) -> None:
    async with wire(site) as line:
        await line.send(get("/short"))
        assert (await line.head()).startswith(FOUND)
        assert await line.body(4) == b"1234"
        with contextlib.suppress(ConnectionResetError):
            assert await line.rest() == b""


async def test_a_unix_socket_serves_the_same_and_goes_with_the_listener(site: Site) -> None:
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(site.socket))) as http:
        assert (await http.post("http://x/echo", content=b"here")).content == b"here"
    await site.listener.stop()
    assert not site.socket.exists()


async def test_stopping_lets_answers_finish_and_closes_what_is_idle(site: Site) -> None:
    async with wire(site) as idle, wire(site) as busy:
        await idle.send(get("/hello"))
        await idle.head()
        await idle.body(15)
        await busy.send(get("/slow"))
        await site.entered.wait()
        stopping = asyncio.create_task(site.listener.stop())
        assert await idle.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", site.port)
        assert not stopping.done()
        site.released.set()
        answer = await busy.rest()
        assert answer.endswith(b"slow")
        assert b"connection: close" in answer
        await stopping


async def test_stopping_ends_what_takes_too_long(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.listener._drain_timeout_s = 0.05
    await site.listener.start()
    async with wire(site) as line, asyncio.timeout(60):
        await line.send(get("/slow"))
        await site.entered.wait()
        await site.listener.stop()
        with contextlib.suppress(ConnectionResetError):
            assert await line.rest() == b""


async def test_requests_leave_nothing_to_the_garbage_collector(site: Site) -> None:
    """Collecting what requests leave would stop the process for a twentieth of a second now and then."""
    requests = b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n"
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        async with wire(site) as caller:
            for _ in range(20):
                await caller.send(requests)
                assert await caller.line() == FOUND
                await caller.head()
                await caller.body(len(b"hello 127.0.0.1"))
        async with wire(site) as caller:
            await caller.send(b"GET /watched HTTP/1.1\r\nhost: x\r\n\r\n")
            await site.entered.wait()
        await site.left.wait()
        await asyncio.sleep(0)
        gc.collect()
        assert [each for each in gc.garbage if isinstance(each, HttpRequest)] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
