"""The upstream of slow streams: `python -m bench.paced MILLISECONDS:PORT ...`.

A POST is answered with one SSE chunk, each in its own write, every so many milliseconds until the client
leaves. On a port with 0 milliseconds the path says how many: `/paced<milliseconds>/<anything>`. One timer per
interval writes to all its streams in turn, so that the server itself costs little.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys

from bench.payload import models

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def plain(body: str) -> bytes:
    """Return a whole answer of JSON."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def event(word: str) -> bytes:
    """Return one content chunk as OpenAI writes it, framed for HTTP."""
    chunk = {
        "id": "chatcmpl-bench",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "gpt-bench",
        "choices": [{"index": 0, "delta": {"content": f" {word}"}, "finish_reason": None}],
        "usage": None,
    }
    data = f"data: {json.dumps(chunk)}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


# Not always the same one: LiteLLM ends a stream that repeats itself.
EVENTS = [event(word) for word in ("one", "two", "six", "ten")]


class Pace:
    """Writes one event to each of its streams per interval, spread over the interval."""

    SLOTS = 20

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._slots: list[set[asyncio.Transport]] = [set() for _ in range(self.SLOTS)]
        self._next = self._ticks = 0
        asyncio.get_running_loop().call_soon(self._tick, asyncio.get_running_loop().time())

    def add(self, stream: asyncio.Transport) -> None:
        """Begin to write to a stream."""
        min(self._slots, key=len).add(stream)

    def _tick(self, due: float) -> None:
        slot = self._slots[self._next]
        self._next = (self._next + 1) % self.SLOTS
        for stream in [stream for stream in slot if stream.is_closing()]:
            slot.discard(stream)
        self._ticks += 1
        chunk = EVENTS[self._ticks // self.SLOTS % len(EVENTS)]
        for stream in slot:
            stream.write(chunk)
        following = due + self._interval_s / self.SLOTS
        asyncio.get_running_loop().call_at(following, self._tick, following)


class Connection(asyncio.Protocol):
    """One request; what follows on the connection is not looked at."""

    def __init__(self, paces: dict[int, Pace], milliseconds: int) -> None:
        self._paces = paces
        self._milliseconds = milliseconds
        self._received = b""
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to answer on."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer once the head has arrived; bodies are ignored."""
        self._received += data
        if self._answered or b"\r\n\r\n" not in self._received:
            return
        method, path = self._received.decode().split(" ", 2)[:2]
        if method != "POST":
            self._received = b""
            self._transport.write(plain(models(f"paced{self._milliseconds}")))
            return
        self._answered = True
        milliseconds = self._milliseconds or int(path.split("/")[1].removeprefix("paced"))
        if milliseconds not in self._paces:
            self._paces[milliseconds] = Pace(milliseconds / 1000)
        self._transport.write(HEAD + EVENTS[0])
        self._paces[milliseconds].add(self._transport)


async def serve(ports: list[tuple[int, int]]) -> None:
    """Serve until killed."""
    paces: dict[int, Pace] = {}
    loop = asyncio.get_running_loop()
    for milliseconds, port in ports:
        connection = functools.partial(Connection, paces, milliseconds)
        await loop.create_server(connection, "127.0.0.1", port, backlog=2048)
    await loop.create_future()


if __name__ == "__main__":
    pairs = [text.split(":") for text in sys.argv[1:]]
    asyncio.run(serve([(int(milliseconds), int(port)) for milliseconds, port in pairs]))
