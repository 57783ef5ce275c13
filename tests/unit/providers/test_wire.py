"""Answers cut into any pieces: the same answer comes out, and what is cut short is never taken for whole."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.providers import wire
from services.providers.wire import Head, Wire

BODY = b'{"text": "' + bytes(range(97, 123)) * 40 + b'"}'


class Transport:
    """What a connection is told, kept."""

    def __init__(self) -> None:
        self.closing = False
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def writelines(self, data: Sequence[bytes]) -> None:
        assert data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def answer(body: bytes, *, framing: str, encoding: str = "") -> bytes:
    raw = zlib.compressobj(wbits=-15)
    encoded = {
        "": body,
        "gzip": gzip.compress(body),
        "deflate": zlib.compress(body),
        "deflate, bare": raw.compress(body) + raw.flush(),
    }[encoding]
    lines = [b"HTTP/1.1 200 OK", b"X-Request-Id: r1", b"Content-Type: application/json"]
    if encoding:
        lines.append(b"Content-Encoding: " + encoding.split(",")[0].encode())
    if framing == "length":
        lines.append(b"Content-Length: %d" % len(encoded))
    elif framing == "chunked":
        lines.append(b"Transfer-Encoding: chunked")
        encoded = chunked(encoded, 97)
    return b"\r\n".join(lines) + b"\r\n\r\n" + encoded


class Read:
    """An answer read to its end, or to what broke it."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Any = {}
        self.data = b""
        self.failure: BaseException | None = None
        self.reusable = False


async def read(pieces: Sequence[bytes], *, end: bool) -> Read:
    """Hand an answer to a connection piece by piece, and close it behind if it is to `end`."""
    loop, found, transport = asyncio.get_running_loop(), Read(), Transport()
    connection = Wire(loop)
    connection.connection_made(transport)  # type: ignore[arg-type]
    asked = connection.ask(b"POST / HTTP/1.1\r\n\r\n")

    async def reader() -> None:
        head: Head = await asked
        found.status, found.headers = head.status, head.headers
        while data := await head.body.readany():
            found.data += data

    reading = asyncio.create_task(reader())
    for piece in pieces:
        if connection.transport is None or transport.closing:
            break
        connection.data_received(piece)
        await asyncio.sleep(0)
    found.reusable = not connection.should_close
    if end:
        connection.connection_lost(None)
    try:
        async with asyncio.timeout(60):
            await reading
    except aiohttp.ClientError as error:
        found.failure = error
    return found


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted({place % len(data) for place in places}), len(data)]
    return [data[one:other] for one, other in pairwise(edges) if one < other]


FRAMINGS = ["length", "chunked", "close"]
ENCODINGS = ["", "gzip", "deflate", "deflate, bare"]


@given(
    st.sampled_from(FRAMINGS),
    st.sampled_from(ENCODINGS),
    st.lists(st.integers(0, 5000), max_size=12),
    st.data(),
)
def test_pieces_do_not_matter(framing: str, encoding: str, places: list[int], data: st.DataObject) -> None:
    body = data.draw(st.binary(max_size=3000))
    found = asyncio.run(
        read(cut(answer(body, framing=framing, encoding=encoding), places), end=framing == "close")
    )
    assert found.failure is None
    assert (found.status, found.data, found.headers["x-request-id"]) == (200, body, "r1")
    assert found.reusable == (framing != "close")


@given(st.sampled_from(["length", "chunked"]), st.sampled_from(ENCODINGS), st.integers(0, 5000))
def test_what_is_cut_short_is_no_answer(framing: str, encoding: str, place: int) -> None:
    whole = answer(BODY, framing=framing, encoding=encoding)
    found = asyncio.run(read([whole[: place % len(whole)]], end=True))
    assert isinstance(found.failure, aiohttp.ClientError)
    assert not found.reusable


@pytest.mark.parametrize("encoding", ENCODINGS[1:])
def test_a_compressed_body_cut_short_in_order_is_no_answer(encoding: str) -> None:
    """Its framing is whole: only the compression knows."""
    whole = answer(BODY, framing="close", encoding=encoding)
    found = asyncio.run(read([whole[:-9]], end=True))
    assert isinstance(found.failure, aiohttp.ClientPayloadError)


def test_a_small_body_that_is_huge_is_inflated_as_it_is_read() -> None:
    async def first() -> tuple[bytes, int]:
        connection = Wire(asyncio.get_running_loop())
        connection.connection_made(Transport())  # type: ignore[arg-type]
        asked = connection.ask(b"x")
        connection.data_received(answer(bytes(2**26), framing="length", encoding="gzip"))
        head = await asked
        assert not head.body.is_eof()
        piece = await head.body.readany()
        return piece, len(piece)

    _, size = asyncio.run(first())
    assert 0 < size <= wire.INFLATED


def encoded(data: bytes, encoding: str) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


@given(st.lists(st.integers(0, 200), max_size=6))
def test_a_gzip_answer_of_several_parts_is_read_whole(places: list[int]) -> None:
    parts = gzip.compress(b"first, ") + gzip.compress(b"") + gzip.compress(b"second")
    found = asyncio.run(read(cut(encoded(parts, "gzip"), places), end=False))
    assert (found.data, found.failure) == (b"first, second", None)
    cut_short = asyncio.run(read(cut(encoded(parts[:-3], "gzip"), places), end=False))
    assert isinstance(cut_short.failure, aiohttp.ClientPayloadError)


@pytest.mark.parametrize(("encoding", "made"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_what_follows_a_compressed_answer_breaks_it(encoding: str, made: Callable[[bytes], bytes]) -> None:
    found = asyncio.run(read([encoded(made(BODY) + b"{" * 2**20, encoding)], end=False))
    assert isinstance(found.failure, aiohttp.ClientPayloadError)
    assert "follows" in str(found.failure)


@pytest.mark.parametrize("size", [wire.INFLATED, 20 * wire.INFLATED + 7])
def test_a_huge_answer_without_zlibs_header_is_read_whole(size: int) -> None:
    found = asyncio.run(read([answer(bytes(size), framing="length", encoding="deflate, bare")], end=False))
    assert (len(found.data), found.failure) == (size, None)


def test_reading_stops_ahead_of_a_slow_reader_and_goes_on() -> None:
    async def run() -> tuple[bool, bool]:
        transport = Transport()
        connection = Wire(asyncio.get_running_loop())
        connection.connection_made(transport)  # type: ignore[arg-type]
        asked = connection.ask(b"x")
        connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n")
        connection.data_received(bytes(wire.READ_BUFFER + 1))
        stopped = not transport.reading
        await (await asked).body.readany()
        return stopped, transport.reading

    assert asyncio.run(run()) == (True, True)


@pytest.mark.parametrize(
    "around",
    [
        b"HTTP/1.1 200 OK\r\nX-Endless: " + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 20_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X-Trailer: 1\r\n" * 20_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b"x" * 100_000,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\nnot gzip!",
    ],
    ids=["header", "headers", "trailers", "extension", "upgrade", "encoding", "no gzip"],
)
def test_what_no_answer_has_is_refused(around: bytes) -> None:
    pieces = [around[at : at + 5000] for at in range(0, len(around), 5000)]
    found = asyncio.run(read(pieces, end=False))
    assert isinstance(found.failure, aiohttp.ClientPayloadError)
    assert found.data == b""


def test_a_connection_that_is_gone_fails_the_request() -> None:
    async def run() -> None:
        connection = Wire(asyncio.get_running_loop())
        connection.connection_made(Transport())  # type: ignore[arg-type]
        connection.connection_lost(None)
        await connection.ask(b"x")

    with pytest.raises(aiohttp.ServerDisconnectedError):
        asyncio.run(run())


class Taking:
    """Takes pieces until told otherwise."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.willing = True

    def accept(self, data: bytes) -> bool:
        if data == b"broken":
            raise KeyError("accept is broken")
        if self.willing:
            self.taken.append(data)
        return self.willing


async def offered(taking: Taking, encoding: str = "") -> tuple[Wire, wire.Body, asyncio.Task[bytes]]:
    """Return a connection whose answer has begun, and somebody who waits for what is not taken."""
    connection = Wire(asyncio.get_running_loop())
    connection.connection_made(Transport())  # type: ignore[arg-type]
    asked = connection.ask(b"POST / HTTP/1.1\r\n\r\n")
    encoded = f"Content-Encoding: {encoding}\r\n" if encoding else ""
    connection.data_received(f"HTTP/1.1 200 OK\r\n{encoded}Transfer-Encoding: chunked\r\n\r\n".encode())
    body = (await asked).body
    body.offer_to(taking.accept)
    reading = asyncio.create_task(body.readany())
    await asyncio.sleep(0)
    return connection, body, reading


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_what_is_taken_is_not_read() -> None:
    taking = Taking()
    connection, body, reading = await offered(taking)
    connection.data_received(chunk(b"one"))
    # What comes in one read is offered at once.
    connection.data_received(chunk(b"two") + chunk(b" and ") + chunk(b"three"))
    assert taking.taken == [b"one", b"two and three"]
    taking.willing = False
    connection.data_received(chunk(b"four"))
    taking.willing = True
    connection.data_received(chunk(b"five"))
    assert await reading == b"fourfive", "nothing overtakes what was refused"
    connection.data_received(chunk(b"six"))
    assert await body.readany() == b"six", "nothing is taken while nobody waits"
    reading = asyncio.create_task(body.readany())
    await asyncio.sleep(0)
    connection.data_received(chunk(b"seven") + b"0\r\n\r\n")
    assert await reading == b""
    assert taking.taken[2:] == [b"seven"]
    assert body.at_eof()


async def test_a_fault_of_the_taker_is_the_readers() -> None:
    taking = Taking()
    connection, _, reading = await offered(taking)
    connection.data_received(chunk(b"broken"))
    with pytest.raises(KeyError, match="accept is broken"):
        await reading


async def test_what_is_compressed_is_not_offered() -> None:
    taking = Taking()
    connection, _, reading = await offered(taking, "gzip")
    connection.data_received(chunk(gzip.compress(b"one")))
    assert await reading == b"one"
    assert not taking.taken


async def test_a_cut_behind_what_is_taken_is_told() -> None:
    taking = Taking()
    connection, _, reading = await offered(taking)
    connection.data_received(chunk(b"one") + b"nonsense\r\n")
    assert taking.taken == [b"one"]
    with pytest.raises(aiohttp.ClientPayloadError):
        await reading
