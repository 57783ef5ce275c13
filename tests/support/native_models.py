"""The vendor of model_server.py in the formats that no caller speaks, and OpenAI's responses.

One model, which repeats what it is told, a word a token; tools that must be called are called.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.support import event_stream, wire, wire_bedrock
from tests.support.fault_server import sse
from tests.support.model_server import MODEL, PARIS, add_routes
from tests.support.vendors import answers

CLAUDE, TITAN, TITAN_EMBED = (
    "anthropic.parrot-v1:0",
    "amazon.titan-text-parrot-v1",
    "amazon.titan-embed-text-v2:0",
)
_MODELS = web.AppKey("models", tuple[str, ...])
Json = dict[str, Any]


@dataclass(frozen=True)
class Said:
    """What the model says to a request."""

    words: Sequence[str]
    cut: bool
    read: int
    call: str = ""
    """The tool that must be called."""

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def pieces(self) -> list[str]:
        return [word if number == 0 else f" {word}" for number, word in enumerate(self.words)]


def _say(texts: Sequence[str], limit: int | None, call: str = "") -> Said:
    words = texts[-1].split(" ")
    read = sum(len(text.split(" ")) for text in texts)
    return Said(words[:limit], limit is not None and len(words) > limit, read, call)


async def _send(request: web.Request, content_type: str, frames: Iterator[bytes]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": content_type})
    await response.prepare(request)
    for frame in frames:
        await response.write(frame)
    return response


def _vector(text: str, size: int | None) -> list[float]:
    return [byte / 255 - 0.5 for byte in hashlib.shake_128(text.encode()).digest(size or 32)]


# --- Gemini ----------------------------------------------------------------------------------------


async def _gemini(request: web.Request) -> web.StreamResponse:
    model, _, operation = request.match_info["what"].partition(":")
    document = await request.json()
    if model not in {MODEL, "hashes"}:
        error = {"code": 404, "message": f"models/{model} is not found", "status": "NOT_FOUND"}
        return web.json_response({"error": error}, status=404)
    if operation == "batchEmbedContents":
        wanted = document["requests"]
        vectors = [
            {"values": _vector(each["content"]["parts"][0]["text"], each.get("outputDimensionality"))}
            for each in wanted
        ]
        usage = {"promptTokenCount": len(wanted)}
        return web.json_response({"embeddings": vectors, "usageMetadata": usage})
    if operation == "countTokens":
        document = document["generateContentRequest"]
        counted = [_gemini_text(content) for content in document["contents"]]
        return web.json_response({"totalTokens": len(" ".join(counted).split())})
    config = document.get("toolConfig", {}).get("functionCallingConfig", {})
    call = ""
    if config.get("mode") == "ANY":
        call = document["tools"][0]["functionDeclarations"][0]["name"]
    texts = [_gemini_text(content) for content in document["contents"]]
    said = _say(texts, document.get("generationConfig", {}).get("maxOutputTokens"), call)
    documents = list(_gemini_chunks(said))
    if operation == "generateContent":
        parts = [part for each in documents for part in each["candidates"][0]["content"]["parts"]]
        last = documents[-1]
        candidate = {**last["candidates"][0], "content": {"role": "model", "parts": parts}}
        return web.json_response({**last, "candidates": [candidate]})
    return await _send(request, "text/event-stream", iter([sse(each) for each in documents]))


def _gemini_text(content: Json) -> str:
    return " ".join(part.get("text") or json.dumps(part) for part in content["parts"])


def _gemini_chunks(said: Said) -> Iterator[Json]:
    usage = {"promptTokenCount": said.read, "candidatesTokenCount": len(said.words)}
    head = {"modelVersion": MODEL, "responseId": "resp-1", "usageMetadata": usage}
    parts: list[Json] = [{"text": piece} for piece in said.pieces]
    if said.call:
        parts = [{"functionCall": {"name": said.call, "args": json.loads(PARIS)}}]
    for part in parts:
        yield {**head, "candidates": [{"index": 0, "content": {"role": "model", "parts": [part]}}]}
    content = {"role": "model", "parts": [{"text": ""}]}
    reason = "MAX_TOKENS" if said.cut else "STOP"
    yield {**head, "candidates": [{"index": 0, "content": content, "finishReason": reason}]}


async def _gemini_models(request: web.Request) -> web.Response:
    return web.json_response({"models": [{"name": f"models/{each}"} for each in ("hashes", MODEL)]})


# --- Ollama ----------------------------------------------------------------------------------------


async def _ollama(request: web.Request) -> web.StreamResponse:
    document = await request.json()
    if document["model"] != MODEL:
        message = f'model "{document["model"]}" not found, try pulling it first'
        return web.json_response({"error": message}, status=404)
    texts = [message["content"] for message in document["messages"]]
    said = _say(texts, document.get("options", {}).get("num_predict"))
    head = {"model": MODEL, "created_at": "2026-01-01T00:00:00Z"}
    done = {"done": True, "done_reason": "length" if said.cut else "stop"}
    done |= {"prompt_eval_count": said.read, "eval_count": len(said.words)}
    if not document.get("stream"):
        return web.json_response({**head, "message": {"role": "assistant", "content": said.text}, **done})

    def lines() -> Iterator[bytes]:
        for piece in said.pieces:
            message = {"role": "assistant", "content": piece}
            yield json.dumps({**head, "message": message, "done": False}).encode() + b"\n"
        yield json.dumps({**head, "message": {"role": "assistant", "content": ""}, **done}).encode() + b"\n"

    return await _send(request, "application/x-ndjson", lines())


async def _ollama_embed(request: web.Request) -> web.Response:
    document = await request.json()
    if document["model"] != "hashes":
        return web.json_response({"error": "model not found, try pulling it first"}, status=404)
    vectors = [_vector(text, document.get("dimensions")) for text in document["input"]]
    return web.json_response({"model": "hashes", "embeddings": vectors, "prompt_eval_count": len(vectors)})


async def _ollama_models(request: web.Request) -> web.Response:
    return web.json_response({"models": [{"name": each, "model": each} for each in ("hashes", MODEL)]})


# --- Bedrock ---------------------------------------------------------------------------------------


async def _bedrock(request: web.Request) -> web.StreamResponse:
    model, operation = request.match_info["model"], request.match_info["operation"]
    document = await request.json()
    if operation == "count-tokens" and model in (CLAUDE, TITAN):
        return web.json_response({"inputTokens": len(json.dumps(document["input"]).split())})
    if model == CLAUDE and operation.startswith("converse"):
        return await _converse(request, document, stream=operation == "converse-stream")
    if model == TITAN and operation.startswith("invoke"):
        return await _titan(request, document, stream=operation != "invoke")
    if model == TITAN_EMBED and operation == "invoke":
        vector = _vector(document["inputText"], document.get("dimensions"))
        return web.json_response({"embedding": vector, "inputTextTokenCount": 1})
    named = {"x-amzn-ErrorType": "ValidationException:http://x/"}
    said = {"message": "The provided model identifier is invalid."}
    return web.json_response(said, status=400, headers=named)


async def _converse(request: web.Request, document: Json, stream: bool) -> web.StreamResponse:
    tools = document.get("toolConfig", {})
    call = tools["tools"][0]["toolSpec"]["name"] if "any" in tools.get("toolChoice", {}) else ""
    texts = [
        " ".join(block.get("text") or json.dumps(block) for block in message["content"])
        for message in document["messages"]
    ]
    said = _say(texts, document.get("inferenceConfig", {}).get("maxTokens"), call)
    reason = "tool_use" if call else "max_tokens" if said.cut else "end_turn"
    out = len(said.words)
    usage = {"inputTokens": said.read, "outputTokens": out, "totalTokens": said.read + out}
    block: Json = {"text": said.text}
    if call:
        block = {"toolUse": {"toolUseId": "t1", "name": call, "input": json.loads(PARIS)}}
    if not stream:
        message = {"role": "assistant", "content": [block]}
        return web.json_response({"output": {"message": message}, "stopReason": reason, "usage": usage})

    def events() -> Iterator[tuple[str, Json]]:
        yield "messageStart", {"role": "assistant"}
        if call:
            start = {"toolUse": {"toolUseId": "t1", "name": call}}
            yield "contentBlockStart", {"contentBlockIndex": 0, "start": start}
            yield "contentBlockDelta", {"contentBlockIndex": 0, "delta": {"toolUse": {"input": PARIS}}}
        else:
            for piece in said.pieces:
                yield "contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": piece}}
        yield "contentBlockStop", {"contentBlockIndex": 0}
        yield "messageStop", {"stopReason": reason}
        yield "metadata", {"usage": usage, "metrics": {"latencyMs": 1}}

    frames = (event_stream.event(name, payload) for name, payload in events())
    return await _send(request, event_stream.CONTENT_TYPE, frames)


async def _titan(request: web.Request, document: Json, stream: bool) -> web.StreamResponse:
    prompt = document["inputText"].removesuffix("\nBot:").rpartition("User: ")[2]
    said = _say([prompt], document.get("textGenerationConfig", {}).get("maxTokenCount"))
    reason = "LENGTH" if said.cut else "FINISH"
    if not stream:
        result = {"tokenCount": len(said.words), "outputText": said.text, "completionReason": reason}
        return web.json_response({"inputTextTokenCount": said.read, "results": [result]})
    chunks: list[Json] = [
        {"outputText": piece, "inputTextTokenCount": said.read, "completionReason": None}
        for piece in said.pieces
    ]
    chunks[-1] |= {"completionReason": reason, "totalOutputTextTokenCount": len(said.words)}
    frames = (event_stream.frames(wire_bedrock.titan_chunk(chunk)) for chunk in chunks)
    return await _send(request, event_stream.CONTENT_TYPE, frames)


async def _bedrock_models(request: web.Request) -> web.Response:
    models = request.app[_MODELS]
    return web.json_response({"modelSummaries": [{"modelId": each, "modelName": each} for each in models]})


# --- OpenAI's responses ----------------------------------------------------------------------------


async def _responses(request: web.Request) -> web.StreamResponse:
    document = await request.json()
    if document["model"] != MODEL:
        error = {"message": "no such model", "type": "invalid_request_error", "code": "model_not_found"}
        return web.json_response({"error": error}, status=400)
    given = document["input"]
    texts = [given] if isinstance(given, str) else [_item_text(item) for item in given]
    said = _say(texts, document.get("max_output_tokens"))
    item: str | answers.Called = said.text
    if document.get("tool_choice") == "required":
        item = answers.Called(document["tools"][0]["name"], PARIS, "call_1")
    made = answers.responses([item])
    usage = {**wire.RESPONSES_USAGE, "input_tokens": said.read, "output_tokens": len(said.words)}
    usage |= {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    ended = {**made.whole, "model": MODEL, "usage": usage}
    kind = "response.completed"
    if said.cut:
        ended |= {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        kind = "response.incomplete"
    if not document.get("stream"):
        return web.json_response(ended)
    first, *middle, last = made.frames
    first = {**first, "response": {**first["response"], "model": MODEL}}
    events = [first, *middle, {**last, "type": kind, "response": ended}]
    return await _send(request, "text/event-stream", iter([sse(each, event=True) for each in events]))


def _item_text(item: Json) -> str:
    content = item.get("content", item.get("output", ""))
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


async def _key(_: web.Request) -> web.Response:
    return web.json_response({"data": {"label": "a key", "limit": None}})


async def _feature_extraction(request: web.Request) -> web.Response:
    if request.match_info["model"] != "hashes":
        return web.json_response({"error": "Model does not exist"}, status=404)
    return web.json_response([_vector(text, None) for text in (await request.json())["inputs"]])


@asynccontextmanager
async def running_native_models(*bedrock: str) -> AsyncIterator[str]:
    """Run the vendor in every format on a free port of 127.0.0.1; `bedrock` are the models it lists there."""
    application = web.Application(client_max_size=2**27)
    application[_MODELS] = bedrock
    add_routes(application)
    router = application.router
    router.add_post("/v1/responses", _responses)
    router.add_get("/v1/key", _key)
    router.add_get("/v1beta/models", _gemini_models)
    router.add_post("/v1beta/models/{what}", _gemini)
    router.add_get("/api/tags", _ollama_models)
    router.add_post("/api/chat", _ollama)
    router.add_post("/api/embed", _ollama_embed)
    router.add_post("/hf-inference/models/{model}/pipeline/feature-extraction", _feature_extraction)
    router.add_get("/foundation-models", _bedrock_models)
    router.add_post("/model/{model}/{operation}", _bedrock)
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
