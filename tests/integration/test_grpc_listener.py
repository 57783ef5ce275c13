"""What the internal listener says to callers whose requests are none."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import status_pb2
from omnihub.auth.v1 import auth_service_pb2

from services.common.rpc.errors import RpcError
from services.common.rpc.server import GrpcServer, check_constraints
from services.common.rpc.wire import STATUS_DETAILS
from tests.support.echo import Echo, EchoService


@pytest.mark.parametrize("method", ["Say", "Count"])
async def test_bytes_that_are_no_message_are_refused_as_bad_input(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = GrpcServer("127.0.0.1:0", None)
    server.add(EchoService, Echo())
    port = await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(f"/omnihubtest.v1.EchoService/{method}")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"\xff\xff\xff")
    finally:
        await server.stop(1)
    trailers = dict(caught.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers[STATUS_DETAILS])
    error = RpcError.from_status(status)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "MALFORMED_BODY"
    assert f"omnihubtest.v1.{method}Request" in error.message
    assert not [record for record in caplog.records if record.name.startswith("grpc")]


def refused_field(request: Message) -> str:
    with pytest.raises(RpcError) as caught:
        check_constraints(request)
    (violation,) = caught.value.violations
    assert caught.value.message.startswith(f"{violation.field}: ")
    return violation.field


def test_the_wrong_one_of_a_list_is_named() -> None:
    request = auth_service_pb2.CreateApiKeyRequest(name="ci", scopes=["chat", "fly"])
    assert refused_field(request) == "scopes[1]"
    assert refused_field(auth_service_pb2.CreateApiKeyRequest()) == "name"
