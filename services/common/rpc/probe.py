"""Calls that show what came over the wire as it is, for those who judge a server.

Where services.common.rpc.remote turns a foreign or missing error detail into something usable,
this module leaves it visible.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.rpc.errors import Violation
from services.common.rpc.external import Tls, open_channel
from services.common.rpc.method import Method, ServiceInterface, methods_of
from services.common.rpc.wire import STATUS_DETAILS

CONNECT_TIMEOUT_S = 5.0
OK = "OK"
_CODES: Mapping[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class WireStatus:
    """How a call ended."""

    code: str
    """Name of the gRPC code, such as NOT_FOUND."""
    message: str = ""
    detailed: bool = False
    """There was an ErrorInfo."""
    reason: str = ""
    domain: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: Sequence[Violation] = ()
    complaint: str = ""
    """Why the details could not be read."""

    @property
    def ok(self) -> bool:
        """Tell whether the call succeeded."""
        return self.code == OK

    def __str__(self) -> str:
        shown = f"{self.code}/{self.reason}" if self.detailed else self.code
        return f"{shown}: {self.message}" if self.message else shown


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call brought: the messages it sent, and its status."""

    messages: Sequence[Any]
    status: WireStatus
    seconds: float

    @property
    def message(self) -> Any:
        """Return the answer of a unary call that succeeded."""
        return self.messages[0]


def code_name(code: int) -> str:
    """Return the name of a gRPC code."""
    return _CODES.get(code, str(code))


class Probe:
    """Calls one service of a server. Needs a running event loop."""

    def __init__(self, interface: type[ServiceInterface], address: str, tls: Tls | None = None) -> None:
        self._channel = open_channel(address, tls, CONNECT_TIMEOUT_S)
        self._methods = {method.name: method for method in methods_of(interface.DESCRIPTOR)}

    async def call(
        self, name: str, request: Message, timeout_s: float, metadata: Sequence[tuple[str, str]] = ()
    ) -> Reply:
        """Call the rpc of this Python name and read all it sends. A server's errors are in the status."""
        stream = self.open(name, request, timeout_s, metadata)
        messages = []
        while (message := await stream.read()) is not None:
            messages.append(message)
        return Reply(messages, await stream.status(), stream.seconds)

    def open(
        self, name: str, request: Message, timeout_s: float, metadata: Sequence[tuple[str, str]] = ()
    ) -> ProbedCall:
        """Begin a call and leave the reading to the caller."""
        method = self._methods[name]
        make = self._channel.unary_stream if method.streams else self._channel.unary_unary
        multi = make(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        return ProbedCall(multi(request, timeout=timeout_s, metadata=tuple(metadata)), method)

    async def health(self, service: str, timeout_s: float) -> str:
        """Return what grpc.health.v1 says of `service`, such as SERVING, or the code of its failure."""
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = await health_pb2_grpc.HealthStub(self._channel).Check(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


class ProbedCall:
    """A call under way."""

    def __init__(self, call: Any, method: Method) -> None:
        self._call = call
        self._streams = method.streams
        self._started = time.monotonic()
        self._read = False

    @property
    def seconds(self) -> float:
        """Return the seconds since the call began."""
        return time.monotonic() - self._started

    async def read(self) -> Any:
        """Return the next message, or None at the end, whatever the end is."""
        try:
            if self._streams:
                message = await self._call.read()
                return None if message is grpc.aio.EOF else message
            if self._read:
                return None
            self._read = True
            return await self._call
        except grpc.aio.AioRpcError:
            return None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._call.cancelled() and (task is None or not task.cancelling()):
                return None
            self._call.cancel()
            raise

    def cancel(self) -> None:
        """Hang up."""
        self._call.cancel()

    async def status(self) -> WireStatus:
        """Return how the call ended; waits for that."""
        code = await self._call.code()
        trailers = dict(await self._call.trailing_metadata() or ())
        return _status(code.name, await self._call.details() or "", trailers.get(STATUS_DETAILS))


def _status(code: str, message: str, details: bytes | None) -> WireStatus:
    if details is None:
        return WireStatus(code, message)
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    try:
        detailed = False
        for detail in status_pb2.Status.FromString(details).details:
            detailed = detail.Unpack(info) or detailed
            detail.Unpack(bad_request)
    except DecodeError:
        return WireStatus(code, message, complaint=f"{STATUS_DETAILS} is no google.rpc.Status")
    violations = [Violation(v.field, v.description) for v in bad_request.field_violations]
    return WireStatus(
        code, message, detailed, info.reason, info.domain, dict(info.metadata), tuple(violations)
    )
