"""The transport between processes: gRPC, with the same behaviour as services.common.rpc.local."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2

from services.common.rpc.call import Call
from services.common.rpc.errors import RpcError
from services.common.rpc.method import Method, ServiceInterface, methods_of

MESSAGE_LIMIT = 64 * 1024 * 1024
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    # A peer that vanished without a word is noticed within half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Services that restart are found again at once, not after minutes of back-off.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

REQUEST_ID = "x-omnihub-request-id"
IDENTITY = "x-omnihub-identity"
TRACEPARENT = "traceparent"
IDEMPOTENCY_KEY = "idempotency-key"
STATUS_DETAILS = "grpc-status-details-bin"


def metadata_of(call: Call) -> tuple[tuple[str, str], ...]:
    """Return the gRPC metadata that carries a call."""
    metadata = [(REQUEST_ID, call.request_id)]
    if call.identity.token:
        metadata.append((IDENTITY, call.identity.token))
    if call.traceparent:
        metadata.append((TRACEPARENT, call.traceparent))
    if call.idempotency_key:
        metadata.append((IDEMPOTENCY_KEY, call.idempotency_key))
    return tuple(metadata)


def read_error(error: grpc.aio.AioRpcError) -> RpcError:
    """Return the RpcError a peer raised, or what the failure of the wire means."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS:
            return RpcError.from_status(status_pb2.Status.FromString(value))
    code = error.code().value[0]
    return RpcError.from_status(status_pb2.Status(code=code, message=error.details() or ""))


class RemoteStream:
    """A server stream over gRPC. The call starts with the first read."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._call: Any = None
        self._ended = False

    def __aiter__(self) -> RemoteStream:
        return self

    async def __anext__(self) -> Any:
        if self._ended:
            raise StopAsyncIteration
        if self._call is None:
            self._call = self._start()
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            self._ended = True
            raise read_error(error) from None
        except BaseException:
            await self.aclose()
            raise
        if message is grpc.aio.EOF:
            self._ended = True
            raise StopAsyncIteration
        return message

    async def aclose(self) -> None:
        """Stop reading: the peer's handler is cancelled."""
        self._ended = True
        if self._call is not None:
            self._call.cancel()

    def __del__(self) -> None:
        if self._call is not None and not self._ended:
            self._call.cancel()


def _unary_stub(channel: grpc.aio.Channel, method: Method) -> Callable[[Any, Call], Any]:
    multi = channel.unary_unary(
        method.path,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=method.response.FromString,  # type: ignore[attr-defined]
    )

    async def stub(request: Message, call: Call) -> Any:
        try:
            return await multi(request, metadata=metadata_of(call), timeout=call.remaining_s())
        except grpc.aio.AioRpcError as error:
            raise read_error(error) from None

    return stub


def _stream_stub(channel: grpc.aio.Channel, method: Method) -> Callable[[Any, Call], Any]:
    multi = channel.unary_stream(
        method.path,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=method.response.FromString,  # type: ignore[attr-defined]
    )

    def stub(request: Message, call: Call) -> RemoteStream:
        sent = type(request)()
        sent.CopyFrom(request)
        return RemoteStream(lambda: multi(sent, metadata=metadata_of(call), timeout=call.remaining_s()))

    return stub


class RemoteClient:
    """Calls a service of another process through its interface."""

    def __init__(self, interface: type[ServiceInterface], channel: grpc.aio.Channel) -> None:
        for method in methods_of(interface.DESCRIPTOR):
            make = _stream_stub if method.streams else _unary_stub
            setattr(self, method.name, make(channel, method))
