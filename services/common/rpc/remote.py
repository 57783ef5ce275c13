"""The transport between processes: gRPC, with the same behaviour as services.common.rpc.local."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2

from services.common.rpc.call import Call
from services.common.rpc.errors import RpcError, deadline_exceeded
from services.common.rpc.method import Method, ServiceInterface, copied, expected, methods_of
from services.common.rpc.outlet import Accept
from services.common.rpc.wire import STATUS_DETAILS, metadata_of

_logger = logging.getLogger(__name__)


def read_error(error: grpc.aio.AioRpcError, method: Method, call: Call) -> RpcError:
    """Return the RpcError a peer raised, or what the failure of the wire means."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_DETAILS:
            return RpcError.from_status(status_pb2.Status.FromString(value))
    code = error.code()
    # The peer's own timer may be the faster one: its cancellation then arrives before our deadline does.
    cancelled_late = code is grpc.StatusCode.CANCELLED and call.remaining_s() == 0
    if cancelled_late or code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return deadline_exceeded(method.path)
    if code is grpc.StatusCode.UNAVAILABLE:
        # What the wire says names internal addresses: for operators, not for callers.
        _logger.warning("peer_unreachable %s %s", method.path, error.details())
        service = method.path.split("/")[1].rpartition(".")[2]
        return RpcError("UNAVAILABLE", f"{service} cannot be reached; retry with back-off")
    return RpcError.from_status(status_pb2.Status(code=code.value[0], message=error.details() or ""))


def _timeout_s(method: Method, call: Call) -> float | None:
    remaining = call.remaining_s()
    if remaining == 0:
        # The wire rounds deadlines up, so that the peer would still begin.
        raise deadline_exceeded(method.path)
    return remaining


async def call_unary(multi: Callable[..., Any], method: Method, request: Message, call: Call) -> Any:
    """Call a unary rpc of another process."""
    sent = expected(request, method.request, "the request")
    try:
        return await multi(sent, metadata=metadata_of(call), timeout=_timeout_s(method, call))
    except grpc.aio.AioRpcError as error:
        raise read_error(error, method, call) from None


class RemoteStream:
    """A server stream over gRPC. The call starts with the first read."""

    def __init__(self, multi: Callable[..., Any], method: Method, request: Message, call: Call) -> None:
        self._stream: Any = None
        self._accept: Accept | None = None
        self._ended = False
        self._multi = multi
        self._method = method
        self._request = copied(request, method.request, "the request")
        self._call = call

    def offer_to(self, accept: Accept) -> None:
        """Let `accept` have each message first; what it takes is not read. See services.common.rpc.outlet."""
        self._accept = accept

    def __aiter__(self) -> RemoteStream:
        return self

    async def __anext__(self) -> Any:
        while True:
            message = await self._next()
            if self._accept is None:
                return message
            try:
                taken = self._accept(message)
            except BaseException:
                await self.aclose()
                raise
            if not taken:
                return message

    async def _next(self) -> Any:
        if self._ended:
            raise StopAsyncIteration
        if self._stream is None:
            self._start()
        try:
            message = await self._stream.read()
        except grpc.aio.AioRpcError as error:
            self._ended = True
            raise read_error(error, self._method, self._call) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._ended and task is not None and not task.cancelling():
                # Not this reader is cancelled: another task has closed the stream.
                raise StopAsyncIteration from None
            await self.aclose()
            raise
        if message is grpc.aio.EOF:
            self._ended = True
            raise StopAsyncIteration
        return message

    def _start(self) -> None:
        try:
            timeout_s = _timeout_s(self._method, self._call)
        except RpcError:
            self._ended = True
            raise
        self._stream = self._multi(self._request, metadata=metadata_of(self._call), timeout=timeout_s)

    async def aclose(self) -> None:
        """Stop reading: the peer's handler is cancelled."""
        self._ended = True
        if self._stream is not None:
            self._stream.cancel()

    def __del__(self) -> None:
        if self._stream is not None and not self._ended:
            self._stream.cancel()


class RemoteClient:
    """Calls a service of another process through its interface."""

    def __init__(self, interface: type[ServiceInterface], channel: grpc.aio.Channel) -> None:
        for method in methods_of(interface.DESCRIPTOR):
            make = channel.unary_stream if method.streams else channel.unary_unary
            multi = make(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            start = RemoteStream if method.streams else call_unary
            setattr(self, method.name, partial(start, multi, method))
