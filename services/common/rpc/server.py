"""The gRPC listener: where calls enter a process. What must happen once per entry happens here."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import grpc
import protovalidate
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.common.ids import new_id
from services.common.log import RequestEvent
from services.common.rpc.call import ANONYMOUS, Call, Identity
from services.common.rpc.errors import RpcError, Violation, visible_error
from services.common.rpc.method import (
    Method,
    ServiceInterface,
    close_stream,
    expected,
    handler_of,
    methods_of,
)
from services.common.rpc.wire import (
    CLIENT_ADDRESS,
    IDEMPOTENCY_KEY,
    IDENTITY,
    MESSAGE_LIMIT,
    METADATA_LIMIT,
    REQUEST_ID,
    STATUS_DETAILS,
    TRACEPARENT,
)
from services.common.sockets import UNIX
from services.common.telemetry import Traced

_CODES = {code.value[0]: code for code in grpc.StatusCode}
# How long before a caller's deadline its stream ends with a status, at most.
END_MARGIN_S = 0.1
SERVER_OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.max_metadata_size", METADATA_LIMIT),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
]


class Gate(Protocol):
    """Turns what a caller presents into an identity."""

    async def authenticate(self, credential: str) -> Identity:
        """Return who holds `credential`. Raises RpcError INVALID_CREDENTIAL or UNAVAILABLE."""
        ...

    async def verify(self, token: str) -> Identity:
        """Return who a signed identity token speaks of. Raises RpcError INVALID_CREDENTIAL."""
        ...


def credential_in(headers: Mapping[str, str]) -> str:
    """Return the credential a caller sent (`Authorization: Bearer` or `X-API-Key`), or an empty string."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if value and scheme.lower() == "bearer":
        return value.strip()
    return headers.get("x-api-key", "").strip()


def check_access(method: Method, identity: Identity) -> None:
    """Refuse an identity that may not call `method`. Internal methods rely on their listener."""
    if not method.public or method.anonymous:
        return
    if identity is ANONYMOUS:
        raise RpcError(
            "MISSING_CREDENTIAL", "no credential: send `Authorization: Bearer omni_sk_...` or `X-API-Key`"
        )
    if not identity.holds(method.scope):
        raise RpcError(
            "PERMISSION_DENIED",
            f"the credential lacks the scope `{method.scope}`",
            metadata={"scope": method.scope},
        )


def check_constraints(request: Message, body_field: str = "") -> None:
    """Refuse a message that breaks the constraints written in the contract.

    `body_field` is left out of the names of fields: a REST caller wrote its content, not its name.
    """
    violations = protovalidate.collect_violations(request)
    if not violations:
        return
    fields = []
    for violation in violations:
        path = _field_path(violation.proto.field).removeprefix(f"{body_field}.")
        # An empty string stands for "not given", which is no choice to offer.
        fields.append(Violation(path, violation.proto.message.replace("in list [, ", "one of [")))
    text = "; ".join(f"{v.field}: {v.description}" for v in fields)
    raise RpcError("INVALID_ARGUMENT", text, violations=fields)


def _field_path(path: Any) -> str:
    """Return the name of a field as callers write it, such as `messages[2].role`."""
    names = []
    for element in path.elements if path else ():
        place = element.subscript
        names.append(
            f"{element.field_name}[{place.value}]" if place and place.field == "index" else element.field_name
        )
    return ".".join(names)


def _reader(method: Method) -> Callable[[bytes], Message | None]:
    """Return what reads a request. None stands for bytes that are no such message; `_check` refuses it."""

    def read(content: bytes) -> Message | None:
        try:
            return method.request.FromString(content)
        except DecodeError:
            return None

    return read


def _check(request: Message | None, method: Method, context: Any) -> None:
    if request is None:
        name = method.request.DESCRIPTOR.full_name
        raise RpcError("MALFORMED_BODY", f"the request is no {name}: use code generated from the contract")
    check_constraints(request, _bound_field(method, context))


class GrpcServer:
    """Serves the services of a process on the internal listener, with health and reflection."""

    def __init__(
        self, listen: str, gate: Gate | None, credentials: grpc.ServerCredentials | None = None
    ) -> None:
        self._listen = listen
        self._sockets: list[str] = []
        self._gate = gate
        self._credentials = credentials
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        self._names: list[str] = []
        self._health = health.aio.HealthServicer()

    def add(self, interface: type[ServiceInterface], implementation: Any) -> None:
        """Serve one service."""
        handlers = {}
        for method in methods_of(interface.DESCRIPTOR):
            handler = handler_of(implementation, method)
            make = self._stream_handler if method.streams else self._unary_handler
            handlers[method.path.rsplit("/", 1)[1]] = make(method, handler)
        name = interface.DESCRIPTOR.full_name
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        self._names.append(name)

    def also_listen(self, address: str) -> None:
        """Serve at the Unix socket `unix:/path` too."""
        self._sockets.append(address)

    async def start(self) -> int:
        """Listen and return the port. Raises OSError when the address cannot be had."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._server)
        port = self._bind(self._listen)
        for address in self._sockets:
            self._bind(address)
        await self._server.start()
        return port

    def _bind(self, address: str) -> int:
        try:
            # Who may open a Unix socket, its folder says.
            if self._credentials is None or address.startswith(UNIX):
                return int(self._server.add_insecure_port(address))
            return int(self._server.add_secure_port(address, self._credentials))
        except RuntimeError:
            raise OSError(
                f"no gRPC listener on {address}: it is in use or no address; set OMNIHUB_GRPC_LISTEN"
            ) from None

    async def set_serving(self, serving: bool) -> None:
        """Publish whether the services here can be called."""
        state = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ["", *self._names]:
            await self._health.set(name, state)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let running ones finish within `grace_s` seconds, then cancel them."""
        await self._server.stop(grace_s)

    async def _enter(self, method: Method, context: Any, event: RequestEvent, traced: Traced) -> Call:
        headers = dict(context.invocation_metadata() or ())
        # Before anything can fail: also a refusal is found in the log by its id.
        event.request_id = _request_id(headers)
        identity = ANONYMOUS
        if self._gate is not None:
            if token := headers.get(IDENTITY):
                identity = await self._gate.verify(token)
            elif method.public and not method.anonymous and (credential := credential_in(headers)):
                identity = await self._gate.authenticate(credential)
            check_access(method, identity)
        remaining = context.time_remaining()
        if remaining is not None and method.streams and not headers.get(IDENTITY):
            # At the deadline itself the wire cuts the stream, which callers see as a fault of the server.
            remaining -= min(END_MARGIN_S, remaining / 10)
        return Call(
            event.request_id,
            identity,
            traceparent=traced.traceparent,
            idempotency_key=headers.get(IDEMPOTENCY_KEY, ""),
            client_address=headers.get(CLIENT_ADDRESS, ""),
        ).within(remaining)

    def _unary_handler(self, method: Method, handler: Callable[..., Any]) -> Any:
        async def serve(request: Message | None, context: Any) -> Message:
            event, traced = RequestEvent("rpc", method.path), _traced(method, context)
            try:
                call = await self._enter(method, context, event, traced)
                event.identify(call.request_id, call.identity, call.traceparent)
                _check(request, method, context)
                response = expected(await handler(request, call), method.response, "the response")
                event.finish("OK")
            except BaseException as error:  # noqa: BLE001 - the one place where failures become statuses
                await _abort(context, error, event)
            finally:
                traced.end(event.outcome, event.fields)
            return response

        return grpc.unary_unary_rpc_method_handler(
            serve,
            request_deserializer=_reader(method),
            response_serializer=lambda message: message.SerializeToString(),
        )

    def _stream_handler(self, method: Method, handler: Callable[..., Any]) -> Any:
        # Written to the context rather than yielded: a generator that the caller abandons would be cleaned
        # up whenever it is collected, in another task.
        async def serve(request: Message | None, context: Any) -> None:
            event, traced = RequestEvent("rpc", method.path), _traced(method, context)
            try:
                call = await self._enter(method, context, event, traced)
                event.identify(call.request_id, call.identity, call.traceparent)
                _check(request, method, context)
                stream = handler(request, call)
                try:
                    async for message in stream:
                        await _write(context, expected(message, method.response, "a streamed message"))
                finally:
                    await close_stream(stream)
                event.finish("OK")
            except BaseException as error:  # noqa: BLE001 - the one place where failures become statuses
                await _abort(context, error, event)
            finally:
                traced.end(event.outcome, event.fields)

        return grpc.unary_stream_rpc_method_handler(
            serve,
            request_deserializer=_reader(method),
            response_serializer=lambda message: message.SerializeToString(),
        )


def _traced(method: Method, context: Any) -> Traced:
    """Return the span of what a caller asks and of what that leads to. What services watch has none."""
    traceparent = ""
    for key, value in context.invocation_metadata() or ():
        if key == TRACEPARENT:
            traceparent = value
    return Traced(method.path, traceparent, wanted=method.public or bool(traceparent))


async def _write(context: Any, message: Message) -> None:
    try:
        await context.write(message)
    except grpc.aio.InternalError:
        # The connection ended before the news of it arrived.
        raise asyncio.CancelledError from None


def _bound_field(method: Method, context: Any) -> str:
    """Return the field the edge bound the caller's JSON to; empty for a caller of gRPC."""
    transcoded = method.body_field and "x-envoy-original-path" in dict(context.invocation_metadata() or ())
    return method.body_field if transcoded else ""


def _request_id(headers: Mapping[str, str]) -> str:
    return headers.get(REQUEST_ID) or headers.get("x-request-id") or new_id("req")


async def _abort(context: Any, error: BaseException, event: RequestEvent) -> None:
    """End the call with the status of `error`; the edge reads status and body from the trailers."""
    visible = visible_error(error, event.name)
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        # The caller has gone, or this listener stops: there is nobody to answer.
        event.finish("CANCELLED")
        raise asyncio.CancelledError from None
    event.finish(visible.reason)
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error
    request_id = event.request_id or _request_id(dict(context.invocation_metadata() or ()))
    trailers = [
        (STATUS_DETAILS, visible.to_status().SerializeToString()),
        ("x-http-status", str(visible.row.http)),
        ("x-omnihub-error", visible.to_header_json(request_id)),
        (REQUEST_ID, request_id),
    ]
    if visible.retry_after_s is not None:
        trailers.append(("retry-after", str(max(1, math.ceil(visible.retry_after_s)))))
    await context.abort(_CODES[visible.row.grpc], visible.message, tuple(trailers))
