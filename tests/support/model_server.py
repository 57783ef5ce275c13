"""A vendor that behaves: OpenAI- and Anthropic-shaped over HTTP, one model, which repeats what it is told.

A word is a token. Tools that must be called are called, with PARIS as arguments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

MODEL, EMBEDDING_MODEL = "parrot", "hashes"
PARIS = '{"city":"Paris"}'
Json = dict[str, Any]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(block.get("text", "") for block in content)
    return content or ""


def _words(document: Json, limit: int | None) -> tuple[list[str], bool, int]:
    """Return the answer's words, whether it was cut, and the size of the input."""
    said = [_text(message.get("content")) for message in document["messages"]]
    words = said[-1].split(" ")
    return words[:limit], limit is not None and len(words) > limit, sum(len(text.split(" ")) for text in said)


def _pieces(words: list[str]) -> Iterator[str]:
    for number, word in enumerate(words):
        yield word if number == 0 else f" {word}"


async def _stream(request: web.Request, frames: Iterator[bytes]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for frame in frames:
        await response.write(frame)
    return response


async def _list_models(request: web.Request) -> web.Response:
    listed = [{"id": model, "display_name": model} for model in (EMBEDDING_MODEL, MODEL)]
    return web.json_response({"object": "list", "data": listed})


async def _embed(request: web.Request) -> web.Response:
    document = await request.json()
    if document["model"] != EMBEDDING_MODEL:
        return _openai_error("no such model")
    size = document.get("dimensions") or 32
    data = []
    for index, text in enumerate(document["input"]):
        digest = hashlib.shake_128(text.encode()).digest(size)
        data.append({"index": index, "embedding": [byte / 255 - 0.5 for byte in digest]})
    return web.json_response({"data": data, "model": EMBEDDING_MODEL, "usage": {"prompt_tokens": len(data)}})


def _openai_error(message: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "code": "model_not_found", "param": None}
    return web.json_response({"error": error}, status=404)


async def _openai(request: web.Request) -> web.StreamResponse:
    document = await request.json()
    if document["model"] != MODEL:
        return _openai_error("no such model")
    limit = document.get("max_completion_tokens") or document.get("max_tokens")
    words, cut, read = _words(document, limit)
    usage = {"prompt_tokens": read, "completion_tokens": len(words), "total_tokens": read + len(words)}
    calls = []
    if document.get("tool_choice") == "required":
        function = {"name": document["tools"][0]["function"]["name"], "arguments": PARIS}
        calls = [{"index": 0, "id": "call_1", "type": "function", "function": function}]
    finish = "tool_calls" if calls else "length" if cut else "stop"
    head = {"id": "chatcmpl-1", "created": 1, "model": MODEL}
    if not document.get("stream"):
        message = {"role": "assistant", "content": " ".join(words)}
        if calls:
            message = {"role": "assistant", "content": None, "tool_calls": calls}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return web.json_response({**head, "object": "chat.completion", "choices": [choice], "usage": usage})

    def frames() -> Iterator[bytes]:
        deltas: list[Json] = [{"role": "assistant"}]
        deltas += [{"tool_calls": calls}] if calls else [{"content": piece} for piece in _pieces(words)]
        choices: list[list[Json]] = [[{"index": 0, "delta": delta}] for delta in deltas]
        choices.append([{"index": 0, "delta": {}, "finish_reason": finish}])
        for each in choices:
            yield _data({**head, "object": "chat.completion.chunk", "choices": each})
        yield _data({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    return await _stream(request, frames())


async def _anthropic(request: web.Request) -> web.StreamResponse:
    document = await request.json()
    if document["model"] != MODEL:
        error = {"type": "not_found_error", "message": f"model: {document['model']}"}
        return web.json_response({"type": "error", "error": error}, status=404)
    words, cut, read = _words(document, document["max_tokens"])
    block: Json = {"type": "text", "text": " ".join(words)}
    reason = "max_tokens" if cut else "end_turn"
    if (document.get("tool_choice") or {}).get("type") == "any":
        name = document["tools"][0]["name"]
        block = {"type": "tool_use", "id": "toolu_1", "name": name, "input": json.loads(PARIS)}
        reason = "tool_use"
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "stop_sequence": None}
    usage = {"input_tokens": read, "output_tokens": len(words)}
    if not document.get("stream"):
        return web.json_response({**head, "content": [block], "stop_reason": reason, "usage": usage})

    def frames() -> Iterator[bytes]:
        message = {**head, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
        yield _event({"type": "message_start", "message": message})
        if block["type"] == "text":
            start, deltas = (
                {"type": "text", "text": ""},
                [("text_delta", "text", each) for each in _pieces(words)],
            )
        else:
            start, deltas = {**block, "input": {}}, [("input_json_delta", "partial_json", PARIS)]
        yield _event({"type": "content_block_start", "index": 0, "content_block": start})
        for kind, field, piece in deltas:
            yield _event({"type": "content_block_delta", "index": 0, "delta": {"type": kind, field: piece}})
        yield _event({"type": "content_block_stop", "index": 0})
        delta = {"stop_reason": reason, "stop_sequence": None}
        yield _event({"type": "message_delta", "delta": delta, "usage": {"output_tokens": len(words)}})
        yield _event({"type": "message_stop"})

    return await _stream(request, frames())


async def _count_tokens(request: web.Request) -> web.Response:
    _, _, read = _words(await request.json(), None)
    return web.json_response({"input_tokens": read})


def _data(document: Json) -> bytes:
    return b"data: %b\n\n" % json.dumps(document).encode()


def _event(document: Json) -> bytes:
    return b"event: %b\n%b" % (document["type"].encode(), _data(document))


def add_routes(application: web.Application) -> None:
    """Add the paths of the formats that callers speak."""
    application.router.add_get("/v1/models", _list_models)
    application.router.add_post("/v1/embeddings", _embed)
    application.router.add_post("/v1/chat/completions", _openai)
    application.router.add_post("/v1/messages", _anthropic)
    application.router.add_post("/v1/messages/count_tokens", _count_tokens)


@asynccontextmanager
async def running_model_server() -> AsyncIterator[str]:
    """Run the vendor on a free port of 127.0.0.1 and return its URL."""
    application = web.Application(client_max_size=2**27)
    add_routes(application)
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
