"""The upstream of slow streams: `python -m bench.paced PORT`.

`POST /paced<milliseconds>/<anything>` answers with one SSE chunk, each in its own write, every so many
milliseconds until the client leaves. One timer per interval writes to all its streams in turn, so that the
server itself costs little.
"""

from __future__ import annotations

import asyncio
import json
import sys

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
READY = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nready"


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

    def __init__(self, paces: dict[str, Pace]) -> None:
        self._paces = paces
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
        path = self._received.split(b" ", 2)[1].decode()
        if not path.startswith("/paced"):
            self._received = b""
            self._transport.write(READY)
            return
        self._answered = True
        milliseconds = path.split("/")[1].removeprefix("paced")
        if milliseconds not in self._paces:
            self._paces[milliseconds] = Pace(int(milliseconds) / 1000)
        self._transport.write(HEAD + EVENTS[0])
        self._paces[milliseconds].add(self._transport)


async def serve(port: int) -> None:
    """Serve until killed."""
    paces: dict[str, Pace] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(paces), "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
