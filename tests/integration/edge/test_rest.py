"""REST and SSE through a real Envoy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from services.common.rpc.errors import RpcError, Violation
from services.common.rpc.server import SERVER_OPTIONS
from services.edge.virtual_host import UNKNOWN_PATH
from tests.support.edge import KEY, Backend, running_backend, running_edge

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


def error_of(response: httpx.Response) -> dict[str, Any]:
    """Return a platform error after checking its form."""
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(response.content)
    body = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert set(error) == {"code", "reason", "message", "details", "request_id"}
    assert error["code"] == response.status_code
    assert error["message"]
    assert error["details"]["recovery"]
    assert error["request_id"] == response.headers["x-omnihub-request-id"]
    hidden = {"grpc-status", "grpc-message", "grpc-status-details-bin", "x-http-status", "x-omnihub-error"}
    assert not hidden & set(response.headers)
    return error


async def test_v1_keeps_the_names_of_the_contract(client: httpx.AsyncClient, backend: Backend) -> None:
    response = await client.post("/v1/chat", json={**CHAT, "max_tokens": 5, "latency_pref": "fast"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json()["model_used"] == "wall/gpt-x"
    assert "raw_body" not in response.json(), "unset optional fields stay absent"
    assert response.json()["savings_estimate"] == "", "fields with their default value are there"
    assert backend.requests[0].chat.max_tokens == 5
    assert not [name for name in response.headers if name.startswith(("grpc-", "x-envoy"))]


async def test_api_speaks_camel_case(client: httpx.AsyncClient, backend: Backend) -> None:
    response = await client.get("/api/usage", params={"groupBy": "model", "pageSize": "5"})
    assert response.status_code == 200
    assert response.json()["nextPageToken"] == ""
    assert response.json()["total"]["inputTokens"] == 5
    assert backend.requests[0].group_by == "model"
    snake = await client.get("/v1/usage", params={"group_by": "model"})
    assert snake.json()["next_page_token"] == ""


async def test_path_and_idempotency_key_arrive(client: httpx.AsyncClient, backend: Backend) -> None:
    headers = {"idempotency-key": "once"}
    response = await client.post("/api/keys/key_9/rotate", json={"overlapS": 60}, headers=headers)
    assert response.status_code == 200
    assert (backend.requests[0].key_id, backend.requests[0].overlap_s) == ("key_9", 60)
    assert backend.calls[0].idempotency_key == "once"


async def test_anonymous_methods_need_no_credential(client: httpx.AsyncClient) -> None:
    response = await client.get("/.well-known/jwks.json", headers={"authorization": ""})
    assert response.json()["keys"][0]["kty"] == "OKP"


async def test_a_stream_arrives_as_events_while_it_is_made(
    client: httpx.AsyncClient, backend: Backend
) -> None:
    async with client.stream("POST", "/v1/chat:stream", json=CHAT) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream"
        lines = response.aiter_lines()
        start = json.loads((await anext(lines)).removeprefix("data: "))
        # The service has not made the rest yet: it waits for us.
        assert not backend.go_on.is_set()
        assert start["start"]["model_used"] == "wall/gpt-x"
        assert start["start"]["request_id"] == response.headers["x-omnihub-request-id"]
        backend.go_on.set()
        rest = [json.loads(line.removeprefix("data: ")) async for line in lines if line]
    assert rest[0]["part_delta"]["text"] == "hello"
    # Only callers of a raw stream have use for these.
    assert "wire_format" not in start["start"]
    assert "raw_tail" not in rest[1]["end"]


async def test_one_value_where_a_list_belongs_is_a_list_of_one(
    client: httpx.AsyncClient, backend: Backend
) -> None:
    await client.post("/api/keys", json={"name": "ci", "scopes": "chat", "allowedModels": "support-chat"})
    [request] = backend.requests
    assert (list(request.scopes), list(request.allowed_models)) == (["chat"], ["support-chat"])
    for nothing in ("", [""], {}, {"a": "b"}, [{"a": "b"}]):
        response = await client.post("/api/keys", json={"name": "ci", "allowedModels": nothing})
        assert response.status_code == 400
        assert error_of(response)["details"]["fields"][0]["field"].startswith("allowed")
    assert len(backend.requests) == 1, "no key without limits was made"


@pytest.mark.parametrize("path", ["/v1/chat:stream", "/v1/chat"])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RpcError("INSUFFICIENT_CREDITS", 'no credits "left" \\ \u00e4\n'), 402),
        (RpcError("MODEL_NOT_FOUND", "no such model", metadata={"model": "x"}), 404),
        (RpcError("PRICE_UNKNOWN", "no price", violations=[Violation("chat.model", "has no price")]), 422),
        (RpcError("RATE_LIMITED", "too many requests", retry_after_s=7), 429),
        (RpcError("INVALID_ARGUMENT", "\u00e4" * 3000, violations=[Violation("a", "\u00fc" * 2000)]), 400),
        (RpcError("INTERNAL", "internal error"), 500),
    ],
    ids=lambda value: str(getattr(value, "reason", value)),
)
async def test_errors_of_services_keep_status_and_body(
    client: httpx.AsyncClient, backend: Backend, path: str, error: RpcError, status: int
) -> None:
    backend.error = error
    response = await client.post(path, json=CHAT)
    assert response.status_code == status
    assert response.json() == error.to_body(backend.calls[0].request_id)
    error_of(response)
    if error.retry_after_s:
        assert response.headers["retry-after"] == "7"


async def test_no_or_wrong_credential(client: httpx.AsyncClient) -> None:
    missing = await client.post("/v1/chat", json=CHAT, headers={"authorization": ""})
    assert (missing.status_code, error_of(missing)["reason"]) == (401, "MISSING_CREDENTIAL")
    wrong = await client.post("/v1/chat", json=CHAT, headers={"authorization": "Bearer omni_sk_no"})
    assert (wrong.status_code, error_of(wrong)["reason"]) == (401, "INVALID_CREDENTIAL")


@pytest.mark.parametrize(
    ("body", "reason", "field"),
    [
        (b'{"model": ', "MALFORMED_BODY", None),
        (b"[1]", "MALFORMED_BODY", None),
        (b'{"model": "\xff\xfe"}', "MALFORMED_BODY", None),
        (b'{"temperature": "warm"}', "INVALID_ARGUMENT", "temperature"),
        (b'{"max_tokens": -1}', "INVALID_ARGUMENT", "max_tokens"),
        (b'{"messages": "hello"}', "INVALID_ARGUMENT", "messages"),
        (b'{"messages": [{"content": {"a": 1}}]}', "INVALID_ARGUMENT", "messages[0].content"),
        (b'{"max_cost": "much"}', "INVALID_ARGUMENT", "max_cost"),
        (b'{"model": ["x"]}', "MALFORMED_BODY", None),
        (b'{"messages": [{"role": ["user"]}]}', "INVALID_ARGUMENT", "messages[0]"),
        (b'{"temperature": 9}', "INVALID_ARGUMENT", "temperature"),
    ],
)
async def test_bad_bodies_name_the_field(
    client: httpx.AsyncClient, backend: Backend, body: bytes, reason: str, field: str | None
) -> None:
    response = await client.post("/v1/chat", content=body)
    error = error_of(response)
    assert (response.status_code, error["reason"]) == (400, reason)
    assert [entry["field"] for entry in error["details"].get("fields", [])] == ([field] if field else [])
    assert not backend.calls
    assert "warm" not in response.text, "what the caller sent is not repeated"


async def test_query_and_path_are_checked_too(client: httpx.AsyncClient, backend: Backend) -> None:
    unknown = await client.get("/v1/usage?group_bye=model")
    assert (unknown.status_code, error_of(unknown)["details"]["fields"][0]["field"]) == (400, "group_bye")
    collision = await client.post("/api/keys/key_1/rotate", json={"key_id": "key_2"})
    assert (collision.status_code, error_of(collision)["details"]["fields"][0]["field"]) == (400, "key_id")
    assert not backend.calls
    await client.post("/api/keys/key_1/rotate", json={"keyId": "key_2"})
    assert backend.requests[0].key_id == "key_1", "the path counts"


async def test_a_body_over_the_limit_is_refused(client: httpx.AsyncClient, backend: Backend) -> None:
    """By the facade, which reads it: whoever still sends would lose an answer of the edge."""
    await client.post("/v1/chat?x=1", json={"model": "x" * 70_000}, headers={"x-omnihub-body-limit": "1"})
    [refused] = backend.http_requests
    assert refused.raw_path == "/-/oversized?x=1"
    assert refused.headers["x-omnihub-body-limit"] == "65536"
    assert not backend.calls
    assert (await client.post("/-/oversized")).status_code == 404, "by this name it is nobody's"


async def test_the_limit_holds_for_what_comes_in_many_pieces(tmp_path: Path, backend: Backend) -> None:
    limit = 4 * 1024 * 1024
    body = b'{"model": "%b"}' % (b"x" * (limit + 1_000_000))

    def send(port: int) -> httpx.Response:
        content = iter([body[:10_000], body[10_000:]])
        return httpx.post(f"http://127.0.0.1:{port}/v1/chat", content=content, timeout=10)

    async with running_edge(tmp_path, backend=backend, json_body_limit_bytes=limit) as port:
        # In a thread: asynchronous clients lose an answer that comes while they still send.
        response = await asyncio.to_thread(send, port)
    assert (response.status_code, error_of(response)["reason"]) == (413, "BODY_TOO_LARGE")
    assert not backend.calls


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("sent", "answered", "status", "reason"),
    [(2_000_000, 1, 413, "BODY_TOO_LARGE"), (1, 2_000_000, 502, "ANSWER_TOO_LARGE")],
)
async def test_messages_too_large_for_grpc_itself(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    streamed: bool,
    sent: int,
    answered: int,
    status: int,
    reason: str,
) -> None:
    limits = [
        (name, 1_000_000 if name.endswith("_message_length") else value) for name, value in SERVER_OPTIONS
    ]
    monkeypatch.setattr("services.common.rpc.server.SERVER_OPTIONS", limits)
    monkeypatch.setattr("tests.support.edge.ANSWER", "x" * answered)
    path = "/v1/chat:stream" if streamed else "/v1/chat"
    async with (
        running_backend() as small,
        running_edge(tmp_path, backend=small, json_body_limit_bytes=2**23) as port,
        httpx.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, timeout=10) as client,
    ):
        small.go_on.set()
        response = await client.post(f"http://127.0.0.1:{port}{path}", json={"model": "x" * sent})
    if streamed and answered > 1:
        assert "data: " in response.text, "the stream had begun"
        return
    error = error_of(response)
    assert (response.status_code, error["reason"]) == (status, reason)
    assert error["details"]["recovery"]
    assert "larger than" in error["message"]


@pytest.mark.parametrize("path", ["/api/nothing", "/api/keys/a/b", "/metrics", "/", "/v1/router/nothing"])
async def test_unknown_paths(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    error = error_of(response) if not path.startswith("/v1/") else response.json()["error"]
    assert response.status_code == 404
    assert error.get("reason", error["code"]) in ("UNKNOWN_PATH", "unknown_url")


async def test_wrong_methods_say_which_are_right(client: httpx.AsyncClient) -> None:
    for method, path, allow in [
        ("DELETE", "/api/keys", "GET, POST"),
        ("GET", "/v1/chat", "POST"),
        ("PUT", "/api/keys/key_1/rotate", "POST"),
        ("OPTIONS", "/v1/usage", "GET"),
    ]:
        response = await client.request(method, path)
        assert (response.status_code, error_of(response)["reason"]) == (405, "METHOD_NOT_ALLOWED")
        assert response.headers["allow"] == allow


async def test_what_grpc_itself_refuses_has_the_same_body(client: httpx.AsyncClient) -> None:
    # Served by no one here: the gRPC server answers without our trailers.
    response = await client.get("/api/models")
    assert (response.status_code, error_of(response)["reason"]) == (501, "NOT_IMPLEMENTED")


async def test_callers_cannot_speak_for_others_or_choose_the_request_id(
    client: httpx.AsyncClient, backend: Backend
) -> None:
    headers = {
        "x-omnihub-identity": "token",
        "x-omnihub-request-id": "req_mine",
        "x-request-id": "mine",
        "x-envoy-original-path": "/elsewhere",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    response = await client.get("/v1/usage", headers=headers)
    assert response.status_code == 200
    call = backend.calls[0]
    assert call.identity.organisation_id == "org_1"
    assert call.request_id == response.headers["x-omnihub-request-id"]
    assert call.request_id.startswith("req_")
    assert "mine" not in call.request_id
    assert call.traceparent == headers["traceparent"]
    without = await client.get("/v1/usage", headers={**headers, "authorization": ""})
    assert without.status_code == 401


async def test_callers_cannot_choose_the_address_their_logins_count_for(
    client: httpx.AsyncClient, backend: Backend
) -> None:
    claimed = ("x-omnihub-client-address", "x-forwarded-for", "x-envoy-external-address", "x-real-ip")
    headers = dict.fromkeys(claimed, "203.0.113.7")
    assert (await client.post("/api/auth/login", json={}, headers=headers)).status_code == 200
    assert backend.calls[0].client_address == "127.0.0.1"
    # Where nobody asks for it, it is not told.
    await client.get("/v1/usage", headers=headers)
    assert backend.calls[1].client_address == ""
    await client.get("/v1/models", headers=headers)
    assert "x-omnihub-client-address" not in backend.http_requests[0].headers


async def test_a_proxy_that_is_trusted_says_who_calls(backend: Backend, tmp_path: Path) -> None:
    async with (
        running_edge(tmp_path, backend=backend, trusted_proxies=1) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as proxy,
    ):
        # What the proxy appends is believed, what its caller had written before it is not.
        headers = {"x-forwarded-for": "198.51.100.1, 203.0.113.7"}
        await proxy.post("/api/auth/login", json={}, headers=headers)
        await proxy.post("/api/auth/login", json={})
    assert [call.client_address for call in backend.calls] == ["203.0.113.7", "127.0.0.1"]


async def test_a_login_refused_for_its_address_says_when_to_come_back(
    client: httpx.AsyncClient, backend: Backend
) -> None:
    backend.error = RpcError("RATE_LIMITED", "too many failed logins from your address", retry_after_s=42.4)
    response = await client.post("/api/auth/login", json={})
    assert (response.status_code, response.headers["retry-after"]) == (429, "43")
    assert error_of(response)["details"]["retry_after_s"] == 42.4


async def test_leaving_a_stream_cancels_the_handler(client: httpx.AsyncClient, backend: Backend) -> None:
    async with client.stream("POST", "/v1/chat:stream", json=CHAT) as response:
        await anext(response.aiter_lines())
    async with asyncio.timeout(90):
        await backend.cancelled.wait()


async def test_leaving_a_call_cancels_the_handler(client: httpx.AsyncClient, backend: Backend) -> None:
    call = asyncio.create_task(client.get("/api/balance"))
    async with asyncio.timeout(90):
        await backend.entered.wait()
        call.cancel()
        await backend.cancelled.wait()


class TestFacade:
    async def test_requests_arrive_as_they_are(self, client: httpx.AsyncClient, backend: Backend) -> None:
        response = await client.post("/v1/chat/completions", content=b'{"a":  1}', headers={"x-custom": "1"})
        assert response.json() == {"path": "/v1/chat/completions", "bytes": 9}
        request = backend.http_requests[0]
        assert request.headers["x-custom"] == "1"
        assert request.headers["x-omnihub-request-id"] == response.headers["x-omnihub-request-id"]
        listed = await client.get("/v1/models/wall%2Fgpt-x")
        assert listed.json()["path"] == "/v1/models/wall%2Fgpt-x"
        assert (await client.get("/v1/models/wall/gpt-x")).json()["path"] == "/v1/models/wall/gpt-x"

    async def test_internal_headers_pass_in_neither_direction(
        self, client: httpx.AsyncClient, backend: Backend
    ) -> None:
        sent = {"x-omnihub-identity": "token", "x-http-status": "200", "x-omnihub-error": "{}"}
        response = await client.get("/v1/models", headers=sent)
        assert not set(sent) & {name.lower() for name in backend.http_requests[0].headers}
        assert not set(sent) & set(response.headers)
        assert response.headers["x-omnihub-cost"] == "0.1"

    async def test_events_arrive_as_they_are_made(self, client: httpx.AsyncClient, backend: Backend) -> None:
        async with client.stream("POST", "/v1/chat/completions", json={"stream": True}) as response:
            lines = response.aiter_lines()
            assert await anext(lines) == 'data: {"n": 1}'
            assert not backend.go_on.is_set()
            backend.go_on.set()
            assert [line async for line in lines if line] == ["data: [DONE]"]

    async def test_leaving_a_stream_cancels_the_handler(
        self, client: httpx.AsyncClient, backend: Backend
    ) -> None:
        async with client.stream("POST", "/v1/chat/completions", json={"stream": True}) as response:
            await anext(response.aiter_lines())
        async with asyncio.timeout(90):
            await backend.cancelled.wait()

    async def test_a_body_without_a_length_is_counted_by_the_facade(
        self, client: httpx.AsyncClient, backend: Backend
    ) -> None:
        async def pieces(count: int) -> AsyncIterator[bytes]:
            for _ in range(count):
                yield b"x" * 10_000

        for allowed in (b"x" * 200_000, pieces(20)):
            response = await client.post("/v1/chat/completions", content=allowed)
            assert response.json()["bytes"] == 200_000
        told = [request.headers.get("x-omnihub-body-limit") for request in backend.http_requests]
        assert told == [None, "200000"]

    async def test_what_is_too_long_is_left_to_the_facade_to_refuse(
        self, client: httpx.AsyncClient, backend: Backend
    ) -> None:
        """It reads what it refuses: whoever still sends would lose an answer of the edge."""
        await client.post(
            "/v1/chat/completions", content=b"x" * 200_001, headers={"x-omnihub-body-limit": "999999999"}
        )
        assert backend.http_requests[0].headers["x-omnihub-body-limit"] == "200000"

    async def test_what_is_far_too_long_is_refused_unread(self, port: int, backend: Backend) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 536870913\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"413"
        writer.close()
        await writer.wait_closed()
        assert not backend.http_requests

    async def test_errors_have_the_shape_the_sdks_read(self, client: httpx.AsyncClient) -> None:
        assert "base_url ends in /v1 for OpenAI's SDKs" in UNKNOWN_PATH
        for path in ("/chat/completions", "/v1/v1/messages"):
            wrong_base_url = await client.post(path, json={})
            assert wrong_base_url.status_code == 404
            assert UNKNOWN_PATH in wrong_base_url.text
        shaped = await client.get("/v1/nothing?key=secret")
        assert shaped.status_code == 404
        assert shaped.json()["error"] == {
            "message": UNKNOWN_PATH,
            "type": "invalid_request_error",
            "param": None,
            "code": "unknown_url",
            "request_id": shaped.headers["x-omnihub-request-id"],
        }
        assert shaped.headers["x-omnihub-request-id"].startswith("req_")
        wrong = await client.get("/v1/chat/completions")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        assert wrong.json()["error"]["code"] == "method_not_allowed"
        anthropic = await client.get("/v1/messages")
        assert anthropic.status_code == 405
        assert anthropic.json() == {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "this path takes POST"},
            "request_id": anthropic.headers["x-omnihub-request-id"],
        }

    async def test_the_request_id_is_where_the_sdks_look(
        self, client: httpx.AsyncClient, port: int, backend: Backend
    ) -> None:
        for method, path in (
            ("GET", "/v1/models"),
            ("GET", "/v1/nothing"),
            ("POST", "/v1/chat"),
            ("GET", "/api/x"),
        ):
            answer = await client.request(method, path, json=CHAT)
            assert answer.headers["x-request-id"] == answer.headers["x-omnihub-request-id"]
            assert "request-id" not in answer.headers
        for method in ("POST", "GET"):
            answer = await client.request(method, "/v1/messages", json={})
            assert answer.headers["request-id"] == answer.headers["x-omnihub-request-id"]
        options: Any = {"api_key": KEY, "max_retries": 0}
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1/v1", **options) as sdk:
            with pytest.raises(openai.NotFoundError) as wrong:
                await sdk.models.list()
        assert wrong.value.request_id == wrong.value.body["request_id"]  # type: ignore[index]
