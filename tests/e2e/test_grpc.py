"""Native gRPC and gRPC-Web through the public port, with stubs as a user generates them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from decimal import Decimal
from types import ModuleType
from typing import Any
from uuid import uuid4

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from omnihub.router.v1 import router_service_pb2 as pb

from tests.support.deployment import WALL_COST
from tests.support.suite import Suite
from tests.support.tenant import PROMPT, Tenant
from tests.support.upstream import ANSWER, INPUT_TOKENS, OUTPUT_TOKENS, Upstream

TIMEOUT_S = 20
CHAT = "/omnihub.router.v1.RouterService/Chat"
INTERNAL = [
    "/omnihub.billing.v1.BillingService/Settle",
    "/omnihub.auth.v1.AuthService/ExchangeCredential",
    "/omnihub.provider.v1.ProviderService/Chat",
    "/omnihub.router.v1.RouterService/WatchChanges",
]


@pytest.fixture
def channel(suite: Suite) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{suite.port}") as channel:
        yield channel


@pytest.fixture
def router(channel: grpc.Channel, stubs: ModuleType) -> Any:
    return stubs.RouterServiceStub(channel)


@pytest.fixture
def credential(suite: Suite) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {suite.key}")]


def question(kind: Any = pb.ChatRequest, model: str = "support-chat", text: str = PROMPT) -> Any:
    request = kind()
    request.chat.model = model
    request.chat.messages.add(role="user", content=text)
    return request


def test_an_answer(router: Any, credential: Any) -> None:
    answer = router.Chat(question(), metadata=credential, timeout=TIMEOUT_S)
    assert answer.output == ANSWER
    assert answer.model_used == "wall/gpt-x"
    assert Decimal(answer.cost) == WALL_COST
    usage = answer.outcome.usage
    assert (usage.input_total, usage.output_total) == (INPUT_TOKENS, OUTPUT_TOKENS)


def test_a_stream(router: Any, credential: Any) -> None:
    events = list(router.StreamChat(question(pb.StreamChatRequest), metadata=credential, timeout=TIMEOUT_S))
    assert events[0].HasField("start")
    assert "".join(event.part_delta.text for event in events) == ANSWER
    assert events[-1].end.outcome.state == "complete"
    assert Decimal(events[-1].end.outcome.cost) == WALL_COST


def test_a_cut_stream_ends_with_an_error_and_a_status(router: Any, credential: Any) -> None:
    events = []
    with pytest.raises(grpc.RpcError) as raised:  # noqa: PT012 - the error comes while reading
        for event in router.StreamChat(
            question(pb.StreamChatRequest, "wall/cut"), metadata=credential, timeout=TIMEOUT_S
        ):
            events.append(event)
    assert events[-1].error.reason == "STREAM_TRUNCATED"
    assert events[-1].error.outcome.state == "truncated"
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert info_of(raised.value).reason == "STREAM_TRUNCATED"


def info_of(error: Any) -> error_details_pb2.ErrorInfo:
    trailers = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


def test_errors_carry_their_details(router: Any, credential: Any) -> None:
    with pytest.raises(grpc.RpcError) as unknown:
        router.Chat(question(model="nothing"), metadata=credential, timeout=TIMEOUT_S)
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    info = info_of(unknown.value)
    assert (info.reason, info.domain, info.metadata["model"]) == ("MODEL_NOT_FOUND", "omnihub", "nothing")
    with pytest.raises(grpc.RpcError) as anonymous:
        router.Chat(question(), timeout=TIMEOUT_S)
    assert anonymous.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert info_of(anonymous.value).reason == "MISSING_CREDENTIAL"
    wrong = question()
    wrong.chat.temperature = 9
    with pytest.raises(grpc.RpcError) as invalid:
        router.Chat(wrong, metadata=credential, timeout=TIMEOUT_S)
    assert invalid.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "temperature" in (invalid.value.details() or "")


def test_cancelling_reaches_the_provider(router: Any, tenant: Tenant, upstream: Upstream) -> None:
    marker = uuid4().hex
    call = router.StreamChat(
        question(pb.StreamChatRequest, "wall/endless", marker), metadata=[("x-api-key", tenant.key)]
    )
    start = next(call)
    # The start of a part is no output yet; its text is.
    assert any(message.HasField("part_delta") for message in call)
    call.cancel()
    (seen,) = upstream.seen(marker)
    assert upstream.wait_for(lambda: seen.state == "left")
    assert tenant.settled(1)["output_tokens"] > 0
    assert tenant.decision(start.start.decision_id)["state"] == "cancelled"


def test_a_deadline_reaches_the_provider(router: Any, tenant: Tenant, upstream: Upstream) -> None:
    marker = uuid4().hex
    with pytest.raises(grpc.RpcError) as raised:
        list(
            router.StreamChat(
                question(pb.StreamChatRequest, "wall/endless", marker),
                metadata=[("x-api-key", tenant.key)],
                timeout=3,
            )
        )
    # Said by the server as a status: a stream that is cut at its deadline looks like a fault of the server.
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    (seen,) = upstream.seen(marker)
    assert upstream.wait_for(lambda: seen.state == "left")
    tenant.settled(1)


@pytest.mark.parametrize("path", INTERNAL)
def test_internal_rpcs_cannot_be_reached(channel: grpc.Channel, credential: Any, path: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(path)(b"", metadata=credential, timeout=TIMEOUT_S)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def reflected(channel: grpc.Channel) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([asked]), timeout=TIMEOUT_S)
    return {service.name for service in answer.list_services_response.service}


def test_reflection_and_health_are_for_the_internal_listener_alone(
    channel: grpc.Channel, suite: Suite
) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        reflected(channel)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as raised:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    target = "all" if "all" in suite.processes else "router"
    with grpc.insecure_channel(suite.grpc_address(target)) as internal:
        assert "omnihub.router.v1.RouterService" in reflected(internal)
        health = health_pb2_grpc.HealthStub(internal).Check(health_pb2.HealthCheckRequest())
    assert health.status == health_pb2.HealthCheckResponse.SERVING


class TestGrpcWeb:
    """The framing by hand: a flag, a length, a message; trailers are a frame with the highest bit."""

    @staticmethod
    def post(suite: Suite, path: str, message: bytes, key: str) -> list[tuple[int, bytes]]:
        headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", "x-api-key": key}
        body = struct.pack(">BI", 0, len(message)) + message
        answer = httpx.post(f"{suite.url}{path}", content=body, headers=headers, timeout=TIMEOUT_S)
        if not answer.content:
            return [(128, f"grpc-status:{answer.headers['grpc-status']}".encode())]
        frames, rest = [], answer.content
        while rest:
            flag, length = struct.unpack(">BI", rest[:5])
            frames.append((flag, rest[5 : 5 + length]))
            rest = rest[5 + length :]
        return frames

    def test_an_answer(self, suite: Suite) -> None:
        (_, message), (flag, trailers) = self.post(suite, CHAT, question().SerializeToString(), suite.key)
        assert pb.ChatResponse.FromString(message).output == ANSWER
        assert flag == 128
        assert b"grpc-status:0" in trailers

    def test_a_stream(self, suite: Suite) -> None:
        request = question(pb.StreamChatRequest).SerializeToString()
        *messages, (flag, trailers) = self.post(
            suite, "/omnihub.router.v1.RouterService/StreamChat", request, suite.key
        )
        events = [pb.StreamChatResponse.FromString(message) for _, message in messages]
        assert "".join(event.part_delta.text for event in events) == ANSWER
        assert events[-1].HasField("end")
        assert flag == 128
        assert b"grpc-status:0" in trailers

    def test_a_bad_key(self, suite: Suite) -> None:
        frames = self.post(suite, CHAT, question().SerializeToString(), "omni_sk_wrong")
        assert frames == [(128, b"grpc-status:16")]
