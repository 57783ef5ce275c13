"""The internal listener: traces of what enters there, and requests that are none."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import status_pb2
from omnihub.auth.v1 import auth_service_pb2

from services.common.rpc import Call, RpcError
from services.common.rpc.server import GrpcServer, check_constraints
from services.common.rpc.wire import STATUS_DETAILS
from tests.support.echo import CountRequest, Echo, EchoService, SayRequest, SayResponse, grpc_client
from tests.support.spans import recorded_spans

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


async def test_a_call_is_part_of_its_callers_trace() -> None:
    heard = []

    async def say(request: Any, call: Call) -> Any:
        heard.append(call.traceparent)
        if request.text == "fail":
            raise RpcError("NOT_FOUND", "nothing")
        return SayResponse()

    with recorded_spans() as spans:
        async with grpc_client(Echo(say=say)) as client:
            await client.say(SayRequest(), Call("req_1", traceparent=TRACEPARENT))
            with pytest.raises(RpcError):
                await client.say(SayRequest(text="fail"), Call("req_2", traceparent=TRACEPARENT))
            counted = client.count(CountRequest(until=2), Call("req_3", traceparent=TRACEPARENT))
            assert len([message async for message in counted]) == 2
            # What services watch each second is no part of anybody's request.
            await client.say(SayRequest(), Call("req_4"))
    ended = sorted(spans.get_finished_spans(), key=lambda span: span.start_time or 0)
    names = [span.name.rpartition("/")[2] for span in ended]
    outcomes = [span.attributes["omnihub.outcome"] for span in ended]
    assert list(zip(names, outcomes, strict=True)) == [("Say", "OK"), ("Say", "NOT_FOUND"), ("Count", "OK")]
    for span in ended:
        assert f"{span.context.trace_id:032x}" == TRACE
        assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert heard == [*(f"00-{TRACE}-{span.context.span_id:016x}-01" for span in ended[:2]), ""]


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
