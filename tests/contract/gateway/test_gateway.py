"""The facade as the vendors' own clients see it, over a real HTTP server."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import struct
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import pytest_asyncio
from omnihub.common.v1.chat_pb2 import ParameterReceipt, WireFormat
from omnihub.router.v1 import router_service_pb2 as pb
from omnihub.router.v1.model_pb2 import Model

from services.common.rpc import RpcError
from services.common.rpc.errors import Violation
from tests.support.fakes import events
from tests.support.gateway import (
    BODY_LIMIT,
    KEY,
    Facade,
    an_outcome,
    broken,
    ended,
    raw_frame,
    running_facade,
    started,
    text_events,
    tool_events,
)

OPENAI = WireFormat.WIRE_FORMAT_OPENAI_CHAT
ANTHROPIC = WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES
CHAT = "/v1/chat/completions"
MESSAGES: Any = [{"role": "user", "content": "hello"}]
BODY = {"model": "m", "messages": MESSAGES}
COMPLETION = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "x",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
}
MESSAGE = {
    "id": "m1",
    "type": "message",
    "role": "assistant",
    "model": "x",
    "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 10, "output_tokens": 5},
}


def raw_answer(document: Any, **outcome: Any) -> pb.ChatResponse:
    return pb.ChatResponse(raw_body=json.dumps(document).encode(), outcome=an_outcome(**outcome))


def chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    document = {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "x",
        "choices": [choice],
    }
    return json.dumps(document).encode()


# One server for all: stopping one takes a tenth of a second.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Facade]:
    async with running_facade(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture
def facade(server: Facade) -> Facade:
    server.router.reset()
    return server


@pytest_asyncio.fixture(loop_scope="module")
async def http(facade: Facade) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=facade.url, headers=headers, timeout=10) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def client(facade: Facade) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{facade.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def claude(facade: Facade) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=facade.url, api_key=KEY, max_retries=0) as made:
        yield made


async def test_openai_answer(facade: Facade, client: openai.AsyncOpenAI) -> None:
    facade.router.answer = raw_answer(COMPLETION, savings_estimate="0.001")
    response = await client.chat.completions.with_raw_response.create(
        model="m", messages=MESSAGES, max_tokens=9, extra_body={"unknown_field": [1]}
    )
    assert response.parse().choices[0].message.content == "hi"
    headers = response.headers
    assert headers["x-omnihub-request-id"].startswith("req_")
    assert headers["x-omnihub-decision-id"] == "dec_1"
    assert (headers["x-omnihub-model"], headers["x-omnihub-provider"]) == ("a/x", "a")
    assert (headers["x-omnihub-cost"], headers["x-omnihub-savings"]) == ("0.00002", "0.001")
    assert "x-omnihub-receipt" not in headers
    [request] = facade.router.requests
    assert json.loads(request.raw_body)["unknown_field"] == [1]
    assert (request.chat.model, request.chat.max_tokens, request.wire_format) == ("m", 9, OPENAI)
    [call] = facade.router.calls
    assert (call.identity.organisation_id, call.request_id) == ("org_1", headers["x-omnihub-request-id"])


def ask_synchronously(url: str) -> tuple[str | None, str]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        whole = client.chat.completions.create(model="m", messages=MESSAGES)
        with client.chat.completions.create(model="m", messages=MESSAGES, stream=True) as stream:
            pieces = [piece.choices[0].delta.content or "" for piece in stream if piece.choices]
    return whole.choices[0].message.content, "".join(pieces)


async def test_openai_synchronous_client(facade: Facade) -> None:
    facade.router.answer = raw_answer(COMPLETION)
    facade.router.events = events(started(), *text_events("h", "i"), ended())
    assert await asyncio.to_thread(ask_synchronously, facade.url) == ("hi", "hi")


async def test_openai_typed_stream(facade: Facade, client: openai.AsyncOpenAI) -> None:
    facade.router.events = events(started(), *text_events("he", "llo"), ended())
    stream = await client.chat.completions.create(
        model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [piece async for piece in stream]
    assert "".join(piece.choices[0].delta.content or "" for piece in chunks if piece.choices) == "hello"
    finish = next(piece for piece in chunks if piece.choices and piece.choices[0].finish_reason)
    assert finish.choices[0].finish_reason == "stop"
    facts = finish.model_extra["omnihub"]
    assert (facts["cost"], facts["decision_id"], facts["state"]) == ("0.00002", "dec_1", "complete")
    assert chunks[-1].usage.total_tokens == 15
    assert stream.response.headers["x-omnihub-model"] == "a/x"
    assert facade.router.requests[0].options.include_usage


async def test_openai_raw_stream(facade: Facade, client: openai.AsyncOpenAI) -> None:
    frames = [raw_frame(b"data: " + chunk(text) + b"\n\n") for text in ("he", "llo")]
    facade.router.events = events(started(OPENAI), *frames, ended(chunk("", "stop")))
    stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    chunks = [piece async for piece in stream]
    assert "".join(piece.choices[0].delta.content or "" for piece in chunks) == "hello"
    assert chunks[-1].model_extra["omnihub"]["cost"] == "0.00002"
    assert len(chunks) == 3


async def test_openai_streamed_tool_call(facade: Facade, client: openai.AsyncOpenAI) -> None:
    facade.router.events = events(started(), *tool_events("weather", '{"ci', 'ty":"Rome"}'), ended())
    stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    calls = [
        call async for piece in stream for choice in piece.choices for call in choice.delta.tool_calls or ()
    ]
    assert calls[0].function is not None
    assert (calls[0].id, calls[0].function.name) == ("call_1", "weather")
    assert "".join(call.function.arguments or "" for call in calls if call.function) == '{"city":"Rome"}'


@pytest.mark.parametrize(
    ("reason", "kind", "code"),
    [
        ("INVALID_ARGUMENT", openai.BadRequestError, "invalid_value"),
        ("INSUFFICIENT_CREDITS", openai.APIStatusError, "insufficient_credits"),
        ("MODEL_NOT_ALLOWED", openai.PermissionDeniedError, "model_not_allowed"),
        ("MODEL_NOT_FOUND", openai.NotFoundError, "model_not_found"),
        ("PROVIDER_RATE_LIMITED", openai.RateLimitError, "provider_rate_limited"),
        ("UNAVAILABLE", openai.InternalServerError, "service_unavailable"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_openai_errors(
    facade: Facade,
    client: openai.AsyncOpenAI,
    reason: str,
    kind: type[openai.APIStatusError],
    code: str,
    stream: bool,
) -> None:
    error = RpcError(reason, "what to do", retry_after_s=2.6, violations=[Violation("model", "wrong")])
    facade.router.answer = error
    facade.router.events = events(error)
    with pytest.raises(kind) as caught:
        await client.chat.completions.create(model="m", messages=MESSAGES, stream=stream)
    assert caught.value.status_code == error.row.http
    assert caught.value.response.headers["retry-after"] == "3"
    body: Any = caught.value.body
    assert (body["message"], body["param"]) == ("what to do", "model")
    assert body["code"] == error.row.openai_code
    assert code in (body["code"], "invalid_value")


@pytest.mark.parametrize("raw", [False, True])
async def test_openai_stream_that_breaks(facade: Facade, client: openai.AsyncOpenAI, raw: bool) -> None:
    body = [raw_frame(b"data: " + chunk("he") + b"\n\n")] if raw else text_events("he")
    failure = RpcError("PROVIDER_FAILED", "it broke")
    facade.router.events = events(started(OPENAI if raw else 0), *body, broken("PROVIDER_FAILED"), failure)
    stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="it broke"):
        async for _ in stream:
            pass


async def test_broken_stream_on_the_wire(facade: Facade, http: httpx.AsyncClient) -> None:
    failure = RpcError("STREAM_TRUNCATED", "it broke")
    facade.router.events = events(started(), *text_events("he"), broken("STREAM_TRUNCATED"), failure)
    response = await http.post(CHAT, json={**BODY, "stream": True})
    assert "[DONE]" not in response.text
    last = json.loads(response.text.strip().rsplit("data: ", 1)[1])
    assert last["error"]["code"] == "stream_truncated"
    assert last["omnihub"]["state"] == "upstream_error"
    assert last["omnihub"]["usage"] == {"input_tokens": 10, "output_tokens": 5, "estimated": False}


async def test_stream_that_just_stops_is_not_complete(facade: Facade, http: httpx.AsyncClient) -> None:
    facade.router.events = events(started(), *text_events("he"))
    response = await http.post(CHAT, json={**BODY, "stream": True})
    assert "[DONE]" not in response.text
    assert "stream_truncated" in response.text


async def test_fault_in_the_middle_of_a_stream(facade: Facade, http: httpx.AsyncClient) -> None:
    facade.router.events = events(started(), *text_events("he"), KeyError("secret"))
    response = await http.post(CHAT, json={**BODY, "stream": True})
    assert "[DONE]" not in response.text
    assert "internal_error" in response.text
    assert "secret" not in response.text


async def test_anthropic_answer(facade: Facade, claude: anthropic.AsyncAnthropic) -> None:
    facade.router.answer = raw_answer(MESSAGE)
    message = await claude.messages.create(model="m", max_tokens=9, messages=MESSAGES)
    assert message.content[0].type == "text"
    assert message.content[0].text == "hi"
    [request] = facade.router.requests
    assert request.wire_format == ANTHROPIC
    assert "anthropic-version" in request.options.headers
    assert "x-api-key" not in request.options.headers


async def test_anthropic_stream(facade: Facade, claude: anthropic.AsyncAnthropic) -> None:
    facade.router.events = events(started(), *text_events("he", "llo"), ended())
    async with claude.messages.stream(model="m", max_tokens=9, messages=MESSAGES) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        message = await stream.get_final_message()
    assert text == "hello"
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 5)


async def test_anthropic_errors(facade: Facade, claude: anthropic.AsyncAnthropic) -> None:
    facade.router.answer = RpcError("MODEL_NOT_FOUND", "no such model")
    with pytest.raises(anthropic.NotFoundError) as caught:
        await claude.messages.create(model="m", max_tokens=9, messages=MESSAGES)
    body: Any = caught.value.body
    assert body["error"] == {"type": "not_found_error", "message": "no such model"}
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        await claude.post("/v1/messages", body=BODY, cast_to=httpx.Response)


async def test_anthropic_stream_that_breaks(facade: Facade, claude: anthropic.AsyncAnthropic) -> None:
    failure = RpcError("PROVIDER_OVERLOADED", "it broke")
    facade.router.events = events(started(), *text_events("he"), broken("PROVIDER_OVERLOADED"), failure)
    async with claude.messages.stream(model="m", max_tokens=9, messages=MESSAGES) as stream:
        with pytest.raises(anthropic.APIStatusError, match="it broke"):
            await stream.get_final_message()


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "missing_api_key"),
        ({"authorization": "Basic abc"}, 401, "missing_api_key"),
        ({"authorization": "Bearer wrong"}, 401, "invalid_api_key"),
        ({"x-api-key": "omni_sk_usage"}, 403, "permission_denied"),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", CHAT), ("POST", "/v1/embeddings"), ("GET", "/v1/models")]
)
async def test_credentials(
    facade: Facade, headers: dict[str, str], status: int, code: str, method: str, path: str
) -> None:
    async with httpx.AsyncClient(base_url=facade.url, headers=headers) as client:
        response = await client.request(method, path, json=BODY if method == "POST" else None)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert ("www-authenticate" in response.headers) == (status == 401)
    assert facade.router.requests == []


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"", None, "invalid_json"),
        (b"{", None, "invalid_json"),
        (b"[]", None, "invalid_json"),
        (b'"\xff"', None, "invalid_json"),
        (b'{"messages":[{}]}', "model", None),
        (b'{"model":7,"messages":[{}]}', "model", None),
        (b'{"model":"m"}', "messages", None),
        (b'{"model":"m","messages":[]}', "messages", None),
        (b'{"model":"m","messages":"hello"}', "messages", None),
        (b'{"model":"m","messages":[{}],"max_tokens":"9"}', "max_tokens", None),
        (b'{"model":"m","messages":[{}],"max_tokens":-1}', "max_tokens", None),
        (b'{"model":"m","messages":[{}],"stream":"yes"}', "stream", None),
        (b'{"model":"m","messages":[{}],"n":0}', "n", None),
        (b'{"model":"%s","messages":[{}]}' % (b"m" * 257), "model", None),
        (b'{"model":"m\\nx: y","messages":[{}]}', "model", None),
    ],
)
async def test_bad_bodies(
    facade: Facade, http: httpx.AsyncClient, body: bytes, param: str | None, code: str | None
) -> None:
    response = await http.post(CHAT, content=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert code in (None, error["code"])
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert facade.router.requests == []


@pytest.mark.parametrize(
    ("header", "value"), [("x-omnihub-rescue", "maybe"), ("x-omnihub-request-id", "r" * 300)]
)
async def test_bad_headers(http: httpx.AsyncClient, header: str, value: str) -> None:
    response = await http.post(CHAT, json=BODY, headers={header: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] in (header, "request_id")


async def test_options_in_headers(facade: Facade, http: httpx.AsyncClient) -> None:
    facade.router.answer = raw_answer(COMPLETION)
    headers = {"x-omnihub-rescue": "off", "x-omnihub-strict": "true", "x-omnihub-request-id": "req_mine"}
    response = await http.post(CHAT, json=BODY, headers=headers)
    assert response.headers["x-omnihub-request-id"] == "req_mine"
    options = facade.router.requests[0].options
    assert (options.rescue, options.strict) == ("off", True)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/embeddings"])
async def test_body_too_large(facade: Facade, http: httpx.AsyncClient, chunked: bool, path: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield b" " * (BODY_LIMIT // 4)

    content: Any = pieces() if chunked else b" " * (BODY_LIMIT + 1)
    response = await http.post(path, content=content)
    assert response.status_code == 413
    assert str(BODY_LIMIT) in response.text
    assert facade.router.requests == []


async def test_body_in_pieces(facade: Facade, http: httpx.AsyncClient) -> None:
    facade.router.answer = raw_answer(COMPLETION)
    document = json.dumps(BODY).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(document), 10):
            yield document[start : start + 10]
            await asyncio.sleep(0)

    assert (await http.post(CHAT, content=pieces())).status_code == 200
    assert facade.router.requests[0].raw_body == document


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/embeddings"])
async def test_packed_bodies_are_not_unpacked(facade: Facade, http: httpx.AsyncClient, path: str) -> None:
    """A gzip bomb is nothing but its few bytes; a body that would be good is refused in the same words."""
    packed = {"content-encoding": "gzip"}
    bomb = gzip.compress(json.dumps(BODY).encode() + b" " * 2**21)
    assert len(bomb) < BODY_LIMIT
    for body in (bomb, gzip.compress(json.dumps(BODY).encode())):
        tracemalloc.start()
        try:
            response = await http.post(path, content=body, headers=packed)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert response.status_code == 400
        assert "send it without Content-Encoding" in response.json()["error"]["message"]
        assert peak < 2**20
    assert facade.router.requests == []
    facade.router.answer = raw_answer(COMPLETION)
    plain = await http.post(CHAT, json=BODY, headers={"content-encoding": "identity"})
    assert plain.status_code == 200


@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings"])
async def test_caller_who_leaves_cancels_an_answer(facade: Facade, path: str) -> None:
    async def never(request: Any, call: Any) -> Any:
        await asyncio.Event().wait()

    facade.router.answer = never
    body = BODY if path == CHAT else {"model": "m", "input": "t"}
    async with asyncio.timeout(60):
        await leave(facade, path, body, after=facade.router.entered)
        await facade.router.left.wait()


async def test_caller_who_leaves_cancels_a_stream(facade: Facade) -> None:
    sent = asyncio.Event()

    async def endless(request: Any, call: Any) -> AsyncIterator[Any]:
        yield started()
        for event in text_events("he"):
            yield event
        sent.set()
        await asyncio.Event().wait()

    facade.router.events = endless
    async with asyncio.timeout(60):
        await leave(facade, CHAT, {**BODY, "stream": True}, after=sent)
        await facade.router.left.wait()


async def leave(facade: Facade, path: str, body: Any, after: asyncio.Event) -> None:
    """Send a request and close the connection once `after` is set."""
    _, writer = await asyncio.open_connection("127.0.0.1", facade.port)
    document = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: {len(document)}\r\n\r\n"
    writer.write(head.encode() + document)
    await writer.drain()
    await after.wait()
    writer.close()
    await writer.wait_closed()


async def test_caller_who_leaves_within_the_body(facade: Facade) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", facade.port)
    writer.write(
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: 50\r\n\r\n{{".encode()
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert facade.router.requests == []


async def test_requests_follow_each_other_on_one_connection(facade: Facade, http: httpx.AsyncClient) -> None:
    facade.router.answer = raw_answer(COMPLETION)
    facade.router.events = events(started(), *text_events("hi"), ended())
    for number in range(20):
        response = await http.post(CHAT, json={**BODY, "stream": number % 2 == 0})
        assert response.status_code == 200
    assert len(facade.router.requests) == 20


async def test_server_that_stops_says_so(tmp_path: Path) -> None:
    async def never(request: Any, call: Any) -> Any:
        await asyncio.Event().wait()

    async with httpx.AsyncClient(headers={"x-api-key": KEY}) as http, asyncio.timeout(60):
        async with running_facade(tmp_path, drain_timeout_s=0) as facade:
            facade.router.answer = never
            asked = asyncio.create_task(http.post(facade.url + CHAT, json=BODY))
            await facade.router.entered.wait()
        response = await asked
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "service_unavailable"


async def test_receipt(facade: Facade, http: httpx.AsyncClient) -> None:
    receipt = [
        ParameterReceipt(name="seed", outcome="forwarded"),
        ParameterReceipt(name="größe", outcome="dropped", detail="no such parameter"),
    ]
    facade.router.answer = raw_answer(COMPLETION, receipt=receipt)
    response = await http.post(CHAT, json=BODY)
    assert json.loads(response.headers["x-omnihub-receipt"]) == [
        {"name": "größe", "outcome": "dropped", "detail": "no such parameter"},
        {"name": "seed", "outcome": "forwarded"},
    ]
    facade.router.answer = raw_answer(COMPLETION, receipt=receipt * 40)
    response = await http.post(CHAT, json=BODY)
    entries = json.loads(response.headers["x-omnihub-receipt"])
    assert 40 < len(entries) < 80
    assert [entry["outcome"] for entry in entries[:40]] == ["dropped"] * 40


async def test_names_that_headers_cannot_hold(facade: Facade, http: httpx.AsyncClient) -> None:
    facade.router.answer = raw_answer(COMPLETION, model_used="a/größe\r\nx: y")
    assert (await http.post(CHAT, json=BODY)).headers["x-omnihub-model"] == "a/gr??e??x: y"


async def test_embeddings(facade: Facade, client: openai.AsyncOpenAI, http: httpx.AsyncClient) -> None:
    facade.router.answer = pb.EmbedResponse(embeddings=[pb.Vector(values=[1.0, 0.5])], outcome=an_outcome())
    answer = await client.embeddings.create(model="m", input=["hello"])
    assert answer.data[0].embedding == [1.0, 0.5]
    assert answer.usage.prompt_tokens == 10
    plain = await http.post("/v1/embeddings", json={"model": "m", "input": "t", "encoding_format": "base64"})
    packed = base64.b64decode(plain.json()["data"][0]["embedding"])
    assert struct.unpack("<2f", packed) == (1.0, 0.5)
    assert plain.headers["x-omnihub-cost"] == "0.00002"
    assert not facade.router.requests[-1].strict


async def test_embeddings_say_what_became_of_parameters(facade: Facade, http: httpx.AsyncClient) -> None:
    outcome = an_outcome()
    outcome.receipt.add(name="user", outcome="dropped", detail="no such parameter")
    facade.router.answer = pb.EmbedResponse(embeddings=[pb.Vector(values=[1.0])], outcome=outcome)
    body = {"model": "m", "input": "t", "user": "u"}
    answer = await http.post("/v1/embeddings", json=body, headers={"x-omnihub-strict": "true"})
    assert facade.router.requests[-1].strict
    told = json.loads(answer.headers["x-omnihub-receipt"])
    assert told == [{"name": "user", "outcome": "dropped", "detail": "no such parameter"}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "t"}, "model"),
        ({"model": "m"}, "input"),
        ({"model": "m", "input": []}, "input"),
        ({"model": "m", "input": {}}, "input"),
        ({"model": "m", "input": "t", "encoding_format": "hex"}, "encoding_format"),
    ],
)
async def test_bad_embeddings(http: httpx.AsyncClient, body: Any, param: str) -> None:
    response = await http.post("/v1/embeddings", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_models(facade: Facade, client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic) -> None:
    facade.router.models = [
        Model(
            model_id="a/x",
            provider="a",
            route=["a/x"],
            created=1_700_000_000,
            input_price_per_million="1",
            strengths=["coding"],
            capabilities=["chat"],
            latency_ms=120,
        )
    ]
    [model] = [each async for each in client.models.list()]
    assert (model.id, model.owned_by) == ("a/x", "a")
    facts = model.model_extra["omnihub"]
    assert facts["cost"] == {"input_per_million": "1", "output_per_million": None}
    assert (facts["latency_ms"], facts["strengths"], facts["capabilities"]) == (120, ["coding"], ["chat"])
    assert (await client.models.retrieve("a/x")).id == "a/x"
    with pytest.raises(openai.NotFoundError, match="GET /v1/models"):
        await client.models.retrieve("b")
    [listed] = [each async for each in claude.models.list()]
    assert listed.id == "a/x"
    assert (await claude.models.retrieve("a/x")).display_name == "a/x"


async def test_aliases_are_models_too(
    facade: Facade, client: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic
) -> None:
    facade.router.models = [Model(model_id="m", aliases=["fast", "cheap"], provider="a", max_output=7)]
    listed = {model.id: model.model_extra["omnihub"] async for model in client.models.list()}
    assert {name: facts["aliases"] for name, facts in listed.items()} == {
        "m": ["fast", "cheap"],
        "fast": ["m", "cheap"],
        "cheap": ["m", "fast"],
    }
    assert listed["fast"]["max_output"] == 7
    assert (await client.models.retrieve("cheap")).id == "cheap"
    assert [model.id async for model in claude.models.list()] == ["m", "fast", "cheap"]
