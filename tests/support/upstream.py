"""A provider to test the whole suite against: OpenAI- and Anthropic-shaped, over HTTP, in its own thread.

The model's name says how it behaves, so that many tests can share one server:

    gpt-x, claude-y     answers with ANSWER
    paced-<n>-<ms>      a stream of n words, ms milliseconds apart
    endless             a stream until the caller hangs up
    gated               a stream that stops after its first word until `open_gate`
    cut                 a stream whose connection breaks after three words
    fail-<status>       an error with that status

Anything else is answered as gpt-x is. Every request is kept in `requests`, with what became of it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

ANSWER = "Forty-two is the answer to everything."
INPUT_TOKENS = 11
OUTPUT_TOKENS = 7
TOOL_ARGUMENTS = '{"city": "Paris",  "unit":"C"}'
WAIT_S = 30.0


class CutError(Exception):
    """The connection is to break here."""


@dataclass
class Seen:
    """A request, and how it ended: open, done, left (the caller hung up) or cut."""

    path: str
    headers: dict[str, str]
    body: bytes
    state: str = "open"

    @property
    def document(self) -> dict[str, Any]:
        """Return the body as JSON."""
        document: dict[str, Any] = json.loads(self.body)
        return document


class Upstream:
    """The running server. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Seen] = []
        self._changed = threading.Condition()
        self._gate = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._stopping = asyncio.Event()

    def seen(self, marker: str) -> list[Seen]:
        """Return the requests whose body contains `marker`."""
        return [seen for seen in list(self.requests) if marker.encode() in seen.body]

    def open_count(self) -> int:
        """Return how many requests are being answered."""
        return sum(seen.state == "open" for seen in list(self.requests))

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> bool:
        """Wait until `condition` holds, looking whenever a request comes or ends. Tells whether it does."""
        with self._changed:
            return self._changed.wait_for(condition, timeout_s)

    def open_gate(self) -> None:
        """Let all gated streams go on."""
        self._loop.call_soon_threadsafe(self._gate.set)

    def close_gate(self) -> None:
        """Stop gated streams that begin from now on."""
        self._loop.call_soon_threadsafe(self._gate.clear)

    def _change(self, seen: Seen, state: str) -> None:
        with self._changed:
            seen.state = state
            if state == "open":
                self.requests.append(seen)
            self._changed.notify_all()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(request.path, dict(request.headers), await request.read())
        self._change(seen, "open")
        shape = _Anthropic(seen.document) if request.path.endswith("/messages") else _OpenAI(seen.document)
        try:
            response = await self._answer(shape, request)
        except CutError:
            self._change(seen, "cut")
            assert request.transport is not None
            request.transport.abort()
            raise
        except (asyncio.CancelledError, ConnectionError):
            self._change(seen, "left")
            raise
        self._change(seen, "done")
        return response

    async def _answer(self, shape: _Shape, request: web.Request) -> web.StreamResponse:
        if shape.model.startswith("fail-"):
            status = int(shape.model.removeprefix("fail-"))
            return web.json_response(shape.error(f"told to fail with {status}"), status=status)
        if not shape.document.get("stream"):
            words = [word async for word in self._words(shape.model)]
            return web.json_response(shape.whole("".join(words)))
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(shape.first())
        async for word in self._words(shape.model):
            await response.write(shape.word(word))
        await response.write(shape.last())
        return response

    async def _words(self, model: str) -> AsyncIterator[str]:
        kind, *numbers = model.split("-")
        if kind == "paced":
            count, gap_ms = map(int, numbers)
            for number in range(count):
                yield f"word{number} "
                await asyncio.sleep(gap_ms / 1000)
            return
        while kind == "endless":
            yield "more "
            await asyncio.sleep(0.02)
        for number, word in enumerate(ANSWER.split(" ")):
            if kind == "gated" and number == 1:
                await self._gate.wait()
            if kind == "cut" and number == 3:
                raise CutError
            yield word if number == 0 else f" {word}"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        application = web.Application(client_max_size=2**27)
        application.router.add_post("/{path:.*}", self.handle)
        runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._listening.set()
        await self._stopping.wait()
        await runner.cleanup()

    def start(self) -> None:
        """Listen on a free port."""
        self._thread = threading.Thread(target=self._run, name="upstream", daemon=True)
        self._thread.start()
        assert self._listening.wait(WAIT_S)

    def stop(self) -> None:
        """Stop, cutting what is open."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(WAIT_S)


class _Shape:
    """How a vendor words an answer to `document`."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.model = str(document.get("model"))

    def error(self, message: str) -> dict[str, Any]:
        raise NotImplementedError

    def whole(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def first(self) -> bytes:
        raise NotImplementedError

    def word(self, word: str) -> bytes:
        raise NotImplementedError

    def last(self) -> bytes:
        raise NotImplementedError


class _OpenAI(_Shape):
    USAGE = {
        "prompt_tokens": INPUT_TOKENS,
        "completion_tokens": OUTPUT_TOKENS,
        "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
    }

    def error(self, message: str) -> dict[str, Any]:
        return {"error": {"message": message, "type": "server_error", "param": None, "code": None}}

    def whole(self, text: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        finish = "stop"
        if self.document.get("tools"):
            finish = "tool_calls"
            message = {"role": "assistant", "content": None, "tool_calls": [self._call()]}
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self.USAGE}

    def first(self) -> bytes:
        delta: dict[str, Any] = {"role": "assistant", "content": ""}
        if self.document.get("tools"):
            delta = {"role": "assistant", "tool_calls": [{"index": 0, **self._call()}]}
        return self._chunk([{"index": 0, "delta": delta, "finish_reason": None}])

    def word(self, word: str) -> bytes:
        if self.document.get("tools"):
            return b""
        return self._chunk([{"index": 0, "delta": {"content": word}, "finish_reason": None}])

    def last(self) -> bytes:
        finish = "tool_calls" if self.document.get("tools") else "stop"
        data = self._chunk([{"index": 0, "delta": {}, "finish_reason": finish}])
        if (self.document.get("stream_options") or {}).get("include_usage"):
            data += self._chunk([], usage=self.USAGE)
        return data + b"data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": kind, "created": 1_700_000_000, "model": self.model}

    def _call(self) -> dict[str, Any]:
        name = self.document["tools"][0]["function"]["name"]
        return {
            "id": "call_1",
            "type": "function",
            "function": {"name": name, "arguments": TOOL_ARGUMENTS},
        }

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        document = {**self._head("chat.completion.chunk"), "choices": choices, **more}
        return b"data: %b\n\n" % json.dumps(document).encode()


class _Anthropic(_Shape):
    def error(self, message: str) -> dict[str, Any]:
        return {"type": "error", "error": {"type": "api_error", "message": message}}

    def whole(self, text: str) -> dict[str, Any]:
        usage = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS}
        content: dict[str, Any] = {"type": "text", "text": text}
        if self.document.get("tools"):
            name = self.document["tools"][0]["name"]
            content = {"type": "tool_use", "id": "toolu_1", "name": name, "input": json.loads(TOOL_ARGUMENTS)}
        reason = "tool_use" if self.document.get("tools") else "end_turn"
        return {**self._head(), "content": [content], "stop_reason": reason, "usage": usage}

    def first(self) -> bytes:
        message = {**self._head(), "content": [], "usage": {"input_tokens": INPUT_TOKENS, "output_tokens": 1}}
        block = {"type": "text", "text": ""}
        return self._event({"type": "message_start", "message": message}) + self._event(
            {"type": "content_block_start", "index": 0, "content_block": block}
        )

    def word(self, word: str) -> bytes:
        delta = {"type": "text_delta", "text": word}
        return self._event({"type": "content_block_delta", "index": 0, "delta": delta})

    def last(self) -> bytes:
        end = {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": OUTPUT_TOKENS},
        }
        stop = {"type": "content_block_stop", "index": 0}
        return self._event(stop) + self._event(end) + self._event({"type": "message_stop"})

    def _head(self) -> dict[str, Any]:
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _event(self, document: dict[str, Any]) -> bytes:
        return b"event: %b\ndata: %b\n\n" % (document["type"].encode(), json.dumps(document).encode())


@contextmanager
def running_upstream() -> Iterator[Upstream]:
    """Run an upstream on a free port of 127.0.0.1."""
    upstream = Upstream()
    upstream.start()
    try:
        yield upstream
    finally:
        upstream.stop()
