"""Native gRPC, gRPC-Web and CORS through a real Envoy."""

from __future__ import annotations

import asyncio
import struct

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from omnihub.billing.v1 import billing_service_pb2
from omnihub.router.v1 import router_service_pb2

from services.common.rpc.errors import RpcError
from services.edge.virtual_host import UNKNOWN_PATH
from tests.integration.edge.conftest import ORIGIN
from tests.support.edge import KEY, Backend

pytestmark = pytest.mark.asyncio(loop_scope="session")

USAGE = "/omnihub.billing.v1.BillingService/ListUsage"
BALANCE = "/omnihub.billing.v1.BillingService/GetBalance"
SETTLE = "/omnihub.billing.v1.BillingService/Settle"
STREAM = "/omnihub.router.v1.RouterService/StreamChat"
CREDENTIAL = (("x-api-key", KEY),)


def chat_request() -> router_service_pb2.StreamChatRequest:
    request = router_service_pb2.StreamChatRequest()
    request.chat.messages.add(role="user", content="hello")
    return request


def unary(channel: grpc.aio.Channel, path: str = USAGE) -> grpc.aio.UnaryUnaryMultiCallable:
    return channel.unary_unary(path, response_deserializer=billing_service_pb2.ListUsageResponse.FromString)


async def test_a_unary_call(channel: grpc.aio.Channel, backend: Backend) -> None:
    call = unary(channel)(b"", metadata=CREDENTIAL)
    answer = await call
    assert answer.total.cost == "0.25"
    assert dict(await call.initial_metadata())["x-omnihub-request-id"] == backend.calls[0].request_id


async def test_a_stream_arrives_while_it_is_made(channel: grpc.aio.Channel, backend: Backend) -> None:
    read = router_service_pb2.StreamChatResponse.FromString
    call = channel.unary_stream(STREAM, response_deserializer=read)(
        chat_request().SerializeToString(), metadata=CREDENTIAL
    )
    messages = aiter(call)
    assert (await anext(messages)).WhichOneof("event") == "start"
    assert not backend.go_on.is_set()
    backend.go_on.set()
    assert [message.WhichOneof("event") async for message in messages] == ["part_delta", "end"]


async def test_errors_keep_their_details_and_lose_our_headers(
    channel: grpc.aio.Channel, backend: Backend
) -> None:
    backend.error = RpcError("RATE_LIMITED", "too many", metadata={"limit": "5"}, retry_after_s=7)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unary(channel)(b"", metadata=CREDENTIAL)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = dict(caught.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.metadata["limit"]) == ("RATE_LIMITED", "5")
    assert not {"x-http-status", "x-omnihub-error"} & set(trailers)


async def test_an_error_in_mid_stream_loses_our_headers(channel: grpc.aio.Channel, backend: Backend) -> None:
    read = router_service_pb2.StreamChatResponse.FromString
    call = channel.unary_stream(STREAM, response_deserializer=read)(
        chat_request().SerializeToString(), metadata=CREDENTIAL
    )
    await call.read()
    backend.late_error = RpcError("PROVIDER_FAILED", "the provider broke off")
    backend.go_on.set()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.details() == "the provider broke off"
    trailers = dict(caught.value.trailing_metadata() or ())
    assert "grpc-status-details-bin" in trailers
    assert not {"x-http-status", "x-omnihub-error"} & set(trailers)


async def test_deadlines_reach_the_handler(channel: grpc.aio.Channel, backend: Backend) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unary(channel, BALANCE)(b"", metadata=CREDENTIAL, timeout=1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert backend.calls[0].deadline is not None
    async with asyncio.timeout(90):
        await backend.cancelled.wait()


async def test_cancelling_reaches_the_handler(channel: grpc.aio.Channel, backend: Backend) -> None:
    call = unary(channel, BALANCE)(b"", metadata=CREDENTIAL)
    waiting = asyncio.ensure_future(call)
    async with asyncio.timeout(90):
        await backend.entered.wait()
        assert call.cancel()
        await backend.cancelled.wait()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_internal_rpcs_reflection_and_health_cannot_be_reached(
    channel: grpc.aio.Channel, backend: Backend
) -> None:
    for path in (
        SETTLE,
        "/omnihub.auth.v1.AuthService/ExchangeCredential",
        "/omnihub.none.v1.None/Nothing",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(channel, path)(b"", metadata=CREDENTIAL)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert caught.value.details() == UNKNOWN_PATH
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not backend.calls


async def test_a_signed_identity_from_outside_counts_for_nothing(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unary(channel)(b"", metadata=(("x-omnihub-identity", "token"),))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_grpc_caller_cannot_choose_the_address_its_logins_count_for(
    channel: grpc.aio.Channel, backend: Backend
) -> None:
    metadata = (("x-omnihub-client-address", "203.0.113.7"), ("x-forwarded-for", "203.0.113.7"))
    await unary(channel, "/omnihub.auth.v1.AuthService/Login")(b"", metadata=metadata)
    assert backend.calls[0].client_address == "127.0.0.1"


async def test_a_grpc_method_says_what_it_takes(client: httpx.AsyncClient) -> None:
    response = await client.post(USAGE, json={})
    assert response.status_code == 415
    assert "application/grpc" in response.json()["error"]["message"]
    response = await client.get(USAGE)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


class TestGrpcWeb:
    """The framing by hand: a flag, a length, a message; trailers are a frame with the highest bit."""

    HEADERS = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", "origin": ORIGIN}

    @staticmethod
    def frames(body: bytes) -> list[tuple[int, bytes]]:
        found = []
        while body:
            flag, length = struct.unpack(">BI", body[:5])
            found.append((flag, body[5 : 5 + length]))
            body = body[5 + length :]
        return found

    async def test_a_call(self, client: httpx.AsyncClient) -> None:
        response = await client.post(USAGE, content=struct.pack(">BI", 0, 0), headers=self.HEADERS)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("application/grpc-web")
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "grpc-status" in response.headers["access-control-expose-headers"]
        (message_flag, message), (trailer_flag, trailers) = self.frames(response.content)
        assert (message_flag, trailer_flag) == (0, 128)
        assert billing_service_pb2.ListUsageResponse.FromString(message).total.cost == "0.25"
        assert b"grpc-status:0" in trailers

    async def test_an_error(self, client: httpx.AsyncClient, backend: Backend) -> None:
        backend.error = RpcError("NOT_FOUND", "no such thing")
        response = await client.post(USAGE, content=struct.pack(">BI", 0, 0), headers=self.HEADERS)
        assert response.headers["grpc-status"] == "5"
        assert response.headers["grpc-message"] == "no such thing"
        assert "grpc-status-details-bin" in response.headers
        assert not {"x-http-status", "x-omnihub-error"} & set(response.headers)

    async def test_a_stream_with_a_late_error(self, client: httpx.AsyncClient, backend: Backend) -> None:
        backend.late_error = RpcError("PROVIDER_FAILED", "the provider broke off")
        backend.go_on.set()
        message = chat_request().SerializeToString()
        body = struct.pack(">BI", 0, len(message)) + message
        response = await client.post(STREAM, content=body, headers=self.HEADERS)
        (_, first), (flag, trailers) = self.frames(response.content)
        assert router_service_pb2.StreamChatResponse.FromString(first).HasField("start")
        assert flag == 128
        assert b"grpc-message:the provider broke off" in trailers
        assert b"x-omnihub-error" not in trailers

    async def test_an_internal_method(self, client: httpx.AsyncClient) -> None:
        response = await client.post(SETTLE, content=struct.pack(">BI", 0, 0), headers=self.HEADERS)
        assert (response.status_code, response.json()["error"]["reason"]) == (404, "UNKNOWN_PATH")


class TestCors:
    async def preflight(self, client: httpx.AsyncClient, path: str, origin: str) -> httpx.Response:
        headers = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-grpc-web",
        }
        return await client.options(path, headers=headers)

    @pytest.mark.parametrize("path", [USAGE, "/v1/chat", "/v1/chat/completions", "/api/keys/key_1/rotate"])
    async def test_preflights_of_known_origins(self, client: httpx.AsyncClient, path: str) -> None:
        response = await self.preflight(client, path, ORIGIN)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == ORIGIN
        allowed = response.headers["access-control-allow-headers"].split(", ")
        assert {"authorization", "x-api-key", "content-type", "x-grpc-web", "grpc-timeout"} <= set(allowed)
        assert "POST" in response.headers["access-control-allow-methods"]

    async def test_other_origins_get_no_permission(self, client: httpx.AsyncClient, backend: Backend) -> None:
        response = await self.preflight(client, "/v1/chat/completions", "http://evil.test")
        assert "access-control-allow-origin" not in response.headers
        assert not backend.http_requests, "preflights never reach a service"
        answer = await client.get("/api/nothing", headers={"origin": "http://evil.test"})
        assert "access-control-allow-origin" not in answer.headers

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [("GET", "/api/nothing", 404), ("GET", "/v1/chat", 405), ("GET", "/v1/usage?x=1", 400)],
    )
    async def test_a_page_can_read_errors_too(
        self, client: httpx.AsyncClient, method: str, path: str, status: int
    ) -> None:
        response = await client.request(method, path, headers={"origin": ORIGIN})
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "x-omnihub-request-id" in response.headers["access-control-expose-headers"]
